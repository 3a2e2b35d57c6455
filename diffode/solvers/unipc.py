"""UniPC: an exponential Adams predictor with a corrector that costs no extra evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from typing_extensions import override

from diffode.charts import Chart, ExponentialChart
from diffode.gaussian_charts import gaussian_charts
from diffode.numerics.exponential import phi
from diffode.solvers.in_chart import InChart
from diffode.solvers.solver import LowerOrderFinal, check_choice, final_order, steps_of
from diffode.tableau import Number, Writer

#: A linear form of evaluations: weights by row.
Form = dict[int, Number]


@dataclass(frozen=True, kw_only=True)
class UniPC(InChart):
    r"""Predictor UniP-p through the last p denoised points; once the next one is known, the corrector redoes the step.

    Where its linear system is solved, UniP-p is the exponential Adams-Bashforth method in the data chart and the corrector
    Adams-Moulton, for every B(h). B(h) = h (``bh1``) or e^h - 1 (``bh2``) matters in two places, the predictor of order 2 and
    the corrector of order 1, which have the weight 1/2 by convention. ``vary_coeff`` solves those as well, but its published
    corrector weighs the newest point by one derivative only, which makes it first order. ``corrector=false`` gives UniP alone.
    The last step has no corrector. ``chart=noise_log_snr`` is the authors' noise prediction (``predict_x0=False``), where B(h)
    is that of -h. In a ``chart`` of the data's Gaussian both are the plain Adams methods of its clock.
    """

    order: int = 3
    variant: Literal["bh1", "bh2", "vary_coeff"] = "bh2"
    chart: str = "data"
    corrector: bool = True
    lower_order_final: LowerOrderFinal = "always"

    name = "unipc"
    reference = "Zhao et al., arXiv 2302.04867, algorithms 1 to 3"

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3, 4))
        check_choice("variant", self.variant, ("bh1", "bh2", "vary_coeff"))
        check_choice("corrector", self.corrector, (True, False))
        check_choice("chart", self.chart, ("data", "noise_log_snr", *gaussian_charts))
        check_choice("lower_order_final", self.lower_order_final, ("always", "below_10", "never"))

    @property
    @override
    def chart_name(self) -> str:
        return self.chart

    @property
    @override
    def convergence_order(self) -> int:
        if self.corrector and self.variant == "vary_coeff":
            return 1
        return self.order + 1 if self.corrector else self.order

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        steps = len(times) - 1
        x = table.start
        # ``history`` holds the times and the denoised points of the predicted states, latest first.
        history: list[tuple[float, Form]] = [(times[0], {table.start: 1.0})]
        for number, s, t in steps_of(times):
            history[0] = s, self.newest(history, number, steps)
            order = final_order(self.order, number, steps, self.lower_order_final)
            if chart.ends_singular(t):
                order = 1
            nodes, forms = [time for time, _ in history[:order]], [form for _, form in history[:order]]
            ratio = {x: chart.ratio(s, t)}
            weights = self._predictor(chart, nodes, s, t)
            predicted = table.add(t, ratio, combined(forms, weights))
            if number == steps or not self.corrector:
                x = table.output(predicted)
            else:
                weights = self._corrector(chart, nodes, s, t)
                x = table.output(table.add(t, ratio, combined([*forms, {predicted: 1.0}], weights)))
            history.insert(0, (t, {predicted: 1.0}))

    def newest(self, history: Sequence[tuple[float, Form]], number: int, steps: int) -> Form:
        """The denoised point that a step takes for the newest one, of times and points with the latest first."""
        return history[0][1]

    def _halved(self, chart: ExponentialChart, s: float, t: float) -> float:
        """The conventional weight w_t B(h)/2 of a first difference, w = alpha for data and -sigma for noise."""
        h = chart.variable(t) - chart.variable(s)
        return chart.weight(t) * h / 2 * (phi(1, chart.sign * h) if self.variant == "bh2" else 1)

    def _predictor(self, chart: Chart, nodes: Sequence[float], s: float, t: float) -> list[float]:
        if not isinstance(chart, ExponentialChart):
            return chart.adams(nodes, s, t)
        if len(nodes) == 2 and self.variant != "vary_coeff":
            advance, half = chart.advance(s, t), self._halved(chart, s, t)
            h = chart.variable(t) - chart.variable(s)
            slope = half * h / (chart.variable(nodes[1]) - chart.variable(s))
            return [advance - slope, slope]
        return chart.adams(nodes, s, t)

    def _corrector(self, chart: Chart, nodes: Sequence[float], s: float, t: float) -> list[float]:
        if not isinstance(chart, ExponentialChart):
            return chart.adams([*nodes, t], s, t)
        if self.variant == "vary_coeff":
            return _published_vary_coeff(chart, [*nodes, t], s, t)
        if len(nodes) == 1:
            half = self._halved(chart, s, t)
            return [chart.advance(s, t) - half, half]
        return chart.adams([*nodes, t], s, t)


def combined(forms: Sequence[Form], weights: Sequence[Number]) -> Form:
    """A sum of linear forms of evaluations with weights."""
    total: Form = {}
    for form, weight in zip(forms, weights, strict=True):
        for row, share in form.items():
            total[row] = total[row] + share * weight if row in total else share * weight
    return total


def _published_vary_coeff(chart: ExponentialChart, nodes: Sequence[float], s: float, t: float) -> list[float]:
    """The authors' vary_coeff corrector with its slip: weights of D at ``nodes``, the last of which is t.

    The differences (D_j - D_0)/r_j determine the derivatives through the matrix r_j^k/(k + 1)!. Of the newest point's column
    of the inverse the code uses one entry only, with the highest phi; all entries, each with its phi, give Adams-Moulton.
    """
    h = chart.variable(t) - chart.variable(s)
    r = np.array([(chart.variable(node) - chart.variable(s)) / h for node in nodes[1:]])
    count = len(r)
    inverse = np.linalg.inv(np.stack([r**k / math.factorial(k + 1) for k in range(count)], axis=1))
    phis = [chart.weight(t) * h * phi(k + 2, chart.sign * h) for k in range(count)]
    by_difference = np.array(phis[: count - 1]) @ inverse[: count - 1]
    by_difference[-1] = phis[-1] * inverse[max(count - 2, 0), -1]
    weights = by_difference / r
    return [chart.advance(s, t) - float(weights.sum()), *weights.tolist()]
