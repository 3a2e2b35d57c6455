"""Grids by the names in the menus of ComfyUI, A1111 and RES4LYF, equal to their numbers.

These programs choose among the levels that a model was trained at, ``levels`` of them, uniform in time between the ends of a
path. Those of Stable Diffusion are on ``ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012``, those of flow-matching
models on ``rectified_flow:t_max=1``, where Stable Diffusion 3 and its kind shift each level t to
shift t/(1 + (shift - 1) t). All end at sigma = 0 unless ``to_zero=false`` ends them at the path's last time.

``karras``, ``exponential`` (here ``log_snr``), ``polyexponential`` and ``kl_optimal`` of those menus are the grids of these
names with ``to_zero=true``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from diffode.errors import ArgumentError
from diffode.grid_rules import MOST_STEPS, Grid
from diffode.paths import Path

#: Slope and pivot of each half of ``bong_tangent``, for forty steps.
_SLOPE, _PIVOT = 0.2, 0.6


def flow_time(path: Path, t: float) -> float:
    """sigma/(alpha + sigma), the time of the straight path at the same noise level."""
    rho = path.rho(t)
    return 1.0 if math.isinf(rho) else rho / (1 + rho)


def from_flow_time(path: Path, tau: float) -> float:
    """The time of a path at which the straight path has time tau; its last one for 1."""
    return path.t_max if tau >= 1 else path.time_from_rho(tau / (1 - tau))


def _shifted(path: Path, t: float, shift: float) -> float:
    if shift == 1:
        return t
    tau = flow_time(path, t)
    return from_flow_time(path, shift * tau / (1 + (shift - 1) * tau))


def _check(levels: int, shift: float) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= MOST_STEPS:
        raise ArgumentError(f"levels must be an integer >= 2 and <= {MOST_STEPS}, got {levels!r:.40}")
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < math.inf:
        raise ArgumentError(f"shift must be positive and finite, got {shift!r:.40}")


def _ended(path: Path, times: Sequence[float], to_zero: bool) -> list[float]:
    """Times without repetitions and with the end: sigma = 0, or the path's last time."""
    end = path.time_from_rho(0.0) if to_zero else path.t_min
    return [*(t for t in dict.fromkeys(times) if t > end), end]


def _of_levels(choose: Callable[[int], Sequence[int]], levels: int, shift: float, to_zero: bool) -> Grid:
    """The grid of the chosen level numbers, 0 the lowest, in falling order; ``choose`` takes the number of steps."""
    _check(levels, shift)

    def place(path: Path, steps: int) -> list[float]:
        width = (path.t_max - path.t_min) / (levels - 1)
        chosen = [path.t_max if k == levels - 1 else path.t_min + k * width for k in choose(steps)]
        return _ended(path, [_shifted(path, t, shift) for t in chosen], to_zero)

    return Grid(place)


def simple(levels: int = 1000, shift: float = 1.0, to_zero: bool = True) -> Grid:
    """Every (levels/steps)-th level from the highest, rounded down (ComfyUI, simple_scheduler)."""
    return _of_levels(lambda steps: [levels - 1 - int(i * (levels / steps)) for i in range(steps)], levels, shift, to_zero)


def ddim_uniform(levels: int = 1000, shift: float = 1.0, to_zero: bool = True) -> Grid:
    """Every (levels // steps)-th level from the second lowest (ComfyUI, ddim_scheduler; Song et al., arXiv 2010.02502).

    Where the steps do not divide the levels it lays more steps than it is asked for. It begins below the noisiest level, far
    below it with few steps, so that a start of that level has too much noise for it.
    """
    return _of_levels(lambda steps: list(range(1, levels, max(levels // steps, 1)))[::-1], levels, shift, to_zero)


def beta(alpha: float = 0.6, beta: float = 0.6, levels: int = 1000, shift: float = 1.0, to_zero: bool = True) -> Grid:
    """Quantiles of a beta distribution among the levels, each once (Lee et al., arXiv 2407.12173; ComfyUI, beta_scheduler)."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ArgumentError(f"{name} must be positive and finite, got {value!r:.40}")

    def choose(steps: int) -> list[int]:
        from scipy.special import betaincinv

        shares = 1 - np.linspace(0, 1, steps, endpoint=False)
        return [int(k) for k in np.rint(betaincinv(alpha, beta, shares) * (levels - 1))]

    return _of_levels(choose, levels, shift, to_zero)


def _uniform(last: bool, shift: float, to_zero: bool) -> Grid:
    """Uniform times between the ends, the latter with or without the last of them before sigma = 0."""
    _check(2, shift)

    def place(path: Path, steps: int) -> list[float]:
        # The lower end is a level, shifted, and is shifted again with the others, as published.
        end = _shifted(path, path.t_min, shift)
        parts = steps - 1 if last and to_zero else steps
        times = [path.t_max + i / max(parts, 1) * (end - path.t_max) for i in range(steps)]
        return _ended(path, [_shifted(path, t, shift) for t in times], to_zero)

    return Grid(place)


def normal(shift: float = 1.0, to_zero: bool = True) -> Grid:
    """Uniform times from the first to the last level (ComfyUI, normal_scheduler; ``time_uniform:to_zero=true``)."""
    return _uniform(True, shift, to_zero)


def sgm_uniform(shift: float = 1.0, to_zero: bool = True) -> Grid:
    """Uniform times, without the lowest level (Stability's generative-models; ComfyUI, normal_scheduler with sgm)."""
    return _uniform(False, shift, to_zero)


def _in_shares(shares: Callable[[int], Sequence[float]], level: str, to_zero: bool) -> Grid:
    """The grid at shares, from 1 to 0, of the range of levels, which are flow times or rho."""
    if level not in ("flow", "rho"):
        raise ArgumentError(f"level must be one of flow, rho, got {level!r:.40}")

    def place(path: Path, steps: int) -> list[float]:
        first = flow_time(path, path.t_max) if level == "flow" else path.rho(path.t_max)
        if math.isinf(first):
            raise ArgumentError(f"level=rho needs a finite noise level at t_max={path.t_max:g}: choose level=flow")
        inverse = from_flow_time if level == "flow" else Path.time_from_rho
        last = 0.0 if to_zero else flow_time(path, path.t_min) if level == "flow" else path.rho(path.t_min)
        times = [path.t_max, *(inverse(path, last + share * (first - last)) for share in shares(steps)[1:-1])]
        return _ended(path, times, to_zero)

    return Grid(place)


def linear_quadratic(threshold: float = 0.025, level: str = "flow", to_zero: bool = True) -> Grid:
    """Noise levels fall by ``threshold`` linearly in half of the steps, then quadratically (Genmo's Mochi; ComfyUI).

    Levels are flow times; with ``level=rho`` they are sigma/alpha, as ComfyUI has it for models that are no flow models.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ArgumentError(f"threshold must lie in (0, 1), got {threshold!r:.40}")

    def shares(steps: int) -> list[float]:
        if steps == 1:
            return [1.0, 0.0]
        slow = steps // 2
        left, rest = slow - threshold * steps, steps - slow
        square = left / (slow * rest**2)
        linear = threshold / slow - 2 * left / rest**2
        fast = [square * i**2 + linear * i + square * slow**2 for i in range(slow, steps)]
        return [1 - value for value in (*(i * threshold / slow for i in range(slow)), *fast, 1.0)]

    return _in_shares(shares, level, to_zero)


def bong_tangent(level: str = "flow", to_zero: bool = True) -> Grid:
    """Two arcs of an arctangent, from 1 to 1/2 and from there to 0 (RES4LYF, bong_tangent_scheduler).

    Levels are flow times; with ``level=rho`` they are shares of the highest sigma/alpha. RES4LYF begins at sigma = 1
    with any model.
    """

    def arc(count: int, slope: float, pivot: float, start: float, end: float) -> list[float]:
        values = [-math.atan(slope * (i - pivot)) for i in range(count)]
        width = values[0] - values[-1]
        return [end + (start - end) * ((value - values[-1]) / width if width else 1.0) for value in values]

    def shares(steps: int) -> list[float]:
        whole = steps + 2
        middle, pivot = int((whole * _PIVOT + whole * _PIVOT) / 2), int(whole * _PIVOT)
        slope = _SLOPE / (whole / 40)
        first = arc(middle, slope, pivot, 1.0, 0.5)
        return [*first[:-1], *arc(whole - middle, slope, pivot - middle, 0.5, 0.0)]

    return _in_shares(shares, level, to_zero)


#: The grids of this module by name.
MENUS = {make.__name__: make for make in (simple, ddim_uniform, normal, sgm_uniform, beta, linear_quadratic, bong_tangent)}
