"""The trial of laws: one check for each law, even if a plug-in's code raises, and one error for all broken laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffode.errors import LawError
from diffode.verify import Check, Report

#: A function that tries a law and returns a check: the largest residual with its tolerance, or a sentence.
Law = Callable[[], Check]


def tried(name: str, law: Law) -> Check:
    """The check of a law; if a plug-in's code raises, a failed check that names the exception."""
    try:
        return law()
    except Exception as error:  # anyone's code may raise anything
        return Check.found(name, False, f"raised {type(error).__name__}: {error}")


def kept(subject: str, checks: Sequence[Check]) -> Report:
    """The report of checks, if no law is broken.

    Raises:
        LawError: if a law is broken; the message names each broken law, the numbers and the place.
    """
    report = Report(subject, tuple(checks))
    if report.failed:
        many = f"{len(report.failed)} laws" if len(report.failed) > 1 else "a law"
        told = "; ".join(f"{check.name}: {_numbers(check)}{check.detail}" for check in report.failed)
        raise LawError(f"{subject} breaks {many}: {told}", report)
    return report


def _numbers(check: Check) -> str:
    if check.tolerance is None or check.value is None:
        return ""
    return f"residual {check.value:.1e}, where {check.tolerance:.1e} is allowed, "


class Largest:
    """The largest residual so far, and its place."""

    def __init__(self) -> None:
        self.value, self.place = 0.0, ""

    def see(self, value: float, place: str) -> None:
        """Keep a residual if it is the largest so far; NaN counts as largest."""
        if not value <= self.value and self.value == self.value:
            self.value, self.place = value, place

    def check(self, name: str, tolerance: float) -> Check:
        """The check that the largest residual is within its tolerance."""
        return Check(name, self.value, tolerance, self.place)
