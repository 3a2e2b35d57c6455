"""The optimisers of a training: Adam, or Muon for matrices with Adam for the rest.

PyTorch's own Muon orthogonalises in bfloat16, which takes ten times as long on CPUs without matrix units for it as the few
products of float32 here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

#: Rate of Muon as a multiple of Adam's.
_MUON_RATE = 2.5
#: Decays of Adam's two averages.
_BETAS = (0.9, 0.99)
#: Coefficients of the quintic iteration that orthogonalises, and its number of steps (K. Jordan et al., 2024).
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_SMALL = 1e-8
#: Kinds of optimisers.
OPTIMISERS = ("adam", "muon")


class Optimisers:
    """One optimiser, or two that share the parameters; ``all`` of them.

    Args:
        parameters: the network's.
        kind: one of ``OPTIMISERS``: ``adam``, or ``muon`` for matrices and Adam for all others.
        rate: Adam's rate.
        weigher: parameters of a learned weight, Adam's too.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], kind: str, rate: float, weigher: Iterable[nn.Parameter] = ()):
        matrices = [p for p in parameters if kind != "adam" and p.ndim == 2 and min(p.shape) > 1]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        self.all: list[torch.optim.Optimizer] = [torch.optim.Adam([*rest, *weigher], lr=rate, betas=_BETAS)]
        if matrices:
            self.all.append(Muon(matrices, _MUON_RATE * rate))
        self._rates = [float(one.param_groups[0]["lr"]) for one in self.all]
        self._parameters = list(parameters)

    def step(self, loss: Tensor, share: float, largest: float) -> None:
        """A step down a loss, with a share of the first rate and the gradient cut to a norm."""
        for one, rate in zip(self.all, self._rates, strict=True):
            one.zero_grad()
            one.param_groups[0]["lr"] = rate * share
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, largest)
        for one in self.all:
            one.step()


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal (K. Jordan et al., 2024), for matrices."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @override
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients at hand."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(0.95).add_(p.grad, alpha=0.05)
                ahead = p.grad.lerp(mean, 0.95)
                p.add_(orthogonal(ahead), alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with singular values near 1 and the singular vectors of another, by a quintic Newton-Schulz iteration."""
    flip = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if flip else matrix
    x = x / (x.norm() + _SMALL)
    first, second, third = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = first * x + (second * square + third * square @ square) @ x
    found: Tensor = x.T if flip else x
    return found
