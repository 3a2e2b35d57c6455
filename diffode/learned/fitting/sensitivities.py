r"""Exact derivatives of a sampler's output by its numbers, for each sample, by one backward pass.

For a direction s in the output space of a sample the adjoint states are :math:`\lambda_N = s`,
:math:`\bar e_j = \sum_{i>j} b_{ij}\lambda_i` and :math:`\lambda_j = (\partial e_j/\partial z_j)^T \bar e_j`, and

.. math::
    \frac{\partial\,(s\cdot z_N)}{\partial c_i} = \lambda_i\cdot z_0, \qquad
    \frac{\partial\,(s\cdot z_N)}{\partial b_{ij}} = \lambda_i\cdot e_j, \qquad
    \frac{\partial\,(s\cdot z_N)}{\partial\log\rho_j} = \bar e_j\cdot\frac{\partial e_j}{\partial\log\rho}.

The field is differentiated in z by autograd; its derivative in the level is a central difference, so a field need not be
differentiable in time.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.errors import FieldError
from diffode.tableau.stages import NoiseFunction, Stages, count_of

#: Step of the central difference in log rho, near the cube root of the precision, where rounding and truncation balance.
_LEVEL_STEP = {torch.float64: 1e-5, torch.float32: 1e-2}


class Sensitivities(NamedTuple):
    """``end`` (B, D) the output, ``gradients`` (B, S, P) of s . z_N for S directions, in the order c, b row by row, log rho."""

    end: Tensor
    gradients: Tensor


class Recording:
    """A run of a sampler, with all that the backward pass needs; directions may be chosen after looking at ``end``."""

    def __init__(self, noise: NoiseFunction, start: Tensor, stages: Stages):
        self.stages, self.start, self._shape = stages, start.flatten(1), start.shape
        self._noise, self._step = noise, _LEVEL_STEP[start.dtype]
        self._points: list[Tensor] = []
        self._answers: list[Tensor] = []
        self._rates: list[Tensor] = []
        self._inner: list[Tensor] = []
        self.evaluations: list[Tensor] = []
        self.end = stages.run(self._asked, start).detach().flatten(1)

    def _asked(self, z: Tensor, level: float) -> Tensor:
        """The noise prediction; its graph in z and its rate in log rho are kept, except at the start, where both are unused."""
        if not self.evaluations:
            answer = self._noise(z, level)
        else:
            point = z.detach().requires_grad_(True)
            with torch.enable_grad():
                answer = self._noise(point, level)
            if not answer.requires_grad:
                raise FieldError("the field can't be differentiated: its answer has no gradient in x")
            step = self._step
            with torch.no_grad():
                later, earlier = self._noise(z, level * math.exp(step)), self._noise(z, level * math.exp(-step))
            self._inner.append(z.detach().flatten(1))
            self._points.append(point)
            self._answers.append(answer)
            self._rates.append(((later - earlier) / (2 * step)).flatten(1))
        self.evaluations.append(answer.detach().flatten(1))
        return answer.detach()

    def state(self, row: int) -> Tensor:
        """The state z_(row + 1), (B, D); that of the last row is the output."""
        return self.end if row == self.stages.nfe - 1 else self._inner[row]

    def gradients(self, directions: Tensor, row: int | None = None) -> Tensor:
        """Derivatives (B, S, P) of s . z for directions s (B, S, D), where z is the output, or the state of ``row``."""
        last = self.stages.nfe - 1 if row is None else row
        # With the samples last, sums over few coordinates run along them, and all directions are summed at once.
        return self._backwards(directions.permute(2, 1, 0).contiguous(), last).permute(2, 1, 0)

    def _backwards(self, adjoint: Tensor, last: int) -> Tensor:
        """Derivatives (P, S, B) for directions (D, S, B) of the state of a row."""
        stages, count = self.stages, self.stages.nfe
        start, evaluations, rates = self._samples_last
        found = adjoint.new_zeros(count_of(count), *adjoint.shape[1:])
        by_scale, by_weight, by_level = found.split([count, count * (count + 1) // 2, count - 1])  # type: ignore[no-untyped-call]
        pulled: list[Tensor] = []
        for i in range(last, -1, -1):
            torch.sum(adjoint * start, 0, out=by_scale[i])
            if not pulled:
                pulled = [torch.zeros_like(adjoint) for _ in range(i + 1)]
            for j in range(i + 1):
                torch.sum(adjoint * evaluations[j], 0, out=by_weight[i * (i + 1) // 2 + j])
                pulled[j].add_(adjoint, alpha=float(stages.weights[i, j]))
            if i:
                torch.sum(pulled[i] * rates[i - 1], 0, out=by_level[i - 1])
                adjoint = torch.stack([self._pulled_back(i - 1, one) for one in pulled[i].unbind(1)], dim=1)
        return found

    def _pulled_back(self, j: int, pull: Tensor) -> Tensor:
        """The transposed derivative of an evaluation in z, applied to (D, B)."""
        (back,) = torch.autograd.grad(
            self._answers[j], self._points[j], pull.T.reshape(self._shape).contiguous(), retain_graph=True
        )
        return back.flatten(1).T

    @functools.cached_property
    def _samples_last(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The start, the evaluations and the rates as (D, 1, B), contiguous."""
        start, *others = (part.T.contiguous()[:, None] for part in (self.start, *self.evaluations, *self._rates))
        return start, others[: len(self.evaluations)], others[len(self.evaluations) :]
