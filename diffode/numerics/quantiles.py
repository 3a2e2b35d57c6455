"""The quantile map F_to^-1(F_from(x)) between one-dimensional Gaussian mixtures, exact far into both tails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Weights, means and standard deviations of a one-dimensional mixture.
Law = tuple[Array, Array, Array]


def quantile_map(law_from: Law, law_to: Law, x: Array) -> tuple[Array, Array]:
    """F_to^-1(F_from(x)) for two 1-D mixtures (weights, means, standard deviations), and an error estimate.

    The equation is solved by Newton steps kept inside a bracket, for the logarithm of the smaller tail, which keeps it exact
    far out.
    """
    lower, upper = log_tails(law_from, x)
    side = np.where(lower < upper, 1.0, -1.0)
    wanted = np.minimum(lower, upper)
    _, means, widths = law_to
    reach = 40.0
    low = np.full_like(x, (means - reach * widths).min())
    high = np.full_like(x, (means + reach * widths).max())
    # The bracket is widened until it holds the quantile, which is far out for a point far out in a tail.
    for _ in range(200):
        below, above = (side * (_log_tail(law_to, edge, side) - wanted) for edge in (low, high))
        if np.all(below <= 0) and np.all(above >= 0):
            break
        width = high - low
        low, high = np.where(below > 0, low - width, low), np.where(above < 0, high + width, high)
    y = np.clip(x, low, high)
    within = widths.min()
    # The points that still move: each stops by itself, so that it does not depend on those beside it.
    rows = np.arange(len(x))
    for _ in range(200):
        law, at, on = _of_rows(law_to, rows), y[rows], side[rows]
        gap, slack = _gap(law, at, wanted[rows], on)
        low[rows], high[rows] = np.where(gap < 0, at, low[rows]), np.where(gap > 0, at, high[rows])
        # Far from the mass the density underflows and the step is infinite; the bracket is then halved.
        with np.errstate(over="ignore", invalid="ignore"):
            newton = at - gap * slack
            # A step within rounding ends the search, though it may leave the bracket, whose one end is the point itself.
            settled = np.abs(newton - at) <= 4e-16 * np.maximum(np.abs(at), within)
        inside = (newton > low[rows]) & (newton < high[rows]) & np.isfinite(newton)
        following = np.where(settled | inside, newton, (low[rows] + high[rows]) / 2)
        settled |= np.abs(following - at) <= 4e-16 * np.maximum(np.abs(following), within)
        y[rows] = following
        rows = rows[~settled]
        if not len(rows):
            break
    # The error of the quantile is the rounding of the probability, divided by the density.
    gap, slack = _gap(law_to, y, wanted, side)
    with np.errstate(over="ignore"):
        slack = 2.0**-50 * (1 + np.abs(wanted)) * slack
    slack = slack + np.abs(gap) * (slack > 0) * widths.max()
    return y, np.minimum(slack, high.max() - low.min() + np.abs(y))


def _of_rows(law: Law, rows: np.ndarray[Any, np.dtype[np.intp]]) -> Law:
    """The laws of some rows, where means and widths (N, K) differ between rows."""
    weights, means, widths = law
    return weights, means[rows] if means.ndim > 1 else means, widths[rows] if widths.ndim > 1 else widths


def _gap(law: Law, x: Array, wanted: Array, side: Array) -> tuple[Array, Array]:
    """Excess at x of log F (of -log(1 - F) where ``side`` is -1) over the wanted value, and the inverse of its derivative."""
    tail = _log_tail(law, x, side)
    with np.errstate(over="ignore"):
        return side * (tail - wanted), np.exp(tail - _log_density(law, x))


def _log_tail(law: Law, x: Array, side: Array) -> Array:
    """log P(X <= x) where ``side`` is 1, log P(X > x) where it is -1."""
    # Imported where it is used, since that takes a third of a second, which commands that compute nothing do without.
    from scipy.special import log_ndtr

    weights, means, widths = law
    z = (x[:, None] - means) / widths
    tail: Array = np.logaddexp.reduce(np.log(weights) + log_ndtr(side[:, None] * z), axis=1)
    return tail


def log_tails(law: Law, x: Array) -> tuple[Array, Array]:
    """Logarithms of P(X <= x) and P(X > x)."""
    return _log_tail(law, x, np.ones_like(x)), _log_tail(law, x, -np.ones_like(x))


def _log_density(law: Law, x: Array) -> Array:
    weights, means, widths = law
    z = (x[:, None] - means) / widths
    terms = np.log(weights) - np.log(widths) - z**2 / 2 - math.log(2 * math.pi) / 2
    density: Array = np.logaddexp.reduce(terms, axis=1)
    return density
