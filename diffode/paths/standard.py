"""The published noising paths: EDM, VP, sub-VP, cosine, rectified flow, trigonometric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.paths.path import LARGEST, Path, Time, ops, softplus


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

    @override
    def alpha(self, t: Time) -> Time:
        return t * 0 + 1.0

    @override
    def sigma(self, t: Time) -> Time:
        return t * 1.0

    @override
    def alpha_derivative(self, t: Time) -> Time:
        return t * 0.0

    @override
    def sigma_derivative(self, t: Time) -> Time:
        return t * 0 + 1.0

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        result: Time = ops(log_snr).exp(-log_snr)
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
        if not 0 < self.beta_min <= self.beta_max <= LARGEST:
            raise ArgumentError(
                f"path {self.name!r} needs 0 < beta_min <= beta_max <= {LARGEST:g}, "
                f"got beta_min={self.beta_min}, beta_max={self.beta_max}"
            )

    def _log_alpha(self, t: Any) -> Any:
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def _beta(self, t: Any) -> Any:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    @override
    def alpha(self, t: Time) -> Time:
        result: Time = ops(t).exp(self._log_alpha(t))
        return result

    @override
    def sigma(self, t: Time) -> Time:
        m = ops(t)
        result: Time = m.sqrt(-m.expm1(2 * self._log_alpha(t)))
        return result

    @override
    def alpha_derivative(self, t: Time) -> Time:
        result: Time = -self._beta(t) / 2 * self.alpha(t)
        return result

    @override
    def sigma_derivative(self, t: Time) -> Time:
        return self.half_variance_rate(t) / self.sigma(t)

    @override
    def half_variance_rate(self, t: Time) -> Time:
        result: Time = self._beta(t) / 2 * self.alpha(t) ** 2
        return result

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        result: Time = self._time_of(softplus(-2 * log_snr))
        return result

    def times_from_rho(self, rho: Sequence[float]) -> np.ndarray:
        """The times of many noise levels > 0, each that of ``time_from_rho`` to the last bit, at a fraction of its cost."""
        z = 2 * np.array([math.log(level) for level in rho])
        return np.asarray(self._time_of(z.clip(min=0) + np.array([math.log1p(math.exp(-abs(v))) for v in z.tolist()])))

    def _time_of(self, twice: Any) -> Any:
        # ``twice`` = -2 log alpha is a quadratic in t; this form of its root has no cancellation.
        root = ops(twice).sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * twice)
        return 2 * twice / (root + self.beta_min)


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance-preserving path: alpha as on the linear VP path, sigma = 1 - alpha^2 (Song et al., arXiv 2011.13456)."""

    name: ClassVar[str] = "sub_vp"

    @override
    def sigma(self, t: Time) -> Time:
        result: Time = -ops(t).expm1(2 * self._log_alpha(t))
        return result

    @override
    def sigma_derivative(self, t: Time) -> Time:
        result: Time = self._beta(t) * self.alpha(t) ** 2
        return result

    @override
    def half_variance_rate(self, t: Time) -> Time:
        result: Time = self.sigma(t) * self.sigma_derivative(t)
        return result

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        # alpha/sigma = 1/(1/alpha - alpha), so -log alpha = asinh(rho/2).
        twice: Any = 2 * ops(log_snr).asinh(ops(log_snr).exp(-log_snr) / 2)
        result: Time = self._time_of(twice)
        return result


@dataclass(frozen=True)
class VPCosine(Path):
    """Variance-preserving path with the cosine schedule (Nichol and Dhariwal, arXiv 2102.09672, equation 17).

    alpha = cos(theta(t))/cos(theta(0)), theta(t) = (pi/2)(t + s)/(1 + s). ``t_max`` has DPM-Solver's value, short of 1, where
    alpha is 0.
    """

    name: ClassVar[str] = "vp_cosine"
    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.s < 1:
            raise ArgumentError(f"path 'vp_cosine' needs 0 < s < 1, got s={self.s}")

    @property
    @override
    def t_end(self) -> float:
        return 1.0

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    @property
    def _theta_0(self) -> float:
        return self._rate * self.s

    @override
    def alpha(self, t: Time) -> Time:
        # cos(theta(t)) = sin(rate (1 - t)), which is exactly 0 where no signal is left.
        result: Time = ops(t).sin(self._rate * (1 - t)) / math.sin(self._rate)
        return result

    @override
    def sigma(self, t: Time) -> Time:
        # 1 - alpha^2 as a product of sines: no cancellation near t = 0.
        m = ops(t)
        square = m.sin(self._rate * t) * m.sin(2 * self._theta_0 + self._rate * t)
        result: Time = m.sqrt(square) / math.cos(self._theta_0)
        return result

    @override
    def alpha_derivative(self, t: Time) -> Time:
        result: Time = -self._rate * ops(t).sin(self._theta_0 + self._rate * t) / math.cos(self._theta_0)
        return result

    @override
    def sigma_derivative(self, t: Time) -> Time:
        return self.half_variance_rate(t) / self.sigma(t)

    @override
    def half_variance_rate(self, t: Time) -> Time:
        return -self.alpha(t) * self.alpha_derivative(t)

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        m = ops(log_snr)
        sigma_square = m.exp(-softplus(2 * log_snr))
        alpha = m.exp(-softplus(-2 * log_snr) / 2)
        cosine, sine = math.cos(self._theta_0), math.sin(self._theta_0)
        up, along = m.sqrt(sine**2 + cosine**2 * sigma_square), alpha * cosine
        # The sine of theta - theta_0, sin(theta) cos(theta_0) - cos(theta) sin(theta_0), without its cancellation near t = 0.
        rise = cosine**2 * sigma_square / (up * cosine + along * sine)
        result: Time = m.atan2(rise, along * cosine + up * sine) / self._rate
        return result


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """Straight path x_t = (1 - t) x_0 + t eps (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747).

    The defaults end 0.001 before t = 0 and t = 1, where rho = t/(1 - t) is 0 or infinite; ``t_max=1`` is allowed for solvers
    and grids that work in native time.
    """

    name: ClassVar[str] = "rectified_flow"
    t_min: float = 1e-3
    t_max: float = 0.999

    @property
    @override
    def t_end(self) -> float:
        return 1.0

    @override
    def alpha(self, t: Time) -> Time:
        return 1.0 - t

    @override
    def sigma(self, t: Time) -> Time:
        return t * 1.0

    @override
    def alpha_derivative(self, t: Time) -> Time:
        return t * 0 - 1.0

    @override
    def sigma_derivative(self, t: Time) -> Time:
        return t * 0 + 1.0

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        result: Time = ops(log_snr).exp(-softplus(log_snr))
        return result


@dataclass(frozen=True)
class Trigonometric(Path):
    """x_t = cos(pi t/2) x_0 + sin(pi t/2) eps (Albergo et al., arXiv 2303.08797; TrigFlow, arXiv 2410.11081)."""

    name: ClassVar[str] = "trigonometric"
    t_min: float = 1e-3
    t_max: float = 0.999

    @property
    @override
    def t_end(self) -> float:
        return 1.0

    @override
    def alpha(self, t: Time) -> Time:
        # sin(pi/2 (1 - t)), not cos(pi/2 t): exact where alpha vanishes.
        result: Time = ops(t).sin(math.pi / 2 * (1 - t))
        return result

    @override
    def sigma(self, t: Time) -> Time:
        result: Time = ops(t).sin(math.pi / 2 * t)
        return result

    @override
    def alpha_derivative(self, t: Time) -> Time:
        return -math.pi / 2 * self.sigma(t)

    @override
    def sigma_derivative(self, t: Time) -> Time:
        return math.pi / 2 * self.alpha(t)

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        m = ops(log_snr)
        result: Time = m.atan(m.exp(-log_snr)) * (2 / math.pi)
        return result
