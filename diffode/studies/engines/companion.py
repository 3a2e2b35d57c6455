"""Processes that compute for one piece of work each, with nothing in them from other work.

A worker of a cluster lives long and serves many studies, whose modules may have changed in between. It therefore computes in a
process of its own for each piece of work, a companion, which is kept for the next item and ended when other work comes. The two
speak in lines of JSON: first the work, then items; each is answered by ``["result", ...]`` or ``["error", text]``.
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

from diffode.errors import DiffodeError
from diffode.studies.engines.work import Work


class Companion:
    """A process that computes items of some work, given as its text."""

    def __init__(self, text: str):
        self.text = text
        # diffode may be found by a path that only this process has.
        own = str(FilePath(__file__).parents[3])
        paths = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths}
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        self._tell(text)

    def answer(self, item: str) -> str:
        """The answer to an item, as lines of JSON; an empty text if the process ended."""
        self._tell(item)
        if self._process.stdout is None:
            return ""
        return self._process.stdout.readline()

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def kill(self) -> None:
        """Kill the process; a thread that waits for its answer gets an empty text."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, and take leave of it."""
        self.kill()
        self._process.communicate()


class Companions:
    """The companions of a process, one for each of its threads that computes at the time."""

    def __init__(self) -> None:
        self._idle: list[Companion] = []
        self._busy: list[Companion] = []
        self._lock = threading.Lock()

    def answer(self, text: str, item: str) -> str:
        """The answer of an idle companion for some work, or else of a new one; an empty text if it was killed."""
        with self._lock:
            same = [companion for companion in self._idle if companion.text == text]
            for other in [companion for companion in self._idle if companion.text != text]:
                self._idle.remove(other)
                other.end()
            companion = same[0] if same else None
            if companion is not None:
                self._idle.remove(companion)
        companion = companion or Companion(text)
        self._busy.append(companion)
        told = companion.answer(item)
        self._busy.remove(companion)
        if told.endswith("\n"):
            with self._lock:
                self._idle.append(companion)
            return told
        companion.end()
        return ""

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
    """Compute the items that come in until there are no more: the program of a companion."""
    # An interruption from the keyboard is the coordinator's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a user's code prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = sys.stdin.readline()
    work = Work.read(line) if line else None
    if work is None:
        return
    if work.code is not None:
        with contextlib.suppress(OSError):
            os.chdir(work.code.folder)
    for line in sys.stdin:
        _put(answers, _answered(work, line))


def _answered(work: Work, line: str) -> str:
    number, item = json.loads(line)
    try:
        return json.dumps(["result", work((number, item))[1]])
    except DiffodeError as error:
        return json.dumps(["error", str(error)])
    except Exception as error:  # A user's module or function may raise anything.
        return json.dumps(["error", f"{type(error).__name__}: {error}"])


def _put(answers: IO[str], text: str) -> None:
    # The other end is closed when the worker has ended.
    with contextlib.suppress(BrokenPipeError):
        answers.write(text + "\n")
        answers.flush()
