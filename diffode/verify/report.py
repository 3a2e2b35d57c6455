"""The result of every verification: a report of checks, each of which passed, failed or is not judged."""

from __future__ import annotations

import dataclasses
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffode.errors import ArgumentError
from diffode.facts_table import rows_table

#: Signs of a check's outcome in a printed report.
_SIGNS = {True: "ok", False: "FAILED", None: "--"}
#: Width of a printed report, in columns.
_WIDTH = 118
#: Width of the signs at its left, in columns.
_SIGN_WIDTH = 8
#: Names of a check's attributes in version 0.1, with the present ones.
_FORMER_OF_CHECK = {"topic": "name", "text": "detail"}
#: Names of a report's attributes in version 0.1, with the present names of attributes or facts.
_FORMER_OF_REPORT = {"findings": "checks", "wrong": "failed", "finding": "check", "order": "order", "residuals": "residuals"}


@dataclass(frozen=True)
class Check:
    """One claim and its outcome.

    Attributes:
        name: the claim, or the subject of a remark.
        value: the measured number, if there is one.
        tolerance: the largest value that passes, if that decides the outcome.
        detail: the place of the largest value, or the finding; for a failed check, its meaning.
        passed: True or False, or None if nothing is judged, as in a remark or a check that can't be made. With a tolerance,
            True if the value is finite and within it.

    >>> Check("continuity equation", 1e-15, 1e-11).passed, Check("noise", detail="draws none").passed
    (True, None)
    """

    name: str
    value: float | None = None
    tolerance: float | None = None
    detail: str = ""
    passed: bool | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            within = self.value is not None and math.isfinite(self.value) and self.value <= self.tolerance
            object.__setattr__(self, "passed", within)

    @classmethod
    def found(cls, name: str, passed: bool | None, detail: str) -> Check:
        """A check whose finding is a sentence without a number."""
        return cls(name, detail=detail, passed=passed)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in _FORMER_OF_CHECK:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            new = _FORMER_OF_CHECK[name]
            former_name(f"Check.{name}", f"Check.{new}")
            return getattr(self, new)

    def json(self) -> dict[str, Any]:
        """The attributes as a dictionary, the outcome first."""
        return {
            "name": self.name, "passed": self.passed, "value": self.value, "tolerance": self.tolerance, "detail": self.detail,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Report:
    """All checks of one subject; printing it shows them.

    Attributes:
        subject: the name of the subject.
        checks: the checks, in the order in which they were made.
        advice: sentences that name a mistake and its fix.
        facts: further measurements by name; the function that makes the report lists them.

    >>> report = Report("mine", (Check("finite", 0.0, 0.0), Check("order", passed=False, detail="first, not second")))
    >>> report
    Report(mine: 1 finding against it, 1 of 2 checks passed)
    >>> report.passed, report.exit_code, report.check("order").detail
    (False, 1, 'first, not second')
    """

    subject: str
    checks: tuple[Check, ...]
    advice: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.subject}: {self._outcome()})"

    def __str__(self) -> str:
        fixes = [_wrapped("FIX", sentence) for sentence in self.advice]
        return "\n".join([self.subject, "", *_lines(self.checks), *fixes, "", self._outcome()])

    def _repr_html_(self) -> str:
        """The checks as a table, for notebooks."""
        rows = [
            (_SIGNS[c.passed], c.name, *("" if v is None else f"{v:.2g}" for v in (c.value, c.tolerance)), c.detail)
            for c in self.checks
        ]
        fixes = [("FIX", "", "", "", sentence) for sentence in self.advice]
        title = f"{self.subject}: {self._outcome()}"
        return rows_table(title, ("", "check", "value", "tolerance", "finding"), [*rows, *fixes])

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in _FORMER_OF_REPORT:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            new = _FORMER_OF_REPORT[name]
            fact = new not in ("checks", "failed", "check")
            former_name(f"Report.{name}", f"Report.facts[{new!r}]" if fact else f"Report.{new}")
            return self.facts.get(new) if fact else getattr(self, new)

    @property
    def judged(self) -> bool:
        """Whether any check has an outcome; without one there is no verdict."""
        return any(check.passed is not None for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether it was judged and no check failed."""
        return self.judged and not self.failed

    @property
    def exit_code(self) -> int:
        """Exit code of a command: 0 if the report passed, 1 if a check failed, 4 if nothing could be judged."""
        return (0 if self.passed else 1) if self.judged else 4

    def check(self, name: str) -> Check:
        """The check of a name.

        Raises:
            ArgumentError: if there is none; the message lists the names of all checks.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise ArgumentError(f"name must be that of a check, got {name!r}; there are {', '.join(c.name for c in self.checks)}")

    def json(self) -> dict[str, Any]:
        """A dictionary for JSON: subject, judged, passed (None if nothing was judged), checks, advice, and the facts by name.

        Facts that hold tensors are left out.
        """
        facts = {name: _plain(value) for name, value in self.facts.items() if not _of_tensors(value)}
        return {
            "subject": self.subject,
            "judged": self.judged,
            "passed": self.passed if self.judged else None,
            "checks": [check.json() for check in self.checks],
            "advice": list(self.advice),
            **facts,
        }

    def _outcome(self) -> str:
        if not self.judged:
            return "no verdict"
        against, held = len(self.failed), [check.passed for check in self.checks if check.passed is not None]
        verdict = f"{against} finding{'s' if against > 1 else ''} against it" if against else "nothing wrong was found"
        return f"{verdict}, {sum(held)} of {len(held)} checks passed"


def former_name(former: str, new: str) -> None:
    """Warn the caller's caller that a former name will be removed."""
    warnings.warn(f"{former} is now {new}; the old name goes with the next version", DeprecationWarning, stacklevel=3)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _of_tensors(value: Any) -> bool:
    parts = vars(value).values() if dataclasses.is_dataclass(value) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def _lines(checks: Sequence[Check]) -> list[str]:
    """A line for each check, with columns for residual and tolerance if some check has them."""
    if not any(check.tolerance is not None for check in checks):
        name_width = max((len(check.name) for check in checks), default=0) + 2
        return [_wrapped(_SIGNS[check.passed], check.detail, f"{check.name:{name_width}s}") for check in checks]
    name_width = max(len("check"), *(len(check.name) for check in checks)) + 2
    lines = [f"{'':{_SIGN_WIDTH}s}{'check':{name_width}s}residual  tolerance  where"]
    for check in checks:
        held = check.tolerance is not None
        value = "" if check.value is None or not held else f"{check.value:.1e}" if check.value else "0"
        tolerance = "" if check.tolerance is None else f"{check.tolerance:.3g}"
        lines.append(_wrapped(_SIGNS[check.passed], check.detail, f"{check.name:{name_width}s}{value:>8s}  {tolerance:>9s}  "))
    return lines


def _wrapped(sign: str, text: str, head: str = "") -> str:
    """A line, wrapped and indented to the beginning of its text."""
    begin = f"{sign:{_SIGN_WIDTH}s}{head}"
    indent = " " * min(len(begin), _WIDTH * 2 // 3)
    return textwrap.fill(text, _WIDTH, initial_indent=begin, subsequent_indent=indent).rstrip() or begin.rstrip()
