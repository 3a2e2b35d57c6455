"""``diffode report``: the report of a suite from stored results, without computing."""

from __future__ import annotations

import click

from diffode.cli import completed
from diffode.cli.bench_command import chosen_suite, print_ranking, report_folder, rerun_command, store_file
from diffode.cli.output import json_option, output_option, print_json, store_option


@click.command("report")
@click.argument("suite", default="quick", shell_complete=completed.suites)
@click.option(
    "--seed", "seeds", type=click.IntRange(0, 2**63 - 1), multiple=True, help="Report these seeds instead of the suite's."
)
@click.option("--import", "imports", multiple=True, help="Module or .py file that registers your own solvers or targets.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(["pdf", "svg", "png", "csv", "latex", "markdown"]),
    help="Instead of the page, write curves as pictures or the ranking as a table, to the folder SUITE-export.",
)  # fmt: skip
@click.option(
    "--solver", "shown", multiple=True, shell_complete=completed.solvers,
    help="With --format: show this solver too, whatever its place.",
)  # fmt: skip
@output_option
@store_option
@json_option
def command(
    suite: str,
    seeds: tuple[int, ...],
    imports: tuple[str, ...],
    formats: tuple[str, ...],
    shown: tuple[str, ...],
    output: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Write the report of SUITE from stored results and print its ranking.

    \b
    Example:  diffode report quick --output diffode-report
              diffode report quick --format pdf --format latex --solver ddim
    """
    from diffode.errors import ArgumentError
    from diffode.studies import Store, keyed_cells
    from diffode.studies.failures import nothing_but_failures
    from diffode.studies.ranking import coverage

    if shown and not formats:
        raise click.UsageError("--solver goes with --format; the page has all solvers")
    chosen = chosen_suite(suite, imports, seeds)
    file = store_file(output, store)
    if not file.is_file():
        raise ArgumentError(f"there is no result store at {file}; run diffode bench {suite} first, or give --store")
    with Store(file) as opened:
        keyed = keyed_cells(chosen)
        results = opened.get(keyed)
        covered = coverage([cell for _, cell in keyed], results, len(opened.damaged))
    command_text = rerun_command(suite, imports, seeds)
    if not results:
        raise ArgumentError(f"nothing of suite {chosen.name!r} is stored in {file}; run it first: {command_text}")
    if failed := nothing_but_failures(chosen.name, results) if formats else "":
        raise ArgumentError(f"{failed}; diffode report {suite} without --format shows all of them")
    if told := covered.told("report", command_text):
        click.echo(told, err=True)
    if formats:
        from diffode.studies.publication import publish
        from diffode.studies.ranking import curves

        folder = report_folder(output, chosen)
        place = folder.with_name(f"{folder.name}-export")
        metric = chosen.cells[0].metrics[0]
        files = publish(chosen.name, curves(results), place, formats, command=command_text, metric=metric, shown=shown)
        if as_json:
            print_json({"suite": chosen.name, "files": [str(file) for file in files]})
        else:
            click.echo("\n".join(map(str, files)))
        return
    from diffode.studies.report import write_report

    page = write_report(chosen, results, report_folder(output, chosen), command=command_text)
    print_ranking(chosen, results, page, as_json)
