"""Single-step exponential integrators in log-SNR: DPM-Solver-1/2/3 (noise) and DPM-Solver++ 1S/2S/3S (data).

The multistep ones, 2M among them, are in ``dpm_multistep.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from typing_extensions import override

from diffode import grids
from diffode.charts import Chart, ExponentialChart, exponential_chart
from diffode.errors import ArgumentError, BudgetError
from diffode.grids import Times
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.solvers.solver import TableSolver, check_budget, check_choice, noise_along, steps_of
from diffode.tableau import Tableau, Writer

#: The time of an inner point at the share r of a step from s to t, by the variable in which inner points divide a step.
_INNER_POINTS = {
    "log_snr": lambda path, s, t, r: path.time_from_log_snr((1 - r) * path.log_snr(s) + r * path.log_snr(t)),
    "time_uniform": lambda path, s, t, r: (1 - r) * s + r * t,
    "time_quadratic": lambda path, s, t, r: ((1 - r) * s**0.5 + r * t**0.5) ** 2,
}


@dataclass(frozen=True, kw_only=True)
class SingleStep(TableSolver):
    """Single-step methods: a step costs ``order`` evaluations, at inner points 1/2, or 1/3 and 2/3, of the way in ``nodes``.

    ``form=published`` is the finite-difference form of the papers, ``form=taylor`` the one with exact phi weights. ``r`` moves
    the inner point of order 2 (in log-SNR); at 1, the end of the step, with ``form=taylor`` it is the exponential Heun method.
    ``step_orders`` gives every step its own order, which spends a budget that is no multiple of the order.
    """

    order: int = 2
    nodes: Literal["log_snr", "time_uniform", "time_quadratic"] = "log_snr"
    form: Literal["published", "taylor"] = "published"
    r: float | None = None
    step_orders: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3))
        check_choice("nodes", self.nodes, tuple(_INNER_POINTS))
        check_choice("form", self.form, ("published", "taylor"))
        if self.r is not None and not (0 < self.r <= 1 and self.order == 2 and self.nodes == "log_snr"):
            raise ArgumentError(f"r must lie in (0, 1], with order=2 and nodes=log_snr; got r={self.r!r}")
        if self.step_orders is not None:
            # A list with one entry in a spec is read as a number.
            single = isinstance(self.step_orders, int)
            object.__setattr__(self, "step_orders", (self.step_orders,) if single else tuple(self.step_orders))
            for order in self.step_orders or ():
                check_choice("step_orders", order, tuple(range(1, self.order + 1)))

    @property
    @override
    def nfe_per_step(self) -> int:
        return self.order

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        self._steps(table, chart, times)

    def _steps(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        steps = len(times) - 1
        orders = self.step_orders or (self.order,) * steps
        if len(orders) != steps:
            raise ArgumentError(f"step_orders has {len(orders)} entries for a grid of {steps} steps, in {self.spec!r}")
        exponential = exponential_chart(chart)
        x = table.start
        for number, s, t in steps_of(times):
            order = 1 if chart.ends_singular(t) else orders[number - 1]
            x = table.output(self._step(table, exponential, x, s, t, order))

    def _step(self, table: Writer, chart: ExponentialChart, x: int, s: float, t: float, order: int) -> int:
        """Append one step of the given order; ``r`` are the shares of its log-SNR at the inner points."""
        if order == 1:
            return table.add(t, {x: chart.ratio(s, t)}, {x: chart.advance(s, t)}, *noise_along(table, chart, (s, t)))
        origin = chart.variable(s)
        h = chart.variable(t) - origin
        inner = [self._inner(chart.path, s, t, (i + 1) / order) for i in range(order - 1)]
        r = [(chart.variable(node) - origin) / h for node in inner]
        noise = noise_along(table, chart, (s, *inner, t))

        def add(node: float, evaluations: dict[int, float], number: int) -> int:
            return table.add(node, {x: chart.ratio(s, node)}, evaluations, noise[number])

        first = add(inner[0], {x: chart.exponential(1, s, inner[0])}, 0)
        w1, w2, w3 = (chart.exponential(k, s, t) for k in (1, 2, 3))
        if order == 2:
            # The published term is (D_1 - D)/(2 r) * h phi_1; the Taylor form has phi_2 in place of phi_1/2.
            slope = (w1 / 2 if self.form == "published" else w2) / r[0]
            return add(t, {x: w1 - slope, first: slope}, 1)
        slope = chart.exponential(2, s, inner[1]) * r[1] / r[0]
        second = add(inner[1], {x: chart.exponential(1, s, inner[1]) - slope, first: slope}, 1)
        if self.form == "published":
            slope = w2 / r[1]
            return add(t, {x: w1 - slope, second: slope}, 2)
        # The weights are those of the derivatives of the parabola through D, D_1, D_2, in units of h.
        gap = r[1] - r[0]
        by_first = (w2 * r[1] - 2 * w3) / (gap * r[0])
        by_second = (2 * w3 - w2 * r[0]) / (gap * r[1])
        return add(t, {x: w1 - by_first - by_second, first: by_first, second: by_second}, 2)

    def _inner(self, path: Path, s: float, t: float, share: float) -> float:
        if self.r == 1:
            # Rounding of the way through log-SNR would leave the inner point beside the end.
            return t
        return float(_INNER_POINTS[self.nodes](path, s, t, share if self.r is None else self.r))

    def plans(self, nfe: int) -> Iterator[tuple[TableSolver, int]]:
        """Plans that spend a budget to the last evaluation by lower orders of the last steps (arXiv 2206.00927, appendix)."""
        if self.step_orders is not None:
            yield self, len(self.step_orders)
            return
        # A last step into sigma = 0 costs one evaluation for every order, so that a plan for more may fit.
        for budget in range(max(1, nfe), nfe + self.order + 1):
            orders = budgeted_orders(self.order, budget)
            yield replace(self, step_orders=orders), len(orders)


def budgeted_orders(order: int, nfe: int) -> tuple[int, ...]:
    """Orders of steps, at most ``order``, that cost ``nfe`` evaluations together."""
    if order == 3 and nfe >= 3:
        whole, left = divmod(nfe, 3)
        return (3,) * (whole - 1) + ((2, 1) if left == 0 else (3, left))
    whole, left = divmod(nfe, min(order, 2))
    return (min(order, 2),) * whole + (1,) * left


@dataclass(frozen=True, kw_only=True)
class DPMSolver(SingleStep):
    """DPM-Solver-1/2/3: single-step, noise prediction."""

    name = "dpm"
    chart_name = "noise_log_snr"
    reference: ClassVar[str] = "Lu et al., arXiv 2206.00927, algorithms 1, 4 and 5"


@dataclass(frozen=True, kw_only=True)
class DPMSolverPlusPlusSingle(SingleStep):
    """DPM-Solver++ 1S/2S/3S: single-step, data prediction."""

    name = "dpmpp_s"
    chart_name = "data"
    reference: ClassVar[str] = "Lu et al., arXiv 2211.01095, algorithm 1"


@dataclass(frozen=True, kw_only=True)
class DPMFast(DPMSolver):
    """DPM-Solver-fast: order 3 on steps uniform in log-SNR, the last ones of lower order, to spend all ``evaluations``.

    On a grid of one step, from start to end, it lays m = evaluations // 3 + 1 steps itself; on a grid of m steps it uses these.
    """

    order: int = 3
    evaluations: int | None = None

    name = "dpm_fast"
    reference: ClassVar[str] = "Lu et al., arXiv 2206.00927, section 3.4; K. Crowson, k-diffusion, sample_dpm_fast"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (3,))
        known = self.evaluations
        if known is not None and (type(known) is not int or not 1 <= known <= grids.MOST_STEPS):
            raise ArgumentError(f"evaluations must be an integer >= 1 and <= {grids.MOST_STEPS}, got {known!r:.40}")

    @property
    def convergence_order(self) -> int:
        """The order of the last steps, whose error dominates in the limit, though it is small."""
        return 2

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        steps = len(times) - 1
        if self.evaluations is None:
            orders = self.step_orders or budgeted_orders(3, max(1, 3 * (steps - 1)))
            replace(self, evaluations=sum(orders), step_orders=orders).write(table, chart, times)
            return
        orders = budgeted_orders(3, self.evaluations)
        if steps == 1 < len(orders):
            if chart.ends_singular(times[-1]):
                raise ArgumentError("dpm_fast lays its steps in log-SNR, which is infinite at sigma = 0: end the grid before")
            first, last = (chart.path.log_snr(t) for t in times)
            inner = [first + (last - first) * i / len(orders) for i in range(1, len(orders))]
            times = [times[0], *(chart.path.time_from_log_snr(value) for value in inner), times[-1]]
        replace(self, step_orders=self.step_orders or orders)._steps(table, chart, times)

    def within(self, path: Path | str | None, grid: Times, nfe: int) -> Tableau:
        """The run of exactly ``nfe`` evaluations between the ends of a grid, which should have one step; else BudgetError."""
        check_budget(nfe)
        if self.evaluations is not None or self.step_orders is not None:
            raise ArgumentError("a budget decides evaluations and step_orders of dpm_fast: leave them out, or nfe")
        path = None if path is None else get_path(path)
        best = None
        # A last step to sigma = 0 and an analytic first step cost less than other steps, so more may fit.
        for evaluations in range(nfe, nfe + 4):
            times = grids.get(grid, path, len(budgeted_orders(3, evaluations)) if grids.is_named(grid) else None)
            table = replace(self, evaluations=evaluations).tableau(path, times)
            if 0 < table.nfe <= nfe:
                best = table
            if table.nfe >= nfe:
                break
        if best is None:
            raise BudgetError(f"no run of {self.spec!r} on grid {grid!r} fits nfe={nfe}")
        return best
