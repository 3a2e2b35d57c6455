"""Explicit Runge-Kutta methods, in the clock of any chart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.numerics.butcher import EULER, HEUN, KUTTA, KUTTA_3, MIDPOINT, RALSTON, Butcher
from diffode.solvers.in_chart import CHARTS, InChart
from diffode.solvers.solver import check_choice, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class RungeKutta(InChart):
    r"""z_i = z_s + dtheta \sum_j a_ij m_j, z_t = z_s + dtheta \sum_j b_j m_j (Butcher tableau a, b) in the chart's clock.

    A step into sigma = 0 is an Euler step. Stage i lies at the share c_i = sum_j a_ij of the step, in the clock.
    """

    chart: str = "velocity"

    @property
    @abstractmethod
    def method(self) -> Butcher:
        """Its tableau, a constant of the class."""

    def __post_init__(self) -> None:
        check_choice("chart", self.chart, CHARTS)
        if not isinstance(self.method, Butcher):
            raise ArgumentError(f"method must be a diffode.numerics.butcher.Butcher, got {self.method!r:.80}")

    @property
    @override
    def order(self) -> int:
        return self.method.order

    @property
    @override
    def nfe_per_step(self) -> int:
        return len(self.method.weights)

    @property
    @override
    def chart_name(self) -> str:
        return self.chart

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        x = table.start
        for _, s, t in steps_of(times):
            euler = len(self.method.weights) == 1 or chart.ends_singular(t)
            evaluated = [x]
            for stage in () if euler else self.method.stages:
                node = sum(stage)
                middle = t if node == 1 else chart.time(chart.clock(s) + node * (chart.clock(t) - chart.clock(s)))
                evaluated.append(add_step(table, chart, x, middle, evaluated, [a / node for a in stage]))
            x = table.output(add_step(table, chart, x, t, evaluated, (1.0,) if euler else self.method.weights))


def add_step(table: Writer, chart: Chart, x: int, t: float, evaluated: Sequence[int], weights: Sequence[float]) -> int:
    """Append x_t = (S_t/S_s) x + S_t (theta_t - theta_s) sum_j w_j m_j, where s is the time of row x; returns its row."""
    s = table.time(x)
    advance = chart.advance(s, t)
    return table.add(t, {x: chart.ratio(s, t)}, {j: advance * w for j, w in zip(evaluated, weights, strict=False)})


class Euler(RungeKutta):
    """Euler: x_t = x_s + (t - s) v_s in the velocity chart; DDIM in the noise chart, DPM-Solver++ 1 in the data chart."""

    name = "euler"
    method = EULER
    reference = "L. Euler 1768; DDIM: Song, Meng, Ermon, arXiv 2010.02502, equation 13"


class Midpoint(RungeKutta):
    """The explicit midpoint rule."""

    name = "midpoint"
    method = MIDPOINT
    reference = MIDPOINT.source


class Heun(RungeKutta):
    """Heun's second-order method (the trapezoidal predictor-corrector)."""

    name = "heun"
    method = HEUN
    reference = "Karras et al., arXiv 2206.00364, algorithm 1"


class Ralston(RungeKutta):
    """Ralston's method, which has the least truncation error of the second-order two-stage methods."""

    name = "ralston"
    method = RALSTON
    reference = RALSTON.source


class Kutta3(RungeKutta):
    """Kutta's third-order method. In the noise chart it is rho3Kutta of DEIS, as ``heun`` is rho2Heun and ``rk4`` rho4RK."""

    name = "kutta3"
    method = KUTTA_3
    reference = f"{KUTTA_3.source}; Zhang and Chen, arXiv 2204.13902, appendix, for the noise chart"


class RK4(RungeKutta):
    """The classical fourth-order method."""

    name = "rk4"
    method = KUTTA
    reference = KUTTA.source


@dataclass(frozen=True, kw_only=True)
class EDMHeun(Heun):
    """Heun in the noise chart: the deterministic sampler of EDM, on any path."""

    chart: str = "noise"

    name = "edm_heun"
