"""Deterministic solvers from data to noise, over the grids that they take downwards."""

import math

import pytest
import torch

import diffode
from diffode.errors import ArgumentError, BudgetError
from diffode.solvers.upwards import Upwards

#: Solvers and the order with which they must converge upwards: their own, but for exponential Adams methods of third order.
#: Their first step, of first order, is at the end of the grid where the denoised point moves, and costs h^2 alone.
ORDERS = {
    "ddim": 1, "euler": 1, "heun": 2, "midpoint:chart=data": 2, "rk4:chart=noise": 4, "ab:order=3,chart=data": 2,
    "lms:order=3": 3, "ipndm:order=2": 2, "deis:order=2": 2, "dpm:order=3": 3, "dpm_m:order=2": 2, "dpmpp:order=2": 2,
    "dpmpp:order=3,form=consistent": 2, "dpmpp_s:order=2": 2, "unipc:order=2": 3, "edm_heun": 2,
}  # fmt: skip


@pytest.mark.parametrize("spec", ORDERS)
def test_a_run_upwards_converges_to_the_flow_with_the_solvers_order(spec):
    """Least squares over three halvings; lower orders at the ends of a run cost less than 0.3 of the slope there."""
    field = diffode.exact_field("bimodal1d", "vp")
    x = field.marginal(48, 0.1, generator=0)
    true = diffode.reference(field, x, 0.1, 1.0).x
    counts = (16, 32, 64)
    errors = []
    for steps in counts:
        run = diffode.solve(field, x, solver=spec, grid="log_snr", steps=steps, between=(1.0, 0.1), upwards=True)
        assert (float(run.times[0]), float(run.times[-1])) == (0.1, 1.0)
        errors.append(float((run.x - true).square().mean().sqrt()))
    slope = math.log2(errors[0] / errors[-1]) / 2
    assert slope > ORDERS[spec] - 0.35


def test_ddim_inversion_is_the_published_step():
    """x_t = alpha_t (x_s/alpha_s + (rho_t - rho_s) eps(x_s, s)) at rising noise (arXiv 2211.09794, equation 3)."""
    field = diffode.exact_field("ring8", "vp")
    times = [0.8, 0.5, 0.2, 0.01]
    x = field.marginal(5, 0.01, generator=0)
    by_hand = x
    for s, t in zip(times[::-1], times[-2::-1], strict=False):
        path = field.path
        by_hand = path.alpha(t) * (by_hand / path.alpha(s) + (path.rho(t) - path.rho(s)) * field.noise(by_hand, s))
    run = diffode.solve(field, x, solver="ddim", grid=times, upwards=True)
    torch.testing.assert_close(run.x, by_hand, rtol=1e-12, atol=1e-12)


def test_up_and_down_again_returns_to_the_start():
    field = diffode.exact_field("gmm40", "edm")
    x = field.marginal(20, 0.002, generator=1)
    up = diffode.solve(field, x, solver="rk4:chart=noise", grid="karras", steps=200, upwards=True)
    down = diffode.solve(field, up.x, solver="rk4:chart=noise", grid="karras", steps=200)
    assert float((down.x - x).norm(dim=1).max()) < 1e-4 * field.scale
    assert up.nfe == down.nfe == 800


@pytest.mark.parametrize("spec", ["dpm:order=3", "dpmpp_s:order=3", "heun"])
def test_a_budget_upwards_buys_what_it_buys_downwards(spec):
    field = diffode.exact_field("ring8", "edm")
    x = field.marginal(2, 0.002, generator=0)
    down = diffode.solve(field, field.prior(2, generator=0), solver=spec, nfe=17)
    up = diffode.solve(field, x, solver=spec, nfe=17, upwards=True)
    assert up.nfe == down.nfe
    torch.testing.assert_close(up.times, down.times.flip(0))


def test_what_cannot_run_upwards_is_refused_by_name():
    field = diffode.exact_field("ring8", "edm")
    x = field.marginal(2, 0.002, generator=0)
    for spec, why in (
        ("ddpm", "draws noise"),
        ("dpmpp_2m_sde", "draws noise"),
        ("rk_adaptive", "follows the field itself"),
        ("universal", "lays its own steps"),
        ("dpm_fast", "lays its own steps"),
        ("ddim:analytic_first_step=true", "replaces an evaluation"),
    ):
        with pytest.raises(ArgumentError, match=why):
            diffode.solve(field, x, solver=spec, nfe=8, upwards=True)
    with pytest.raises(ArgumentError, match="upwards must be True or False"):
        diffode.solve(field, x, solver="ddim", nfe=8, upwards=1)
    with pytest.raises(BudgetError):
        diffode.solve(field, x, solver="rk4", nfe=3, upwards=True)


def test_a_solver_that_is_singular_where_the_data_are_clean_says_so():
    field = diffode.exact_field("gauss1d", "edm")
    x = field.target.sample(3, generator=0)
    with pytest.raises(ArgumentError, match="singular"):
        diffode.solve(field, x, solver="dpmpp:order=2", grid=[1.0, 0.5, 0.0], upwards=True)


def test_a_table_upwards_names_itself():
    solver = Upwards(solver=diffode.solvers.get("heun"))
    table = solver.tableau(diffode.paths.get("vp"), "log_snr", 3)
    assert table.solver == "heun upwards"
    assert table.times[0] < table.times[-1]
