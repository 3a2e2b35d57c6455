"""Rules by which a conditional and an unconditional answer become a guided one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields.field import PREDICTIONS, Prediction
from diffode.fields.guidance.weights import number
from diffode.targets.target import Scalar


class Rule(ABC):
    """How two answers are mixed. At weight 1 every rule gives the conditional answer."""

    #: Whether the rule is the linear one, which is the same in all views.
    linear: ClassVar[bool] = False

    @property
    @abstractmethod
    def within(self) -> Prediction | None:
        """The view whose answers are mixed; None where the rule is the same in all views."""

    @abstractmethod
    def mixed(self, conditional: Tensor, unconditional: Tensor, weight: Scalar) -> Tensor:
        """The guided answer, (B, *shape); the weight is a number, or shaped to multiply rows."""

    def check(self, dim: int | None) -> None:
        """Raise ArgumentError for rows of a dimension that the rule can't mix."""
        return None


@dataclass(frozen=True)
class Linear(Rule):
    """Classifier-free guidance, D_u + w (D_c - D_u): Ho and Salimans, arXiv 2207.12598, eq. 6, with w = 1 + theirs.

    With a weaker field in the place of the unconditional one it is autoguidance (Karras et al., arXiv 2406.02507, eq. 3).
    """

    linear: ClassVar[bool] = True

    @property
    @override
    def within(self) -> Prediction | None:
        return None

    @override
    def mixed(self, conditional: Tensor, unconditional: Tensor, weight: Scalar) -> Tensor:
        return unconditional + weight * (conditional - unconditional)


@dataclass(frozen=True)
class Rescaled(Rule):
    """Guidance that gets back a part of the conditional answer's deviation: Lin et al., arXiv 2305.08891, section 3.4.

    With s the standard deviation over the coordinates of a row, the guided answer g is multiplied by
    phi s(conditional)/s(g) + 1 - phi. Networks are rescaled in the view that they predict, so the ``view`` matters.
    """

    phi: float = 0.7
    view: Prediction = "noise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", number(self.phi, "phi", 0.0, 1.0))
        if self.view not in PREDICTIONS:
            raise ArgumentError(f"view must be one of {', '.join(PREDICTIONS)}, got {self.view!r:.60}")

    @property
    @override
    def within(self) -> Prediction | None:
        return self.view

    @override
    def mixed(self, conditional: Tensor, unconditional: Tensor, weight: Scalar) -> Tensor:
        guided = unconditional + weight * (conditional - unconditional)
        wanted, found = (part.flatten(1).std(1) for part in (conditional, guided))
        # A row whose coordinates are all equal has nothing to rescale.
        ratio = torch.where(found > 0, wanted / torch.where(found > 0, found, 1.0), 1.0)
        factor = self.phi * ratio + (1 - self.phi)
        return guided * factor.reshape(-1, *[1] * (guided.ndim - 1))

    @override
    def check(self, dim: int | None) -> None:
        if dim == 1:
            raise ArgumentError("kind='rescaled' needs two coordinates or more: their standard deviation is what it restores")


@dataclass(frozen=True)
class Projected(Rule):
    """Adaptive projected guidance: Sadat et al., arXiv 2410.02416, without its momentum.

    The difference D_c - D_u is shortened to a length of ``norm`` at most and split into parts along D_c and across it; the part
    along is multiplied by ``eta``: D_c + (w - 1)(across + eta along). Their momentum averages the difference over steps, which
    is a state of the sampler that no field has.
    """

    eta: float = 0.0
    norm: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", number(self.eta, "eta", 0.0, 1.0))
        if isinstance(self.norm, bool) or not isinstance(self.norm, int | float) or not self.norm > 0:
            raise ArgumentError(f"norm must be a positive length, in the unit of the data, got {self.norm!r:.60}")

    @property
    @override
    def within(self) -> Prediction | None:
        return "denoised"

    @override
    def mixed(self, conditional: Tensor, unconditional: Tensor, weight: Scalar) -> Tensor:
        along = conditional.flatten(1)
        gap = along - unconditional.flatten(1)
        size = gap.norm(dim=1, keepdim=True)
        gap = torch.where(size > self.norm, gap * (self.norm / size.clamp(min=1e-300)), gap)
        square = along.square().sum(1, keepdim=True)
        # A conditional answer at 0 has no direction, and all of the difference lies across.
        parallel = (gap * along).sum(1, keepdim=True) / square.clamp(min=1e-300) * along
        moved = ((gap - parallel) + self.eta * parallel).reshape(conditional.shape)
        return conditional + (weight - 1) * moved
