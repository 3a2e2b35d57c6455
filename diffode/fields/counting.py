"""Evaluations counted for each run apart, though threads may share a field."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Tally:
    """Network calls of one field within one ``with`` block of one thread.

    Attributes:
        calls: calls so far.
        field: the field whose calls they are.
        hidden: whether they are kept from all tallies further out, and from the field's total.
    """

    __slots__ = ("calls", "field", "hidden")

    def __init__(self, field: Any, hidden: bool = False):
        self.calls, self.field, self.hidden = 0, field, hidden


#: The tallies that are open in this thread, the innermost first. A new thread begins with none.
_OPEN: ContextVar[tuple[Tally, ...]] = ContextVar("open tallies", default=())
#: Adding to a total is a read and a write, between which another thread may add to it as well.
_TOTALS = threading.Lock()


class Counted:
    """What counts its calls: ``nfe`` is the total over all threads, less what was spent in :meth:`uncounted`."""

    nfe: int = 0

    def spend(self, calls: int) -> None:
        """Note that so many network calls were made."""
        for tally in _OPEN.get():
            if tally.field is self:
                tally.calls += calls
                if tally.hidden:
                    return
        with _TOTALS:
            self.nfe += calls

    @contextmanager
    def counted(self) -> Iterator[Tally]:
        """A tally of the calls made by this thread inside the block.

        >>> import diffode, torch
        >>> field = diffode.exact_field("ring8", "edm")
        >>> with field.counted() as tally:
        ...     _ = field.denoised(torch.zeros(1, 2), 1.0)
        >>> tally.calls
        1
        """
        with self._open(Tally(self)) as tally:
            yield tally

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Calls made by this thread inside the block, to its end or to an error, enter neither ``nfe`` nor a run's count."""
        with self._open(Tally(self, hidden=True)):
            yield

    @contextmanager
    def _open(self, tally: Tally) -> Iterator[Tally]:
        token = _OPEN.set((tally, *_OPEN.get()))
        try:
            yield tally
        finally:
            _OPEN.reset(token)
