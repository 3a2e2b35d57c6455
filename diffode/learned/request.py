"""The request that every training begins with: a field, the shape of its rows, a seed, a limit, and who is told of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from diffode import fields, paths
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.fields.own import FieldText
from diffode.fields.problem_text import field_of_text
from diffode.learned.arguments import check_seed, row_shape
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.problems import FEWEST, problem_for
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress, Step
from diffode.paths import Path
from diffode.randomness import keyed
from diffode.targets import Target
from diffode.training_facts import Facts

Function = TypeVar("Function", bound=Callable[..., Any])

#: Number of held-out starts, and of test starts, as a share of the starts to train on; at least ``FEWEST``.
_HELD_OUT_SHARE = 0.5
#: Largest number of held-out starts, and of test starts.
_MOST_HELD_OUT = 1024

#: The path of a target unless another is given, which every training has as its default.
_USUAL_PATH = "edm"
#: Trainings that presume normal noise, by their purpose, and what they give.
_NORMAL = {
    "train_jump": "jump tables",
    "train_head": "tables with heads",
    "train_nodes": "maps on nodes",
    "train_map": "flow maps",
}


def with_gradients(function: Function) -> Function:
    """A training that takes gradients as it needs them, also where they are switched off around its call."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


@dataclass(frozen=True)
class Request:
    """A training as it was asked for.

    Attributes:
        purpose: name of the training, which keys its streams of random numbers.
        field, path: the field and its path.
        target: the data, by name where they have one.
        shape: shape of a row of x.
        seed: seed of all streams.
        limit: limit of time, and request to stop.
        progress: who is told of steps, if anyone.
    """

    purpose: str
    field: Field
    path: Path
    target: str
    shape: tuple[int, ...]
    seed: int
    limit: Limit
    progress: Progress | None

    @classmethod
    def of(
        cls,
        purpose: str,
        field: Field | Target | str,
        *,
        path: Path | str = "edm",
        dim: int | Sequence[int] | None = None,
        seed: int = 0,
        seconds: float | Limit = math.inf,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Request:
        """The request of some arguments, each checked: ArgumentError names the wrong one, FieldError what the field does."""
        limit = Limit.of(seconds, stop)
        if isinstance(field, Field):
            chosen, on, target = field, field.require_path("training"), type(field).__name__
            if path != _USUAL_PATH and paths.get(path) != on:
                raise ArgumentError(
                    f"path={path!r:.60} goes with a target: this field has its own, {on.spec!r}; leave path out, or make the "
                    "field on that path"
                )
        elif not isinstance(field, Target | str):
            raise ArgumentError(
                "field must be a diffode field, such as diffode.exact_field('ring8', 'edm'), a target or its name, got "
                f"{type(field).__name__}"
            )
        else:
            chosen = _named(field, path) if isinstance(field, str) else fields.exact_field(field, paths.get(path))
            on, target = chosen.require_path("training"), field if isinstance(field, str) else type(field).__name__
        if progress is not None and not callable(progress):
            raise ArgumentError(f"progress must be a function of a step of the training, or None, got {progress!r:.60}")
        check_seed(seed)
        if chosen.source is not None and purpose in _NORMAL:
            raise ArgumentError(
                f"{_NORMAL[purpose]} begin with the flow of a Gaussian with normal noise; this field's comes from source "
                f"{chosen.source.spec!r}: train a table (bespoke), or a grid (ld3)"
            )
        shape = row_shape(chosen, dim)
        # A user's function is tried as solvers try it, so that what is wrong with it, such as float32 weights, is named.
        chosen.check_once(chosen.first_noise((3, *shape), generator=0), on.t_max)
        return cls(purpose, chosen, on, target, shape, seed, limit, progress)

    @property
    def width(self) -> int:
        """Number of coordinates of a row."""
        return math.prod(self.shape)

    def stream(self, name: str) -> torch.Generator:
        """A stream of random numbers of this training."""
        return keyed(self.seed, self.purpose, name)

    def check_gradient(self) -> None:
        """Raise FieldError if the field can't be differentiated in x."""
        self.field.check_gradient(self.field.first_noise((2, *self.shape), generator=0), self.path.t_max)

    def check_row_times(self) -> None:
        """Raise FieldError if the field can't take a time for every row."""
        self.field.check_times(self.field.first_noise((1, *self.shape), generator=0), self.path.t_max, self.path.t_min)

    def problem(self, count: int, stream: str, trajectory: float = 0.0, *, differentiated: bool = True) -> Problem:
        """A problem of ``count`` starts from a stream, with their exact ends."""
        return problem_for(
            self.field, self.path, self.shape, count, self.stream(stream), trajectory, differentiated=differentiated
        )

    def tell(self, step: Step) -> None:
        """Tell of a step."""
        if self.progress is not None:
            self.progress(step)

    def facts(self, begun_from: str, before: float | None, after: float) -> Facts:
        """The facts of the result, at its end."""
        return Facts(
            path=self.path.spec,
            target=self.target,
            begun_from=begun_from,
            start_error=before,
            held_out_error=after,
            seconds=self.limit.elapsed,
            seed=self.seed,
            stopped_by=self.limit.stopped_by,
        )


def _named(text: str, path: Path | str) -> Field:
    """The field of a text: that of a target, or of a network that ships, ``trained:NAME``."""
    if not text.startswith("trained:"):
        return field_of_text(text, path)
    if FieldText.names(text) and " " not in text:
        return FieldText.read(text).field(path)
    raise ArgumentError(
        f"{text!r} is a network, trained:NAME, whose noise is normal and which has no labels: leave source and "
        "guidance out, or name a target"
    )


def held_out_count(points: int) -> int:
    """The number of held-out starts, and of test starts, for ``points`` starts to train on."""
    return min(max(round(_HELD_OUT_SHARE * points), FEWEST), points, _MOST_HELD_OUT)
