"""Single-step exponential integrators in log-SNR: DPM-Solver-1/2/3 (noise) and DPM-Solver++ 1S/2S/3S (data)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

from diffode.charts import Chart, ExponentialChart, phi
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.solvers.solver import Solver, check_choice, steps_of
from diffode.tableau import Writer

#: Where the inner points of a step lie: equally spaced in this variable.
_INNER_POINTS = {
    "log_snr": lambda path, s, t, r: path.time_from_log_snr((1 - r) * path.log_snr(s) + r * path.log_snr(t)),
    "time_uniform": lambda path, s, t, r: (1 - r) * s + r * t,
    "time_quadratic": lambda path, s, t, r: ((1 - r) * s**0.5 + r * t**0.5) ** 2,
}


@dataclass(frozen=True, kw_only=True)
class SingleStep(Solver):
    """One step costs ``order`` evaluations, at inner points r_1 (1/2, or 1/3 and 2/3) of the way in ``nodes``.

    ``form=published`` is the finite-difference form of the papers, ``form=taylor`` the one with exact phi weights.
    ``r`` moves the inner point of order 2 (in log-SNR). ``step_orders`` gives every step an order of its own, which is how
    a budget that is no multiple of the order is spent.
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
        if self.r is not None and not (0 < self.r < 1 and self.order == 2 and self.nodes == "log_snr"):
            raise ArgumentError(f"r must lie in (0, 1), with order=2 and nodes=log_snr; got r={self.r!r}")
        if self.step_orders is not None:
            # A spec with one entry reads as a number.
            single = isinstance(self.step_orders, int)
            object.__setattr__(self, "step_orders", (self.step_orders,) if single else tuple(self.step_orders))
            for order in self.step_orders or ():
                check_choice("step_orders", order, tuple(range(1, self.order + 1)))

    @property
    def nfe_per_step(self) -> int:  # noqa: D102
        return self.order

    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:  # noqa: D102
        steps = len(times) - 1
        orders = self.step_orders or (self.order,) * steps
        if len(orders) != steps:
            raise ArgumentError(f"step_orders has {len(orders)} entries for a grid of {steps} steps")
        exponential = cast(ExponentialChart, chart)
        x = table.start
        for number, s, t in steps_of(times):
            order = 1 if chart.ends_singular(t) else orders[number - 1]
            x = table.output(self._step(table, exponential, x, s, t, order))

    def _step(self, table: Writer, chart: ExponentialChart, x: int, s: float, t: float, order: int) -> int:
        """Append one step of the given order; h is its log-SNR, r the inner points as shares of h."""
        if order == 1:
            return table.add(t, {x: chart.ratio(s, t)}, {x: chart.advance(s, t)})
        origin = chart.variable(s)
        h = chart.variable(t) - origin
        inner = [self._inner(chart.path, s, t, (i + 1) / order) for i in range(order - 1)]
        r = [(chart.variable(node) - origin) / h for node in inner]

        def weight(k: int, node: float, share: float) -> float:
            """alpha or -sigma at the node, times (share h) phi_k(+- share h)."""
            return chart.weight(node) * share * h * phi(k, chart.sign * share * h)

        first = table.add(inner[0], {x: chart.ratio(s, inner[0])}, {x: weight(1, inner[0], r[0])})
        if order == 2:
            # D + (D_1 - D)/(2 r) * h phi_1 as published; the Taylor form has phi_2 instead of phi_1/2.
            slope = weight(1, t, 1) / 2 if self.form == "published" else weight(2, t, 1)
            return table.add(t, {x: chart.ratio(s, t)}, {x: weight(1, t, 1) - slope / r[0], first: slope / r[0]})
        slope = weight(2, inner[1], r[1]) * r[1] / r[0]
        second = table.add(inner[1], {x: chart.ratio(s, inner[1])}, {x: weight(1, inner[1], r[1]) - slope, first: slope})
        if self.form == "published":
            slope = weight(2, t, 1) / r[1]
            return table.add(t, {x: chart.ratio(s, t)}, {x: weight(1, t, 1) - slope, second: slope})
        # First and second derivatives of the parabola through D, D_1, D_2, in units of h.
        gap = r[1] - r[0]
        by_first = weight(2, t, 1) * r[1] / gap - 2 * weight(3, t, 1) / gap
        by_second = -weight(2, t, 1) * r[0] / gap + 2 * weight(3, t, 1) / gap
        return table.add(
            t,
            {x: chart.ratio(s, t)},
            {
                x: weight(1, t, 1) - by_first / r[0] - by_second / r[1],
                first: by_first / r[0],
                second: by_second / r[1],
            },
        )

    def _inner(self, path: Path, s: float, t: float, share: float) -> float:
        return float(_INNER_POINTS[self.nodes](path, s, t, share if self.r is None else self.r))

    def plans(self, nfe: int) -> Iterator[tuple[Solver, int]]:
        """Budgets are spent to the last evaluation by lowering the order of the last steps (arXiv 2206.00927, appendix)."""
        if self.step_orders is not None:
            yield self, len(self.step_orders)
            return
        # A last step into sigma = 0 costs one evaluation whatever its order, so a plan for more may fit.
        for budget in range(max(1, nfe), nfe + self.order + 1):
            orders = budgeted_orders(self.order, budget)
            yield replace(self, step_orders=orders), len(orders)


def budgeted_orders(order: int, nfe: int) -> tuple[int, ...]:
    """Orders of the steps that spend exactly ``nfe`` evaluations."""
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
