"""Exact propagation of Gaussians through a tableau: the law of a sampler's output without sampling.

A Gaussian's field is affine in x and diagonal in the eigenbasis of its covariance, so a tableau acts on each eigen-direction
as a scalar recurrence, for ODE and SDE solvers alike (Pierret and Galerne, arXiv 2405.14250, do this for VP schemes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.fields import Prediction
from diffode.paths import Path
from diffode.statistics import Statistics
from diffode.tableau.rows import Number, Row

#: The slope and the offset, (E,) each, of an affine view at a time.
Affine = Callable[[float], tuple[Tensor, Tensor]]


class Propagated(NamedTuple):
    """Law of a tableau's output on a Gaussian, by eigen-direction: ``mean`` (E,), ``variance`` (E,), ``gain`` (E,).

    ``gain`` is the factor by which a deviation of the start is multiplied.
    """

    mean: Tensor
    variance: Tensor
    gain: Tensor


def propagate(
    rows: Sequence[Row], prediction: Prediction, path: Path, mean: Tensor, variance: Tensor, *, exact: bool,
    statistics: Statistics | None = None,
) -> Propagated:  # fmt: skip
    """The law of the last row, which is a linear function of the start and of each draw in each direction.

    ``mean`` and ``variance`` (E,) are those of the data; ``exact`` says whether the start has the exact law at the first time
    or N(0, sigma^2); ``statistics`` are those that the rows know of the data, whose directions are then these.
    """
    first = float(rows[0].time)
    alpha, sigma = path.alpha(first), path.sigma(first)
    known = None if statistics is None else statistics.mean_along(len(mean))
    centre, spread, gain = carried_back(
        rows, lambda time: affine_view(path, prediction, time, mean, variance), torch.zeros_like(mean), known
    )
    start = alpha**2 * variance + sigma**2 if exact else torch.full_like(mean, sigma**2)
    if exact:
        centre = centre + gain * alpha * mean
    return Propagated(centre, gain.square() * start + spread, gain)


def carried_back(rows: Sequence[Row], view: Affine, nothing: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the last row is made of, (E,) each: a constant, the variance that draws leave, and the factor of the start.

    ``view`` is the slope and the offset of the field's view at a time, ``nothing`` zeros (E,), ``known`` the data's mean where
    rows have coefficients of it. A backward pass over the rows carries the factor with which each row enters the last. The
    variance is then a sum of squares, which loses no digits and is never negative, and noise adds no cost.
    """
    by_state: dict[int, Tensor] = {len(rows) - 1: torch.ones_like(nothing)}
    by_evaluation: dict[int, Tensor] = {}
    by_draw: dict[int, Tensor] = {}
    first_use = {k: i for i, row in reversed(list(enumerate(rows))) for k in row.draws}
    centre = spread = gain = nothing
    for i in range(len(rows) - 1, -1, -1):
        row = rows[i]
        weight = by_state.pop(i, None)
        if i in by_evaluation:
            slope, offset = view(float(row.time))
            evaluated = by_evaluation.pop(i)
            centre = centre + evaluated * offset
            weight = evaluated * slope if weight is None else weight + evaluated * slope
        if i == 0:
            gain = nothing if weight is None else weight
        if weight is not None:
            for earlier, coefficients in ((by_state, row.states), (by_evaluation, row.evaluations), (by_draw, row.draws)):
                for j, factor in coefficients.items():
                    earlier[j] = earlier.get(j, nothing) + _along(factor) * weight
            if known is not None:
                centre = centre + _along(row.mean) * weight * known
        # One row is the first to use a draw, and no earlier row adds to the draw's factor.
        for k in row.draws:
            if first_use[k] == i and k in by_draw:
                spread = spread + by_draw.pop(k).square()
    return centre, spread, gain


def _along(factor: Number) -> Number:
    """A coefficient for each direction, (1, E), as a vector; a number stays a number."""
    return factor[0] if isinstance(factor, Tensor) and factor.ndim == 2 else factor


def affine_view(path: Path, prediction: Prediction, t: float, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(slope, offset) of a view of N(mean, variance) at time t: slope x + offset in each direction."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    total = alpha**2 * variance + sigma**2
    if prediction == "noise":
        slope = sigma / total
    elif prediction == "score":
        slope = -1 / total
    elif prediction == "denoised":
        slope = alpha * variance / total
        return slope, mean * sigma**2 / total
    else:
        d_alpha, d_sigma = path.alpha_derivative(t), path.sigma_derivative(t)
        slope = (alpha * d_alpha * variance + sigma * d_sigma) / total
        return slope, mean * (d_alpha - alpha * slope)
    return slope, -slope * alpha * mean
