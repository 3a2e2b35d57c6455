"""Deterministic solvers run from data to noise: inversion, or encoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from typing_extensions import override

from diffode import grids
from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.solvers.solver import Solver, TableSolver
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class Upwards(TableSolver):
    """A solver that takes the steps of a grid from its last time to its first, from data to noise.

    With ``ddim`` it is DDIM inversion (Song, Meng, Ermon, arXiv 2010.02502, section 4.3; Mokady et al., arXiv 2211.09794,
    equation 3). The table is the solver's own for rising times, so that it has the same order in both directions, and a run up
    and down again returns to its start up to the error of both. ``diffode.solve(..., upwards=True)`` makes one.

    >>> import diffode
    >>> table = Upwards(solver=diffode.solvers.get("ddim")).tableau(diffode.paths.get("edm"), "karras", 2)
    >>> [round(t, 3) for t in table.times.tolist()]
    [0.002, 2.515, 80.0]
    """

    solver: TableSolver

    name = "upwards"
    reference = "the solver's own"

    def __post_init__(self) -> None:
        that_runs_upwards(self.solver)

    @property
    @override
    def spec(self) -> str:
        return f"{self.solver.spec} upwards"

    @property
    @override
    def order(self) -> int | None:
        return self.solver.order

    @property
    @override
    def convergence_order(self) -> int | None:
        return self.solver.convergence_order

    @property
    @override
    def nfe_per_step(self) -> int:
        return self.solver.nfe_per_step

    @property
    @override
    def chart_name(self) -> str:
        return self.solver.chart_name

    @override
    def content(self) -> str:
        return self.solver.content()

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        return self.solver.chart_on(path)

    @override
    def for_field(self, scale: float, dim: int) -> Self:
        return replace(self, solver=self.solver.for_field(scale, dim))

    def times_on(self, path: Path | None, grid: grids.Times, steps: int | None) -> list[float]:
        """The times of a grid, which goes from noise to data, in reverse."""
        return super().times_on(path, grid, steps)[::-1]

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        self.solver.write(table, chart, times)

    @override
    def plans(self, nfe: int) -> Iterator[tuple[TableSolver, int]]:
        for candidate, steps in self.solver.plans(nfe):
            yield Upwards(solver=candidate), steps


def that_runs_upwards(solver: Solver) -> TableSolver:
    """The solver itself, if it runs upwards; ArgumentError that says why not otherwise."""
    if solver.stochastic:
        why = "draws noise"
    elif not isinstance(solver, TableSolver) or solver.lays_steps:
        why = "lays its own steps or follows the field itself"
    elif solver.analytic_first_step:
        why = "replaces an evaluation at the noise end"
    else:
        return solver
    raise ArgumentError(
        f"solver {solver.spec!r} {why}, so it can't run upwards; choose a deterministic one that writes a table, "
        "such as 'ddim' or 'dpmpp:order=2', or follow the exact flow with diffode.reference"
    )
