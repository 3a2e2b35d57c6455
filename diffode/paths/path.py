r"""Paths: how data become noise, :math:`x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon`.

Time runs from noise (``t_max``) to data (``t_min``); larger t means more noise, on every path. Two derived quantities make
paths comparable: the noise level :math:`\rho = \sigma/\alpha` and the log-SNR :math:`\lambda = \log(\alpha/\sigma)` (half the
logarithm of the signal-to-noise *power* ratio, the convention of Lu et al., arXiv 2206.00927).

Every function takes a float, a tensor or a NumPy array of times and answers in kind. Formulas use ``expm1``-like forms, so
that the log-SNR and its inverse agree to 1e-12 over the whole range.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.randomness import Randomness, normal
from diffode.specs import format_spec, options_of

Time = TypeVar("Time", float, Tensor, float | Tensor)

#: Largest time and noise level of paths without an end: its square, times any dimension, fits float64.
LARGEST = 1e150


def lack_of_path(asker: str) -> ArgumentError:
    """The error of what works with alpha and sigma, and was given no path."""
    return ArgumentError(
        f"{asker} needs a path, such as 'edm', got path=None; a field is given one by Field.from_velocity(fn, path='edm')"
    )


def ops(t: Any) -> Any:
    """The module that holds exp, log, ... for this kind of number: ``math`` for floats, ``torch`` or ``numpy`` for arrays."""
    if isinstance(t, Tensor):
        return torch
    return np if isinstance(t, np.ndarray) else math


def softplus(z: Any) -> Any:
    """log(1 + e^z), finite for every z including minus infinity."""
    m = ops(z)
    if m is torch:
        # Its derivative is right at 0 too, where the two terms below have none.
        return torch.logaddexp(z, torch.zeros_like(z))
    positive = max(z, 0.0) if m is math else z.clip(min=0)
    return positive + m.log1p(m.exp(-abs(z)))


def log_ratio(a: Any, b: Any) -> Any:
    """log(a/b), with its limits -inf and inf where one of two floats is 0."""
    m = ops(a)
    if m is not math:
        return m.log(a) - m.log(b)
    if b == 0:
        return math.inf
    return -math.inf if a == 0 else math.log(a) - math.log(b)


def held(draws: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite draws in another dtype; ArgumentError if that has no fractions, or they are too large for it."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ArgumentError(f"dtype must be a floating-point dtype of torch, such as torch.float32, got {dtype!r:.60}")
    answer = draws.to(dtype)
    if dtype != draws.dtype and not bool(torch.isfinite(answer).all()):
        raise ArgumentError(
            f"the noise of draws as large as {float(draws.abs().max()):.3g} does not fit {dtype}; ask for float64"
        )
    return answer


@dataclass(frozen=True)
class Path(ABC):
    r"""A noising path :math:`x_t = \alpha(t) x_0 + \sigma(t)\varepsilon` on ``[t_min, t_max]``.

    Subclasses give alpha, sigma, their derivatives and the inverse of the log-SNR; everything else follows:
    the forward SDE is :math:`dx = f x\,dt + g\,dw` with :math:`f = \alpha'/\alpha` (:meth:`drift`) and
    :math:`g^2 = 2\sigma(\sigma' - \sigma\alpha'/\alpha)` (:meth:`diffusion` returns g).

    To add one, subclass it as a frozen dataclass whose fields are the options, ``t_min`` and ``t_max`` among them, give its
    ``name``, ``t_end`` if its domain ends, and :meth:`half_variance_rate` if sigma' is infinite where sigma is 0, and call
    ``diffode.paths.register(name, cls)``. ``diffode.testing.check_path`` holds it to the laws of a path.
    """

    name: ClassVar[str] = "path"
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.t_min) and math.isfinite(self.t_max) and 0 <= self.t_min < self.t_max):
            raise ArgumentError(
                f"path {self.name!r} needs finite times 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}"
            )
        if self.t_max > self.t_end:
            raise ArgumentError(f"path {self.name!r} needs t_max <= {self.t_end:g}, where it ends, got t_max={self.t_max:g}")

    @property
    def t_end(self) -> float:
        """The last time of the path's domain [0, t_end], on which alpha and sigma are defined and alpha is not negative.

        It is always finite: formulas without an end stop where the squares of their values would leave float64.
        """
        return LARGEST

    def check_times(self, t: float | Tensor, name: str = "t") -> None:
        """Raise ArgumentError, which calls the time ``name``, unless all times lie in the domain [0, t_end]."""
        end = self.t_end
        # NaN fails both comparisons, and so is no time.
        if bool(((t >= 0) & (t <= end)).all()) if isinstance(t, Tensor) else 0 <= float(t) <= end:
            return
        wrong = float(t[~((t >= 0) & (t <= end))].reshape(-1)[0]) if isinstance(t, Tensor) else t
        beyond = f"; {wrong:g} lies beyond the noise end of the path, {end:g}" if end < wrong < math.inf else ""
        raise ArgumentError(f"{name} must be a finite time >= 0 on path {self.name!r}, got {wrong:g}{beyond}")

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """Scale of the data at time t."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """Standard deviation of the noise at time t."""

    @abstractmethod
    def alpha_derivative(self, t: Time) -> Time:
        """d alpha / dt."""

    @abstractmethod
    def sigma_derivative(self, t: Time) -> Time:
        """d sigma / dt."""

    @abstractmethod
    def time_from_log_snr(self, log_snr: Time) -> Time:
        """The time at which the log-SNR has a value; infinity gives the time at which sigma is 0."""

    def log_snr(self, t: Time) -> Time:
        """lambda = log(alpha/sigma), decreasing in t; infinite where sigma is 0."""
        result: Time = log_ratio(self.alpha(t), self.sigma(t))
        return result

    def rho(self, t: Time) -> Time:
        """The noise level sigma/alpha, in units of the data; infinite where alpha is 0."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if isinstance(alpha, float) and alpha == 0:
            return math.inf
        return sigma / alpha

    def time_from_rho(self, rho: Time) -> Time:
        """The time at which the noise level sigma/alpha has a value; 0 gives the time at which sigma is 0."""
        log_snr: Time = log_ratio(rho * 0 + 1.0, rho)
        return self.time_from_log_snr(log_snr)

    def half_variance_rate(self, t: Time) -> Time:
        """sigma sigma' = (sigma^2)'/2; finite where sigma is 0, even on paths whose sigma' is infinite there."""
        return self.sigma(t) * self.sigma_derivative(t)

    def drift(self, t: Time) -> Time:
        """f(t) of the forward SDE dx = f x dt + g dw."""
        return self.alpha_derivative(t) / self.alpha(t)

    def diffusion(self, t: Time) -> Time:
        """g(t) of the forward SDE dx = f x dt + g dw."""
        square = 2 * (self.half_variance_rate(t) - self.sigma(t) ** 2 * self.drift(t))
        result: Time = ops(t).sqrt(square)
        return result

    def between(self, first: float, last: float) -> Self:
        """The part of the path from time ``first`` down to ``last``, on which a named grid can be laid.

        >>> import diffode
        >>> diffode.grids.get("time_uniform", diffode.paths.get("edm").between(0.7, 0.1), 3).tolist()
        [0.7, 0.5, 0.3, 0.1]
        """
        part = copy.copy(self)
        object.__setattr__(part, "t_max", float(first))
        object.__setattr__(part, "t_min", float(last))
        part.__post_init__()
        return part

    def prior(self, shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw N(0, sigma(t_max)^2 I) of the given shape, the law that samplers start from in practice.

        Its distance to the exact law at ``t_max`` is the *prior error*; ``field.prior`` draws from the exact law.
        """
        return held(self.sigma(self.t_max) * normal(shape, generator=generator), dtype)

    @property
    def spec(self) -> str:
        """The spec that rebuilds this path."""
        return format_spec(self.name, options_of(self))
