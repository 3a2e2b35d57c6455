r"""What is common to all measures of a memory.

A measure says which past counts. Its memory of order N of a signal u is :math:`c(t) \in R^N`, and in its clock
:math:`\tau` a linear ODE with constant coefficients, :math:`dc/d\tau = A c + B u`. With the kernel :math:`K(x) = e^{Ax} B`
of the lag x in that clock,

.. math:: c = \int_0^\infty K(x)\, u(\tau - x)\, dx, \qquad u(\tau - x) \approx \sum_n c_n g_n(x).

Where the ODE needs what has left the window (:attr:`Measure.closed` is False) it takes its own reconstruction instead, and
K is near the kernel of the projection, not equal to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import linalg

from diffode.errors import ArgumentError
from diffode.hippo.arguments import finite, gathered
from diffode.specs import format_spec, options_of

Array = np.ndarray[Any, Any]

#: Bytes of the matrices whose exponentials are computed at once.
_AT_ONCE = 2**26
#: Bytes of the cells of different steps that are held.
_HELD = 2**27


@dataclass(frozen=True)
class Measure(ABC):
    """A measure of a memory: which past counts, and how much.

    To add one, subclass it as a frozen dataclass whose fields are the options, give its ``name`` and the methods below that
    are abstract, and call ``diffode.hippo.register``. Steps are lengths in time, unless ``logarithmic``.

    Attributes:
        name: the name in a spec.
        logarithmic: whether the clock is the logarithm of time. A step is then the ratio of two times, in [0, 1).
        closed: whether the ODE's kernel is that of the projection.
        present: the time that "now" stands for where none is given: 1 if the clock is logarithmic, else 0.
    """

    name: ClassVar[str]
    logarithmic: ClassVar[bool] = False
    closed: ClassVar[bool] = True

    @property
    def spec(self) -> str:
        """The spec that makes this measure."""
        return format_spec(self.name, options_of(self))

    @property
    def present(self) -> float:
        """See the class."""
        return 1.0 if self.logarithmic else 0.0

    def check_order(self, order: int) -> None:
        """Raise ArgumentError if there is no memory of this order; every order has one unless a measure says otherwise."""
        return

    @property
    @abstractmethod
    def window(self) -> float:
        """The largest lag that counts, in time; infinite if all the past does."""

    @abstractmethod
    def matrix(self, order: int) -> Array:
        """A, (N, N)."""

    @abstractmethod
    def input(self, order: int) -> Array:
        """B, (N,)."""

    @abstractmethod
    def projection_kernel(self, order: int, lag: Array) -> Array:
        """The kernel of the projection at lags of the clock, (N, *lag.shape): what K would be without closure."""

    @abstractmethod
    def dual(self, order: int, lag: Array) -> Array:
        """The functions g_n from which the signal is reconstructed, at lags of the clock: (N, *lag.shape)."""

    @abstractmethod
    def reach(self, order: int) -> float:
        """A lag of the clock beyond which the projection's kernel is below rounding."""

    @abstractmethod
    def normal_form(self, order: int) -> tuple[Array, Array]:
        """(S, P) with A = S - P P^T: S (N, N) normal, a multiple of the identity plus a skew-symmetric matrix; P (N, rank)."""

    @abstractmethod
    def of_exponential(self, order: int, mu: complex, now: float) -> Array:
        """The coefficients at time ``now`` of e^{mu s}, projected; complex (N,)."""

    # What follows is right for any measure; a measure that knows better overrides it.

    def kernel(self, order: int, lag: Array) -> Array:
        """K = e^{Ax} B at lags of the clock: (N, *lag.shape)."""
        flat = np.ravel(lag)
        a, b = self.matrix(order), self.input(order)
        found = np.empty((order, flat.size))
        part = max(1, _AT_ONCE // (8 * order * order))
        for k in range(0, flat.size, part):
            found[:, k : k + part] = (linalg.expm(flat[k : k + part, None, None] * a) @ b).T
        return found.reshape(order, *np.shape(lag))

    def propagator(self, order: int, step: float) -> Array:
        """What a step with no input does to a memory, (N, N)."""
        return np.asarray(linalg.expm(step * self.matrix(order)))

    def cell(self, order: int, step: float, degree: int) -> tuple[Array, Array]:
        """A step with a polynomial input: (M, G), (N, N) and (N, degree + 1).

        c moves to M c + G a where the input is sum_i a_i x^i, x rising from 0 to 1 over the step.
        """
        # The input is carried along: its i-th scaled derivative grows by the next one.
        whole = np.zeros((order + degree + 1,) * 2)
        whole[:order, :order] = step * self.matrix(order)
        whole[:order, order] = step * self.input(order)
        whole[order:, order:] = np.eye(degree + 1, k=1)
        grown = linalg.expm(whole)
        factorials = np.cumprod([1.0, *range(1, degree + 1)])
        return grown[:order, :order], grown[:order, order:] * factorials

    def cells(self, order: int, steps: Array, degree: int) -> tuple[Array, Array]:
        """The cells of several steps, (steps, N, N) and (steps, N, degree + 1)."""
        moved, inputs = zip(*(self.cell(order, float(step), degree) for step in steps), strict=True)
        return np.stack(moved), np.stack(inputs)

    def walked(self, steps: Array, a: Array, state: Array) -> Iterator[Array]:
        """The states (channels, N) after each of some steps, the inputs a (L, channels, degree + 1) solved exactly."""
        order, degree = state.shape[1], a.shape[2] - 1
        return cells_walked(lambda step: self.cell(order, step, degree), steps, a, state)

    def steps(self, times: Array) -> Array:
        """The steps between times, as this measure counts them."""
        if not self.logarithmic:
            steps = np.diff(times)
            return gathered(steps, float(np.abs(times).max())) if len(steps) else steps
        if times[0] < 0:
            raise ArgumentError(
                f"times must not be negative with measure {self.name!r}, which remembers from time 0 on; got {times[0]:g}"
            )
        return times[:-1] / times[1:]

    def lag(self, at: Array, now: Any) -> Array:
        """The lag in the clock of times ``at`` behind ``now``."""
        if not self.logarithmic:
            return np.asarray(now - at)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(now) - np.log(at))

    def transfer(self, order: int, s: Array) -> Array:
        """The Laplace transform of K, (s - A)^{-1} B: complex, (N, *s.shape)."""
        a, b = self.matrix(order).astype(complex), self.input(order)
        flat = np.ravel(s)
        found = np.empty((order, flat.size), complex)
        unit = np.eye(order)
        for k, value in enumerate(flat):
            found[:, k] = np.linalg.solve(value * unit - a, b)
        return found.reshape(order, *np.shape(s))

    def applied(self, order: int, vectors: Array) -> Array:
        """A times vectors that lie along the first axis, (N, ...)."""
        return np.asarray(self.matrix(order) @ vectors)

    def solved(self, order: int, factor: float, vectors: Array) -> Array:
        """The solutions of (1 - factor A) z = v for vectors that lie along the first axis, (N, ...)."""
        return np.asarray(np.linalg.solve(np.eye(order) - factor * self.matrix(order), vectors))

    def eigenvalues(self, order: int) -> Array:
        """The eigenvalues of A, as exact as float64 allows, complex (N,), the slowest first."""
        return sorted_eigenvalues(np.linalg.eigvals(self.matrix(order)))


def sorted_eigenvalues(values: Any) -> Array:
    """Eigenvalues, the slowest first, and of a pair the one with positive frequency."""
    values = np.asarray(values, dtype=np.complex128)
    return np.asarray(values[np.lexsort((-values.imag, np.abs(values).round(9), -values.real.round(9)))])


def cells_walked(cell: Callable[[float], tuple[Array, Array]], steps: Array, a: Array, state: Array) -> Iterator[Array]:
    """The states after each of some steps, whose cells (M, G) are made by ``cell`` and held as far as room allows."""
    held: dict[float, tuple[Array, Array]] = {}
    for step, own in zip(steps.tolist(), a, strict=True):
        found = held.get(step)
        if found is None:
            found = cell(step)
            if (len(held) + 1) * found[0].nbytes > _HELD:
                held.clear()
            held[step] = found
        state = state @ found[0].T + own @ found[1].T
        yield state


def bounded(values: Array, what: str) -> Array:
    """Values of a memory's functions; NumericalError if float64 does not hold them."""
    return finite(values, what, "take a lower order, or times and options nearer to 1")
