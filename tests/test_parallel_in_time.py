"""Solvers that are parallel in time: sweeps with a closed form, the sequential run that they find, and what a run counts."""

import functools
import math

import pytest
import torch

import diffode
from diffode import solvers
from diffode.cli.solver_told import solver_told
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.solvers.parareal import critical_path
from diffode.verify.sampler.subject import find_sampler

RATE, START = -0.8, 1.7


@functools.cache
def linear():
    """dx/dt = RATE x, whose Euler step over h is 1 + h RATE."""
    return Field.from_velocity(lambda x, t: RATE * x, probe=False)


@functools.cache
def ring():
    field = diffode.exact_field("ring8", "edm")
    return field, field.prior(6, generator=0)


@pytest.mark.parametrize("sweeps", [1, 2, 5, 10])
def test_a_sweep_of_picard_adds_a_power_of_the_step_to_eulers_method(sweeps):
    """Begun at the start, state i after n sweeps is the binomial expansion of (1 + h k)^i up to the n-th power."""
    steps, x = 10, torch.full((1, 1), START, dtype=torch.float64)
    times = [2.0 - 0.2 * i for i in range(steps + 1)]
    run = diffode.solve(linear(), x, solver=f"picard:base=euler,sweeps={sweeps}", grid=times, keep="all")
    for i, state in enumerate(run.states):
        expected = sum(math.comb(i, j) * (-0.2 * RATE) ** j for j in range(sweeps + 1)) * START
        assert float(state) == pytest.approx(expected, rel=1e-13)
    assert (run.latency, int(run.sweeps)) == (sweeps, sweeps)


@pytest.mark.parametrize("sweeps", [0, 1, 2, 4])
def test_parareal_on_a_linear_equation_is_the_truncated_binomial_sum(sweeps):
    """X_i^n = sum_{j <= n} C(i, j) (F - G)^j G^(i - j) X_0 (Gander and Vandewalle, SIAM J. Sci. Comput. 29, 2007)."""
    blocks, inside, h = 5, 3, 0.1
    x = torch.full((1, 1), START, dtype=torch.float64)
    times = [2.0 - h * i for i in range(blocks * inside + 1)]
    fine, coarse = (1 - h * RATE) ** inside, 1 - inside * h * RATE
    if sweeps:
        solver = f"parareal:base=euler,blocks={blocks},sweeps={sweeps}"
        edges = diffode.solve(linear(), x, solver=solver, grid=times, keep="all").states[::inside]
    else:
        edges = diffode.solve(linear(), x, solver="euler", grid=times[::inside], keep="all").states
    for i, state in enumerate(edges):
        terms = [math.comb(i, j) * (fine - coarse) ** j * coarse ** (i - j) for j in range(min(sweeps, i) + 1)]
        assert float(state) == pytest.approx(sum(terms) * START, rel=1e-13)


@pytest.mark.parametrize("options", ["", ",window=7", ",memory=3", ",window=7,memory=3"])
@pytest.mark.parametrize("base", ["ddim", "heun:chart=noise", "dpmpp:order=3", "ipndm", "unipc:order=2"])
def test_picard_without_tolerance_finds_the_sequential_run(base, options):
    field, x = ring()
    for grid in ("karras", "karras:to_zero=true"):
        expected = diffode.solve(field, x, solver=base, grid=grid, steps=13, keep="all")
        run = diffode.solve(field, x, solver=f"picard:base={base!r},tolerance=0{options}", grid=grid, steps=13, keep="all")
        torch.testing.assert_close(run.states, expected.states, rtol=1e-12, atol=1e-12)
        assert int(run.sweeps.max()) <= expected.nfe


@pytest.mark.parametrize("base", ["ddim", "heun:chart=noise", "midpoint:chart=data", "dpm:order=2"])
@pytest.mark.parametrize("blocks", [1, 4, 13])
def test_parareal_without_tolerance_finds_the_sequential_run(base, blocks):
    """Thirteen steps in four blocks are blocks of unequal length."""
    field, x = ring()
    for grid in ("karras", "karras:to_zero=true"):
        expected = diffode.solve(field, x, solver=base, grid=grid, steps=13, keep="all")
        solver = f"parareal:base={base!r},tolerance=0,blocks={blocks}"
        run = diffode.solve(field, x, solver=solver, grid=grid, steps=13, keep="all")
        torch.testing.assert_close(run.states, expected.states, rtol=1e-12, atol=1e-12)
        assert int(run.sweeps.max()) <= blocks


def test_parareal_of_a_multistep_solver_is_the_run_that_begins_anew_in_each_block():
    field, x = ring()
    times = diffode.grids.get("karras", field.path, 12).tolist()
    expected = x
    for first in (0, 4, 8):
        expected = diffode.solve(field, expected, solver="dpmpp:order=2", grid=times[first : first + 5]).x
    found = diffode.solve(field, x, solver="parareal:base='dpmpp:order=2',tolerance=0,blocks=3", grid=times).x
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", [0, 3])
def test_after_n_sweeps_the_first_states_are_those_of_the_sequential_run(memory):
    field, x = ring()
    expected = diffode.solve(field, x, solver="ddim", grid="karras", steps=16, keep="all").states
    for sweeps in (1, 4, 9):
        solver = solvers.get("picard", memory=memory, sweeps=sweeps, tolerance=0)
        found = diffode.solve(field, x, solver=solver, grid="karras", steps=16, keep="all").states
        torch.testing.assert_close(found[: sweeps + 1], expected[: sweeps + 1], rtol=1e-12, atol=1e-12)
        assert float((found[-1] - expected[-1]).abs().max()) > 1e-9
        blocks = solvers.get("parareal", blocks=16, sweeps=sweeps)
        found = diffode.solve(field, x, solver=blocks, grid="karras", steps=16, keep="all").states
        torch.testing.assert_close(found[: sweeps + 1], expected[: sweeps + 1], rtol=1e-12, atol=1e-12)


def test_states_that_enter_a_window_are_guessed_from_the_last_one_made():
    """At rest after the first of 24 steps: two sweeps settle evaluations 0 to 4, and each later one four more."""
    field = Field.from_velocity(lambda x, t: torch.ones_like(x) * (torch.as_tensor(t).reshape(-1, 1) > 1.97), probe=False)
    x = torch.full((1, 1), START, dtype=torch.float64)
    times = [2.0 - 0.05 * i for i in range(25)]
    run = diffode.solve(field, x, solver="picard:base=euler,tolerance=0,window=4", grid=times)
    assert float(run.x) == pytest.approx(START - 0.05, rel=1e-13)
    assert int(run.sweeps) == 2 + math.ceil((24 - 5) / 4)


@pytest.mark.parametrize("base", ["ddpm", "euler_ancestral"])
def test_the_noise_of_a_run_is_that_of_the_sequential_one(base):
    field, x = ring()
    expected = diffode.solve(field, x, solver=base, grid="karras", steps=12, generator=7).x
    found = diffode.solve(field, x, solver=f"picard:base={base},tolerance=0,window=5", grid="karras", steps=12, generator=7).x
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    each = diffode.solve(field, x[2:4], solver=f"picard:base={base},tolerance=0", grid="karras", steps=12, generator=[3, 5]).x
    alone = diffode.solve(field, x[3:4], solver=base, grid="karras", steps=12, generator=[5]).x
    torch.testing.assert_close(each[1:], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["picard", "picard:window=8", "picard:memory=3", "picard:window=8,memory=2", "parareal"])
def test_rows_do_not_depend_on_their_batch_and_stop_near_the_sequential_run(solver):
    field, x = ring()
    expected = diffode.solve(field, x, solver="ddim", grid="karras", steps=30)
    run = diffode.solve(field, x, solver=solver, grid="karras", steps=30)
    assert 1e-12 < float((run.x - expected.x).norm(dim=1).max()) / field.scale < 1e-3
    assert run.latency < expected.nfe < run.nfe
    for row in range(3):
        alone = diffode.solve(field, x[row : row + 1], solver=solver, grid="karras", steps=30)
        torch.testing.assert_close(alone.x, run.x[row : row + 1], rtol=1e-10, atol=1e-11)
        assert int(alone.sweeps) == int(run.sweeps[row])


@pytest.mark.parametrize("solver", ["picard:tolerance=1e-3", "picard:window=6,tolerance=1e-3", "parareal:tolerance=1e-3"])
def test_a_run_counts_the_evaluations_of_a_row_and_the_calls_that_wait(solver):
    field, x = ring()
    calls = []

    def noise(state, t):
        calls.append(len(state))
        return field.noise(state, t)

    watched = Field.from_noise(noise, "edm", probe=False, scale=field.scale)
    one = diffode.solve(watched, x[:1], solver=solver, grid="karras", steps=20)
    assert one.nfe == sum(calls)
    assert one.latency == len(calls) if solver.startswith("picard") else one.latency < len(calls)
    each = [diffode.solve(field, x[i : i + 1], solver=solver, grid="karras", steps=20) for i in range(len(x))]
    together = diffode.solve(field, x, solver=solver, grid="karras", steps=20)
    assert together.nfe == max(run.nfe for run in each)
    assert together.latency == max(run.latency for run in each)


@pytest.mark.parametrize(("steps", "blocks"), [(20, 5), (22, 5), (7, 3), (6, 1)])
def test_parareal_asks_no_point_twice_and_its_cost_is_that_of_its_parts(steps, blocks):
    """A coarse step and the fine run of the next sweep begin at the same point; blocks of unequal length wait for none."""
    field, x = ring()
    asked = []

    def noise(state, t):
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(state))
        asked.extend((time, *row) for time, row in zip(times.tolist(), state.tolist(), strict=True))
        return field.noise(state, t)

    watched = Field.from_noise(noise, "edm", probe=False, scale=field.scale)
    sweeps = min(2, blocks)
    run = diffode.solve(watched, x[:1], solver=f"parareal:blocks={blocks},sweeps={sweeps}", grid="karras", steps=steps)
    edges = [steps * i // blocks for i in range(blocks + 1)]
    expected = (blocks > 1) * blocks + (blocks == 1)
    for made in range(sweeps):
        fine, left = steps - edges[made], blocks - made
        expected += (fine - left) + (left - 1)
    assert run.nfe == len(asked) == expected
    assert len({tuple(round(v, 12) for v in point) for point in asked}) == len(asked)


def test_every_call_of_a_guided_field_counts():
    field, x = ring()
    twice = Field(lambda x, t: field.noise(x, t), "noise", "edm", probe=False, scale=field.scale, calls=2)
    once = diffode.solve(field, x, solver="picard:tolerance=1e-3", grid="karras", steps=15)
    both = diffode.solve(twice, x, solver="picard:tolerance=1e-3", grid="karras", steps=15)
    assert (both.nfe, both.latency) == (2 * once.nfe, 2 * once.latency)


def test_accelerated_states_do_not_depend_on_what_comes_after_them():
    """The weights of a state are those of the residuals up to it, so that another field at later times changes nothing."""
    field, x = ring()
    late = Field.from_noise(
        lambda x, t: field.noise(x, t) * torch.where(t > 1.0, 1.0, 0.3)[:, None], "edm", probe=False, scale=field.scale
    )
    solver = "picard:memory=3,sweeps=5"
    runs = [diffode.solve(one, x, solver=solver, grid="karras", steps=20, keep="all") for one in (field, late)]
    early = runs[0].times > 1.0
    assert 5 < int(early.sum()) < 20
    torch.testing.assert_close(runs[0].states[early], runs[1].states[early], rtol=1e-10, atol=1e-10)
    assert float((runs[0].x - runs[1].x).abs().max()) > 1e-3


def test_acceleration_needs_fewer_sweeps():
    field = diffode.exact_field("digits-gmm10", "edm")
    x = field.prior(4, generator=0)
    plain, faster = (
        diffode.solve(field, x, solver=f"picard:base=heun,memory={memory},tolerance=1e-3", grid="karras", steps=30)
        for memory in (0, 3)
    )
    assert faster.latency < plain.latency
    assert faster.nfe < plain.nfe


def test_the_critical_path_is_the_longest_way_through_what_waits():
    """T of an edge and a sweep by recursion over what it needs, with blocks of unequal cost."""
    fine, coarse = [7, 3, 9, 4, 6], [2, 1, 1, 3, 1]

    @functools.cache
    def there(edge, sweep):
        if edge == 0:
            return 0
        if sweep == 0:
            return there(edge - 1, 0) + coarse[edge - 1]
        if edge < sweep:
            return there(edge, sweep - 1)
        needs = [there(edge - 1, sweep - 1) + fine[edge - 1]]
        return max(needs if edge == sweep else [*needs, there(edge - 1, sweep) + coarse[edge - 1]])

    for sweeps in range(1, 6):
        assert critical_path(fine, coarse, sweeps) == there(5, sweeps)
    assert critical_path(fine, coarse, 5) == sum(fine)


def test_a_field_that_breaks_down_ends_the_run_and_leaves_other_rows():
    field, x = ring()

    def noise(state, t):
        late = torch.as_tensor(t < 2.0).expand(len(state))[:, None]
        return torch.where(late & (state[:, :1] > 1e3), torch.nan, field.noise(state, t))

    broken = Field.from_noise(noise, "edm", probe=False, scale=field.scale)
    x = torch.cat([x[:2], torch.full((1, 2), 1e6, dtype=torch.float64)])
    for solver in ("picard", "picard:memory=2,window=5", "parareal"):
        run = diffode.solve(broken, x, solver=solver, grid="karras", steps=12, on_failure="return")
        assert run.status.tolist() == [0, 0, 1]
        alone = diffode.solve(field, x[:2], solver=solver, grid="karras", steps=12)
        torch.testing.assert_close(run.x[:2], alone.x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "ddimm"}, "base solver 'ddimm'"),
        ({"base": "ddim:order=2"}, "has no option 'order'"),
        ({"base": "ab:chart=gaussian"}, "base must be a solver that needs no statistics"),
        ({"tolerance": -1}, "tolerance must be a number >= 0"),
        ({"sweeps": 0}, "sweeps must be an integer >= 1"),
        ({"window": 2.0}, "window must be an integer >= 1"),
        ({"memory": 99}, "memory must be an integer from 0 to 20"),
        ({"window": 3, "sweeps": 2}, "give sweeps or window, not both"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        solvers.get("picard", **options)
    if "base" not in options:
        return
    with pytest.raises(ArgumentError, match=words):
        solvers.get("parareal", **options)


def test_what_these_solvers_can_not_do_is_said():
    field, x = ring()
    with pytest.raises(ArgumentError, match="base must be a solver without noise, got 'ddpm'"):
        solvers.get("parareal", base="ddpm")
    with pytest.raises(ArgumentError, match="draws noise: pass generator="):
        diffode.solve(field, x, solver="picard:base=ddpm", grid="karras", steps=4)
    with pytest.raises(ArgumentError, match="picard can't be differentiated"):
        diffode.solve(field, x.clone().requires_grad_(), solver="picard", grid="karras", steps=4)
    assert diffode.solve(field, x[:0], solver="parareal", grid="karras", steps=4).x.shape == (0, 2)


@pytest.mark.parametrize("target", ["bimodal1d", "ring8"])
def test_combined_sweeps_run_in_single_precision(target):
    """Their differences are nearly parallel near the end, which no square in float32 tells."""
    field = diffode.exact_field(target, "edm")
    x = field.prior(16, generator=0).float()
    found = diffode.solve(field, x, solver="picard:memory=3,tolerance=1e-4", grid="karras", steps=30).x
    base = diffode.solve(field, x, solver="ddim", grid="karras", steps=30).x
    assert found.dtype == torch.float32
    assert float((found - base).norm(dim=1).mean()) < 0.05 * field.scale


@pytest.mark.parametrize("name", ["picard", "parareal"])
def test_a_jump_goes_where_that_of_the_base_goes(name):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(8, generator=0)
    base = diffode.solve(field, x, solver="ddim:jump=auto", grid="karras", steps=10)
    found = diffode.solve(field, x, solver=f"{name}:jump=auto,tolerance=0", grid="karras", steps=10)
    torch.testing.assert_close(found.times, base.times, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.x, base.x, rtol=0, atol=1e-9)


def test_the_jump_of_a_budget_is_laid_for_the_budget():
    """The steps that it buys are known after the jump alone."""
    field, x = ring()
    landed = {
        key: float(diffode.solve(field, x, solver=solver, grid="karras", **{key: 12}).times[1])
        for key, solver in (("steps", "picard:jump=auto"), ("nfe", "picard:jump=auto"))
    }
    base = diffode.solve(field, x, solver="ddim:jump=auto", grid="karras", nfe=12)
    assert landed["steps"] == pytest.approx(float(base.times[1]), rel=1e-12)
    assert landed["nfe"] == pytest.approx(landed["steps"], rel=1e-12)
    few = diffode.solve(field, x, solver="picard:jump=auto", grid="karras", nfe=12)
    assert len(few.times) - 2 < 12


@pytest.mark.parametrize("name", ["picard", "parareal", "implicit_rk"])
def test_what_a_step_costs_is_told_as_a_run_spends_it(name):
    told = solver_told(name, "edm", "karras", 3)["NFE a step"]
    assert "in every sweep over the" in told or "in each iteration" in told
    assert solver_told("heun", "edm", "karras", 3)["NFE a step"] == "2"


@pytest.mark.parametrize("name", ["picard", "parareal"])
def test_no_number_of_evaluations_is_promised_for_a_number_of_steps(name):
    assert find_sampler(name).iterates
    assert not find_sampler("ddim").iterates
