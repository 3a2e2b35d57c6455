"""Streams of samples: the points of one large run, however they are cut, and nothing held."""

import itertools

import numpy as np
import pytest
import torch

import diffode
from diffode import Field
from diffode.errors import ArgumentError, CapabilityError, NumericalError
from diffode.randomness import RowNoise, keyed_normal

N = 20_001


def joined(*arguments, **options):
    return torch.cat(list(diffode.stream(*arguments, **options)))


@pytest.mark.parametrize("solver", ["dpmpp:order=2", "heun", "dpmpp_2m_sde", "ddpm"])
def test_a_stream_gives_the_points_of_one_run(solver):
    """To the last bit, with noise too, in chunks of any length; the batches that run together have 8,192 rows."""
    field = diffode.exact_field("ring8", "edm")
    start = 80.0 * keyed_normal((N, 2), seed=3, key="stream")
    whole = diffode.solve(field, start, solver=solver, nfe=8, generator=3).x
    for rows in (N, 8192, 1000, 30_000):
        chunks = list(diffode.stream(field, N, solver=solver, nfe=8, seed=3, rows=rows))
        assert [len(chunk) for chunk in chunks] == [min(rows, N - begin) for begin in range(0, N, rows)]
        assert torch.equal(torch.cat(chunks), whole)


def test_chunks_change_no_point_where_a_rows_last_bit_depends_on_its_batch():
    field = diffode.exact_field("digits-gmm10", "vp")
    options = {"solver": "ddpm", "nfe": 3, "dtype": torch.float32}
    known = joined(field, 700, **options)
    assert known.shape == (700, 64)
    assert known.dtype == torch.float32
    for rows in (1, 257, 300):
        assert torch.equal(joined(field, 700, rows=rows, **options), known)


def test_seeds_and_keys_give_other_points():
    field = diffode.exact_field("gauss2d", "edm")
    first = joined(field, 5, solver="ddim", nfe=4)
    assert torch.equal(joined(field, 5, solver="ddim", nfe=4), first)
    assert not torch.equal(joined(field, 5, solver="ddim", nfe=4, seed=1), first)
    assert not torch.equal(joined(field, 5, solver="ddim", nfe=4, key="other"), first)
    assert joined(field, 5, solver="ddim", nfe=4, between=(10.0, 0.002)).abs().max() < first.abs().max() * 100


def test_a_stream_is_made_as_it_is_asked_for():
    """Ten billion points: the first ones come at once, and the field is asked for no others."""
    field = diffode.exact_field("ring8", "edm")
    chunks = diffode.stream(field, 10**10, solver="dpmpp:order=2", nfe=5, rows=100)
    first = list(itertools.islice(chunks, 3))
    assert [len(chunk) for chunk in first] == [100] * 3
    assert field.nfe == 5
    assert list(diffode.stream(field, 0, solver="ddim", nfe=5)) == []


def test_the_law_of_a_stream_is_the_target():
    """Moments of 100,000 points at many evaluations, within six standard errors; the prior's error is far below that."""
    field, n = diffode.exact_field("ring8", "edm"), 100_000
    total, square = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for chunk in diffode.stream(field, n, solver="unipc:order=3", nfe=40, rows=4096):
        total += chunk.sum(0)
        square += chunk.T @ chunk
    scale = field.scale
    assert float((total / n - field.target.mean).abs().max()) < 6 * scale / n**0.5
    assert float((square / n - field.target.covariance).abs().max()) < 6 * scale**2 * 2**0.5 / n**0.5


def test_noise_goes_on_where_it_stopped_even_if_some_was_drawn_twice():
    whole = RowNoise(torch.zeros(10, 3, dtype=torch.float64), 200, 5)
    part = RowNoise(torch.zeros(4, 3, dtype=torch.float64), 200, 5)
    expected = [whole(k) for k in range(200)]
    pieces = []
    for begin, rows in ((0, 4), (4, 1), (5, 5)):
        if begin:
            part.go_on(rows)
        order = [*range(200), 3, 150, 7]
        drawn = {k: part(k) for k in order}
        for k in range(200):
            assert torch.equal(drawn[k], expected[k][begin : begin + rows]), (begin, k)
        pieces.append(drawn[0])
    assert torch.equal(torch.cat(pieces), expected[0])


def test_a_row_that_fails_is_named_by_its_place_in_the_stream():
    path = diffode.paths.get("edm")
    starts = 80.0 * keyed_normal((70_000, 2), seed=0, key="stream")
    odd = starts[45_678]
    # The first step of Euler's rule leaves a start that is sent to infinity at once.
    field = Field.from_denoised(
        lambda x, t: torch.where((x == odd).all(1, keepdim=True), torch.inf, 0.0 * x), path, probe=False
    )
    field.shape = (2,)
    with pytest.raises(NumericalError, match=r"rows 32,768 to 49,151: 1 of 16384 rows"):
        joined(field, 70_000, solver="ddim", nfe=3)
    points = joined(field, 70_000, solver="ddim", nfe=3, on_failure="return")
    assert torch.nonzero(points.isnan().any(1)).flatten().tolist() == [45_678]


def shaped(shape):
    field = Field.from_denoised(lambda x, t: 0 * x, "edm")
    field.shape = shape
    return field


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "n must be a number of points >= 0, got -1"),
        ({"n": 2.0}, "n must be"),
        ({"rows": 0}, "rows must be a number of points >= 1, got 0"),
        ({"dtype": torch.float16}, "dtype must be"),
        ({"nfe": None}, "give grid="),
        ({"key": 3}, "key must be a text"),
        ({"key": "\ud800"}, "key must be a text"),
        ({"grid": [10.0, 1.0], "nfe": None, "between": (10.0, 1.0)}, "between goes with a named grid"),
        ({"field": shaped((2.0,))}, "field.shape must be the sizes"),
        ({"field": shaped(5)}, "field.shape must be the sizes"),
        ({"field": shaped((-1,))}, "field.shape must be the sizes"),
        ({"seed": "a"}, "seed must be an integer >= 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"on_failure": "ignore"}, "on_failure must be"),
        ({"field": "ring8"}, "field must be a diffode field"),
        ({"field": Field.from_denoised(lambda x, t: x, "edm")}, "set field.shape"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(options, message):
    given = {"field": diffode.exact_field("ring8", "edm"), "n": 5, "solver": "ddpm", "nfe": 4, **options}
    with pytest.raises(ArgumentError, match=message):
        diffode.stream(given.pop("field"), given.pop("n"), **given)


def test_solvers_that_choose_their_steps_have_no_stream():
    with pytest.raises(CapabilityError, match="rk_adaptive"):
        diffode.stream(diffode.exact_field("ring8", "edm"), 5, solver="rk_adaptive", nfe=4)


def test_arrays_can_be_written_in_pieces(tmp_path):
    from diffode.array_files import read_array, write_header, write_numbers

    values = np.arange(12.0).reshape(6, 2)
    with (tmp_path / "a.npy").open("wb") as handle:
        write_header(handle, values.shape)
        for begin in (0, 1, 5):
            write_numbers(handle, values[begin : {0: 1, 1: 5, 5: 6}[begin]])
    assert np.array_equal(read_array(tmp_path / "a.npy"), values)
    np.save(tmp_path / "b.npy", values)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
