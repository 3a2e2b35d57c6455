r"""The law of :math:`x_t = \alpha x_0 + \sigma x_1` for any law of the noise :math:`x_1`, as a sum over parts.

The parts are what x_0 and x_1 may be made of: pairs of components, data points, widths of a scale mixture. With
responsibilities :math:`r_c = p_c/p` of the parts' densities :math:`p_c`, scores :math:`s_c = \nabla\log p_c` and any view
:math:`v_c = p\,E[x_0|x, c] + e\,E[x_1|x, c]`,

.. math::
    v = \sum_c r_c v_c, \qquad s = \sum_c r_c s_c, \qquad
    \nabla\cdot v = \sum_c r_c\,[\nabla\cdot v_c + (v_c - v)\cdot(s_c - s)] .

The velocity has :math:`p = \alpha'`, :math:`e = \sigma'`, whatever the law of x_1 is; the score is no multiple of
:math:`E[x_1|x]` unless x_1 is normal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.targets.target import Scalar

#: Count of numbers that the parts of a chunk of rows may hold, 16 MB in float64.
_CHUNK_NUMBERS = 2**21


class Weights(NamedTuple):
    """A view as weights of E[x_0|x] and E[x_1|x]: numbers, or (B, 1) with one for each row.

    Attributes:
        data: weight of E[x_0|x].
        noise: weight of E[x_1|x]; where it is infinite, as sigma' may be at sigma = 0, no part may need it.
        pull: the noise's weight times sigma, which is finite there.
    """

    data: Scalar
    noise: Scalar
    pull: Scalar


class Parts(ABC):
    """The parts of a law at points (b, D) of one chunk; C is their number."""

    log_joint: Tensor
    """log of a part's weight times its density, (C, b)."""

    @abstractmethod
    def scores(self) -> Tensor:
        """The gradient of each part's log-density, (C, b, D)."""

    @abstractmethod
    def views(self, weights: Weights) -> Tensor:
        """A view of each part, (C, b, D)."""

    @abstractmethod
    def divergences(self, weights: Weights) -> Tensor:
        """The divergence of each part's view, (C, b)."""

    @property
    def shares(self) -> Tensor:
        """Responsibilities, (C, b)."""
        return self.log_joint.softmax(0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean (b, D) of the parts' vectors (C, b, D); those without a share may be infinite."""
        r = self.shares[..., None]
        return (r * values.masked_fill(r == 0, 0.0)).sum(0)


class Law(ABC):
    """The law of alpha x_0 + sigma x_1. Points x are (B, D); alpha and sigma are numbers, or (B, 1) with one for each row.

    Attributes:
        dim: the number of coordinates D.
        centred: whether views have finite parts where the noise's weight is infinite.
    """

    dim: int
    centred: bool = False

    @abstractmethod
    def parts(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Parts:
        """The parts at points of float64."""

    @abstractmethod
    def count(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> int:
        """The largest number of parts at these points."""

    def log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """log p(x), (B,)."""
        return self._joined(x, alpha, sigma, lambda parts, _: parts.log_joint.logsumexp(0))

    def score(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """grad log p(x), (B, D)."""
        return self._joined(x, alpha, sigma, lambda parts, _: parts.mean(parts.scores()))

    def view(self, x: Tensor, alpha: Scalar, sigma: Scalar, weights: Weights) -> Tensor:
        """p E[x_0|x] + e E[x_1|x], (B, D)."""
        return self._joined(x, alpha, sigma, lambda parts, rows: parts.mean(parts.views(_of(weights, rows))))

    def divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar, weights: Weights) -> Tensor:
        """The divergence of a view in x, (B,)."""

        def of(parts: Parts, rows: slice) -> Tensor:
            own, r = _of(weights, rows), parts.shares
            views, scores = parts.views(own), parts.scores()
            turned = ((views - parts.mean(views)) * (scores - parts.mean(scores))).sum(-1)
            return (r * (parts.divergences(own) + turned).masked_fill(r == 0, 0.0)).sum(0)

        return self._joined(x, alpha, sigma, of)

    def _joined(self, x: Tensor, alpha: Scalar, sigma: Scalar, answer: Callable[[Parts, slice], Tensor]) -> Tensor:
        points = x.to(torch.float64)
        found = [
            answer(self.parts(points[rows], rows_of(alpha, rows), rows_of(sigma, rows)), rows)
            for rows in self._chunks(points, alpha, sigma)
        ]
        return (found[0] if len(found) == 1 else torch.cat(found)).to(x.dtype)

    def _chunks(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Iterator[slice]:
        size = max(1, _CHUNK_NUMBERS // max(1, self.count(x, alpha, sigma) * self.dim))
        for start in range(0, max(1, len(x)), size):
            yield slice(start, start + size)


def rows_of(value: Scalar, rows: slice) -> Scalar:
    """Some rows of a per-row scalar; a plain number is the same for every row."""
    return value[rows] if isinstance(value, Tensor) else value


def flat(value: Scalar) -> Scalar:
    """A per-row scalar (B, 1) as (B,); a plain number stays one."""
    return value[:, 0] if isinstance(value, Tensor) else value


def check_levels(alpha: Scalar, sigma: Scalar, data: bool, noise: bool) -> None:
    """Raise ArgumentError where point masses of the ``data``, or of the ``noise``, are all that is left at a level."""
    for name, value, points, of in (("sigma", sigma, data, "data"), ("alpha", alpha, noise, "noise")):
        if points and bool((value == 0).any() if isinstance(value, Tensor) else value == 0):
            raise ArgumentError(f"point masses of the {of} have no field where {name} = 0; ask at a time with both")


def _of(weights: Weights, rows: slice) -> Weights:
    return Weights(*(rows_of(weight, rows) for weight in weights))
