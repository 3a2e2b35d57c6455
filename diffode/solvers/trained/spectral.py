r"""Samplers in the Gaussian's chart whose numbers are smooth functions of the data's spectrum and of the last level.

The unit of length is :math:`u = \sqrt{\sum L_i^2/\sum L_i}` with L the variances along the directions: directions without
variance do not change it, so that data on a plane in thousands of dimensions are data on that plane. The numbers are
polynomials of second degree in v, the logarithm of the last level over u, and in d, that of the number of directions that
matter, :math:`(\sum L_i)^2/\sum L_i^2`, both mapped to [-1, 1]; values outside the range of the training count as its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.statistics import Statistics
from diffode.tableau.gaussian_stages import START, GaussianStages
from diffode.tableau.stages import Stages, count_of, from_vector

#: Number of the polynomials' monomials, 1, v, d, v^2, v d, d^2.
MONOMIALS = 6


@dataclass(frozen=True)
class Spectral:
    """Polynomials for the numbers of a sampler with ``nfe`` evaluations.

    Attributes:
        nfe: number of evaluations.
        last: range (low, high) of the last level in units of u.
        most: largest number of directions that matter.
        coefficients: (6, P) float64 in the order 1, v, d, v^2, v d, d^2, where P numbers tell a table of ``nfe + 1`` rows.
    """

    nfe: int
    last: tuple[float, float]
    most: float
    coefficients: Tensor

    def __post_init__(self) -> None:
        if self.coefficients.shape != (MONOMIALS, count_of(self.nfe + 1)):
            raise ArgumentError(
                f"coefficients must be ({MONOMIALS}, {count_of(self.nfe + 1)}) for nfe={self.nfe}, got "
                f"{tuple(self.coefficients.shape)}"
            )

    def features(self, last: float, directions: float) -> Tensor:
        """The monomials (6,) at a last level in units of u and a number of directions that matter."""
        v, d = _mapped(last, *self.last), _mapped(directions, 1.0, self.most)
        return torch.tensor([1.0, v, d, v * v, v * d, d * d], dtype=torch.float64)

    def stages(self, first: float, last: float, directions: float) -> Stages:
        """The table between two levels, all in units of u."""
        found = from_vector(self.features(last, directions) @ self.coefficients, self.nfe + 1, first, last)
        levels = found.levels.clone()
        levels[1:-1] = levels[1:-1].clamp(last, _BELOW * first)
        return Stages(found.scales, found.weights, levels)

    def on(self, statistics: Statistics, first: float, last: float) -> GaussianStages:
        """The table for data of given statistics, between two levels in their unit.

        ArgumentError if the first level is so low that there is nothing to jump over.
        """
        unit, directions = unit_of(statistics), directions_of(statistics)
        if first < LEAST_FIRST * unit:
            raise ArgumentError(
                f"the first noise level is {first:.3g}, {first / unit:.3g} of the data's spread; universal tables in "
                f"the Gaussian's chart begin from {LEAST_FIRST} on: take a path with a higher t_max, or universal"
            )
        return GaussianStages(self.stages(first / unit, last / unit, directions).scaled(unit), statistics)


#: Lowest first level, in units of u, for which tables run. Levels of a table that lie above the first one are moved below it.
LEAST_FIRST = 2.5
#: Highest share of the first level that an evaluation may have.
_BELOW = START * (1 - 1e-4)


def unit_of(statistics: Statistics) -> float:
    """u of some data; 1 for a single point."""
    square = statistics.spectral_mean(2)
    return math.sqrt(square / statistics.spectral_mean(1)) if square > 0 else 1.0


def directions_of(statistics: Statistics) -> float:
    """The number of directions that matter; 1 for a single point.

    >>> round(directions_of(Statistics.of_target("gauss1024-lowrank")), 1)
    7.9
    """
    square = statistics.spectral_mean(2)
    return statistics.spectral_mean(1) ** 2 / square if square > 0 else 1.0


def _mapped(value: float, low: float, high: float) -> float:
    where = 2 * (math.log(max(value, 1e-300)) - math.log(low)) / (math.log(high) - math.log(low)) - 1
    return min(max(where, -1.0), 1.0)
