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

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.errors import FieldError
from diffode.tableau.stages import NoiseFunction, Stages

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
        return torch.stack([self._backwards(directions[:, k], last) for k in range(directions.shape[1])], dim=1)

    def _backwards(self, direction: Tensor, last: int) -> Tensor:
        stages, count = self.stages, self.stages.nfe
        adjoint = direction
        none = direction.new_zeros(len(direction))
        pulled = [torch.zeros_like(direction) for _ in range(count)]
        by_scale: list[Tensor] = [none] * count
        by_weight: list[list[Tensor]] = [[none] * (i + 1) for i in range(count)]
        by_level: list[Tensor] = [none] * (count - 1)
        for i in range(last, -1, -1):
            by_scale[i] = (adjoint * self.start).sum(1)
            for j in range(i + 1):
                by_weight[i][j] = (adjoint * self.evaluations[j]).sum(1)
                pulled[j] = pulled[j] + float(stages.weights[i, j]) * adjoint
            if i:
                by_level[i - 1] = (pulled[i] * self._rates[i - 1]).sum(1)
                (back,) = torch.autograd.grad(
                    self._answers[i - 1], self._points[i - 1], pulled[i].reshape(self._shape), retain_graph=True
                )
                adjoint = back.flatten(1)
        return torch.stack([*by_scale, *(g for row in by_weight for g in row), *by_level], dim=1)
