"""The writer of tables, which solvers use."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Prediction
from diffode.paths import Path
from diffode.statistics import Statistics
from diffode.tableau.rows import Coefficients, Number, Row
from diffode.tableau.table import Tableau


class Writer:
    """Collects the rows that a solver writes; ``start`` is row 0, at the grid's first time."""

    def __init__(self, prediction: Prediction, start_time: float):
        self.prediction: Prediction = prediction
        self.rows = [Row(start_time)]
        self.outputs = [0]
        self.spans: list[tuple[float, float] | None] = []

    start = 0

    def time(self, row: int) -> float:
        """The time of a row that is the same for all rows of a batch; ArgumentError for another."""
        time = self.rows[row].time
        if isinstance(time, Tensor):
            raise ArgumentError(f"row {row} was written at a time for every row of the batch, not at one for all")
        return time

    def add(self, time: Number, states: Coefficients, evaluations: Coefficients, draws: Coefficients | None = None) -> int:
        """Append a state and return its row."""
        self.rows.append(Row(time, states, evaluations, draws) if draws else Row(time, states, evaluations))
        return len(self.rows) - 1

    def draw(self, span: tuple[float, float] | None = None) -> int:
        """The index of a new noise draw; ``span`` is its interval of the noise clock, the smaller end first."""
        self.spans.append(span)
        return len(self.spans) - 1

    def noised(self, row: int, time: float, scale: float, spread: float, span: tuple[float, float] | None = None) -> int:
        """Turn the last row into ``scale`` times itself plus ``spread`` times a new draw, at another time."""
        last = self.rows.pop()
        self.add(
            time,
            {j: scale * a for j, a in last.states.items()},
            {j: scale * b for j, b in last.evaluations.items()},
            {self.draw(span): spread} if spread else None,
        )
        return row

    def output(self, row: int) -> int:
        """Mark a row as the solution at its time."""
        self.outputs.append(row)
        return row

    def finish(self, path: Path | None, solver: str, statistics: Statistics | None = None) -> Tableau:
        """The finished table, without rows that nothing uses and without zero coefficients of evaluations."""
        rows = [without_zeros(row) for row in self.rows]
        spans = tuple(span for span in self.spans if span)
        known = len(spans) == len(self.spans)
        return Tableau(self.prediction, tuple(rows), tuple(self.outputs), path, solver, spans if known else (), statistics)


def without_zeros(row: Row) -> Row:
    """The row without zero coefficients of evaluations: itself, if it has none."""
    if row.plain and all(row.evaluations.values()):
        return row
    used = {j: v for j, v in row.evaluations.items() if isinstance(v, Tensor) or v != 0}
    return row if len(used) == len(row.evaluations) else replace(row, evaluations=used)
