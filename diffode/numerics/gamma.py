"""Differences of log-gamma functions of large arguments, whose own values would cancel."""

from __future__ import annotations

import math

#: Argument from which Stirling's series with five terms is exact to rounding.
_LARGE = 20.0
#: Coefficients B_2k/(2k (2k - 1)) of 1/x^(2k - 1) in Stirling's series (Abramowitz and Stegun, 6.1.41).
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


def stirling_rest(x: float) -> float:
    """log Gamma(x) - [(x - 1/2) log x - x + log(2 pi)/2] for x > 0.

    >>> round(stirling_rest(50.0) * 600, 5)
    0.99999
    """
    if x < _LARGE:
        return math.lgamma(x) - ((x - 0.5) * math.log(x) - x + 0.5 * math.log(2 * math.pi))
    return sum(coefficient / x ** (2 * k + 1) for k, coefficient in enumerate(_STIRLING))


def log_gamma_ratio(x: float, more: float) -> float:
    """log Gamma(x + more) - log Gamma(x), with the digits of the difference.

    >>> abs(log_gamma_ratio(1e6, 1.0) - math.log(1e6)) < 1e-14
    True
    """
    if x < _LARGE:
        return math.lgamma(x + more) - math.lgamma(x)
    grown = (x + more - 0.5) * math.log1p(more / x) + more * (math.log(x) - 1)
    return grown + stirling_rest(x + more) - stirling_rest(x)
