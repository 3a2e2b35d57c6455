r"""Charts: the variables in which the probability-flow ODE is smooth, and in which solvers integrate.

In a chart the equation reads :math:`dz = m\, d\theta`, with state :math:`z = x/S(t)`, clock :math:`\theta(t)` and a predicted
quantity m, which is the view that the field gives. Multistep solvers replace m by a polynomial in a variable
:math:`\tau(t)` of the chart and integrate exactly; Runge-Kutta solvers step in the clock.

=================  ===========  ==================  ====================  ====================
chart              state z      clock theta         variable tau          m
=================  ===========  ==================  ====================  ====================
``velocity``       x            t                   t                     velocity
``noise``          x/alpha      rho = sigma/alpha   rho                   noise
``noise_log_snr``  x/alpha      rho                 lambda = -log rho     noise
``noise_time``     x/alpha      rho                 t of the linear VP    noise
``data``           x/sigma      1/rho               lambda                denoised
=================  ===========  ==================  ====================  ====================

One family of numbers carries all multistep weights, the *moments* :math:`S(t)\int_s^t u^k d\theta`, where
:math:`u = (\tau - \tau_s)/(\tau_t - \tau_s)` runs from 0 to 1 over the step. They are :math:`S(t)(\theta_t - \theta_s)/(k+1)`
when the variable is the clock, and exponential-integrator functions when it is the log-SNR.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Prediction
from diffode.numerics.exponential import phi
from diffode.numerics.memory import each_once
from diffode.numerics.polynomials import weights_of
from diffode.paths import VP, Path, Time
from diffode.paths import get as get_path
from diffode.paths.path import lack_of_path, ops
from diffode.statistics import Statistics
from diffode.tableau import Row

#: Nodes and weights of Gauss-Legendre quadrature on [-1, 1].
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Chart(ABC):
    """A change of variables for one path, given as a path or its spec, or None in the velocity chart.

    Times and clocks are floats, or tensors (B,), and answers are of the same kind. The noise of a chart is that of one Brownian
    motion for all rows, whose times are floats. ``prediction`` is the view of the field for m.
    """

    name: ClassVar[str]
    prediction: ClassVar[Prediction]
    #: Whether it is made of alpha and sigma.
    needs_path: ClassVar[bool] = True
    #: Those of the data, in a chart that knows them.
    statistics: Statistics | None = None

    def __init__(self, path: Path | str | None):
        self._path = None if path is None else get_path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path.spec if self._path else 'no path'})"

    @property
    def path(self) -> Path:
        """The path; if there is none, the error says how to give one."""
        if self._path is None:
            raise lack_of_path(f"chart {self.name!r}")
        return self._path

    @abstractmethod
    def scale(self, t: Time) -> Time:
        """S(t), by which the state is divided."""

    @abstractmethod
    def clock(self, t: Time) -> Time:
        """theta(t)."""

    @abstractmethod
    def time(self, clock: Time) -> Time:
        """The time at which the clock has this value."""

    @abstractmethod
    def moments(self, s: Time, t: Time, count: int) -> list[Time]:
        """S(t) times the integral of u^k d theta over the step s -> t, k = 0..count-1."""

    def variable(self, t: Time) -> Time:
        """tau(t), the variable of the polynomials; by default the clock."""
        return self.clock(t)

    def advance(self, s: Time, t: Time) -> Time:
        """S(t)(theta_t - theta_s): the factor of a constant m in x after the step."""
        return self.moments(s, t, 1)[0]

    def ratio(self, s: Time, t: Time) -> Time:
        """S(t)/S(s): the factor of x before the step in x after it."""
        return self.scale(t) / self.scale(s)

    def spread(self, s: float, t: float) -> float:
        """Standard deviation of the noise that a step adds to x; 0 in a chart of the probability-flow ODE."""
        return 0.0

    def noise_clock(self, t: float) -> float:
        """A clock that increases from noise to data, over which the noise of a step is the increment of one Brownian motion."""
        return -t

    def ends_singular(self, t: Time) -> bool:
        """Whether a step to t reaches sigma = 0, for all rows, where one-step methods fall back to first order."""
        if self._path is None:
            return False
        sigma = self._path.sigma(t)
        return bool((sigma == 0).all()) if isinstance(sigma, Tensor) else sigma == 0

    def expressed(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of m as rows of the view that the field gives: the same, unless m is none."""
        return list(rows)

    def adams(self, nodes: Sequence[float], s: float, t: float, moments: Sequence[float] | None = None) -> list[float]:
        """Weights of m at the times ``nodes`` in the step s -> t: the exact integral of their interpolation polynomial.

        With the current and past nodes these are the variable-step Adams-Bashforth weights of the chart (exponential ones for
        ``data``); with t among the nodes, those of Adams-Moulton. ``moments`` replaces the moments of the chart.
        """
        if len(nodes) == 1:
            return [self.advance(s, t)]
        origin = self.variable(s)
        width = self.variable(t) - origin
        positions = [(self.variable(node) - origin) / width for node in nodes]
        return weights_of(positions, self.moments(s, t, len(nodes)) if moments is None else moments)


class VelocityChart(Chart):
    """dx = v dt: any velocity field, with or without a path."""

    name = "velocity"
    prediction = "velocity"
    needs_path = False

    @override
    def scale(self, t: Time) -> Time:
        return t * 0 + 1.0

    @override
    def clock(self, t: Time) -> Time:
        return t

    @override
    def time(self, clock: Time) -> Time:
        return clock

    @override
    def moments(self, s: Time, t: Time, count: int) -> list[Time]:
        return [(t - s) / (k + 1) for k in range(count)]


class NoiseChart(Chart):
    """d(x/alpha) = eps d rho: DDIM, Heun of EDM, iPNDM, LMS."""

    name = "noise"
    prediction = "noise"

    @override
    @each_once
    def scale(self, t: Time) -> Time:
        return self.path.alpha(t)

    @override
    @each_once
    def clock(self, t: Time) -> Time:
        return self.path.rho(t)

    @override
    def time(self, clock: Time) -> Time:
        return self.path.time_from_rho(clock)

    @override
    def advance(self, s: Time, t: Time) -> Time:
        return self.scale(t) * (self.clock(t) - self.clock(s))

    @override
    def moments(self, s: Time, t: Time, count: int) -> list[Time]:
        return [self.advance(s, t) / (k + 1) for k in range(count)]


class NoiseTimeChart(NoiseChart):
    """The noise chart with polynomials in the time of the linear VP path: DEIS-tAB (arXiv 2204.13902)."""

    name = "noise_time"
    _time_axis = VP()

    @each_once
    def variable(self, t: Time) -> Time:
        """Time at which the linear VP path has the same rho, whatever the path; DEIS fits polynomials in it."""
        return self._time_axis.time_from_rho(self.clock(t))

    def moments(self, s: Time, t: Time, count: int) -> list[Time]:
        """The moments by Gauss-Legendre quadrature in asinh rho, in which the VP time is smooth from rho = 0 to 1e3."""
        zero = s * 0 + t * 0
        if isinstance(zero, Tensor):
            each = [self._moments(a, b, count) for a, b in zip((s + zero).tolist(), (t + zero).tolist(), strict=True)]
            return list(zero.new_tensor(each).reshape(-1, count).T)
        return [*self._moments(float(s), float(t), count)]

    def _moments(self, s: float, t: float, count: int) -> list[float]:
        start, stop = math.asinh(self.clock(s)), math.asinh(self.clock(t))
        grid = (start + stop) / 2 + (stop - start) / 2 * _NODES
        origin, end = self.variable(s), self.variable(t)
        u = (self._time_axis.times_from_rho([math.sinh(y) for y in grid.tolist()]) - origin) / (end - origin)
        mass = self.scale(t) * (stop - start) / 2 * _WEIGHTS * np.cosh(grid)
        return [float(np.dot(mass, np.power(u, k))) for k in range(count)]


class ExponentialChart(Chart):
    """Charts whose variable is the log-SNR; moments are k! phi_{k+1} of plus or minus its step h."""

    #: The sign of h in the functions phi.
    sign: ClassVar[int]

    @each_once
    def variable(self, t: Time) -> Time:
        """lambda(t)."""
        return self.path.log_snr(t)

    @override
    def moments(self, s: Time, t: Time, count: int) -> list[Time]:
        return [math.factorial(k) * self.exponential(k + 1, s, t) for k in range(count)]

    def exponential(self, k: int, s: Time, t: Time) -> Time:
        """alpha_t h phi_k(-h) for data, -sigma_t h phi_k(h) for noise: the weight of the (k - 1)-th derivative of m in h."""
        h = self.variable(t) - self.variable(s)
        value: Time = self.weight(t) * h * phi(k, self.sign * h)
        return value

    @abstractmethod
    def weight(self, t: Time) -> Time:
        """Factor of h phi_k: alpha for data, -sigma for noise."""


class NoiseLogSNRChart(ExponentialChart, NoiseChart):
    """d(x/alpha) = -exp(-lambda) eps d lambda: DPM-Solver (arXiv 2206.00927, proposition 3.1)."""

    name = "noise_log_snr"
    sign = 1

    @override
    @each_once
    def weight(self, t: Time) -> Time:
        return -self.path.sigma(t)

    @override
    def advance(self, s: Time, t: Time) -> Time:
        # This is -sigma_t (e^h - 1); its limit for a step into sigma = 0 is the noise chart's value.
        return NoiseChart.advance(self, s, t) if self.ends_singular(t) else self.moments(s, t, 1)[0]


class DataChart(ExponentialChart):
    """d(x/sigma) = exp(lambda) D d lambda: DPM-Solver++, UniPC, exponential Adams (arXiv 2211.01095, proposition 4.1)."""

    name = "data"
    prediction = "denoised"
    sign = -1

    @override
    @each_once
    def scale(self, t: Time) -> Time:
        return self.path.sigma(t)

    @override
    @each_once
    def clock(self, t: Time) -> Time:
        return _reciprocal(self.path.rho(t))

    @override
    def time(self, clock: Time) -> Time:
        return self.path.time_from_rho(_reciprocal(clock))

    @override
    @each_once
    def weight(self, t: Time) -> Time:
        return self.path.alpha(t)

    @override
    def advance(self, s: Time, t: Time) -> Time:
        # This is alpha_t (1 - e^-h), whose limit is alpha_t where the step ends at sigma = 0 or starts at alpha = 0.
        h = self.variable(t) - self.variable(s)
        return self.weight(t) if _endless(h) else -self.weight(t) * ops(h).expm1(-h)


class StochasticDataChart(DataChart):
    r"""The reverse SDE in the data chart.

    :math:`d(x/\sigma) = [(1+\eta) e^\lambda D - \eta x/\sigma]\,d\lambda + \sqrt{2\eta}\,dw`.

    ``eta`` multiplies the variance of the noise: 0 is the ODE, 1 the reverse SDE with the noise of the forward one; every
    eta has the same marginals (arXiv 2305.14267 and 2309.05019, with tau^2 for eta).
    """

    def __init__(self, path: Path | str | None, eta: float):
        super().__init__(path)
        self.eta = eta

    def _step(self, s: Time, t: Time) -> Time:
        return self.variable(t) - self.variable(s)

    def ratio(self, s: Time, t: Time) -> Time:
        """sigma_t/sigma_s e^(-eta h)."""
        if self.eta == 0:
            return super().ratio(s, t)
        # A step into sigma = 0 is infinite in log-SNR, and both factors are 0.
        step = self._step(s, t)
        decay: Time = ops(step).exp(-self.eta * step)
        return super().ratio(s, t) * decay

    def exponential(self, k: int, s: Time, t: Time) -> Time:
        """alpha_t q phi_k(-q), q = (1 + eta) h."""
        q = (1 + self.eta) * self._step(s, t)
        if k == 1 and _endless(q):
            return self.advance(s, t)
        value: Time = self.weight(t) * q * phi(k, -q)
        return value

    @override
    def advance(self, s: Time, t: Time) -> Time:
        h = self._step(s, t)
        return self.weight(t) if _endless(h) else -self.weight(t) * ops(h).expm1(-(1 + self.eta) * h)

    def noise_clock(self, t: float) -> float:
        """rho^(-2 eta), in which the noise of rho^(-eta) x/sigma is a Brownian motion; infinite beyond double precision."""
        try:
            return float(self.path.rho(t) ** (-2 * self.eta))
        except OverflowError:
            return math.inf

    def spread(self, s: float, t: float) -> float:
        """sigma_t sqrt(1 - e^(-2 eta h))."""
        if self.eta == 0 or self.ends_singular(t):
            return 0.0
        return self.scale(t) * math.sqrt(-math.expm1(-2 * self.eta * self._step(s, t)))


class StochasticNoiseChart(NoiseLogSNRChart):
    r"""The reverse SDE in the noise chart: :math:`d(x/\alpha) = (1+\eta)\,\epsilon\,d\rho + \sqrt{2\eta\rho\,|d\rho|}\,\xi`.

    ``eta`` is that of :class:`StochasticDataChart`. A step into sigma = 0 is that of the ODE, since its noise would remain.
    """

    def __init__(self, path: Path | str | None, eta: float):
        super().__init__(path)
        self.eta = eta

    def exponential(self, k: int, s: Time, t: Time) -> Time:
        """-(1 + eta) sigma_t h phi_k(h)."""
        return (1 + self.eta) * super().exponential(k, s, t)

    def noise_clock(self, t: float) -> float:
        """-rho^2."""
        return -(self.clock(t) ** 2)

    def spread(self, s: float, t: float) -> float:
        """alpha_t sqrt(eta (rho_s^2 - rho_t^2))."""
        if self.ends_singular(t):
            return 0.0
        return self.scale(t) * math.sqrt(self.eta * (self.clock(s) - self.clock(t)) * (self.clock(s) + self.clock(t)))


def exponential_chart(chart: Chart) -> ExponentialChart:
    """The chart itself, if its variable is the log-SNR, as exponential integrators need; ArgumentError for another."""
    if not isinstance(chart, ExponentialChart):
        names = ", ".join(name for name, known in charts.items() if issubclass(known, ExponentialChart))
        raise ArgumentError(f"chart must be one whose variable is the log-SNR ({names}), got {chart.name!r}")
    return chart


def _endless(h: float | Tensor) -> bool:
    """Whether a step is infinite, for all rows; of rows that step to the same time either all do or none."""
    return bool(torch.isinf(h).all()) if isinstance(h, Tensor) else math.isinf(h)


def _reciprocal(value: Time) -> Time:
    """1/value, infinite where a value is 0."""
    return 1 / value if isinstance(value, Tensor) or value > 0 else math.inf


#: The charts of the probability-flow ODE by name.
charts: dict[str, type[Chart]] = {
    chart.name: chart for chart in (VelocityChart, NoiseChart, NoiseLogSNRChart, NoiseTimeChart, DataChart)
}


def get(name: str, path: Path | str | None) -> Chart:
    """The chart of a name for a path or its spec; raises ArgumentError for another name."""
    if name in charts:
        return charts[name](path)
    raise ArgumentError(f"chart must be one of {', '.join(charts)}, got {name!r}")
