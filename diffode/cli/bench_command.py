"""``diffode bench``: run a suite, resume what is stored, rank, and report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from diffode.cli import completed
from diffode.cli.output import (
    OUTPUT,
    field_options,
    field_text,
    guide_option,
    json_option,
    output_option,
    print_json,
    print_table,
    schedule_option,
    source_option,
    store_option,
)
from diffode.cli.progress_bar import progress_bar

if TYPE_CHECKING:
    from diffode.studies import Result, Suite
    from diffode.studies.ranking import Curve


@click.command("bench")
@click.argument("suite", default="quick", shell_complete=completed.suites)
@click.option("--jobs", type=click.IntRange(1), default=None, help="Worker processes, one thread each; default: the cores.")
@click.option(
    "--engine",
    default=None,
    help="What computes: local (default), dask (a cluster of this machine), dask://HOST:PORT, or yours.",
)
@click.option("--force", is_flag=True, help="Compute stored results again.")
@click.option(
    "--seed", "seeds", type=click.IntRange(0, 2**63 - 1), multiple=True, help="Run these seeds instead of the suite's."
)
@click.option("--import", "imports", multiple=True, help="Module or .py file that registers your own solvers or targets.")
@click.option("--field", default=None, help="Run the suite's solvers on MODULE:ATTR, FILE.py:ATTR or trained:NAME instead.")
@click.option("--path", default=None, help="Path of that field; a diffode Field has its own.")
@source_option
@schedule_option
@guide_option
@click.option("--map", "maps", multiple=True, help="Run this flow map as well: a file, FILE.py:ATTR or MODULE:ATTR.")
@field_options
@click.option("--no-report", is_flag=True, help="Only compute and rank.")
@output_option
@store_option
@json_option
def command(
    suite: str,
    jobs: int | None,
    engine: str | None,
    force: bool,
    seeds: tuple[int, ...],
    imports: tuple[str, ...],
    field: str | None,
    path: str | None,
    source: str | None,
    schedule: str | None,
    guide: str | None,
    maps: tuple[str, ...],
    kind: str | None,
    dim: str | None,
    scale: float | None,
    truth: str | None,
    no_report: bool,
    output: str,
    store: str | None,
    as_json: bool,
) -> int:
    """Run SUITE (one that diffode list names, such as quick, or a TOML file), print a ranked table and write a report folder.

    Stored results are not computed again; a killed run goes on where it stopped. Failed runs are rows with a reason. With
    --field the suite's solvers, grids and budgets run on a field of your own, whose reference is an integrator of high order
    with its error estimate unless a closed form is known.

    \b
    Example:  diffode bench quick
              diffode bench my_suite.toml --import my_solvers.py
              diffode bench quick --field my_field.py:velocity --kind velocity --path vp --dim 2
              diffode bench my_suite.toml --source student:dof=128
              diffode bench schedules --schedule scheduler_config.json
              diffode bench my_suite.toml --guide label=three,weight=7.5
              diffode bench quick --map ring8-map.safetensors --map my_map.py:phi
              diffode bench full --engine dask://login-node:8786
    """
    from diffode.errors import WorkerError
    from diffode.studies import Store, run_suite
    from diffode.studies.report_content import check_report, current_report

    chosen = chosen_suite(suite, imports, seeds)
    own: list[str] = []
    if source is not None:
        if field is not None:
            raise click.UsageError("--source goes with a suite's targets, whose fields are known, and not with --field")
        chosen, own = from_source(chosen, source), ["--source", source]
    if schedule is not None:
        if field is not None:
            raise click.UsageError("--schedule goes with a suite's targets; a field of your own has its --path")
        chosen, own = on_named_schedule(chosen, schedule), [*own, "--schedule", schedule]
    if guide is not None:
        if field is not None:
            raise click.UsageError("--guide goes with a suite's targets that have labels, and not with --field")
        chosen, own = guided(chosen, guide), [*own, "--guide", guide]
    if field is not None:
        chosen = on_own_field(chosen, field_text(field, kind, dim, scale, truth), path, known_truth=truth is not None)
        options = {"--field": field, "--path": path, "--kind": kind, "--dim": dim, "--scale": scale, "--target": truth}
        own = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    elif any(value is not None for value in (path, kind, dim, scale, truth)):
        raise click.UsageError("--path, --kind, --dim, --scale and --target go with --field; a suite names its own targets")
    if maps:
        chosen = with_maps(chosen, maps)
        own += [word for one in maps for word in ("--map", one)]
    place = report_folder(output, chosen)
    if not no_report:
        check_report(chosen, place)
    file = store_file(output, store)
    with progress_bar(f"{chosen.name}: {len(chosen.cells):,} runs") as advance:
        try:
            summary = run_suite(chosen, file, engine=engine, jobs=jobs, force=force, progress=advance)
        except WorkerError as error:
            places = {"--output": None if output == OUTPUT else output, "--store": store, "--engine": engine}
            own += [word for key, value in places.items() if value is not None for word in (key, str(value))]
            raise WorkerError(f"{error}; go on with: {rerun_command(suite, imports, seeds, own)}") from error
    click.echo(
        f"{summary.computed:,} computed in {summary.seconds:.1f} s, {summary.stored:,} found stored, {summary.failed:,} failed",
        err=True,
    )
    if summary.damaged:
        click.echo(f"damaged rows left out and computed again: {summary.damaged:,}", err=True)
    if summary.senseless:
        reasons = dict.fromkeys(reason for _, reason in summary.senseless)
        click.echo(f"{len(summary.senseless):,} runs make no sense and are left out: {next(iter(reasons))}", err=True)
        for reason in list(reasons)[1:]:
            click.echo(f"  {reason}", err=True)
    if summary.results is None:
        with Store(file) as opened:
            results = opened.get(summary.cells)
    else:
        results = list(summary.results)
    page, again = None, rerun_command(suite, imports, seeds, own)
    if not no_report:
        page = current_report(chosen, results, place, command=again)
    if not no_report and page is None:
        # What draws takes longer to import than to tell that nothing is to be drawn.
        from diffode.studies.report import write_report

        page = write_report(chosen, results, place, command=again, jobs=jobs)
    print_ranking(chosen, results, page, as_json)
    wordless = without_a_number(results, [map_spec(one) for one in maps])
    for spec in wordless:
        click.echo(f"{spec} has not a single number: {reason_of(results, spec)}", err=True)
    # A report without a single number counts as a failure, and so does a map that was asked for and has none.
    return 3 if wordless or all(r.status != "ok" for r in results) else 0


def without_a_number(results: Sequence[Result], specs: Sequence[str]) -> list[str]:
    """The solvers out of some specs that have no result but failures."""
    good = {r.cell.solver for r in results if r.status == "ok"}
    return [spec for spec in specs if spec not in good]


def reason_of(results: Sequence[Result], spec: str) -> str:
    """The reason of a solver's first failure."""
    return next((r.reason for r in results if r.cell.solver == spec), "all of its runs make no sense and are left out")


def map_spec(place: str) -> str:
    """The solver's spec of a flow map, a file or a place of code."""
    from diffode.extensions import is_place
    from diffode.specs import format_spec

    return format_spec("map", {"of" if is_place(place) else "file": place})


def chosen_suite(name: str, imports: tuple[str, ...], seeds: tuple[int, ...]) -> Suite:
    """The suite of a command line, after the import of the user's modules, with other seeds if these are given."""
    from dataclasses import replace

    from diffode.extensions import import_extension
    from diffode.studies import load_suite

    for module in imports:
        import_extension(module)
    suite = load_suite(name)
    cells = suite.cells
    if seeds:
        cells = tuple(dict.fromkeys(replace(cell, seed=seed) for cell in cells for seed in seeds))
    return replace(suite, cells=cells, imports=(*suite.imports, *imports))


def on_own_field(suite: Suite, field: str, path: str | None, *, known_truth: bool) -> Suite:
    """The suite's solvers, grids and budgets on one field of the user."""
    from dataclasses import replace

    from diffode.fields import ExactField
    from diffode.fields.own import FieldText
    from diffode.studies.problem import field_of, path_of
    from diffode.studies.suite import plain_name

    on = path_of(field, path).spec
    # A field that is exact has no error of its own.
    known = (known_truth or field.startswith("trained:")) and not isinstance(field_of(field, on), ExactField)
    measured = ("endpoint", "model", "total") if known else ("endpoint",)
    # One problem replaces many, with the points and the tolerance of the first.
    first = replace(suite.cells[0], target=field, path=on, metrics=measured)
    cells = (replace(first, seed=c.seed, grid=c.grid, solver=c.solver, nfe=c.nfe) for c in suite.cells)
    name = plain_name(f"{suite.name}-{FieldText.read(field).place.rpartition(':')[2]}")
    summary = f"The solvers of {suite.name} on {field}"
    return replace(suite, name=name, summary=summary, cells=tuple(dict.fromkeys(cells)))


def from_source(suite: Suite, source: str) -> Suite:
    """The suite's runs with noise of another law."""
    from diffode.fields.problem_text import problem_text

    return _renamed(suite, lambda target: problem_text(target, source), f"from-{source}")


def guided(suite: Suite, guidance: str) -> Suite:
    """The suite's runs with guidance."""
    from diffode.fields.problem_text import problem_text

    return _renamed(suite, lambda target: problem_text(target, None, guidance), f"guided-{guidance}")


def _renamed(suite: Suite, text_of: Callable[[str], str], what: str) -> Suite:
    """The suite with other texts of its targets."""
    from dataclasses import replace

    from diffode.studies.problem import field_of
    from diffode.studies.suite import plain_name

    texts = {target: text_of(target) for target in dict.fromkeys(c.target for c in suite.cells)}
    for text in texts.values():
        # What does not go with a target is told of before anything runs.
        field_of(text, suite.cells[0].path)
    cells = tuple(replace(cell, target=texts[cell.target]) for cell in suite.cells)
    return replace(suite, name=plain_name(f"{suite.name}-{what}"), cells=cells)


def on_named_schedule(suite: Suite, schedule: str) -> Suite:
    """The suite's runs on a published schedule, or on that of a file of diffusers."""
    from diffode.studies.question import on_schedule, path_of_schedule

    return on_schedule(suite, path_of_schedule(schedule))


def with_maps(suite: Suite, maps: Sequence[str]) -> Suite:
    """A suite with flow maps beside its solvers, on all its problems and budgets; they lay their own times."""
    from dataclasses import replace

    from diffode import solvers

    specs = [map_spec(one) for one in maps]
    for spec in specs:
        # A map that can't be read is told of before anything runs.
        solvers.get(spec)
    grid = suite.cells[0].grid
    more = (replace(cell, solver=spec, grid=grid) for spec in specs for cell in suite.cells)
    return replace(suite, name=f"{suite.name}-maps", cells=tuple(dict.fromkeys((*suite.cells, *more))))


def report_folder(output: str, suite: Suite) -> FilePath:
    """The folder of a suite's report."""
    return FilePath(output) / suite.name


def store_file(output: str, store: str | None) -> FilePath:
    """The file of the result store."""
    return FilePath(store) if store else FilePath(output) / "results.sqlite"


def rerun_command(suite: str, imports: tuple[str, ...], seeds: tuple[int, ...], own: Sequence[str] = ()) -> str:
    """The command that makes a report again."""
    words = ["diffode", "bench", suite]
    words += [word for module in imports for word in ("--import", module)]
    words += [word for seed in seeds for word in ("--seed", str(seed))]
    return shlex.join([*words, *own])


def print_ranking(suite: Suite, results: list[Result], page: FilePath | None, as_json: bool) -> None:
    """Print the best solver at each NFE, the NFE needed for an error, failures, and the place of the report."""
    from diffode.studies.guided_ranking import HEADER, by_weight, sentence
    from diffode.studies.low_starts import low_starts
    from diffode.studies.ranking import budgets, curves, in_units, price_table, splits, standings, unranked

    all_curves = curves(results)
    failed = [r for r in results if r.status != "ok"]
    for remark in (remarks := low_starts(suite)):
        click.echo(remark, err=True)
    if as_json:
        print_json({**_ranking_json(suite, results, all_curves, failed, page), "remarks": remarks})
        return
    best = []
    for nfe in budgets(all_curves):
        ranked = standings(all_curves, nfe)[:3]
        if ranked:
            best.append([str(nfe), *(f"{s.method} {s.error:.1e}" for s in ranked), *[""] * (3 - len(ranked))])
    metric = suite.cells[0].metrics[0]
    unit = in_units(metric, "the target's scale")
    title = f"Best solver at each NFE (geometric mean of {metric}{unit})"
    if reason := unranked(all_curves):
        click.echo(f"{title}: {reason}")
    else:
        print_table(title, ["NFE", "best", "second", "third"], best)
    header, rows = price_table(all_curves)
    if rows:
        print_table("NFE needed to reach an error (median over targets and paths)", header, rows)
    apart = [
        [s.target, s.path, str(s.nfe), s.method, f"{s.solver:.1e}", f"{s.model:.1e}", f"{s.total:.1e}"] for s in splits(results)
    ]
    if apart:
        header = ["network", "path", "NFE", "best solver", "solver's error", "model's error", "together"]
        print_table("Solver's error and model's error, in units of the scale", header, apart)
    if guided_problems := by_weight(all_curves):
        print_table("Best solver by weight of guidance", list(HEADER), [one.row for one in guided_problems])
        if told := sentence(guided_problems):
            click.echo(told)
    if failed:
        print_table(
            f"{len(failed)} failures",
            ["target", "path", "solver", "NFE", "reason"],
            [[r.cell.target, r.cell.path, r.cell.solver, str(r.cell.nfe), r.reason] for r in failed[:10]],
        )
    if page is not None:
        click.echo(f"report: {page}")


def _ranking_json(
    suite: Suite, results: list[Result], all_curves: list[Curve], failed: list[Result], page: FilePath | None
) -> dict[str, Any]:
    from diffode.studies.guided_ranking import by_weight
    from diffode.studies.ranking import LEVELS, budgets, prices, splits, standings

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "suite": suite.name,
        "standings": {
            str(nfe): [
                {"solver": s.method, "error": s.error, "wins": s.wins, "problems": s.problems}
                for s in standings(all_curves, nfe)
            ]
            for nfe in budgets(all_curves)
        },
        "nfe_to_reach": {
            f"{level:g}": [{"solver": p.method, "nfe": finite(p.nfe), "reached": p.reached} for p in prices(all_curves, level)]
            for level in LEVELS
        },
        "guided": [
            {"weight": g.weight, "nfe": g.nfe, "evaluations": g.evaluations, "best": [vars(s) for s in g.best]}
            for g in by_weight(all_curves)
        ],
        "splits": [vars(s) for s in splits(results)],
        "failures": [{"solver": r.cell.solver, "target": r.cell.target, "nfe": r.cell.nfe, "reason": r.reason} for r in failed],
        "report": str(page) if page else None,
    }
