r"""Orders of convergence from errors on nested grids: the slope of log error against log step, with its interval.

A level is a number of steps. One rule (:func:`fit_order`) chooses the levels that count, and every estimate reports them:

1. *round-off*: a level whose error is not at least 30 times the floor (rounding, or the error of the exact values) is
   dropped;
2. *pre-asymptotic*: from the finest level kept, coarser ones are added while the slope between neighbours stays within
   0.15 of the finest slope; the first that does not, and all coarser than it, are dropped. Three levels are always kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from diffode.errors import ArgumentError

#: Smallest ratio of a level's error to the floor.
_FLOOR_FACTOR = 30.0
#: Largest difference of a slope between neighbouring levels from the finest such slope.
_SLOPE_DRIFT = 0.15


@dataclass(frozen=True)
class OrderEstimate:
    """A measured order: ``slope`` with its 95 % confidence interval (``low``, ``high``).

    ``steps`` and ``errors`` are those of all levels, ``used`` the numbers of steps in the regression.
    """

    slope: float
    low: float
    high: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    used: tuple[int, ...]


def fit_order(steps: Sequence[int], errors: Sequence[float], floor: float = 0.0) -> OrderEstimate:
    """The slope of log error against log step, by the rule of this module.

    Raises:
        ArgumentError: if fewer than three levels lie above the floor, as for an exact solver or too high a floor.

    >>> fit_order([8, 16, 32, 64], [1 / 8, 1 / 32, 1 / 128, 1 / 512]).slope
    2.0
    """
    check_levels(steps)
    if len(steps) != len(errors) or not all(math.isfinite(e) and e >= 0 for e in errors):
        raise ArgumentError("errors must be finite and >= 0, one for each number of steps")
    clear = [(n, e) for n, e in zip(steps, errors, strict=True) if e > _FLOOR_FACTOR * floor and e > 0]
    if len(clear) < 3:
        raise ArgumentError(
            f"only {len(clear)} of {len(steps)} levels have errors above {_FLOOR_FACTOR:g} times the floor {floor:.1e}; "
            "use fewer steps a level, a harder problem or a tighter tolerance"
        )
    x = [-math.log(n) for n, _ in clear]
    y = [math.log(e) for _, e in clear]
    local = [(y[i] - y[i + 1]) / (x[i] - x[i + 1]) for i in range(len(x) - 1)]
    first = len(clear) - 3
    while first > 0 and abs(local[first - 1] - local[-1]) <= _SLOPE_DRIFT:
        first -= 1
    x, y = x[first:], y[first:]
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - centre_x) ** 2 for a in x)
    slope = sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True)) / spread
    residual = sum((b - centre_y - slope * (a - centre_x)) ** 2 for a, b in zip(x, y, strict=True))
    margin = float(student.ppf(0.975, len(x) - 2)) * math.sqrt(residual / (len(x) - 2) / spread)
    used = tuple(n for n, _ in clear[first:])
    return OrderEstimate(round(slope, 12), slope - margin, slope + margin, tuple(steps), tuple(errors), used)


def check_levels(steps: Sequence[int]) -> None:
    """Raise ArgumentError unless the numbers of steps are three at least, and increase."""
    if len(steps) < 3 or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise ArgumentError(f"steps must be at least three increasing numbers >= 1, got {tuple(steps)}")
