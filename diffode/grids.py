r"""Time grids: the decreasing times a solver visits, from noise to data.

A grid is a float64 tensor of ``steps + 1`` times. Named grids are defined in :math:`\rho = \sigma/\alpha` or in t and run
from ``path.t_max`` to ``path.t_min``; with ``to_zero=true`` the last step goes on to sigma = 0, where it returns the
denoised point. Published tables (``ays_*``) keep their own first noise level unless ``fit=true`` stretches them, in log
rho, over the path's range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.specs import Registry, parse_spec

Times = Tensor | Sequence[float] | str
#: Steps of a grid, and evaluations of a budget: more would fill the memory before a run begins.
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Grid:
    """A named rule that places ``steps + 1`` times on a path; call it with ``(path, steps)``."""

    place: Callable[[Path, int], list[float]]
    to_zero: bool = False

    def __call__(self, path: Path, steps: int) -> Tensor:
        """The times, shape (steps + 1,), float64, strictly decreasing."""
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
            raise ArgumentError(f"steps must be an integer >= 1 and <= {MOST_STEPS}, got {steps!r:.40}")
        if self.to_zero:
            # The last of the steps is the one to zero, as in the EDM reference code.
            times = self.place(path, steps - 1) if steps > 1 else [path.t_max]
            times = [*times, path.time_from_rho(0.0)]
        else:
            times = self.place(path, steps)
        return explicit(times, path)


registry: Registry[Grid] = Registry("grid")


def get(spec: Times, path: Path | None = None, steps: int | None = None, **options: Any) -> Tensor:
    """The times of a named grid, or an explicit sequence of times checked.

    Args:
        spec: a grid spec such as ``"karras:rho=7"``, or times in decreasing order (sequence, array or tensor).
        path: the path the times belong to; needed for a named grid.
        steps: number of steps of a named grid.
        options: options of the grid, overriding those in the spec.

    Returns:
        float64 tensor of shape (steps + 1,).

    >>> from diffode import paths
    >>> get("karras:rho=7", paths.get("edm"), steps=2).tolist()
    [80.0, 2.51521..., 0.002]
    """
    if not isinstance(spec, str):
        return explicit(spec, path)
    if path is None:
        raise ArgumentError(f"grid {spec!r} needs a path; for a plain ODE give the times themselves, as [1.0, 0.75, ...]")
    if steps is None:
        raise ArgumentError(f"grid {spec!r} needs steps (or, in diffode.solve, nfe)")
    return registry.make(spec, **options)(path, steps)


def explicit(times: Any, path: Path | None = None) -> Tensor:
    """Check an explicit sequence of times: one axis, finite, strictly decreasing, at least two."""
    try:
        grid = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"grid must be a spec or a sequence of times, got {times!r}: {error}") from None
    if grid.ndim != 1 or grid.numel() < 2:
        raise ArgumentError(f"grid must have one axis and at least two times, got shape {tuple(grid.shape)}")
    if not bool(torch.isfinite(grid).all()):
        raise ArgumentError("grid has non-finite times")
    steps = grid.diff()
    if bool((steps >= 0).any()):
        i = int(torch.nonzero(steps >= 0)[0])
        hint = "; reverse it: times run from noise to data" if bool((steps > 0).all()) else ""
        raise ArgumentError(f"grid must be strictly decreasing, got {grid[i]:.6g} then {grid[i + 1]:.6g} at {i}{hint}")
    if path is not None and path.alpha(float(grid[0])) < 0:
        raise ArgumentError(f"grid starts at t = {float(grid[0]):g}, beyond the noise end of path {path.name!r}")
    if path is not None and float(grid[-1]) < 0:
        raise ArgumentError(f"grid goes below t = 0 (last time {float(grid[-1]):g}), where path {path.name!r} is not defined")
    return grid


def spec_of(grid: Times) -> str:
    """How a grid is written in a study or a file: its spec, or its times."""
    if isinstance(grid, str):
        parse_spec(grid)
        return grid
    return "times " + " ".join(f"{t:.17g}" for t in explicit(grid).tolist())


def names() -> list[str]:
    """All registered grid names."""
    return registry.names()


register = registry.register


def _ends(path: Path) -> tuple[float, float]:
    """rho at t_max and at t_min, both of which a grid in rho needs finite and positive."""
    high, low = path.rho(path.t_max), path.rho(path.t_min)
    if not math.isfinite(high) or low <= 0:
        raise ArgumentError(
            f"this grid is defined in rho = sigma/alpha, which is {high:g} at t_max={path.t_max:g} and {low:g} at "
            f"t_min={path.t_min:g} on path {path.name!r}; choose t_max and t_min inside, or a grid in t"
        )
    return high, low


def in_rho(curve: Callable[[float, float, float], float]) -> Callable[[Path, int], list[float]]:
    """Times at rho = curve(u, rho_max, rho_min), u = i/steps; the ends are the path's own, to the last digit."""

    def place(path: Path, steps: int) -> list[float]:
        high, low = _ends(path)
        inner = [path.time_from_rho(curve(i / steps, high, low)) for i in range(1, steps)]
        return [path.t_max, *inner, path.t_min]

    return place


def in_time(curve: Callable[[float, float, float], float]) -> Callable[[Path, int], list[float]]:
    """Times t = curve(u, t_max, t_min), u = i/steps."""

    def place(path: Path, steps: int) -> list[float]:
        inner = [curve(i / steps, path.t_max, path.t_min) for i in range(1, steps)]
        return [path.t_max, *inner, path.t_min]

    return place


def _power(u: float, a: float, b: float, exponent: float) -> float:
    """Between a and b, linear in the 1/exponent power."""
    root = 1 / exponent
    return float((a**root + u * (b**root - a**root)) ** exponent)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{name} must be positive and finite, got {value!r}")


def karras(rho: float = 7.0, to_zero: bool = False) -> Grid:
    """rho^(1/7) linear (Karras et al., arXiv 2206.00364, equation 5); the option ``rho`` is the exponent."""
    _positive("rho", rho)
    return Grid(in_rho(lambda u, high, low: _power(u, high, low, rho)), to_zero)


def log_snr(to_zero: bool = False) -> Grid:
    """Log-SNR linear (Lu et al., arXiv 2206.00927)."""
    return Grid(in_rho(lambda u, high, low: high ** (1 - u) * low**u), to_zero)


def polyexponential(rho: float = 1.0, to_zero: bool = False) -> Grid:
    """Log rho linear in (1 - u)^rho (k-diffusion); rho = 1 is ``log_snr``."""
    _positive("rho", rho)
    return Grid(in_rho(lambda u, high, low: low * (high / low) ** ((1 - u) ** rho)), to_zero)


def kl_optimal(to_zero: bool = False) -> Grid:
    """atan(rho) linear (Sabour et al., arXiv 2404.14507, theorem 3.1)."""
    return Grid(in_rho(lambda u, high, low: math.tan(u * math.atan(low) + (1 - u) * math.atan(high))), to_zero)


def time_uniform(to_zero: bool = False) -> Grid:
    """t linear."""
    return Grid(in_time(lambda u, a, b: a + u * (b - a)), to_zero)


def time_quadratic(to_zero: bool = False) -> Grid:
    """Square root of t linear (Song et al., arXiv 2010.02502)."""
    return Grid(in_time(lambda u, a, b: _power(u, a, b, 2.0)), to_zero)


def cosine(to_zero: bool = False) -> Grid:
    """t = t_min + (t_max - t_min) cos(pi u/2): small steps first, where there is most noise (arXiv 2202.04200)."""
    return Grid(in_time(lambda u, a, b: b + (a - b) * math.cos(math.pi / 2 * u)), to_zero)


def shift(s: float = 3.0, to_zero: bool = False) -> Grid:
    """Flow time shifted towards noise, tau = s u/(1 + (s - 1) u), rho = tau/(1 - tau) (arXiv 2403.03206, equation 23)."""
    _positive("s", s)

    def place(path: Path, steps: int) -> list[float]:
        high, low = _ends(path)
        first, last = high / (1 + high), low / (1 + low)
        # Undo the shift at the ends, go uniformly between, and shift again.
        start, stop = (tau / (s - (s - 1) * tau) for tau in (first, last))
        times = []
        for i in range(1, steps):
            u = start + i / steps * (stop - start)
            tau = s * u / (1 + (s - 1) * u)
            times.append(path.time_from_rho(tau / (1 - tau)))
        return [path.t_max, *times, path.t_min]

    return Grid(place, to_zero)


#: Published ten-step noise levels of "Align Your Steps" (arXiv 2404.14507, appendix); each ends with sigma = 0.
_AYS = {
    "ays_sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def _table(levels: tuple[float, ...], fit: bool) -> Callable[[Path, int], list[float]]:
    """Levels for any number of points by log-linear interpolation (the authors' rule)."""

    def place(path: Path, steps: int) -> list[float]:
        old = np.linspace(0, 1, len(levels))
        wanted = np.interp(np.linspace(0, 1, steps + 1), old, np.log(levels))
        if fit:
            high, low = _ends(path)
            share = (wanted - wanted[-1]) / (wanted[0] - wanted[-1])
            wanted = math.log(low) + share * (math.log(high) - math.log(low))
            inner = [path.time_from_rho(math.exp(v)) for v in wanted[1:-1]]
            return [path.t_max, *inner, path.t_min]
        return [path.time_from_rho(math.exp(v)) for v in wanted]

    return place


def _ays(name: str) -> Callable[..., Grid]:
    def make(fit: bool = False, to_zero: bool = True) -> Grid:
        return Grid(_table(_AYS[name], fit), to_zero and not fit)

    make.__doc__ = (
        f"Published table {name[4:].upper()} of Align Your Steps (arXiv 2404.14507); ``fit`` stretches it over the path."
    )
    return make


for _make in (karras, log_snr, time_uniform, time_quadratic, kl_optimal, polyexponential, cosine, shift):
    registry.register(_make.__name__, _make)
for _name in _AYS:
    registry.register(_name, _ays(_name))
