r"""Charts in which the flow of the data's Gaussian stands still, so that a solver integrates what is left of the field.

With mean m and variances L of the data along the directions of their covariance, :math:`S = \sqrt{\alpha^2 L + \sigma^2}` and
D_G the denoised point of the Gaussian,

.. math::
    y = \frac{x - \alpha m}{S}, \qquad
    \frac{dy}{d\log\rho} = \frac{\alpha\,(D_G - D)}{S}, \qquad
    D_G = m + \frac{\alpha L}{S^2}(x - \alpha m) .

The right side is 0 for one Gaussian. It is integrated in a clock that all directions share:

==================  ==============================  ==================
chart               clock                           d log rho/d clock
==================  ==============================  ==================
``gaussian``        log rho                         1
``gaussian_angle``  theta = arctan(rho/c)           1/(sin cos)(theta)
``gaussian_asinh``  u = arsinh(20 rho/c)            coth(u)
==================  ==============================  ==================

with c the scale of the data. A recipe sees one prediction, dy/d clock; in the rows of a table it becomes the denoised point,
the state and the data's mean, each with a coefficient for every direction.

With ``eta`` > 0 it is the reverse SDE that adds eta times the variance of the forward one's noise, and leaves the same laws:
:math:`y = (z - m)/(L + \rho^2)^{(1 + \eta)/2}` with z = x/alpha, whose drift is again 0 for one Gaussian, and whose noise over
a step from s to t has in x the standard deviation :math:`S_t \sqrt{1 - (S_t \alpha_s/(S_s \alpha_t))^{2\eta}}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.statistics import Statistics
from diffode.tableau import Number, Row

#: Noise level, in scales of the data, at which the clock of ``gaussian_asinh`` turns from linear in rho to logarithmic.
_BEND = 0.05


class GaussianChart(Chart):
    """The chart of the data's Gaussian with the clock log rho. Its coefficients are (1, E), a number for each direction."""

    name = "gaussian"
    prediction = "denoised"
    statistics: Statistics

    def __init__(self, path: Path | str | None, statistics: Statistics, eta: float = 0.0):
        super().__init__(path)
        self.statistics, self.eta = statistics, eta

    def deviation(self, t: float) -> Tensor:
        """S(t), (1, E)."""
        return self.statistics.deviations(self.path, t)[None]

    @override
    def scale(self, t: Any) -> Any:
        """S(t), and with noise alpha (S/alpha)^(1 + eta), (1, E)."""
        return self.deviation(t) * self._excess(t)

    def _excess(self, t: float) -> Number:
        """(S/alpha)^eta."""
        return (self.deviation(t) / self.path.alpha(t)) ** self.eta if self.eta else 1.0

    @override
    def ratio(self, s: Any, t: Any) -> Any:
        return self.deviation(t) / self.deviation(s) if self.ends_singular(t) else self.scale(t) / self.scale(s)

    @override
    def spread(self, s: float, t: float) -> Any:
        """Standard deviation of the noise of a step along each direction, (1, E); a step into sigma = 0 is that of the ODE."""
        if not self.eta or self.ends_singular(t):
            return 0.0
        fall = self.deviation(t) / self.path.alpha(t) * (self.path.alpha(s) / self.deviation(s))
        return self.deviation(t) * (-(2 * self.eta * fall.log()).expm1()).sqrt()

    @override
    def noise_clock(self, t: float) -> float:
        """Infinite: each direction has a noise clock of its own."""
        return math.inf

    @override
    def clock(self, t: Any) -> Any:
        rho = self.path.rho(t)
        return math.log(rho) if rho > 0 else -math.inf

    @override
    def time(self, clock: Any) -> Any:
        return self.path.time_from_rho(math.exp(clock))

    def rate(self, t: float) -> Number:
        """d log rho/d clock."""
        return 1.0

    @override
    def advance(self, s: Any, t: Any) -> Any:
        if not self.ends_singular(t):
            return self.scale(t) * (self.clock(t) - self.clock(s))
        # Near the data D_G - D falls with rho^2, whose integral in log rho is half of it.
        step = -1 / (2 * self.rate(s)) if math.isinf(self.clock(t)) else self.clock(t) - self.clock(s)
        return self.deviation(t) * step * self._excess(s) / (1 + self.eta)

    @override
    def moments(self, s: Any, t: Any, count: int) -> Any:
        return [self.advance(s, t) / (k + 1) for k in range(count)]

    @override
    def expressed(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of dy/d clock as rows of the denoised point, the state and the mean."""
        return [rows[0], *(self._expressed(row, rows) for row in rows[1:])]

    def _expressed(self, row: Row, rows: Sequence[Row]) -> Row:
        t = _one(row.time)
        states: dict[int, Number] = dict(row.states)
        mean: Number = self.path.alpha(t)
        for j, share in row.states.items():
            mean = mean - share * self.path.alpha(_one(rows[j].time))
        evaluations: dict[int, Number] = {}
        for j, weight in row.evaluations.items():
            of_state, of_mean, of_denoised = self._parts(_one(rows[j].time))
            states[j] = states.get(j, 0.0) + weight * of_state
            mean = mean + weight * of_mean
            evaluations[j] = weight * of_denoised
        return replace(row, states=states, evaluations=evaluations, mean=mean)

    def _parts(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (1, E) of x, the mean and the denoised point in dy/d clock."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        square = self.deviation(t) ** 2
        factor = self.rate(t) * alpha / self.deviation(t) * (1 + self.eta) / self._excess(t)
        return factor * alpha * self.statistics.variances / square, factor * sigma**2 / square, -factor


class GaussianAngleChart(GaussianChart):
    """The chart of the data's Gaussian with the clock arctan(rho/c), which is even where the data's structure is."""

    name = "gaussian_angle"

    @override
    def clock(self, t: Any) -> Any:
        return math.atan2(self.path.sigma(t), self.path.alpha(t) * self.statistics.scale)

    @override
    def time(self, clock: Any) -> Any:
        return self.path.time_from_rho(self.statistics.scale * math.tan(clock))

    @override
    def rate(self, t: float) -> Number:
        theta = self.clock(t)
        return float(1 / (math.sin(theta) * math.cos(theta)))


class GaussianAsinhChart(GaussianChart):
    """The chart of the data's Gaussian with the clock arsinh(20 rho/c): log rho above a twentieth of the scale, rho below."""

    name = "gaussian_asinh"

    @override
    def clock(self, t: Any) -> Any:
        return math.asinh(self.path.rho(t) / (_BEND * self.statistics.scale))

    @override
    def time(self, clock: Any) -> Any:
        return self.path.time_from_rho(_BEND * self.statistics.scale * math.sinh(clock))

    @override
    def rate(self, t: float) -> Number:
        return 1 / math.tanh(self.clock(t))


#: The charts of the data's Gaussian by name.
gaussian_charts: dict[str, type[GaussianChart]] = {
    chart.name: chart for chart in (GaussianChart, GaussianAngleChart, GaussianAsinhChart)
}


def _one(time: Number) -> float:
    if isinstance(time, Tensor):
        raise ArgumentError("a chart of the data's Gaussian has one time for all rows of a batch")
    return time
