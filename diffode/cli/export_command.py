"""``diffode export``: stored results, or a solver's table, for other programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from diffode.cli import completed
from diffode.cli.bench_command import chosen_suite, store_file
from diffode.cli.output import output_option, store_option

if TYPE_CHECKING:
    from diffode.studies.exported import Form, Line
    from diffode.tableau.written import Form as Written


@click.command("export")
@click.argument("suite", required=False, shell_complete=completed.suites)
@click.option(
    "--as", "text", type=click.Choice(["python", "json", "diffusers"]), default=None,
    help="Write the table of a solver instead, SUITE being its spec: as a Python function that needs nothing, as plain JSON, "
    "or as a scheduler class of diffusers.",
)  # fmt: skip
@click.option("--path", default=None, help="With --as: path spec; edm unless given.")
@click.option("--grid", default=None, help="With --as: a grid spec, times or levels; karras unless given.")
@click.option("--nfe", type=click.IntRange(1), default=None, help="With --as and a named grid: evaluations; 10 unless given.")
@click.option("--file", "text_file", default=None, help="With --as: the file to write; the terminal unless given.")
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
    text: Written | None,
    path: str | None,
    grid: str | None,
    nfe: int | None,
    text_file: str | None,
    csv_file: str | None,
    parquet_file: str | None,
    line: Line,
    seeds: tuple[int, ...],
    imports: tuple[str, ...],
    output: str,
    store: str | None,
) -> None:
    """Write the stored results of SUITE, or all that the store holds, as CSV or Parquet, whole or not at all.

    Without SUITE, results of other code are in it too: their keys differ. With --as, SUITE is the spec of a solver, and its
    table is written as text.

    \b
    Example:  diffode export quick --csv quick.csv
              diffode export --parquet all.parquet --line cell
              diffode export dpmpp:order=2 --as python --nfe 8 --file sampler.py
    """
    if text is not None:
        ours = {"--csv": csv_file, "--parquet": parquet_file, "--seed": seeds, "--store": store}
        _write_table(suite, text, path, grid, nfe, text_file, imports, [name for name, given in ours.items() if given])
        return
    if text_file or path or grid or nfe:
        raise click.UsageError("--path, --grid, --nfe and --file go with --as, which writes the table of a solver")
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


def _write_table(
    spec: str | None,
    form: Written,
    path: str | None,
    grid: str | None,
    nfe: int | None,
    file: str | None,
    imports: tuple[str, ...],
    others: list[str],
) -> None:
    """Write the table of a solver as text, to a file or the terminal."""
    from diffode import solvers
    from diffode.extensions import import_extension
    from diffode.grids import is_named
    from diffode.output_files import make_folder, write_whole
    from diffode.tableau.written import counted, no_text_of

    if spec is None:
        raise click.UsageError("--as writes the table of a solver: diffode export SPEC --as python")
    if others:
        raise click.UsageError(f"{', '.join(others)} write stored results, --as the table of a solver: choose one")
    for module in imports:
        import_extension(module)
    solver, times = solvers.table_solver(spec), "karras" if grid is None else grid
    if solver.needs_statistics:
        raise no_text_of(spec)
    on = "edm" if path is None else path
    table = solver.within(on, times, nfe or 10) if is_named(times) else solver.tableau(on, times)
    if nfe not in (None, table.nfe) and not is_named(times):
        raise click.UsageError(
            f"--nfe {nfe} goes with a named grid; --grid {times} lists its own times, on which {spec} makes "
            f"{counted(table.nfe)}: leave one of them out"
        )
    text = table.written(form, solver=spec, grid=times)
    if file is None:
        click.echo(text, nl=False)
        return
    make_folder(file, "file")
    write_whole(file, text.encode(), "file")
    click.echo(f"{counted(table.nfe)}: {file}")
