"""Rows of a batch in chunks, and the parameters of a mixture in the dtype and on the device of a computation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.targets.components import Components, Isotropic, Level
from diffode.targets.differences import Differences
from diffode.targets.target import Scalar


@dataclass(frozen=True)
class Parameters:
    """Centred components, and the centre that was subtracted: in the dtype of a computation, and in float64."""

    components: Components
    centre: Tensor
    exact_centre: Tensor


@dataclass(frozen=True)
class Chunk:
    """Some rows of a batch, ready to be evaluated: their span, centred points, the centre, their level, and the form."""

    span: tuple[int, int]
    x: Tensor
    centre: Tensor
    at: Level
    form: Components | Differences
    attends: bool = False

    @property
    def responsibilities(self) -> Tensor:
        """Posterior probabilities of the components, (K, b)."""
        return self.form.logits(self.x, self.at).softmax(0)

    def view(self, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], (b, D), of data less the centre; p and g are numbers, or (b,)."""
        if self.attends and isinstance(self.form, Isotropic):
            return self.form.attended_view(self.x, self.at, p, g)
        return self.form.view(self.x, self.responsibilities, self.at, p, g)


def less(x: Tensor, centre: Tensor, far: bool) -> Tensor:
    """x minus a float64 centre, (D,) or (b, D), in the dtype of x, rounded only once even if the centre is ``far`` from 0."""
    high = centre.to(x.dtype)
    rest = x - high
    # The first difference, of numbers that are near each other, is exact; the rounding error of the centre goes off second.
    return rest.sub_((centre - high).to(x.dtype)) if far and x.dtype != centre.dtype else rest


def joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """The chunks' answers as one tensor of the batch's dtype; ``like`` itself for an empty batch."""
    if not parts:
        return like
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(like.dtype)
