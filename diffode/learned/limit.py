"""The limit of seconds and the request to stop, either of which may end a training before its work is done.

The work is given by counts (starts, steps, rounds), so that a seed gives the same numbers on a slow machine as on a fast one.
If the limit or a request ends it early, the result depends on the machine, and says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.training_facts import StoppedBy


class Limit:
    """A clock that starts when it is made, with a limit of seconds and a request to stop.

    Args:
        seconds: the limit, positive.
        stop: a function that returns True to end the work at once, and False or None to go on.

    Raises:
        ArgumentError: for a wrong argument, and by :meth:`reached` if ``stop`` returns anything but True, False or None.
    """

    def __init__(self, seconds: float = math.inf, stop: Callable[[], bool] | None = None):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ArgumentError(f"seconds must be a positive number, got {seconds!r:.40}")
        if stop is not None and not callable(stop):
            raise ArgumentError(f"stop must be a function without arguments, or None, got {stop!r:.40}")
        self.seconds, self._stop = seconds, stop
        self.stopped_by: StoppedBy = "counts"
        self._began = time.perf_counter()
        self._whole: Limit | None = None

    @classmethod
    def of(cls, seconds: float | Limit, stop: Callable[[], bool] | None) -> Limit:
        """The limit that is given, or one of its seconds; ArgumentError for a limit beside another request to stop."""
        if not isinstance(seconds, Limit):
            return cls(seconds, stop)
        if stop is not None:
            raise ArgumentError("stop can't be given beside a Limit, which has its own: make it Limit(seconds, stop)")
        return seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began

    def reached(self, needed: float = 0.0) -> bool:
        """Whether to end now rather than begin work of ``needed`` seconds; ``stopped_by`` then names the reason."""
        if self._stop is not None and _is_true(self._stop()):
            self._note("request")
            return True
        if self.elapsed + needed > self.seconds:
            self._note("seconds")
            return True
        return False

    def part(self, share: float) -> Limit:
        """A limit for the first ``share`` of the time; if it ends some work, this limit notes the same reason."""
        inner = Limit(self.seconds * share, self._stop)
        inner._began, inner._whole = self._began, self
        return inner

    def _note(self, what: StoppedBy) -> None:
        self.stopped_by = what
        if self._whole is not None:
            self._whole._note(what)


def _is_true(answer: object) -> bool:
    """Whether a request to stop is made; ArgumentError for an answer that does not say."""
    if answer is None or isinstance(answer, bool | np.bool_):
        return bool(answer)
    if isinstance(answer, Tensor | np.ndarray) and str(answer.dtype).endswith("bool") and answer.shape == ():
        return bool(answer)
    raise ArgumentError(f"stop must return True or False, got {answer!r:.60}")
