"""Samplers of other programs' menus, against their loops written out: Heun++, gradient estimation, SEEDS in the data chart."""

import itertools

import pytest
import torch

import diffode
from diffode import grids, paths, solvers, verify
from diffode.errors import ArgumentError


@pytest.fixture(scope="module")
def field():
    return diffode.exact_field("bimodal1d", "edm")


@pytest.fixture(scope="module")
def start(field):
    return field.prior(6, generator=0)


def slope_at(field):
    return lambda x, sigma: (x - field.denoised(x, sigma)) / sigma


def heun_plus_loop(field, x, sigmas):
    """The public loop: three slopes, two in the last step but one, one in the last."""
    slope, first = slope_at(field), sigmas[0]
    for i in range(len(sigmas) - 1):
        d = slope(x, sigmas[i])
        dt = sigmas[i + 1] - sigmas[i]
        if i == len(sigmas) - 2:
            x = x + d * dt
            continue
        x_2 = x + d * dt
        d_2 = slope(x_2, sigmas[i + 1])
        if i == len(sigmas) - 3:
            w2 = sigmas[i + 1] / (2 * first)
            x = x + ((1 - w2) * d + w2 * d_2) * dt
            continue
        d_3 = slope(x_2 + d_2 * (sigmas[i + 2] - sigmas[i + 1]), sigmas[i + 2])
        w2, w3 = sigmas[i + 1] / (3 * first), sigmas[i + 2] / (3 * first)
        x = x + ((1 - w2 - w3) * d + w2 * d_2 + w3 * d_3) * dt
    return x


def gradient_estimation_loop(field, x, sigmas, gamma):
    slope, old = slope_at(field), None
    for s, t in itertools.pairwise(sigmas):
        d = slope(x, s)
        x = x + (t - s) * (d if old is None or t == 0 else gamma * d + (1 - gamma) * old)
        old = d
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("to_zero", ["false", "true"])
@pytest.mark.parametrize("spec", ["heunpp2", "gradient_estimation", "gradient_estimation:gamma=1.5"])
def test_runs_equal_the_public_loops(spec, to_zero, steps, field, start):
    times = grids.get(f"karras:to_zero={to_zero}", paths.get("edm"), steps)
    found = diffode.solve(field, start, solver=spec, grid=times).x
    solver = solvers.get(spec)
    if spec == "heunpp2":
        expected = heun_plus_loop(field, start, times.tolist())
    else:
        expected = gradient_estimation_loop(field, start, times.tolist(), solver.gamma)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_heun_plus_spends_three_evaluations_but_in_the_last_two_steps():
    assert solvers.table_solver("heunpp2").tableau("edm", "karras", 8).nfe == 3 * 8 - 3
    assert solvers.table_solver("heunpp2").tableau("edm", "karras", 1).nfe == 1


@pytest.mark.parametrize(("spec", "order"), [("heunpp2", 1), ("gradient_estimation", 1), ("kutta3:chart=noise", 3)])
def test_orders_are_those_that_are_documented(spec, order):
    found = verify.order(spec, target="ring8", steps=(256, 512, 1024, 2048), points=8, tolerance=1e-12)
    assert solvers.get(spec).convergence_order == order
    assert abs(found.slope - order) < 0.15


def test_gradient_estimation_with_one_is_euler_and_with_three_halves_is_adams_on_uniform_levels():
    path, levels = paths.get("edm"), [5.0, 4.0, 3.0, 2.0, 1.0]
    rows = {
        spec: [row.evaluations for row in solvers.table_solver(spec).tableau(path, levels).rows[1:]]
        for spec in ("gradient_estimation:gamma=1", "ddim", "gradient_estimation:gamma=1.5", "ab:order=2,chart=noise")
    }
    one, ddim, adams, ab = rows.values()
    for a, b in zip([*one, *adams], [*ddim, *ab], strict=True):
        assert {j: v for j, v in a.items() if v} == pytest.approx({j: v for j, v in b.items() if v})


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_seeds_in_the_data_chart_is_the_family_of_dpmpp_sde(order, eta):
    made = [
        solvers.table_solver(name, order=order, eta=eta, **more)
        for name, more in (("seeds", {"chart": "data"}), ("dpmpp_sde", {}))
    ]
    one, other = (solver.tableau("vp", "karras", 4) for solver in made)
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.states, a.evaluations, a.draws) == (b.states, b.evaluations, b.draws)


@pytest.mark.parametrize("gamma", ["two", float("nan"), True])
def test_a_wrong_gamma_is_named(gamma):
    with pytest.raises(ArgumentError, match="gamma must be a finite number"):
        solvers.get("gradient_estimation", gamma=gamma)
