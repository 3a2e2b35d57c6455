"""The engine of a dask cluster: one machine or many, whose scheduler and workers anyone has begun."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pkgutil
import queue
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffode
from diffode.engines.companion import COMPANIONS
from diffode.engines.work import Numbered, Work
from diffode.errors import ArgumentError, WorkerError, WorkerWarning
from diffode.extensions import library

#: Seconds to wait for a scheduler's answer.
_ANSWER = 10.0
#: Seconds between looks at a cluster that gives no results.
_LOOK = 1.0
#: Number of companions that may be killed over one item.
_MOST_KILLED = 3


@dataclass(frozen=True, kw_only=True)
class Dask:
    """A dask cluster (``pip install 'diffode[cluster]'``).

    Args:
        address: that of a scheduler, ``host:port``; without one, a cluster of this machine's cores is begun for the run.
        scheduler_file: file in which a scheduler has written its address, in place of it.
        jobs: number of groups computed at a time by a cluster of this machine; the number of cores by default.
        in_flight: largest number of groups that the scheduler holds at a time.
        patience: seconds to wait for a first worker, or for another one when all are lost.
    """

    address: str | None = None
    scheduler_file: str | None = None
    jobs: int | None = None
    in_flight: int = 64
    patience: float = 300.0

    def __post_init__(self) -> None:
        for name in ("jobs", "in_flight"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ArgumentError(f"{name} must be >= 1, got {value!r}")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int | float) or not self.patience >= 0:
            raise ArgumentError(f"patience must be >= 0 seconds, got {self.patience!r}")
        if self.address is not None and self.scheduler_file is not None:
            raise ArgumentError("give address or scheduler_file, not both: each names a scheduler")
        if self.jobs is not None and (self.address is not None or self.scheduler_file is not None):
            raise ArgumentError(f"jobs={self.jobs} (--jobs) goes with a cluster begun here; this one has its own workers")

    def __call__(self, function: Callable[[Numbered], Numbered], items: Sequence[Numbered]) -> Iterator[Numbered]:
        """The results, as the workers give them.

        Raises:
            ArgumentError: if dask is not installed, or no scheduler answers.
            WorkerError: if the scheduler or all workers are lost, have other code, or an item kills its workers.
        """
        if not isinstance(function, Work):
            raise ArgumentError(f"a cluster needs work as plain data (diffode.engines.Work), got {function!r:.80}")
        distributed = library("distributed", "'diffode[cluster]'")
        with _quiet(), self._client(distributed) as client:
            yield from _Run(client, self, function, items).results()

    @contextlib.contextmanager
    def _client(self, distributed: Any) -> Iterator[Any]:
        if self.address is None and self.scheduler_file is None:
            # Workers compute in processes of their own, so that threads are enough here.
            cluster = distributed.LocalCluster(
                n_workers=1, threads_per_worker=self.jobs or os.cpu_count(), processes=False, dashboard_address="127.0.0.1:0"
            )
            try:
                with cluster, distributed.Client(cluster, set_as_default=False) as client:
                    try:
                        yield client
                    finally:
                        COMPANIONS.end()
            finally:
                COMPANIONS.end()
            return
        where = self.address or self.scheduler_file
        try:
            if self.scheduler_file is not None:
                # dask itself would wait for the file for ever.
                with open(self.scheduler_file, encoding="utf-8") as file:
                    json.load(file)
                client = distributed.Client(scheduler_file=self.scheduler_file, timeout=_ANSWER, set_as_default=False)
            else:
                client = distributed.Client(self.address, timeout=_ANSWER, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ArgumentError(
                f"no dask scheduler answers at {where} ({reason[:200]}): begin one with `dask scheduler` and workers with "
                "`dask worker HOST:PORT`, or leave --engine out to run on this machine"
            ) from error
        try:
            yield client
        finally:
            # A scheduler that is lost would be waited for.
            with contextlib.suppress(Exception):
                client.close(timeout=2 if client.status == "running" else 0)


class _Run:
    """One run of some work on a client's cluster."""

    def __init__(self, client: Any, engine: Dask, work: Work, items: Sequence[Numbered]):
        self.client, self.engine = client, engine
        self.text = work.text
        self.items = dict(items)
        self.order = [number for number, _ in reversed(items)]
        self.done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.waiting: dict[Any, int] = {}
        #: Futures by their keys; the scheduler forgets one that nobody holds.
        self.held: dict[Any, Any] = {}
        self.killed: dict[int, int] = {}
        #: Workers that are left out, with the reasons.
        self.refused: dict[str, str] = {}

    def results(self) -> Iterator[Numbered]:
        """The results, as they come."""
        self._find_workers()
        # The work is a task of its own: the scheduler sends it once to each worker, and again where it was lost.
        self.given = self.client.submit(_given, self.text, pure=False)
        try:
            while self.order or self.waiting:
                while self.order and len(self.waiting) < self.engine.in_flight:
                    self._submit(self.order.pop())
                try:
                    future = self.done.get(timeout=_LOOK)
                except queue.Empty:
                    self._look()
                    continue
                number = self.waiting.pop(future.key, None)
                if number is not None:
                    yield from self._answered(number, future)
        finally:
            with contextlib.suppress(Exception):
                self.client.cancel([future for future in self.held.values() if future.key in self.waiting])

    def _submit(self, number: int) -> None:
        workers = None if not self.refused else [name for name in self._workers() if name not in self.refused]
        if workers == []:
            raise WorkerError(
                "no worker can do this work: " + "; ".join(f"{name}: {why}" for name, why in self.refused.items())
            )
        item = json.dumps([number, self.items[number]])
        future = self.client.submit(_relayed, self.given, item, pure=False, workers=workers)
        self.waiting[future.key] = number
        self.held[future.key] = future
        future.add_done_callback(self.done.put)

    def _answered(self, number: int, future: Any) -> Iterator[Numbered]:
        self.held.pop(future.key, None)
        if future.status == "finished":
            try:
                worker, told = future.result(timeout=_ANSWER)
            except Exception:  # The worker that held the answer is lost, or the scheduler.
                self._again(number)
                return
            if not told:
                self._count_killed(number, f"the process of worker {worker}")
                return
            kind, answer = json.loads(told)
            if kind == "result":
                yield number, answer
            elif kind == "error":
                raise WorkerError(f"the work failed on worker {worker}: {answer}")
            else:
                self._refuse(worker, answer)
                self._again(number)
        elif future.status == "error":
            self._failed(number, future.exception(timeout=_ANSWER))
        else:
            # The scheduler was lost, or forgot the task.
            self._again(number)

    def _again(self, number: int) -> None:
        self._check_scheduler()
        self.order.append(number)

    def _failed(self, number: int, error: BaseException) -> None:
        """Dask's own failures: workers that were killed, or that can't import diffode."""
        if type(error).__name__ == "KilledWorker":
            self._count_killed(number, "a worker", _MOST_KILLED)
        known = len(self.refused)
        self._find_workers()
        if len(self.refused) == known:
            raise WorkerError(f"the cluster can't run this work: {type(error).__name__}: {error}") from error
        self._again(number)

    def _count_killed(self, number: int, what: str, times: int = 1) -> None:
        self.killed[number] = self.killed.get(number, 0) + times
        if self.killed[number] >= _MOST_KILLED:
            raise WorkerError(
                f"{what} was killed over the same group, {self.killed[number]} times in all, by the system when memory runs "
                "out or by hand; what was stored stays, and the same command goes on from there: give workers more memory or "
                "fewer threads (dask worker --nthreads 1)"
            )
        self._again(number)

    def _refuse(self, worker: str, reason: str) -> None:
        if worker not in self.refused:
            self.refused[worker] = reason
            if any(name not in self.refused for name in self._workers()):
                warnings.warn(f"worker {worker} is left out: {reason}", WorkerWarning, stacklevel=2)

    def _find_workers(self) -> None:
        """Wait for workers, and leave those out that have no diffode, or another release."""
        self._wait_for_workers()
        try:
            found = self.client.run(pkgutil.resolve_name, "diffode:__version__", on_error="return")
        except (OSError, TimeoutError) as error:
            raise self._lost() from error
        for name, version in found.items():
            if version != diffode.__version__:
                has = f"diffode {version}" if isinstance(version, str) else f"no diffode ({version})"
                self._refuse(name, f"it has {has}: install diffode {diffode.__version__} there, pip install 'diffode[cluster]'")

    def _wait_for_workers(self) -> None:
        end = time.monotonic() + self.engine.patience
        while not self._workers():
            if time.monotonic() > end:
                raise WorkerError(
                    f"the scheduler {self._address()} has had no workers for {self.engine.patience:g} s: begin some with "
                    f"`dask worker {self._address()}`, and run the same command again; what was stored stays"
                )
            time.sleep(0.1)

    def _look(self) -> None:
        self._check_scheduler()
        self._wait_for_workers()

    def _check_scheduler(self) -> None:
        if self.client.status != "running":
            raise self._lost()

    def _lost(self) -> WorkerError:
        return WorkerError(
            f"the scheduler {self._address()} is lost: begin it and its workers again, and run the same command again; what "
            "was stored stays, and the run goes on from there"
        )

    def _workers(self) -> list[str]:
        self._check_scheduler()
        try:
            # Asked with a limit: dask itself would wait minutes for a scheduler that was just lost.
            return list(self.client.sync(self.client.scheduler.ncores, callback_timeout=_ANSWER))
        except (OSError, TimeoutError) as error:
            raise self._lost() from error

    def _address(self) -> str:
        return self.engine.address or str(getattr(self.client.scheduler, "address", self.engine.scheduler_file))


def _given(text: str) -> str:
    """The text of some work, as a task."""
    return text


def _relayed(text: str, item: str) -> tuple[str, str]:
    """The name of this worker, and its companion's answer to an item."""
    return str(library("distributed").get_worker().address), COMPANIONS.answer(text, item)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's own tracebacks about lost connections away: they are told by an error."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
