"""The steps of a training as they are told while it works, the same for every training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """A step that a training took.

    Attributes:
        stage: what is trained, in words.
        number: number of the step in its stage, from 1.
        total: number of steps of the stage, of which an end may be reached earlier; None where it is not known.
        error: error on the starts to train on, in units of the scale, or the loss that stands for it.
        held_out: the same on held-out starts; None where none decide.
    """

    stage: str
    number: int
    total: int | None
    error: float
    held_out: float | None = None

    @property
    def decisive(self) -> float:
        """The error by which steps are compared: that on held-out starts where there is one."""
        return self.error if self.held_out is None else self.held_out


#: A function that is called with every step of a training; one for the steps of a run is in `solvers/run_options.py`.
Progress = Callable[[Step], None]
