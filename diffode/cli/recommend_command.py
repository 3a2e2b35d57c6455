"""``diffode recommend``: which solver to take for a budget, from stored results."""

from __future__ import annotations

from dataclasses import asdict

import click

from diffode.cli.bench_command import chosen_suite, store_file
from diffode.cli.output import json_option, output_option, print_json, print_table, store_option


@click.command("recommend")
@click.option("--nfe", type=click.IntRange(1), required=True, help="Budget of evaluations.")
@click.option("--path", default=None, help="Only this path (a spec of the suite); default: all.")
@click.option("--target", default=None, help="Only this target; default: all.")
@click.option("--suite", default="quick", show_default=True, help="Suite whose stored results are used.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many to show.")
@click.option("--import", "imports", multiple=True, help="Module or .py file that registers your own solvers or targets.")
@click.option("--seed", "seeds", type=click.IntRange(0, 2**63 - 1), multiple=True, help="Seeds that bench was run with.")
@output_option
@store_option
@json_option
def command(
    nfe: int,
    path: str | None,
    target: str | None,
    suite: str,
    top: int,
    imports: tuple[str, ...],
    seeds: tuple[int, ...],
    output: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Rank the stored results of a suite for a budget, and say how sure the ranking is.

    \b
    Example:  diffode recommend --nfe 8 --path vp
    """
    from diffode.errors import ArgumentError
    from diffode.studies import Store, keyed_cells
    from diffode.studies.ranking import coverage, curves
    from diffode.studies.recommendation import recommend

    chosen = chosen_suite(suite, imports, seeds)
    file = store_file(output, store)
    if not file.is_file():
        raise ArgumentError(f"there is no result store at {file}; run diffode bench {suite} first, or give --store")
    with Store(file) as opened:
        keyed = keyed_cells(chosen)
        results = opened.get(keyed)
        damaged = len(opened.damaged)
    cells = [cell for _, cell in keyed if path in (None, cell.path) and target in (None, cell.target)]
    covered = coverage(cells, results, damaged)
    found = recommend(curves(results), nfe, path=path, target=target)
    if as_json:
        ranking = [asdict(a) for a in found[:top]]
        print_json({"nfe": nfe, "path": path, "target": target, "coverage": asdict(covered), "ranking": ranking})
        return
    where = ", ".join(f"{k} {v}" for k, v in (("target", target), ("path", path)) if v) or "all targets and paths"
    print_table(
        f"Within {nfe} evaluations on {where} ({found[0].problems} problems)",
        ["solver", "error", "x best", "95 % of resamples", "first", "wins"],
        [
            [
                a.method,
                f"{a.error:.2e}",
                f"{a.ratio:.2f}",
                f"{a.ratio_low:.2f} to {a.ratio_high:.2f}",
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
    click.echo(f"take {best.method}: first in {best.first:.0%} of resamples of the problems; {verdict}")
    if covered.sentence:
        click.echo(f"this ranking is not of the whole suite: {covered.sentence}; run diffode bench {suite}", err=True)
