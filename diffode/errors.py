"""The exceptions of diffode. Each message names the argument, its value, the expected value, and a fix.

Every class derives from :class:`DiffodeError`; ``exit_code`` is that of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DiffodeError(Exception):
    """Base of all exceptions that diffode raises on purpose."""

    exit_code = 2


class ArgumentError(DiffodeError, ValueError):
    """An argument has a wrong value, shape, dtype or type."""


class UnknownNameError(ArgumentError, KeyError):
    """A name is not registered; the message offers the nearest names, or ``advice`` where the meaning is known."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, also: Iterable[str] = (), advice: str = ""):
        names = sorted(known)
        hint = f": {advice}" if advice else suggestion(name, [*names, *also])
        super().__init__(f"unknown {kind} {name!r}{hint}; known: {', '.join(names)}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pass between processes; this one is rebuilt from its message.
        return (_rebuilt, (type(self), str(self)))

    def __str__(self) -> str:
        # KeyError would print the message quoted, as if it were a key.
        return str(self.args[0])


class CapabilityError(ArgumentError, AttributeError):
    """A solver can't do what is asked of it: it writes no table, or follows no field."""


class BudgetError(ArgumentError):
    """No run of the solver fits the budget of function evaluations."""


class TrainedElsewhereWarning(UserWarning):
    """A trained solver runs with other levels or another number of evaluations than it was trained for."""


class ConventionWarning(UserWarning):
    """A model of another library does not behave as its convention says: sign, view, time or input scaling may be wrong."""


class WorkerWarning(UserWarning):
    """A worker of a cluster is left out of a run, since it lacks diffode or has other code."""


class StartWarning(UserWarning):
    """A start can't be a state at the first time: it is far smaller, or far larger, than a state on the path there."""


class GridWarning(UserWarning):
    """A named grid is given to a solver that lays its own times, as flow maps do: it changes nothing but the ends."""


class StatisticsWarning(UserWarning):
    """Statistics are of data far wider or narrower than a field's answers at high noise: of other data, or in another unit."""


class PluginWarning(UserWarning):
    """A plug-in of an installed package is left out, since diffode has something else by its name."""


class FieldError(DiffodeError, ValueError):
    """A field broke its contract: wrong shape, dtype, non-finite values, or rows that depend on other rows of the batch."""


class NumericalError(DiffodeError, ArithmeticError):
    """A computation produced non-finite values or did not converge.

    ``solution`` is the computed solution, if there is one; its ``status`` tells which rows are good.
    """

    exit_code = 3

    def __init__(self, message: str, solution: Any = None):
        super().__init__(message)
        self.solution = solution


class LawError(ArgumentError):
    """A plug-in breaks a law that all of its kind keep: the message names the law, the numbers and the place.

    ``report`` holds all checks that were made, the broken laws among them.
    """

    exit_code = 1

    def __init__(self, message: str, report: Any = None):
        super().__init__(message)
        self.report = report


class FileFormatError(DiffodeError, ValueError):
    """A file is truncated, of another schema, or holds impossible values."""


class StoreError(DiffodeError, OSError):
    """The result store can't be read or written (corrupt, locked, disk full, no permission)."""


class WorkerError(DiffodeError, RuntimeError):
    """A worker process ended before its work was done: it was killed, or memory ran out."""


def _rebuilt(kind: type[UnknownNameError], message: str) -> UnknownNameError:
    error = kind.__new__(kind)
    error.args = (message,)
    return error


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
