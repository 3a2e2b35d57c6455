"""``diffode recommend``: a solver and a grid for a budget, from stored results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from diffode.cli.bench_command import chosen_suite, on_own_field, store_file, with_maps
from diffode.cli.output import NFE_HELP, field_text, json_option, output_option, print_json, print_table, store_option

if TYPE_CHECKING:
    from diffode.studies.ranking import Curve


@click.command("recommend")
@click.option("--nfe", type=click.IntRange(1), required=True, help=NFE_HELP)
@click.option("--path", default=None, help="Only this path (a spec of the suite); default: all.")
@click.option("--target", default=None, help="Only this target; with --field, the target that it approximates.")
@click.option("--field", default=None, help="Use what diffode bench --field stored of this field, named as it was there.")
@click.option("--kind", default=None, help="The --kind that bench was given.")
@click.option("--dim", default=None, help="The --dim that bench was given.")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=None, help="The --scale that bench was given.")
@click.option("--map", "maps", multiple=True, help="A flow map that bench was given, which is ranked as well.")
@click.option("--suite", default="quick", show_default=True, help="Suite whose stored results are used.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Number of methods to show.")
@click.option("--import", "imports", multiple=True, help="Module or .py file that registers your own solvers or targets.")
@click.option("--seed", "seeds", type=click.IntRange(0, 2**63 - 1), multiple=True, help="Seeds that bench was run with.")
@output_option
@store_option
@json_option
def command(
    nfe: int,
    path: str | None,
    target: str | None,
    field: str | None,
    kind: str | None,
    dim: str | None,
    scale: float | None,
    maps: tuple[str, ...],
    suite: str,
    top: int,
    imports: tuple[str, ...],
    seeds: tuple[int, ...],
    output: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Rank the stored results of a suite for a budget, with the certainty and scope of the ranking, and print lines to paste.

    \b
    Example:  diffode recommend --nfe 8 --path vp
              diffode recommend --nfe 8 --field my_field.py:velocity --kind velocity --path vp --dim 2
    """
    from diffode.errors import ArgumentError
    from diffode.studies import Store, keyed_cells
    from diffode.studies.ranking import coverage, curves
    from diffode.studies.recommendation import recommend

    chosen = chosen_suite(suite, imports, seeds)
    if field is not None:
        # The only problem of such a suite is the field on its path.
        text = field_text(field, kind, dim, scale, target)
        chosen, path, target = on_own_field(chosen, text, path, known_truth=target is not None), None, None
    elif kind is not None or dim is not None or scale is not None:
        raise click.UsageError("--kind, --dim and --scale go with --field")
    if maps:
        chosen = with_maps(chosen, maps)
    file = store_file(output, store)
    if not file.is_file():
        raise ArgumentError(f"there is no result store at {file}; run diffode bench {suite} first, or give --store")
    with Store(file) as opened:
        keyed = keyed_cells(chosen)
        results = opened.get(keyed)
        damaged = len(opened.damaged)
    cells = [cell for _, cell in keyed if path in (None, cell.path) and target in (None, cell.target)]
    stored, of_suite = curves(results), coverage(cells, results, damaged)
    if not stored:
        raise ArgumentError(
            f"nothing of suite {suite!r} is stored in {file}: run diffode bench {suite} first, or name the suite that was run, "
            "--suite NAME for one that diffode has or --suite FILE.toml for one of your own"
        )
    found = recommend(stored, nfe, path=path, target=target)
    used = [c for c in stored if path in (None, c.path) and target in (None, c.target)]
    covered = scope(used, known=field is None)
    lines = lines_to_paste(found[0].method, nfe)
    if as_json:
        ranking = [asdict(a) for a in found[:top]]
        facts = {"nfe": nfe, "path": path, "target": target, "field": field, "coverage": asdict(of_suite)}
        print_json({**facts, "ranking": ranking, "covers": covered, "paste": lines})
        return
    where = ", ".join(f"{k} {v}" for k, v in (("target", target), ("path", path)) if v) or "all targets and paths"
    print_table(
        f"Within {nfe} evaluations on {where} ({found[0].problems} problems)",
        ["solver", "error", "x best", "95 % of resamples", "first", "wins"],
        [
            [
                a.method,
                f"{a.error:.2e}",
                _ratio(a.ratio),
                f"{_ratio(a.ratio_low)} to {_ratio(a.ratio_high)}",
                f"{a.first:.0%}",
                str(a.wins),
            ]
            for a in found[:top]
        ],
    )
    best = found[0]
    if best.problems < 3:
        verdict = "one or two problems say little: no interval worth the name"
    elif best.first >= 0.95:
        verdict = "the choice hardly depends on which targets were tried"
    else:
        verdict = "the choice depends on which targets were tried: the next ones may be as good"
    solver, grid = solver_and_grid(best.method)
    click.echo(f"take {solver} on the grid {grid}: first in {best.first:.0%} of resamples of the problems; {verdict}")
    click.echo(covered)
    if of_suite.sentence:
        click.echo(f"this ranking is not of the whole suite: {of_suite.sentence}; run diffode bench {suite}", err=True)
    click.echo("\n" + "\n".join(lines))


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def solver_and_grid(method: str) -> tuple[str, str]:
    """The specs of solver and grid in a method of a ranking, which leaves out the grid ``karras``.

    >>> solver_and_grid("unipc:order=3 @ log_snr"), solver_and_grid("ddim")
    (('unipc:order=3', 'log_snr'), ('ddim', 'karras'))
    """
    solver, _, grid = method.partition(" @ ")
    return solver, grid or "karras"


def lines_to_paste(method: str, nfe: int) -> list[str]:
    """The calls that run a method with the solver, grid and budget of its measurement."""
    from diffode import grids, solvers
    from diffode.solvers.solver import WritesTable

    spec, grid = solver_and_grid(method)
    recipe = solvers.get(spec)
    noise = ", generator=0" if recipe.stochastic else ""
    lines = [f'diffode.solve(field, x, solver="{spec}", grid="{grid}", nfe={nfe}{noise})']
    # Listed times belong to one path, and a pipeline has another.
    if isinstance(recipe, WritesTable) and not recipe.lays_levels and grids.is_named(grid):
        steps = max(1, nfe // recipe.nfe_per_step)
        lines.append(f'scheduler = diffode.adapters.as_diffusers_scheduler("{spec}", like=pipe.scheduler, grid="{grid}")')
        lines.append(f"scheduler.set_timesteps({steps})  # without guidance, which makes two calls for each evaluation")
    return lines


def scope(used: Sequence[Curve], *, known: bool) -> str:
    """A sentence about the scope of the resampling."""
    targets, paths = (sorted({getattr(c, key) for c in used}) for key in ("target", "path"))
    what = "exact fields of" if known else "the field"
    named = ", ".join(targets) if len(targets) <= 8 else f"{len(targets)} targets ({', '.join(targets[:6])}, ...)"
    return (
        f"This covers {what} {named} on {', '.join(paths)}, without guidance. It says nothing of other data or paths, or "
        "of a guided model, where another solver may be far better: measure yours with diffode bench SUITE --field"
    )
