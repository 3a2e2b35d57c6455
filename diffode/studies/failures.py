"""Failed runs grouped by their reason, so that a thousand of one kind are one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from diffode.studies.cell import Result

#: Numbers in a reason, which differ from run to run.
_NUMBERS = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Failures:
    """Failed runs whose reasons differ in numbers alone.

    Attributes:
        reason: the reason of the first of them.
        runs: how many there are.
        solvers, targets, paths: where they happened, in the order of the suite.
        nfe: their budgets, increasing.
    """

    reason: str
    runs: int
    solvers: tuple[str, ...]
    targets: tuple[str, ...]
    paths: tuple[str, ...]
    nfe: tuple[int, ...]


def nothing_but_failures(name: str, results: Collection[Result]) -> str:
    """What to say of a suite of whose stored results none is good; an empty text if one is, or if there are none."""
    if not results or any(r.status == "ok" for r in results):
        return ""
    first = grouped(results)[0]
    most = "" if first.runs == len(results) else f", {first.runs:,} of them"
    return f"all {len(results):,} stored runs of suite {name!r} failed{most} with: {first.reason}"


def grouped(failed: Iterable[Result]) -> list[Failures]:
    """Failed results by reason, the most frequent first.

    >>> from diffode.studies.cell import Cell
    >>> cells = [Cell("ring8", "edm", 0, "karras", "ddim", n, 4, "float64", ("endpoint",), 1e-6) for n in (4, 8)]
    >>> [(g.runs, g.nfe) for g in grouped(Result("k", c, "failed", f"{c.nfe} rows are NaN") for c in cells)]
    [(2, (4, 8))]
    """
    by_reason: dict[str, list[Result]] = {}
    for result in failed:
        by_reason.setdefault(_NUMBERS.sub("#", result.reason), []).append(result)
    found = []
    for group in by_reason.values():
        cells = [r.cell for r in group]
        solvers, targets, paths = (
            tuple(dict.fromkeys(names))
            for names in ((c.method for c in cells), (c.target for c in cells), (c.path for c in cells))
        )
        found.append(Failures(group[0].reason, len(group), solvers, targets, paths, tuple(sorted({c.nfe for c in cells}))))
    return sorted(found, key=lambda g: -g.runs)
