"""Exact propagation of Gaussians through a tableau: the law of a sampler's output without sampling.

A Gaussian's field is affine in x and diagonal in the eigenbasis of its covariance, so a tableau acts on each eigen-direction
as a scalar recurrence, for ODE and SDE solvers alike (Pierret and Galerne, arXiv 2405.14250, do this for VP schemes).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffode.fields import Prediction
from diffode.paths import Path
from diffode.tableau import Tableau


class Propagated(NamedTuple):
    """Law of a tableau's output on a Gaussian, by eigen-direction: ``mean`` (E,), ``variance`` (E,), ``gain`` (E,).

    ``gain`` is the factor by which a deviation of the start is multiplied.
    """

    mean: Tensor
    variance: Tensor
    gain: Tensor


def propagate(table: Tableau, path: Path, mean: Tensor, variance: Tensor, *, exact: bool) -> Propagated:
    """Means, gains and the joint covariance of the live states and draws, direction by direction."""
    alpha, sigma = path.alpha(table.rows[0].time), path.sigma(table.rows[0].time)
    means: dict[int, Tensor] = {0: alpha * mean if exact else torch.zeros_like(mean)}
    gains: dict[int, Tensor] = {0: torch.ones_like(mean)}
    # Keys of the covariance are pairs of rows; draw k of the noise is the pseudo-row -1 - k, of unit variance.
    first = alpha**2 * variance + sigma**2 if exact else torch.full_like(mean, sigma**2)
    covariance: dict[tuple[int, int], Tensor] = {(0, 0): first}
    live = [0]
    last = table.outputs[-1]
    last_use = {j: i for i, row in enumerate(table.rows) for j in (*row.states, *row.evaluations, *(-1 - k for k in row.draws))}
    for step in table.program:
        row = table.rows[step.row]
        weights: dict[int, Tensor] = {j: torch.full_like(mean, a) for j, a in row.states.items()}
        constant = torch.zeros_like(mean)
        for j, b in row.evaluations.items():
            slope, offset = affine_view(path, table.prediction, table.rows[j].time, mean, variance)
            weights[j] = weights.get(j, torch.zeros_like(mean)) + b * slope
            constant = constant + b * offset
        for k, c in row.draws.items():
            weights[-1 - k] = torch.full_like(mean, c)
            if -1 - k not in live:
                live.append(-1 - k)
                covariance[-1 - k, -1 - k] = torch.ones_like(mean)
        i = step.row
        own = torch.zeros_like(mean)
        for other in live:
            cross = sum(
                (w * covariance[_pair(j, other)] for j, w in weights.items() if _pair(j, other) in covariance),
                own,
            )
            covariance[_pair(i, other)] = cross
        covariance[i, i] = sum((w * covariance[_pair(i, j)] for j, w in weights.items()), own)
        means[i] = sum((w * means[j] for j, w in weights.items() if j >= 0), constant)
        gains[i] = sum((w * gains[j] for j, w in weights.items() if j >= 0), own)
        live.append(i)
        finished = {j for j in live if last_use.get(j, i) <= i and j != last}
        if finished:
            live = [j for j in live if j not in finished]
            covariance = {key: value for key, value in covariance.items() if finished.isdisjoint(key)}
    return Propagated(means[last], covariance[last, last], gains[last])


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


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i >= j else (j, i)
