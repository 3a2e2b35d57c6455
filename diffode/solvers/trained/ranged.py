r"""Samplers whose numbers are smooth functions of the first and last level, in units of the data's scale, and the dimension.

The numbers are polynomials of second degree in u and v, the logarithms of the first and last level mapped to [-1, 1], and in d,
the logarithm of the dimension mapped likewise (dimensions above those of the training count as the largest of them). The first
evaluation enters through the denoised point: with :math:`D_0 = z_0 - \rho_0 e_0` a state is
:math:`z_i = c_i D_0 + b'_{i0} e_0 + \sum_{j>0} b_{ij} e_j`. Its numbers have a limit as :math:`\rho_0` grows, but
:math:`b_{i0} = b'_{i0} - c_i\rho_0` has none.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.tableau.stages import Stages, from_vector, to_vector


@dataclass(frozen=True)
class Ranged:
    """Polynomials for the numbers of a sampler with ``nfe`` evaluations.

    Attributes:
        nfe: number of evaluations.
        first, last: ranges (low, high) of the first and last level, in units of the scale.
        most: the largest dimension of the training.
        coefficients: (9, P) float64 in the order 1, u, v, u^2, u v, v^2, d, d^2, u d.
    """

    nfe: int
    first: tuple[float, float]
    last: tuple[float, float]
    most: int
    coefficients: Tensor

    @classmethod
    def constant(cls, stages: Stages, first: tuple[float, float], last: tuple[float, float], most: int) -> Ranged:
        """A sampler with the same c, b' and inner levels for all levels and dimensions, from which training begins."""
        vector = to_vector(stages)
        vector[_oldest(stages.nfe)] += float(stages.levels[0]) * stages.scales
        coefficients = torch.zeros(9, len(vector), dtype=torch.float64)
        coefficients[0] = vector
        return cls(stages.nfe, first, last, most, coefficients)

    def features(self, first: float, last: float, dim: int) -> Tensor:
        """The nine monomials, (9,), at two levels and a dimension."""
        u, v = (_mapped(value, span) for value, span in ((first, self.first), (last, self.last)))
        d = _mapped(min(dim, self.most), (1.0, float(self.most)))
        return torch.tensor([1.0, u, v, u * u, u * v, v * v, d, d * d, u * d], dtype=torch.float64)

    def stages(self, first: float, last: float, dim: int) -> Stages:
        """The sampler between two levels in ``dim`` dimensions, in units of the scale."""
        vector = self.features(first, last, dim) @ self.coefficients
        vector[_oldest(self.nfe)] -= first * vector[: self.nfe]
        return from_vector(vector, self.nfe, first, last)

    def jacobian(self, first: float, last: float, dim: int) -> Tensor:
        """Derivative of the sampler's numbers by the coefficients, (P, 9 P)."""
        count = self.coefficients.shape[1]
        own = torch.eye(count, dtype=torch.float64)
        own[_oldest(self.nfe), torch.arange(self.nfe)] -= first
        return torch.einsum("f,pq->pfq", self.features(first, last, dim), own).reshape(count, -1)

    def covers(self, first: float, last: float) -> bool:
        """Whether two levels lie in the ranges of the training."""
        return _within(first, self.first) and _within(last, self.last)

    def check(self, first: float, last: float, scale: float) -> None:
        """Raise ArgumentError, which names the range, for a level outside the ranges of the training."""
        for name, value, (low, high) in (("first", first, self.first), ("last", last, self.last)):
            if not _within(value, (low, high)):
                raise ArgumentError(
                    f"the {name} noise level is {value:.3g} of the data's scale {scale:.3g}; this sampler was trained for "
                    f"{low:.3g} to {high:.3g}: choose t_max and t_min of the path, or scale=, accordingly"
                )


def _within(value: float, span: tuple[float, float]) -> bool:
    return span[0] * (1 - 1e-9) <= value <= span[1] * (1 + 1e-9)


@functools.cache
@torch.inference_mode(False)
def _oldest(nfe: int) -> Tensor:
    """Indices of the weights of the first evaluation in the vector of a sampler."""
    _, columns = torch.tril_indices(nfe, nfe)
    places: Tensor = torch.nonzero(columns == 0).reshape(-1) + nfe
    return places


def _mapped(value: float, span: tuple[float, float]) -> float:
    low, high = math.log(span[0]), math.log(span[1])
    return 2 * (math.log(value) - low) / (high - low) - 1
