"""DC-Solver for numbers of evaluations and weights of guidance that were not trained for: ratios by a polynomial."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from diffode import grids, paths
from diffode.errors import ArgumentError, TrainedElsewhereWarning
from diffode.input_files import believed
from diffode.paths import Path
from diffode.solvers.dc import POINTS, DCSolver
from diffode.solvers.trained.bespoke import TrainedSolver
from diffode.solvers.trained.given_file import named, numbers_of
from diffode.specs import parse_spec
from diffode.tableau.stages import Stages
from diffode.tensor_files import content_of, float64, read_tensors, text, write_tensors
from diffode.training_facts import Facts, read_facts

#: Schema of a file with ratios.
RATIOS_SCHEMA = "diffode-ratios-1"
#: Highest powers of the step, of the number of steps and of the weight.
POWERS = (3, 2, 2)
#: What the number of steps and the weight are divided by, as in the authors' code.
_STEPS, _WEIGHT = 50.0, 12.0
#: Smallest and largest ratio.
RANGE = (0.0, 2.0)
#: Number of decimal digits of a ratio, as a spec tells them.
DIGITS = 4
#: Largest number of steps of a training, and of trainings in a file.
_MOST_STEPS, _MOST_TRAININGS = 200, 10_000
#: Relative difference of a level from that of the training above which a solver warns.
_SAME_LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Ratios(Facts):
    r"""The ratios of some trainings, and the polynomial through them, with the attributes of :class:`Facts` and these.

    The ratio of step i of N at weight w is :math:`\sum_{klm} c_{klm} (i/N)^k (N/50)^l (w/12)^m` with k up to 3, l and m up to
    2, fitted by least squares; with fewer numbers of evaluations or weights, or too few ratios, powers are left out. The
    authors write it as a cascade: a polynomial in i/N, whose coefficients are polynomials in w, whose are polynomials in N.
    They fit all ratios alike; here each counts by its strength, since of the last ones many hardly matter and lie anywhere.

    Attributes:
        trained: the ratios by number of evaluations and weight, those of the steps from the third on.
        strengths: how far each moves the state of its step, per unit of the ratio, in units of the spread of the states there;
            empty for ratios that all count alike.
        solver: spec of ``dc`` without ratios, which they belong to.
        grid: the named grid of all trainings.
        ends: the first and the last noise level.

    Source: Zhao et al., arXiv 2409.03755, "cascade polynomial regression"; the authors' code,
    ``cascade_polynomial_regression``.
    """

    trained: dict[tuple[int, float], tuple[float, ...]]
    strengths: dict[tuple[int, float], tuple[float, ...]] = field(default_factory=dict)
    solver: str
    grid: str
    ends: tuple[float, float]

    def __post_init__(self) -> None:
        if not 1 <= len(self.trained) <= _MOST_TRAININGS:
            raise ArgumentError(f"trained must hold 1 to {_MOST_TRAININGS} trainings, got {len(self.trained)}")
        for (nfe, weight), ratios in self.trained.items():
            if type(nfe) is not int or not POINTS <= nfe <= _MOST_STEPS or not math.isfinite(weight):
                raise ArgumentError(
                    f"trained must have numbers of evaluations from {POINTS} to {_MOST_STEPS} and finite weights, got "
                    f"{nfe!r} and {weight!r}"
                )
            low, high = RANGE
            if len(ratios) != nfe - POINTS + 1 or not all(low <= ratio <= high for ratio in ratios):
                raise ArgumentError(
                    f"{nfe} evaluations have {nfe - POINTS + 1} ratios between {low:g} and {high:g}, got {ratios!r:.80}"
                )
            strengths = self.strengths.get((nfe, weight), ()) if self.strengths else (1.0,) * len(ratios)
            if len(strengths) != len(ratios) or not all(0 <= strength < math.inf for strength in strengths):
                raise ArgumentError(f"strengths must be numbers >= 0, one for each ratio, got {strengths!r:.80}")

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of evaluations that were trained for, increasing."""
        return tuple(sorted({nfe for nfe, _ in self.trained}))

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of guidance that were trained for, increasing; one number if the weight was none of the questions."""
        return tuple(sorted({weight for _, weight in self.trained}))

    @property
    def range(self) -> str:
        """The numbers of evaluations and weights for which it has ratios, in words."""
        numbers = f"{self.budgets[0]} to {self.budgets[-1]}" if len(self.budgets) > 1 else str(self.budgets[0])
        weights = f", weights {self.weights[0]:g} to {self.weights[-1]:g}" if len(self.weights) > 1 else ""
        return numbers + weights

    @functools.cached_property
    def coefficients(self) -> np.ndarray:
        """The polynomial's coefficients, by the powers of i/N, N/50 and w/12."""
        rows = [(i / nfe, nfe, weight) for (nfe, weight), own in self.trained.items() for i in range(POINTS, POINTS + len(own))]
        known = np.array([ratio for own in self.trained.values() for ratio in own])
        strengths = np.array([strength for own in self._strengths().values() for strength in own])
        most = (POWERS[0], min(POWERS[1], len(self.budgets) - 1), min(POWERS[2], len(self.weights) - 1))
        # Powers of the step give way before those of the number of steps and of the weight, until the ratios determine all.
        shapes = itertools.product(*(range(1, power + 2) for power in most))
        for shape in sorted(shapes, key=lambda sizes: (sizes[1] + sizes[2], sizes[0]), reverse=True):
            design = np.array([powers(*row, shape).ravel() for row in rows]) * strengths[:, None]
            if np.linalg.matrix_rank(design) == design.shape[1]:
                break
        return np.asarray(np.linalg.lstsq(design, known * strengths, rcond=None)[0]).reshape(shape)

    def at(self, nfe: int, weight: float | None = None) -> tuple[float, ...]:
        """The ratios for a number of evaluations and a weight: those of a training as they are, others by the polynomial.

        Args:
            nfe: the number of evaluations.
            weight: the weight of guidance, which may be left out where one was trained for.

        Raises:
            ArgumentError: outside of the range of the trainings, beyond which polynomials run away.
        """
        known, weights = self.budgets, self.weights
        if type(nfe) is not int or not known[0] <= nfe <= known[-1]:
            raise ArgumentError(
                f"nfe must be an integer from {known[0]} to {known[-1]}, between which ratios were trained, got {nfe!r}"
            )
        given = weights[0] if weight is None and len(weights) == 1 else weight
        if isinstance(given, bool) or not isinstance(given, int | float) or not weights[0] <= given <= weights[-1]:
            between = f"from {weights[0]:g} to {weights[-1]:g}" if len(weights) > 1 else f"{weights[0]:g}, or left out"
            raise ArgumentError(f"weight must be a number {between}, as the ratios were trained, got {weight!r:.40}")
        if (nfe, given) in self.trained:
            return self.trained[nfe, given]
        shape = self.coefficients.shape
        found = [float((self.coefficients * powers(i / nfe, nfe, given, shape)).sum()) for i in range(POINTS, nfe + 1)]
        return tuple(round(min(max(ratio, RANGE[0]), RANGE[1]), DIGITS) for ratio in found)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that a run depends on."""
        return content_of(self._tensors().values()) + f" {self.solver} {self.grid} {self.path}"

    def _strengths(self) -> dict[tuple[int, float], tuple[float, ...]]:
        """The strengths in the order of the ratios."""
        return {key: self.strengths[key] if self.strengths else (1.0,) * len(own) for key, own in self.trained.items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The trainings' numbers (P, 2) of evaluations and weights; ratios and strengths (P, most), with 1 behind the last."""
        most = max(len(own) for own in self.trained.values())
        numbers = [[float(nfe), weight] for nfe, weight in self.trained]
        lists = {"trainings": numbers} | {
            name: [[*own, *[1.0] * (most - len(own))] for own in values.values()]
            for name, values in (("ratios", self.trained), ("strengths", self._strengths()))
        }
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in lists.items()}

    def save(self, file: str | FilePath) -> None:
        """Write them as safetensors; ArgumentError if the file can't be written."""
        description = {
            "schema": RATIOS_SCHEMA, "solver": self.solver, "grid": self.grid, "ends": list(self.ends), **self.description()
        }  # fmt: skip
        write_tensors(file, self._tensors(), description)


def powers(step: float, steps: float, weight: float, shape: Sequence[int]) -> np.ndarray:
    """The products of powers of i/N, N/50 and w/12 as an array of a shape.

    >>> powers(0.5, 50, 24.0, (2, 1, 3)).tolist()
    [[[1.0, 2.0, 4.0]], [[0.5, 1.0, 2.0]]]
    """
    parts = [part ** np.arange(size) for part, size in zip((step, steps / _STEPS, weight / _WEIGHT), shape, strict=True)]
    return np.asarray(np.einsum("k,l,m->klm", *parts))


def load_ratios(file: str | FilePath) -> Ratios:
    """Read ratios; FileFormatError for a file that holds none, ArgumentError if there is no file."""
    description, tensors = read_tensors(file, RATIOS_SCHEMA)
    with believed(file, "valid ratios of DC-Solver", "train them again with diffode train dc"):
        numbers, ratios, strengths = (float64(tensors, name, 2) for name in ("trainings", "ratios", "strengths"))
        if len(tensors) != 3 or numbers.shape != (len(ratios), 2) or ratios.shape != strengths.shape:
            raise ValueError("it must hold as many trainings as ratios and strengths, and nothing else")
        counts = [int(nfe) for nfe in numbers[:, 0].tolist()]
        if counts != numbers[:, 0].tolist() or len(set(map(tuple, numbers.tolist()))) < len(counts):
            raise ValueError("numbers of evaluations must be integers, each with a weight once")
        trained, strong = (
            {
                (nfe, weight): tuple(own[: max(nfe - POINTS + 1, 0)])
                for nfe, weight, own in zip(counts, numbers[:, 1].tolist(), values.tolist(), strict=True)
            }
            for values in (ratios, strengths)
        )
        first, last = (float(end) for end in description["ends"])
        solver, grid = text(description, "solver"), text(description, "grid")
        # They are only looked up: a file may name code that it should not run.
        paths.registry.registered(description["path"])
        if not grids.is_rule(grid):
            raise ValueError("it must name a grid that has any number of steps")
        _plain(solver)
        return Ratios(
            trained=trained, strengths=strong, solver=solver, grid=grid, ends=(first, last), **read_facts(description)
        )


def _plain(spec: str) -> DCSolver:
    """The solver of a spec of ``dc``, which the registry of solvers makes below this room."""
    name, options = parse_spec(spec)
    if name != DCSolver.name:
        raise ArgumentError(f"solver must be {DCSolver.name} with its options, got {spec!r:.60}")
    given: dict[str, Any] = options
    return DCSolver(**given)


@dataclass(frozen=True, kw_only=True)
class RegressedDC(TrainedSolver):
    """DC-Solver for any number of evaluations between those that its ratios were trained for, by a polynomial through them.

    ``diffode train dc --nfe 5,6,8,10`` writes such a ``file``. Where ratios were trained for a number of evaluations it has
    these. With ratios for several weights of guidance ``weight`` says which, between the least and the largest. It lays the
    grid of its training, and warns with TrainedElsewhereWarning between other levels.
    """

    file: str = ""
    weight: float | None = None
    ratios: Ratios | None = field(default=None, repr=False, compare=False)
    #: What it runs with: what was given, or is in the file.
    known: Ratios = field(init=False, repr=False, compare=False)
    #: The content of the ratios, by which two solvers without a file are told apart.
    digest: str = field(init=False, repr=False)

    name = "dc_regressed"
    reference = "Zhao et al., arXiv 2409.03755, cascade polynomial regression"

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", named(self.file))
        wrote = "diffode train dc --nfe 5,6,8,10"
        found = numbers_of(self.name, self.file, "ratios", self.ratios, Ratios, load_ratios, wrote)
        object.__setattr__(self, "known", found)
        self.known.at(self.known.budgets[0], self.weight)
        object.__setattr__(self, "digest", self.content())

    @property
    @override
    def budgets(self) -> tuple[int, ...]:
        return tuple(range(self.known.budgets[0], self.known.budgets[-1] + 1))

    @override
    def content(self) -> str:
        return self.known.digest

    def solver(self, nfe: int) -> DCSolver:
        """The solver ``dc`` with the ratios for a number of evaluations."""
        return replace(_plain(self.known.solver), ratios=self.known.at(nfe, self.weight))

    @override
    def stages(self, nfe: int, first: float, last: float) -> Stages:
        for name, level, end in zip(("first", "last"), (first, last), self.known.ends, strict=True):
            if abs(level - end) > _SAME_LEVEL * end:
                warnings.warn(
                    f"{self.file or 'these ratios'} were trained for {name} noise level {end:.4g}, this run has {level:.4g}; "
                    "train them for this path, or choose t_max and t_min accordingly",
                    TrainedElsewhereWarning,
                    stacklevel=3,
                )
        path: Path = paths.registry.registered(self.known.path)
        return Stages.of(self.solver(nfe).tableau(path, self.known.grid, nfe))
