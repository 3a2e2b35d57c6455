r"""The optimisers of a training: Adam, Muon or SOAP for matrices, with Adam for the rest.

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
#: Decay of SOAP's factors, and number of steps after which their bases are turned.
_FACTOR_DECAY, _TURN = 0.95, 20
#: Coefficients of the quintic iteration that orthogonalises, and its number of steps (K. Jordan et al., 2024).
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_SMALL = 1e-8
#: Kinds of optimisers.
OPTIMISERS = ("adam", "muon", "soap")


class Optimisers:
    """One optimiser, or two that share the parameters; ``all`` of them.

    Args:
        parameters: the network's.
        kind: one of ``OPTIMISERS``: ``adam``; ``muon`` for matrices, or ``soap`` for them, and Adam for all others.
        rate: Adam's rate.
        weigher: parameters of a learned weight, Adam's too.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], kind: str, rate: float, weigher: Iterable[nn.Parameter] = ()):
        matrices = [p for p in parameters if kind != "adam" and p.ndim == 2 and min(p.shape) > 1]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        self.all: list[torch.optim.Optimizer] = [torch.optim.Adam([*rest, *weigher], lr=rate, betas=_BETAS)]
        if matrices:
            self.all.append(Muon(matrices, _MUON_RATE * rate) if kind == "muon" else SOAP(matrices, rate))
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


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's factors (Vyas et al., arXiv 2409.11321, algorithm 3), for matrices."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @override
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients at hand."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._one(p, p.grad, group["lr"])

    def _one(self, p: nn.Parameter, gradient: Tensor, rate: float) -> None:
        state, factors = self.state[p], (gradient @ gradient.T, gradient.T @ gradient)
        if not state:
            # The first gradient only begins the factors, as in the authors' program.
            state.update(
                number=torch.zeros((), dtype=torch.int64),
                factors=list(factors),
                mean=torch.zeros_like(p),
                square=torch.zeros_like(p),
            )
            state["bases"] = [torch.linalg.eigh(factor)[1].contiguous() for factor in factors]
            return
        state["number"] += 1
        for known, factor in zip(state["factors"], factors, strict=True):
            known.lerp_(factor, 1 - _FACTOR_DECAY)
        left, right = state["bases"]
        turned = left.T @ gradient @ right
        state["mean"].lerp_(gradient, 1 - _BETAS[0])
        state["square"].lerp_(turned.square(), 1 - _BETAS[1])
        number = int(state["number"])
        mean = (left.T @ state["mean"] @ right) / (1 - _BETAS[0] ** number)
        size = (state["square"] / (1 - _BETAS[1] ** number)).sqrt() + _SMALL
        p.add_(left @ (mean / size) @ right.T, alpha=-rate)
        if number % _TURN == 0:
            state["bases"] = [
                torch.linalg.qr(factor @ basis)[0].contiguous()
                for factor, basis in zip(state["factors"], state["bases"], strict=True)
            ]
