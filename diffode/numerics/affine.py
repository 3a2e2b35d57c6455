"""Whether a map of points is affine, by probes: its matrix, and how far it bends from that."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

#: Largest deviation of an affine map from A x + b, relative to its largest value, with the rounding of single precision.
BEND = 2e-6
#: Radii of the probes, in the size of the region over the root of the dimension.
_RADII = (0.3, 1.0, 2.0, 3.5, 5.0)
#: Number of probes at each radius.
_DIRECTIONS = 4


def probe_points(centre: Tensor, size: float) -> Tensor:
    """Points at which a map (dim,) -> (dim,) is looked at: the centre, a step along every axis, and some up to 5 sizes out.

    Args:
        centre: centre of the region, (dim,) float64.
        size: length of a step, such as a standard deviation.

    Returns:
        Points (1 + dim + 20, dim), the same for the same arguments.
    """
    return centre + size * _unit_probes(len(centre))


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _unit_probes(dim: int) -> Tensor:
    """The probes around 0 of size 1, which is thousands of times the same in a run over noise levels."""
    draws = torch.randn(_DIRECTIONS * len(_RADII), dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radii = torch.tensor(_RADII, dtype=torch.float64).repeat(_DIRECTIONS)[:, None]
    probes = draws / draws.norm(dim=1, keepdim=True) * radii * math.sqrt(dim)
    unit = torch.eye(dim, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), unit, probes])


def affine_map(values: Tensor, points: Tensor, size: float, rounding: float = 0.0) -> tuple[Tensor, Tensor, float] | None:
    """A (dim, dim), the value at the centre (dim,), and the largest deviation from the affine map, from values at the probes.

    Args:
        values: values (1 + dim + 20, dim) at ``points``.
        points: what :func:`probe_points` gave.
        size: its length of a step.
        rounding: size of the rounding of the values, if it is more than that of single precision relative to the largest.

    Returns:
        None if the values are not finite, or bend further than rounding explains.

    >>> points = probe_points(torch.zeros(2, dtype=torch.float64), 1.0)
    >>> affine_map(3 * points + 1, points, 1.0)[0].diagonal().tolist()
    [3.0, 3.0]
    >>> affine_map(points**2, points, 1.0) is None
    True
    """
    dim = points.shape[1]
    if values.shape != points.shape or not bool(torch.isfinite(values).all()):
        return None
    slope = ((values[1 : dim + 1] - values[:1]) / size).T
    bend = float((values[dim + 1 :] - values[0] - (points[dim + 1 :] - points[0]) @ slope.T).abs().max())
    return (slope, values[0], bend) if bend <= BEND * float(values.abs().max()) + rounding else None
