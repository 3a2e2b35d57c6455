"""Rules that place times on a path, and the check of explicit times: what named grids are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.paths import get as get_path

#: Largest number of steps of a grid and of evaluations of a budget; more would fill the memory before a run begins.
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Grid:
    """A rule that places ``steps + 1`` times on a path; call it with ``(path, steps)``."""

    place: Callable[[Path, int], list[float]]
    to_zero: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.to_zero, bool):
            raise ArgumentError(f"to_zero must be true or false, got {self.to_zero!r:.40}")

    def __repr__(self) -> str:
        return "Grid(to_zero=True)" if self.to_zero else "Grid()"

    def __call__(self, path: Path | str, steps: int) -> Tensor:
        """The times, shape (steps + 1,), float64, strictly decreasing."""
        path = get_path(path)
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
            raise ArgumentError(f"steps must be an integer >= 1 and <= {MOST_STEPS}, got {steps!r:.40}")
        if self.to_zero:
            # The step to zero is the last of the steps, as in EDM's own code.
            times = self.place(path, steps - 1) if steps > 1 else [path.t_max]
            times = [*times, path.time_from_rho(0.0)]
        else:
            times = self.place(path, steps)
        return explicit(times, path)


def explicit(times: Any, path: Path | str | None = None) -> Tensor:
    """A sequence of times as a float64 tensor; ArgumentError unless they are at least two, finite, decreasing, on the path."""
    path = None if path is None else get_path(path)
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
    if path is not None and float(grid[0]) > path.t_end:
        raise ArgumentError(f"grid starts at t = {float(grid[0]):g}, beyond the noise end {path.t_end:g} of path {path.name!r}")
    if path is not None and float(grid[-1]) < 0:
        raise ArgumentError(f"grid goes below t = 0 (last time {float(grid[-1]):g}), where path {path.name!r} is not defined")
    return grid


def ends(path: Path) -> tuple[float, float]:
    """rho at t_max and at t_min; ArgumentError unless both are finite and positive, as a grid in rho needs them."""
    high, low = path.rho(path.t_max), path.rho(path.t_min)
    if not math.isfinite(high) or low <= 0:
        raise ArgumentError(
            f"this grid is defined in rho = sigma/alpha, which is {high:g} at t_max={path.t_max:g} and {low:g} at "
            f"t_min={path.t_min:g} on path {path.name!r}; choose t_max and t_min inside, or a grid in t"
        )
    return high, low


def in_rho(curve: Callable[[float, float, float], float]) -> Callable[[Path, int], list[float]]:
    """Times at rho = curve(u, rho_max, rho_min), u = i/steps; the ends are exactly the path's own."""

    def place(path: Path, steps: int) -> list[float]:
        high, low = ends(path)
        inner = [path.time_from_rho(curve(i / steps, high, low)) for i in range(1, steps)]
        return [path.t_max, *inner, path.t_min]

    return place


def in_time(curve: Callable[[float, float, float], float]) -> Callable[[Path, int], list[float]]:
    """Times t = curve(u, t_max, t_min), u = i/steps."""

    def place(path: Path, steps: int) -> list[float]:
        inner = [curve(i / steps, path.t_max, path.t_min) for i in range(1, steps)]
        return [path.t_max, *inner, path.t_min]

    return place
