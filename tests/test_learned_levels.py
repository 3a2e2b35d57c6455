"""Grids optimised for a field."""

import itertools
import re
import time

import numpy as np
import pytest
import torch

import diffode
from diffode import grids, learned, paths, solvers
from diffode.errors import ArgumentError
from diffode.learned import train_gaussian, train_table
from diffode.learned.fitting.parameters import Decoupled, Table
from diffode.learned.grids import levels, simplex
from diffode.learned.grids.grid_training import train_grid
from diffode.solvers.trained.checkpoints import load_checkpoint
from diffode.tableau.stages import Stages

EDM = paths.get("edm")


def error_on(field, table, seed=9):
    x = EDM.prior((300, field.dim), generator=seed)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-7).x
    return float((table.run(field, x) - exact).norm(dim=1).mean())


def test_the_dynamic_programme_is_the_best_of_all_paths():
    for seed, steps in itertools.product(range(6), (1, 2, 3, 5, 8)):
        cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        cost = torch.where(torch.arange(9)[:, None] < torch.arange(9), cost, torch.inf)
        found = levels.cheapest(cost, steps, 1.5)

        def total(path, cost=cost):
            return sum(1.5**k * float(cost[i, j]) for k, (i, j) in enumerate(itertools.pairwise(path)))

        best = min(((0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)), key=total)
        assert tuple(found) == best
    with pytest.raises(ArgumentError, match="at most 8"):
        levels.cheapest(cost, 9, 1.15)


def test_gits_chooses_among_the_teachers_points_and_beats_even_spacing():
    field = diffode.exact_field("ring8", "edm")
    grid = levels.gits(field, 5)
    fine = diffode.grids.get("karras:rho=7", EDM, 60)
    assert len(grid) == 6
    assert all(bool((fine == t).any()) for t in grid)
    own, even = (solvers.get("ddim").tableau(EDM, g) for g in (grid, diffode.grids.get("log_snr", EDM, 5)))
    assert error_on(field, own) < error_on(field, even)


def test_weights_of_denoised_points_reproduce_the_run():
    field = diffode.exact_field("ring8", "edm")
    table = solvers.get("dpmpp:order=3").tableau(EDM, "karras", 5)
    x = field.prior(3, generator=0)
    stages, asked = Stages.of(table), []
    for row, state in [(0, x), *table.walk(field, x)]:
        if row in table.evaluated:
            asked.append(field.denoised(state, table.rows[row].time))
    end = table.run(field, x)
    found = torch.einsum("j,jbd->bd", levels.denoised_weights(stages), torch.stack(asked))
    rest = (end - found) / x
    torch.testing.assert_close(rest, rest[:1, :1].expand_as(rest), rtol=1e-8, atol=1e-10)


def test_dmn_lowers_its_bound_and_no_small_change_lowers_it_further():
    grid = levels.dmn(EDM, 5)

    def bound(times):
        stages = Stages.of(solvers.get("ab:order=3,chart=data").tableau(EDM, times))
        rho = stages.levels[:-1]
        return float((levels.denoised_weights(stages).abs() * rho / (1 + rho**2).sqrt()).sum())

    assert bound(grid) < bound(diffode.grids.get("log_snr", EDM, 5)) * 0.95
    for k in range(1, 5):
        for factor in (0.98, 1.02):
            moved = grid.clone()
            moved[k] *= factor
            assert bound(moved) > bound(grid) * (1 - 1e-6)


def test_trained_grids_improve_and_decoupled_levels_improve_again():
    field = diffode.exact_field("ring8", "edm")
    plain = solvers.get("dpmpp:order=2").tableau(EDM, "log_snr", 6)
    trained = solvers.get("dpmpp:order=2").tableau(EDM, levels.ld3(field, 6))
    decoupled = levels.ld3_decoupled(field, 6).tableau(EDM)
    errors = [error_on(field, table) for table in (plain, trained, decoupled)]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] * 0.9


@pytest.mark.parametrize("target", ["bimodal1d", "ring8"])
def test_direct_search_is_no_worse_than_training_which_finds_the_nearest_minimum(target):
    field = diffode.exact_field(target, "edm")
    found = levels.search(field, 3, solver="ddim", points=300)
    trained = levels.ld3(field, 3, solver="ddim", points=300)
    errors = [error_on(field, solvers.get("ddim").tableau(EDM, g)) for g in (found, trained)]
    plain = error_on(field, solvers.get("ddim").tableau(EDM, "log_snr", 3))
    assert errors[0] < 1.03 * errors[1]
    assert errors[1] < 0.9 * plain


def test_wrong_arguments_are_named():
    field = diffode.exact_field("bimodal1d", "edm")
    with pytest.raises(ArgumentError, match="one evaluation a step"):
        levels.ld3(field, 3, solver="edm_heun")
    with pytest.raises(ArgumentError, match="nothing to train"):
        levels.ld3(field, 1)
    with pytest.raises(ArgumentError, match="from 1 to 60"):
        levels.gits(field, 61)
    own = diffode.Field.from_noise(lambda x, t: x, EDM)
    with pytest.raises(ArgumentError, match="dim is needed"):
        levels.search(own, 3)
    for call, match in (
        (lambda: levels.gits(field, 3, points=0), "points must be"),
        (lambda: levels.gits(field, 3, teacher=2.5), "teacher must be"),
        (lambda: levels.dmn("nowhere", 3), "unknown path"),
        (lambda: levels.dmn(EDM, 0), "steps must be"),
        (lambda: levels.search(field, 3, seed=-2), "seed must be"),
        (lambda: levels.ld3(field, 3, points=True), "points must be"),
    ):
        with pytest.raises(ArgumentError, match=match):
            call()


def test_gits_follows_images_as_rows():
    exact = diffode.exact_field("ring8", "edm")
    images = diffode.Field.from_noise(lambda x, t: exact.noise(x.flatten(1), t).reshape(x.shape), EDM, scale=exact.scale)
    torch.testing.assert_close(levels.gits(images, 4, dim=(1, 2)), levels.gits(exact, 4), rtol=1e-12, atol=0)


def test_a_search_that_meets_vanishing_steps_goes_on(monkeypatch):
    """A simplex may reach so far that two times are equal, which no solver takes: that counts as a bad grid."""

    def far(function, start):
        assert function(np.array([60.0, 0.0, -60.0])) == 1e300
        return start

    monkeypatch.setattr(simplex, "simplex", far)
    assert len(levels.search(diffode.exact_field("bimodal1d", "edm"), 4, points=16)) == 5


def test_dmn_leaves_no_step_out():
    """On EDM with DPM-Solver++ 2M the bound alone is smallest with two equal times."""
    steps = levels.dmn(EDM, 6, solver="dpmpp:order=2").log().diff().neg()
    assert float(steps.min()) > 0.04 * float(steps.sum()) / 6


def test_a_search_ends_with_its_seconds_and_what_it_has_seen():
    """However short, it is no worse than the named grids that it compares first, of which the last is the best here."""
    field = diffode.exact_field("ring8", "edm")
    began = time.perf_counter()
    short = levels.search(field, 7, points=32, seconds=0.01)
    assert time.perf_counter() - began < 20, "without a limit it takes minutes"
    torch.testing.assert_close(short, diffode.grids.get("shift:s=1", field.path, 7))
    longer = levels.search(field, 7, points=32, seconds=1.0)
    x = field.prior(256, generator=5)
    exact = diffode.reference(field, x, 80.0, 0.002).x
    errors = [
        float((diffode.solve(field, x, solver="dpmpp:order=2", grid=g.tolist()).x - exact).norm(dim=1).mean())
        for g in (diffode.grids.get("log_snr", field.path, 7), longer)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("start", ["ddim @ log_snr", "ddim @ karras", "dpmpp:order=2 @ karras"])
@pytest.mark.parametrize("nfe", [3, 4])
def test_levels_stay_between_those_of_start_and_end(start, nfe, tmp_path):
    """On a Gaussian the field is linear where noise is great and where it is small: nothing else holds a level back."""
    gaussian = diffode.GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 4.0]])
    runs = train_gaussian([1.0, 4.0], nfe, begin_from=start), train_table(gaussian, nfe, points=32, begin_from=start)
    for trained in runs:
        assert min(trained.history.held_out) < 1e-12
        trained.save(tmp_path / "t.safetensors")
        kept = load_checkpoint(tmp_path / "t.safetensors").stages.levels
        # The logarithm of a bound is rounded.
        assert float(kept.max()) <= float(kept[0]) * (1 + 1e-14)
        assert float(kept.min()) >= float(kept[-1]) * (1 - 1e-14)


def test_parameters_are_confined_to_levels_between_those_of_start_and_end():
    path = paths.get("edm:sigma_max=5,sigma_min=0.1")
    grid = torch.tensor([5.0, 2.0, 1.0, 0.1], dtype=torch.float64)

    def write(levels):
        return Stages.of(solvers.get("ddim").tableau(path, levels.tolist()))

    table = Table(write(grid))
    for parameters, shift in ((table, table.start), (Decoupled(grid, write), Decoupled(grid, write).start)):
        inside = parameters.confined(shift, 5.0, 0.1)
        torch.testing.assert_close(inside, shift, rtol=1e-14, atol=1e-14)
        for far, wall in ((60.0, 5.0), (-60.0, 0.1)):
            moved = shift.clone()
            moved[-1] += far
            asked = parameters.stages(parameters.confined(moved, 5.0, 0.1), 5.0, 0.1).levels
            torch.testing.assert_close(asked, torch.tensor([5.0, 2.0, wall, 0.1], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: levels.search(diffode.exact_field("ring8", "edm"), 4, seconds=0),
            "seconds must be a positive number",
            id="no seconds",
        ),
        pytest.param(
            lambda: levels.gits(4, 4),
            "such as diffode.exact_field('ring8', 'edm'), a target or its name, got int",
            id="a number in place of a field",
        ),
        pytest.param(lambda: levels.ld3(None, 4), "field must be a diffode field", id="nothing to lay levels for"),
    ],
)
def test_levels_are_laid_for_fields_and_in_some_time(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


@pytest.mark.parametrize("method", ["gits", "dmn", "ld3", "search"])
def test_the_better_of_the_trained_grid_and_of_a_named_one_is_given(monkeypatch, method):
    """A method whose grid crowds at one end, where the named grid does not, gives the named one, with its error."""
    edm = paths.get("edm")
    crowded = grids.explicit([80.0, 79.0, 78.0, 77.0, 0.002], edm)
    monkeypatch.setattr(f"diffode.learned.grids.levels.{method}", lambda *_, **__: crowded)
    found = train_grid(method, "gauss2d", 4)
    name = found.facts.begun_from.rpartition(" @ ")[2]
    torch.testing.assert_close(found.grid, grids.get(name, edm, 4), rtol=0, atol=0)
    assert found.errors.after == found.errors.before
    # The one that is not given is the worse one.
    other = {"karras": "log_snr", "log_snr": "karras"}[name]
    if method != "ld3":
        monkeypatch.setattr("diffode.learned.grids.grid_training._NAMED", (other,))
        assert train_grid(method, "gauss2d", 4).errors.after > found.errors.after


@pytest.mark.parametrize("method", ["gits", "ld3_decoupled", "dc"])
def test_seconds_count_the_exact_ends_of_the_test(method):
    exact = diffode.exact_field("gauss2d", "edm")

    def slow(x, t):
        time.sleep(1e-3)
        return exact.noise(x, t)

    # A function's flow is integrated, in some hundreds of calls for each set of starts.
    field = diffode.Field.from_noise(slow, "edm", scale=exact.scale)
    options = {"gits": {"points": 8}, "ld3_decoupled": {"points": 8, "steps": 1}, "dc": {"points": 8}}[method]
    began = time.perf_counter()
    found = learned.train(method, field, 4, dim=2, **options)
    taken = time.perf_counter() - began
    assert found.seconds > 0.9 * taken
