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
    use_lower = lower < upper
    wanted = np.where(use_lower, lower, upper)
    _, means, widths = law_to
    reach = 40.0
    low = np.full_like(x, (means - reach * widths).min())
    high = np.full_like(x, (means + reach * widths).max())
    # The bracket is widened until it holds the quantile, which is far out for a point far out in a tail.
    for _ in range(200):
        below, above = (_gap(law_to, edge, wanted, use_lower) for edge in (low, high))
        if np.all(below <= 0) and np.all(above >= 0):
            break
        width = high - low
        low, high = np.where(below > 0, low - width, low), np.where(above < 0, high + width, high)
    y = np.clip(x, low, high)
    for _ in range(200):
        tails = log_tails(law_to, y)
        gap = _gap(law_to, y, wanted, use_lower)
        low, high = np.where(gap < 0, y, low), np.where(gap > 0, y, high)
        log_density = _log_density(law_to, y)
        # Far from the mass the density underflows and the step is infinite; the bracket is then halved.
        with np.errstate(over="ignore", invalid="ignore"):
            newton = y - gap * np.exp(np.where(use_lower, tails[0], tails[1]) - log_density)
        inside = (newton > low) & (newton < high) & np.isfinite(newton)
        following = np.where(inside, newton, (low + high) / 2)
        moved = np.abs(following - y)
        y = following
        if np.all(moved <= 4e-16 * np.maximum(np.abs(y), widths.min())):
            break
    # The error of the quantile is the rounding of the probability, divided by the density.
    tails = log_tails(law_to, y)
    log_density = _log_density(law_to, y)
    with np.errstate(over="ignore"):
        slack = 2.0**-50 * (1 + np.abs(wanted)) * np.exp(np.where(use_lower, tails[0], tails[1]) - log_density)
    slack = slack + np.abs(_gap(law_to, y, wanted, use_lower)) * (slack > 0) * widths.max()
    return y, np.minimum(slack, high.max() - low.min() + np.abs(y))


def _gap(law: Law, x: Array, wanted: Array, use_lower: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
    """Excess of log F at x (of -log(1 - F) where the upper tail is the smaller) over the wanted value."""
    lower, upper = log_tails(law, x)
    return np.where(use_lower, lower - wanted, wanted - upper)


def log_tails(law: Law, x: Array) -> tuple[Array, Array]:
    """Logarithms of P(X <= x) and P(X > x)."""
    # Imported where it is used, since that takes a third of a second, which commands that compute nothing do without.
    from scipy.special import log_ndtr

    weights, means, widths = law
    z = (x[:, None] - means) / widths
    log_weights = np.log(weights)
    lower: Array = np.logaddexp.reduce(log_weights + log_ndtr(z), axis=1)
    upper: Array = np.logaddexp.reduce(log_weights + log_ndtr(-z), axis=1)
    return lower, upper


def _log_density(law: Law, x: Array) -> Array:
    weights, means, widths = law
    z = (x[:, None] - means) / widths
    terms = np.log(weights) - np.log(widths) - z**2 / 2 - math.log(2 * math.pi) / 2
    density: Array = np.logaddexp.reduce(terms, axis=1)
    return density
