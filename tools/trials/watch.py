"""Workers that play cases one after the other, under limits of processor time and memory, and are replaced when they die."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from trials.case import Case
from trials.trial import Finding, OutOfTime, Played

#: Seconds of processor time of a case; more of them before a process is ended that does not come back to Python; seconds by the
#: clock before one is ended that waits for something; bytes of data that a process may have.
LIMIT, _NATIVE, _WAITING, _DATA = 20, 20, 900, 4 * 2**30
#: Cases that a worker plays before a new one takes its place, so that what one leaves behind does not pile up.
_CASES = 1000


def watched(case: Case) -> Played:
    """Play a case in this process under the limit of processor time."""

    def late(number: int, frame: Any) -> None:
        raise OutOfTime(f"{LIMIT} s of processor time")

    before = signal.signal(signal.SIGPROF, late)
    # This one has no handler: it ends the process.
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT + _NATIVE)
    # Where an error of this kind is taken for an ordinary one, it comes again.
    signal.setitimer(signal.ITIMER_PROF, LIMIT, 1)
    try:
        return case.play()
    except OutOfTime:
        return Played("answer", [Finding("hang", "processor time, outside of the program")])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGPROF, before)


def _work(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    while (case := pipe.recv()) is not None:
        begun = time.process_time()
        played = watched(case)
        pipe.send((played, time.process_time() - begun))


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other,), daemon=False)
        self.process.start()
        other.close()
        self.case: Case | None = None
        self.since, self.left = time.monotonic(), _CASES

    def give(self, case: Case) -> None:
        self.case, self.since, self.left = case, time.monotonic(), self.left - 1
        self.pipe.send(case)

    def end(self) -> None:
        """Let it end, or end it if it is busy."""
        if self.case is None:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
        else:
            self.process.kill()
        self.process.join()
        self.pipe.close()


def played(cases: Iterable[Case], jobs: int) -> Iterator[tuple[Case, Played, float]]:
    """Every case with what came of it and the seconds it cost, in the order in which they end."""
    waiting = iter(cases)
    workers: list[_Worker] = []
    done = False
    try:
        while True:
            while not done and len(workers) < jobs:
                case = next(waiting, None)
                if case is None:
                    done = True
                else:
                    workers.append(_Worker())
                    workers[-1].give(case)
            if not workers:
                return
            wait([worker.pipe for worker in workers], timeout=5)
            for worker in list(workers):
                found = _answer(worker)
                if found is None:
                    continue
                yield found
                worker.case = None
                case = next(waiting, None) if worker.process.is_alive() and worker.left else None
                if case is None:
                    worker.end()
                    workers.remove(worker)
                else:
                    worker.give(case)
    finally:
        for worker in workers:
            worker.end()


def _answer(worker: _Worker) -> tuple[Case, Played, float] | None:
    """What came of a worker's case, or of the worker itself; None while it is busy."""
    case = worker.case
    if case is None:
        return None
    seconds = time.monotonic() - worker.since
    try:
        if worker.pipe.poll():
            result, spent = worker.pipe.recv()
            return case, result, spent
    except (EOFError, OSError):
        worker.process.join()
    if not worker.process.is_alive():
        code = worker.process.exitcode
        what = "hang" if code == -signal.SIGVTALRM else "death"
        return case, Played("answer", [Finding(what, f"the process ended: code {code}")]), seconds
    if seconds > _WAITING:
        os.kill(worker.process.pid or 0, signal.SIGKILL)
        worker.process.join()
        return case, Played("answer", [Finding("hang", f"by the clock: {seconds:.0f} s")]), seconds
    return None
