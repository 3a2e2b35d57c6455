"""A memory: a measure and an order, with all that is known of it exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffode.errors import ArgumentError
from diffode.hippo import quadrature, runs, scan
from diffode.hippo.arguments import number_of, numbers_of, order_of
from diffode.hippo.holds import Hold, hold_of
from diffode.hippo.legs import LegS
from diffode.hippo.measure import Measure, bounded
from diffode.hippo.runs import Keep
from diffode.hippo.solution import solution
from diffode.hippo.structure import DPLR, Spectrum, dplr_of, spectrum_of

Array = np.ndarray[Any, Any]

#: Smallest power p of a signal t^p: below it, t^p is not square integrable at 0.
_LEAST_POWER = -0.5
#: Largest power.
_MOST_POWER = 1e4
#: Most decays of rounding that panels shrink towards 0, for powers near the least.
_GRADED = 64


@dataclass(frozen=True)
class Memory:
    """A memory of order N of a measure.

    ``dc/dx = A c + B u`` in the measure's clock: time, or ln t for ``legs``. Made by ``diffode.hippo.get``.

    Raises:
        ArgumentError: if the order is no whole number from 1 to 8192, or one that the measure does not have.

    >>> from diffode import hippo
    >>> memory = hippo.get("legs", 3)
    >>> memory.A.round(3).tolist()
    [[-1.0, 0.0, 0.0], [-1.732, -2.0, 0.0], [-2.236, -3.873, -3.0]]
    """

    measure: Measure
    order: int

    def __post_init__(self) -> None:
        if not isinstance(self.measure, Measure):
            raise ArgumentError(f"measure must be a Measure or its spec, got {type(self.measure).__name__}")
        object.__setattr__(self, "order", order_of(self.order))
        self.measure.check_order(self.order)

    @functools.cached_property
    def A(self) -> Array:
        """The matrix, (N, N) float64, protected."""
        return _protected(self.measure.matrix(self.order))

    @functools.cached_property
    def B(self) -> Array:
        """What the input goes in by, (N,) float64, protected."""
        return _protected(self.measure.input(self.order))

    def kernel(self, lag: Any) -> Array:
        """K = e^{Ax} B at lags x >= 0 of the clock: (*lag.shape, N).

        >>> from diffode import hippo
        >>> hippo.get("lagt", 3).kernel([0.0, 2.0]).round(4).tolist()
        [[1.0, 1.0, 1.0], [0.3679, -0.3679, -0.3679]]
        """
        return _last(bounded(self.measure.kernel(self.order, _lags(lag)), "the kernel"))

    def projection_kernel(self, lag: Any) -> Array:
        """The kernel of the projection at lags x >= 0 of the clock: (*lag.shape, N); K itself where there is no closure."""
        return _last(bounded(self.measure.projection_kernel(self.order, _lags(lag)), "the kernel"))

    def dual(self, lag: Any) -> Array:
        """The functions g_n at lags x >= 0 of the clock, from which the signal is reconstructed: (*lag.shape, N)."""
        return _last(bounded(self.measure.dual(self.order, _lags(lag)), "the reconstruction"))

    def propagator(self, step: Any) -> Array:
        """What a step without input does to a memory, (N, N).

        Args:
            step: the step's length in time, >= 0; for ``legs`` the ratio r = t/t' of its ends, in [0, 1].
        """
        return bounded(self.measure.propagator(self.order, self.checked_step(step)), "the propagator")

    def checked_step(self, step: Any) -> float:
        """A step as the measure counts it; ArgumentError for another number."""
        length = number_of(step, "step (a ratio of times)" if self.measure.logarithmic else "step", 0.0, reached=True)
        if self.measure.logarithmic and length > 1:
            raise ArgumentError(
                f"step of measure {self.measure.name!r} is the ratio t/t' of its ends, at most 1; got {length:g}"
            )
        return length

    def transfer(self, s: Any) -> Array:
        """The Laplace transform of the kernel in the clock, (s - A)^{-1} B: complex, (*s.shape, N).

        The ODE answers e^{mu t} with transfer(mu) e^{mu t} when all transients are gone.
        """
        values = numbers_of(s, "s", complex_too=True)
        with np.errstate(all="ignore"):
            try:
                found = self.measure.transfer(self.order, values)
            except np.linalg.LinAlgError:
                found = np.full(1, np.nan)
        if not np.isfinite(found).all():
            raise ArgumentError(f"s must not be an eigenvalue of A, where the transfer function has a pole; got {s!r:.80}")
        return _last(found)

    def gradient(self, s: Any, now: Any = None) -> Array:
        """The derivative of the memory at time ``now`` by the signal at times s, dc(now)/du(s): (*s.shape, N).

        Args:
            s: times up to ``now``; from 0 on for ``legs``.
            now: the time of the memory; by default 1 for ``legs``, 0 for other measures.
        """
        times, at = numbers_of(s, "s"), self._now(now)
        self._check_past(times, at, "s")
        lag = self.measure.lag(times, at)
        if not isinstance(self.measure, LegS):
            return self.kernel(lag)
        # dx = ds/s: at s = 0 the kernel vanishes as fast as s does.
        return _last(self.measure.dual(self.order, lag) / at)

    def reconstruct(self, c: Any, at: Any, now: Any = None) -> Array:
        """The signal that a memory holds.

        Args:
            c: the memory, (..., N).
            at: times, (n,) or one, that the measure covers: within the window, up to ``now``.
            now: the time of the memory. By default 1 for ``legs``, so that ``at`` is the fraction s/t of all the past, and 0
                for other measures, so that ``at`` is minus the lag.

        Returns:
            (..., n), or (...) for one time.

        >>> from diffode import hippo
        >>> memory = hippo.get("legt:window=2", 4)
        >>> c = memory.project(lambda s: s**3, 5.0)
        >>> memory.reconstruct(c, [3.0, 4.0, 5.0], now=5.0).round(9).tolist()
        [27.0, 64.0, 125.0]
        """
        coefficients = numbers_of(c, "c", complex_too=True)
        if coefficients.ndim == 0 or coefficients.shape[-1] != self.order:
            raise ArgumentError(f"c must be memories of shape (..., {self.order}), got shape {coefficients.shape}")
        times, present = numbers_of(at, "at"), self._now(now)
        if times.ndim > 1:
            raise ArgumentError(f"at must be one time or times (n,), got shape {times.shape}")
        self._check_past(times, present, "at")
        lag = self.measure.lag(times, present)
        slack = 1e-9 * self.measure.window if math.isfinite(self.measure.window) else 0.0
        if (lag > self.measure.window + slack).any():
            raise ArgumentError(
                f"at must lie in the window, from {present - self.measure.window:g} to {present:g}; got {float(times.min()):g}"
            )
        within = np.minimum(lag, self.measure.window)
        basis = _last(bounded(self.measure.dual(self.order, within), "the reconstruction"))
        return np.asarray(
            np.moveaxis(np.tensordot(basis, coefficients, (-1, -1)), 0, -1) if times.ndim else coefficients @ basis
        )

    def project(
        self,
        fn: Callable[[Array], Any],
        now: Any,
        *,
        since: Any = None,
        breaks: Iterable[float] = (),
        tolerance: float = 1e-13,
    ) -> Array:
        """The exact coefficients of a function at time ``now``, by quadrature: (N,).

        Args:
            fn: the signal, a function of an array of times.
            now: the time of the memory; > 0 for ``legs``.
            since: time before which the signal is 0. By default it has no beginning, but at 0 for ``legs``; a part of the past
                that counts less than rounding unless the signal grows backwards is left out then.
            breaks: times at which the signal jumps or bends.
            tolerance: largest error, relative to the size of the signal.

        Raises:
            ArgumentError: if the function's answers are no finite numbers.
            NumericalError: if quadrature does not come to an end, as for a signal that jumps where ``breaks`` does not say so.
        """
        at = self._now(now)
        earliest = 0.0 if self.measure.logarithmic else at - self.measure.window
        if since is not None:
            first = max(earliest, number_of(since, "since"))
        else:
            first = max(earliest, at - self.measure.reach(self.order))
        if first >= at:
            return np.zeros(self.order)
        inner = _breaks(breaks)
        edges = np.concatenate([[first], inner[(inner > first) & (inner < at)], [at]])
        size = number_of(tolerance, "tolerance", 0.0)

        def basis(times: Array) -> Array:
            lag = self.measure.lag(times, at)
            if self.measure.logarithmic:
                return self.measure.dual(self.order, lag) / at
            return self.measure.projection_kernel(self.order, lag)

        return bounded(quadrature.integrated(basis, fn, edges, size), "the coefficients")

    def solution(
        self,
        fn: Callable[[Array], Any],
        now: Any,
        *,
        since: Any = 0.0,
        breaks: Iterable[float] = (),
        tolerance: float = 1e-13,
    ) -> Array:
        """What the ODE makes of a function from ``since`` on, exactly: (N,); its distance from :meth:`project` is the closure.

        Arguments and errors are those of :meth:`project`.
        """
        at, first = self._now(now), number_of(since, "since")
        if self.measure.closed:
            return self.project(fn, at, since=first, breaks=breaks, tolerance=tolerance)
        if first >= at:
            return np.zeros(self.order)
        size = number_of(tolerance, "tolerance", 0.0)
        return bounded(solution(self.measure, self.order, fn, first, at, _breaks(breaks), size), "the memory")

    def power(self, p: Any, now: Any = None) -> Array:
        """The exact coefficients at time ``now`` of the signal s^p since time 0, for real p > -1/2: (N,).

        In closed form for ``legs``, by quadrature on panels that shrink towards 0 for other measures.

        >>> from diffode import hippo
        >>> hippo.get("legs", 3).power(1, now=2.0).round(9).tolist()  # of s itself: half of it, and sqrt(12) of the slope
        [1.0, 0.577350269, 0.0]
        """
        power, at = number_of(p, "p", _LEAST_POWER), number_of(1.0 if now is None else now, "now", 0.0)
        if power > _MOST_POWER:
            raise ArgumentError(f"p must be at most {_MOST_POWER:g}, got {power:g}")
        with np.errstate(all="ignore"):
            if isinstance(self.measure, LegS):
                return bounded(self.measure.of_power(self.order, power, at), "the coefficients")
            breaks = np.empty(0) if power.is_integer() else quadrature.graded(0.0, at, _GRADED)
            return self.project(lambda s: s**power, at, since=0.0, breaks=breaks)

    def exponential(self, mu: Any, now: Any = None) -> Array:
        """The exact coefficients at time ``now`` of e^{mu s}: (N,), complex if mu is.

        The signal is that since time 0 for ``legs``, that of all past for other measures. With closure the ODE's own answer
        is another, ``transfer(mu) * exp(mu * now)``.
        """
        given = numbers_of(mu, "mu", complex_too=True)
        if given.ndim:
            raise ArgumentError(f"mu must be one number, real or complex, got {mu!r:.80}")
        rate, at = complex(given), self._now(now)
        with np.errstate(all="ignore"):
            found = bounded(self.measure.of_exponential(self.order, rate, at), "the memory of an exponential")
        return found if given.dtype.kind == "c" else found.real

    def sine(self, frequency: Any, now: Any = None, *, phase: Any = 0.0) -> Array:
        """The exact coefficients at time ``now`` of sin(frequency s + phase), frequency in radians a unit of time: (N,)."""
        turn = complex(0, number_of(frequency, "frequency"))
        return np.asarray((self.exponential(turn, now) * np.exp(1j * number_of(phase, "phase"))).imag)

    def run(
        self,
        u: Any,
        times: Any,
        hold: str | Hold = "foh",
        keep: Keep = "last",
        *,
        start: Any = None,
    ) -> Array:
        """The memory of a sampled signal.

        Args:
            u: samples, (L,) or (L, channels); float32 gives float32, all else float64.
            times: their times, (L,), which rise; or one step, with which they begin at time 0. None is negative for ``legs``.
            hold: the rule for steps: euler, backward, trapezoid, zoh, foh, cubic, poly:degree=k, or a Hold.
            keep: ``"last"`` for the memory at the last time, ``"all"`` for those at all times, or a stride k for those at
                ``times[::k]``.
            start: the memory at the first time, (N,) or (channels, N); by default that of no signal before it.

        Returns:
            (N,) for the last, (kept, N) for more; (channels, N) or (kept, channels, N) where u has channels.

        Raises:
            ArgumentError: if an argument is wrong; NumericalError if the states grow beyond all numbers.

        >>> import numpy as np
        >>> from diffode import hippo
        >>> t = np.array([0.0, 0.1, 0.4, 0.5, 1.0])
        >>> hippo.get("legs", 3).run(3 * t, t).round(9).tolist()  # exact for lines
        [1.5, 0.866025404, 0.0]
        """
        return runs.run(runs.prepared(self.measure, self.order, u, times, hold, start), keep)

    def states(self, u: Any, times: Any, hold: str | Hold = "foh", *, start: Any = None) -> Iterator[Array]:
        """What :meth:`run` keeps with ``"all"``, in parts that follow each other: memory does not grow with the signal.

        Yields:
            (n, N), or (n, channels, N).
        """
        wanted = runs.prepared(self.measure, self.order, u, times, hold, start)
        return runs.streamed(wanted)

    def readout(self, u: Any, times: Any, weights: Any, hold: str | Hold = "foh", *, start: Any = None) -> Array:
        """The products of every memory with weights, without the memories where all steps are alike (by Fourier transforms).

        Args:
            u: as for :meth:`run`, as are times, hold and start.
            weights: (N,) for one readout, (p, N) for more.

        Returns:
            (L,), with an axis of channels if u has one, and then one of readouts if weights has one.
        """
        wanted = runs.prepared(self.measure, self.order, u, times, hold, start)
        c = self.checked_weights(weights)
        with np.errstate(all="ignore"):
            found = runs.readouts(wanted, c.reshape(-1, self.order).astype(wanted.u.dtype))
        runs.checked(found)
        found = found[:, 0] if wanted.held else found
        return found if c.ndim == 2 else found[..., 0]

    def response(self, weights: Any, step: Any, length: Any, hold: str | Hold = "zoh") -> Array:
        """What a readout answers, step after step, to the inputs of the first: C M^j G, (length, p, q).

        Args:
            weights: C, (N,) or (p, N).
            step: see :meth:`propagator`.
            length: number of steps.
            hold: the rule; q is 1 for zoh, 2 for the one-stage rules and foh, 4 for cubic.
        """
        moved, inputs = hold_of(hold).cell(self.measure, self.order, self.checked_step(step))
        count = order_of(length, "length", 1, 2**40)
        with np.errstate(all="ignore"):
            found = scan.kernel(self.checked_weights(weights).reshape(-1, self.order), moved, inputs, count)
        return runs.checked(found)

    def spectrum(self) -> Spectrum:
        """The eigenvalues of A, and the condition number of its eigenvectors."""
        return spectrum_of(self.measure, self.order)

    def dplr(self) -> DPLR:
        """A as a diagonal matrix plus one of low rank, in an orthonormal basis: A = V diag(lambda) V^H - P P^T."""
        return dplr_of(self.measure, self.order)

    def checked_weights(self, weights: Any) -> Array:
        """Weights of readouts, (N,) or (p, N); ArgumentError for another shape."""
        c = numbers_of(weights, "weights")
        if c.ndim not in (1, 2) or c.shape[-1] != self.order or not len(c):
            raise ArgumentError(f"weights must have shape ({self.order},) or (p, {self.order}), got {c.shape}")
        return c

    def _now(self, now: Any) -> float:
        at = self.measure.present if now is None else number_of(now, "now")
        if self.measure.logarithmic and at <= 0:
            raise ArgumentError(f"now must be positive with measure {self.measure.name!r}, got {at:g}")
        return at

    def _check_past(self, times: Array, now: float, argument: str) -> None:
        if (times > now).any():
            raise ArgumentError(f"{argument} must not lie after now, {now:g}; got {float(times.max()):g}")
        if self.measure.logarithmic and (times < 0).any():
            raise ArgumentError(f"{argument} must not lie before time 0, got {float(times.min()):g}")


def _breaks(breaks: Iterable[float]) -> Array:
    """Times in rising order, each once."""
    try:
        given = breaks if isinstance(breaks, np.ndarray) else list(breaks)
    except TypeError:
        raise ArgumentError(f"breaks must be times, got {breaks!r:.60}") from None
    return np.unique(numbers_of(given if len(given) else np.empty(0), "breaks"))


def _protected(values: Array) -> Array:
    values.setflags(write=False)
    return values


def _last(values: Array) -> Array:
    """The first axis moved to the end."""
    return np.moveaxis(values, 0, -1)


def _lags(lag: Any) -> Array:
    found = numbers_of(lag, "lag")
    if (found < 0).any():
        raise ArgumentError(f"lag must be >= 0, got {float(found.min()):g}")
    return found
