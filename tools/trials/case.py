"""A case: the trial that a seed, a kind and a number stand for."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from trials import commands, files, runs
from trials.draw import Draw
from trials.trial import Played, Trial, play

#: The kinds of trials, and the number that keeps the stream of one apart from those of the others.
KINDS: dict[str, tuple[int, Callable[[Draw], Trial]]] = {
    "runs": (0, runs.trial),
    "files": (1, files.trial),
    "commands": (2, commands.trial),
}


@dataclass(frozen=True)
class Case:
    """One trial of many."""

    seed: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"

    @property
    def trial(self) -> Trial:
        """The program and its oracle: the same whatever ran before, and with whatever count."""
        stream, make = KINDS[self.kind]
        return make(Draw([self.seed, stream, self.number]))

    def play(self) -> Played:
        """Play the trial in an empty folder."""
        with tempfile.TemporaryDirectory(prefix="diffode-case-") as folder, contextlib.chdir(folder):
            return play(self.trial)
