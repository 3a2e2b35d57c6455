"""From results to answers: error curves, the best solver at each NFE, the NFE needed to reach an error.

The first metric of a suite ranks. Errors are in units of the target's scale (its root mean variance). They are averaged over
seeds, and over targets and paths by the geometric mean, since they span decades.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffode.errors import ArgumentError
from diffode.metrics import needs_of
from diffode.studies.cell import Cell, Result

#: Errors, in units of the scale, whose price in evaluations is reported.
LEVELS = (1e-2, 1e-3)

Problem = tuple[str, str]


@dataclass(frozen=True)
class Curve:
    """Error against NFE of a solver on a grid, a target and a path; ``floor`` is the error of the reference."""

    target: str
    path: str
    grid: str
    solver: str
    nfe: tuple[int, ...]
    error: tuple[float, ...]
    floor: float
    budgets: tuple[int, ...]

    @property
    def problem(self) -> Problem:
        """Target and path."""
        return self.target, self.path

    @property
    def method(self) -> str:
        """The solver, with its grid unless that is ``karras``."""
        return self.solver if self.grid == "karras" else f"{self.solver} @ {self.grid}"

    def nfe_to_reach(self, error: float) -> float:
        """The NFE from which the curve stays below an error, by log-log interpolation; infinite if it never does."""
        reached = math.inf
        for i in range(len(self.nfe) - 1, -1, -1):
            if self.error[i] > error:
                if math.isinf(reached):
                    return math.inf
                high, low = math.log(self.error[i]), math.log(max(self.error[i + 1], 1e-300))
                share = (high - math.log(error)) / (high - low)
                return math.exp(math.log(self.nfe[i]) * (1 - share) + math.log(self.nfe[i + 1]) * share)
            reached = float(self.nfe[i])
        return reached


def ranking_metric(results: Sequence[Result]) -> str:
    """The metric that ranks: the first of the first study; an empty text if there are no results."""
    return results[0].cell.metrics[0] if results else ""


def is_length(metric: str) -> bool:
    """Whether a metric's values are lengths, which are ranked in units of the data's scale; True for one that is unknown.

    >>> is_length("endpoint"), is_length("mode_weights")
    (True, False)
    """
    try:
        return needs_of(metric).length
    except ArgumentError:
        return True


def in_units(metric: str, of: str = "the data's scale") -> str:
    """`` in units of the data's scale`` after the name of a metric that is a length, and nothing for another."""
    return f" in units of {of}" if is_length(metric) else ""


def curves(results: Sequence[Result]) -> list[Curve]:
    """The curves of all good results that have the metric that ranks, in the order of the suite.

    Seeds are averaged; a budget whose run has the same NFE as that of a smaller budget adds no point.
    """
    gathered: dict[tuple[str, str, str, str], dict[int, list[tuple[int, float, float]]]] = {}
    ranks = ranking_metric(results)
    in_scales = is_length(ranks)
    for result in results:
        measured = next((m for m in result.measurements if m.name == ranks), None)
        if result.status != "ok" or measured is None or result.nfe_counted is None or not result.scale:
            continue
        cell = result.cell
        by_budget = gathered.setdefault((cell.target, cell.path, cell.grid, cell.solver), {})
        unit = result.scale if in_scales else 1.0
        by_budget.setdefault(cell.nfe, []).append((result.nfe_counted, measured.value / unit, measured.floor / unit))
    made = []
    for (target, path, grid, solver), by_budget in gathered.items():
        points: dict[int, tuple[float, int]] = {}
        floor = 0.0
        for budget, values in sorted(by_budget.items()):
            points.setdefault(values[0][0], (sum(v[1] for v in values) / len(values), budget))
            floor = max(floor, *(v[2] for v in values))
        nfe = tuple(sorted(points))
        errors, budgets = tuple(points[n][0] for n in nfe), tuple(points[n][1] for n in nfe)
        made.append(Curve(target, path, grid, solver, nfe, errors, floor, budgets))
    return made


@dataclass(frozen=True)
class Coverage:
    """The share of a suite that a ranking rests on.

    Attributes:
        cells: number of runs of the suite that make sense.
        missing: number of them that are not stored, or whose row is damaged.
        failed: number of them that are stored as failures.
        problems: number of pairs of target and path of the suite.
        absent: problems without a run that succeeded, which have no part in the ranking.
        damaged: number of rows whose checksum does not fit.
        tried: those of the absent problems of which failures are stored.
    """

    cells: int
    missing: int
    failed: int
    problems: int
    absent: tuple[Problem, ...]
    damaged: int = 0
    tried: tuple[Problem, ...] = ()

    def told(self, ranking: str, again: str) -> str:
        """A line that says of a ``ranking`` what it does not rest on, with the command that runs what was not; empty if it
        rests on the whole suite.
        """
        if not self.sentence:
            return ""
        # What is stored as a failure would most likely fail again.
        remedy = f"; run {again}" if self.missing or self.damaged else ""
        return f"this {ranking} is not of the whole suite: {self.sentence}{remedy}"

    @property
    def sentence(self) -> str:
        """A sentence about the runs that are missing; empty if none is."""
        parts = []
        if self.missing:
            parts.append(f"{self.missing:,} of {self.cells:,} runs of the suite are not stored")
        if self.damaged:
            parts.append(f"damaged rows left out: {self.damaged:,}")
        if self.absent:
            shown = ", ".join(
                f"{target} on {path}{' (all its stored runs failed)' if (target, path) in self.tried else ''}"
                for target, path in self.absent[:3]
            )
            more = f" and {len(self.absent) - 3} more" if len(self.absent) > 3 else ""
            parts.append(f"{len(self.absent)} of {self.problems} problems (targets and paths) are not in it: {shown}{more}")
        return "; ".join(parts)


def coverage(cells: Iterable[Cell], results: Iterable[Result], damaged: int = 0) -> Coverage:
    """The coverage of a suite's sensible cells by results."""
    asked = set(cells)
    found = {r.cell: r.status for r in results if r.cell in asked}
    problems = {(c.target, c.path) for c in asked}
    present = {(cell.target, cell.path) for cell, status in found.items() if status == "ok"}
    failed = sum(status != "ok" for status in found.values())
    absent = problems - present
    tried = tuple(sorted(absent & {(cell.target, cell.path) for cell in found}))
    return Coverage(len(asked), len(asked) - len(found), failed, len(problems), tuple(sorted(absent)), damaged, tried)


@dataclass(frozen=True)
class Standing:
    """A method's geometric mean error over all problems at one NFE, and the number of problems on which it is the best."""

    method: str
    error: float
    wins: int
    problems: int


def error_within(curve: Curve, nfe: int) -> float | None:
    """The error of the largest run within a budget; None if no run is within it."""
    fitting = [e for n, e in zip(curve.nfe, curve.error, strict=True) if n <= nfe]
    return fitting[-1] if fitting else None


def standings(all_curves: Sequence[Curve], nfe: int) -> list[Standing]:
    """Methods that have a run within ``nfe`` on every problem, best first."""
    problems = {c.problem for c in all_curves}
    table: dict[str, dict[Problem, float]] = {}
    for curve in all_curves:
        error = error_within(curve, nfe)
        if error is not None:
            table.setdefault(curve.method, {})[curve.problem] = error
    complete = {m: errors for m, errors in table.items() if errors.keys() == problems}
    wins = dict.fromkeys(complete, 0)
    for problem in problems if complete else ():
        wins[min(complete, key=lambda m: complete[m][problem])] += 1
    standing = [
        Standing(m, math.exp(sum(math.log(max(e, 1e-300)) for e in errors.values()) / len(errors)), wins[m], len(errors))
        for m, errors in complete.items()
    ]
    return sorted(standing, key=lambda s: s.error)


def mean_curves(all_curves: Sequence[Curve]) -> dict[str, tuple[list[int], list[float]]]:
    """By method, the geometric mean of the errors over all problems, at the NFE that the method has on each of them.

    Returns:
        Numbers of evaluations and errors of each method that has such NFE, in the order of the suite.
    """
    problems = len({c.problem for c in all_curves})
    gathered: dict[str, dict[int, list[float]]] = {}
    for curve in all_curves:
        for nfe, error in zip(curve.nfe, curve.error, strict=True):
            gathered.setdefault(curve.method, {}).setdefault(nfe, []).append(math.log(max(error, 1e-300)))
    found = {}
    for method, by_nfe in gathered.items():
        whole = sorted(nfe for nfe, logs in by_nfe.items() if len(logs) == problems)
        if whole:
            found[method] = whole, [math.exp(sum(by_nfe[nfe]) / problems) for nfe in whole]
    return found


def best_methods(all_curves: Sequence[Curve], first: int) -> list[str]:
    """The methods that are among the ``first`` at some budget, those at the smallest budget first."""
    return list(dict.fromkeys(s.method for nfe in budgets(all_curves) for s in standings(all_curves, nfe)[:first]))


def unranked(all_curves: Sequence[Curve]) -> str:
    """Why a ranking of curves would be empty, in words; an empty text if it would not.

    >>> unranked([Curve("ring8", "edm", "karras", "ddim", (4,), (0.1,), 0.0, (4,))])
    ''
    """
    if not all_curves:
        return "no run has a result that could be ranked"
    if best_methods(all_curves, 1):
        return ""
    count = len({c.problem for c in all_curves})
    return f"no method has a result on all {count} problems (pairs of target and path), so that none can be ranked"


def curves_of_note(all_curves: Sequence[Curve], most: int) -> list[Curve]:
    """All curves, or, where there are more than ``most``, those of as many of the best methods as fit, in their own order."""
    if len(all_curves) <= most:
        return list(all_curves)
    places: dict[str, int] = {}
    for nfe in budgets(all_curves):
        for place, one in enumerate(standings(all_curves, nfe)):
            places[one.method] = min(place, places.get(one.method, place))
    counts: dict[str, int] = {}
    for curve in all_curves:
        counts[curve.method] = counts.get(curve.method, 0) + 1
    kept, room = set(), most
    for method in sorted(counts, key=lambda m: places.get(m, len(all_curves))):
        if counts[method] > room:
            break
        kept.add(method)
        room -= counts[method]
    return [c for c in all_curves if c.method in kept]


@dataclass(frozen=True)
class Price:
    """The NFE that a method needs for an error, the median over problems, and the number of problems that reach the error."""

    method: str
    nfe: float
    reached: int
    problems: int


def prices(all_curves: Sequence[Curve], error: float) -> list[Price]:
    """The price of an error with each method, the cheapest first."""
    by_method: dict[str, list[float]] = {}
    for curve in all_curves:
        by_method.setdefault(curve.method, []).append(curve.nfe_to_reach(error))
    found = []
    for method, needed in by_method.items():
        needed.sort()
        middle = needed[len(needed) // 2] if len(needed) % 2 else (needed[len(needed) // 2 - 1] + needed[len(needed) // 2]) / 2
        found.append(Price(method, middle, sum(math.isfinite(n) for n in needed), len(needed)))
    return sorted(found, key=lambda p: (p.nfe, -p.reached, p.method))


def price_table(all_curves: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    """The NFE that each method needs for each of ``LEVELS``, as the header and the rows of a table.

    The cheapest at the first level stand first, and of equals there the cheapest at the next.
    """
    by_level = [{p.method: p for p in prices(all_curves, level)} for level in LEVELS]
    methods = sorted(by_level[0], key=lambda m: ([(level[m].nfe, -level[m].reached) for level in by_level], m))
    rows = []
    for method in methods:
        row = [method]
        for price in (level[method] for level in by_level):
            row += ["-" if math.isinf(price.nfe) else f"{price.nfe:.1f}", f"{price.reached}/{price.problems}"]
        rows.append(row)
    return ["solver", *(text for level in LEVELS for text in (f"NFE to {level:g}", "reached"))], rows


def budgets(all_curves: Sequence[Curve]) -> list[int]:
    """The budgets of all curves, increasing."""
    return sorted({b for c in all_curves for b in c.budgets})


@dataclass(frozen=True)
class Split:
    """The best solver for a network at one budget: the errors of the solver, of the network and of both, in units of the
    scale."""

    target: str
    path: str
    nfe: int
    method: str
    solver: float
    model: float
    total: float


def splits(results: Iterable[Result]) -> list[Split]:
    """The errors of solver and model in the results that measured both; seeds are averaged."""
    gathered: dict[tuple[str, str, int], dict[str, list[tuple[float, float, float]]]] = {}
    for r in results:
        parts = [r.value(name) for name in ("endpoint", "model", "total")]
        if r.status == "ok" and r.scale and None not in parts:
            cell = r.cell
            solver, model, total = (part / r.scale for part in parts if part is not None)
            by_method = gathered.setdefault((cell.target, cell.path, cell.nfe), {})
            by_method.setdefault(cell.method, []).append((solver, model, total))
    found = []
    for (target, path, nfe), methods in sorted(gathered.items()):
        means = {m: [sum(part) / len(part) for part in zip(*values, strict=True)] for m, values in methods.items()}
        best = min(means, key=lambda m: means[m][0])
        found.append(Split(target, path, nfe, best, *means[best]))
    return found
