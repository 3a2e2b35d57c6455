"""``diffode show``: one target or solver, in full."""

from __future__ import annotations

import inspect
from typing import Any

import click

from diffode.cli.output import json_option, print_json, print_table
from diffode.specs import parse_spec


@click.command("show")
@click.argument("spec")
@click.option("--steps", type=click.IntRange(1, 50), default=3, show_default=True, help="Steps of the tableau shown.")
@click.option("--path", default="edm", show_default=True, help="Path the tableau is written for.")
@click.option("--grid", default="karras", show_default=True, help="Grid the tableau is written for.")
@json_option
def command(spec: str, steps: int, path: str, grid: str, as_json: bool) -> None:
    """Show a target (its card, dimension, tags, moments) or a solver (source, order, options, tableau).

    \b
    Example:  diffode show dpmpp:order=2 --steps 4
              diffode show digits-gmm10
    """
    from diffode import solvers, targets
    from diffode.errors import UnknownNameError

    name = parse_spec(spec)[0]
    if name in targets.names():
        targets.get(spec)
        _show_target(name, as_json)
    elif name in solvers.names():
        _show_solver(spec, path, grid, steps, as_json)
    else:
        raise UnknownNameError("target or solver", name, [*targets.names(), *solvers.names()])


def _show_target(name: str, as_json: bool) -> None:
    from diffode import targets

    target, card = targets.get(name), targets.card(name)
    facts: dict[str, Any] = {
        "name": name,
        "summary": card.summary,
        "text": card.text,
        "dimension": target.dim,
        "components": getattr(target, "count", None),
        "scale": round(target.scale, 6),
        "tags": targets.tags(target),
        "source": card.source,
        "licence": card.licence,
        "content": target.content(),
        "changelog": list(card.changelog),
    }
    if as_json:
        print_json(facts)
        return
    shown = {
        key: ", ".join(value) if isinstance(value, list) else value for key, value in facts.items() if value not in (None, [])
    }
    print_table(name, ["", " "], [[key, str(value)] for key, value in shown.items()])


def _show_solver(spec: str, path: str, grid: str, steps: int, as_json: bool) -> None:
    from diffode import paths, solvers
    from diffode.solvers.direct import DirectSolver
    from diffode.solvers.solver import Solver
    from diffode.specs import option_names

    # For solvers that work in units of the data: plane data of scale 1, unless the spec says otherwise.
    solver: Solver = solvers.get(spec).for_field(1.0, 2)
    table = None if isinstance(solver, DirectSolver) else solver.tableau(paths.get(path), grid, steps)
    options = {name: getattr(solver, name) for name in option_names(type(solver)) or ()}
    facts = {
        "spec": solver.spec,
        "description": inspect.getdoc(type(solver)) or "",
        "source": solver.reference,
        "chart": solver.chart_name,
        "order": solver.convergence_order,
        "claimed order": solver.order,
        "NFE a step": solver.nfe_per_step,
        "stochastic": solver.stochastic,
        **({"NFE of this run": table.nfe, "noise draws of this run": table.draws} if table else {}),
        "options": options,
    }
    rows: list[dict[str, Any]] = (
        [
            {
                "row": i,
                "time": row.time,
                "states": dict(row.states),
                table.prediction: dict(row.evaluations),
                "noise draws": dict(row.draws),
                "output": i in table.outputs,
            }
            for i, row in enumerate(table.rows)
        ]
        if table
        else []
    )
    if as_json:
        print_json({**facts, "tableau": rows})
        return
    for key, value in facts.items():
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        click.echo(f"{key:16s} {text}" if "\n" not in text else f"{key}\n{inspect.cleandoc(text)}\n")
    if table is None:
        click.echo("\nIt has no tableau: its steps depend on the solution.")
        return
    click.echo(
        f"\nTableau on {path}, {grid}, {steps} steps: x_i = sum A_ij x_j + sum B_ij m_j + sum C_ik xi_k, "
        f"m = {table.prediction}, xi = noise"
    )
    for row in rows:
        terms = [f"{v:+.6g} x{j}" for j, v in row["states"].items()] + [
            f"{v:+.6g} m{j}" for j, v in row[table.prediction].items()
        ]
        terms += [f"{v:+.6g} xi{k}" for k, v in row["noise draws"].items()]
        mark = "*" if row["output"] else " "
        click.echo(f"{mark} x{row['row']:<3d} t={row['time']:<12.6g} {' '.join(terms) or 'start'}")
    click.echo("(* the solution at a time of the grid)")
