r"""ER-SDE-Solver: the reverse SDE with another noise scale, solved in rho with Taylor terms from past steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from typing_extensions import override

from diffode.arguments import check_count
from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.solvers.solver import TableSolver, check_choice, steps_of
from diffode.tableau import Writer

#: Noise scales phi(rho) of the paper: ``ode`` adds no noise, ``sde`` is the plain reverse SDE, ``er_5`` its recommendation.
SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ode": lambda rho: rho,
    "sde": lambda rho: rho**2,
    "er_5": lambda rho: rho * (np.exp(rho**0.3) + 10),
}
#: Largest number of points of a sum.
_MOST_POINTS = 10**6
#: Points and weights of Gauss-Legendre integration on [-1, 1].
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True, kw_only=True)
class ERSDE(TableSolver):
    r"""y_t = r y_s + (1 - r) D + [..] D' + [..] D'' + sqrt(rho_t^2 - r^2 rho_s^2) z, y = x/alpha, r = phi(rho_t)/phi(rho_s).

    D' and D'' are divided differences of past denoised points in rho. ``form=published`` approximates the integrals of 1/phi by
    sums over ``points`` points, 100 in the authors' code and 200 in ComfyUI, and takes D' half a step back, so that order 3 is
    near first order in the ODE limit; ``form=consistent`` integrates by Gauss-Legendre and takes D' at the start of the step.
    """

    order: int = 3
    scale: Literal["er_5", "sde", "ode"] = "er_5"
    form: Literal["published", "consistent"] = "published"
    points: int = 100

    name = "er_sde"
    chart_name = "data"
    reference = "Cui et al., arXiv 2309.06169, algorithms 1 to 3"

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3))
        check_choice("scale", self.scale, tuple(SCALES))
        check_choice("form", self.form, ("published", "consistent"))
        check_count("points", self.points, 1, _MOST_POINTS)
        if self.form == "consistent" and self.points != 100:
            raise ArgumentError(f"points goes with form=published, whose sums have so many; leave it out, got {self.points!r}")

    @property
    @override
    def stochastic(self) -> bool:
        return self.scale != "ode"

    @property
    @override
    def convergence_order(self) -> int:
        return self.order if self.form == "consistent" else 1

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        # phi overflows beyond rho = 3e9 and is 0 where a run upwards may begin; the table then refuses its coefficients, with
        # an error that names the grid.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._write(table, chart, times)

    def _write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        history = [table.start]
        for _, s, t in steps_of(times):
            past = [chart.path.rho(table.time(row)) for row in history[: self.order]]
            ratio, weights, spread = self._step(past, chart.path.rho(t))
            alpha = chart.path.alpha(t)
            x = table.add(
                t,
                {history[0]: alpha * ratio / chart.path.alpha(s)},
                {row: alpha * w for row, w in zip(history, weights, strict=False)},
                {table.draw(self._span(past[0], chart.path.rho(t))): alpha * spread} if spread else None,
            )
            history.insert(0, table.output(x))

    def _step(self, past: Sequence[float], end: float) -> tuple[float, list[float], float]:
        """Factor of y_s, weights of the past denoised points (latest first) and factor of the noise, for a step to ``end``."""
        start = past[0]
        if end == 0:
            return 0.0, [1.0], 0.0
        ratio = float(self._phi(end) / self._phi(start))
        spread = math.sqrt(max(0.0, (end - ratio * start) * (end + ratio * start))) if self.stochastic else 0.0
        weights = [1 - ratio] + [0.0] * (len(past) - 1)
        if len(past) > 1:
            by_slope = end - start + self._integral(start, end, 0)
            by_bend = (end - start) ** 2 / 2 + self._integral(start, end, 1) if len(past) > 2 else 0.0
            for j, (slope, bend) in enumerate(zip(*self._differences(past), strict=True)):
                weights[j] += by_slope * slope + by_bend * bend
        return ratio, weights, spread

    def _span(self, start: float, end: float) -> tuple[float, float]:
        """The interval of the clock (rho/phi)^2, in which the noise of y/phi is a Brownian motion."""
        return float((start / self._phi(start)) ** 2), float((end / self._phi(end)) ** 2)

    def _differences(self, past: Sequence[float]) -> tuple[list[float], list[float]]:
        """D' and D'' at past[0] as coefficients of the past denoised points."""
        gap = past[0] - past[1]
        if len(past) == 2:
            return [1 / gap, -1 / gap], [0.0, 0.0]
        older = past[1] - past[2]
        near, far = [1 / gap, -1 / gap, 0.0], [0.0, 1 / older, -1 / older]
        bend = [2 * (a - b) / (past[0] - past[2]) for a, b in zip(near, far, strict=True)]
        if self.form == "consistent":
            near = [a + gap / 2 * b for a, b in zip(near, bend, strict=True)]
        return near, bend

    def _phi(self, rho: float | np.ndarray) -> np.ndarray:
        return SCALES[self.scale](np.asarray(rho, dtype=float))

    def _integral(self, start: float, end: float, power: int) -> float:
        """phi(end) times the integral of (rho - start)^power/phi(rho) from end to start."""
        if self.form == "published":
            rho = end + np.arange(self.points) * (start - end) / self.points
            total = np.sum((rho - start) ** power / self._phi(rho)) * (start - end) / self.points
        else:
            # The variable is log rho, in which the integrand is smooth over decades.
            low, high = math.log(end), math.log(start)
            rho = np.exp((low + high) / 2 + (high - low) / 2 * _POINTS)
            total = np.dot(_WEIGHTS, (rho - start) ** power * rho / self._phi(rho)) * (high - low) / 2
        return float(self._phi(end) * total)
