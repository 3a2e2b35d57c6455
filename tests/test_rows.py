"""Rows of tables: what is plain, what is finite, and how one with noise is summed."""

import math
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from diffode import Field, Tableau, paths, solvers
from diffode.errors import ArgumentError
from diffode.solvers import run_tableau
from diffode.tableau import Row


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        (Row(1.0), True),
        (Row(0.5, {0: 1.0}, {0: -0.5}, {0: 0.1}), True),
        (Row(torch.tensor([0.5, 0.4]), {0: 1.0}), False),
        (Row(0.5, {0: torch.ones(2)}), False),
        (Row(0.5, {0: 1.0}, {0: torch.ones(2)}), False),
        (Row(0.5, {0: 1.0}, {}, {0: torch.ones(2)}), False),
        (Row(0.5, {0: 1.0}, mean=torch.ones(1, 2)), False),
    ],
)
def test_a_row_is_plain_where_its_time_and_all_its_coefficients_are_floats(row, plain):
    assert row.plain is plain
    assert row.directed is any(isinstance(v, torch.Tensor) and v.ndim == 2 for v in row.numbers)
    changed = replace(row, states={0: torch.ones(2)})
    assert not changed.plain
    assert replace(changed, time=0.25, states={0: 2.0}, evaluations={}, draws={}, mean=0.0).plain


@pytest.mark.parametrize("place", ["time", "states", "evaluations", "draws", "mean"])
def test_one_coefficient_that_is_not_finite_is_refused_and_large_ones_are_not(place):
    """Two coefficients of 1e308 have a sum that is not finite, although each of them is."""
    whole = {"time": 1e308, "states": {0: 1e308}, "evaluations": {0: 1e308}, "draws": {0: 1e308}}
    Tableau("noise", (Row(1.0), Row(**whole)), (0, 1))
    for wrong in (math.inf, -math.inf, math.nan):
        value = wrong if place in ("time", "mean") else {0: wrong}
        with pytest.raises(ArgumentError, match="non-finite coefficient"):
            Tableau("noise", (Row(1.0), Row(**{**whole, place: value})), (0, 1))


def test_a_row_of_numbers_with_noise_is_their_sum():
    """Against the sum written out; the noise belongs to the second row, and is not written to."""
    field = Field.from_noise(lambda x, t: x.sin(), "edm", probe=False)
    rows = (Row(2.0), Row(1.0, {0: 0.5}, {0: -1.5}), Row(0.5, {0: 0.25, 1: 2.0}, {0: 3.0, 1: -0.5}, {0: 0.125, 1: -4.0}))
    x, noise = (torch.randn(*shape, 3, 2, generator=torch.Generator().manual_seed(1)).double() for shape in ((), (2,)))
    kept = noise.clone()
    first = 0.5 * x - 1.5 * x.sin()
    expected = 0.25 * x + 2 * first + 3 * x.sin() - 0.5 * first.sin() + 0.125 * noise[0] - 4 * noise[1]
    table = Tableau("noise", rows, (0, 2), field.path)
    torch.testing.assert_close(table.run(field, x, noise=noise), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(run_tableau(table, field, x, noise=noise).x, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(noise, kept)
    with pytest.raises(ArgumentError, match="pass noise="):
        list(table.walk(field, x))


PLACES = ["time", "states", "evaluations", "draws", "mean"]


def row_with(place, value):
    """A row with a number at a place."""
    whole = {"time": 0.5, "states": {0: 1.0}, "evaluations": {0: -0.5}, "draws": {0: 0.1}, "mean": 0.0}
    return Row(**{**whole, place: value if place in ("time", "mean") else {0: value}})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [3, np.float32(0.75), np.float16(0.25), np.float64(0.1), np.int64(2), Fraction(1, 4)])
def test_every_real_number_is_taken_as_a_float_so_that_all_that_a_table_does_knows_it(place, value):
    row = row_with(place, value)
    assert row.plain
    assert row == row_with(place, float(value))
    assert all(type(number) is float for number in (row.time, *row.numbers))
    if place != "mean":
        table = Tableau("noise", (Row(1.0), row), (0, 1), paths.get("edm"))
        assert [float(matrix[1, 0]) for matrix in table.dense()] == [row.states[0], row.evaluations[0], row.draws[0]]
        assert table.times.tolist() == [1.0, row.time]
        assert '"nfe": 1' in table.written("json")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "value",
    [
        "1",
        None,
        10**400,
        1j,
        True,
        np.bool_(True),
        [1.0],
        np.ones(2),
        torch.zeros(2, 3, 4),
        torch.ones(2) * 1j,
        torch.ones(2) > 0,
    ],
)
def test_what_is_no_number_is_refused_by_its_place_when_the_row_is_made(place, value):
    with pytest.raises(
        ArgumentError, match="the time of a row" if place == "time" else rf"^{place}.* of the row at t=0\.5 must be"
    ):
        row_with(place, value)


def test_a_number_for_each_row_of_a_batch_has_no_place_in_the_mean_nor_one_for_each_direction_in_the_time():
    with pytest.raises(ArgumentError, match=r"mean of the row .* \(1, E\), got one of shape \(3,\)"):
        row_with("mean", torch.ones(3))
    with pytest.raises(ArgumentError, match=r"the time of a row .* \(B,\), got one of shape \(1, 3\)"):
        row_with("time", torch.ones(1, 3))


@pytest.mark.parametrize("kind", ["states", "evaluations", "draws"])
def test_indices_are_integers_and_mappings_are_mappings(kind):
    for index in ("0", 0.0, None, False):
        with pytest.raises(ArgumentError, match=f"^{kind} of the row at t=0.5 must be numbered by integers, got {index!r}"):
            Row(0.5, **{kind: {index: 1.0}})
    assert type(next(iter(getattr(Row(0.5, **{kind: {np.int64(0): 1.0}}), kind)))) is int
    for wrong in ([1.0], None, 3):
        with pytest.raises(ArgumentError, match="must be mappings from indices to numbers"):
            Row(0.5, **{"states": {0: 1.0}, kind: wrong})


def test_a_table_is_made_of_rows_and_its_outputs_are_some_of_them():
    rows = (Row(1.0), Row(0.5, {0: 1.0}))
    assert Tableau("noise", list(rows), [0, 1]) == Tableau("noise", rows, (0, 1))
    for wrong, outputs, said in (
        ((Row(1.0), 2), (0, 1), "must be diffode.tableau.Row, got 2 as row 1"),
        ((), (), "outputs must be indices of the table's 0 rows"),
        (rows, (0, 2), "outputs must be indices of the table's 2 rows"),
        (rows, ("a",), "outputs must be"),
        ((Row(1.0), Row(0.5, {0: 1.0}, {}, {-1: 1.0})), (0, 1), "row 1 uses draw -1"),
    ):
        with pytest.raises(ArgumentError, match=said):
            Tableau("noise", wrong, outputs)


def test_numbers_for_batches_of_two_sizes_are_refused_within_a_row_and_between_rows():
    three, two = torch.full((3,), 0.5), torch.full((2,), 0.5)
    for rows in (
        (Row(0.5, {0: three}, {0: two}),), (Row(two, {0: three}),), (Row(0.7, {0: three}), Row(0.5, {1: two})),
        (Row(0.7, {0: 1.0}, {}, {0: three}), Row(0.5, {1: 1.0}, {}, {1: two})),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"row \d has a number for each of \d rows of a batch, .* same batch"):
            Tableau("noise", (Row(1.0), *rows), (0, len(rows)))
    assert Tableau("noise", (Row(1.0), Row(three, {0: three}, {0: 1.0})), (0, 1)).batch == 3


def test_rows_and_tables_of_the_same_numbers_are_equal_and_have_one_hash_whatever_the_numbers_are_for():
    for number, other in ((0.5, 0.25), (torch.full((3,), 0.5), torch.full((3,), 0.25)), (torch.ones(3), torch.ones(2))):
        rows = [Row(0.5, {0: one}, {0: 1.0}) for one in (number, number + 0.0, other)]
        assert rows[0] == rows[1]
        assert hash(rows[0]) == hash(rows[1])
        assert rows[0] != rows[2]
        assert rows[0].states == rows[1].states
        assert rows[0].states != rows[2].states
        one, same, another = (Tableau("noise", (Row(1.0), row), (0, 1), paths.get("edm")) for row in rows)
        assert len({one, same, another, pickle.loads(pickle.dumps(one))}) == 2  # noqa: S301
        assert one in [another, same]
    assert Row(torch.ones(2), {0: 1.0}) != Row(torch.zeros(2), {0: 1.0})
    assert Row(1.0, {0: 1.0}, {0: 2.0}) != Row(1.0, {0: 2.0}, {0: 1.0})
    assert Row(1.0) != 1.0
    of_batch = solvers.get("heun").tableau("edm", "karras", 3)
    assert hash(of_batch) == hash(solvers.get("heun").tableau("edm", "karras", 3))
