"""Paths that are given: by a table of noise levels, by the schedule of a discrete-time model, or by two functions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.paths.path import Path, Time, ops, softplus
from diffode.specs import format_spec, options_of

#: Values of the last alpha^2 that mean no signal is left (arXiv 2305.08891): 0, and 2^-24, which diffusers may write for it.
NO_SIGNAL = (0.0, 2.0**-24)
#: Largest number of levels of a schedule, a thousand times that of the published ones.
MOST_LEVELS = 1_000_000
#: Relative width of the bracket at which a time counts as found, about two units in its last place.
_TIME_TOLERANCE = 2.0**-52


class Tabulated(Path):
    """The variance-preserving path of a model trained at discrete levels t = 1, 2, ..., N (Ho et al., arXiv 2006.11239).

    ``alphas_cumprod[n - 1]`` is alpha^2 at t = n; t = 0 is the data. Between levels the log-SNR is linear in t, as k-diffusion
    and diffusers interpolate it; below level 1 sigma/alpha is, down to 0. Libraries that count timesteps from 0 call the level
    t their timestep t - 1. ``t_min`` is 1 and ``t_max`` is N unless given. A last entry of 0 or 2^-24 (``NO_SIGNAL``) is left
    out, since no solver in sigma/alpha can start there. ArgumentError unless the entries decrease between 1 and 0.

    >>> path = Tabulated([0.99, 0.9, 0.5, 0.1])
    >>> path.t_max, round(path.alpha(3.0) ** 2, 12)
    (4.0, 0.5)
    """

    name: ClassVar[str] = "tabulated"

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor, *, t_min: float = 1.0, t_max: float | None = None):
        try:
            table: Any = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").detach().numpy().copy()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"alphas_cumprod must be numbers, got {alphas_cumprod!r:.80}") from error
        if table.ndim == 1 and len(table) > 2 and table[-1] in NO_SIGNAL:
            table = table[:-1]
        ordered = table.ndim == 1 and len(table) > 1 and bool(np.all(np.isfinite(table)) and np.all(np.diff(table) < 0))
        if not ordered or not (table[0] < 1 and table[-1] > 0):
            raise ArgumentError("alphas_cumprod must be at least two decreasing numbers between 1 and 0 (alpha^2, data first)")
        self._set(table, t_min, float(len(table)) if t_max is None else t_max)

    def _set(self, table: Any, t_min: float, t_max: float) -> None:
        # The class is frozen, as all paths are, so that plain assignment is refused.
        levels = (np.log(table) - np.log1p(-table)) / 2
        for key, value in (("t_min", _number("t_min", t_min)), ("t_max", _number("t_max", t_max)), ("_levels", levels)):
            object.__setattr__(self, key, value)
        Path.__post_init__(self)

    _levels: Any

    @property
    def t_end(self) -> float:
        """The number of levels."""
        # Inverting the log-SNR may miss the last level by rounding.
        return len(self._levels) * (1 + 2.0**-40)

    def _place(self, t: Any) -> tuple[Any, Any]:
        """Offset and slope of the line that the log-SNR follows between the levels around t, for t >= 1."""
        levels, last = self._levels, len(self._levels) - 1
        if isinstance(t, Tensor):
            index = (t.detach().clamp(1, last).floor() - 1).long()
            table = torch.as_tensor(levels, device=t.device)
            low, high = table[index], table[index + 1]
        else:
            index = np.clip(np.floor(t), 1, last).astype(int) - 1
            low, high = levels[index], levels[index + 1]
        slope = high - low
        return low - slope * (index + 1), slope

    @override
    def log_snr(self, t: Time) -> Time:
        offset, slope = self._place(t)
        above, first = offset + slope * t, float(self._levels[0])
        if isinstance(t, Tensor):
            return torch.where(t < 1, first - t.clamp(max=1).log(), above)
        if isinstance(t, np.ndarray):
            with np.errstate(divide="ignore"):
                return np.where(t < 1, first - np.log(np.clip(t, 0, 1)), above)
        if t >= 1:
            return float(above)
        return first - math.log(t) if t > 0 else math.inf

    def _where(self, t: Any, below: Any, above: Any) -> Any:
        """``below`` where t is below level 1, else ``above``, in the kind of number that t is."""
        if isinstance(t, Tensor):
            return torch.where(t < 1, below, above)
        if isinstance(t, np.ndarray):
            return np.where(t < 1, below, above)
        return float(below if t < 1 else above)

    @override
    def alpha(self, t: Time) -> Time:
        log_snr: Any = self.log_snr(t)
        result: Time = ops(t).exp(-softplus(-2 * log_snr) / 2)
        return result

    @override
    def sigma(self, t: Time) -> Time:
        log_snr: Any = self.log_snr(t)
        result: Time = ops(t).exp(-softplus(2 * log_snr) / 2)
        return result

    @override
    def alpha_derivative(self, t: Time) -> Time:
        # d alpha = alpha sigma^2 d lambda; below level 1 lambda' = -1/t and sigma = alpha rho_1 t.
        alpha: Any = self.alpha(t)
        below = -(alpha**3) * math.exp(-2 * self._levels[0]) * t
        result: Time = self._where(t, below, alpha * self.sigma(t) ** 2 * self._place(t)[1])
        return result

    @override
    def sigma_derivative(self, t: Time) -> Time:
        alpha: Any = self.alpha(t)
        below = alpha**3 * math.exp(-self._levels[0])
        result: Time = self._where(t, below, -self.sigma(t) * alpha**2 * self._place(t)[1])
        return result

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        levels, count = self._levels, len(self._levels)
        first = float(levels[0])
        upper: Any
        if isinstance(log_snr, Tensor):
            table = torch.as_tensor(levels, device=log_snr.device)
            # The upper end of the interval, at least the second level; searchsorted needs rising numbers, hence the signs.
            upper = torch.searchsorted(-table, -log_snr.detach().to(table).contiguous()).clamp(1, count - 1)
            low, high = table[upper - 1], table[upper]
            return torch.where(log_snr > first, (first - log_snr).exp(), upper + (log_snr - low) / (high - low))
        upper = np.clip(np.searchsorted(-levels, -np.asarray(log_snr)), 1, count - 1)
        low, high = levels[upper - 1], levels[upper]
        with np.errstate(invalid="ignore"):
            line = upper + (log_snr - low) / (high - low)
        below = np.exp(np.minimum(first - np.asarray(log_snr), 0))
        found = np.where(np.asarray(log_snr) > first, below, line)
        return found if isinstance(log_snr, np.ndarray) else float(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tabulated) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._levels)} levels, t_min={self.t_min:g}, t_max={self.t_max:g})"

    @property
    def spec(self) -> str:
        """A name made of a hash of the levels and times; no path can be rebuilt from it, so that no solver's file holds it."""
        return f"tabulated-{_digest(self._levels, self.t_min, self.t_max)}"


@dataclass(frozen=True, eq=False, repr=False)
class DDPM(Tabulated):
    """The published schedules of discrete-time models; t counts their levels from 1, see :class:`Tabulated`.

    ``schedule`` is ``linear`` (beta linear, Ho et al., arXiv 2006.11239), ``scaled_linear`` (sqrt(beta) linear, Rombach et
    al., arXiv 2112.10752: Stable Diffusion is ``ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012``), or
    ``cosine`` (Nichol and Dhariwal, arXiv 2102.09672, with beta at most 0.999; it ignores ``beta_start`` and ``beta_end``).
    """

    name: ClassVar[str] = "ddpm"
    t_min: float = 1.0
    t_max: float | None = None  # type: ignore[assignment]
    schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    levels: int = 1000

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "scaled_linear", "cosine"):
            raise ArgumentError(f"schedule must be linear, scaled_linear or cosine, got {self.schedule!r}")
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or not 2 <= self.levels <= MOST_LEVELS:
            raise ArgumentError(f"levels must be an integer >= 2 and <= {MOST_LEVELS}, got {self.levels!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ArgumentError(f"need 0 < beta_start <= beta_end < 1, got {self.beta_start!r} and {self.beta_end!r}")
        last = float(self.levels) if self.t_max is None else self.t_max
        table = np.cumprod(1 - self.betas())
        if not (table[0] < 1 and table[-1] > 0 and np.all(np.diff(table) < 0)):
            raise ArgumentError(
                f"{self.levels} levels with betas from {self.beta_start:g} to {self.beta_end:g} leave levels without noise, or "
                "none of the signal, to the digits of float64; choose larger betas at the start, or fewer levels"
            )
        self._set(table, self.t_min, last)

    def betas(self) -> Any:
        """The variance added at each level, (levels,)."""
        if self.schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.levels)
        if self.schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.levels) ** 2
        signal = np.cos((np.arange(self.levels + 1) / self.levels + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - signal[1:] / signal[:-1], 0.999)

    @property
    def spec(self) -> str:
        """The spec that rebuilds this path."""
        options = options_of(self)
        if options.get("t_max") == self.levels:
            del options["t_max"]
        return format_spec(self.name, options)


@dataclass(frozen=True, init=False)
class FunctionPath(Path):
    """A path from two functions of a float64 tensor t, alpha(t) and sigma(t); autograd differentiates them.

    The signal-to-noise ratio must fall from ``t_min`` to ``t_max``, else ArgumentError; its inverse is bracketed between
    ``lower`` and ``upper`` (``t_min`` and ``t_max`` unless given). The path ends at ``upper``.

    >>> path = FunctionPath(lambda t: 1 - t**2, lambda t: t**2, t_min=0.03, t_max=0.99)
    >>> round(path.time_from_log_snr(path.log_snr(0.5)), 12)
    0.5
    """

    name: ClassVar[str] = "function"
    t_min: float = 1e-3
    t_max: float = 0.999
    alpha_function: Callable[[Tensor], Tensor] = field(default=torch.ones_like, repr=False)
    sigma_function: Callable[[Tensor], Tensor] = field(default=torch.clone, repr=False)
    lower: float | None = None
    upper: float | None = None
    _known: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        t_min: float = 1e-3,
        t_max: float = 0.999,
        lower: float | None = None,
        upper: float | None = None,
    ):
        for key, value in (
            ("alpha_function", alpha), ("sigma_function", sigma),
            ("t_min", _number("t_min", t_min)), ("t_max", _number("t_max", t_max)),
            ("lower", _number("lower", t_min if lower is None else lower)),
            ("upper", _number("upper", t_max if upper is None else upper)),
        ):  # fmt: skip
            object.__setattr__(self, key, value)
        for name, function in (("alpha", alpha), ("sigma", sigma)):
            if not callable(function):
                raise ArgumentError(f"{name} must be a function of t, got {type(function).__name__}")
        if not (0 <= (self.lower or 0.0) <= self.t_min and self.t_max <= self.t_end < math.inf):
            raise ArgumentError(
                f"need 0 <= lower <= t_min and t_max <= upper, got lower={self.lower}, t_min={self.t_min}, "
                f"t_max={self.t_max}, upper={self.upper}"
            )
        self.__post_init__()
        times = torch.linspace(self.t_min, self.t_max, 65, dtype=torch.float64, device="cpu")
        levels = self.log_snr(times).detach()
        if not bool(torch.isfinite(levels[1:-1]).all() and (levels.diff() < 0).all()):
            raise ArgumentError(
                "alpha(t)/sigma(t) must be finite and fall from t_min to t_max: larger t means more noise. A path that has its "
                "data at t = 1 is given by lambda t: alpha(1 - t) and lambda t: sigma(1 - t)"
            )
        ends = torch.tensor([self.lower, self.upper], dtype=torch.float64, device="cpu")
        of_ends = self.log_snr(ends).detach()
        # Two neighbouring times among these bracket the time of a wanted log-SNR.
        known = torch.cat([ends[:1], times, ends[1:]]), torch.cat([of_ends[:1], levels, of_ends[1:]])
        object.__setattr__(self, "_known", known)

    @property
    def t_end(self) -> float:
        """``upper``: beyond it the functions may be undefined."""
        return self.t_max if self.upper is None else self.upper

    def _value(self, function: Callable[[Tensor], Tensor], t: Any, derivative: bool) -> Any:
        """A function's value or derivative at t, in the kind of number that t is; autograd can differentiate it once more."""
        given = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if derivative:
            with torch.inference_mode(False), torch.enable_grad():
                own = given if given.requires_grad else given.detach().clone().requires_grad_(True)
                value = _called(function, own)
                answer = torch.zeros_like(given)
                if value.requires_grad:
                    (slope,) = torch.autograd.grad(value.sum(), own, create_graph=given.requires_grad, allow_unused=True)
                    answer = answer if slope is None else slope
        else:
            answer = _called(function, given)
        if isinstance(t, Tensor):
            return answer.expand(t.shape)
        return answer.detach().expand(given.shape).numpy() if isinstance(t, np.ndarray) else float(answer)

    @override
    def alpha(self, t: Time) -> Time:
        result: Time = self._value(self.alpha_function, t, False)
        return result

    @override
    def sigma(self, t: Time) -> Time:
        result: Time = self._value(self.sigma_function, t, False)
        return result

    @override
    def alpha_derivative(self, t: Time) -> Time:
        result: Time = self._value(self.alpha_function, t, True)
        return result

    @override
    def sigma_derivative(self, t: Time) -> Time:
        result: Time = self._value(self.sigma_function, t, True)
        return result

    @override
    def time_from_log_snr(self, log_snr: Time) -> Time:
        wanted = (
            log_snr.double() if isinstance(log_snr, Tensor) else torch.as_tensor(log_snr, dtype=torch.float64, device="cpu")
        )
        with torch.no_grad():
            answer = self._inverted(wanted)
        if isinstance(log_snr, Tensor):
            return answer
        return answer.numpy() if isinstance(log_snr, np.ndarray) else float(answer)

    def _inverted(self, wanted: Tensor) -> Tensor:
        """The times of the wanted log-SNRs, each found by Ridders' method; where none has it, the nearer end.

        Each step at least halves a bracket [low, high]. A factor exp(c t) makes the three values at its ends and middle lie on
        a line, whose root lies in the bracket too (Ridders, IEEE Trans. Circuits Syst. 26, 979, 1979).
        """
        times, levels = (known.to(wanted.device) for known in self._known)
        place = torch.searchsorted(-levels, -wanted).clamp(1, len(levels) - 1)
        low, high = times[place - 1], times[place]
        above, below = levels[place - 1] - wanted, levels[place] - wanted
        answer = torch.where(wanted >= levels[0], times[0], torch.where(wanted <= levels[-1], times[-1], math.nan))
        settled = ~answer.isnan()
        # Some fifty halvings find a time; beside 0, where floating-point numbers lie denser, it takes up to a hundred.
        for _ in range(100):
            middle = (low + high) / 2
            at_middle = self.log_snr(middle) - wanted
            found = middle + (middle - low) * at_middle / (at_middle**2 - above * below).sqrt()
            found = torch.where(torch.isfinite(found), found, middle).clamp(low, high)
            for point, value in ((middle, at_middle), (found, self.log_snr(found) - wanted)):
                noisier = value < 0
                narrows_high, narrows_low = noisier & (point < high), ~noisier & (point > low)
                high, below = torch.where(narrows_high, point, high), torch.where(narrows_high, value, below)
                low, above = torch.where(narrows_low, point, low), torch.where(narrows_low, value, above)
            near = _TIME_TOLERANCE * found
            arrived = ((found - answer).abs() <= near) | (high - low <= near)
            answer = torch.where(settled, answer, found)
            settled = settled | arrived
            if bool(settled.all()):
                break
        return answer

    @property
    def spec(self) -> str:
        """A name made of a hash of the functions' values at 33 times; no path can be rebuilt from it."""
        times = torch.linspace(self.t_min, self.t_max, 33, dtype=torch.float64, device="cpu")
        return f"function-{_digest(self.alpha(times).detach(), self.sigma(times).detach(), self.t_min, self.t_max)}"


def _called(function: Callable[[Tensor], Any], t: Tensor) -> Tensor:
    try:
        answer = function(t)
        known = answer if isinstance(answer, Tensor) else torch.as_tensor(answer, dtype=t.dtype, device=t.device)
        return known.expand(t.shape)
    except Exception as error:  # anyone's function may raise anything
        raise ArgumentError(
            f"alpha and sigma must be functions of a tensor of times (torch.cos, not math.cos): {error}"
        ) from error


def _number(name: str, value: object) -> float:
    """A time as a float: a number or a tensor of one number, but no text."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError(type(value).__name__)
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(f"{name} must be a number, a time, got {value!r:.80}") from None


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value, dtype=np.float64).tobytes())
    return digest.hexdigest()[:12]
