"""Processes that compute for a worker of a cluster, with nothing in them from other work.

A worker lives long and serves many studies, whose modules may have changed in between. It therefore has companions: processes
that import diffode once, and then make a copy of themselves for each piece of work, which imports the user's code and goes when
the work is done. Worker and companion speak in lines: ``work`` with the text of a work is answered by ``ready``, ``item`` with
a number and an item by ``["result", ...]``, ``["error", text]`` or, where this process is not fit for the work, ``["refused",
text]`` in JSON, or by ``killed`` where the copy was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path as FilePath
from typing import IO

from diffode.closure import version_of
from diffode.engines.work import Work, named
from diffode.errors import DiffodeError, WorkerError

#: What a companion imports before it makes copies of itself.
_PRELOADED = "diffode.studies.rows:compute_group"


class Companion:
    """A process beside this one that computes items of one work at a time."""

    def __init__(self) -> None:
        self.text = ""
        # diffode may be found by a path that only this process has.
        own = str(FilePath(__file__).parents[2])
        paths = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def answer(self, text: str, item: str) -> str:
        """The answer to an item of some work, in JSON; an empty text if the process was killed over it."""
        if text != self.text:
            self.text = text if self._asked(f"work {text}") == "ready\n" else ""
        found = self._asked(f"item {item}") if self.text else ""
        if found.startswith("["):
            return found
        self.text = ""
        return ""

    @property
    def lives(self) -> bool:
        """Whether the process can be asked again."""
        return self._process.poll() is None

    def _asked(self, line: str) -> str:
        if self._process.stdin is None or self._process.stdout is None:
            return ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        return ""

    def kill(self) -> None:
        """Kill the process and its copy; a thread that waits for their answer gets an empty text."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:  # pragma: no cover - Windows has no groups of processes, and no copies either.
                self._process.kill()

    def end(self) -> None:
        """Kill the process, and take leave of it."""
        self.kill()
        self._process.communicate()


class Companions:
    """The companions of a process: one for each of its threads that computes at the time."""

    def __init__(self) -> None:
        self._idle: list[Companion] = []
        self._busy: list[Companion] = []
        self._lock = threading.Lock()

    def answer(self, text: str, item: str) -> str:
        """The answer of a companion, one that is at this work already if there is one; an empty text if it was killed."""
        with self._lock:
            same = [companion for companion in self._idle if companion.text == text]
            companion = next(iter(same or self._idle), None)
            if companion is not None:
                self._idle.remove(companion)
        if companion is None:
            companion = Companion()
        self._busy.append(companion)
        found = companion.answer(text, item)
        self._busy.remove(companion)
        if found or companion.lives:
            with self._lock:
                self._idle.append(companion)
        else:
            companion.end()
        return found

    def end(self) -> None:
        """End all companions, whatever they are at."""
        with self._lock:
            for companion in self._idle:
                companion.end()
            self._idle.clear()
        for companion in list(self._busy):
            companion.kill()


#: The companions of this process.
COMPANIONS = Companions()


def serve() -> None:
    """Answer lines until there are no more: the program of a companion."""
    # An interruption from the keyboard is the coordinator's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a user's code prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # The hash of the code is taken now, of what is imported: the files may change while this process lives.
    version_of(named(_PRELOADED))
    line = sys.stdin.readline()
    while line:
        # The copy reads items until it meets other work, which is a copy's again.
        if not hasattr(os, "fork"):  # pragma: no cover - Windows has no copies of processes: this one serves one work.
            _compute(line, answers)
            return
        reading, writing = os.pipe()
        copy = os.fork()
        if copy == 0:
            os.close(reading)
            following = _compute(line, answers)
            os.write(writing, following.encode())
            sys.exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as handed:
            line = handed.read()
        _, status = os.waitpid(copy, 0)
        if status:
            _put(answers, "killed")
            line = sys.stdin.readline()


def _compute(line: str, answers: IO[str]) -> str:
    """Answer the items that follow a line of work; returns the next line of work, or an empty text at the end."""
    work = Work.read(line.removeprefix("work "))
    if work.code is not None:
        with contextlib.suppress(OSError):
            os.chdir(work.code.folder)
    _put(answers, "ready")
    while (line := sys.stdin.readline()).startswith("item "):
        _put(answers, _answered(work, line.removeprefix("item ")))
    return line


def _answered(work: Work, item: str) -> str:
    number, value = json.loads(item)
    ready = False
    try:
        work.make_ready()
        ready = True
        return json.dumps(["result", work((number, value))[1]])
    except Exception as error:  # A user's module or function may raise anything.
        told = str(error) if isinstance(error, DiffodeError) else f"{type(error).__name__}: {error}"
        return json.dumps(["error" if ready and not isinstance(error, WorkerError) else "refused", told])


def _put(answers: IO[str], text: str) -> None:
    # The other end is closed when the worker has ended.
    with contextlib.suppress(BrokenPipeError):
        answers.write(text + "\n")
        answers.flush()
