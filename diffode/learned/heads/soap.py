r"""SOAP: Adam in the eigenvectors of Shampoo's two matrices (Vyas et al., arXiv 2409.11321).

For a matrix with gradient G the averages of :math:`G G^T` and :math:`G^T G` have eigenvectors :math:`Q_L, Q_R`. Adam's second
moment is that of :math:`Q_L^T G Q_R`, and its step is turned back. The eigenvectors follow the averages by one power iteration
every few steps. Vectors take Adam's own steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Addend to a divisor.
_TINY = 1e-8


class SOAP:
    """The optimiser of some parameters.

    Args:
        parameters: matrices and vectors with gradients.
        factors: rate of each, relative to that of a step.
        first, second: decay of the averages of the gradient, and of its square and of Shampoo's matrices.
        every: number of steps between two updates of the eigenvectors.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        factors: Sequence[float],
        first: float = 0.95,
        second: float = 0.95,
        every: int = 20,
    ):
        self._factors = list(factors)
        self._parameters, self._first, self._second, self._every = list(parameters), first, second, every
        self._mean = [torch.zeros_like(p) for p in self._parameters]
        self._square = [torch.zeros_like(p) for p in self._parameters]
        self._sides: list[list[Tensor]] = [[] for _ in self._parameters]
        self._bases: list[list[Tensor]] = [[] for _ in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Move the parameters against their gradients, at a rate of length a coordinate."""
        self._steps += 1
        scale = rate * math.sqrt(1 - self._second**self._steps) / (1 - self._first**self._steps)
        for k, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            self._mean[k].lerp_(gradient, 1 - self._first)
            if parameter.ndim == 2:
                self._turn(k, gradient)
                left, right = self._bases[k]
                turned, mean = left.T @ gradient @ right, left.T @ self._mean[k] @ right
            else:
                turned, mean = gradient, self._mean[k]
            self._square[k].mul_(self._second).addcmul_(turned, turned, value=1 - self._second)
            move = mean / (self._square[k].sqrt() + _TINY)
            if parameter.ndim == 2:
                move = left @ move @ right.T
            parameter.sub_(move, alpha=scale * self._factors[k])

    def _turn(self, k: int, gradient: Tensor) -> None:
        """Add a gradient to Shampoo's matrices, and turn the eigenvectors after them if it is time."""
        products = (gradient @ gradient.T, gradient.T @ gradient)
        if not self._sides[k]:
            self._sides[k] = list(products)
            self._bases[k] = [torch.linalg.eigh(side)[1].flip(1) for side in products]
            return
        for side, product in zip(self._sides[k], products, strict=True):
            side.lerp_(product, 1 - self._second)
        if self._steps % self._every:
            return
        square = self._square[k]
        for axis, (side, basis) in enumerate(zip(self._sides[k], list(self._bases[k]), strict=True)):
            # The second moment is kept in the order of its eigenvectors, largest first.
            order = (basis * (side @ basis)).sum(0).argsort(descending=True)
            square = square.index_select(axis, order)
            self._bases[k][axis] = torch.linalg.qr(side @ basis[:, order])[0]
        self._square[k] = square
