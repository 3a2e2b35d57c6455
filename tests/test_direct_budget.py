"""A budget for every sampler: solvers that write no table, and plain functions."""

import itertools

import pytest
import torch

import diffode
from diffode import solvers
from diffode.errors import ArgumentError, BudgetError, FieldError
from diffode.solvers import DirectSolver, Journey
from diffode.studies import keyed_cells, parse_suite
from diffode.studies.rows import compute
from diffode.verify import check_sampler


class ImplicitMidpoint(DirectSolver):
    """Fixed-point iteration; how many it takes depends on the solution."""

    name = "implicit_midpoint"
    order = 2

    def follow(self, field, x, times, generator):
        states = [x]
        for s, t in itertools.pairwise(times):
            slope = field.velocity(x, s)
            for _ in range(200):
                new = field.velocity(x + (t - s) / 2 * slope, (s + t) / 2)
                near = float((new - slope).abs().max()) < 1e-10
                slope = new
                if near:
                    break
            x = x + (t - s) * slope
            states.append(x)
        return Journey(torch.stack(states))


def euler(field, x, times):
    for s, t in itertools.pairwise(times):
        x = x + (t - s) * field.velocity(x, s)
    return x


def heun(field, x, times):
    for s, t in itertools.pairwise(times):
        d = field.velocity(x, s)
        x = x + (t - s) / 2 * (d + field.velocity(x + (t - s) * d, t))
    return x


def jittered(field, x, times, generator):
    return euler(field, x, times) + 1e-3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.fixture
def field():
    return diffode.exact_field("bimodal1d", "vp")


@pytest.mark.parametrize("budget", [40, 77, 300])
def test_a_solver_whose_steps_cost_what_the_solution_asks_keeps_its_budget(field, budget):
    x = field.prior(3, generator=0)
    found = diffode.solve(field, x, solver=ImplicitMidpoint(), nfe=budget)
    assert found.nfe <= budget
    more = diffode.solve(field, x, solver=ImplicitMidpoint(), grid="karras", steps=len(found.times))
    assert more.nfe > budget or more.nfe <= found.nfe


def test_the_trials_of_a_budget_are_not_counted(field):
    before = field.nfe
    found = diffode.solve(field, field.prior(3, generator=0), solver=heun, nfe=21)
    assert found.nfe == 20
    assert field.nfe - before == 20


@pytest.mark.parametrize(("function", "nfe", "steps"), [(euler, 12, 12), (heun, 12, 6), (heun, 13, 6)])
def test_a_function_makes_the_steps_its_budget_buys(field, function, nfe, steps):
    x = field.prior(3, generator=0)
    found = diffode.solve(field, x, solver=function, nfe=nfe)
    assert len(found.times) - 1 == steps
    assert torch.equal(found.x, function(field, x, diffode.grids.get("karras", field.path, steps).tolist()))
    assert torch.equal(found.x, diffode.solve(field, x, solver=function, steps=steps).x)


def test_a_function_that_draws_noise_takes_a_seed(field):
    x = field.prior(3, generator=0)
    one, two, three = (diffode.solve(field, x, solver=jittered, nfe=8, generator=seed).x for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    with pytest.raises(ArgumentError, match="generator"):
        diffode.solve(field, x, solver=jittered, nfe=8)


def test_a_function_has_a_name_in_specs(field, tmp_path):
    x = field.prior(3, generator=0)
    (tmp_path / "mine.py").write_text(
        "def sampler(field, x, times):\n    for s, t in zip(times, times[1:]):\n"
        "        x = x + (t - s) * field.velocity(x, s)\n    return x\n"
    )
    place = f"{tmp_path / 'mine.py'}:sampler"
    assert torch.equal(diffode.solve(field, x, solver=place, nfe=9).x, diffode.solve(field, x, solver=euler, nfe=9).x)
    assert solvers.get(place).spec == place
    solvers.register("test_budget_heun", heun)
    assert diffode.solve(field, x, solver="test_budget_heun", nfe=8).nfe == 8


def test_fixed_methods_of_other_libraries_take_a_budget_and_adaptive_ones_say_why_not(field):
    x = field.prior(3, generator=0)
    assert diffode.solve(field, x, solver="torchdiffeq:rk4", nfe=23).nfe <= 23
    for spec in ("rk_adaptive", "scipy:RK45", "torchdiffeq:dopri5"):
        with pytest.raises(ArgumentError, match="chooses its own steps"):
            diffode.solve(field, x, solver=spec, nfe=20)
    with pytest.raises(BudgetError, match="one step costs 2"):
        diffode.solve(field, x, solver=heun, nfe=1)
    with pytest.raises(ArgumentError, match="can't be called as"):
        diffode.solve(field, x, solver=lambda field: field, nfe=4)


class Followed(DirectSolver):
    """Heun's method, which costs a fraction of the implicit one's time."""

    name = "followed_heun"
    order = 2

    def follow(self, field, x, times, generator):
        return Journey(torch.stack([x, heun(field, x, times)]))


def test_the_verdict_takes_solvers_that_write_no_table():
    verdict = check_sampler(Followed())
    assert verdict.check("order").passed
    assert verdict.facts["order"].slope == pytest.approx(2, abs=0.2)
    assert check_sampler(solvers.FunctionSolver(function=heun, claimed=2)).check("order").passed


def test_a_suite_runs_functions_and_other_libraries_fixed_methods(tmp_path):
    (tmp_path / "own.py").write_text(
        "def sampler(field, x, times):\n    for s, t in zip(times, times[1:]):\n"
        "        x = x + (t - s) * field.velocity(x, s)\n    return x\n"
    )
    suite = parse_suite({
        "name": "own",
        "study": [{
            "targets": ["bimodal1d"], "paths": ["edm"], "grids": ["karras"], "seeds": [0], "nfe": [8], "points": 16,
            "solvers": [f"{tmp_path / 'own.py'}:sampler", "euler", "torchdiffeq:rk4"], "metrics": ["endpoint"],
        }],
    })  # fmt: skip
    done = [compute(key, cell) for key, cell in keyed_cells(suite)]
    assert [(one.status, one.nfe_counted) for one in done] == [("ok", 8)] * 3
    assert done[0].measurements[0].value == pytest.approx(done[1].measurements[0].value, rel=1e-9)


def test_a_field_is_looked_at_before_the_trial_runs_of_a_budget():
    runs = []

    def sampler(field, x, times):
        runs.append(len(times))
        return field.denoised(x, times[0])

    broken = diffode.Field.from_denoised(lambda x, t: x.float(), "edm")
    x = broken.path.prior((3, 2), generator=0)
    for grid in (None, "karras", [80.0, 1.0, 0.002]):
        with pytest.raises(FieldError, match=r"returned torch\.float32 for x of torch\.float64"):
            diffode.solve(broken, x, solver=sampler, grid=grid, nfe=4)
    assert runs == []
