"""Training in the chart of the data's Gaussian: a problem in its coordinates, and a table whose first level is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.parameters import Table
from diffode.learned.fitting.trajectory import Trajectory
from diffode.statistics import Statistics
from diffode.tableau.gaussian_stages import START, deviation_function, landed
from diffode.tableau.stages import NoiseFunction

#: Highest share of the first level at which a level may lie: a level and those a step of a central difference above it are to
#: be below the start's.
HIGHEST = START * (1 - 1e-4)


def in_chart(problem: Problem, field: Field, statistics: Statistics) -> Problem:
    """The same starts and ends as points w where the Gaussian's flow would land, of which the errors are the same."""
    first, last = problem.first * problem.unit, problem.last * problem.unit
    deviation = deviation_function(field, statistics, first, last, tuple(problem.start.shape[1:]))
    return replace(
        problem,
        noise=deviation,
        start=landed(statistics, problem.start, first, last),
        end=landed(statistics, problem.end, last, last),
        trajectory=problem.trajectory and _landed_flow(problem.trajectory, statistics, deviation, last),
        landed=True,
    )


@torch.no_grad()
def _landed_flow(flow: Trajectory, statistics: Statistics, deviation: NoiseFunction, last: float) -> Trajectory:
    """The exact flow of w."""
    levels = flow.levels.exp().tolist()
    states = [landed(statistics, z, level, last) for z, level in zip(flow.states, levels, strict=True)]
    rates = [level * deviation(w, level) for w, level in zip(states, levels, strict=True)]
    return Trajectory(flow.levels, torch.stack(states), torch.stack(rates))


@dataclass(frozen=True)
class ChartTable(Table):
    """The numbers of a table in the Gaussian's chart: all levels below the start, weights, and scales but that of the jump.

    ``origin`` has one evaluation more than are made, that of the start, which no row uses.
    """

    @override
    def _free(self) -> Tensor:
        free = super()._free()
        nfe = self.origin.nfe
        _, columns = torch.tril_indices(nfe, nfe)
        free[0] = False
        free[nfe : nfe + len(columns)] &= columns > 0
        return free

    @override
    def confined(self, values: Tensor, first: float, last: float) -> Tensor:
        return super().confined(values, HIGHEST * first, last)
