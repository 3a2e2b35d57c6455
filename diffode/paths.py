r"""Paths: how data become noise, :math:`x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon`.

Time runs from noise (``t_max``) to data (``t_min``); larger t means more noise, on every path. Two derived quantities order
all paths on one scale: :math:`\rho = \sigma/\alpha` and the log-SNR :math:`\lambda = \log(\alpha/\sigma)` (half the
logarithm of the signal-to-noise *power* ratio, the convention of Lu et al., arXiv 2206.00927).

Every function takes a float, a tensor or a NumPy array of times and answers in kind; formulas use ``expm1``-like forms so that
the log-SNR and its inverse agree to 1e-12 over the whole range.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.randomness import Randomness, normal
from diffode.specs import Registry, format_spec, options_of

Time = TypeVar("Time", float, Tensor, float | Tensor)


def _ops(t: Any) -> Any:
    """The module that holds exp, log, ... for this kind of number: ``math`` for floats, ``torch`` or ``numpy`` for arrays."""
    if isinstance(t, Tensor):
        return torch
    return np if isinstance(t, np.ndarray) else math


def _softplus(z: Any) -> Any:
    """log(1 + e^z), finite for every z including minus infinity."""
    m = _ops(z)
    positive = max(z, 0.0) if m is math else z.clip(min=0)
    return positive + m.log1p(m.exp(-abs(z)))


def _log_ratio(a: Any, b: Any) -> Any:
    """log(a/b), with its limits where one of two numbers is 0."""
    m = _ops(a)
    if m is not math:
        return m.log(a) - m.log(b)
    if b == 0:
        return math.inf
    return -math.inf if a == 0 else math.log(a) - math.log(b)


@dataclass(frozen=True)
class Path(ABC):
    r"""A noising path :math:`x_t = \alpha(t) x_0 + \sigma(t)\varepsilon` on ``[t_min, t_max]``.

    Subclasses give alpha, sigma, their derivatives and the inverse of the log-SNR; everything else follows:
    the forward SDE is :math:`dx = f x\,dt + g\,dw` with :math:`f = \alpha'/\alpha` (:meth:`drift`) and
    :math:`g^2 = 2\sigma(\sigma' - \sigma\alpha'/\alpha)` (:meth:`diffusion` returns g).
    """

    name: ClassVar[str] = "path"
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.t_min) and math.isfinite(self.t_max) and 0 <= self.t_min < self.t_max):
            raise ArgumentError(
                f"path {self.name!r} needs finite times 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}"
            )

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
        """The time at which the log-SNR has this value; infinity gives the time at which sigma is 0."""

    def log_snr(self, t: Time) -> Time:
        """lambda = log(alpha/sigma), decreasing in t; infinite where sigma is 0."""
        result: Time = _log_ratio(self.alpha(t), self.sigma(t))
        return result

    def rho(self, t: Time) -> Time:
        """sigma/alpha, the noise level in units of the data; infinite where alpha is 0."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if isinstance(alpha, float) and alpha == 0:
            return math.inf
        return sigma / alpha

    def time_from_rho(self, rho: Time) -> Time:
        """The time at which sigma/alpha has this value; 0 gives the time at which sigma is 0."""
        log_snr: Time = _log_ratio(rho * 0 + 1.0, rho)
        return self.time_from_log_snr(log_snr)

    def half_variance_rate(self, t: Time) -> Time:
        """sigma sigma' = (sigma^2)'/2, finite where sigma is 0 even on paths on which sigma' is not."""
        return self.sigma(t) * self.sigma_derivative(t)

    def drift(self, t: Time) -> Time:
        """f(t) of the forward SDE dx = f x dt + g dw."""
        return self.alpha_derivative(t) / self.alpha(t)

    def diffusion(self, t: Time) -> Time:
        """g(t) of the forward SDE dx = f x dt + g dw."""
        square = 2 * (self.half_variance_rate(t) - self.sigma(t) ** 2 * self.drift(t))
        result: Time = _ops(t).sqrt(square)
        return result

    def prior(self, shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw N(0, sigma(t_max)^2 I) of the given shape: what samplers start from in practice.

        It differs from the exact law at ``t_max`` by the *prior error*; ``field.prior`` draws the exact law.
        """
        return self.sigma(self.t_max) * normal(shape, generator=generator, dtype=dtype)

    @property
    def spec(self) -> str:
        """The spec that rebuilds this path."""
        return format_spec(self.name, options_of(self))


@dataclass(frozen=True, init=False)
class EDM(Path):
    """Variance-exploding path of EDM: alpha = 1, sigma = t (Karras et al., arXiv 2206.00364)."""

    name: ClassVar[str] = "edm"
    t_min: float = 0.002
    t_max: float = 80.0

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        object.__setattr__(self, "t_min", float(sigma_min if t_min is None else t_min))
        object.__setattr__(self, "t_max", float(sigma_max if t_max is None else t_max))
        self.__post_init__()

    def alpha(self, t: Time) -> Time:  # noqa: D102
        return t * 0 + 1.0

    def sigma(self, t: Time) -> Time:  # noqa: D102
        return t * 1.0

    def alpha_derivative(self, t: Time) -> Time:  # noqa: D102
        return t * 0.0

    def sigma_derivative(self, t: Time) -> Time:  # noqa: D102
        return t * 0 + 1.0

    def time_from_log_snr(self, log_snr: Time) -> Time:  # noqa: D102
        result: Time = _ops(log_snr).exp(-log_snr)
        return result


@dataclass(frozen=True)
class VP(Path):
    """Variance-preserving path with linear beta (Song et al., arXiv 2011.13456, appendix C).

    log alpha = -(beta_max - beta_min) t^2/4 - beta_min t/2, sigma^2 = 1 - alpha^2.
    """

    name: ClassVar[str] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ArgumentError(
                f"path 'vp' needs 0 < beta_min <= beta_max, got beta_min={self.beta_min}, beta_max={self.beta_max}"
            )

    def _log_alpha(self, t: Any) -> Any:
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def _beta(self, t: Any) -> Any:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Time) -> Time:  # noqa: D102
        result: Time = _ops(t).exp(self._log_alpha(t))
        return result

    def sigma(self, t: Time) -> Time:  # noqa: D102
        m = _ops(t)
        result: Time = m.sqrt(-m.expm1(2 * self._log_alpha(t)))
        return result

    def alpha_derivative(self, t: Time) -> Time:  # noqa: D102
        result: Time = -self._beta(t) / 2 * self.alpha(t)
        return result

    def sigma_derivative(self, t: Time) -> Time:  # noqa: D102
        return self.half_variance_rate(t) / self.sigma(t)

    def half_variance_rate(self, t: Time) -> Time:  # noqa: D102
        result: Time = self._beta(t) / 2 * self.alpha(t) ** 2
        return result

    def time_from_log_snr(self, log_snr: Time) -> Time:  # noqa: D102
        # -2 log alpha = softplus(-2 lambda) is a quadratic in t; this root of it has no cancellation.
        twice = _softplus(-2 * log_snr)
        root = _ops(log_snr).sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * twice)
        result: Time = 2 * twice / (root + self.beta_min)
        return result


@dataclass(frozen=True)
class VPCosine(Path):
    """Variance-preserving path with the cosine schedule (Nichol and Dhariwal, arXiv 2102.09672, equation 17).

    alpha = cos(theta(t))/cos(theta(0)), theta(t) = (pi/2)(t + s)/(1 + s). ``t_max`` stops short of 1, where alpha is 0,
    at the value DPM-Solver uses.
    """

    name: ClassVar[str] = "vp_cosine"
    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.s < 1 or self.t_max > 1:
            raise ArgumentError(f"path 'vp_cosine' needs 0 < s < 1 and t_max <= 1, got s={self.s}, t_max={self.t_max}")

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    @property
    def _theta_0(self) -> float:
        return self._rate * self.s

    def alpha(self, t: Time) -> Time:  # noqa: D102
        result: Time = _ops(t).cos(self._theta_0 + self._rate * t) / math.cos(self._theta_0)
        return result

    def sigma(self, t: Time) -> Time:  # noqa: D102
        # 1 - alpha^2 as a product of sines: no cancellation near t = 0.
        m = _ops(t)
        square = m.sin(self._rate * t) * m.sin(2 * self._theta_0 + self._rate * t)
        result: Time = m.sqrt(square) / math.cos(self._theta_0)
        return result

    def alpha_derivative(self, t: Time) -> Time:  # noqa: D102
        result: Time = -self._rate * _ops(t).sin(self._theta_0 + self._rate * t) / math.cos(self._theta_0)
        return result

    def sigma_derivative(self, t: Time) -> Time:  # noqa: D102
        return self.half_variance_rate(t) / self.sigma(t)

    def half_variance_rate(self, t: Time) -> Time:  # noqa: D102
        return -self.alpha(t) * self.alpha_derivative(t)

    def time_from_log_snr(self, log_snr: Time) -> Time:  # noqa: D102
        m = _ops(log_snr)
        sigma_square = m.exp(-_softplus(2 * log_snr))
        alpha = m.exp(-_softplus(-2 * log_snr) / 2)
        cosine, sine = math.cos(self._theta_0), math.sin(self._theta_0)
        theta = m.atan2(m.sqrt(sine**2 + cosine**2 * sigma_square), alpha * cosine)
        result: Time = (theta - self._theta_0) / self._rate
        return result


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """Straight path x_t = (1 - t) x_0 + t eps (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747).

    The defaults stay a thousandth away from both ends, where rho = t/(1 - t) is 0 or infinite; ``t_max=1`` is allowed
    for solvers and grids that work in native time.
    """

    name: ClassVar[str] = "rectified_flow"
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_max > 1:
            raise ArgumentError(f"path 'rectified_flow' needs t_max <= 1, got {self.t_max}")

    def alpha(self, t: Time) -> Time:  # noqa: D102
        return 1.0 - t

    def sigma(self, t: Time) -> Time:  # noqa: D102
        return t * 1.0

    def alpha_derivative(self, t: Time) -> Time:  # noqa: D102
        return t * 0 - 1.0

    def sigma_derivative(self, t: Time) -> Time:  # noqa: D102
        return t * 0 + 1.0

    def time_from_log_snr(self, log_snr: Time) -> Time:  # noqa: D102
        result: Time = _ops(log_snr).exp(-_softplus(log_snr))
        return result


@dataclass(frozen=True)
class Trigonometric(Path):
    """x_t = cos(pi t/2) x_0 + sin(pi t/2) eps (Albergo et al., arXiv 2303.08797; TrigFlow, arXiv 2410.11081)."""

    name: ClassVar[str] = "trigonometric"
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_max > 1:
            raise ArgumentError(f"path 'trigonometric' needs t_max <= 1, got {self.t_max}")

    def alpha(self, t: Time) -> Time:  # noqa: D102
        # sin(pi/2 (1 - t)), not cos(pi/2 t): exact where alpha vanishes.
        result: Time = _ops(t).sin(math.pi / 2 * (1 - t))
        return result

    def sigma(self, t: Time) -> Time:  # noqa: D102
        result: Time = _ops(t).sin(math.pi / 2 * t)
        return result

    def alpha_derivative(self, t: Time) -> Time:  # noqa: D102
        return -math.pi / 2 * self.sigma(t)

    def sigma_derivative(self, t: Time) -> Time:  # noqa: D102
        return math.pi / 2 * self.alpha(t)

    def time_from_log_snr(self, log_snr: Time) -> Time:  # noqa: D102
        m = _ops(log_snr)
        result: Time = m.atan(m.exp(-log_snr)) * (2 / math.pi)
        return result


registry: Registry[Path] = Registry("path")
for _path in (EDM, VP, VPCosine, RectifiedFlow, Trigonometric):
    registry.register(_path.name, _path)


def get(spec: str | Path, **options: Any) -> Path:
    """The path a spec describes, such as ``"edm"`` or ``"vp:beta_max=12"``.

    >>> get("vp:beta_max=12").beta_max
    12
    """
    if isinstance(spec, Path):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a spec; this path has its own already")
        return spec
    return registry.make(spec, **options)


def names() -> list[str]:
    """All registered path names."""
    return registry.names()


register = registry.register
