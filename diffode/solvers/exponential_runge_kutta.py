"""Exponential Runge-Kutta methods by the names of their coefficient sets, in the log-SNR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from diffode.charts import Chart, ExponentialChart, exponential_chart
from diffode.errors import ArgumentError
from diffode.numerics import exponential_butcher
from diffode.numerics.exponential_butcher import ExponentialButcher
from diffode.solvers.solver import TableSolver, check_choice, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class ExponentialRungeKutta(TableSolver):
    r"""x_i = (S_i/S_s) x + w_i h sum_j a_ij(z) m_j, x_t = (S_t/S_s) x + w_t h sum_j b_j(z) m_j, stage i at the log-SNR
    lambda_s + c_i h.

    In the data chart S = sigma, w = alpha, z = -h and m = D; in ``chart=noise_log_snr`` S = alpha, w = -sigma, z = h and
    m = eps. ``method`` names the coefficients, sums of phi functions: ``etd2``, ``etd3``, ``etd4`` (Cox and Matthews),
    ``krogstad``, ``strehmel_weiner``,
    ``hochbruck_ostermann_3``, ``hochbruck_ostermann_4`` (five stages), ``lawson_2``, ``lawson_4``. Free
    are the nodes ``c2`` of ``etd2`` (usually 1), ``c2`` and ``c3`` of ``hochbruck_ostermann_3`` (usually 1/2 and 1).

    On steps that are long in the log-SNR errors follow the *stiff* order, ``stiff_order``. A Lawson method, whose stiff order
    is 1, does not integrate a constant m exactly. DPM-Solver-2 and 3 are such methods too (``dpm``, ``dpmpp_s``). A step into
    sigma = 0 is of first order.
    """

    method: Literal[
        "etd2",
        "etd3",
        "etd4",
        "krogstad",
        "strehmel_weiner",
        "hochbruck_ostermann_3",
        "hochbruck_ostermann_4",
        "lawson_2",
        "lawson_4",
    ] = "krogstad"
    c2: float | None = None
    c3: float | None = None
    chart: Literal["data", "noise_log_snr"] = "data"

    name = "exponential_rk"
    reference: ClassVar[str] = (
        "Hochbruck and Ostermann, SIAM J. Numer. Anal. 43 (2005), section 5, and Acta Numerica 19 (2010), section 2.3, "
        "with the authors that they name"
    )

    def __post_init__(self) -> None:
        check_choice("chart", self.chart, ("data", "noise_log_snr"))
        check_choice("method", self.method, tuple(exponential_butcher.METHODS))
        for name in ("c2", "c3"):
            node = getattr(self, name)
            if node is not None and (type(node) not in (int, float) or not 0 < node <= 1):
                raise ArgumentError(f"{name} must be a number in (0, 1], got {node!r:.40}")
        exponential_butcher.get(self.method, self.free_nodes)

    @property
    def free_nodes(self) -> tuple[float, ...]:
        """The nodes that are chosen: none, for the usual ones, or one for each that the method leaves free."""
        _, usual = exponential_butcher.METHODS[self.method]
        given = (self.c2, self.c3)
        if given == (None, None):
            return ()
        free = tuple(default if node is None else node for node, default in zip(given, usual, strict=False))
        return (*free, *(node for node in given[len(usual) :] if node is not None))

    @property
    def coefficients(self) -> ExponentialButcher:
        """The coefficients, with their source and orders."""
        return exponential_butcher.get(self.method, self.free_nodes)

    @property
    @override
    def chart_name(self) -> str:
        return self.chart

    @property
    @override
    def order(self) -> int:
        return self.coefficients.order

    @property
    def stiff_order(self) -> int:
        """The order on steps that are long in the log-SNR, from the stiff order conditions."""
        return self.coefficients.stiff_order

    @property
    @override
    def nfe_per_step(self) -> int:
        return len(self.coefficients.nodes)

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        exponential, method = exponential_chart(chart), self.coefficients
        x = table.start
        for _, s, t in steps_of(times):
            if chart.ends_singular(t):
                x = table.output(table.add(t, {x: chart.ratio(s, t)}, {x: chart.advance(s, t)}))
                continue
            origin = exponential.variable(s)
            h = exponential.variable(t) - origin
            z, evaluated = exponential.sign * h, [x]
            for number, node in enumerate(method.nodes[1:], start=1):
                time = t if node == 1 else chart.path.time_from_log_snr(origin + node * h)
                evaluated.append(_stage(table, exponential, x, time, h, evaluated, method.stage(number, z)))
            x = table.output(_stage(table, exponential, x, t, h, evaluated, method.step(z)))


def _stage(
    table: Writer, chart: ExponentialChart, x: int, time: float, h: float, evaluated: Sequence[int], weights: Sequence[float]
) -> int:
    """Append (S_i/S_s) x + w_i h sum_j weight_j m_j at a time, where s is the time of row x; returns its row."""
    factor = chart.weight(time) * h
    return table.add(
        time,
        {x: chart.ratio(table.time(x), time)},
        {j: factor * weight for j, weight in zip(evaluated, weights, strict=True)},
    )
