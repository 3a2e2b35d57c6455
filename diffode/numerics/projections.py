"""Distances between sets of points by their projections along directions, on which transport is a matter of sorting."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def directions(dim: int, projections: int) -> Tensor:
    """The unit vectors along which points are projected, (dim, projections), the same in every call."""
    drawn = torch.randn(dim, projections, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    unit: Tensor = drawn / drawn.norm(dim=0)
    return unit


def projected_distance(x: Tensor, y: Tensor, along: Tensor) -> float:
    """Root mean square, over the directions (dim, P), of the W2 distances between projections of as many points (n, dim)."""
    gaps = (x @ along).sort(dim=0).values - (y @ along).sort(dim=0).values
    return float(gaps.square().mean().sqrt())


def projected_mean(x: Tensor, y: Tensor, along: Tensor) -> float:
    """Mean, over the directions (dim, P), of the W1 distances between projections, in lengths of a shift.

    It is W1 itself in one dimension. A shift of all points by v has the mean |v| times that of a coordinate of a unit vector,
    by which the mean is divided.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    >>> round(projected_mean(x, x + torch.tensor([3.0, 4.0]), directions(2, 4000)), 1)
    5.0
    """
    gaps = (x @ along).sort(dim=0).values - (y @ along).sort(dim=0).values
    half = len(along) / 2
    coordinate = math.exp(math.lgamma(half) - math.lgamma(half + 0.5)) / math.sqrt(math.pi)
    return float(gaps.abs().mean()) / coordinate
