"""Heun++: weighted means of slopes at one, two and three levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from diffode.charts import Chart
from diffode.solvers.runge_kutta import add_step
from diffode.solvers.solver import TableSolver, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class HeunPlus(TableSolver):
    r"""Heun++: a step in rho along (1 - w_2 - w_3) eps_s + w_2 eps_1 + w_3 eps_2, the last two at the ends of Euler steps.

    One Euler step leads to the next level, the other from there to the level after it.
    The weights are shares of the first level of the run, w_i = rho_i/(3 rho_0); the last step but one leaves out the third,
    w_2 = rho_1/(2 rho_0), and the last step is an Euler step. As the steps shrink the weights do not become those of a method
    of second order, w_2 + 2 w_3 = 1/2, so that the order is 1, at three evaluations a step.
    """

    name = "heunpp2"
    chart_name = "noise"
    order = 1
    nfe_per_step = 3
    reference: ClassVar[str] = "Carzit, sd-webui-samplers-scheduler, ksampler.py; ComfyUI, sample_heunpp2"

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        x, first = table.start, chart.clock(times[0])
        for number, _, t in steps_of(times):
            evaluated, middle = [x], x
            for time in times[number : min(number + 2, len(times) - 1)]:
                middle = add_step(table, chart, middle, time, evaluated[-1:], (1.0,))
                evaluated.append(middle)
            shares = [chart.clock(table.time(row)) / (len(evaluated) * first) for row in evaluated[1:]]
            x = table.output(add_step(table, chart, x, t, evaluated, (1 - sum(shares), *shares)))
