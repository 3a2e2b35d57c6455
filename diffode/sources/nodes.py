r"""Noise (or data) that is a mixture of isotropic Gaussians: each part is an ordinary noised law of the other side.

Given its node j the noise is :math:`x_1 = n_j + c_j z`, z normal, so that :math:`x - \sigma n_j = \alpha x_0 + \sigma c_j z`
has the noised law of the target at (alpha, sigma c_j). Any target serves. The weights are those of a mixture or of a
quadrature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from diffode import native
from diffode.errors import FieldError
from diffode.sources.law import Law, Parts, Weights, flat
from diffode.targets import Target
from diffode.targets.target import Scalar

#: Largest number of coordinates of a batch with which all nodes are asked in one call; more are asked node by node.
_TOGETHER = 2**14


class Nodes(NamedTuple):
    """Isotropic Gaussians: log-weights (M,), widths c_j (M,), and means n_j (M, D) or None if all are 0."""

    log_weights: Tensor
    widths: Tensor
    means: Tensor | None = None


class NodeLaw(Law):
    """The law of alpha x_0 + sigma x_1, one side of which has nodes: the noise, or, if ``swapped``, the data."""

    def __init__(self, base: Target, nodes: Nodes, *, swapped: bool = False):
        self.base, self.nodes, self.swapped = base, nodes, swapped
        self.dim = base.dim
        self.centred = nodes.means is None and not swapped

    def nodes_at(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Nodes:
        """The nodes for points x: the same for all, unless they are those of a quadrature."""
        return self.nodes

    @override
    def count(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> int:
        return len(self.nodes_at(x, alpha, sigma).log_weights)

    @override
    def parts(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> NodeParts:
        levels = (sigma, alpha) if self.swapped else (alpha, sigma)
        return NodeParts(self, self.nodes_at(x, alpha, sigma), x, *levels)


class NodeParts(Parts):
    """The nodes at some points; ``a`` is the factor of the side that has a noised law, ``b`` that of the side with nodes."""

    def __init__(self, law: NodeLaw, nodes: Nodes, x: Tensor, a: Scalar, b: Scalar):
        self.law, self.a, self.b, self.rows = law, a, b, len(x)
        self.widths = nodes.widths.to(x.device)
        self.means = None if nodes.means is None else nodes.means.to(x.device)
        count = len(self.widths)
        self.x = x.expand(count, *x.shape) if self.means is None else x - b * self.means[:, None]
        #: b c_j, a float for each node or (M, b, 1).
        self.noise = b * self.widths[:, None, None] if isinstance(b, Tensor) else [b * float(c) for c in self.widths]
        # Compiled kernels for few dimensions take levels of rows as fast as one level; other forms are made for one.
        small = law.dim <= native.MOST_DIMENSIONS and x.numel() <= _TOGETHER
        self.together = small or isinstance(self.noise, Tensor)
        joint = self._asked("log_prob", None)
        self.log_joint = nodes.log_weights.to(x.device)[:, None] + joint

    def _asked(self, wanted: str, weights: Weights | None) -> Tensor:
        """An evaluation of the noised law at each node, (M, b) or (M, b, D)."""
        if not self.together and isinstance(self.noise, list):
            nodes = zip(self.x, self.noise, self.widths, strict=True)
            return torch.stack([self._of(wanted, x, self.a, s, float(c) ** 2, weights) for x, s, c in nodes])
        count, rows, dim = self.x.shape
        s = self.noise if isinstance(self.noise, Tensor) else self.x.new_tensor(self.noise)[:, None, None].expand(-1, rows, 1)
        # A level is a number on both sides, or has a value for each row on both.
        a = self._spread(self.a if isinstance(self.a, Tensor) else self.x.new_full((rows, 1), self.a))
        many = tuple(self._spread(value) for value in weights or ())
        squares = self.widths.square()[:, None, None].expand(-1, rows, 1).reshape(-1, 1)
        own = Weights(*many) if weights is not None else None
        answer = self._of(wanted, self.x.reshape(-1, dim), a, s.reshape(-1, 1), squares, own)
        return answer.reshape(count, rows, *answer.shape[1:])

    def _spread(self, value: Scalar) -> Scalar:
        return value.expand(len(self.widths), -1, 1).reshape(-1, 1) if isinstance(value, Tensor) else value

    def _of(self, wanted: str, x: Tensor, a: Scalar, s: Scalar, square: Scalar, weights: Weights | None) -> Tensor:
        base = self.law.base
        if wanted == "log_prob" or weights is None:
            return base.noised_log_prob(x, a, s)
        own, pull = self._weights(weights)
        if wanted == "view":
            return base.noised_view(x, a, s, own, -pull * square)
        if wanted == "score":
            return base.noised_view(x, a, s, 0.0, 1.0)
        # own D - pull c^2 score, with D = (x + s^2 score)/a.
        linear, slope = _quotient(own, a), _quotient(own, a) * s**2 - pull * square
        laplacian = base.noised_score_divergence(x, a, s)
        return flat(linear) * x.shape[1] + flat(slope) * laplacian

    def _weights(self, weights: Weights) -> tuple[Scalar, Scalar]:
        """The weight of the side with a noised law, and that of the other side times b."""
        return (weights.noise, weights.data * self.b) if self.law.swapped else (weights.data, weights.pull)

    @override
    def scores(self) -> Tensor:
        return self._asked("score", Weights(0.0, 0.0, 0.0))

    @override
    def views(self, weights: Weights) -> Tensor:
        found = self._asked("view", weights)
        if self.means is None:
            return found
        return found + (weights.data if self.law.swapped else weights.noise) * self.means[:, None]

    @override
    def divergences(self, weights: Weights) -> Tensor:
        return self._asked("divergence", weights)


def _quotient(weight: Scalar, a: Scalar) -> Scalar:
    """A weight over alpha (or sigma), which only a weight of 0 can do without."""
    if isinstance(weight, float) and weight == 0:
        return 0.0
    if bool((a == 0).any()) if isinstance(a, Tensor) else a == 0:
        raise FieldError("the divergence is not available where alpha or sigma is 0; ask at a time with both")
    return weight / a
