"""Implicit Runge-Kutta methods: collocation, linear systems of many rows, and steps with a closed form."""

import itertools
import math

import numpy as np
import pytest
import torch

import diffode
from diffode import solvers
from diffode.errors import ArgumentError, NumericalError
from diffode.flows import reference
from diffode.numerics.butcher import density, trees
from diffode.numerics.collocation import Collocation, gauss, radau
from diffode.numerics.krylov import gmres


def test_coefficients_are_the_published_ones():
    """Hairer and Wanner, tables IV.5.1, 5.5 and 5.6."""
    root = math.sqrt(3)
    assert np.allclose(gauss(2).stages, [[1 / 4, 1 / 4 - root / 6], [1 / 4 + root / 6, 1 / 4]], rtol=1e-13)
    assert (gauss(1).stages, gauss(1).weights) == ([[0.5]], [1.0])
    assert np.allclose(radau(2).stages, [[5 / 12, -1 / 12], [3 / 4, 1 / 4]], rtol=1e-13)
    assert radau(1).stages == [[1.0]]
    root = math.sqrt(6)
    assert np.allclose(radau(3).nodes, [(4 - root) / 10, (4 + root) / 10, 1], rtol=1e-12)
    assert np.allclose(radau(3).weights, [(16 - root) / 36, (16 + root) / 36, 1 / 9], rtol=1e-12)


@pytest.mark.parametrize("make", [gauss, radau])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_all_order_conditions_of_trees_hold_and_one_of_the_next_order_fails(make, stages):
    method = make(stages)
    a, b = np.array(method.stages), np.array(method.weights)

    def stagewise(tree):
        return math.prod((a @ stagewise(branch) for branch in tree), start=np.ones(stages))

    missed = [max(abs(b @ stagewise(tree) - 1 / density(tree)) for tree in trees(size)) for size in range(1, method.order + 2)]
    assert method.order == 2 * stages - (make is radau)
    assert max(missed[:-1]) < 1e-12
    assert missed[-1] > 1e-5


def test_gauss_keeps_the_length_of_oscillations_and_radau_damps_what_is_stiff():
    """R(z) = 1 + z b (1 - z A)^-1 1 (Hairer and Wanner, IV.3)."""

    def stability(method, z):
        a, b = np.array(method.stages), np.array(method.weights)
        return 1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * a, np.ones(len(b)))

    for stages in (1, 2, 3):
        assert abs(stability(gauss(stages), 3.7j)) == pytest.approx(1, rel=1e-12)
        assert abs(stability(radau(stages), -1e9)) < 1e-8
        assert abs(stability(radau(stages), 3.7j)) < 1


def test_gmres_solves_every_row_in_a_space_of_its_own():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(6, dtype=torch.float64) + 0.3 * torch.randn(5, 6, 6, generator=generator, dtype=torch.float64)
    right = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    right[3] = 0
    matrix[4] = torch.eye(6)
    found = gmres(lambda v: (matrix @ v[:, :, None])[:, :, 0], right, 6, 1e-14)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-10, atol=1e-12)
    rough = gmres(lambda v: (matrix @ v[:, :, None])[:, :, 0], right, 2, 1e-14)
    assert bool(((matrix @ rough[:, :, None])[:, :, 0] - right).norm(dim=1).le(right.norm(dim=1)).all())


@pytest.mark.parametrize("iteration", ["fixed_point", "newton_krylov"])
@pytest.mark.parametrize("method", ["gauss", "radau"])
def test_a_step_on_a_gaussian_is_its_closed_form(method, iteration):
    """eps = rho x/(c^2 + rho^2): of one stage, z_t = z_s (1 + (1 - c) h k)/(1 - c h k) at the node c, h = rho_t - rho_s."""
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [[[2.25]]]), "edm")
    times = [5.0, 3.0, 2.5, 1.0]
    x = torch.tensor([[4.0], [-1.0]], dtype=torch.float64)
    solver = solvers.get("implicit_rk", method=method, stages=1, iteration=iteration)
    found = diffode.solve(field, x, solver=solver, grid=times, keep="all").states
    expected, node = x, 0.5 if method == "gauss" else 1.0
    for i, (s, t) in enumerate(itertools.pairwise(times), start=1):
        rho = s + node * (t - s)
        k = (t - s) * rho / (2.25 + rho**2)
        expected = expected * (1 + (1 - node) * k) / (1 - node * k)
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chart", ["noise", "data"])
@pytest.mark.parametrize(
    ("method", "stages"),
    [("gauss", 1), ("gauss", 2), pytest.param("radau", 1, marks=pytest.mark.slow), ("radau", 2), ("radau", 3)],
)
def test_errors_fall_with_the_order_of_the_method(method, stages, chart):
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.prior(6, generator=0)
    true = reference(field, x, 80.0, 0.002, 1e-13).x
    solver = solvers.get("implicit_rk", method=method, stages=stages, chart=chart, iteration="fixed_point")
    # The first-order method comes near its order at small steps alone.
    steps = (1024, 2048) if solver.order == 1 else (64, 128)
    errors = [
        float((diffode.solve(field, x, solver=solver, grid="log_snr", steps=n).x - true).square().mean().sqrt()) for n in steps
    ]
    assert abs(math.log2(errors[0] / errors[1]) - solver.order) < 0.15


def test_both_iterations_find_the_same_stages_and_count_what_they_ask():
    field = diffode.exact_field("ring8", "edm")
    x, calls = field.prior(5, generator=0), []

    def noise(state, t):
        calls.append(len(state))
        return field.noise(state, t)

    watched = diffode.fields.Field.from_noise(noise, "edm", probe=False, scale=field.scale)
    runs = {}
    for iteration in ("fixed_point", "newton_krylov"):
        calls.clear()
        runs[iteration] = diffode.solve(watched, x, solver="implicit_rk:iteration=" + iteration, grid="karras", steps=24)
        assert runs[iteration].nfe == len(calls)
        # Rows whose iteration has settled are not asked for again.
        assert min(calls) < 5
    torch.testing.assert_close(runs["fixed_point"].x, runs["newton_krylov"].x, rtol=1e-8, atol=1e-9)


def test_rows_do_not_depend_on_their_batch_and_float32_settles():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    whole = diffode.solve(field, x, solver="implicit_rk", grid="karras", steps=12).x
    torch.testing.assert_close(diffode.solve(field, x[1:2], solver="implicit_rk", grid="karras", steps=12).x, whole[1:2])
    single = diffode.solve(field, x.float(), solver="implicit_rk", grid="karras", steps=12).x
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-3, atol=1e-3)


def test_an_iteration_that_does_not_settle_is_named_and_other_rows_are_finished():
    """dx/dt = k x, k = 100 where x > 0 and 1 elsewhere, in falling time: h k is 50 and 1/2, of which repetition bears one."""
    field = diffode.fields.Field.from_velocity(
        lambda x, t: torch.where(x > 0, 100.0, 1.0) * x, "rectified_flow:t_max=1", probe=False
    )
    x, solver = (
        torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
        "implicit_rk:method=radau,stages=1,chart=velocity,iteration=",
    )
    with pytest.raises(
        NumericalError, match=r"1 of 2 rows did not get to the end; row 0 got to t=1:.*not settle in 100 rounds"
    ):
        diffode.solve(field, x, solver=solver + "fixed_point", grid=[1.0, 0.5, 0.001])
    run = diffode.solve(field, x, solver=solver + "fixed_point", grid=[1.0, 0.5, 0.001], on_failure="return")
    assert run.status[1] == 0 != run.status[0]
    newton = diffode.solve(field, x, solver=solver + "newton_krylov", grid=[1.0, 0.5, 0.001]).x
    exact = torch.tensor([[1 / (1 + 50) / (1 + 49.9)], [-1 / 1.5 / 1.499]], dtype=torch.float64)
    torch.testing.assert_close(newton, exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(run.x[1], exact[1], rtol=1e-10, atol=1e-12)


def test_a_step_to_zero_is_the_denoised_point_and_a_budget_is_kept():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    for chart in ("noise", "data"):
        solver = solvers.get("implicit_rk", chart=chart)
        run = diffode.solve(field, x, solver=solver, grid="karras:to_zero=true", steps=10, keep="all")
        torch.testing.assert_close(run.x, field.denoised(run.states[-2], float(run.times[-2])), rtol=1e-10, atol=1e-11)
    assert 100 < diffode.solve(field, x, solver="implicit_rk:stages=1", grid="karras", nfe=150).nfe <= 150


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "lobatto"}, "method must be one of gauss, radau"),
        ({"stages": 9}, "stages must be one of 1, 2, 3, 4"),
        ({"rtol": 0}, "rtol must be a number between 0 and 1"),
        ({"krylov": 0}, "krylov must be an integer from 1"),
        ({"chart": "noise_time"}, "chart must be one of velocity, noise, data"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        solvers.get("implicit_rk", **options)
    with pytest.raises(ArgumentError, match="nodes must increase"):
        Collocation((0.5, 0.2))


def test_rows_that_are_not_solved_are_told_what_this_solver_has():
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(NumericalError, match="raise max_iterations, or take more steps"):
        diffode.solve(field, field.prior(4, generator=0), solver="implicit_rk:max_iterations=1", steps=4)


def test_a_start_that_asks_for_a_gradient_is_refused():
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.prior(2, generator=0).requires_grad_()
    with pytest.raises(ArgumentError, match="implicit_rk can't be differentiated"):
        diffode.solve(field, x, solver="implicit_rk", steps=20)
    with torch.no_grad():
        assert bool(diffode.solve(field, x, solver="implicit_rk", steps=20).x.isfinite().all())
