"""Rows of tables: what is plain, what is finite, and how one with noise is summed."""

import math
from dataclasses import replace

import pytest
import torch

from diffode import Field, Tableau
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
