"""Grids of other programs' menus, against the numbers of these programs (tools/record_menu_grids.py)."""

import json
from pathlib import Path

import pytest
import torch

import diffode
from diffode import grids, paths
from diffode.errors import ArgumentError, BudgetError
from diffode.grid_menus import MENUS, flow_time

RECORDED = json.loads((Path(__file__).parent / "data" / "menu_grids.json").read_text())
PATHS = {
    "stable_diffusion": paths.get("ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012"),
    "flow": paths.get("rectified_flow:t_max=1"),
    "flow, shift 3": paths.get("rectified_flow:t_max=1"),
}


def sigmas_of(model, times):
    """What the programs call sigma: sigma/alpha of models of discrete noise levels, the time of flow-matching models."""
    return [PATHS[model].rho(t) for t in times.tolist()] if model == "stable_diffusion" else times.tolist()


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("grid", [*MENUS, "beta57"])
def test_levels_equal_the_recorded_ones(grid, model):
    """To 1e-9: the programs' cumulative products of 1 - beta round otherwise, and the lowest levels feel it."""
    runs = [run for run in RECORDED if run["grid"] == grid and run["model"] == model]
    assert bool(runs) or grid in ("linear_quadratic", "bong_tangent")
    shifted = {"shift": 3.0} if model.endswith("3") else {}
    for run in runs:
        found = sigmas_of(model, grids.get(grid, PATHS[model], run["steps"], **shifted))
        assert found == pytest.approx(run["sigmas"], rel=1e-9, abs=1e-12), (grid, run["steps"])


def test_every_grid_was_recorded_for_five_lengths():
    assert len(RECORDED) == 3 * 5 * 6 + 5 * 2
    assert {run["grid"] for run in RECORDED} == {*MENUS, "beta57"}


@pytest.mark.parametrize(("name", "ours"), [("normal", "time_uniform:to_zero=true"), ("exponential", "log_snr")])
def test_names_of_menus_that_are_grids_of_ours(name, ours):
    for path in ("edm", PATHS["stable_diffusion"]):
        torch.testing.assert_close(grids.get(name, path, 7), grids.get(ours, path, 7), rtol=1e-13, atol=1e-13)


def test_karras_and_kl_optimal_to_zero_are_those_of_the_menus():
    """Levels from the highest to the lowest in one step less, then 0 (k-diffusion; ComfyUI, kl_optimal_scheduler)."""
    path, n = PATHS["stable_diffusion"], 6
    low, high = path.rho(path.t_min), path.rho(path.t_max)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    karras = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    optimal = (ramp * torch.tensor(low).double().atan() + (1 - ramp) * torch.tensor(high).double().atan()).tan()
    for name, expected in (("karras", karras), ("kl_optimal", optimal)):
        found = sigmas_of("stable_diffusion", grids.get(name, path, n, to_zero=True))
        assert found == pytest.approx([*expected.tolist(), 0.0], rel=1e-6)


@pytest.mark.parametrize("name", MENUS)
@pytest.mark.parametrize("path_name", paths.names())
@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_levels_fall_on_every_path_to_zero_or_to_the_end(name, path_name, steps):
    path = paths.get(path_name)
    for to_zero in (True, False):
        times = grids.get(name, path, steps, to_zero=to_zero)
        assert bool((times.diff() < 0).all())
        assert float(times[-1]) == (path.time_from_rho(0.0) if to_zero else path.t_min)
        assert (float(times[0]) == path.t_max) == (name != "ddim_uniform")
        assert len(times) == steps + 1 or name in ("ddim_uniform", "beta")


def test_ddim_uniform_lays_more_steps_where_they_do_not_divide_the_levels_and_a_budget_is_kept():
    assert len(grids.get("ddim_uniform", PATHS["stable_diffusion"], 30)) == 32
    field = diffode.exact_field("ring8", PATHS["stable_diffusion"])
    x = field.prior(2, generator=0)
    assert diffode.solve(field, x, solver="ddim", grid="ddim_uniform", nfe=25).nfe == 25
    with pytest.raises(BudgetError, match="no run of 'ddim' on grid 'ddim_uniform' fits nfe=30"):
        diffode.solve(field, x, solver="ddim", grid="ddim_uniform", nfe=30)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shift_moves_levels_to_noise_by_one_rule_on_every_path(shift):
    times = {}
    for name in ("rectified_flow", "trigonometric"):
        path = paths.get(name)
        times[name] = [flow_time(path, t) for t in grids.get("sgm_uniform", path, 6, shift=shift).tolist()]
    plain = [flow_time(paths.get("rectified_flow"), t) for t in grids.get("simple", "rectified_flow", 6).tolist()]
    moved = [flow_time(paths.get("rectified_flow"), t) for t in grids.get("simple", "rectified_flow", 6, shift=shift).tolist()]
    assert moved == pytest.approx([shift * t / (1 + (shift - 1) * t) for t in plain])
    assert all(tau == sorted(tau, reverse=True) for tau in times.values())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("simple:levels=1", "levels must be an integer >= 2"),
        ("normal:shift=0", "shift must be positive"),
        ("beta:alpha=-1", "alpha must be positive"),
        ("linear_quadratic:threshold=1", "threshold must lie in"),
        ("bong_tangent:level=sigma", "level must be one of flow, rho"),
    ],
)
def test_wrong_options_are_named(spec, words):
    with pytest.raises(ArgumentError, match=words):
        grids.get(spec, "edm", 4)
    with pytest.raises(ArgumentError, match="finite noise level"):
        grids.get("bong_tangent:level=rho", PATHS["flow"], 4)
