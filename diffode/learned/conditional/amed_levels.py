"""The levels of an AMED that jumps, before its predictor is trained, and where in a step its inner times lie."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from diffode import grids
from diffode.learned.conditional.amed import LearnedAMED
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.parameters import to_shares
from diffode.learned.grids.free_levels import FreeLevels
from diffode.solvers.jumped import landing

#: Shares r of a step in log rho at which all its inner times lie when a training begins.
_SHARES = (0.5, 0.3)


@dataclass(frozen=True)
class AmedLevels(FreeLevels):
    """Free numbers of an AMED's levels, and the logit of r, one for all steps and samples before the predictor is trained.

    With the attributes of :class:`FreeLevels` and these.

    Attributes:
        untrained: the AMED, of any times, whose predictor answers with the middle of its ranges.
        jump: the jump as it was asked for.
    """

    untrained: LearnedAMED
    jump: float | str

    @property
    @override
    def name(self) -> str:
        return self.untrained.spec

    @property
    @override
    def jumps(self) -> bool:
        return True

    def solver(self, values: Tensor) -> LearnedAMED:
        """The AMED on the levels of its free numbers, with a predictor of its own that answers with their r."""
        predictor = copy.deepcopy(self.untrained.predictor)
        with torch.no_grad():
            predictor.heads.bias[0] = values[-1]
        return replace(self.untrained, predictor=predictor, times=tuple(self.times(values[:-1])))

    @override
    def end(self, values: Tensor, problem: Problem) -> Tensor:
        first, last = self.path.alpha(self.path.t_max), self.path.alpha(self.path.t_min)
        with torch.no_grad():
            end = self.solver(values).run(self.field, problem.start * first)[-1]
        return (end / last).flatten(1)

    @override
    def own(self, grid: str) -> Tensor | None:
        time = landing(self.jump, self.statistics, self.path, self.untrained.nfe, None)
        if not self.path.t_min < time < self.path.t_max:
            return None
        laid = grids.get(grid, self.path.between(time, self.path.t_min), self.steps).tolist()
        levels = [self.path.rho(t) for t in (self.path.t_max, *laid)]
        return self._with(to_shares(torch.tensor(levels, dtype=torch.float64)), _SHARES[0])

    @override
    def others(self) -> Iterator[Tensor]:
        yield from itertools.starmap(self._with, itertools.product(super().others(), _SHARES))

    def _with(self, levels: Tensor, share: float) -> Tensor:
        return torch.cat([levels, levels.new_tensor([math.log(share / (1 - share))])])
