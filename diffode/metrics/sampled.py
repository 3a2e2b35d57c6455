"""Distances between samples. Two draws of the same law differ too, so each comes with that floor and an interval.

Trust them last: at n = 2000 the floor of W2 is 0.48 on ring8 and 4.3 on gmm40, above what separates good samplers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffode.metrics.measurement import Measurement, Outcome

Distance = Callable[[Tensor, Tensor], float]


def _against_draws(name: str, outcome: Outcome, distance: Distance, resamples: int) -> Measurement:
    """The distance to exact draws, that of two sets of exact draws, and a bootstrap interval (95 %)."""
    x, count = outcome.end, len(outcome.end)
    exact, other = outcome.exact_draws(count, 3), outcome.exact_draws(count, 4)
    generator = torch.Generator().manual_seed(outcome.seed)
    values = []
    for _ in range(resamples):
        left, right = (torch.randint(count, (count,), generator=generator) for _ in range(2))
        values.append(distance(x[left], exact[right]))
    value, floor = distance(x, exact), distance(other, exact)
    if not values:
        return Measurement(name, value, floor)
    # A bootstrap of a distance is biased upwards by resampling; its spread is what is wanted, centred on the value.
    spread = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(spread.std())
    return Measurement(name, value, floor, max(0.0, value - half), value + half)


def sliced_w2(outcome: Outcome, projections: int = 128, resamples: int = 20) -> Measurement:
    """Root mean square, over random directions, of the W2 distance of one-dimensional projections."""
    generator = torch.Generator().manual_seed(11)
    directions = torch.randn(outcome.end.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)

    def distance(x: Tensor, y: Tensor) -> float:
        gaps = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
        return float(gaps.square().mean().sqrt())

    return _against_draws("sliced_w2", outcome, distance, resamples)


def energy_distance(outcome: Outcome, resamples: int = 20) -> Measurement:
    """Square root of 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased inside each sample, clipped at 0."""

    def distance(x: Tensor, y: Tensor) -> float:
        n = len(x)
        within = (torch.cdist(x, x).sum() + torch.cdist(y, y).sum()) / (n * (n - 1))
        return float((2 * torch.cdist(x, y).mean() - within).clamp(min=0).sqrt())

    return _against_draws("energy_distance", outcome, distance, resamples)


def mmd(outcome: Outcome, resamples: int = 20) -> Measurement:
    """Maximum mean discrepancy with Gaussian kernels of widths scale * (1/4, 1/2, 1, 2), unbiased, clipped at 0, rooted."""
    scale = outcome.field.scale * outcome.end.shape[1] ** 0.5
    widths = [scale * factor for factor in (0.25, 0.5, 1.0, 2.0)]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = torch.cdist(x, y).square()
        return torch.stack([(-squares / (2 * w * w)).exp() for w in widths]).mean(0)

    def distance(x: Tensor, y: Tensor) -> float:
        n = len(x)
        within = (kernel(x, x).sum() + kernel(y, y).sum() - 2 * n) / (n * (n - 1))
        return float((within - 2 * kernel(x, y).mean()).clamp(min=0).sqrt())

    return _against_draws("mmd", outcome, distance, resamples)
