r"""Exponential integrators of the reverse SDE: DPM-Solver++ SDE, 2M SDE, 3M SDE, SEEDS, SA-Solver.

Each is a deterministic recipe in a chart of the reverse SDE (:class:`~diffode.charts.StochasticDataChart` and
:class:`~diffode.charts.StochasticNoiseChart`), whose linear part and noise are integrated exactly; ``eta`` multiplies the
variance of the noise, and with eta = 0 the deterministic solver is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from typing_extensions import override

from diffode.charts import Chart, StochasticDataChart, StochasticNoiseChart
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.solvers.dpm import SingleStep
from diffode.solvers.dpm_multistep import Multistep
from diffode.solvers.solver import LowerOrderFinal, TableSolver, WithNoise, check_choice, final_order, noise_along, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class MultistepSDE(WithNoise, Multistep):
    """The multistep recipe in the data chart of the reverse SDE."""

    lower_order_final: LowerOrderFinal = "never"

    chart_name = "data"

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        return StochasticDataChart(path, self.eta)


@dataclass(frozen=True, kw_only=True)
class DPMPlusPlus2MSDE(MultistepSDE):
    """DPM-Solver++ 2M SDE: ``form=midpoint`` (weight phi_1/2 of the slope) or ``heun`` (phi_2)."""

    form: Literal["midpoint", "heun"] = "midpoint"  # type: ignore[assignment]
    forms: ClassVar = ("midpoint", "heun")

    name = "dpmpp_2m_sde"
    reference = "Lu et al., arXiv 2211.01095, appendix; K. Crowson, k-diffusion, sample_dpmpp_2m_sde"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (1, 2))

    @property
    @override
    def exact_second(self) -> bool:
        return self.form == "heun"


@dataclass(frozen=True, kw_only=True)
class DPMPlusPlus3MSDE(MultistepSDE):
    """DPM-Solver++ 3M SDE; its second difference as published lacks a factor 2, which ``form=consistent`` has."""

    order: int = 3
    form: Literal["published", "consistent"] = "published"
    forms: ClassVar = ("published", "consistent")

    name = "dpmpp_3m_sde"
    reference = "K. Crowson, k-diffusion, sample_dpmpp_3m_sde"

    @property
    @override
    def exact_second(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class DPMPlusPlusSDE(WithNoise, SingleStep):
    """DPM-Solver++ SDE: the two-stage method in the data chart, r = 1/2; both noises belong to one Brownian motion."""

    name = "dpmpp_sde"
    chart_name = "data"
    reference = "Lu et al., arXiv 2211.01095, appendix; K. Crowson, k-diffusion, sample_dpmpp_sde"

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        return StochasticDataChart(path, self.eta)


@dataclass(frozen=True, kw_only=True)
class SEEDS(WithNoise, SingleStep):
    """SEEDS-1, 2, 3: DPM-Solver's stages in the noise chart of the reverse SDE, or in its data chart, ``chart=data``.

    In the data chart it is the family of ``dpmpp_sde``, with the orders of SEEDS.
    """

    order: int = 3
    chart: Literal["noise_log_snr", "data"] = "noise_log_snr"

    name = "seeds"
    reference = "Gonzalez et al., arXiv 2305.14267, algorithms 1 to 4, and the appendix for data prediction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("chart", self.chart, ("noise_log_snr", "data"))

    @property
    @override
    def chart_name(self) -> str:
        return self.chart

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        return (StochasticDataChart if self.chart == "data" else StochasticNoiseChart)(path, self.eta)


def _with_half(chart: StochasticDataChart, s: float, t: float) -> list[float]:
    """The first two moments of a step with 1/2 in place of phi_2 in the second: alpha_t q/2, q = (1 + eta) h."""
    q = (1 + chart.eta) * (chart.variable(t) - chart.variable(s))
    return [chart.advance(s, t), chart.weight(t) * q / 2]


@dataclass(frozen=True, kw_only=True)
class SASolver(TableSolver):
    r"""SA-Solver: stochastic Adams predictor and corrector in the data chart, with one evaluation per step.

    The noise has the factor tau (tau^2 is the eta of the other solvers) where rho lies in [tau_from, tau_to], 0 elsewhere. The
    corrector, if its order is not 0, redoes every step but the last with the new denoised point and the same noise.

    Wherever two points are used, the authors' code replaces the exact weight phi_2 of their slope by 1/2, "for few steps";
    ``form="consistent"`` has the integrals of the paper throughout. The order is the same.
    """

    form: Literal["published", "consistent"] = "published"
    predictor: int = 3
    corrector: int = 3
    tau: float = 1.0
    tau_from: float = 0.0
    tau_to: float = math.inf
    lower_order_final: LowerOrderFinal = "never"

    name = "sa"
    chart_name = "data"
    reference = "Xue et al., arXiv 2309.05019, algorithm 1, equations 14 and 17"

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("published", "consistent"))
        check_choice("predictor", self.predictor, (1, 2, 3, 4))
        check_choice("corrector", self.corrector, (0, 1, 2, 3, 4))
        check_choice("lower_order_final", self.lower_order_final, ("always", "below_10", "never"))
        for name in ("tau", "tau_from", "tau_to"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not value >= 0
                or (name == "tau" and value > 1e3)
            ):
                raise ArgumentError(f"{name} must be a number >= 0, got {value!r}")
        if self.tau_from > self.tau_to:
            raise ArgumentError(f"tau_from must not exceed tau_to, got {self.tau_from!r} and {self.tau_to!r}")

    @property
    @override
    def order(self) -> int:
        return max(self.predictor, self.corrector + 1 if self.corrector else 0)

    @property
    @override
    def stochastic(self) -> bool:
        return self.tau > 0

    @property
    def convergence_order(self) -> int:
        """The order of the ODE limit: q past nodes and the new one give q + 1, at most p + 1 for a predictor of order p."""
        return min(self.corrector, self.predictor) + 1 if self.corrector else self.predictor

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        return StochasticDataChart(path, float(self.tau) ** 2)

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        quiet = StochasticDataChart(chart.path, 0.0)
        steps = len(times) - 1
        x, history = table.start, [table.start]
        for number, s, t in steps_of(times):
            on = chart if self.tau_from <= chart.path.rho(s) <= self.tau_to else quiet
            noise = noise_along(table, on, (s, t))
            ratio = {x: on.ratio(s, t)}
            for row, order, nodes in self._stages(table, history, number, steps, t, chart):
                used = (*history[:order], *row)
                halved = self.form == "published" and len(used) == 2
                weights = on.adams(nodes, s, t, _with_half(cast(StochasticDataChart, on), s, t) if halved else None)
                x = table.add(t, ratio, dict(zip(used, weights, strict=True)), *noise)
            table.output(x)
            history.insert(0, x if number == steps or not self.corrector else x - 1)

    def _stages(
        self, table: Writer, history: list[int], number: int, steps: int, t: float, chart: Chart
    ) -> Iterator[tuple[tuple[int, ...], int, list[float]]]:
        """For the predictor, then for the corrector: the new rows that it uses, its order, and the times of its nodes."""
        singular = chart.ends_singular(t)
        order = 1 if singular else final_order(self.predictor, number, steps, self.lower_order_final)
        yield (), order, [table.time(row) for row in history[:order]]
        if self.corrector and number < steps:
            order = final_order(self.corrector, number, steps, self.lower_order_final)
            yield (len(table.rows) - 1,), order, [*(table.time(row) for row in history[:order]), t]
