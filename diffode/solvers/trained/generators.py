"""Trained few-step generators as solvers: ``jump`` and ``head`` ask the field at inner levels, ``nodes`` does not ask it."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError, TrainedElsewhereWarning
from diffode.fields import ExactField, Field
from diffode.maps.clock import Denoised
from diffode.solvers.direct import DirectSolver, Journey, check_trained_for
from diffode.solvers.trained.given_file import named, numbers_of
from diffode.solvers.trained.jumps import Jumps, load_jumps
from diffode.solvers.trained.nodes import Nodes, load_nodes
from diffode.specs import format_spec
from diffode.training_facts import Facts

Numbers = TypeVar("Numbers", Jumps, Nodes)

#: Relative difference of a level from that of the training above which a run is refused, and of a scale above which it warns.
_SAME_LEVEL = 0.01


class Trainee(Protocol):
    """What the numbers of a generator say of themselves."""

    @property
    def dim(self) -> int:
        """Number of coordinates of a row."""

    @property
    def nfe(self) -> int:
        """Number of evaluations, or of calls of what stands for them."""

    @property
    def multiply_adds(self) -> int:
        """Number of products a row, beside the evaluations."""

    @property
    def digest(self) -> str:
        """A hash of all numbers that a run depends on."""

    @property
    def content(self) -> str:
        """Hash of the target's parameters; empty for other fields."""

    @property
    def facts(self) -> Facts | None:
        """Origin and errors."""


@dataclass(frozen=True, kw_only=True)
class Generator(DirectSolver):
    """A generator between two noise levels, from a ``file`` that training wrote, or from memory.

    A run between other levels, or on rows of another length, is refused; on other data it warns with TrainedElsewhereWarning.
    """

    file: str = ""

    chart_name = "angle"
    #: What is read from its files, in words.
    kind: ClassVar[str]

    @property
    @abstractmethod
    def trainee(self) -> Trainee:
        """The numbers that it runs with."""

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The noise levels of its start and its end."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """Scale of the data that it was trained on."""

    @abstractmethod
    def ends_of(self, field: Field, denoised: Denoised, z: Tensor) -> Tensor:
        """The ends z (B, D) of starts z (B, D)."""

    @property
    @override
    def spec(self) -> str:
        """The solver's spec, with the file that it was read from, if any."""
        return format_spec(self.name, {"file": self.file} if self.file else {})

    @property
    @override
    def order(self) -> None:
        """None, which claims no order of convergence: the numbers are trained for one number of evaluations."""
        return None

    @property
    def nfe(self) -> int:
        """Number of evaluations of a run."""
        return self.trainee.nfe

    @property
    def multiply_adds(self) -> int:
        """Number of products a row that a run costs beside its evaluations."""
        return self.trainee.multiply_adds

    def check_nfe(self, nfe: int) -> None:
        """Raise BudgetError unless a run costs exactly ``nfe`` evaluations."""
        check_trained_for(self, self.nfe, nfe)

    @override
    def content(self) -> str:
        return self.trainee.digest

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        path, known = field.require_path(f"a {self.kind}"), self.ends
        levels = path.rho(times[0]), path.rho(times[-1])
        if len(times) != 2 or any(abs(a - b) > _SAME_LEVEL * b for a, b in zip(levels, known, strict=True)):
            raise ArgumentError(
                f"this {self.kind} was trained from noise level {known[0]:.4g} to {known[1]:.4g}, this run goes from "
                f"{levels[0]:.4g} to {levels[1]:.4g} at {len(times)} times: give grid=[start, end] at these levels, or "
                "train it for this path"
            )
        if math.prod(x.shape[1:]) != self.trainee.dim:
            raise ArgumentError(
                f"this {self.kind} was trained on rows of {self.trainee.dim} coordinates, x has shape {tuple(x.shape)}"
            )
        self._look_at(field)

        def denoised(z: Tensor, level: float) -> Tensor:
            t = path.time_from_rho(level)
            return field.predict("denoised", (z * path.alpha(t)).reshape(-1, *x.shape[1:]), t).flatten(1)

        # Numbers of maps do not train here: without a start that asks for a gradient no graph is built.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            end = self.ends_of(field, denoised, x.flatten(1) / path.alpha(times[0])) * path.alpha(times[-1])
        return Journey(torch.stack([x, end.reshape(x.shape)]))

    def _found(self, option: str, given: Numbers | None, kind: type[Numbers], load: Callable[[str], Numbers]) -> Numbers:
        """The numbers that were given as an option, or are in the file; ArgumentError unless it is one of both."""
        object.__setattr__(self, "file", named(self.file))
        return numbers_of(self.name, self.file, option, given, kind, load)

    def _look_at(self, field: Field) -> None:
        """Warn where a field's data are known not to be those of the training."""
        facts, own = self.trainee.facts, ""
        on = f"target {facts.target}" if facts else "other data"
        if isinstance(field, ExactField) and self.trainee.content:
            own = "" if content_of_field(field) == self.trainee.content else "is of another target"
        elif abs(field.scale - self.scale) > _SAME_LEVEL * self.scale:
            own = f"has data of scale {field.scale:.4g}, not {self.scale:.4g}"
        if own:
            text = f"{self.file or f'this {self.kind}'} was trained on {on}, this field {own}: train it on this field"
            warnings.warn(text, TrainedElsewhereWarning, stacklevel=4)


@dataclass(frozen=True, kw_only=True)
class Jump(Generator):
    """A jump table: it keeps the start, in the angle clock, down to the first inner level, and asks the field there.

    ``diffode train jump`` writes such files. A field is asked ``nfe`` times, all of them at inner levels.
    """

    jumps: Jumps | None = field(default=None, repr=False, compare=False)
    #: What it runs with: what was given, or is in the file.
    numbers: Jumps = field(init=False, repr=False, compare=False)
    #: The content of the numbers, by which two solvers without a file are told apart.
    digest: str = field(init=False, repr=False)

    name = "jump"
    kind = "jump table"
    reference = "this package: a first evaluation of a Gaussian in place of the field, after Dockhorn et al., arXiv 2210.05475"

    def __post_init__(self) -> None:
        found = self._found("jumps", self.jumps, Jumps, load_jumps)
        if bool(found.heads) != (self.name == "head"):
            other = "head" if found.heads else "jump"
            raise ArgumentError(f"{self.file or 'jumps'} holds a {other}, which runs as the solver {other}:file=FILE")
        object.__setattr__(self, "numbers", found)
        object.__setattr__(self, "digest", found.digest)

    @property
    @override
    def trainee(self) -> Jumps:
        """The table, with its heads."""
        return self.numbers

    @property
    @override
    def ends(self) -> tuple[float, float]:
        return float(self.trainee.levels[0]), float(self.trainee.levels[-1])

    @property
    @override
    def scale(self) -> float:
        return self.trainee.clock.scale

    @override
    def ends_of(self, field: Field, denoised: Denoised, z: Tensor) -> Tensor:
        return self.trainee.run(denoised, z)


@dataclass(frozen=True, kw_only=True)
class Head(Jump):
    """A jump table with heads: after each evaluation a small network corrects the state.

    ``diffode train head`` writes such files. A field is asked ``nfe`` times, all of them at inner levels; what the networks
    cost beside is ``multiply_adds``.
    """

    name = "head"
    kind = "jump table with heads"
    reference = "this package: one evaluation a step and a learned correction, zero at the start of its training"


@dataclass(frozen=True, kw_only=True)
class OfNodes(Generator):
    """The exact map at nodes, with interpolation between them: a generator in one or two dimensions that asks no field.

    ``diffode train nodes`` writes such files. A run counts as one evaluation, that of the map.
    """

    nodes: Nodes | None = field(default=None, repr=False, compare=False)
    #: What it runs with: what was given, or is in the file.
    numbers: Nodes = field(init=False, repr=False, compare=False)
    #: The content of the numbers, by which two solvers without a file are told apart.
    digest: str = field(init=False, repr=False)

    name = "nodes"
    kind = "map on nodes"
    reference = "interpolation; in one dimension Fritsch and Carlson, SIAM J. Numer. Anal. 17, 238 (1980)"

    def __post_init__(self) -> None:
        found = self._found("nodes", self.nodes, Nodes, load_nodes)
        object.__setattr__(self, "numbers", found)
        object.__setattr__(self, "digest", found.digest)

    @property
    @override
    def trainee(self) -> Nodes:
        """The nodes."""
        return self.numbers

    @property
    @override
    def ends(self) -> tuple[float, float]:
        return self.trainee.levels

    @property
    @override
    def scale(self) -> float:
        return self.trainee.clock.scale

    @override
    def ends_of(self, field: Field, denoised: Denoised, z: Tensor) -> Tensor:
        # The field is not asked, but a run for nothing would win every comparison: the map counts as its one evaluation.
        field.spend(1)
        return self.trainee.run(z)


def content_of_field(field: Field) -> str:
    """The hash of an exact field's target; empty for other fields, and targets that have none."""
    if not isinstance(field, ExactField):
        return ""
    try:
        return field.target.content()
    except NotImplementedError:
        return ""
