"""Published samplers at which a training may begin, and the choice of the best of them on a few starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from diffode import grids, solvers
from diffode.errors import ArgumentError, BudgetError, NumericalError
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.universal.choice import choices, ranked, table_of
from diffode.paths import Path
from diffode.solvers.trained.bespoke import shipped_members
from diffode.tableau.stages import Stages

#: Solvers of published samplers at which training may begin.
SOLVERS = (
    "ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "ipndm_v:order=3", "lms:order=3", "deis:order=3", "deis:order=4",
    "dpmpp:order=2", "dpmpp:order=3", "dpm_m:order=2", "unipc:order=2", "unipc:order=3", "dpm:order=2", "edm_heun",
)  # fmt: skip
#: Grids that each of them is tried on.
GRIDS = (
    "shift:s=1", "kl_optimal", "log_snr", "polyexponential:rho=0.7", "karras:rho=2", "karras:rho=3", "karras:rho=5",
    "karras:rho=7", "karras:rho=12",
)  # fmt: skip
#: Number of candidates for a training.
ATTEMPTS = 6
#: Number of starts on which samplers are compared.
_FEW_STARTS = 64
#: Number of members of the universal codebook among the samplers that are compared.
_MEMBERS = 2


class Published(NamedTuple):
    """A published sampler at which a training may begin.

    Attributes:
        error: its mean end-point error on a few starts, in units of the scale.
        name: its solver and grid.
        stages: its table, in units of the scale.
    """

    error: float
    name: str
    stages: Stages


def candidates(problem: Problem, path: Path, nfe: int, begin_from: str | None) -> list[Published]:
    """The best published samplers on a few starts, one for each solver, the smallest error first."""
    unit = problem.unit
    few = Problem(problem.noise, problem.start[:_FEW_STARTS], problem.end[:_FEW_STARTS], unit, problem.first, problem.last)
    found = []
    for solver, grid in [] if begin_from == "universal" else _listed(begin_from):
        try:
            stages = Stages.of(solvers.table_solver(solver).within(path, grid, nfe)).scaled(1 / unit)
        except BudgetError:
            if begin_from is not None:
                raise
            continue
        if stages.nfe == nfe:
            error = few.error(stages)
            if math.isfinite(error):
                found.append(Published(error, f"{solver} @ {grid}", stages))
        elif begin_from is not None:
            raise BudgetError(f"begin_from {begin_from!r} has no run of exactly {nfe} evaluations, but of {stages.nfe}")
    if begin_from in (None, "universal"):
        found += _universal(few, path, nfe, unit)
    if begin_from is None:
        found += _members(few, nfe)
    if begin_from == "universal" and not found:
        raise BudgetError(f"there is no universal table for nfe={nfe} between these noise levels; begin from another sampler")
    found.sort(key=lambda published: published.error)
    best: dict[str, Published] = {}
    for published in found:
        best.setdefault(published.name.partition(" @ ")[0], published)
    if not best:
        raise NumericalError(f"no published sampler gives finite states with nfe={nfe} on this field; look at the field first")
    return list(itertools.islice(best.values(), ATTEMPTS))


def _universal(problem: Problem, path: Path, nfe: int, unit: float) -> list[Published]:
    """The universal table, if there is one for these levels and this number of evaluations."""
    try:
        table = solvers.table_solver("universal", scale=unit, dim=problem.dim).tableau(path, [path.t_max, path.t_min], nfe)
    except ArgumentError:
        return []
    stages = Stages.of(table).scaled(1 / unit)
    error = problem.error(stages)
    return [Published(error, "universal", stages)] if math.isfinite(error) else []


def _members(problem: Problem, nfe: int) -> list[Published]:
    """The members of the universal codebook that are best on these starts."""
    book = shipped_members().get(nfe, ())
    found = ranked(book, problem, choices(book, problem, (problem.dim,)))[:_MEMBERS]
    return [
        Published(error, f"universal:member={one.member},scale={one.unit * problem.unit:.4g}", table_of(book, problem, one))
        for error, one in found
        if math.isfinite(error)
    ]


def _listed(begin_from: str | None) -> Iterator[tuple[str, str]]:
    if begin_from is None:
        yield from itertools.product(SOLVERS, GRIDS)
        return
    solver, at, grid = (part.strip() for part in begin_from.partition("@"))
    if not at:
        grid = "karras"
    grids.registry.check(grid)
    yield solver, grid
