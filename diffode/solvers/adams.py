"""Multistep methods with one evaluation per step: Adams-Bashforth in any chart, LMS, DEIS, iPNDM."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from diffode import grids
from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.gaussian_charts import gaussian_charts
from diffode.solvers.in_chart import CHARTS, InChart
from diffode.solvers.runge_kutta import add_step
from diffode.solvers.solver import LowerOrderFinal, TableSolver, check_choice, final_order, noise_along, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class Adams(InChart):
    """Variable-step Adams methods: the polynomial through the last ``order`` evaluations, integrated exactly.

    The first steps have the order that their history allows. This costs nothing where noise is large and the chart makes the
    flow nearly linear; in native time on VP or rectified flow the first step, Euler's, leaves an error of second order (order
    4 measures 3.3 to 3.7 at a few hundred steps, and tends to 2).
    """

    order: int = 2
    lower_order_final: LowerOrderFinal = "never"

    orders: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    def __post_init__(self) -> None:
        check_choice("order", self.order, self.orders)
        check_choice("lower_order_final", self.lower_order_final, ("always", "below_10", "never"))

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        history = [table.start]
        for number, s, t in steps_of(times):
            order = final_order(self.order, number, len(times) - 1, self.lower_order_final)
            if math.isinf(chart.variable(t)) or (self.stochastic and chart.ends_singular(t)):
                order = 1
            used = history[:order]
            weights = chart.adams([table.time(row) for row in used], s, t)
            noise = noise_along(table, chart, (s, t))[0]
            x = table.add(t, {history[0]: chart.ratio(s, t)}, dict(zip(used, weights, strict=True)), noise)
            history.insert(0, table.output(x))


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(Adams):
    """Variable-step Adams-Bashforth of order 1 to 6 in any chart; in log-SNR charts the exponential Adams-Bashforth method.

    ``eta`` > 0 makes it one of the reverse SDE, with eta times the variance of the forward one's noise, in a chart of the
    data's Gaussian.
    """

    chart: str = "velocity"
    eta: float = 0.0

    orders: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5, 6)

    name = "ab"
    reference = "Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, III.5"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("chart", self.chart, CHARTS)
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float) or not 0 <= self.eta < math.inf:
            raise ArgumentError(f"eta must be a number >= 0 (0 adds no noise), got {self.eta!r}")
        if self.eta and self.chart not in gaussian_charts:
            raise ArgumentError(
                f"eta > 0 goes with a chart of the data's Gaussian ({', '.join(gaussian_charts)}), got chart={self.chart}; "
                "other charts have solvers of their own for the reverse SDE, such as dpmpp_2m_sde"
            )

    @property
    @override
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    @override
    def chart_name(self) -> str:
        return self.chart


@dataclass(frozen=True, kw_only=True)
class LMS(Adams):
    """Linear multistep in rho with exact weights: Adams-Bashforth in the noise chart."""

    order: int = 4

    name = "lms"
    chart_name = "noise"
    reference = "K. Crowson, k-diffusion, sample_lms"


@dataclass(frozen=True, kw_only=True)
class DEIS(Adams):
    """DEIS-tAB: polynomials in VP time through the last ``order`` noise predictions, with weight d rho/dt."""

    order: int = 3

    name = "deis"
    chart_name = "noise_time"
    reference = "Zhang and Chen, arXiv 2204.13902, equation 15"


@dataclass(frozen=True, kw_only=True)
class IPNDM(TableSolver):
    """Improved PNDM: the constant Adams-Bashforth weights of a uniform grid, in rho, on any grid.

    On a non-uniform grid every ``order`` above 1 is second order; yet it is often the best at 5 to 10 evaluations.
    """

    order: int = 4

    name = "ipndm"
    chart_name = "noise"
    reference = "Liu et al., arXiv 2202.09778; Zhang and Chen, arXiv 2204.13902, appendix"
    weights: ClassVar[tuple[tuple[float, ...], ...]] = (
        (1.0,),
        (3 / 2, -1 / 2),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3, 4))

    @property
    @override
    def convergence_order(self) -> int:
        return min(self.order, 2)

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        history = [table.start]
        for _, _, t in steps_of(times):
            weights = self.weights[min(self.order, len(history)) - 1]
            x = add_step(table, chart, history[0], t, history, weights)
            history.insert(0, table.output(x))


@dataclass(frozen=True, kw_only=True)
class IPNDMVariable(TableSolver):
    """iPNDM_v: Adams-Bashforth weights for variable steps in rho.

    ``form=published`` keeps three slips of the authors' code: the products of ratios lack a parenthesis (which is right on
    uniform grids only), one sign is wrong, and the oldest weight has the ratio of a later step. ``form=consistent`` is exact
    and equals LMS.
    """

    order: int = 4
    form: Literal["published", "consistent"] = "published"

    name = "ipndm_v"
    chart_name = "noise"
    reference = "Zhang and Chen, arXiv 2204.13902, appendix; diff-sampler, ipndm_v_sampler"

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3, 4))
        check_choice("form", self.form, ("published", "consistent"))

    @property
    @override
    def convergence_order(self) -> int:
        return 2 if self.form == "published" and self.order == 4 else self.order

    def order_on(self, grid: grids.Times) -> int:
        """The order on a family of grids: on log-SNR grids, whose step ratio is constant, the published order 4 has third."""
        even = isinstance(grid, str) and grids.spec_of(grid).partition(":")[0] == "log_snr"
        third = self.form == "published" and self.order == 4 and even
        return 3 if third else self.convergence_order

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        history = [table.start]
        for _, s, t in steps_of(times):
            used = history[: self.order]
            if self.form == "consistent":
                weights = chart.adams([table.time(row) for row in used], s, t)
                x = table.add(t, {history[0]: chart.ratio(s, t)}, dict(zip(used, weights, strict=True)))
            else:
                clocks = [chart.clock(t), *(chart.clock(table.time(row)) for row in used)]
                x = add_step(table, chart, history[0], t, used, _published_variable_weights(clocks))
            history.insert(0, table.output(x))


@dataclass(frozen=True, kw_only=True)
class GradientEstimation(TableSolver):
    r"""x_t = x_s (alpha_t/alpha_s) + alpha_t (rho_t - rho_s) (gamma eps_s + (1 - gamma) eps_{s'}), s' the time before s.

    The paper reads DDIM as gradient descent on a distance to the data and corrects the estimate of the gradient by the last
    one; gamma = 2 is its choice. Adams-Bashforth of order 2 has gamma = 1 + (length of this step)/(2 length of the last one),
    so that a constant gamma gives first order. The first step and a step into sigma = 0 are Euler's.
    """

    gamma: float = 2.0

    name = "gradient_estimation"
    chart_name = "noise"
    order = 1
    reference: ClassVar[str] = "Permenter and Yuan, arXiv 2306.04848, algorithm 2; ComfyUI, sample_gradient_estimation"

    def __post_init__(self) -> None:
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int | float) or not math.isfinite(self.gamma):
            raise ArgumentError(f"gamma must be a finite number (2 usually, 1 is Euler's method), got {self.gamma!r}")

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        history = [table.start]
        for _, _, t in steps_of(times):
            euler = len(history) == 1 or chart.ends_singular(t)
            weights = (1.0,) if euler else (self.gamma, 1 - self.gamma)
            history.insert(0, table.output(add_step(table, chart, history[0], t, history, weights)))


def _published_variable_weights(clocks: Sequence[float]) -> list[float]:
    """Weights of the noise predictions, as shares of the step; ``clocks`` are the new rho and the past ones. Latest first.

    ``bend`` and ``twist`` are the weights of the second and third backward divided difference, ``h`` the present step and the
    past ones.
    """
    h = [new - old for new, old in itertools.pairwise(clocks)]
    if len(h) == 1:
        return [1.0]
    r = h[0] / h[1]
    weights = [1 + r / 2, -r / 2]
    if len(h) == 2:
        return weights
    # Published is (1 - u)/2 with u = h0/(3 (h0 + h1)) * ratio; right is (1 - h0/(3 (h0 + h1)))/2 * ratio.
    two = h[0] + h[1]
    bend = (1 - h[0] / (3 * two) * (h[0] * two) / (h[1] * (h[1] + h[2]))) / 2
    q = h[1] / h[2]
    weights = [weights[0] + bend, weights[1] - (1 + q) * bend, q * bend]
    if len(h) == 3:
        return weights
    three = two + h[2]
    # The second term is published with a plus; the expansion has a minus.
    twist = (1 - h[0] / (3 * two)) / 2 + (1 - h[0] / (2 * two)) * h[0] / (6 * three)
    twist *= h[0] * two * three / (h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3]))
    p = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
    # The oldest weight is published with q in place of h[2]/h[3].
    return [
        weights[0] + twist,
        weights[1] - (1 + q + p) * twist,
        weights[2] + (q + p * (1 + h[2] / h[3])) * twist,
        -p * q * twist,
    ]
