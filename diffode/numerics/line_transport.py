r"""Wasserstein distances on a line, :math:`W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p\,du`, exact to rounding.

The integral is taken in z with :math:`u = \Phi(z)`, in which quantile functions are tame in both tails, by Gauss-Legendre
panels that are halved until they agree. Samples are step functions of z, whose jumps are ends of panels; two samples are a sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffode.errors import ArgumentError, NumericalError
from diffode.numerics.quantiles import Array, Law, quantile_map

#: Normal quantiles beyond which the mass, 1e-36, is left out.
_REACH = 12.5
#: Panels into which the line of z is cut at first.
_PANELS = 24
#: Nodes and weights of a panel.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
#: Halvings of a panel, after which a jump of the quantile function is as narrow as rounding.
_MOST_HALVINGS = 48
#: Largest number of panels that are halved at once, beside those that samples make.
_MOST_PANELS = 200
#: Steps by which the quantile of a distribution function is found.
_BISECTIONS = 200
_NORMAL: Law = (np.ones(1), np.zeros(1), np.ones(1))


@dataclass(frozen=True)
class OnLine:
    """A law on the line: ``quantile`` gives F^-1(Phi(z)) at z (n,), ``jumps`` are values of z at which it jumps."""

    quantile: Callable[[Array], Array]
    jumps: Array


def of_mixture(law: Law) -> OnLine:
    """A mixture of Gaussians from weights, means and standard deviations."""
    return OnLine(lambda z: quantile_map(_NORMAL, law, z)[0], np.zeros(0))


def of_points(points: Array, weights: Array) -> OnLine:
    """Points (n,) with positive weights (n,) that sum to 1."""
    from scipy.special import ndtri

    order = np.argsort(points, kind="stable")
    values, levels = points[order], np.cumsum(weights[order])[:-1]
    ends = ndtri(np.clip(levels, 0.0, 1.0))
    return OnLine(lambda z: values[np.searchsorted(ends, z, side="left")], ends[np.isfinite(ends)])


def of_distribution(cdf: Callable[[Array], Any], survival: Callable[[Array], Any], low: float, high: float) -> OnLine:
    """A law from P(X <= x) and P(X > x), exact where small, with all of its mass from ``low`` to ``high``."""
    from scipy.special import ndtr

    def quantile(z: Array) -> Array:
        begin, end = np.full_like(z, low), np.full_like(z, high)
        lower, upper, below = ndtr(z), ndtr(-z), z < 0
        for _ in range(_BISECTIONS):
            middle = (begin + end) / 2
            # The smaller tail decides, since only it has all its digits.
            short = np.where(below, np.asarray(cdf(middle)) < lower, np.asarray(survival(middle)) > upper)
            begin, end = np.where(short, middle, begin), np.where(short, end, middle)
            if np.all(end - begin <= 2**-52 * np.maximum(np.abs(begin), np.abs(end))):
                break
        return (begin + end) / 2

    return OnLine(quantile, np.zeros(0))


def integral(function: Callable[[Array], Array], jumps: Sequence[Array], tolerance: float = 1e-13) -> float:
    """The mean of a function of z under N(0, 1), with panels that end at the jumps and are halved until they agree."""
    cuts = np.linspace(-_REACH, _REACH, _PANELS + 1)
    most = _MOST_PANELS + sum(len(part) for part in jumps)
    ends = np.unique(np.concatenate([cuts, *(part[np.abs(part) < _REACH] for part in jumps)]))
    panels = np.array(list(itertools.pairwise(ends)))
    coarse, total = _panel_sums(function, panels), 0.0
    whole = float(np.abs(coarse).sum())
    for _ in range(_MOST_HALVINGS):
        middle = panels.mean(1)
        halves = np.stack([np.stack([panels[:, 0], middle], 1), np.stack([middle, panels[:, 1]], 1)], 1).reshape(-1, 2)
        fine = _panel_sums(function, halves)
        pairs = fine.reshape(-1, 2).sum(1)
        whole = max(whole, float(np.abs(pairs).sum()) + abs(total))
        apart = ~(np.abs(pairs - coarse) <= tolerance / 8 * whole)
        total += float(pairs[~apart].sum())
        if not apart.any():
            return total
        if apart.sum() > most:
            # A jump or a bend is in few panels: what differs in so many is the rounding of the quantiles.
            return total + float(pairs[apart].sum())
        kept = np.repeat(apart, 2)
        panels, coarse = halves[kept], fine[kept]
    return total + float(coarse.sum())


def _panel_sums(function: Callable[[Array], Array], panels: Array) -> Array:
    """The integrals of function times the normal density over panels (n, 2)."""
    half = (panels[:, 1] - panels[:, 0])[:, None] / 2
    z = panels.mean(1)[:, None] + half * _NODES
    values = function(z.reshape(-1)).reshape(z.shape)
    if not np.isfinite(values).all():
        raise NumericalError("the quantiles of a law are not finite; has it all of its mass between finite ends?")
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    sums: Array = (half * _WEIGHTS * density * values).sum(1)
    return sums


def line_distance(one: OnLine, two: OnLine, order: int) -> float:
    """W_1 or W_2 between two laws.

    >>> laws = [of_mixture((np.ones(1), np.array([m]), np.array([s]))) for m, s in ((0.0, 1.0), (3.0, 5.0))]
    >>> round(line_distance(*laws, 2), 12)
    5.0
    """
    if order not in (1, 2):
        raise ArgumentError(f"order of a Wasserstein distance must be 1 or 2, got {order!r}")
    power = integral(lambda z: np.abs(one.quantile(z) - two.quantile(z)) ** order, (one.jumps, two.jumps))
    return float(max(power, 0.0) ** (1 / order))


def line_dual(one: OnLine, two: OnLine) -> float:
    """The Kantorovich-Rubinstein value E f(X) - E f(Y) of the 1-Lipschitz f with the slope of F^-1 - G^-1 along the quantiles.

    f is tabulated: its value at the quantiles of both laws is the exact integral of slopes +-1 between them, so that the value
    is a lower bound of W1 up to rounding, and equal to it up to the spacing of the table.
    """
    z = np.linspace(-_REACH, _REACH, 4001)
    first, second = one.quantile(z), two.quantile(z)
    knots = np.unique(np.concatenate([first, second]))
    # Between two knots F - G has one sign up to the table: the sign at the middle.
    middle = (knots[1:] + knots[:-1]) / 2
    place = [np.searchsorted(part, middle, side="right") for part in (first, second)]
    slopes = np.sign(place[1] - place[0]).astype(np.float64)
    heights = np.concatenate([[0.0], np.cumsum(slopes * np.diff(knots))])

    def potential(x: Array) -> Array:
        height: Array = np.interp(x, knots, heights)
        return height

    gain = integral(lambda z: potential(one.quantile(z)) - potential(two.quantile(z)), (one.jumps, two.jumps), 1e-7)
    return float(gain)
