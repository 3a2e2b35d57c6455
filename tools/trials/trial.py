"""What a trial is, and how it is played: a short Python program, and what has to hold of what it leaves behind.

A program either ends in an exception of diffode's, or leaves names whose values the trial's oracle looks at. Its text is the
description of the trial: it can be pasted and run.
"""

from __future__ import annotations

import contextlib
import io
import re
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffode
from diffode import errors
from diffode.errors import DiffodeError

#: What every program may use.
PRELUDE = (
    "import math\n"
    "import numpy as np, torch, diffode\n"
    "from diffode import grids, metrics, paths, solvers, targets, verify\n"
    "from trials.commands import command\n"
    "from trials.files import damaged, loaded_from, used\n"
    "from trials.material import material\n"
    "from trials.mixtures import fitting_noise, mixture, nasty\n"
)
#: Growth of the process's peak memory that is a finding, in MB.
MOST_MEMORY = 300
_HOUSE, _LONGEST_MESSAGE = str(Path(diffode.__file__).parent), 5000
_OWN_WARNINGS = tuple(
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Warning)
)  # fmt: skip
#: Integrators of other libraries, which say in warnings of their own how they fared.
_LIBRARIES = ("torchdiffeq", "torchsde")
_WORD = re.compile(r"[^\W\d_]+|\d+")

Names = dict[str, Any]


class OutOfTime(BaseException):
    """The seconds of processor time of a trial are used up; no handler of errors takes it for one."""


@dataclass(frozen=True)
class Trial:
    """A program, and the oracle that yields what is wrong with the names it leaves."""

    program: str
    oracle: Callable[[Names], Iterable[str]]


@dataclass
class Finding:
    """Something that ought not to happen.

    ``what`` is one of: raw exception, message, warning, oracle, hang, memory, death. ``place`` is the innermost frame in
    diffode, ``last`` the innermost of all.
    """

    what: str
    detail: str
    place: str = ""
    last: str = ""

    @property
    def cause(self) -> tuple[str, str, str]:
        """What findings are grouped by: kind, exception or broken rule, innermost frame in diffode."""
        return self.what, self.detail.partition(":")[0], self.place


@dataclass
class Played:
    """What came of a trial: ``answer``, ``refusal`` or ``warned``, and the findings."""

    ending: str
    findings: list[Finding] = field(default_factory=list)
    message: str = ""


def play(trial: Trial) -> Played:
    """Run a trial's program and look at what is left."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names: Names = {}
    exec(PRELUDE, names)
    findings: list[Finding] = []
    with _watched(findings), contextlib.redirect_stdout(io.StringIO()):
        played = _run(trial, names, findings)
    # Kilobytes on Linux.
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > MOST_MEMORY:
        played.findings.append(Finding("memory", f"peak grew: {grown:.0f} MB"))
    return played


def _run(trial: Trial, names: Names, findings: list[Finding]) -> Played:
    try:
        exec(compile(trial.program, "<trial>", "exec"), names)
    except DiffodeError as error:
        findings.extend(_refused(error, trial, names))
        solution = getattr(error, "solution", None)
        if solution is not None and "x" in names:
            findings.extend(_broken(trial, {**names, "solution": solution, "failed": True}))
        return Played("refusal", findings, f"{type(error).__name__}: {error}")
    except OutOfTime as error:
        findings.append(Finding("hang", "processor time", *frames(error)))
    except MemoryError as error:
        findings.append(Finding("memory", f"MemoryError: {error}", *frames(error)))
    except Exception as error:
        findings.append(Finding("raw exception", f"{type(error).__name__}: {error}"[:500], *frames(error)))
    else:
        findings.extend(_broken(trial, names))
    return Played("answer", findings)


def _refused(error: DiffodeError, trial: Trial, names: Names) -> Iterator[Finding]:
    """A message says something, not too much, of what was given, without the inside of Python."""
    said = str(error)
    problem = None
    if not said.strip():
        problem = "empty"
    elif len(said) > _LONGEST_MESSAGE:
        problem = "longer than a page"
    elif " object at 0x" in said and "object()" not in trial.program:
        problem = "shows an address"
    elif "got nan" in said and "nan" not in trial.program and "file" not in names:
        problem = "speaks of a nan that nobody gave"
    elif "file" in names and "loaded" not in names and Path(names["file"]).stem not in said:
        problem = "does not name the file"
    elif "file" not in names and not _names_input(said, trial.program):
        problem = "names nothing of the input"
    if problem:
        yield Finding("message", f"{problem}: {type(error).__name__}: {said[:300]}", *frames(error))


def _names_input(said: str, program: str) -> bool:
    """Whether a message shares a word, or a text in quotation marks, with the program."""
    quoted = [text for pair in re.findall(r"'([^']*)'|\"([^\"]*)\"", said) for text in pair]
    shown = [code for code in ("[]", "{}", "()") if code in said]
    return bool(set(_WORD.findall(said)) & set(_WORD.findall(program))) or any(text in program for text in quoted + shown)


def _broken(trial: Trial, names: Names) -> Iterator[Finding]:
    try:
        for problem in trial.oracle(names):
            yield Finding("oracle", problem)
    except DiffodeError as error:
        yield Finding("oracle", f"refused when looked at again: {type(error).__name__}: {error}"[:500], *frames(error))
    except OutOfTime as error:
        yield Finding("hang", "processor time, while the answer was looked at", *frames(error))
    except Exception as error:
        yield Finding("raw exception", f"{type(error).__name__}: {error}"[:500], *frames(error))


@contextlib.contextmanager
def _watched(findings: list[Finding]) -> Iterator[None]:
    """Write down warnings that are not diffode's own, with the line of diffode that led there."""

    def noted(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        foreign = category is UserWarning and any(f"/{library}/" in filename for library in _LIBRARIES)
        if not issubclass(category, _OWN_WARNINGS) and not foreign:
            place = next((_named(f) for f in reversed(traceback.extract_stack()) if f.filename.startswith(_HOUSE)), "")
            findings.append(Finding("warning", f"{category.__name__}: {message}"[:300], place, f"{filename}:{lineno}"))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted
        yield


def frames(error: BaseException) -> tuple[str, str]:
    """The innermost frame in diffode and the innermost of all, as file:line function."""
    stack = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in stack if frame.filename.startswith(_HOUSE)]
    return (_named(own[-1]) if own else ""), (_named(stack[-1]) if stack else "")


def _named(frame: traceback.FrameSummary) -> str:
    name = frame.filename
    for root in (str(Path(_HOUSE).parent), *sorted(sys.path, key=len, reverse=True)):
        if root and name.startswith(root + "/"):
            name = name[len(root) + 1 :]
            break
    return f"{name}:{frame.lineno} {frame.name}"
