"""What ``diffode show`` tells of a solver: its source, options and training, and its table."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from diffode.cli.list_command import options_of_maker
from diffode.cli.methods_told import LAW_ONLY
from diffode.cli.output import print_facts
from diffode.cli.plain_text import plain_text

if TYPE_CHECKING:
    from diffode.statistics import Statistics

#: What stands in place of a table that a solver never writes.
_NO_TABLE = "It has no tableau: it runs by itself, and its steps depend on the solution or it is a map."
#: What stands in place of a table, or beside its absence, where statistics of the data are needed.
_OF_STATISTICS = "{} made of mean and covariance of the data, which a run takes from its field, as diffode sample does."


def solver_told(spec: str, path: str, grid: str, steps: int) -> dict[str, Any]:
    """What there is to tell of a solver, with its table on a path and a grid of so many steps."""
    from diffode import grids, paths, solvers
    from diffode.makers import option_names
    from diffode.solvers.solver import Solver, WritesTable
    from diffode.solvers.trained.bespoke import Bespoke, TrainedSolver
    from diffode.specs import parse_spec

    solver: Solver = solvers.get(spec)
    if not isinstance(solver, Bespoke):
        # Solvers that depend on the data are shown for scale 1 in two dimensions, unless the spec or a file sets these.
        solver = solver.for_field(1.0, 2)
    times = grids.spec_of(grid)
    if isinstance(solver, TrainedSolver) and steps not in solver.budgets:
        # It has tables for some numbers of steps alone.
        steps = min(solver.budgets, key=lambda budget: abs(budget - steps))
    # A list of times has as many steps as it says.
    table = (
        solver.tableau(paths.get(path), times, steps if grids.is_named(times) else None)
        if isinstance(solver, WritesTable) and not solver.needs_statistics
        else None
    )
    every = {name: getattr(solver, name) for name in option_names(type(solver)) or ()}
    # What a file holds is no option that a spec can spell.
    options = {name: value for name, value in every.items() if value is None or isinstance(value, str | int | float | tuple)}
    entry = solvers.registry.entry(parse_spec(solvers.registry.canonical(spec))[0])
    facts: dict[str, Any] = {
        "spec": solver.spec,
        "description": plain_text(inspect.getdoc(type(solver)) or ""),
        "source": solver.reference,
        "chart": solver.chart_name,
        **({} if (known := statistics_held(solver)) is None else {"statistics": kind_in_words(known.kind)}),
        "order": solver.convergence_order,
        "claimed order": solver.order,
        "NFE a step": solver.spends,
        "stochastic": solver.stochastic,
        **({"NFE of this run": table.nfe, "noise draws of this run": table.draws} if table else {}),
        **facts_of_training(solver),
        "options": options,
        "defaults": options_of_maker(entry.make),
    }
    rows: list[dict[str, Any]] = (
        [
            {
                "row": i,
                "time": row.time,
                "states": _plain(row.states),
                table.prediction: _plain(row.evaluations),
                "noise draws": _plain(row.draws),
                "output": i in table.outputs,
            }
            for i, row in enumerate(table.rows)
        ]
        if table
        else []
    )
    laid = "its own levels" if isinstance(solver, WritesTable) and solver.lays_levels else grid
    if table is not None:
        shown = f"Tableau on {path}, {laid}, {len(table.outputs) - 1} steps"
    elif isinstance(solver, WritesTable):
        shown = _OF_STATISTICS.format("Its tableau is")
    else:
        shown = f"{_NO_TABLE} {_OF_STATISTICS.format('Its jump is')}" if solver.needs_statistics else _NO_TABLE
    return {**facts, "tableau": rows, "title": shown, "prediction": table.prediction if table else None}


def statistics_held(solver: Any) -> Statistics | None:
    """Mean and covariance of the data of its training that a solver from a file holds; None if it needs none."""
    from diffode.learned.conditional.amed import LearnedAMED
    from diffode.learned.conditional.conditioned import ConditionedSolver
    from diffode.solvers.trained.bespoke import Bespoke

    if isinstance(solver, Bespoke):
        return solver.checkpoint.statistics
    if isinstance(solver, ConditionedSolver):
        return solver.table.statistics
    return solver.statistics if isinstance(solver, LearnedAMED) else None


def kind_in_words(kind: str) -> str:
    """The kind of some statistics, and what it means for a table.

    >>> kind_in_words("full")
    'full: a variance for each direction'
    """
    return f"{kind}: {'one variance for all directions' if kind == 'scale' else 'a variance for each direction'}"


def facts_of_training(solver: Any) -> dict[str, Any]:
    """What a generator was trained for, how good it is and what it costs beside the field, if the solver is one."""
    from diffode.solvers.trained.generators import Generator
    from diffode.solvers.trained.mapped import MapSolver
    from diffode.solvers.trained.shipped import ShippedMap

    if isinstance(solver, MapSolver):
        return _facts_of_map(solver.phi)
    if isinstance(solver, ShippedMap):
        return {f"held-out errors on {target}": _errors_by_jumps(one.phi) for target, one in solver.by_target().items()}
    if not isinstance(solver, Generator):
        return {}
    numbers = solver.trainee
    facts = numbers.facts
    told: dict[str, Any] = {"NFE": solver.nfe, "multiply-adds a row": solver.multiply_adds, "dimension": numbers.dim}
    if facts is not None:
        told |= {
            "trained on": f"{facts.target}, path {facts.path}, noise levels {solver.ends[0]:.4g} to {solver.ends[1]:.4g}",
            "held-out error": facts.held_out_error,
            "begun from": f"{facts.begun_from}, error {facts.start_error}",
        }
    for key, name in (("teacher", "teacher"), ("teacher_error", "teacher error"), ("training_error", "training error")):
        if hasattr(numbers, key):
            told[name] = getattr(numbers, key)
    return told


def _errors_by_jumps(phi: Any) -> str:
    """Errors by number of jumps in a line, and that of the Gaussian flow."""
    errors = ", ".join(f"{n} jump{'' if n == 1 else 's'} {error:.3g}" for n, error in phi.held_out.items())
    return f"{errors}; the Gaussian flow {phi.facts.start_error:.3g}"


def _facts_of_map(phi: Any) -> dict[str, Any]:
    """What a flow map is, and what its training says of it."""
    from diffode.maps import LearnedMap

    told: dict[str, Any] = {"map": phi.name, "goes": f"from t={phi.ends[0]:.4g} to t={phi.ends[1]:.4g} on {phi.path.spec}"}
    if phi.fixed_end:
        told["goes"] += ", to this end only"
    if phi.law_only:
        told["matches"] = LAW_ONLY
    if isinstance(phi, LearnedMap):
        network = f"{phi.kind} of width {phi.width} and depth {phi.depth}, {phi.parametrisation}"
        told |= {"dimension": phi.dim, "network": network}
        told |= {f"held-out error of {n} jump{'' if n == 1 else 's'}": error for n, error in phi.held_out.items()}
        if phi.facts is not None:
            told |= {"trained on": phi.facts.target, "Gaussian flow's error": phi.facts.start_error}
    return told


def _plain(values: Mapping[int, Any]) -> dict[int, Any]:
    """Coefficients as plain numbers: a list of them where each direction of the data has its own."""
    return {j: value if isinstance(value, float) else value.flatten().tolist() for j, value in values.items()}


def _coefficient(value: float | list[float]) -> str:
    """A coefficient, or the least and the largest of those for the directions of the data."""
    if not isinstance(value, list):
        return f"{value:+.6g}"
    low, high = min(value), max(value)
    return f"{low:+.6g}" if low == high else f"({low:+.6g} to {high:+.6g})"


def print_solver(facts: dict[str, Any]) -> None:
    """Print what :func:`solver_told` tells, and the table row by row."""
    facts = dict(facts)
    rows, title, prediction = (facts.pop(key) for key in ("tableau", "title", "prediction"))
    print_facts(facts)
    if prediction is None:
        click.echo(f"\n{title}")
        return
    click.echo(f"\n{title}: x_i = sum A_ij x_j + sum B_ij m_j + sum C_ik xi_k, m = {prediction}, xi = noise")
    for row in rows:
        named = (("x", row["states"]), ("m", row[prediction]), ("xi", row["noise draws"]))
        terms = [f"{_coefficient(value)} {letter}{j}" for letter, values in named for j, value in values.items()]
        mark = "*" if row["output"] else " "
        click.echo(f"{mark} x{row['row']:<3d} t={row['time']:<12.6g} {' '.join(terms) or 'start'}")
    click.echo("(* the solution at a time of the grid)")
