r"""Nonlinear fits that minimise the sum of errors, not of their squares, by reweighted normal equations and damped steps.

The sum of |r| is minimised as that of :math:`w |r|^2`, with weights w = 1/|r| of the step before (iteratively reweighted least
squares). The normal equations :math:`J^T W J\, d = J^T W r` are added up block by block, scaled by their diagonal and damped
(Levenberg and Marquardt; Nocedal and Wright, Numerical Optimization, 10.3).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

#: Addend to a divisor, so that an error of exactly 0 has a finite weight.
_TINY = 1e-300
#: Number of parameters from which only half of a curvature is computed, in blocks of rows.
_MANY = 128
#: Number of those blocks: fewer compute more of the half that is known, more are products of thinner matrices.
_BLOCKS = 4


def reweighted(length: Tensor, least: float) -> Tensor:
    """Weights 1/|r| of errors with lengths |r| (..., N), which count as at least ``least`` times their median."""
    return 1 / length.maximum(least * length.median(-1, keepdim=True).values + _TINY)


class NormalEquations:
    """J^T W r (..., P) and J^T W J (..., P, P), of one problem or of many side by side, added up block by block."""

    def __init__(self, *shape: int):
        self.gradient = torch.zeros(shape, dtype=torch.float64)
        self.curvature = torch.zeros(*shape, shape[-1], dtype=torch.float64)

    def add(self, rows: Tensor, pull: Tensor, weight: Tensor) -> None:
        """Add N rows of J (..., N, P), with W r (..., N) and W (..., N)."""
        self.gradient += torch.einsum("...np,...n->...p", rows, pull)
        rooted = rows * weight.sqrt()[..., None]
        self.curvature += rooted.mT @ rooted

    def add_scaled(self, rows: Tensor, residual: Tensor) -> None:
        """Add N rows of W^(1/2) J (..., N, P), with W^(1/2) r (..., N)."""
        self.gradient += torch.einsum("...np,...n->...p", rows, residual)
        count = rows.shape[-1]
        if count < _MANY:
            self.curvature += rows.mT @ rows
            return
        edges = [count * k // _BLOCKS for k in range(_BLOCKS + 1)]
        for begin, end in itertools.pairwise(edges):
            product = rows[..., begin:end].mT @ rows[..., begin:]
            self.curvature[..., begin:end, begin:] += product
            self.curvature[..., end:, begin:end] += product[..., end - begin :].mT


@dataclass(frozen=True)
class Scaled:
    """Normal equations (P,), (P, P) in units ``size`` (P,) in which the diagonal of the curvature is 1."""

    gradient: Tensor
    curvature: Tensor
    size: Tensor

    @classmethod
    def of(cls, gradient: Tensor, curvature: Tensor, least: float = 0.0) -> Scaled:
        """Equations scaled by the root of the diagonal, whose entries count as at least ``least`` times the largest."""
        diagonal = curvature.diagonal()
        size = diagonal.clamp(min=least * float(diagonal.max()) + _TINY).sqrt()
        return cls(gradient / size, curvature / size[:, None] / size, size)

    def step(self, damping: float) -> Tensor | None:
        """The step d (P,) to be subtracted, for a damping in units of the diagonal; None where the matrix is not definite."""
        damped = self.curvature.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return None
        return torch.cholesky_solve(self.gradient[:, None], factor)[:, 0] / self.size
