"""The output of ``diffode train`` on stderr while it works: a line for the present step, finished stages, and a curve."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffode.learned import Step

#: Bars of a curve, the lowest first.
_BARS = "▁▂▃▄▅▆▇█"
#: Largest number of bars of a curve.
_WIDTH = 40


class TrainingLog:
    """The stages of a training as they end; on a terminal one line below them shows the present step."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        self._status = self._console.status("beginning: exact ends and published samplers")
        self._began = time.perf_counter()
        self._stage, self._step, self._error, self._best = "", 0, math.inf, math.inf
        #: Whether the training has a result to keep if it is asked to end.
        self.has_begun = False

    def __enter__(self) -> TrainingLog:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        self._status.stop()

    def step(self, step: Step) -> None:
        """Show that a step of a stage was taken."""
        if step.stage != self._stage:
            self.finish()
            self._stage, self._error = step.stage, math.inf
        self.has_begun = True
        self._step, error = step.number, step.decisive
        self._error, self._best = min(error, self._error), min(error, self._best)
        seconds = time.perf_counter() - self._began
        of = "" if step.total is None else f" of at most {step.total}"
        self._status.update(
            f"{in_words(step.stage)}: step {step.number}{of}, error {error:.2e} of the scale, least so far {self._best:.2e}, "
            f"{seconds:.0f} s"
        )

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._console.print(text)

    def finish(self) -> None:
        """Write the line of the present stage, which has ended."""
        if self._stage:
            plural = "" if self._step == 1 else "s"
            self.say(f"{in_words(self._stage)}: {self._step} step{plural}, error {self._error:.2e} of the scale")
        self._stage = ""


def in_words(name: str) -> str:
    """The name of a published sampler, or of a stage that begins from one, in plain words.

    >>> in_words("train from universal:member=18,scale=2.51")
    'train from member 18 of the universal codebook, in units of 2.51'
    >>> in_words("lms:order=3 @ karras:rho=5")
    'lms:order=3 on the grid karras:rho=5'
    """
    text = re.sub(r"universal:member=(\d+),scale=([-+.\de]+)", r"member \1 of the universal codebook, in units of \2", name)
    text = text.replace("universal:chart=gaussian in units of", "the universal table of the Gaussian's chart in units of")
    text = re.sub(r"(^|from )universal$", r"\1the universal table for all data", text)
    return text.replace(" @ ", " on the grid ")


def curve(values: Sequence[float]) -> str:
    """A sequence of errors as bars, on a logarithmic scale between the smallest and the largest.

    >>> curve([1.0, 0.1, 0.01])
    '█▅▁'
    """
    known = [math.log(value) for value in values if value > 0 and math.isfinite(value)]
    if len(known) > _WIDTH:
        known = [known[round(k * (len(known) - 1) / (_WIDTH - 1))] for k in range(_WIDTH)]
    if not known:
        return ""
    least, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(_BARS[round((value - least) / span * (len(_BARS) - 1))] for value in known)


class Interrupt:
    """Whether Ctrl-C was pressed since the training had a result to keep; a call gives the answer."""

    def __init__(self, log: TrainingLog):
        self._log, self._asked = log, False

    def __call__(self) -> bool:
        """Whether the training should end now."""
        return self._asked

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Let the first Ctrl-C end the training after the present step, if it has a result; a second one ends it at once."""
        if self._asked or not self._log.has_begun:
            raise KeyboardInterrupt
        self._asked = True
        self._log.say("Ctrl-C: ending after this step with what is best so far; once more ends at once and writes nothing")


@contextmanager
def interrupts(log: TrainingLog) -> Iterator[Interrupt]:
    """Inside the block Ctrl-C asks a training to end, through its argument ``stop=``; then the old handler is restored."""
    asked = Interrupt(log)
    try:
        before = signal.signal(signal.SIGINT, asked.handle)
    except ValueError:
        # Only the main thread may handle signals; in other threads Ctrl-C has no effect.
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
