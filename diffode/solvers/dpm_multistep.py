"""Multistep exponential integrators in log-SNR: DPM-Solver++ 1M/2M/3M and RES (data), multistep DPM-Solver (noise)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from diffode.charts import Chart, ExponentialChart, exponential_chart
from diffode.paths import Time
from diffode.solvers.solver import LowerOrderFinal, TableSolver, check_choice, final_order, noise_along, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class Multistep(TableSolver):
    r"""x_t = (S_t/S_s) x + w_t h [phi_1 m + phi_2 h m' + phi_3 h^2 m''], derivatives from divided differences of the past.

    S and w are the chart's ``scale`` and ``weight``, and h is the step in its variable, the log-SNR. Order 3 as published uses
    the second divided difference for m'', which lacks a factor 2 and makes it second order; ``form=consistent`` has the factor.
    Order 2 as published has phi_1/2 where ``form=taylor`` has phi_2; both are second order. The default gives the numbers of
    other libraries.
    """

    order: int = 2
    form: Literal["published", "consistent", "taylor"] = "published"
    lower_order_final: LowerOrderFinal = "below_10"

    forms: ClassVar[tuple[str, ...]] = ("published", "consistent", "taylor")

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3))
        check_choice("form", self.form, self.forms)
        check_choice("lower_order_final", self.lower_order_final, ("always", "below_10", "never"))

    @property
    @override
    def convergence_order(self) -> int:
        return 3 if self.order == 3 and self.form == "consistent" else min(self.order, 2)

    @property
    def exact_second(self) -> bool:
        """Whether the slope of a second-order step has the exact weight phi_2 instead of phi_1/2."""
        return self.form == "taylor"

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        exponential = exponential_chart(chart)
        history, past = [table.start], [table.time(table.start)]
        for number, s, t in steps_of(times):
            order = final_order(self.order, number, len(times) - 1, self.lower_order_final)
            if chart.ends_singular(t):
                order = 1
            weights = self.weights(exponential, past[:order], t)
            x = table.add(
                t,
                {history[0]: chart.ratio(s, t)},
                dict(zip(history[:order], weights, strict=True)),
                *noise_along(table, chart, (s, t)),
            )
            history.insert(0, table.output(x))
            past.insert(0, t)

    def weights(self, chart: ExponentialChart, past: Sequence[Time], t: Time) -> list[Time]:
        """Weights of m at the past times, latest first, for a step from past[0] to t.

        Those of order 2 with ``form=taylor`` and of order 3 with ``form=consistent`` equal those of ``chart.adams``, which
        integrates the interpolation polynomial of m exactly.
        """
        s = past[0]
        if len(past) == 1:
            return [chart.advance(s, t)]
        lambdas = [chart.variable(time) for time in past]
        h = chart.variable(t) - lambdas[0]
        # These are w_t h phi_k; differences by the share of the step, rather than by the log-SNR, take up other powers of h.
        w1 = chart.exponential(1, s, t)
        r0 = (lambdas[0] - lambdas[1]) / h
        if len(past) == 2:
            slope = (chart.exponential(2, s, t) if self.exact_second else w1 / 2) / r0
            return [w1 + slope, -slope]
        w2, w3 = chart.exponential(2, s, t), chart.exponential(3, s, t)
        r1 = (lambdas[1] - lambdas[2]) / h
        # The weights are those of m' and m'', combinations of the differences d0 = (m_0 - m_1)/r0 and d1 = (m_1 - m_2)/r1.
        bend = 1 / (r0 + r1)
        second = w3 * bend * (2 if self.form == "consistent" else 1)
        by_d0 = w2 * (1 + r0 * bend) + second
        by_d1 = -w2 * r0 * bend - second
        return [w1 + by_d0 / r0, -by_d0 / r0 + by_d1 / r1, -by_d1 / r1]


@dataclass(frozen=True, kw_only=True)
class DPMSolverPlusPlus(Multistep):
    r"""DPM-Solver++ 1M/2M/3M: multistep, data prediction.

    2M is :math:`x_t = \sigma_t/\sigma_s\, x_s - \alpha_t (e^{-h} - 1) [(1 + 1/2r) D_s - D_{s'}/2r]` with s' the time before s
    and r the length of the step from s' over that of this one, in log-SNR. On grids of less than ten steps the last one is of
    first order, as in the authors' code; with ``lower_order_final=never`` it is not, as in k-diffusion's 2M, the alias
    ``dpmpp_2m``. ``tests/test_diffusers.py`` holds it to diffusers' scheduler, ``tests/test_verify.py`` to its order.
    """

    name = "dpmpp"
    chart_name = "data"
    reference: ClassVar[str] = "Lu et al., arXiv 2211.01095, algorithm 2; order 3 from the authors' code"


@dataclass(frozen=True, kw_only=True)
class RESMultistep(Multistep):
    r"""RES 2M and 3M: weights of the refined exponential solver, in phi_1 and phi_2 alone, with past points for its stages.

    With c_i = (lambda_i - lambda_s)/h the places of past points, b_3 = phi_2/(gamma c_2 + c_3), b_2 = gamma b_3 and
    b_1 = phi_1 - b_2 - b_3. Order 3 asks for gamma = (3 c_3^2 - 2 c_3)/(c_2 (2 - 3 c_2)), which ``form=consistent`` has. The
    public code has c_3^3 for c_3^2: the same at c_3 = 1, where its single-step solver has its last stage, but of second order
    here. 2M is exponential Adams-Bashforth of order 2, ``dpmpp:order=2,form=taylor``.
    """

    order: int = 3
    form: Literal["published", "consistent"] = "published"
    lower_order_final: LowerOrderFinal = "never"

    forms: ClassVar = ("published", "consistent")
    name = "res_m"
    chart_name = "data"
    reference: ClassVar[str] = "Zhang, Song, Chen, arXiv 2308.02157; RES4LYF, beta/rk_method_beta.py, calculate_res_3m_step"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (2, 3))

    @property
    @override
    def exact_second(self) -> bool:
        return True

    @override
    def weights(self, chart: ExponentialChart, past: Sequence[Time], t: Time) -> list[Time]:
        if len(past) < 3:
            return super().weights(chart, past, t)
        origin = chart.variable(past[0])
        h = chart.variable(t) - origin
        c2, c3 = ((chart.variable(time) - origin) / h for time in past[1:])
        gamma = (3 * c3 ** (3 if self.form == "published" else 2) - 2 * c3) / (c2 * (2 - 3 * c2))
        last = chart.exponential(2, past[0], t) / (gamma * c2 + c3)
        return [chart.exponential(1, past[0], t) - (1 + gamma) * last, gamma * last, last]


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep(Multistep):
    """Multistep DPM-Solver: noise prediction."""

    name = "dpm_m"
    chart_name = "noise_log_snr"
    reference: ClassVar[str] = "Lu et al., arXiv 2206.00927 and 2211.01095; from the authors' code"
