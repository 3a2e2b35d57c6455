"""What a training says of itself: on what, from where, with which errors, and what ended it; in results and in files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from diffode.tensor_files import finite, text

#: The end of a training: all its counts were done, or the limit of seconds or a request ended it.
StoppedBy = Literal["counts", "seconds", "request"]
#: All ends of a training.
STOPPED_BY: tuple[StoppedBy, ...] = ("counts", "seconds", "request")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The origin of something trained, and how good it is.

    Attributes:
        path: spec of the path.
        target: the data that it was trained on, in words or a name.
        begun_from: what the training began from, in words: mostly a solver and a grid.
        held_out_error: mean end-point error on starts outside of training, in units of the data's scale; of a generator that
            learned a law alone, the distance of that law from the data's.
        start_error: the same error of what the training began from; None if that can't run.
        seconds: duration of the training.
        seed: seed of the starts.
        stopped_by: ``"counts"`` if all steps were taken, so that the seed gives the same numbers again; ``"seconds"`` or
            ``"request"`` if a limit or a request left some out.
    """

    path: str
    target: str
    begun_from: str
    held_out_error: float
    start_error: float | None
    seconds: float
    seed: int
    stopped_by: StoppedBy = "counts"

    def facts(self) -> dict[str, Any]:
        """The facts alone, by their names, whatever else a kind of result adds to them."""
        return {field.name: getattr(self, field.name) for field in fields(Facts)}

    def description(self) -> dict[str, Any]:
        """The facts as JSON holds them, which has no infinity: the error of a run that overflowed is null."""
        values = self.facts()
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def read_facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in a file's description, by their names; ValueError, TypeError or KeyError for what is none."""
    words = {key: text(description, key) for key in ("path", "target", "begun_from", "stopped_by")}
    if words["stopped_by"] not in STOPPED_BY:
        raise ValueError(f"stopped_by must be one of {', '.join(STOPPED_BY)}, got {words['stopped_by'][:40]!r}")
    if type(description["seed"]) is not int or not 0 <= description["seed"] < 2**63:
        raise ValueError("seed must be an integer from 0 on")
    for key in ("held_out_error", "start_error", "seconds"):
        if description[key] is not None and finite(description, key) < 0:
            raise ValueError(f"{key} must not be negative")
    held_out, begun = (
        None if description[key] is None else finite(description, key) for key in ("held_out_error", "start_error")
    )
    return {
        **words,
        "held_out_error": math.inf if held_out is None else held_out,
        "start_error": begun,
        "seconds": finite(description, "seconds"),
        "seed": description["seed"],
    }
