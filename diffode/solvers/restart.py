r"""Restart sampling: a deterministic run that goes back up, with fresh noise, over an interval of levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from typing_extensions import override

from diffode import grids
from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.solvers.runge_kutta import add_step
from diffode.solvers.solver import TableSolver
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class Restart(TableSolver):
    r"""Heun's method in rho that restarts ``repeats`` times at the level nearest to ``low``: it adds noise up to the level
    ``high`` and comes down again in ``inner`` steps.

    Going up is exact: :math:`x/\alpha` gains noise of variance :math:`\rho_{high}^2 - \rho_{low}^2`. The levels down are linear
    in the 7th root of rho, as in EDM. Levels are sigma/alpha. The defaults are those published for CIFAR-10, except for
    ``inflation``, a factor of the noise, which is 1.003 there. A grid without a level below ``high`` has no restart.

    A finer grid improves the main run, but not the restarts, which always have ``inner`` steps.
    """

    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    inner: int = 2
    inflation: float = 1.0

    name = "restart"
    chart_name = "noise"
    reference = "Xu, Deng, Cheng, Tian, Liu, Jaakkola, arXiv 2306.14878, algorithm 1 and table 3; the authors' code"
    order = 2
    nfe_per_step = 2

    def __post_init__(self) -> None:
        for name in ("low", "high", "inflation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ArgumentError(f"{name} must be a number > 0, got {value!r}")
        if self.low >= self.high:
            raise ArgumentError(f"low must be below high, got {self.low!r} and {self.high!r}")
        for name, least in (("repeats", 0), ("inner", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ArgumentError(f"{name} must be an integer >= {least}, got {value!r:.40}")
        if self.repeats * self.inner > grids.MOST_STEPS:
            raise ArgumentError(
                f"repeats times inner must be <= {grids.MOST_STEPS}, the steps of a restart, "
                f"got {self.repeats!r:.40} and {self.inner!r:.40}"
            )

    @property
    @override
    def convergence_order(self) -> int:
        return 0 if self.repeats else 2

    @property
    @override
    def stochastic(self) -> bool:
        return self.repeats > 0

    @override
    def plans(self, nfe: int) -> Iterator[tuple[TableSolver, int]]:
        # The restarts cost the same for every number of steps.
        for steps in range(1, nfe + 3):
            yield self, steps

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        path, x = chart.path, table.start
        again = self._nearest(path, times)
        for number, t in enumerate(times[1:], start=1):
            x = self._heun(table, chart, x, t)
            if number == again:
                for _ in range(self.repeats):
                    x = self._restarted(table, chart, x, t)
            table.output(x)

    def _nearest(self, path: Path, times: Sequence[float]) -> int | None:
        """The index of the grid's time at which the run restarts, neither the first nor at sigma = 0; None if there is none."""
        levels = [(abs(path.rho(t) - self.low), i) for i, t in enumerate(times) if i and 0 < path.rho(t) < self.high]
        return min(levels)[1] if levels else None

    def _restarted(self, table: Writer, chart: Chart, x: int, t: float) -> int:
        path = chart.path
        low, high = path.rho(t), self.high
        top = path.time_from_rho(high)
        alpha = path.alpha(top)
        spread = alpha * self.inflation * math.sqrt((high - low) * (high + low))
        x = table.add(top, {x: alpha / path.alpha(t)}, {}, {table.draw(): spread})
        first, last = high ** (1 / 7), low ** (1 / 7)
        between = [path.time_from_rho((first + i / self.inner * (last - first)) ** 7) for i in range(1, self.inner)]
        for end in (*between, t):
            x = self._heun(table, chart, x, end)
        return x

    def _heun(self, table: Writer, chart: Chart, x: int, t: float) -> int:
        euler = add_step(table, chart, x, t, (x,), (1.0,))
        return euler if chart.ends_singular(t) else add_step(table, chart, x, t, (x, euler), (0.5, 0.5))
