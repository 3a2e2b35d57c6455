"""What a solver is told of the data, if it asks for that: their statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field, GuidedField
from diffode.paths import Path
from diffode.solvers.direct import DirectSolver
from diffode.solvers.jumped import Jumped, landing
from diffode.solvers.registry import get, table_solver
from diffode.solvers.solver import Solver, check_jump
from diffode.statistics import Statistics

#: Factor by which the scale of statistics may differ from that of an exact field; beyond it they are in another unit.
_SAME_UNIT = 2.0

#: What anyone can do who has no statistics, on the command line too.
_WITHOUT = "leave jump= and the chart of the Gaussian (chart=gaussian and its like) out"


def informed(solver: str | Solver | Callable[..., Any], statistics: Statistics) -> Solver:
    """A solver, or that of a spec, with what it asks of the data: for ``jump=`` and for charts of the Gaussian.

    A solver that asks for nothing is handed back. ArgumentError if ``statistics`` are none; CapabilityError for ``jump=`` of a
    solver that writes no table, which :func:`diffode.solve` runs.

    >>> import diffode
    >>> known = diffode.Statistics.of_target("gauss2d")
    >>> table = informed("heun:chart=noise,jump=3", known).tableau("edm", "karras:rho=3", 2)
    >>> table.nfe, table.directed
    (4, True)
    """
    recipe = get(solver)
    check_jump(recipe.jump)
    if not recipe.needs_statistics:
        return recipe
    if not isinstance(statistics, Statistics):
        raise ArgumentError(f"statistics must be diffode.Statistics, got {statistics!r:.60}")
    if recipe.jump is None:
        return recipe.knowing(statistics)
    return Jumped(solver=table_solver(replace(recipe, jump=None).knowing(statistics)), jump=recipe.jump, statistics=statistics)


def informed_by(solver: Solver, statistics: Statistics | None) -> Solver:
    """A solver for a loop that owns the network, with the statistics that it asks for.

    Raises:
        ArgumentError: if it asks for statistics and there are none, or does not ask for those that are given.
    """
    check_told(solver, statistics)
    return solver if statistics is None else informed(solver, statistics)


def check_told(solver: Solver, statistics: Statistics | None) -> None:
    """Raise ArgumentError unless ``statistics`` for a loop that owns the network are what the solver asks for, if anything."""
    check_jump(solver.jump)
    _check_asked(solver, statistics)
    if statistics is None and solver.needs_statistics and not isinstance(solver, Jumped):
        raise ArgumentError(
            f"solver {solver.spec!r} has to know mean and covariance of what the network denoises, such as latents: pass "
            "statistics=diffode.Statistics.of_samples(latents), or of a field, diffode.fields.estimate_statistics(field)"
        )


def _check_asked(solver: Solver, statistics: Statistics | None) -> None:
    if statistics is not None and not isinstance(statistics, Statistics):
        raise ArgumentError(f"statistics must be diffode.Statistics, got {statistics!r:.60}")
    if statistics is not None and not solver.needs_statistics:
        raise ArgumentError(
            f"statistics go with a solver that asks for them, by jump=auto or a chart of the Gaussian, not with {solver.spec!r}"
        )


def for_run(solver: str | Solver | Callable[..., Any], field: Field, dim: int, statistics: Statistics | None = None) -> Solver:
    """The solver for a field whose rows have ``dim`` coordinates, with its scale and, if asked for, its statistics.

    A solver that follows the field itself keeps its option ``jump``, which :func:`before` is for.
    """
    recipe = get(solver).for_field(field.scale, dim)
    check_jump(recipe.jump)
    _check_asked(recipe, statistics)
    if isinstance(recipe, Jumped):
        recipe.statistics.check_dim(dim)
        _check_unit(recipe.statistics, field)
    if not recipe.needs_statistics or isinstance(recipe, Jumped):
        return recipe
    known = known_of(field, f"solver {recipe.spec!r}", dim, statistics)
    return recipe if isinstance(recipe, DirectSolver) else informed(recipe, known)


def known_of(field: Field, asker: str, dim: int, statistics: Statistics | None) -> Statistics:
    """The statistics for a run: those given, or the field's own; ArgumentError if there are none, or they are of other data.

    ``asker`` says what has to know them, for the error.
    """
    if field.source is not None:
        raise ArgumentError(
            f"{asker} follows the flow of a Gaussian with normal noise, and this field's noise comes from "
            f"source {field.source.spec!r}: {_WITHOUT}"
        )
    known = field.statistics if statistics is None else statistics
    if known is None:
        guided = isinstance(field, GuidedField)
        lacking = "a guided field" if guided else "this field"
        more = (
            ""
            if guided
            else " or from the field at high noise (diffode.fields.estimate_statistics(field)), and in a suite name a field of "
            "your own as FILE.py:ATTR,statistics=estimated"
        )
        raise ArgumentError(
            f"{asker} has to know mean and covariance of the data, and {lacking} knows none: {_WITHOUT}; or in Python pass "
            f"statistics=, from samples (Statistics.of_samples){more}"
        )
    if not isinstance(known, Statistics):
        raise ArgumentError(f"statistics must be diffode.Statistics, got {known!r:.60}")
    known.check_dim(dim)
    _check_unit(known, field)
    return known


def _check_unit(known: Statistics, field: Field) -> None:
    if isinstance(field, ExactField) and not 1 / _SAME_UNIT <= known.scale / field.scale <= _SAME_UNIT:
        raise ArgumentError(
            f"statistics have the scale {known.scale:.4g}, but the field's data {field.scale:.4g}: they are of other data, or "
            "in another unit"
        )


def before(
    solver: DirectSolver, known: Statistics, x: Tensor, path: Path, nfe: int | None
) -> tuple[DirectSolver, Tensor, Path | None]:
    """For a solver that follows a field itself: the solver without ``jump``, the state after it, and what is left of the path.

    None is left if the jump goes to the path's end.
    """
    time = landing(solver.jump, known, path, nfe, solver.convergence_order)
    left = None if time <= path.t_min else path if time >= path.t_max else path.between(time, path.t_min)
    return replace(solver, jump=None), known.flow(x, path, path.t_max, max(time, path.t_min)), left
