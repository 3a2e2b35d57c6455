r"""Student-t noise: Poisson flow generative models and PFGM++ on any target.

With D degrees of freedom :math:`x_1 = z\sqrt{D/s}`, z normal and s chi-squared with D degrees. On the path of EDM that is
PFGM++ (Xu et al., arXiv 2302.04265) with :math:`r = \sigma\sqrt D`: D = 1 is the Poisson flow of PFGM (arXiv 2209.11178),
whose field is that of charges in D + N dimensions, and D to infinity is EDM.

Points as data have a closed form. Other targets are a scale mixture, whose integral over :math:`u = \log(s/D)` the trapezoid
rule takes with exponential convergence: each node is an ordinary noised law at :math:`\sigma e^{-u/2}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.numerics.gamma import log_gamma_ratio, stirling_rest
from diffode.randomness import Randomness, generator_from, normal, row_generators
from diffode.sources.law import Law, flat
from diffode.sources.nodes import NodeLaw, Nodes
from diffode.sources.points import PointLaw
from diffode.sources.source import Source
from diffode.specs import format_spec
from diffode.targets import Target
from diffode.targets.target import Scalar

#: Largest distance of two nodes in log s: chi-squared laws of few degrees are integrated to rounding with it.
_WIDEST_STEP = 0.22
#: Distance h of two nodes in standard deviations of the integrand. The rule's error is |Gamma(k + 2 pi i/h)|/Gamma(k) with
#: k = (D + N)/2, below 2e-15 for all k.
_STEP = 0.45
#: Exponent of the density at which tails are cut, e^-40.
_CUT = 40.0
#: Rounds of Newton's method for the lower end of the nodes, which comes from above and doubles its digits.
_ROUNDS = 8
#: Largest degrees of freedom below infinity; more differ from a normal law by less than rounding.
_MOST_DEGREES = 1e12


@dataclass(frozen=True)
class StudentT(Source):
    """Student-t noise with ``dof`` degrees of freedom D > 0, the same scale matrix I for all; infinity is N(0, I).

    >>> StudentT(128.0).spec
    'student:dof=128'
    """

    dof: float = math.nan

    def __post_init__(self) -> None:
        if isinstance(self.dof, bool) or not isinstance(self.dof, int | float) or not self.dof > 0:
            raise ArgumentError(
                f"dof must be a positive number of degrees of freedom, or inf, as in 'student:dof=128'; got {self.dof!r}"
            )
        if not 1e-3 <= self.dof <= _MOST_DEGREES and math.isfinite(self.dof):
            raise ArgumentError(
                f"dof must lie in [0.001, {_MOST_DEGREES:g}], or be inf, which is normal noise; got {self.dof!r}"
            )
        object.__setattr__(self, "dof", float(self.dof))

    @property
    @override
    def spec(self) -> str:
        return format_spec("student", {"dof": int(self.dof) if self.dof.is_integer() else self.dof})

    @property
    @override
    def is_normal(self) -> bool:
        return math.isinf(self.dof)

    def content(self) -> str:
        """Its spec, which says all."""
        return self.spec

    @override
    def noised(self, target: Target) -> Law:
        mixture = target.as_mixture()
        if mixture is not None and mixture.is_discrete:
            return PointLaw(mixture, self.shape)
        return ScaleMixture(target, self.dof)

    def shape(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density at points (..., N), (...), and its gradient, (..., N)."""
        count, square = u.shape[-1], u.square().sum(-1)
        constant = log_gamma_ratio(self.dof / 2, count / 2) - count / 2 * math.log(self.dof * math.pi)
        slope = -(self.dof + count) / (self.dof + square)
        return constant - (self.dof + count) / 2 * torch.log1p(square / self.dof), slope[..., None] * u

    @override
    def sample(self, n: int, dim: int, *, generator: Randomness) -> Tensor:
        each = row_generators(generator, n)
        if each:
            return torch.cat([self.sample(1, dim, generator=one) for one in each])
        source = generator_from(generator if each is None else 0)
        z = normal((n, dim), generator=source)
        seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
        if self.is_normal:
            return z
        chi_squared = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).chisquare(self.dof, n))
        # A chi-squared number of few degrees may be 0 after rounding.
        return z * (self.dof / chi_squared.clamp(min=1e-300).to(z.device)).sqrt()[:, None]


class ScaleMixture(NodeLaw):
    """The law of alpha x_0 + sigma x_1 for Student-t noise, by the trapezoid rule in u = log(s/D)."""

    def __init__(self, target: Target, dof: float):
        super().__init__(target, nodes_between(dof, target.dim, 0.0, 0.0))
        self.dof = dof
        mixture = target.as_mixture()
        self._means = target.mean[None] if mixture is None else mixture.means
        spread = target.variance if mixture is None else mixture.components.variances()
        #: Square of the width of the data about the means, all coordinates together.
        self._square = float(spread.amax()) * target.dim

    @override
    def nodes_at(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Nodes:
        far = self._farthest(x.detach(), alpha, sigma)
        # The posterior of s lies where the likeliest distance puts it: at (D + N)/(1 + R^2/D) far from the data. Above that,
        # where the data are wider than the noise, s may be anything; below it the density falls as s^((D + N)/2).
        lowest = -math.log1p(far / self.dof * far)
        return nodes_between(self.dof, self.dim, lowest, math.log1p(self.dim / self.dof))

    def _farthest(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> float:
        """R, the largest distance of a point to the nearest mean and of the data to their means, in units of sigma."""
        if not len(x):
            return 0.0
        alpha, sigma = (value.detach() if isinstance(value, Tensor) else value for value in (alpha, sigma))
        means = self._means.to(x.device)
        if isinstance(alpha, Tensor):
            nearest = torch.stack([(x - alpha * mean).norm(dim=1) for mean in means]).amin(0)
        else:
            nearest = torch.cdist(x, alpha * means).amin(1)
        ratio = torch.hypot(nearest, torch.as_tensor(flat(alpha), dtype=torch.float64) * self._square**0.5) / flat(sigma)
        finite = ratio[ratio.isfinite()]
        # Where sigma is 0 all nodes have the same law.
        return min(float(finite.max()), 1e150) if len(finite) else 0.0


def nodes_between(dof: float, dim: int, lowest: float, highest: float) -> Nodes:
    """Nodes in u = log(s/D) from the lower tail below a peak at ``lowest`` to the upper tail above one at ``highest``."""
    both = dof + dim
    step = min(_WIDEST_STEP, _STEP * math.sqrt(2 / both))
    top = highest + math.log1p((2 * math.sqrt(_CUT * both) + 2 * _CUT) / both)
    first, last = math.floor((lowest - _depth(both / 2)) / step), math.ceil(top / step)
    u = step * torch.arange(first, last + 1, dtype=torch.float64)
    # log of the density of u: (D/2)(u - e^u) + (D/2) log(D/2) - log Gamma(D/2), without the cancellation of large terms.
    half = dof / 2
    constant = math.log(step) + 0.5 * math.log(half / (2 * math.pi)) - stirling_rest(half)
    return Nodes(half * (u - torch.expm1(u)) + constant, torch.exp(-u / 2))


def _depth(shape: float) -> float:
    """The distance d below its peak at which the log of a gamma variable has a density e^-40 times as large.

    It solves k (e^-d + d - 1) = 40, where k is the gamma law's ``shape``.
    """
    depth = _CUT / shape + 1
    for _ in range(_ROUNDS):
        depth -= (shape * (math.expm1(-depth) + depth) - _CUT) / (-shape * math.expm1(-depth))
    return depth
