"""Trained samplers as solvers: ``bespoke`` reads one from a file, ``universal`` ships with diffode."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Self

import torch
from typing_extensions import override

from diffode import grids
from diffode.errors import ArgumentError, BudgetError, TrainedElsewhereWarning
from diffode.gaussian_charts import GaussianChart
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.paths.path import lack_of_path
from diffode.solvers.solver import WritesTable, check_budget, check_choice, check_known
from diffode.solvers.trained.checkpoints import Checkpoint, load_checkpoint, load_codebooks, load_ranged
from diffode.solvers.trained.given_file import named, numbers_of
from diffode.solvers.trained.ranged import Ranged
from diffode.solvers.trained.spectral import Spectral
from diffode.solvers.trained.spectral_files import load_spectral
from diffode.statistics import Statistics
from diffode.tableau import Tableau
from diffode.tableau.gaussian_stages import GaussianStages
from diffode.tableau.stages import Stages
from diffode.tensor_files import content_of

#: Relative difference of a level, or of the data's scale, from that of the training above which a solver warns.
_SAME_LEVEL = 0.01
#: Largest number of coordinates of a row that ``dim`` may give.
_MOST_COORDINATES = 10**12
#: File of the universal tables.
FILE = FilePath(__file__).parent / "universal.safetensors"
#: File of the codebooks, of which one member is chosen for a field.
MEMBERS_FILE = FilePath(__file__).parent / "universal_members.safetensors"
#: File of the universal tables in the Gaussian's chart.
SPECTRAL_FILE = FilePath(__file__).parent / "universal_gaussian.safetensors"
#: The same for data of which the scale alone is known.
SCALE_FILE = FilePath(__file__).parent / "universal_scale.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainedSolver(WritesTable):
    """A sampler with one table for each of a few numbers of evaluations, which lays its own levels between two ends.

    It has no order of convergence, since it runs with the numbers of evaluations that it was trained for only.
    """

    order = None
    lays_levels = True

    @property
    @override
    def chart_name(self) -> str:
        return "noise"

    @property
    @abstractmethod
    def budgets(self) -> tuple[int, ...]:
        """The numbers of evaluations for which it has tables, increasing."""

    @abstractmethod
    def stages(self, nfe: int, first: float, last: float) -> Stages | GaussianStages:
        """Its table with ``nfe`` evaluations between the levels ``first`` and ``last``, in common form."""

    @property
    def _known(self) -> str:
        return ", ".join(map(str, self.budgets))

    @override
    def tableau(self, path: Path | str | None, grid: grids.Times, steps: int | None = None) -> Tableau:
        """The table between the ends of a grid, with ``steps`` evaluations (or its only number); BudgetError for others."""
        check_known(self)
        if self.analytic_first_step is not False:
            raise ArgumentError(f"solver {self.name!r} was trained with all its evaluations: leave analytic_first_step out")
        if path is None:
            raise lack_of_path(f"solver {self.name!r}")
        path = get_path(path)
        if grids.is_named(grid):
            times = grids.get(grid, path, 1).tolist()
        else:
            times = grids.get(grid, path).tolist()
            if len(times) > 2:
                raise ArgumentError(f"solver {self.name!r} lays its own levels: give grid=[start, end], got {len(times)} times")
        nfe = steps if steps is not None else self.budgets[0]
        if nfe not in self.budgets or (steps is None and len(self.budgets) > 1):
            known = ", ".join(map(str, self.budgets))
            asked = "steps= says how many evaluations" if steps is None else f"it has no table for {steps}"
            raise BudgetError(
                f"solver {self.spec!r} was trained for nfe {known}; {asked}: give a grid by name and nfe= one of these"
            )
        first, last = path.rho(times[0]), path.rho(times[-1])
        if not (math.isfinite(first) and last > 0):
            raise ArgumentError(
                f"solver {self.name!r} needs alpha > 0 at its start and sigma > 0 at its end, got times {times}"
            )
        return self.stages(nfe, first, last).tableau(path, self.spec, (times[0], times[-1]))

    @override
    def within(self, path: Path | str | None, grid: grids.Times, nfe: int) -> Tableau:
        """The largest table within a budget, with TrainedElsewhereWarning if it is smaller; BudgetError if none fits."""
        check_budget(nfe)
        fitting = [n for n in self.budgets if n <= nfe]
        if not fitting:
            raise BudgetError(
                f"solver {self.spec!r} was trained for nfe {', '.join(map(str, self.budgets))}; none fits nfe={nfe}"
            )
        if fitting[-1] != nfe:
            warnings.warn(
                f"{self.spec!r} was not trained for nfe={nfe}; it runs with {fitting[-1]}", TrainedElsewhereWarning, 2
            )
        return self.tableau(path, grid, fitting[-1])


@dataclass(frozen=True, kw_only=True)
class Bespoke(TrainedSolver):
    """A table trained for one target and number of evaluations, from a ``file`` or from memory as ``table``.

    ``diffode train`` writes such files, and so does ``.save(file)`` of the result of a training. Its levels and weights are
    stored in units of the data's scale; ``scale`` replaces the scale of the training data. It warns with
    TrainedElsewhereWarning if it runs between other levels than it was trained for.
    """

    file: str = ""
    scale: float | None = None
    table: Checkpoint | None = field(default=None, repr=False, compare=False)
    checkpoint: Checkpoint = field(init=False, repr=False, compare=False)
    #: The content of the table, by which two solvers without a file are told apart.
    digest: str = field(init=False, repr=False)

    name = "bespoke"
    reference = "Shaul et al., arXiv 2403.01329 (bespoke non-stationary solvers); trained by Gauss-Newton"

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", named(self.file))
        if self.scale is not None and not _positive(self.scale):
            raise ArgumentError(f"scale must be a positive number, got {self.scale!r}")
        found = numbers_of(self.name, self.file, "table", self.table, Checkpoint, load_checkpoint)
        object.__setattr__(self, "checkpoint", found)
        object.__setattr__(self, "digest", self.content())

    @property
    @override
    def chart_name(self) -> str:
        return "noise" if self.checkpoint.statistics is None else GaussianChart.name

    @property
    def _origin(self) -> str:
        """What it is called in warnings."""
        return self.file or f"this table, trained on {self.checkpoint.target},"

    @property
    @override
    def budgets(self) -> tuple[int, ...]:
        return (self.checkpoint.nfe,)

    def for_field(self, scale: float, dim: int) -> Self:
        """The solver itself, with TrainedElsewhereWarning if the field's data have another scale than the training data."""
        known, advice = self.checkpoint.statistics, "; scale= moves it"
        if known is not None:
            known.check_dim(dim)
            advice = ", and holds mean and covariance of its own: train it on this field"
        if self.scale is None:
            warn_of_scale(self._origin, self.checkpoint.scale, scale, advice)
        return self

    @override
    def content(self) -> str:
        stages = self.checkpoint.stages
        scale = torch.tensor([self.checkpoint.scale], dtype=torch.float64)
        known = self.checkpoint.statistics
        return content_of((stages.scales, stages.weights, stages.levels, scale)) + ("" if known is None else known.content)

    @override
    def stages(self, nfe: int, first: float, last: float) -> Stages | GaussianStages:
        trained = self.checkpoint.table(self.scale)
        levels = self.checkpoint.stages.levels * (self.scale or self.checkpoint.scale)
        for name, level, known in (("first", first, levels[0]), ("last", last, levels[-1])):
            if abs(level - float(known)) > _SAME_LEVEL * float(known):
                warnings.warn(
                    f"{self._origin} was trained for {name} noise level {float(known):.4g}, this run has {level:.4g}; train it "
                    f"for this path, or choose t_max and t_min accordingly",
                    TrainedElsewhereWarning,
                    stacklevel=2,
                )
        return trained


@dataclass(frozen=True, kw_only=True)
class Universal(TrainedSolver):
    """Tables for 3 to 12 evaluations, trained on a large family of random mixtures: for any diffusion field.

    A table depends on the first and last noise level in units of the data's scale (root mean variance), and on the dimension;
    levels outside those of the training are an ArgumentError. ``scale`` and ``dim`` are the field's unless given.

    With ``chart="gaussian"`` the tables are those in the chart of the data's Gaussian, for 1 to 12 evaluations: they jump to
    their first level, and are made for the spectrum of the data, whose mean and covariance have to be known (``scale`` and
    ``dim`` are not asked for). Statistics of kind ``scale``, which hold the mean variance alone, have tables of their own.
    Those of kind ``diagonal``, ``cosine`` or ``fourier`` are taken for the whole covariance: where the data's own axes are
    others, which statistics can't tell, no table was trained for them, and kind ``scale`` is the better choice.

    With ``member`` a member of a codebook replaces the table for all data; ``diffode.learned.tune_universal`` chooses the
    member, and the ``scale`` and ``dim`` to run it with, for a field. Members of different budgets are unrelated, so a member
    is chosen for one ``nfe``.
    """

    scale: float | None = None
    dim: int | None = None
    member: int | None = None
    nfe: int | None = None
    chart: str = "noise"
    statistics: Statistics | None = field(default=None, init=False, repr=False, compare=False)

    name = "universal"
    reference = "this package: tools/train_universal.py, tools/train_universal_members.py, tools/train_universal_gaussian.py"

    def __post_init__(self) -> None:
        check_choice("chart", self.chart, ("noise", "gaussian"))
        if self.in_chart and (self.scale, self.dim, self.member) != (None, None, None):
            raise ArgumentError("scale, dim and member are of the chart noise: in the chart gaussian the statistics say all")
        if self.scale is not None and not _positive(self.scale):
            raise ArgumentError(f"scale must be a positive number, the root mean variance of the data, got {self.scale!r:.40}")
        if self.dim is not None and (type(self.dim) is not int or not 1 <= self.dim <= _MOST_COORDINATES):
            raise ArgumentError(f"dim must be an integer >= 1, got {self.dim!r:.40}")
        if self.member is not None:
            if type(self.member) is not int or self.member < 0:
                raise ArgumentError(f"member must be an integer >= 0, got {self.member!r:.40}")
            most = max(map(len, shipped_members().values()))
            if self.member >= most:
                raise ArgumentError(f"there is no member {self.member}: a codebook has members 0 to {most - 1}")
        if self.nfe is not None and not self.tables:
            known = ", ".join(map(str, replace(self, nfe=None).budgets))
            raise ArgumentError(f"nfe must be a number of evaluations that there is a table for, {known}, got {self.nfe!r:.40}")

    @property
    @override
    def chart_name(self) -> str:
        return self.chart

    @property
    def in_chart(self) -> bool:
        """Whether its tables are in the chart of the data's Gaussian."""
        return self.chart == "gaussian"

    @property
    def _scale_alone(self) -> bool:
        """Whether of the data's covariance no more is known than its mean variance; in one dimension that is all of it."""
        return self.statistics is not None and self.statistics.kind == "scale" and len(self.statistics.mean) > 1

    @property
    @override
    def needs_statistics(self) -> bool:
        return super().needs_statistics or (self.in_chart and self.statistics is None)

    @override
    def knowing(self, statistics: Statistics) -> Self:
        if not self.in_chart:
            return self
        told = copy.copy(self)
        object.__setattr__(told, "statistics", statistics)
        return told

    @property
    def tables(self) -> Mapping[int, Ranged | Spectral]:
        """The tables by number of evaluations."""
        known: Mapping[int, Ranged | Spectral]
        if self.in_chart:
            known = shipped_spectral(self._scale_alone)
        elif self.member is None:
            known = shipped_tables()
        else:
            known = {nfe: book[self.member] for nfe, book in shipped_members().items() if self.member < len(book)}
        return {nfe: table for nfe, table in known.items() if self.nfe is None or (type(self.nfe) is int and nfe == self.nfe)}

    @property
    @override
    def budgets(self) -> tuple[int, ...]:
        return tuple(sorted(self.tables))

    @override
    def content(self) -> str:
        digest = hashlib.sha256()
        for nfe, table in sorted(self.tables.items()):
            spans = (table.first, table.last) if isinstance(table, Ranged) else (table.last,)
            digest.update(repr((nfe, *spans, table.most)).encode() + table.coefficients.numpy().tobytes())
        return digest.hexdigest() + ("" if self.statistics is None else self.statistics.content)

    @override
    def for_field(self, scale: float, dim: int) -> Self:
        if self.in_chart:
            return self
        return replace(self, scale=self.scale or scale, dim=self.dim or dim)

    @override
    def stages(self, nfe: int, first: float, last: float) -> Stages | GaussianStages:
        if self.in_chart:
            if self.statistics is None:
                raise ArgumentError("universal:chart=gaussian needs statistics: diffode.solvers.informed(solver, statistics)")
            return shipped_spectral(self._scale_alone)[nfe].on(self.statistics, first, last)
        if self.scale is None or self.dim is None:
            raise ArgumentError("universal needs scale= (root mean variance of the data) and dim= where no field tells them")
        ranged = self.tables[nfe]
        if not isinstance(ranged, Ranged):
            raise ArgumentError("universal tables in the chart noise are none of the Gaussian's chart")
        ranged.check(first / self.scale, last / self.scale, self.scale)
        # A member was chosen by its measured error on the field, which counts more than the range of its training.
        if self.dim > ranged.most and self.member is None:
            text = (
                f"the universal tables were trained in up to {ranged.most} dimensions, this field has {self.dim}: measure, "
                "or take the member that diffode.learned.tune_universal finds"
            )
            warnings.warn(text, TrainedElsewhereWarning, stacklevel=2)
        return ranged.stages(first / self.scale, last / self.scale, self.dim).scaled(self.scale)


def warn_of_scale(what: str, trained: float, scale: float, advice: str = ": train it on this field") -> None:
    """TrainedElsewhereWarning if data have another scale than those that something was trained on."""
    if abs(scale - trained) > _SAME_LEVEL * trained:
        text = f"{what} was trained on data of scale {trained:.4g}, this field has {scale:.4g}{advice}"
        warnings.warn(text, TrainedElsewhereWarning, stacklevel=3)


def _positive(value: object) -> bool:
    """Whether a value is a positive number that a float can hold."""
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 1e300


@functools.cache
def shipped_tables() -> dict[int, Ranged]:
    """The universal tables that ship with diffode, by number of evaluations."""
    return load_ranged(FILE)


@functools.cache
def shipped_spectral(scale_alone: bool = False) -> dict[int, Spectral]:
    """The universal tables in the Gaussian's chart that ship with diffode, by number of evaluations.

    ``scale_alone`` for those of data whose covariance is not known, but its mean variance.
    """
    return load_spectral(SCALE_FILE if scale_alone else SPECTRAL_FILE)


@functools.cache
def shipped_members() -> dict[int, tuple[Ranged, ...]]:
    """The codebooks that ship with diffode, by number of evaluations."""
    return load_codebooks(MEMBERS_FILE)
