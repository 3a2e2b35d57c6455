"""Recipes that run in a chart of choice, those of the data's Gaussian among them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Self

from typing_extensions import override

from diffode.charts import Chart, charts
from diffode.errors import ArgumentError
from diffode.gaussian_charts import gaussian_charts
from diffode.paths import Path
from diffode.solvers.solver import TableSolver
from diffode.statistics import Statistics

#: The names of all charts.
CHARTS = (*charts, *gaussian_charts)


@dataclass(frozen=True, kw_only=True)
class InChart(TableSolver):
    """A recipe whose option ``chart`` names the chart; ``statistics`` are those of the data, for charts of their Gaussian."""

    statistics: Statistics | None = field(default=None, init=False, repr=False, compare=False)

    @property
    @override
    def needs_statistics(self) -> bool:
        return super().needs_statistics or (self.chart_name in gaussian_charts and self.statistics is None)

    @override
    def knowing(self, statistics: Statistics) -> Self:
        if self.chart_name not in gaussian_charts:
            return self
        told = copy.copy(self)
        object.__setattr__(told, "statistics", statistics)
        return told

    @override
    def content(self) -> str:
        return super().content() + ("" if self.statistics is None else self.statistics.content)

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        if self.chart_name not in gaussian_charts:
            return super().chart_on(path)
        if self.statistics is None:
            raise ArgumentError(
                f"chart {self.chart_name!r} needs statistics of the data: diffode.solvers.informed(solver, ...)"
            )
        return gaussian_charts[self.chart_name](path, self.statistics, getattr(self, "eta", 0.0))
