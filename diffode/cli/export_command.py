"""``diffode export``: stored results as a table for other programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from diffode.cli import completed
from diffode.cli.bench_command import chosen_suite, store_file
from diffode.cli.output import output_option, store_option

if TYPE_CHECKING:
    from diffode.studies.exported import Form, Line


@click.command("export")
@click.argument("suite", required=False, shell_complete=completed.suites)
@click.option("--csv", "csv_file", default=None, help="Write this CSV file.")
@click.option("--parquet", "parquet_file", default=None, help="Write this Parquet file (needs pyarrow: diffode[parquet]).")
@click.option(
    "--line", type=click.Choice(["measurement", "cell"]), default="measurement", show_default=True,
    help="What a line stands for; with cell, each metric has a column for its value and one for its floor.",
)  # fmt: skip
@click.option("--seed", "seeds", type=click.IntRange(0, 2**63 - 1), multiple=True, help="Seeds that bench was run with.")
@click.option("--import", "imports", multiple=True, help="Module or .py file that registers your own solvers or targets.")
@output_option
@store_option
def command(
    suite: str | None,
    csv_file: str | None,
    parquet_file: str | None,
    line: Line,
    seeds: tuple[int, ...],
    imports: tuple[str, ...],
    output: str,
    store: str | None,
) -> None:
    """Write the stored results of SUITE, or all that the store holds, as CSV or Parquet, whole or not at all.

    Without SUITE, results of other code are in it too: their keys differ.

    \b
    Example:  diffode export quick --csv quick.csv
              diffode export --parquet all.parquet --line cell
    """
    from diffode.errors import ArgumentError
    from diffode.studies import Store, export, keyed_cells
    from diffode.studies.exported import check_export

    chosen: tuple[tuple[str | None, Form], ...] = ((csv_file, "csv"), (parquet_file, "parquet"))
    files = [(name, form) for name, form in chosen if name is not None]
    if not files:
        raise click.UsageError("give --csv FILE or --parquet FILE, or both")
    file = store_file(output, store)
    # A file may be written under any of its names; SQLite keeps the latest rows in files beside the store.
    taken = {os.path.realpath(f"{file}{suffix}"): f"the store {file}" for suffix in ("", "-wal", "-shm", "-journal")}
    for name, form in files:
        place = os.path.realpath(name)
        if place in taken:
            raise ArgumentError(f"--{form} {name} would replace {taken[place]}: choose another file")
        taken[place] = f"the other file, {name}"
        check_export(name, form)
    if suite is None and (seeds or imports):
        raise click.UsageError("--seed and --import go with a SUITE; without one all that is stored is written")
    if not file.is_file():
        raise ArgumentError(f"there is no result store at {file}; run diffode bench first, or give --store")
    with Store(file) as opened:
        results = opened.all() if suite is None else opened.get(keyed_cells(chosen_suite(suite, imports, seeds)))
        damaged = len(opened.damaged)
    if damaged:
        click.echo(f"damaged rows left out: {damaged:,}", err=True)
    if not results:
        raise ArgumentError(f"nothing is stored in {file}{f' for {suite}' if suite else ''}: run diffode bench first")
    for name, form in files:
        click.echo(f"{export(results, name, line=line, form=form):,} lines: {name}")
