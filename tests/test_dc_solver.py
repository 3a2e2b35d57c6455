"""DC-Solver: the authors' runs, what a ratio does to a step, and what the training of ratios finds on other starts."""

import json
import types
from pathlib import Path

import pytest
import torch

import diffode
from diffode import learned, solvers
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.learned import train_compensation
from diffode.learned.request import Request
from diffode.numerics.polynomials import lagrange

RECORDED = json.loads((Path(__file__).parent / "data" / "dc_solver.json").read_text())


@pytest.mark.parametrize("run", RECORDED["runs"], ids=lambda run: run["variant"])
def test_runs_are_those_of_the_authors_code(run):
    field = diffode.exact_field(RECORDED["target"], RECORDED["path"])
    x = torch.tensor(RECORDED["start"], dtype=torch.float64)
    solver = solvers.get("dc", variant=run["variant"], ratios=tuple(run["ratios"]))
    end = diffode.solve(field, x, solver=solver, grid=run["grid"], nfe=len(run["ratios"]) + 2).x
    torch.testing.assert_close(end, torch.tensor(run["end"], dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", ["", "order=4,variant=bh1", "chart=noise_log_snr", "corrector=false"])
def test_without_ratios_and_with_ratios_of_1_it_is_unipc(options):
    rest = f",{options}" if options else ""
    plain = solvers.get(f"unipc:{options or 'order=3'}").tableau("edm", "karras", 6)
    for spec in (f"dc:{options}".rstrip(":"), f"dc:ratios=1+1+1+1{rest}"):
        found = solvers.get(spec).tableau("edm", "karras", 6)
        for own, other in zip(found.rows, plain.rows, strict=True):
            assert own.states == other.states
            assert own.evaluations == pytest.approx(other.evaluations, rel=1e-12)


def test_a_ratio_moves_the_newest_point_along_the_parabola_through_three():
    """The third step with a ratio, from the plain weights of its step: each newest D gives way to its interpolation in t."""
    times, ratio = [9.0, 5.0, 2.0, 0.5], 0.6
    plain = solvers.get("unipc").tableau("edm", times)
    moved = solvers.get("dc", ratios=(ratio,)).tableau("edm", times)
    place = times[2] + (ratio - 1) * (times[2] - times[1])
    nodes = [times[2], times[1], times[0]]
    shares = [float(sum(c * place**k for k, c in enumerate(row))) for row in lagrange(nodes)]
    # The last row is the third step, whose evaluations are those of the rows with these times.
    last, own = plain.rows[-1].evaluations, moved.rows[-1].evaluations
    newest = max(last)
    others = sorted(own, reverse=True)
    assert others[0] == newest
    for row, share in zip(others, shares, strict=True):
        expected = share * float(last[newest]) + (float(last.get(row, 0.0)) if row != newest else 0.0)
        assert float(own[row]) == pytest.approx(expected, rel=1e-10)


def test_ratios_are_written_in_a_spec_and_read_back():
    solver = solvers.get("dc:order=4,ratios=1.02+0.97+1")
    assert solver.ratios == (1.02, 0.97, 1.0)
    assert solvers.get(solver.spec) == solver
    assert solvers.get("dc:ratios=0.5").ratios == (0.5,)


@pytest.fixture(scope="module")
def trained():
    return train_compensation("ring8", 6, seed=3)


def test_trained_ratios_gain_on_starts_that_training_did_not_see(trained):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(1000, generator=41)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    ends = diffode.solve(field, x, **trained.arguments).x, diffode.solve(field, x, solver="unipc", grid="log_snr", nfe=6).x
    own, plain = (float((end - exact).norm(dim=1).mean()) / field.scale for end in ends)
    assert own < plain / 3
    assert own == pytest.approx(trained.errors.after, rel=0.3)
    assert plain == pytest.approx(trained.errors.before, rel=0.3)


def test_no_other_ratio_of_a_step_is_better_on_the_training_trajectories():
    """Of two ratios of five steps the first, then the second given the first, on a fine lattice of ratios of our own."""
    field = diffode.exact_field("bimodal1d", "edm")
    found = train_compensation(field, 4, points=6, seed=1)
    start = field.first_noise((6, 1), generator=Request.of("train_compensation", field, seed=1).stream("training"))
    exact = diffode.flows.flow_states(field, start, found.grid.tolist())

    def loss(first, second, at):
        solver = solvers.get("dc", ratios=(float(first), float(second)))
        states = diffode.solve(field, start, solver=solver, grid=found.grid, keep="all").states
        return float((states[at] - exact[at]).square().sum(1).mean())

    lattice = torch.linspace(0, 2, 81).tolist()
    one, two = found.solver.ratios
    assert loss(one, 1.0, 3) <= min(loss(r, 1.0, 3) for r in lattice) * (1 + 1e-6)
    assert loss(one, two, 4) <= min(loss(one, r, 4) for r in lattice) * (1 + 1e-6)


def test_a_training_is_told_step_by_step_repeats_and_survives_its_file(tmp_path):
    told = []
    found = learned.train("dc:grid=karras,order=4", "bimodal1d", 5, points=4, seed=2, progress=told.append)
    assert [step.number for step in told] == [1, 2, 3]
    assert found.history.error == tuple(step.error for step in told)
    again = learned.train("dc:grid=karras,order=4", "bimodal1d", 5, points=4, seed=2)
    assert again.solver == found.solver
    found.save(tmp_path / "dc.safetensors")
    loaded = learned.load(tmp_path / "dc.safetensors")
    assert loaded.solver == found.solver
    assert loaded.errors == found.errors
    torch.testing.assert_close(loaded.grid, found.grid, rtol=1e-12, atol=0)


def test_a_limit_leaves_further_ratios_at_1():
    found = train_compensation("bimodal1d", 6, points=4, stop=lambda: True)
    assert (found.stopped_by, found.solver.ratios) == ("request", (1.0, 1.0, 1.0, 1.0))
    assert found.errors.after == pytest.approx(found.errors.before, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"order": 2}, "order must be one of 3, 4"), ({"ratios": (1.0, float("nan"))}, "ratios must be finite numbers"),
     ({"ratios": "x"}, "ratios must be finite numbers"), ({"chart": "x"}, "chart must be one of")],
)  # fmt: skip
def test_wrong_options_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        solvers.get("dc", **options)


def test_wrong_requests_are_named():
    with pytest.raises(ArgumentError, match=r"ratios are those of 4 steps.*this run has 6: take 4 steps"):
        solvers.get("dc:ratios=1+0.9").tableau("edm", "karras", 6)
    with pytest.raises(ArgumentError, match="nfe must be at least 3, got 2"):
        train_compensation("bimodal1d", 2)
    with pytest.raises(ArgumentError, match="grid must have 5 steps that end at the path's last level"):
        train_compensation("bimodal1d", 5, grid="karras:to_zero=true")
    with pytest.raises(ArgumentError, match="chart must be data or noise_log_snr"):
        train_compensation("bimodal1d", 5, chart="gaussian")
    with pytest.raises(ArgumentError, match="points must be"):
        train_compensation("bimodal1d", 5, points=0)
    growing = Field.from_denoised(lambda x, t: x * 1e200, path="edm", probe=False)
    with pytest.raises(NumericalError):
        train_compensation(growing, 5, dim=1)


def test_ratios_that_are_worse_than_none_are_not_given(monkeypatch):
    """A search that believes in the largest ratio of all is overruled on starts of its own."""
    found = types.SimpleNamespace(x=2.0, fun=0.0)
    monkeypatch.setattr("scipy.optimize.minimize_scalar", lambda *_, **__: found)
    trained = learned.train("dc", "ring8", 5, points=4)
    assert trained.solver.ratios == (1.0, 1.0, 1.0)
    assert trained.errors.after == trained.errors.before
