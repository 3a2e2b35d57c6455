"""A target as the source: flows from one data set, or mixture, to another, drawn independently."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.randomness import Randomness
from diffode.sources.law import Law
from diffode.sources.nodes import NodeLaw, Nodes
from diffode.sources.pairs import Pairs, fits, is_diagonal
from diffode.sources.source import Source
from diffode.targets import GaussianMixture, Target
from diffode.targets.components import Isotropic


@dataclass(frozen=True, eq=False)
class TargetSource(Source):
    """Noise x_1 with the law of a target, which ``name``, its spec, names.

    Two Gaussian mixtures of any covariances have a closed form, also where one of them is of points; so has any target together
    with a mixture of isotropic components.
    """

    of: Target
    name: str = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name or repr(self.of)})"

    @property
    @override
    def spec(self) -> str:
        return self.name or repr(self.of)

    def content(self) -> str:
        """That of the target."""
        return f"{self.of.content()}, {self.of.arithmetic}"

    @override
    def noised(self, target: Target) -> Law:
        if target.dim != self.of.dim:
            raise ArgumentError(
                f"source {self.spec!r} has {self.of.dim} coordinates, the target {target.dim}: both need the same number"
            )
        data, noise = target.as_mixture(), self.of.as_mixture()
        if data is not None and noise is not None:
            if data.is_discrete and noise.is_discrete:
                raise ArgumentError(
                    "target and source are both of points: their sum has no density, and so no field; give one of them widths, "
                    "GaussianMixture(weights, means, variances)"
                )
            if (is_diagonal(data.components) and is_diagonal(noise.components)) or fits(data, noise):
                return Pairs(data, noise)
        if (nodes := _nodes(noise)) is not None:
            return NodeLaw(target, nodes)
        if (nodes := _nodes(data)) is not None:
            return NodeLaw(self.of, nodes, swapped=True)
        if data is not None and noise is not None:
            return Pairs(data, noise)
        raise ArgumentError(
            f"the law of {target!r} with source {self.spec!r} has no closed form: one of them has to be a Gaussian mixture "
            "with isotropic components, or both mixtures"
        )

    @override
    def sample(self, n: int, dim: int, *, generator: Randomness) -> Tensor:
        return self.of.sample(n, generator=generator)


def _nodes(mixture: GaussianMixture | None) -> Nodes | None:
    """The components of a mixture, if all are isotropic."""
    if mixture is None or not isinstance(mixture.components, Isotropic):
        return None
    return Nodes(mixture.weights.log(), mixture.components.variance.sqrt(), mixture.means)
