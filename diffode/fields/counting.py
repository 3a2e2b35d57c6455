"""Evaluations counted for each run apart, though threads may share a field."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token


class Tally:
    """Network calls of one field within one ``with`` block of one thread.

    A call is noted in the innermost block alone, and handed on when that block ends: a run then waits for no lock in its steps.

    Attributes:
        calls: calls so far, those of blocks inside it that have ended included.
        field: the field whose calls they are.
        hidden: whether they are kept from all tallies further out, and from the field's total.
    """

    __slots__ = ("_token", "calls", "field", "hidden")

    def __init__(self, field: Counted, hidden: bool = False):
        self.calls, self.field, self.hidden = 0, field, hidden
        self._token: Token[tuple[Tally, ...]]

    def __enter__(self) -> Tally:
        self._token = _OPEN.set((self, *_OPEN.get()))
        return self

    def __exit__(self, *_: object) -> None:
        _OPEN.reset(self._token)
        if not self.hidden:
            self.field.spend(self.calls)


#: The tallies that are open in this thread, the innermost first. A new thread begins with none.
_OPEN: ContextVar[tuple[Tally, ...]] = ContextVar("open tallies", default=())
#: Adding to a total is a read and a write, between which another thread may add to it as well.
_TOTALS = threading.Lock()


class Counted:
    """What counts its calls."""

    _total: int = 0

    @property
    def nfe(self) -> int:
        """Network calls so far: of every thread, but for runs that other threads are in, and less what was uncounted."""
        open_calls = 0
        for tally in _OPEN.get():
            if tally.field is self:
                open_calls = 0 if tally.hidden else open_calls + tally.calls
        return self._total + open_calls

    @nfe.setter
    def nfe(self, calls: int) -> None:
        with _TOTALS:
            self._total += calls - self.nfe

    def spend(self, calls: int) -> None:
        """Note that so many network calls were made."""
        for tally in _OPEN.get():
            if tally.field is self:
                tally.calls += calls
                return
        with _TOTALS:
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
        """Calls made by this thread inside a ``with`` block, to its end or to an error, enter neither ``nfe`` nor a run's
        count."""
        return Tally(self, hidden=True)
