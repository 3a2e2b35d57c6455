r"""Coefficients of bridges: the matrices of :math:`x_t = A_t x_0 + B_t x_1 + G_t z`, with data at t = 0 and source at t = 1.

What a law needs of them at a time is A, B, the noise covariance :math:`\Sigma = GG^T`, the derivatives of A and B, and the
**gauge** N, any matrix with :math:`N + N^T = \Sigma'`. Marginals fix no more than that sum: the default :math:`N = \Sigma'/2`
has no rotation; a linear SDE :math:`dx = Fx\,dt + L^{1/2}dw` has :math:`N = F\Sigma + L/2`, with which the velocity is
:math:`Fx - L\,\mathrm{score}/2`. G alone would not do: its derivative is infinite where noise begins, that of Sigma is not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import check_number
from diffode.errors import ArgumentError, FieldError
from diffode.numerics.forward import along
from diffode.specs import format_spec, options_of

#: Step, relative to the interval, of the difference that a user's derivatives are held against.
_STEP = 1e-5
#: Largest difference between the two, relative to the size of the derivatives.
_SAME_DERIVATIVE = 1e-5

Matrix = Callable[[Tensor], Any]


class Moments(NamedTuple):
    """The matrices at times (T,): A, B, Sigma, dA/dt, dB/dt and the gauge N, each (T, D, D)."""

    of_data: Tensor
    of_source: Tensor
    noise: Tensor
    data_rate: Tensor
    source_rate: Tensor
    gauge: Tensor


@dataclass(frozen=True)
class Coefficients(ABC):
    """A, B and Sigma over the times ``t_min`` to ``t_max``.

    To add some, subclass it as a frozen dataclass whose fields are the options, give its ``name``, write :meth:`at` and call
    ``diffode.bridges.coefficients.register(name, cls)``; or take :class:`OwnCoefficients`.
    """

    name: ClassVar[str] = "coefficients"
    #: Whether the law at the last time does not depend on the source, as that of a process which begins with the data.
    forgets_source: ClassVar[bool] = False

    @property
    def t_min(self) -> float:
        """The time of the data."""
        return 0.0

    @property
    def t_max(self) -> float:
        """The time of the source."""
        return 1.0

    @property
    def spec(self) -> str:
        """The spec that rebuilds them."""
        return format_spec(self.name, options_of(self))

    def check_dim(self, dim: int) -> None:
        """Raise ArgumentError unless they are matrices for rows of ``dim`` coordinates."""
        return

    @abstractmethod
    def at(self, t: Tensor, dim: int) -> Moments:
        """The matrices at times t (T,), float64, differentiable in t."""


def scalars(a: Tensor, b: Tensor, noise: Tensor, a_rate: Tensor, b_rate: Tensor, noise_rate: Tensor, dim: int) -> Moments:
    """Moments of numbers (T,) times the identity; the gauge is half the rate of Sigma."""
    eye = torch.eye(dim, dtype=torch.float64, device=a.device)
    return Moments(*(part[:, None, None] * eye for part in (a, b, noise, a_rate, b_rate, noise_rate / 2)))


@dataclass(frozen=True)
class _WithNoise(Coefficients):
    """Two scalars, and noise of a Brownian bridge, Sigma = sigma^2 t (1 - t)."""

    sigma: float = 0.0

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0.0)

    def _with(self, t: Tensor, dim: int, a: Tensor, b: Tensor, a_rate: Tensor, b_rate: Tensor) -> Moments:
        square = self.sigma**2
        return scalars(a, b, square * t * (1 - t), a_rate, b_rate, square * (1 - 2 * t), dim)


@dataclass(frozen=True)
class Linear(_WithNoise):
    """x_t = (1 - t) x_0 + t x_1 + sigma sqrt(t (1 - t)) z; straight lines if sigma is 0 (arXiv 2303.08797)."""

    name = "linear"

    @override
    def at(self, t: Tensor, dim: int) -> Moments:
        one = torch.ones_like(t)
        return self._with(t, dim, 1 - t, t, -one, one)


@dataclass(frozen=True)
class Trigonometric(_WithNoise):
    """x_t = cos(pi t/2) x_0 + sin(pi t/2) x_1 + sigma sqrt(t (1 - t)) z, which preserves variance between equal laws."""

    name = "trigonometric"

    @override
    def at(self, t: Tensor, dim: int) -> Moments:
        angle, speed = math.pi / 2 * t, math.pi / 2
        return self._with(t, dim, angle.cos(), angle.sin(), -speed * angle.sin(), speed * angle.cos())


@dataclass(frozen=True)
class Foellmer(Linear):
    """Brownian bridges of sigma w_t between the ends: ``linear`` with noise.

    From a point it is Foellmer's process, between the ends of a Schroedinger coupling of the same sigma the Schroedinger
    bridge (arXiv 2303.08797; Foellmer 1985).
    """

    sigma: float = 1.0

    name = "foellmer"


@dataclass(frozen=True)
class OwnCoefficients(Coefficients):
    """Three functions of one's own: A(t), B(t) and G(t).

    Args:
        data, source, noise: functions of a time, a float64 tensor without axes, written in torch; each gives a number, the
            diagonal (D,) or a matrix (D, D). ``noise`` is G; 0 unless given. Derivatives come from ``torch.func.jvp``.
        gauge: ``"symmetric"``, N = Sigma'/2, or ``"interpolant"``, N = G' G^T, with which the velocity is E[dx_t/dt | x_t].
        ends: the times of data and source.
        skew: a function that gives a skew matrix (D, D), which is added to the gauge; none unless given.

    Raises:
        ArgumentError: for what is no function, times that do not rise, and derivatives that are not those of the functions,
            as when these leave torch.

    >>> own = OwnCoefficients(lambda t: 1 - t**2, lambda t: t**2)
    >>> own.at(torch.tensor([0.5]).double(), 1).data_rate.item()
    -1.0
    """

    data: Matrix
    source: Matrix
    noise: Matrix | None = None
    gauge: Literal["symmetric", "interpolant"] = "symmetric"
    ends: tuple[float, float] = (0.0, 1.0)
    skew: Matrix | None = None

    name = "own"

    def __post_init__(self) -> None:
        for name in ("data", "source", "noise", "skew"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name in ("noise", "skew")):
                raise ArgumentError(f"{name} must be a function of the time, got {value!r:.60}")
        if self.gauge not in ("symmetric", "interpolant"):
            raise ArgumentError(f"gauge must be symmetric or interpolant, got {self.gauge!r:.60}")
        first, last = self.ends
        if not 0 <= first < last < math.inf:
            raise ArgumentError(f"ends must be two times 0 <= first < last, got {self.ends!r:.60}")
        for name in ("data", "source", "noise"):
            self._check_derivative(name)

    def __repr__(self) -> str:
        return f"OwnCoefficients(gauge={self.gauge!r}, ends={self.ends})"

    @property
    @override
    def spec(self) -> str:
        return self.name

    @property
    @override
    def t_min(self) -> float:
        return float(self.ends[0])

    @property
    @override
    def t_max(self) -> float:
        return float(self.ends[1])

    @override
    def at(self, t: Tensor, dim: int) -> Moments:
        a, a_rate = self._of("data", t, dim)
        b, b_rate = self._of("source", t, dim)
        g, g_rate = self._of("noise", t, dim)
        product = g_rate @ g.mT
        gauge = product if self.gauge == "interpolant" else (product + product.mT) / 2
        if self.skew is not None:
            rotation = torch.stack([_matrix(self.skew(at), dim, "skew") for at in t])
            if float((rotation + rotation.mT).detach().abs().max()) > 1e-12 * float(1 + rotation.detach().abs().max()):
                raise ArgumentError("skew must give skew matrices, J + J^T = 0; otherwise the gauge does not fit the noise")
            gauge = gauge + rotation
        return Moments(a, b, g @ g.mT, a_rate, b_rate, gauge)

    def _of(self, name: str, t: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """A function's matrices and their derivatives at times (T,), each (T, D, D)."""
        function: Matrix | None = getattr(self, name)
        if function is None:
            zero = torch.zeros(len(t), dim, dim, dtype=torch.float64, device=t.device)
            return zero, zero
        pairs = [_with_rate(lambda s: _matrix(function(s), dim, name), at) for at in t]
        values, rates = (torch.stack([pair[k] for pair in pairs]) for k in range(2))
        if not bool((values.isfinite() & rates.isfinite()).all()):
            bad = t[~(values.isfinite() & rates.isfinite()).flatten(1).all(1)]
            raise FieldError(
                f"{name} or its derivative is not finite at t={float(bad[0].detach()):g}: keep ends= away from there, or give "
                "coefficients with a finite rate of Sigma (foellmer)"
            )
        return values, rates

    def _check_derivative(self, name: str) -> None:
        function: Matrix | None = getattr(self, name)
        if function is None:
            return
        width = self.t_max - self.t_min
        for share in (0.31, 0.77):
            at = torch.tensor(self.t_min + share * width, dtype=torch.float64)
            try:
                _, rate = _with_rate(lambda s: _tensor(function(s)) + 0 * s, at)
                low, high = (_tensor(function(at + sign * _STEP * width)).detach() for sign in (-1, 1))
            except Exception as error:  # anyone's function may raise anything
                raise ArgumentError(
                    f"{name} can't be differentiated by torch.func.jvp at t={float(at):g}: {type(error).__name__}: {error}; "
                    "write it with torch functions of t"
                ) from error
            difference = (high - low) / (2 * _STEP * width)
            apart = float((difference - rate).abs().max())
            if not apart <= _SAME_DERIVATIVE * (1 + float(difference.abs().max())):
                raise ArgumentError(
                    f"{name} has another derivative by torch.func.jvp than by a difference at t={float(at):g} (apart by "
                    f"{apart:.2g}): write it with torch functions of t, without float(t) or NumPy"
                )


def _with_rate(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """A function of a time and its derivative there."""
    return along(function, [at], [torch.ones_like(at)])


def _tensor(value: Any) -> Tensor:
    return value.to(torch.float64) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def _matrix(value: Any, dim: int, name: str) -> Tensor:
    """What a function gives as a matrix (D, D)."""
    found = _tensor(value)
    if found.ndim == 0:
        return found * torch.eye(dim, dtype=torch.float64, device=found.device)
    if found.shape == (dim,):
        return torch.diag(found)
    if found.shape == (dim, dim):
        return found
    raise ArgumentError(
        f"{name} must give a number, a diagonal ({dim},) or a matrix ({dim}, {dim}), got shape {tuple(found.shape)}"
    )
