"""The loss of some residuals: their norms, weighted, and the weights that are learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffode.learned.maps.residuals import Term
from diffode.maps.networks import FEATURES, features

#: The norms: squares; distances; pseudo-Huber (iCT); squares over themselves (MeanFlow); squares with a learned weight.
NORMS = ("squared", "distance", "huber", "adaptive", "learned")
#: Constant of the pseudo-Huber distance, for coordinates of variance 1 (iCT, arXiv 2310.14189).
_HUBER = 0.00054
#: Constant of the adaptive weight of MeanFlow (arXiv 2505.13447).
_ADAPTIVE = 0.01
#: Largest logarithm of a learned weight, and its negative the smallest.
_MOST_WEIGHT = 10.0
#: Width of the network of learned weights.
_WIDTH = 32


def weigher() -> nn.Module:
    """A network of two angles for the logarithms of learned weights (arXiv 2505.18825; Karras et al., arXiv 2312.02696)."""
    return nn.Sequential(nn.Linear(FEATURES, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 1))


def loss_of(terms: Sequence[Term], norm: str, power: float, weights: nn.Module | None) -> Tensor:
    """The mean of the norms of all rows; ``power`` is that of the adaptive weight, ``weights`` the network of learned ones."""
    rows = sum(len(term.residual) for term in terms)
    return torch.stack([_distances(term, norm, power, weights).sum() / rows for term in terms]).sum()


def _distances(term: Term, norm: str, power: float, weights: nn.Module | None) -> Tensor:
    """Weighted distances (B,), per coordinate."""
    square = term.residual.square().mean(1)
    if norm == "distance":
        found = (square + 1e-12).sqrt()
    elif norm == "huber":
        found = (square + _HUBER**2).sqrt() - _HUBER
    elif norm == "adaptive":
        found = square / (square.detach() + _ADAPTIVE) ** power
    elif norm == "learned" and term.span is not None and weights is not None:
        level = weights(features(*term.span))[:, 0].clamp(-_MOST_WEIGHT, _MOST_WEIGHT)
        found = (-level).exp() * square + level
    else:
        found = square
    result: Tensor = term.weight * found
    return result
