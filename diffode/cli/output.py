"""Options that commands share, the place of results, and printing as JSON or as tables."""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from diffode.cli import completed

if TYPE_CHECKING:
    from diffode.verify import Report

_NUMBER = re.compile(r"[-+\d.,/e]*")

#: Default folder of reports and the result store.
OUTPUT = "diffode-report"

#: Help of every --nfe.
NFE_HELP = (
    "Budget of network calls. A step costs one with most solvers, two with heun or dpm:order=2, and twice that on a guided "
    "field: 8 steps of a guided model are --nfe 16."
)

source_option = click.option(
    "--source", default=None, help="Law of the noise: student:dof=128, density:law=logistic or a target; normal unless given."
)
schedule_option = click.option(
    "--schedule", default=None, metavar="NAME", shell_complete=completed.schedules,
    help="Schedule of a model: sd15, sdxl, flux, edm, another path, or its scheduler_config.json.",
)  # fmt: skip
guide_option = click.option(
    "--guide", default=None, help="Guidance: label=three,weight=7.5 (1 is the conditional field alone); kind=, low=, high=, ..."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of tables.")
output_option = click.option("--output", default=OUTPUT, show_default=True, help="Folder of the reports and the store.")
store_option = click.option("--store", default=None, help="Result store (SQLite); by default results.sqlite in --output.")


def field_options(command: Any) -> Any:
    """Add the options that describe a user's field: --kind, --dim, --scale, --target."""
    for option in reversed(
        (
            click.option(
                "--kind", default=None, help="What a function fn(x, t) of your own gives: velocity, noise, denoised or score."
            ),
            click.option("--dim", default=None, help="Coordinates a row of its x has, or the shape of a row such as 3x32x32."),
            click.option(
                "--scale", type=click.FloatRange(0, min_open=True), default=None, help="Root mean variance of its data."
            ),
            click.option(
                "--target",
                "truth",
                default=None,
                shell_complete=completed.targets,
                help="Target whose field it approximates: gives dim, scale and truth.",
            ),
        )
    ):
        command = option(command)
    return command


def field_text(place: str, kind: str | None, dim: str | None, scale: float | None, truth: str | None) -> str:
    """A user's field as a text, from :func:`field_options`; ArgumentError if ``place`` names none."""
    from diffode.errors import ArgumentError
    from diffode.fields.own import FieldText, row_shape

    if not FieldText.names(place) or "," in place:
        raise ArgumentError(
            f"{place!r} is not a field of your own: give MODULE:ATTR, FILE.py:ATTR or trained:NAME, without options, which "
            "only a suite takes"
        )
    return str(FieldText(place, kind, None if dim is None else row_shape(dim), scale, truth))


def writable(output: str | FilePath, what: str = "output") -> FilePath:
    """Try whether an output can be written, before the work whose result it will hold; nothing is left behind.

    Folders that are missing are no reason against it: every command makes them when it writes.

    Raises:
        ArgumentError: if it can't be written; the message names it and a remedy.
    """
    from diffode import output_files

    return output_files.writable(output, what, make_folders=True)


@contextmanager
def apart_from_prints() -> Iterator[None]:
    """Inside the block prints of a user's code go to stderr, so that stdout holds the answer alone."""
    with redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """A value that JSON can hold: numbers that are not finite become texts, ``"inf"`` and ``"nan"``."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of texts on stdout; columns of numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(header):
        numeric = all(_NUMBER.fullmatch(row[i]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False)
    console.print(table)
    console.print()


def print_report(report: Report, as_json: bool) -> int:
    """Print a report of checks, as text or as JSON, and return the exit code: 0 passed, 1 failed, 4 not judged."""
    if as_json:
        print_json(report.json())
    else:
        click.echo(str(report))
    return report.exit_code


def print_facts(facts: dict[str, Any]) -> None:
    """Print each fact as a line, and the rows of ``times`` as columns."""
    for key, value in facts.items():
        if key == "times":
            click.echo("\n" + "  ".join(f"{name:>12s}" for name in value[0]))
            for row in value:
                click.echo("  ".join(f"{number:12.6g}" for number in row.values()))
            continue
        if isinstance(value, dict):
            text = ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
        else:
            text = "none" if value is None else str(value)
        click.echo(f"{key:16s} {text}" if "\n" not in text else f"{key}\n{inspect.cleandoc(text)}\n")
