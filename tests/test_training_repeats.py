"""Training is reproducible: counts decide what is done, seconds are a limit that is reported, streams are keyed."""

import functools
import itertools

import numpy as np
import pytest
import torch

import diffode
from diffode import Field, paths, randomness
from diffode.errors import ArgumentError, NumericalError
from diffode.learned import (
    Limit,
    condition,
    dmn,
    gits,
    ld3,
    ld3_decoupled,
    limit,
    request,
    search,
    train_amed,
    train_gaussian,
    train_grid,
    train_table,
    tune_universal,
)  # fmt: skip
from diffode.learned.grids import levels
from diffode.learned.tables import published, training
from diffode.randomness import keyed

EDM = paths.get("edm")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    """Trainings that are repeated here are short ones: two candidates, ten steps."""
    monkeypatch.setattr(published, "ATTEMPTS", 2)


def ring():
    return diffode.exact_field("ring8", "edm")


def table(**options):
    return train_table("ring8", 3, points=64, **{"steps": 10, **options})


def numbers_of_a_table(**options):
    found = table(**options)
    return [*found.history.error, *found.history.held_out, *found.errors], found.content.stages.weights


def numbers_of_a_gaussian():
    found = train_gaussian([1.0, 0.2], 3, steps=10)
    return found.history.error, found.content.stages.weights


def numbers_of_a_conditioned():
    found = condition(short(), ring(), points=64, steps=2, units=4)
    return found.history.error, torch.cat([w.flatten() for w in found.solver.table.weights])


def numbers_of_amed():
    found = train_amed(ring(), 2, points=32, batch=8, rounds=4)
    return found.history.error, torch.cat([p.flatten() for p in found.solver.predictor.parameters()])


@functools.cache
def short():
    """A table to condition, once for all."""
    return train_table("ring8", 3, points=64, steps=10, begin_from="ddim @ karras")


TRAININGS = {
    "table": numbers_of_a_table,
    "gaussian": numbers_of_a_gaussian,
    "conditioned": numbers_of_a_conditioned,
    "amed": numbers_of_amed,
    "gits": lambda: ((), gits(ring(), 3, points=16)),
    "dmn": lambda: ((), dmn(EDM, 3)),
    "ld3": lambda: ((), ld3(ring(), 3, points=32)),
    "ld3 decoupled": lambda: ((), ld3_decoupled(ring(), 3, points=32).weights),
    "search": lambda: ((), search(ring(), 2, points=16)),
    "universal": lambda: (tune_universal("ring8", 3, points=8).errors, torch.zeros(1)),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_same_seed_gives_the_same_numbers_on_a_machine_that_is_slower_and_uneven(name, monkeypatch):
    first = TRAININGS[name]()
    ticks = itertools.accumulate(itertools.cycle((1e-3, 7.0, 300.0)))
    monkeypatch.setattr(limit.time, "perf_counter", lambda: next(ticks))
    again = TRAININGS[name]()
    assert tuple(again[0]) == tuple(first[0])
    assert torch.equal(again[1], first[1])


def test_what_a_limit_of_seconds_or_a_request_ends_says_so(monkeypatch):
    """The clock shows one more second whenever it is looked at."""
    ticks = itertools.count()
    monkeypatch.setattr(limit.time, "perf_counter", lambda: float(next(ticks)))
    cut, whole = table(seconds=12.0), table()
    assert cut.stopped_by == cut.content.stopped_by == "seconds"
    assert whole.stopped_by == whole.content.stopped_by == "counts"
    assert cut.history.steps < whole.history.steps
    asked = table(stop=lambda: True)
    assert asked.stopped_by == asked.content.stopped_by == "request"
    assert len(asked.history.held_out) < len(whole.history.held_out)
    field = ring()
    for seconds, said in ((2.5, "seconds"), (1e9, "counts")):
        assert condition(whole, field, points=64, steps=4, units=3, seconds=seconds).stopped_by == said
        assert train_amed(field, 2, points=16, batch=8, rounds=6, seconds=seconds).stopped_by == said
        own = Limit(seconds)
        ld3(field, 3, points=32, seconds=own)
        assert own.stopped_by == said
        own = Limit(seconds)
        search(field, 2, points=16, seconds=own)
        assert own.stopped_by == said
        assert train_grid("ld3", field, 3, points=32, seconds=seconds).stopped_by == said
    assert train_amed(field, 2, points=16, batch=8, rounds=6, stop=lambda: True).stopped_by == "request"


def test_the_last_step_that_is_to_be_taken_is_not_ended_by_the_clock(monkeypatch):
    """A limit that is passed only when all is done has left nothing out."""
    field, now = ring(), [0.0]
    monkeypatch.setattr(limit.time, "perf_counter", lambda: now[0])

    def late(step):
        now[0] = 100.0 if step.number == 3 else 0.0

    assert train_amed(field, 2, points=16, batch=8, rounds=3, seconds=50.0, progress=late).stopped_by == "counts"
    now[0] = 0.0
    assert train_amed(field, 2, points=16, batch=8, rounds=4, seconds=50.0, progress=late).stopped_by == "seconds"


def test_two_candidates_that_lead_to_the_same_error_end_the_training(monkeypatch):
    """The least error and another within 2 % of it; errors within 2 % of each other that are not the least do not count."""
    ends = iter((0.010, 0.012, 0.0121, 0.00985, 0.0098, 0.5))
    original, called = training.fit, []

    def scripted(parameters, problems, held_out, **options):
        found = original(parameters, problems, held_out, **{**options, "steps": 1})
        if options["steps"] <= training._LOOK_STEPS:
            return found
        called.append(next(ends))
        return training.Fit(found.values, (called[-1],), (called[-1],), 0.0)

    monkeypatch.setattr(training, "fit", scripted)
    monkeypatch.setattr(published, "ATTEMPTS", 6)
    table()
    assert called == [0.010, 0.012, 0.0121, 0.00985]


def test_streams_of_starts_share_no_row_whatever_the_seeds(monkeypatch):
    """PyTorch seeds with 32 bits: 7,919 (2^45 + s) + 1 was for s = 0 the seed of the training starts."""
    drawn = {}
    original = request.problem_for

    def noting(field, path, shape, count, generator, *rest, **options):
        found = original(field, path, shape, count, generator, *rest, **options)
        drawn.setdefault(seed, []).append(found.start)
        return found

    monkeypatch.setattr(request, "problem_for", noting)
    for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**40 - 1):
        train_table("gauss1d", 3, points=16, seed=seed, begin_from="ddim", stop=lambda: True)
    streams = [start.flatten() for starts in drawn.values() for start in starts[1:]]
    assert len(streams) == 3 * 6
    rows = torch.cat(streams)
    assert len(rows.unique()) == len(rows)
    for look, train, *_ in drawn.values():
        assert bool(torch.isin(look[:8], train).all()), "a look ahead is on the first of the starts to train on"


def test_keyed_streams_differ_in_every_word_and_bit_of_the_seed():
    keys = [
        (0, "a"), (0, "b"), (1, "a"), (2**32, "a"), (2**64, "a"), (-1, "a"), (0, "a", 0), (0, "a", 1), (0, "a", "0"), (0, 1),
        (0, "1"), (0, "ab"), (0, "a", "b"), (0, "", "a"), (10, "a"), (1, "0", "a"),
    ]  # fmt: skip
    draws = [tuple(torch.randn(4, generator=keyed(*key), dtype=torch.float64).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert torch.equal(torch.randn(4, generator=keyed(3, "x")), torch.randn(4, generator=keyed(3, "x")))


def test_keyed_draws_are_normal_and_uncorrelated_between_streams():
    """Means and correlations of 20,000 draws: five standard errors."""
    draws = torch.stack([torch.randn(20_000, generator=keyed(seed, "law"), dtype=torch.float64) for seed in range(4)])
    assert float(draws.mean(1).abs().max()) < 5 / 20_000**0.5
    assert float((draws.std(1) - 1).abs().max()) < 5 / 40_000**0.5
    assert float((torch.corrcoef(draws) - torch.eye(4)).abs().max()) < 5 / 20_000**0.5


def test_what_keys_no_stream_is_named(monkeypatch):
    for seed in (1.0, True, "0", None):
        with pytest.raises(ArgumentError, match="seed must be an integer"):
            keyed(seed, "a")
    with pytest.raises(ArgumentError, match="needs words"):
        keyed(0)
    monkeypatch.setattr(randomness, "TWISTER_WORDS", slice(16, 16 + 624 * 8))
    with pytest.raises(NumericalError, match="state of random generators"):
        keyed(0, "a")


def test_wrong_limits_are_named():
    for wrong in (0, -1.0, "60", None, True, float("nan")):
        with pytest.raises(ArgumentError, match="seconds must be a positive number"):
            Limit(wrong)
    with pytest.raises(ArgumentError, match="stop must be a function"):
        Limit(1.0, stop=3)
    for answer in (torch.tensor([True, False]), torch.tensor(1.0), np.array([True]), 1, "no"):
        with pytest.raises(ArgumentError, match="stop must return True or False, got "):
            Limit(stop=lambda answer=answer: answer).reached()
    for answer, end in ((None, False), (np.True_, True), (torch.tensor(False), False), (torch.tensor(True), True)):
        assert Limit(stop=lambda answer=answer: answer).reached() is end
    with pytest.raises(ArgumentError, match="both given"):
        table(start="ddim", begin_from="ddim")
    with pytest.raises(ArgumentError, match="begin_from must be"):
        table(begin_from=5)


def test_a_search_asks_no_gradient_of_the_field():
    exact = diffode.exact_field("bimodal1d", "edm")
    blind = Field.from_noise(lambda x, t: torch.from_numpy(exact.noise(x, t).numpy()), EDM, scale=exact.scale)
    assert torch.equal(search(blind, 2, points=16, dim=1), search(exact, 2, points=16))
    assert levels.search is search
