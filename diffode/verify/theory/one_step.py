r"""What one jump costs: the slope of the exact map between two modes, the error of less steep maps, and noise of training.

Two equal modes at -1 and 1 of standard deviation 1/r lie on the line. The exact map from a standard normal number z to the
data, :math:`\Phi(z)`, has its largest slope at 0,

.. math:: \Phi'(0) = e^{r^2/2}/r,

which no network has for modes that are well apart. Of all maps whose slope is K at most, the one that clips the slope of the
exact one has the least mean error, :math:`2\int_0^{z^*} (\Phi(z) - Kz)\,\varphi(z)\,dz` with :math:`\Phi(z^*) = K z^*`, since a
map that is odd may be taken (pair z with -z). It is of first order in 1/K, about :math:`\varphi(0)/K` for narrow modes: the
mean error of a map is not hopeless where its largest error is.

Sources: derived here; the noise of training is that of MeanFlow (Geng et al., arXiv 2505.13447) and of its improved form
(arXiv 2512.02012).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import simpson
from scipy.special import ndtr, ndtri

from diffode.errors import ArgumentError
from diffode.numerics.quantiles import Law, quantile_map

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Number of nodes of the quadratures.
_NODES = 4001
#: Largest separation whose slope is a number of float64, and the largest whose modes the quadratures resolve.
_MOST, _NARROWEST = 37.0, 1e3
#: Standard scores of the outermost points of a mode.
_TAIL = 9.0


def one_step_slope(separation: float) -> float:
    """The slope at 0 of the exact map from standard normal noise to two modes at -1 and 1 of deviation 1/separation.

    >>> [round(one_step_slope(r), 2) for r in (1, 2, 3, 4)]
    [1.65, 3.69, 30.01, 745.24]
    """
    _check(separation)
    return math.exp(separation**2 / 2) / separation


def lipschitz_price(separation: float, slope: float) -> float:
    """The least mean error, over the scale of the data, of maps whose slope is ``slope`` at most, to the same two modes.

    >>> lipschitz_price(2.0, 5.0)
    0.0
    >>> round(lipschitz_price(4.0, 10.0), 4)
    0.0084
    """
    _check(separation, _NARROWEST)
    if not slope > 0:
        raise ArgumentError(f"slope must be positive, got {slope!r}")
    if separation <= _MOST and slope >= one_step_slope(separation):
        return 0.0
    # In the coordinate of the data y = Phi(z), phi dz = p dy, all is smooth however steep the map is.
    y = np.linspace(0, 1 + _TAIL / separation, _NODES)
    upper = (ndtr((1 - y) * separation) + ndtr((-1 - y) * separation)) / 2
    gap = np.maximum(y + slope * ndtri(np.minimum(upper, 0.5)), 0.0)
    density = _density(_modes(separation, 1.0, 0.0), y)
    return float(2 * simpson(gap * density, x=y) / math.sqrt(1 + separation**-2))


class TargetNoise(NamedTuple):
    """Variances of what a training regresses on, given the state, along rectified flow.

    Attributes:
        mean_flow: of MeanFlow's target, ``E[R^2 Var(v_c|x)]`` with R the slope of the exact map.
        improved: of improved MeanFlow's, ``E[Var(v_c|x)]``.
    """

    mean_flow: float
    improved: float

    @property
    def ratio(self) -> float:
        """MeanFlow's over improved MeanFlow's."""
        return self.mean_flow / self.improved


def target_noise(separation: float, s: float = 0.999, t: float = 0.001) -> TargetNoise:
    r"""The noise in the gradients of MeanFlow and of improved MeanFlow, from time s to t of rectified flow.

    The data are the two modes. MeanFlow's target minus its mean is :math:`R\,(v_c - v)` with
    :math:`R = \partial\Phi/\partial x = p_s(x)/p_t(\Phi(x))`, improved MeanFlow's :math:`v_c - v`. For narrow modes the ratio
    is :math:`\sqrt{\pi/2}\,e^{r^2/2}/r^3`, from the border between them.

    >>> round(target_noise(2.0).ratio, 1), round(target_noise(3.0).ratio, 1)
    (1.7, 5.2)
    """
    _check(separation)
    if not 0 < t <= s < 1:
        raise ArgumentError(f"times must be 0 < t <= s < 1, got s={s!r} and t={t!r}")
    width = 1 / separation
    before, after = _modes(separation, 1 - s, s), _modes(separation, 1 - t, t)
    # In the coordinate of the arriving point y = Phi(x), p_s dx = p_t dy, all is smooth however steep the map is.
    far = (1 - t) + _TAIL * float(after[2][0])
    y = np.linspace(0, far, _NODES // 2 + 1)
    x = quantile_map(after, before, y)[0]
    there, here = _density(after, y), _density(before, x)
    total = ((1 - s) * width) ** 2 + s**2
    share = 1 / (1 + np.exp(-2 * (1 - s) * x / total))
    data_variance = (width * s) ** 2 / total + share * (1 - share) * (2 * s**2 / total) ** 2
    variance = data_variance / s**2
    return TargetNoise(
        float(2 * simpson(here**2 / there * variance, x=y)),
        float(2 * simpson(there * variance, x=y)),
    )


def bootstrapped_factor(variance: float, finest: int, jumps: int = 1) -> float:
    """The factor by which a shortcut model takes standard noise to a Gaussian of a variance in a number of jumps.

    Trained without error by flow matching at its finest step and by its own halves beyond, it is the composition of Euler's
    steps of the finest length, whatever the number of jumps (Frans et al., arXiv 2410.12557).

    Args:
        variance: variance of the data, of mean 0.
        finest: number of steps of the finest length in the path, a power of 2.
        jumps: number of jumps, a power of 2 up to ``finest``.

    >>> round(bootstrapped_factor(0.25, 128), 6), round(bootstrapped_factor(0.25, 128, 8), 6)
    (0.494245, 0.494245)
    """
    if not variance > 0:
        raise ArgumentError(f"variance must be positive, got {variance!r}")
    for name, value in (("finest", finest), ("jumps", jumps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value & (value - 1):
            raise ArgumentError(f"{name} must be a power of 2, got {value!r}")
    if jumps > finest:
        raise ArgumentError(f"jumps must be {finest} at most, the number of the finest steps, got {jumps}")

    def shortcut(place: int, length: int) -> float:
        """The factor of one jump of ``length`` of the finest steps, by halves as it is trained."""
        if length == 1:
            tau = place / finest
            return 1 + (tau * variance - (1 - tau)) / (tau**2 * variance + (1 - tau) ** 2) / finest
        return shortcut(place, length // 2) * shortcut(place + length // 2, length // 2)

    found = 1.0
    for jump in range(jumps):
        found *= shortcut(jump * finest // jumps, finest // jumps)
    return found


def _check(separation: float, most: float = _MOST) -> None:
    if isinstance(separation, bool) or not isinstance(separation, int | float) or not 0 < separation <= most:
        raise ArgumentError(f"separation must be positive and at most {most:g}, got {separation!r:.60}")


def _modes(separation: float, alpha: float, sigma: float) -> Law:
    return np.array([0.5, 0.5]), alpha * np.array([-1.0, 1.0]), np.full(2, math.hypot(alpha / separation, sigma))


def _density(law: Law, x: Array) -> Array:
    weights, means, widths = (part[:, None] for part in law)
    scores = (x - means) / widths
    found: Array = (weights * np.exp(-(scores**2) / 2) / widths / math.sqrt(2 * math.pi)).sum(0)
    return found
