"""Grids of a study that begin below the noisiest time, whose runs have less of the way to go than the others."""

from __future__ import annotations

from diffode import grids, paths
from diffode.errors import DiffodeError
from diffode.paths import Path
from diffode.studies.problem import INTERVAL
from diffode.studies.suite import Suite

#: Relative difference of two times that is rounding.
_ROUNDING = 1e-6


def begins_low(grid: str, path: Path, first: float, where: str = "") -> str:
    """What to say of a grid whose ``first`` time lies below the noisiest of the path; empty for any other.

    ``where`` follows the grid's name.

    >>> import diffode
    >>> begins_low("karras", diffode.paths.get("edm"), 80.0)
    ''
    """
    if first >= path.t_max * (1 - _ROUNDING):
        return ""
    return (
        f"grid {grid!r}{where} begins at t={first:.4g}, noise level {path.rho(first):.4g} of {path.rho(path.t_max):.4g}: "
        "the samples begin there, from noise without data, and errors are those of the rest of the way"
    )


def low_starts(suite: Suite) -> list[str]:
    """A sentence for each grid of a suite that begins low on a path, where it begins lowest; bridges have no noise."""
    lowest: dict[tuple[str, str], float] = {}
    for path, grid, nfe in dict.fromkeys((cell.path, cell.grid, cell.nfe) for cell in suite.cells if cell.path != INTERVAL):
        first = _first(grid, path, nfe)
        if first is not None:
            lowest[grid, path] = min(first, lowest.get((grid, path), first))
    told = (begins_low(grid, paths.get(path), first, f" on {path}") for (grid, path), first in lowest.items())
    return [text for text in told if text]


def _first(grid: str, path: str, nfe: int) -> float | None:
    """The first time of a grid with a step for each evaluation; None without such steps, and on a path without a name."""
    try:
        return float(grids.get(grid, paths.get(path), nfe if grids.is_named(grid) else None)[0])
    except DiffodeError:
        return None
