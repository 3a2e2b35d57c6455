"""The engine of one machine: processes that this one begins."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from joblib import Parallel, delayed

from diffode.engines.work import Numbered
from diffode.errors import ArgumentError, WorkerError

#: Text, category, file and line of a warning.
Warned = tuple[str, type[Warning], str, int]


@dataclass(frozen=True, kw_only=True)
class Local:
    """Worker processes on this machine, one thread each.

    Args:
        jobs: number of processes; the number of cores by default. One job is done in this process.
    """

    jobs: int | None = None
    begins_workers = True

    def __post_init__(self) -> None:
        if self.jobs is not None and (type(self.jobs) is not int or self.jobs < 1):
            raise ArgumentError(f"jobs must be >= 1, got {self.jobs!r}")

    def __call__(self, function: Callable[[Numbered], Numbered], items: Sequence[Numbered]) -> Iterator[Numbered]:
        """The results, in the order in which the processes give them."""
        workers = min(self.jobs or os.cpu_count() or 1, max(1, len(items)))
        if workers == 1:
            yield from map(function, items)
            return
        found = Parallel(n_jobs=workers, return_as="generator_unordered")(delayed(_heard)(function, item) for item in items)
        seen: dict[Any, Any] = {}
        try:
            for numbered, warned in found:
                for text, category, file, line in warned:
                    warnings.warn_explicit(text, category, file, line, registry=seen)
                yield numbered
        except BrokenProcessPool as error:
            raise WorkerError(
                f"one of {workers} worker processes was killed, by the system when memory runs out or by hand; what was stored "
                f"stays, and the same command goes on from there: run it again with fewer jobs (--jobs {max(1, workers // 2)})"
            ) from error
        finally:
            with warnings.catch_warnings():
                # Where the results are no longer wanted, as when a disk is full, joblib warns of the items in hand.
                warnings.simplefilter("ignore", UserWarning)
                found.close()


def _heard(function: Callable[[Numbered], Numbered], item: Numbered) -> tuple[Numbered, list[Warned]]:
    """The result for an item, with the warnings on the way to it, which a worker hands to the process that asked."""
    with warnings.catch_warnings(record=True) as heard:
        result = function(item)
    return result, [(str(w.message), _sent(w.category), w.filename, w.lineno) for w in heard]


def _sent(category: type[Warning]) -> type[Warning]:
    """The category of a warning, if every process knows it; of a user's class UserWarning."""
    return category if category.__module__ in ("builtins", "diffode.errors") else UserWarning
