r"""What consistency models converge to, on laws whose fixed points are known: one Gaussian, and two modes on the line.

Levels are noise levels of EDM's path, :math:`x_\rho = x_0 + \rho\varepsilon`, and fall. On :math:`N(m, \lambda)` every map here
is a line, and its slope is compared with the exact one, :math:`A^* = \sqrt{(\lambda + \rho_N^2)/(\lambda + \rho_1^2)}`. With
:math:`\theta = \arctan(\rho/\sqrt\lambda)` one level of consistency training multiplies their ratio by the cosine of its step
of the angle, as an Euler step of the flow does, so that

.. math:: A/A^* = \prod_n \cos(\theta_n - \theta_{n+1}),

which N equal steps of the angle make largest. On other laws training is worse than distillation: its fixed point averages over
the data given the state, a smoothing of variance :math:`(\Delta\rho/\rho)^2\operatorname{Var}(x_0|x_\rho)` a level.

Sources: Song, Dhariwal, Chen, Sutskever, arXiv 2303.01469 (consistency training and distillation, algorithms 1 to 3); the
products of cosines, the smoothing and the law of errors of its sampling are derived here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy.integrate import simpson
from scipy.interpolate import CubicSpline

from diffode.errors import ArgumentError
from diffode.numerics.quantiles import Law, quantile_map

Array = np.ndarray[Any, np.dtype[np.float64]]
#: The fixed points: of training on data, and of distillation of the exact flow's steps by Euler or by Heun.
Steps = Literal["training", "euler", "heun"]
#: Number of nodes of Gauss and Hermite for the data of a mode given the state.
_INNER_NODES = 21
#: Number of nodes on half the line for the map of a level, and of the last one.
_NODES, _LAST_NODES = 1200, 1500
#: Largest standard score of a start that counts.
_REACH = 7.5


def consistency_ratio(variance: float, levels: Sequence[float], steps: Steps = "training") -> float:
    """The slope of a consistency function's fixed point on a Gaussian, over that of the exact one.

    Args:
        variance: lambda, the variance of the data.
        levels: falling noise levels (N,); the map goes from the first to the last.
        steps: ``training`` on data, which is ``euler``, distillation of Euler steps; or ``heun``.

    Raises:
        ArgumentError: for a variance that is not positive, or levels that do not fall to 0 or above.

    >>> levels = [80.0, 5.0, 1.0, 0.002]
    >>> round(consistency_ratio(1.0, levels), 6)
    0.579476
    """
    _check(variance, levels)
    if steps not in ("training", "euler", "heun"):
        raise ArgumentError(f"steps must be training, euler or heun, got {steps!r}")
    if steps != "heun":
        angles = [math.atan2(level, math.sqrt(variance)) for level in levels]
        return math.prod(math.cos(a - b) for a, b in itertools.pairwise(angles))
    slope = 1.0
    for high, low in itertools.pairwise(levels):
        h, rate, next_rate = low - high, high / (variance + high**2), low / (variance + low**2)
        slope *= 1 + h / 2 * (rate + next_rate * (1 + h * rate))
    return slope * math.sqrt((variance + levels[0] ** 2) / (variance + levels[-1] ** 2))


def best_levels(variance: float, first: float, last: float, count: int) -> list[float]:
    """The ``count`` levels from first to last at which :func:`consistency_ratio` is largest: equal steps of the angle.

    >>> [round(level, 3) for level in best_levels(1.0, 80.0, 0.0, 4)]
    [80.0, 1.699, 0.572, 0.0]
    """
    _check(variance, (first, last))
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ArgumentError(f"count must be an integer >= 2, got {count!r}")
    ends = [math.atan2(level, math.sqrt(variance)) for level in (first, last)]
    inner = (ends[0] + (ends[1] - ends[0]) * k / (count - 1) for k in range(1, count - 1))
    return [first, *(math.sqrt(variance) * math.tan(angle) for angle in inner), last]


def _check(variance: float, levels: Sequence[float]) -> None:
    if not variance > 0 or not math.isfinite(variance):
        raise ArgumentError(f"variance must be positive and finite, got {variance!r}")
    if len(levels) < 2 or not all(a > b for a, b in itertools.pairwise(levels)) or not 0 <= levels[-1] < levels[0] < math.inf:
        raise ArgumentError(f"levels must be two or more finite numbers that fall to 0 or above, got {levels!r:.80}")


def two_mode_error(separation: float, levels: Sequence[float], steps: Steps = "training") -> float:
    """Mean end-point error, over the scale of the data, of a consistency function's fixed point on two equal modes.

    The modes are at -1 and 1, of standard deviation 1/separation. Training's fixed point,
    ``f_{n+1}(x) = E[f_n(x_n)|x_{n+1} = x]``, is computed from the last level upwards, by Gauss-Hermite quadrature in each mode
    on cubic splines; distillation of Euler steps is their composition. About a second.

    Args:
        separation: half the distance of the modes over their standard deviation.
        levels: falling noise levels (N,), the last above 0.
        steps: ``training`` or ``euler``.

    >>> levels = [80.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.002]
    >>> two_mode_error(3.0, levels) > 1.5 * two_mode_error(3.0, levels, "euler")
    True
    """
    if not separation > 0 or not math.isfinite(separation):
        raise ArgumentError(f"separation must be positive and finite, got {separation!r}")
    _check(1.0, levels)
    if steps not in ("training", "euler") or levels[-1] == 0:
        raise ArgumentError(f"steps must be training or euler, and the last level above 0, got {steps!r} and {levels[-1]!r}")
    modes = _Modes(1 / separation)
    # Errors lie at the border between the modes: a half of the nodes is near 0.
    size = math.hypot(1, levels[0])
    start = _denser(size / 2, _REACH * size, _LAST_NODES)
    exact = quantile_map(modes.law(levels[0]), modes.law(levels[-1]), start)[0]
    found = modes.composed(start, levels) if steps == "euler" else modes.trained(start, levels)
    total = math.hypot(modes.width, levels[0])
    density = sum(np.exp(-(((start - mean) / total) ** 2) / 2) for mean in (-1, 1)) / 2 / total / math.sqrt(2 * math.pi)
    return float(2 * simpson(np.abs(found - exact) * density, x=start) / math.sqrt(1 + modes.width**2))


class _Modes:
    """Two equal modes at -1 and 1 with noise added; maps are odd, so that they are kept on half the line."""

    def __init__(self, width: float):
        self.width = width
        nodes, weights = np.polynomial.hermite_e.hermegauss(_INNER_NODES)
        self.nodes, self.weights = nodes, weights / weights.sum()

    def law(self, level: float) -> Law:
        return np.array([0.5, 0.5]), np.array([-1.0, 1.0]), np.full(2, math.hypot(self.width, level))

    def given(self, x: Array, level: float) -> tuple[Array, Array, float]:
        """Of the data given x (M,): the weights (2, M) and means (2, M) of the modes, and their standard deviation."""
        total = self.width**2 + level**2
        share = 1 / (1 + np.exp(-2 * x / total))
        means = (level**2 * np.array([[-1.0], [1.0]]) + self.width**2 * x) / total
        return np.stack([1 - share, share]), means, self.width * level / math.sqrt(total)

    def composed(self, x: Array, levels: Sequence[float]) -> Array:
        """Euler steps of the flow from the first level to the last."""
        for high, low in itertools.pairwise(levels):
            weights, means, _ = self.given(x, high)
            x = low / high * x + (1 - low / high) * (weights * means).sum(0)
        return x

    def trained(self, start: Array, levels: Sequence[float]) -> Array:
        """The fixed point of training at starts."""
        upwards = list(levels)[::-1]
        edge, found, mean = math.inf, None, start
        for low, high in itertools.pairwise(upwards):
            x = start if high == levels[0] else self._places(high)
            weights, means, deviation = self.given(x, high)
            ahead = low / high * x[:, None] + (1 - low / high) * (means[..., None] + deviation * self.nodes)
            values = ahead if found is None else found(np.clip(ahead, -edge, edge))
            mean = np.asarray((weights * (values @ self.weights)).sum(0))
            mean[0] = 0.0
            found, edge = CubicSpline(np.r_[-x[:0:-1], x], np.r_[-mean[:0:-1], mean]), float(x[-1])
        return mean

    def _places(self, level: float) -> Array:
        """Nodes from the border at 0 to the far end of a mode."""
        size = math.hypot(self.width, level)
        return _denser(size / 2, 1 + _REACH * size, _NODES)


def _denser(near: float, far: float, count: int) -> Array:
    """Increasing nodes (count,) from 0 to ``far``, a half of which lie below ``near``."""
    inner = np.linspace(0, near, count // 2, endpoint=False)
    return np.concatenate([inner, np.linspace(near, far, count - count // 2)])


def sampling_errors(variance: float, levels: Sequence[float], slopes: Sequence[float], last: float = 0.0) -> list[float]:
    r"""Relative errors of the variance after each evaluation of multistep consistency sampling on a Gaussian.

    With L = lambda + last^2, :math:`\rho_k = L/(\lambda + \tau_k^2)` and a map whose slope at the level :math:`\tau_k` is
    :math:`1 + \delta_k` times the exact one, :math:`e_k = V_k/L - 1` obeys

    .. math:: e_{k+1} = (1 + \delta_{k+1})^2 (1 + \rho_{k+1} e_k) - 1, \qquad e_1 = (1 + \delta_1)^2 - 1.

    Args:
        variance: lambda, the variance of the data.
        levels: the levels (K,) from which the map is evaluated: the first is the start's, to the others noise is added.
        slopes: :math:`1 + \delta_k` at these levels, (K,).
        last: the level at which the map ends.

    >>> exact = sampling_errors(0.7, [80.0, 2.0, 0.5], [1.0, 1.0, 1.0])
    >>> exact
    [0.0, 0.0, 0.0]
    """
    if len(slopes) != len(levels) or not levels:
        raise ArgumentError(f"there must be one slope for each level, got {len(slopes)} and {len(levels)}")
    if any(not level > last for level in levels):
        raise ArgumentError(f"levels must be above the last one, {last:g}, got {levels!r:.80}")
    size = variance + last**2
    errors = [slopes[0] ** 2 - 1]
    for level, slope in zip(levels[1:], slopes[1:], strict=True):
        errors.append(slope**2 * (1 + size / (variance + level**2) * errors[-1]) - 1)
    return errors


def sampling_limit(variance: float, level: float, slope: float, last: float = 0.0) -> float:
    """The error of the variance that repeated evaluations from one level tend to; infinite where they diverge.

    >>> round(sampling_limit(0.7, 5.0, 0.95), 4)
    -0.1
    """
    kept = slope**2 * (variance + last**2) / (variance + level**2)
    return (slope**2 - 1) / (1 - kept) if kept < 1 else math.inf
