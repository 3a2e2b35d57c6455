"""What a report tells beside its ranking: the metrics that do not rank, and what trained solvers cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffode import solvers
from diffode.errors import DiffodeError
from diffode.learned.costs import OwnCost, own_cost
from diffode.studies.cell import Result
from diffode.studies.problem import field_of
from diffode.studies.ranking import Problem, ranking_metric


@dataclass(frozen=True)
class Further:
    """A metric that does not rank, on one problem: a value for each method and budget, averaged over seeds.

    Attributes:
        metric, target, path: the metric and the problem.
        nfe: the budgets, increasing.
        rows: methods with their values in the metric's own units, None without a run; the best at the last budget first.
        floor: the mean of the values that an exact sampler with as many points has, or of the references' errors.
    """

    metric: str
    target: str
    path: str
    nfe: tuple[int, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    floor: float


def further(results: Sequence[Result]) -> list[Further]:
    """The metrics that do not rank, by problem, in the order of the suite."""
    first = ranking_metric(results)
    gathered: dict[tuple[str, Problem], dict[str, dict[int, list[float]]]] = {}
    floors: dict[tuple[str, Problem], list[float]] = {}
    for r in results:
        cell = r.cell
        for m in r.measurements if r.status == "ok" else ():
            if m.name == first:
                continue
            place = m.name, (cell.target, cell.path)
            by_nfe = gathered.setdefault(place, {}).setdefault(cell.method, {})
            by_nfe.setdefault(cell.nfe, []).append(m.value)
            floors.setdefault(place, []).append(m.floor)
    found = []
    for (metric, (target, path)), methods in gathered.items():
        nfe = tuple(sorted({n for by_nfe in methods.values() for n in by_nfe}))
        rows = [
            (method, tuple(sum(by_nfe[n]) / len(by_nfe[n]) if n in by_nfe else None for n in nfe))
            for method, by_nfe in methods.items()
        ]
        rows.sort(key=lambda row: [float("inf") if value is None else value for value in reversed(row[1])])
        floor = floors[metric, (target, path)]
        found.append(Further(metric, target, path, nfe, tuple(rows), sum(floor) / len(floor)))
    return found


@dataclass(frozen=True)
class Priced:
    """What a trained solver costs on a target, for each of its evaluations, and what its training took."""

    solver: str
    target: str
    cost: OwnCost

    @property
    def asks(self) -> str:
        """What an evaluation asks."""
        return "its own network" if self.cost.instead else "the field"


def own_costs(results: Iterable[Result]) -> list[Priced]:
    """The costs of the solvers in results that are trained, or have networks of their own."""
    found = []
    for spec, target, path in dict.fromkeys((r.cell.solver, r.cell.target, r.cell.path) for r in results if r.status == "ok"):
        try:
            cost = own_cost(solvers.get(spec), field_of(target, path))
        except DiffodeError:  # A solver's file, or a target, of stored results may be gone.
            continue
        if cost != OwnCost():
            found.append(Priced(spec, target, cost))
    return sorted(found, key=lambda one: (one.target, one.solver))
