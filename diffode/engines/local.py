"""The engine of one machine: processes that this one begins."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from joblib import Parallel, delayed

from diffode.engines.work import Numbered
from diffode.errors import ArgumentError, WorkerError


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
        found = Parallel(n_jobs=workers, return_as="generator_unordered")(delayed(function)(item) for item in items)
        try:
            for numbered in found:  # noqa: UP028 - ``yield from`` would close what is closed below
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
