"""The levels of a solver that knows the data: one that jumps, whose level is free as well, or one in their Gaussian's chart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.parameters import from_shares, to_shares
from diffode.learned.grids.free_levels import FreeLevels
from diffode.solvers import WritesTable
from diffode.solvers.jumped import Jumped
from diffode.statistics import Statistics
from diffode.tableau import Tableau


@dataclass(frozen=True)
class InformedLevels(FreeLevels):
    """The levels of a table, with the attributes of :class:`FreeLevels` and these.

    Attributes:
        solver: the solver as it was asked for, told of the data.
    """

    solver: WritesTable

    @property
    @override
    def name(self) -> str:
        return self.solver.spec

    @property
    @override
    def jumps(self) -> bool:
        return isinstance(self.solver, Jumped)

    def runner(self, values: Tensor) -> WritesTable:
        """The solver whose jump leads to the first free level."""
        if not isinstance(self.solver, Jumped):
            return self.solver
        first, last = self.ends
        return replace(self.solver, jump=covering(float(from_shares(values, first, last)[1]), first, self.statistics))

    def table(self, values: Tensor) -> Tableau:
        """The table for its free numbers."""
        return self.runner(values).tableau(self.path, self.times(values))

    @override
    def end(self, values: Tensor, problem: Problem) -> Tensor:
        return ended(self.table(values), self.field, problem)

    @override
    def own(self, grid: str) -> Tensor | None:
        times = self.solver.tableau(self.path, grid, self.steps).output_times.tolist()
        if len(times) != self.steps + 1 + self.jumps:
            return None
        return to_shares(torch.tensor([self.path.rho(t) for t in times], dtype=torch.float64))


def covering(level: float, first: float, statistics: Statistics) -> float:
    """A jump, in largest deviations, of four digits where that fits, to a level or little above it, below the first one."""
    wanted = level / max(statistics.largest, 1e-300)
    unit = 10.0 ** (3 - math.floor(math.log10(wanted)))
    rounded = math.ceil(wanted * unit * (1 + 1e-9)) / unit
    return rounded if rounded * statistics.largest < first else wanted * (1 + 1e-9)


def ended(table: Tableau, field: Field, problem: Problem) -> Tensor:
    """The ends x/alpha (B, D) of runs of a table from a problem's starts."""
    if table.path is None:
        raise ArgumentError("a table without a path has no noise levels")
    first, last = (table.path.alpha(t) for t in table.ends)
    with torch.no_grad():
        return (table.run(field, problem.start * first) / last).flatten(1)
