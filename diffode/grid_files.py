"""Files of grids that were trained for a field: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from torch import Tensor

from diffode import paths
from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.paths import Path
from diffode.statistics import Statistics
from diffode.statistics.enclosed import disclosed, enclosed
from diffode.tensor_files import content_of, float64, read_tensors, text, write_tensors
from diffode.training_facts import Facts, read_facts

#: Schema of a file with one grid.
GRID_SCHEMA = "diffode-grid-1"
#: Largest number of steps of a trained grid.
_MOST_STEPS = 10_000
#: Largest noise level rho of a trained grid.
_LARGEST_LEVEL = 1e30
#: Largest relative difference between the ends of a path and those of a grid that was trained for it.
_SAME_LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class TrainedGrid(Facts):
    """The noise levels of a trained grid and their origin, with the attributes of :class:`Facts` and these.

    Attributes:
        levels: rho at the grid's times, (steps + 1,) float64, decreasing.
        method: the method of the training: gits, dmn, ld3, search; dc, whose grid is a named one.
        solver: spec of the solver that it was trained for, whose errors on it are told. If that jumps, the first step is its
            jump, which asks nothing.
        statistics: mean and covariance of the data, for a solver that has to know them; else None.
    """

    levels: Tensor
    method: str
    solver: str
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        levels = self.levels
        if not isinstance(levels, Tensor) or levels.dtype != torch.float64 or levels.ndim != 1:
            raise ArgumentError("the levels of a grid must be a float64 tensor (steps + 1,)")
        if not 2 <= len(levels) <= _MOST_STEPS + 1:
            raise ArgumentError(f"a grid has 1 to {_MOST_STEPS} steps, got {len(levels)} levels")
        if not bool((torch.isfinite(levels) & (levels > 0) & (levels <= _LARGEST_LEVEL)).all()):
            raise ArgumentError(f"the levels of a grid must lie in (0, {_LARGEST_LEVEL:g}]")
        if bool((levels.diff() >= 0).any()):
            raise ArgumentError("the levels of a grid must decrease")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.levels) - 1

    @property
    def times(self) -> Tensor:
        """The times on its own path, (steps + 1,) float64, as ``grid=`` takes them."""
        path = paths.get(self.path)
        return torch.tensor(self.times_on(path), dtype=torch.float64)

    def times_on(self, path: Path) -> list[float]:
        """The times of its levels on a path with the same first and last level; ArgumentError for another path."""
        for name, time, known in (("first", path.t_max, self.levels[0]), ("last", path.t_min, self.levels[-1])):
            level = path.rho(time)
            if not abs(level - float(known)) <= _SAME_LEVEL * float(known):
                raise ArgumentError(
                    f"this grid was trained for {name} noise level {float(known):.4g}, path {path.spec!r} has {level:.4g}; "
                    "train it for this path, or choose t_max and t_min accordingly"
                )
        return [path.t_max, *(path.time_from_rho(float(level)) for level in self.levels[1:-1]), path.t_min]

    def content(self) -> str:
        """A hash of the levels, on which alone a run depends."""
        return content_of((self.levels,))

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors, for ``grid="trained:file=FILE"``; ArgumentError if the file can't be written."""
        parts, told = enclosed(self.statistics)
        description = {"schema": GRID_SCHEMA, "method": self.method, "solver": self.solver, **self.description(), **told}
        write_tensors(file, {"levels": self.levels.contiguous(), **parts}, description)


def load_grid(file: str | FilePath) -> TrainedGrid:
    """Read a trained grid, which is also the grid ``trained:file=FILE``; FileFormatError for any other file."""
    description, tensors = read_tensors(file, GRID_SCHEMA)
    with believed(file, "a valid trained grid", "train it again"):
        statistics, others = disclosed(description, tensors)
        if set(others) != {"levels"}:
            raise ValueError("it must hold levels and nothing else")
        method, solver = text(description, "method"), text(description, "solver")
        # Older files say nothing of what the training began from.
        facts = read_facts({"begun_from": "", "start_error": None, **description})
        levels = float64(tensors, "levels", 1)
        return TrainedGrid(levels=levels, method=method, solver=solver, statistics=statistics, **facts)
