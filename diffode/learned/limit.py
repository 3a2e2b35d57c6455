"""What may end a training before the work that was asked for is done: a limit of seconds, and a request to stop.

How much is done is decided by counts (starts, steps, rounds), so that a seed gives the same numbers on a slow machine as on a
fast one. Where the limit or the request ended something first, the result says so, since it then depends on the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from diffode.errors import ArgumentError

#: What ended a training: its counts, the limit of seconds, or a request.
StoppedBy = Literal["counts", "seconds", "request"]
STOPPED_BY: tuple[StoppedBy, ...] = ("counts", "seconds", "request")


class Limit:
    """A clock that runs from now on, the most seconds it may show, and ``stop``, a function that is True to end at once."""

    def __init__(self, seconds: float = math.inf, stop: Callable[[], bool] | None = None):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ArgumentError(f"seconds must be a positive number, got {seconds!r:.40}")
        if stop is not None and not callable(stop):
            raise ArgumentError(f"stop must be a function without arguments, or None, got {stop!r:.40}")
        self.seconds, self._stop = seconds, stop
        self.stopped_by: StoppedBy = "counts"
        self._began = time.perf_counter()
        self._whole: Limit | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def reached(self, needed: float = 0.0) -> bool:
        """Whether to end here, with work undone, rather than begin what needs some seconds. It is noted which it was."""
        if self._stop is not None and self._stop():
            self._note("request")
            return True
        if self.elapsed + needed > self.seconds:
            self._note("seconds")
            return True
        return False

    def part(self, share: float) -> Limit:
        """A limit for the beginning of the work, that share of the time; what it ends counts as ended by this one too."""
        inner = Limit(self.seconds * share, self._stop)
        inner._began, inner._whole = self._began, self
        return inner

    def _note(self, what: StoppedBy) -> None:
        self.stopped_by = what
        if self._whole is not None:
            self._whole._note(what)
