"""What a solver is: a recipe that writes a tableau for a path and a grid."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from diffode import charts, grids
from diffode.charts import Chart
from diffode.errors import ArgumentError, BudgetError
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.specs import format_spec, options_of
from diffode.tableau import Tableau, Writer

LowerOrderFinal = Literal["always", "below_10", "never"]


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A published sampler with its options.

    To add one, subclass it as a frozen dataclass whose fields are the options, say which ``chart`` it works in, give its
    ``order``, ``nfe_per_step`` and ``reference``, write the rows in :meth:`write`, and call
    ``diffode.solvers.register(name, cls)``. Options are checked in ``__post_init__``.
    """

    #: Replace the first evaluation by that of standard normal data: one evaluation less, first order.
    analytic_first_step: bool = False

    #: The registered name.
    name: ClassVar[str]
    #: Where it was published: authors, identifier, equation or algorithm.
    reference: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "name"):
            # A class that is named by its place was never registered under a name.
            cls.name = cls.__name__

    def __post_init__(self) -> None:
        """Check the options; subclasses that have some override it."""
        return

    @property
    def spec(self) -> str:
        """The spec that rebuilds this solver."""
        return format_spec(self.name, options_of(self))

    @property
    @abstractmethod
    def order(self) -> int:
        """The order its authors claim; an option where a family has several."""

    @property
    def convergence_order(self) -> int:
        """The order of convergence it has (its noise-free limit, if it draws noise), without lower final orders or an
        analytic first step.
        """
        return self.order

    def order_on(self, grid: grids.Times) -> int:
        """``convergence_order`` on a family of grids, for solvers whose order depends on it."""
        return self.convergence_order

    @property
    def nfe_per_step(self) -> int:
        """Evaluations a full step costs."""
        return 1

    @property
    @abstractmethod
    def chart_name(self) -> str:
        """The chart it works in."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return False

    def chart_on(self, path: Path | str | None) -> Chart:
        """Its chart for a path or its spec."""
        return charts.get(self.chart_name, path)

    def content(self) -> str:
        """A hash of what its spec does not say, such as the numbers of a file it reads."""
        return ""

    def for_field(self, scale: float, dim: int) -> Solver:
        """The solver for data of this scale (root mean variance) and dimension: itself, unless it works in these."""
        return self

    @abstractmethod
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        """Append the rows for these grid times (``table.start`` is at ``times[0]``), marking each with ``table.output``."""

    def times_on(self, path: Path | None, grid: grids.Times, steps: int | None) -> list[float]:
        """The times of a grid, in the order in which a run goes through them."""
        times: list[float] = grids.get(grid, path, steps).tolist()
        return times

    def tableau(self, path: Path | str | None, grid: grids.Times, steps: int | None = None) -> Tableau:
        """The table for a path (or its spec) and a grid (times, or a spec with ``steps``).

        Raises ArgumentError if the solver's chart needs a path and there is none, or if the chart is singular on the grid.
        """
        check_choice("analytic_first_step", self.analytic_first_step, (True, False))
        path = None if path is None else get_path(path)
        times = self.times_on(path, grid, steps)
        chart = self.chart_on(path)
        table = Writer(chart.prediction, times[0])
        try:
            self.write(table, chart, times)
            finished = table.finish(path, self.spec)
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            if isinstance(error, ArgumentError) and "non-finite" not in str(error):
                raise
            raise ArgumentError(
                f"solver {self.spec!r} is singular on this grid ({times[0]:g} to {times[-1]:g}) in its chart "
                f"{chart.name!r}: alpha must not vanish at the first time, nor sigma before the last"
            ) from error
        return finished.analytic_first_step() if self.analytic_first_step else finished

    def within(self, path: Path | str | None, grid: grids.Times, nfe: int) -> Tableau:
        """The largest run on a named grid, or the run on the times of a list, that costs at most ``nfe`` evaluations.

        Raises BudgetError, which says what budgets are possible, if not even the smallest run fits.
        """
        check_budget(nfe)
        path = None if path is None else get_path(path)
        if not grids.is_named(grid):
            table = self.tableau(path, grid)
            if table.nfe > nfe:
                raise BudgetError(
                    f"the grid lists its own times, on which {self.spec!r} costs {table.nfe} evaluations, more than nfe={nfe}"
                )
            return table
        best = None
        for candidate, steps in self.plans(nfe):
            table = candidate.tableau(path, grid, steps)
            if table.nfe <= nfe:
                best = table
            if table.nfe >= nfe:
                break
        if best is not None:
            return best
        larger = (next(iter(self.plans(budget))) for budget in range(nfe + 1, nfe + 4 * self.nfe_per_step + 1))
        possible = sorted({candidate.tableau(path, grid, steps).nfe for candidate, steps in larger})
        raise BudgetError(
            f"no run of {self.spec!r} on grid {grid!r} fits nfe={nfe}; "
            f"possible budgets: {', '.join(map(str, possible[:5]))}, ..."
        )

    def plans(self, nfe: int) -> Iterator[tuple[Solver, int]]:
        """Runs to try for a budget, smallest first: a solver (perhaps with options set) and a number of steps.

        The cost grows with every plan, so the search ends at the first that spends the budget.
        """
        for steps in range(max(1, nfe // self.nfe_per_step), nfe + 3):
            yield self, steps


@dataclass(frozen=True, kw_only=True)
class WithNoise(Solver):
    """A solver whose option ``eta`` >= 0 scales the noise it draws; at 0 it is deterministic."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float) or not 0 <= self.eta < math.inf:
            raise ArgumentError(f"eta must be a number >= 0 (0 adds no noise), got {self.eta!r}")

    @property
    @override
    def stochastic(self) -> bool:
        return self.eta > 0


def steps_of(times: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Number, start and end of each step, counted from 1."""
    for number, (s, t) in enumerate(itertools.pairwise(times), start=1):
        yield number, s, t


def noise_along(table: Writer, chart: Chart, times: Sequence[float]) -> list[dict[int, float]]:
    """The noise a chart adds from the first of these times to each later one, as coefficients of new draws.

    The pieces belong to one Brownian path: what reaches a time is carried on to the next by the chart's own decay.
    """
    carried: dict[int, float] = {}
    result = []
    for s, t in itertools.pairwise(times):
        ratio, spread = chart.ratio(s, t), chart.spread(s, t)
        carried = {k: ratio * c for k, c in carried.items()}
        if spread:
            before, after = chart.noise_clock(s), chart.noise_clock(t)
            # A clock that over- or underflows leaves the draws, but no common Brownian path.
            carried[table.draw((before, after) if before < after < math.inf else None)] = spread
        result.append(carried)
    return result


def final_order(order: int, number: int, steps: int, rule: LowerOrderFinal) -> int:
    """The order of step ``number`` of ``steps``: what history allows, lowered near the end as the rule says."""
    allowed = min(order, number)
    if rule == "always" or (rule == "below_10" and steps < 10):
        return min(allowed, steps + 1 - number)
    return allowed


def check_budget(nfe: object) -> None:
    """Raise ArgumentError unless a budget is a whole number of evaluations, at least 1, whose table fits into memory."""
    if not isinstance(nfe, int) or isinstance(nfe, bool) or not 1 <= nfe <= grids.MOST_STEPS:
        raise ArgumentError(f"nfe must be an integer >= 1 and <= {grids.MOST_STEPS}, got {nfe!r:.40}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ArgumentError unless an option has one of the values it may have."""
    # 2.0 and True equal choices they are not.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ArgumentError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
