r"""Samplers that step down below the next noise level and add noise back: DDIM with eta, DDPM, k-diffusion's ancestral ones.

With rho = sigma/alpha, a step from s to t aims at :math:`\rho_\downarrow = \sqrt{\rho_t^2 - \rho_\uparrow^2}` and adds
:math:`\rho_\uparrow = \eta\,\rho_t\sqrt{\rho_s^2 - \rho_t^2}/\rho_s`. At eta = 1 that is the posterior of the forward process,
which makes DDPM, DDIM(1) and ancestral Euler one sampler, on any path.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.solvers.runge_kutta import add_step
from diffode.solvers.solver import TableSolver, WithNoise, check_choice, steps_of
from diffode.tableau import Writer


class Down(NamedTuple):
    """A step down, and the noise that leads from there to the time asked for.

    Attributes:
        time: the time to step to.
        up: the noise to add there, in units of alpha and at most the level at the time asked for.
        levels: where there is noise, the levels from which and to which it is a step.
    """

    time: float
    up: float = 0.0
    levels: tuple[float, float] = (math.inf, math.inf)

    @property
    def span(self) -> tuple[float, float]:
        """The interval of the noise clock rho^-2; at eta = 1 the noise is rho_t^2 times the Brownian increment over it."""
        before, after = self.levels
        return before**-2, after**-2


def step_down(path: Path, s: float, t: float, eta: float) -> Down:
    """Where to step to from s, and the noise to add there to reach t."""
    if eta == 0:
        return Down(t)
    rho_s, rho_t = path.rho(s), path.rho(t)
    share = rho_t / rho_s
    up = min(rho_t, eta * rho_t * math.sqrt((1 - share) * (1 + share)))
    if up == 0:
        return Down(t)
    return Down(path.time_from_rho(math.sqrt((rho_t - up) * (rho_t + up))), up, (rho_s, rho_t))


@dataclass(frozen=True, kw_only=True)
class Ancestral(WithNoise, TableSolver):
    """A deterministic step to a lower noise level, then noise; order and evaluations are those of the deterministic step."""

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        x = table.start
        for _, s, t in steps_of(times):
            x = self.prepared(table, chart, x, s)
            below = step_down(chart.path, s, t, self.eta)
            down, up = below.time, below.up
            if chart.path.rho(down) == 0:
                row = add_step(table, chart, x, down, (x,), (1.0,))
            else:
                row = self.step(table, chart, x, s, down)
            alpha = chart.path.alpha(t)
            scale = alpha / chart.path.alpha(down)
            x = table.output(table.noised(row, t, scale, alpha * up, below.span) if up else row)

    def prepared(self, table: Writer, chart: Chart, x: int, s: float) -> int:
        """Append rows at s before the step from there, if any; returns the row to step from."""
        return x

    @abstractmethod
    def step(self, table: Writer, chart: Chart, x: int, s: float, down: float) -> int:
        """Append the deterministic step from s to ``down``; returns its row."""


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Ancestral):
    """Ancestral Euler: DDIM with eta = 1, on any path."""

    name = "euler_ancestral"
    chart_name = "noise"
    reference = "K. Crowson, k-diffusion, sample_euler_ancestral; Song, Meng, Ermon, arXiv 2010.02502, equation 12"
    order = 1

    @override
    def step(self, table: Writer, chart: Chart, x: int, s: float, down: float) -> int:
        return add_step(table, chart, x, down, (x,), (1.0,))


@dataclass(frozen=True, kw_only=True)
class DDIM(EulerAncestral):
    """DDIM: Euler in the noise chart (which is DPM-Solver-1 and DPM-Solver++ 1), with noise if ``eta`` > 0."""

    eta: float = 0.0

    name = "ddim"
    reference = "Song, Meng, Ermon, arXiv 2010.02502, equations 12 and 16"


@dataclass(frozen=True, kw_only=True)
class AncestralMidpoint(Ancestral):
    """The midpoint rule in the chart's clock, with its midpoint in log-SNR: the geometric mean of the two levels."""

    order = 2
    nfe_per_step = 2

    @override
    def step(self, table: Writer, chart: Chart, x: int, s: float, down: float) -> int:
        middle = chart.path.time_from_log_snr((chart.path.log_snr(s) + chart.path.log_snr(down)) / 2)
        inner = add_step(table, chart, x, middle, (x,), (1.0,))
        return add_step(table, chart, x, down, (inner,), (1.0,))


class DPM2Ancestral(AncestralMidpoint):
    """Ancestral DPM-2: the midpoint rule in rho with the midpoint in log-SNR (geometric mean)."""

    name = "dpm2_ancestral"
    chart_name = "noise"
    reference = "K. Crowson, k-diffusion, sample_dpm_2_ancestral"


class DPMPlusPlus2SAncestral(AncestralMidpoint):
    """Ancestral DPM-Solver++ 2S: the exponential midpoint rule in the data chart."""

    name = "dpmpp_2s_ancestral"
    chart_name = "data"
    reference = "K. Crowson, k-diffusion, sample_dpmpp_2s_ancestral; Lu et al., arXiv 2211.01095"


@dataclass(frozen=True, kw_only=True)
class DDPM(TableSolver):
    """Ancestral sampling of DDPM: the posterior mean of the forward process, with one of two variances.

    ``variance=small`` is that of the posterior (DDIM with eta = 1), ``variance=large`` that of the forward step, which DDPM
    tries as well.
    """

    variance: Literal["small", "large"] = "small"

    name = "ddpm"
    chart_name = "noise"
    reference = "Ho, Jain, Abbeel, arXiv 2006.11239, equations 6 and 7 and section 3.2"
    order = 1

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("small", "large"))

    @property
    @override
    def stochastic(self) -> bool:
        return True

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        path = chart.path
        x = table.start
        for _, s, t in steps_of(times):
            below = step_down(path, s, t, 1.0)
            down, up = below.time, below.up
            row = add_step(table, chart, x, down, (x,), (1.0,))
            if up:
                # The variance of the forward step is that of the posterior times (sigma_s/sigma_t)^2.
                up *= path.sigma(s) / path.sigma(t) if self.variance == "large" else 1.0
                alpha = path.alpha(t)
                row = table.noised(row, t, alpha / path.alpha(down), alpha * up, below.span)
            x = table.output(row)


@dataclass(frozen=True, kw_only=True)
class EDMStochastic(TableSolver):
    """EDM's stochastic sampler: each step raises the noise level by a factor 1 + gamma, then takes a Heun step in rho.

    gamma = min(churn/steps, sqrt 2 - 1) where rho lies in [noise_from, noise_to], else 0; ``inflation`` multiplies the noise.
    """

    churn: float = 40.0
    noise_from: float = 0.05
    noise_to: float = 50.0
    inflation: float = 1.003

    name = "edm_stochastic"
    chart_name = "noise"
    reference = "Karras et al., arXiv 2206.00364, algorithm 2 and table 5"
    order = 2
    nfe_per_step = 2

    def __post_init__(self) -> None:
        for name in ("churn", "noise_from", "noise_to", "inflation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ArgumentError(f"{name} must be a number >= 0, got {value!r}")
        if self.noise_from > self.noise_to:
            raise ArgumentError(f"noise_from must not exceed noise_to, got {self.noise_from!r} and {self.noise_to!r}")

    @property
    @override
    def stochastic(self) -> bool:
        return self.churn > 0

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        path = chart.path
        gamma = min(self.churn / (len(times) - 1), math.sqrt(2) - 1)
        x = table.start
        for _, s, t in steps_of(times):
            rho = path.rho(s)
            if gamma > 0 and self.noise_from <= rho <= self.noise_to:
                raised, more = path.time_from_rho(rho * (1 + gamma)), gamma
                if raised > path.t_end:
                    # A model of discrete levels was not trained above its last level.
                    raised, more = path.t_end, max(path.rho(path.t_end) / rho - 1, 0.0)
                alpha = path.alpha(raised)
                spread = alpha * self.inflation * rho * math.sqrt(more * (2 + more))
                x = table.add(raised, {x: alpha / path.alpha(s)}, {}, {table.draw(): spread})
            euler = add_step(table, chart, x, t, (x,), (1.0,))
            x = table.output(euler if chart.ends_singular(t) else self._corrected(table, chart, x, euler, t))

    def _corrected(self, table: Writer, chart: Chart, x: int, euler: int, t: float) -> int:
        return add_step(table, chart, x, t, (x, euler), (0.5, 0.5))
