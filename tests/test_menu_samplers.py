"""Samplers of other programs' menus, against their loops written out: Heun++, gradient estimation, SEEDS in the data chart."""

import itertools
import math

import numpy as np
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


def unipc_of_noise(field, x, sigmas, bh2):
    """UniPC-2 with noise prediction, from the authors' multistep_uni_pc_bh_update: hh = h, B = h or e^h - 1, alpha = 1.

    Weights are 1/2 for the corrector of order 1 and the predictor of order 2, and solve a system for the corrector of order 2.
    """
    noise, lam = [field.noise(x, sigmas[0])], [-math.log(s) for s in sigmas]
    for i in range(1, len(sigmas)):
        order, h = min(2, i, len(sigmas) - i), lam[i] - lam[i - 1]
        phi_1 = math.expm1(h)
        b_h = phi_1 if bh2 else h
        old, t = noise[-1], sigmas[i]
        base = x - t * phi_1 * old
        r = (lam[i - 2] - lam[i - 1]) / h if order == 2 else None
        d1 = (noise[-2] - old) / r if order == 2 else 0.0
        x = base - t * b_h * 0.5 * d1
        if i == len(sigmas) - 1:
            break
        new = field.noise(x, t)
        if order == 1:
            x = base - t * b_h * 0.5 * (new - old)
        else:
            # b_k = h phi_(k+1) k!/B of the phi functions of the step.
            b = [(phi_1 / h - 1) * 1 / b_h, ((phi_1 / h - 1) / h - 0.5) * 2 / b_h]
            rhos = np.linalg.solve([[1.0, 1.0], [r, 1.0]], b).tolist()
            x = base - t * b_h * (rhos[0] * d1 + rhos[1] * (new - old))
        noise.append(new)
    return x


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_unipc_of_noise_predictions_is_the_authors_loop(field, start, variant, steps):
    times = grids.get("karras", paths.get("edm"), steps)
    solver = solvers.get("unipc", order=2, variant=variant, chart="noise_log_snr")
    found = diffode.solve(field, start, solver=solver, grid=times).x
    expected = unipc_of_noise(field, start, times.tolist(), variant == "bh2")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_unipc_of_noise_predictions_has_the_order_of_its_corrector(order):
    solver = solvers.get("unipc", order=order, chart="noise_log_snr", lower_order_final="never")
    found = verify.order(solver, target="ring8", steps=(128, 256, 512, 1024), points=8, tolerance=1e-13)
    assert abs(found.slope - (order + 1)) < 0.2


@pytest.mark.parametrize("gamma", ["two", float("nan"), True])
def test_a_wrong_gamma_is_named(gamma):
    with pytest.raises(ArgumentError, match="gamma must be a finite number"):
        solvers.get("gradient_estimation", gamma=gamma)
