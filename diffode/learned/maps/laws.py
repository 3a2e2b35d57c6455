"""Laws of the angles from which and to which a training asks a map to go."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode import grids
from diffode.learned.maps.sources import Sources

#: Mean and standard deviation of log tan(theta) in MeanFlow (arXiv 2505.13447): logit-normal times of rectified flow.
_LOGIT_NORMAL = (-0.4, 1.0)
#: The same of EDM, iCT and ECT, lognormal noise levels with mean -1.1 and deviation 2.0, for data of scale 1/2.
_LOGNORMAL = (-1.1 + math.log(2), 2.0)
#: The same of sCM (arXiv 2410.11081): -1.0 and 1.4 for data of scale 1/2.
_SCM = (-1.0 + math.log(2), 1.4)
#: The same of EDM and of SiD's fake score (arXiv 2404.04057): -1.2 and 1.2 for data of scale 1/2.
_EDM = (-1.2 + math.log(2), 1.2)
#: Exponent of Karras et al. (arXiv 2206.00364), in which noise levels are equally spaced.
_RHO = 7.0
#: The numbers of pieces of the path by which shortcut models step: 1, 2, ..., 128.
_DYADIC = 8


def one(sources: Sources, n: int, law: str) -> Tensor:
    """Angles (n,) of a law, between the ends of the training."""
    first, last = sources.angles
    if law == "uniform":
        spread: Tensor = last + (first - last) * sources.uniform(n)
        return spread
    mean, deviation = _NORMAL[law]
    # The normal law is cut at the ends, by the quantile of a uniform number between those of the ends.
    low, high = (_share((math.log(math.tan(angle)) - mean) / deviation) for angle in (last, min(first, math.pi / 2 - 1e-7)))
    inside = (low + (high - low) * sources.uniform(n).to(torch.float64)).clamp(1e-12, 1 - 1e-12)
    level = torch.special.ndtri(inside) * deviation + mean
    found: Tensor = level.exp().atan().clamp(last, first).to(sources.dtype)
    return found


def karras(sources: Sources, n: int, reach: float) -> Tensor:
    """Angles (n,) whose noise levels are uniform in Karras' variable, in the lower share ``reach`` of it, as in SiD."""
    high, low = (math.tan(angle) ** (1 / _RHO) for angle in sources.angles)
    found: Tensor = (
        ((low + reach * (high - low) * sources.uniform(n)) ** _RHO).atan().clamp(sources.angles[1], sources.angles[0])
    )
    return found


def two(sources: Sources, n: int, law: str, *, same: float = 0.0, ends: float = 0.0) -> tuple[Tensor, Tensor]:
    """Angles a >= b, (n,) each.

    Args:
        sources: ends of the angles, and the stream of numbers.
        n: how many.
        law: law of both, of which the larger is a.
        same: share with b = a.
        ends: share that begins at the first angle, and, apart from it, share that ends at the last.
    """
    first, last = sources.angles
    u, v = one(sources, n, law), one(sources, n, law)
    a, b = torch.maximum(u, v), torch.minimum(u, v)
    a = torch.where(sources.uniform(n) < ends, first, a)
    b = torch.where(sources.uniform(n) < ends, last, b)
    return a, torch.where(sources.uniform(n) < same, a, b)


def levels(sources: Sources, count: int, grid: str) -> Tensor:
    """Angles (count + 1,) of a grid, falling: ``angle`` for equal steps, or any grid of the package on the path."""
    first, last = sources.angles
    if grid == "angle":
        return torch.linspace(first, last, count + 1, dtype=torch.float64).to(sources.device, sources.dtype)
    times = grids.get(grid, sources.path, count)
    found = sources.clock.angle(sources.path, times)
    return torch.as_tensor(found, dtype=torch.float64).to(sources.device, sources.dtype)


def dyadic(sources: Sources, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles a > r > b (n,) of shortcut models: b - a is the path over 1, 2, 4, ..., 64, a a multiple of it, r the middle."""
    first, last = sources.angles
    pieces = 2.0 ** torch.floor(sources.uniform(n) * (_DYADIC - 1))
    step = (first - last) / pieces
    a = first - torch.floor(sources.uniform(n) * pieces) * step
    return a, a - step / 2, (a - step).clamp(min=last)


def _share(z: float) -> float:
    """The normal distribution function."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


_NORMAL = {"logit_normal": _LOGIT_NORMAL, "lognormal": _LOGNORMAL, "scm": _SCM, "edm": _EDM}
#: The laws by name.
LAWS = ("uniform", *_NORMAL)
