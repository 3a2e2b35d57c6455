"""``diffode new``: a starting point for a solver, a target or a suite of one's own, with tests that pass."""

from __future__ import annotations

import keyword
import re
from pathlib import Path as FilePath
from string import Template

import click

from diffode.cli.output import json_option, print_json
from diffode.errors import ArgumentError

#: The texts that are filled in.
_TEXTS = FilePath(__file__).parent / "starts"
#: Names that are a module's, an identifier and a spec's at once.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}\Z")


@click.command("new")
@click.argument("kind", type=click.Choice(("solver", "target", "suite")))
@click.argument("name")
@click.option("--output", default=".", show_default=True, help="Folder that gets the files; made if missing.")
@json_option
def command(kind: str, name: str, output: str, as_json: bool) -> None:
    """Write a starting point of your own: a solver or a target with its tests and a suite that runs it, or a suite alone.

    The files work as they are: run what is printed, then put your own lines in place of the example's.

    \b
    Example:  diffode new solver my_solver
    """
    from diffode.output_files import writable, write_whole

    _check_name(kind, name)
    folder = FilePath(output)
    texts = _texts(kind, name)
    for file in texts:
        if (folder / file).exists():
            raise ArgumentError(f"{str(folder / file)!r} exists already, and is left as it is: choose another name or --output")
        writable(folder / file, make_folders=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        write_whole(folder / file, text.encode())
    told = _next(kind, name)
    if as_json:
        print_json({"files": [str(folder / file) for file in texts], "next": told})
        return
    click.echo("wrote " + ", ".join(str(folder / file) for file in texts))
    click.echo("next:\n" + "\n".join(f"  {line}" for line in ([] if output == "." else [f"cd {output}"]) + told))


def _check_name(kind: str, name: str) -> None:
    """Raise ArgumentError unless the name can be that of a file, of a thing in Python, and of one that is not registered."""
    from diffode import solvers, targets
    from diffode.studies import suite_names

    if not _NAME.match(name) or keyword.iskeyword(name):
        raise ArgumentError(
            f"name must be lower-case letters, digits and '_', and no word of Python, such as my_{kind}; got {name!r}"
        )
    taken = {"solver": solvers.names, "target": targets.names, "suite": suite_names}[kind]()
    if name in taken:
        raise ArgumentError(f"there is a {kind} {name!r} already: choose another name, such as my_{name}")


def _texts(kind: str, name: str) -> dict[str, str]:
    """The files by their names."""
    module, suite = f"{name}.py", f"{name}.toml"
    words = {
        "name": name, "module": name, "file": module, "suite": suite, "test": f"test_{module}",
        "Class": "".join(part.capitalize() for part in name.split("_") if part),
    }  # fmt: skip
    mine = {"imports": "", "targets": '"ring8", "bimodal1d"', "solvers": ""}
    files = {}
    if kind == "suite":
        words["file"] = suite
    else:
        files = {module: (kind, words), f"test_{module}": (f"test_{kind}", words)}
        mine["imports"] = f'"{module}"'
        if kind == "solver":
            mine["solvers"] = f'"{name}", '
        else:
            mine["targets"] = f'"{name}"'
    files[suite] = ("suite", words | mine | {"file": suite})
    return {
        file: Template((_TEXTS / f"{text}.txt").read_text(encoding="utf-8")).substitute(filled)
        for file, (text, filled) in files.items()
    }


def _next(kind: str, name: str) -> list[str]:
    """Commands that try the files."""
    run = f"diffode bench {name}.toml"
    if kind == "suite":
        return [run]
    judge = f"diffode show --import {name}.py {name}"
    return [f"python -m pytest test_{name}.py", judge, run]
