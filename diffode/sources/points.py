r"""Data that are points, with noise of any density q: one part for each point.

With :math:`u_k = (x - \alpha x_k)/\sigma` the part of a point has the density :math:`p_k\,q(u_k)/\sigma^D` and the noise
:math:`E[x_1|x, k] = u_k`: nothing about q but its value and its gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from diffode.sources.law import Law, Parts, Weights, check_levels, flat
from diffode.targets import GaussianMixture
from diffode.targets.target import Scalar

#: log q and its gradient at points (..., D): (...) and (..., D).
Shape = Callable[[Tensor], tuple[Tensor, Tensor]]


class PointLaw(Law):
    """The law of alpha x_0 + sigma x_1 for point masses x_0 and a density q of x_1."""

    def __init__(self, data: GaussianMixture, shape: Shape):
        self.dim = data.dim
        self.points, self.log_weights = data.means, data.weights.log()
        self.shape = shape

    @override
    def count(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> int:
        return len(self.points)

    @override
    def parts(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> PointParts:
        check_levels(alpha, sigma, True, False)
        return PointParts(self, x, alpha, sigma)


class PointParts(Parts):
    """The points of the data at some points x."""

    def __init__(self, law: PointLaw, x: Tensor, alpha: Scalar, sigma: Scalar):
        self.points = law.points[:, None].to(x.device)
        self.u = (x - alpha * self.points) / sigma
        self.sigma = sigma
        log_q, self.slopes = law.shape(self.u)
        spread = torch.as_tensor(flat(sigma), dtype=torch.float64).log()
        self.log_joint = law.log_weights[:, None].to(x.device) + log_q - law.dim * spread.to(x.device)

    @override
    def scores(self) -> Tensor:
        return self.slopes / self.sigma

    @override
    def views(self, weights: Weights) -> Tensor:
        return weights.data * self.points + weights.noise * self.u

    @override
    def divergences(self, weights: Weights) -> Tensor:
        rate = weights.noise / self.sigma
        return (
            torch.as_tensor(flat(rate), dtype=torch.float64, device=self.u.device).expand(self.log_joint.shape)
            * self.u.shape[-1]
        )
