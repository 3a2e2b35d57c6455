"""Solvers by what they can do: all are a :class:`Solver`; a :class:`WritesTable` writes a tableau for a path and a grid.

Solvers that follow the field themselves instead are in `direct.py`. Code that needs one of the two asks with ``isinstance``, or
calls ``diffode.solvers.table_solver``, whose error says which solver can't.
"""

from __future__ import annotations

import itertools
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from typing_extensions import override

from diffode import charts, grids
from diffode.charts import Chart
from diffode.errors import ArgumentError, BudgetError, CapabilityError
from diffode.paths import Interval, Path
from diffode.paths import get as get_path
from diffode.specs import format_spec, options_of
from diffode.statistics import Statistics
from diffode.tableau import Tableau, Writer

LowerOrderFinal = Literal["always", "below_10", "never"]


_NO_TABLE = (
    "has no tableau, since it runs by itself: its steps depend on the solution, or it is a map; run it with diffode.solve"
)
#: What only some solvers can do, by the name of the method, each with what to say of a solver that can't.
_CAPABILITIES = {
    "tableau": _NO_TABLE,
    "within": _NO_TABLE,
    "write": "writes no rows step by step; run it with diffode.solve",
    "follow": "does not follow a field itself; run it with diffode.solve",
}


class SolverType(ABCMeta):
    """The type of solver classes, by which one that has ``write`` is a :class:`TableSolver`, though it names ``Solver``."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        """The class; ``Solver`` among the bases of one that writes rows gives way to ``TableSolver``."""
        mine = [base for base in bases if isinstance(base, mcs)]
        able = any(hasattr(base, method) for base in mine for method in ("tableau", "follow"))
        if mine and not able and ("write" in namespace or any(hasattr(base, "write") for base in bases)):
            bases = (*(base for base in bases if base is not Solver), TableSolver)
        return super().__new__(mcs, name, bases, namespace, **options)


@dataclass(frozen=True, kw_only=True)
class Solver(metaclass=SolverType):
    """A published sampler with its options.

    To add one, subclass it as a frozen dataclass whose fields are the options, give its ``chart_name``, ``order``,
    ``nfe_per_step`` and ``reference``, write the rows in ``write(table, chart, times)``, and call
    ``diffode.solvers.register(name, cls)``. A class with ``write`` is a :class:`TableSolver`, which may be named as its base as
    well. Check the options in ``__post_init__``.
    """

    #: Whether the noise of standard normal data replaces the first evaluation: saves one evaluation, makes it first order.
    analytic_first_step: bool = False
    #: The level to which it first goes along the flow of the data's Gaussian, without an evaluation: a number of the data's
    #: largest deviations, or ``auto``.
    jump: float | str | None = None

    #: The registered name.
    name: ClassVar[str]
    #: Its source: authors, identifier, equation or algorithm.
    reference: ClassVar[str] = ""
    #: The grid of a run that is given a budget alone.
    usual_grid: ClassVar[str] = "karras"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if getattr(cls, "name", None) in (None, *(base.__name__ for base in cls.__mro__[1:])):
            # A class that is given no name has that of the class, and hands it on to none that derives from it.
            cls.name = cls.__name__
        if type(order := vars(cls).get("order")) is int and order == 0:
            # Before None said so, 0 said that a solver claims no order.
            cls.order = None  # type: ignore[method-assign, assignment]

    def __post_init__(self) -> None:
        """Check the options; subclasses with options override it."""
        return

    @property
    def spec(self) -> str:
        """The spec that rebuilds this solver."""
        return format_spec(self.name, options_of(self))

    @property
    @abstractmethod
    def order(self) -> int | None:
        """The order of convergence that its authors claim, None if they claim none; an option where a family has several."""

    @property
    def convergence_order(self) -> int | None:
        """The order of convergence that it has, in the noise-free limit if it draws noise, without lower final orders and
        without an analytic first step; 0 if it does not converge, None where no order is claimed.
        """
        return self.order

    def order_on(self, grid: grids.Times) -> int | None:
        """``convergence_order`` on a family of grids, for solvers whose order depends on it."""
        return self.convergence_order

    @property
    def nfe_per_step(self) -> int:
        """Number of evaluations of a full step."""
        return 1

    @property
    def spends(self) -> str:
        """What a step costs, in words: ``nfe_per_step``, unless that is not what a run spends."""
        return str(self.nfe_per_step)

    @property
    @abstractmethod
    def chart_name(self) -> str:
        """The name of its chart."""

    @property
    def needs_path(self) -> bool:
        """Whether it works with alpha and sigma, so that it can't follow a field without a path, such as a bridge."""
        chart = charts.charts.get(self.chart_name)
        return chart is None or chart.needs_path

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return False

    def draws_noise(self, nfe: int) -> bool:
        """Whether a run with ``nfe`` evaluations draws noise: a solver may do without in its shortest run."""
        return self.stochastic

    @property
    def needs_statistics(self) -> bool:
        """Whether it has to know mean and covariance of the data, see ``diffode.solvers.informed``."""
        return self.jump is not None

    def knowing(self, statistics: Statistics) -> Self:
        """The solver with statistics of the data, beside those that ``jump`` needs: itself, unless its chart needs them."""
        return self

    def content(self) -> str:
        """A hash of all that its spec leaves out, such as the numbers in a file; else an empty text."""
        return ""

    def for_field(self, scale: float, dim: int) -> Self:
        """The solver for data of a scale (root mean variance) and dimension: itself, unless it depends on these."""
        return self

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _CAPABILITIES:
                raise CapabilityError(lack_of(self, name))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class WritesTable(Solver):
    """A solver that writes a table before the first evaluation, with which it can run in any loop."""

    #: Whether it lays its own levels between the ends of a grid, so that ``steps`` are the evaluations of its table.
    lays_levels: ClassVar[bool] = False

    @abstractmethod
    def tableau(self, path: Path | str | None, grid: grids.Times, steps: int | None = None) -> Tableau:
        """The table for a path (or its spec) and a grid (times, or a spec with ``steps``)."""

    @abstractmethod
    def within(self, path: Path | str | None, grid: grids.Times, nfe: int) -> Tableau:
        """The largest table on a grid that costs at most ``nfe`` evaluations; BudgetError if there is none."""


class TableSolver(WritesTable):
    """A solver that writes its table row by row for the times of any grid: subclass it and write :meth:`write`."""

    @property
    def lays_steps(self) -> bool:
        """Whether it has a way of its own from a grid to a table, so that a table's steps need not be those of the grid."""
        return type(self).tableau is not TableSolver.tableau or type(self).within is not TableSolver.within

    def chart_on(self, path: Path | str | None) -> Chart:
        """Its chart for a path or its spec."""
        return charts.get(self.chart_name, path)

    @abstractmethod
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        """Append the rows for the grid's times (``table.start`` is at ``times[0]``), and mark each with ``table.output``."""

    def times_on(self, path: Path | None, grid: grids.Times, steps: int | None) -> list[float]:
        """The times of a grid, in the order of a run."""
        times: list[float] = grids.get(grid, path, steps).tolist()
        return times

    @override
    def tableau(self, path: Path | str | None, grid: grids.Times, steps: int | None = None) -> Tableau:
        """The table for a path (or its spec) and a grid (times, or a spec with ``steps``).

        Raises ArgumentError if the solver's chart needs a path and there is none, or if the chart is singular on the grid.
        """
        check_choice("analytic_first_step", self.analytic_first_step, (True, False))
        check_known(self)
        path = None if path is None else get_path(path)
        times = self.times_on(path, grid, steps)
        if isinstance(path, Interval):
            check_goes_without_path(self)
            path = None
        chart = self.chart_on(path)
        table = Writer(chart.prediction, times[0])
        try:
            self.write(table, chart, times)
            table.rows = chart.expressed(table.rows)
            finished = table.finish(path, self.spec, chart.statistics)
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            if isinstance(error, ArgumentError) and "non-finite" not in str(error):
                raise
            where = f"on this grid ({times[0]:g} to {times[-1]:g})"
            if path is not None and any(0 in (path.alpha(t), path.sigma(t)) for t in times):
                raise ArgumentError(
                    f"solver {self.spec!r} is singular {where} in its chart {chart.name!r}: alpha must not vanish at the first "
                    "time, nor sigma before the last"
                ) from error
            kind = "" if isinstance(error, ArgumentError) else f"{type(error).__name__}: "
            raise ArgumentError(f"solver {self.spec!r} writes no table {where}: {kind}{error}") from error
        return finished.analytic_first_step() if self.analytic_first_step else finished

    @override
    def within(self, path: Path | str | None, grid: grids.Times, nfe: int) -> Tableau:
        """The largest run on a named grid, or the run on the times of a list, that costs at most ``nfe`` evaluations.

        Raises BudgetError, which lists possible budgets, if not even the smallest run fits.
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

    def plans(self, nfe: int) -> Iterator[tuple[TableSolver, int]]:
        """Runs to try for a budget, smallest first: a solver (perhaps with options set) and a number of steps.

        Every plan costs more than the one before, so that the search ends at the first that exceeds the budget.
        """
        for steps in range(max(1, nfe // self.nfe_per_step), nfe + 3):
            yield self, steps


@dataclass(frozen=True, kw_only=True)
class WithNoise(Solver):
    """A solver whose option ``eta`` >= 0 scales the noise that it draws; at 0 it is deterministic."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float) or not 0 <= self.eta < math.inf:
            raise ArgumentError(f"eta must be a number >= 0 (0 adds no noise), got {self.eta!r}")

    @property
    @override
    def stochastic(self) -> bool:
        return self.eta > 0


def lack_of(solver: Solver, capability: str) -> str:
    """What to say of a solver that has no ``tableau``, ``within``, ``write`` or ``follow``."""
    if not any(hasattr(type(solver), method) for method in ("tableau", "follow")):
        return (
            f"solver {solver.spec!r} has no tableau and follows no field: give {type(solver).__name__} a method "
            "write(table, chart, times), or derive it from DirectSolver and give it follow(field, x, times, generator)"
        )
    return f"solver {solver.spec!r} {_CAPABILITIES[capability]}"


def steps_of(times: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Number, counted from 1, first time and last time of each step."""
    for number, (s, t) in enumerate(itertools.pairwise(times), start=1):
        yield number, s, t


def noise_along(table: Writer, chart: Chart, times: Sequence[float]) -> list[dict[int, float]]:
    """The noise that a chart adds from the first time to each later one, as coefficients of new draws.

    All draws belong to one Brownian motion; the chart's own decay carries the noise at a time on to the next.
    """
    carried: dict[int, float] = {}
    result = []
    for s, t in itertools.pairwise(times):
        spread = chart.spread(s, t)
        if carried:
            ratio = chart.ratio(s, t)
            carried = {k: ratio * c for k, c in carried.items()}
        if type(spread) is not float or spread:
            before, after = chart.noise_clock(s), chart.noise_clock(t)
            # Where the clock over- or underflows, the draws have no common Brownian motion.
            carried[table.draw((before, after) if before < after < math.inf else None)] = spread
        result.append(carried)
    return result


def final_order(order: int, number: int, steps: int, rule: LowerOrderFinal) -> int:
    """The order of step ``number`` of ``steps``: at most that number, and near the end lowered by the rule."""
    allowed = min(order, number)
    if rule == "always" or (rule == "below_10" and steps < 10):
        return min(allowed, steps + 1 - number)
    return allowed


def check_budget(nfe: object) -> None:
    """Raise ArgumentError unless a budget is an integer from 1 to the most steps of a grid, whose table fits in memory."""
    if not isinstance(nfe, int) or isinstance(nfe, bool) or not 1 <= nfe <= grids.MOST_STEPS:
        raise ArgumentError(f"nfe must be an integer >= 1 and <= {grids.MOST_STEPS}, got {nfe!r:.40}")


def check_goes_without_path(solver: Solver) -> None:
    """Raise CapabilityError, which names the solver, if it needs the path that a field does not have."""
    if solver.needs_path:
        raise CapabilityError(
            f"solver {solver.spec!r} works with alpha and sigma, which this field does not have, since it follows no path: "
            "take one in the velocity chart (euler, heun, rk4, ab:order=3, rk_adaptive)"
        )


def check_jump(jump: object) -> None:
    """Raise ArgumentError unless the option ``jump`` is None, ``auto`` or a level."""
    if jump is None or jump == "auto":
        return
    if isinstance(jump, bool) or not isinstance(jump, int | float) or not 0 < jump < math.inf:
        raise ArgumentError(f"jump must be auto, or a level > 0 in units of the data's largest deviation, got {jump!r:.40}")


def check_known(solver: Solver) -> None:
    """Raise ArgumentError if a solver that needs statistics of the data has not been given any."""
    check_jump(solver.jump)
    if solver.needs_statistics:
        raise ArgumentError(
            f"solver {solver.spec!r} has to know mean and covariance of the data: run it with diffode.solve(..., statistics=), "
            "or take diffode.solvers.informed(solver, statistics)"
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ArgumentError unless an option has one of its possible values."""
    # 2.0 equals 2 and True equals 1, but neither is such a choice.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ArgumentError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
