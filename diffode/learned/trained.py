"""The result of training, whatever was trained: a solver that runs, its errors, its history, and a file."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from diffode.errors import ArgumentError
from diffode.facts_table import facts_table
from diffode.solvers.solver import Solver
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages
from diffode.training_facts import Facts, StoppedBy

#: Former names of what a result has, and where it is now.
_FORMER = {
    "checkpoint": "content",
    "losses": "history.error",
    "training": "history.error",
    "held_out": "history.held_out",
    "held_out_error": "errors.after",
    "start_error": "errors.before",
    "untuned_error": "errors.before",
    "levels": "content.levels",
    "times": "grid",
    "method": "content.method",
    "path": "facts.path",
    "target": "facts.target",
    "seed": "facts.seed",
}


class Saved(Protocol):
    """Something trained that can be written to a file."""

    def save(self, file: str | FilePath) -> None:
        """Write it; ArgumentError if the file can't be written."""


class Errors(NamedTuple):
    """Mean end-point errors on held-out starts, in units of the data's scale; infinite for a run that overflows.

    Attributes:
        before: of what the training began from; None if that can't run.
        after: of what it gave.
    """

    before: float | None
    after: float


class History(NamedTuple):
    """The errors of a training, step by step; those of a table begin before its first step.

    Attributes:
        error: on the starts to train on, in units of the scale, or the loss that stands for it.
        held_out: on held-out starts; empty where none decide.
        steps: number of steps.
    """

    error: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    steps: int = 0


_NO_HISTORY = History()


@dataclass(frozen=True, repr=False)
class Trained:
    """What a training gave. ``diffode.solve(field, x, **trained.arguments)`` runs it.

    Attributes:
        solver: the solver, trained or on a trained grid.
        nfe: its number of evaluations.
        facts: origin, errors, seconds, seed, and what ended the training.
        content: the numbers as they are saved: a checkpoint, a grid, a conditioned table, an AMED, a jump table, its heads,
            a map on nodes; of a flow map, see :class:`diffode.learned.maps.trained_map.TrainedMap`.
        grid: the times (steps + 1,) of a trained grid; None for a solver with levels of its own.
        history: the errors, step by step.
        origin: the table at which the training of a table began, in units of the scale; None for other results.
    """

    solver: Solver
    nfe: int
    facts: Facts
    content: Saved
    grid: Tensor | None = None
    history: History = _NO_HISTORY
    origin: Stages | None = None

    def __repr__(self) -> str:
        before = "none" if self.errors.before is None else f"{self.errors.before:.3g}"
        return (
            f"Trained({self.solver.spec!r}, nfe={self.nfe}, target={self.facts.target!r}, "
            f"{'' if self.statistics is None else f'statistics={self.statistics.kind!r}, '}"
            f"errors={before} -> {self.errors.after:.3g}, stopped_by={self.stopped_by!r})"
        )

    def _repr_html_(self) -> str:
        """The facts of the training as a table, for notebooks."""
        before = "none: it can't run here" if self.errors.before is None else f"{self.errors.before:.3g}"
        facts = {
            "solver": self.solver.spec,
            "evaluations": self.nfe,
            "target": self.facts.target,
            **({} if self.statistics is None else {"knows of the data": repr(self.statistics)}),
            "error before": before,
            "error after": f"{self.errors.after:.3g} of the data's scale, on held-out starts",
            "steps": self.history.steps,
            "seconds": f"{self.seconds:.1f}, ended by {self.stopped_by}",
        }
        return facts_table("Trained", facts)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``diffode.solve`` that run it: the solver, and the grid or the number of evaluations.

        A field that makes several network calls an evaluation, as a guided one, takes ``nfe=trained.nfe * field.calls``.
        """
        return {"solver": self.solver, **({"nfe": self.nfe} if self.grid is None else {"grid": self.grid})}

    @property
    def statistics(self) -> Statistics | None:
        """What it knows of the data, for its jump or its chart of their Gaussian; None if it knows their scale alone.

        Of two charts that a training compared, those of the better one: their ``kind`` is ``scale`` for the chart of the scale.
        """
        known: Statistics | None = getattr(self.content, "statistics", None)
        return known

    @property
    def errors(self) -> Errors:
        """Errors on held-out starts before and after the training."""
        return Errors(self.facts.start_error, self.facts.held_out_error)

    @property
    def seconds(self) -> float:
        """Duration of the training."""
        return self.facts.seconds

    @property
    def stopped_by(self) -> StoppedBy:
        """What ended the training: ``"counts"``, ``"seconds"`` or ``"request"``."""
        return self.facts.stopped_by

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors, from which :func:`diffode.learned.load` reads it.

        Raises:
            ArgumentError: if the file can't be written, or the result holds code, which no file keeps.
        """
        self.content.save(file)

    def __getattr__(self, name: str) -> Any:
        place = _FORMER.get(name)
        if place is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(
            f".{name} of a result of training is .{place} now; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        found: Any = self
        for part in place.split("."):
            found = getattr(found, part)
        return math.inf if name == "untuned_error" and found is None else found


def check_trained(trained: object, kinds: type | tuple[type, ...], what: str) -> Any:
    """The content of a result, or the content itself; ArgumentError unless it is of a kind."""
    content = trained.content if isinstance(trained, Trained) else trained
    if not isinstance(content, kinds):
        raise ArgumentError(f"trained must be {what}, got {type(trained).__name__}")
    return content
