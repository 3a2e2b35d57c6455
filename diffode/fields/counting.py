"""Evaluations counted for each run apart, though threads may share a field."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from contextvars import ContextVar

from diffode.errors import ArgumentError


class Tally:
    """Network calls of one field within one ``with`` block of one thread.

    Only the innermost block of the same field notes a call, and hands its count on when it ends, so that no step of a run waits
    for a lock.

    Attributes:
        calls: calls so far, with those of inner blocks that have ended.
        field: the field whose calls they are.
        hidden: whether the calls stay out of all outer tallies and of the field's total.
    """

    __slots__ = ("calls", "field", "hidden")

    def __init__(self, field: Counted, hidden: bool = False):
        self.calls, self.field, self.hidden = 0, field, hidden

    def __enter__(self) -> Tally:
        if self in _OPEN.get():
            raise ArgumentError("this tally is open already: make another one, field.counted()")
        self.calls = 0
        _OPEN.set((self, *_OPEN.get()))
        return self

    def __exit__(self, *_: object) -> None:
        _OPEN.set(tuple(tally for tally in _OPEN.get() if tally is not self))
        if not self.hidden:
            self.field.spend(self.calls)


#: Open tallies of this thread, the innermost first. A new thread begins with none.
_OPEN: ContextVar[tuple[Tally, ...]] = ContextVar("open tallies", default=())
#: Held while a total grows: adding is a read and a write, and another thread may add in between.
_TOTALS_LOCK = threading.Lock()


class Counted:
    """Base of the fields: the count of their network calls."""

    _total: int = 0

    @property
    def nfe(self) -> int:
        """Network calls of all threads so far, without uncounted calls and those of runs that other threads have not ended."""
        open_calls = 0
        for tally in _OPEN.get():
            if tally.field is self:
                open_calls = 0 if tally.hidden else open_calls + tally.calls
        return self._total + open_calls

    @nfe.setter
    def nfe(self, calls: int) -> None:
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
            raise ArgumentError(f"nfe must be an integer >= 0, got {calls!r:.40}")
        with _TOTALS_LOCK:
            self._total += calls - self.nfe

    def spend(self, calls: int) -> None:
        """Add network calls to this thread's innermost tally of the field, or to the field's total where none is open."""
        for tally in _OPEN.get():
            if tally.field is self:
                tally.calls += calls
                return
        with _TOTALS_LOCK:
            self._total += calls

    def counted(self) -> Tally:
        """A tally of the calls made by this thread inside a ``with`` block.

        >>> import diffode, torch
        >>> field = diffode.exact_field("ring8", "edm")
        >>> with field.counted() as tally:
        ...     _ = field.denoised(torch.zeros(1, 2), 1.0)
        >>> tally.calls
        1
        """
        return Tally(self)

    def uncounted(self) -> AbstractContextManager[object]:
        """Keep this thread's calls inside a ``with`` block out of ``nfe`` and of a run's count, also if an error ends it."""
        return Tally(self, hidden=True)
