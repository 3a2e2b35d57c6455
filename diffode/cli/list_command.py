"""``diffode list``: the registered names."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from diffode.cli.output import json_option, print_json, print_table
from diffode.cli.plain_text import plain_text
from diffode.cli.remembered import is_of_package, remembered
from diffode.errors import DiffodeError

_KINDS = (
    "targets", "sources", "paths", "grids", "solvers", "metrics", "bridges", "methods", "suites", "measures", "holds",
)  # fmt: skip


#: What trainings give, in words for those who choose one; the others' functions say it.
_OWN_WORDS = {
    "bespoke": "a table for one target and number of evaluations: its weights, scales and levels",
    "universal": "the best member of a codebook of tables that ship, with a unit of length and a dimension for the field",
    "jump": "a table whose first jump is free, with its levels",
    "head": "such a table with a small network after each evaluation",
    "nodes": "the exact map from noise to data at nodes, in one or two dimensions: a yardstick",
    "conditioned": "a table whose numbers depend on the sample, in the Gaussian's chart too",
    "amed": "AMED: the times of inner evaluations from a network, after a jump too",
    "gits": "a grid by dynamic programming over the local errors of Euler's method",
    "dmn": "a grid that minimises a bound on the global error",
    "ld3": "a grid whose levels are trained through the solver, that of a jump with them",
    "dc": "UniPC whose newest denoised point is moved in time, by a ratio for each step (DC-Solver); for many NFE too",
    "ld3_decoupled": "a grid, and levels of its own at which the field is asked",
    "search": "the best of the published grids",
}


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """List what is registered: targets, sources, paths, grids, solvers, metrics, bridges, methods, suites, or all of them; and
    the measures and holds of memories (diffode memory).

    Options are shown with their defaults, and with their possible values where these are few; diffode show NAME tells more.
    Solvers also have the names that other programs use for them.

    \b
    Example:  diffode list solvers
    """
    kinds = [kind] if kind else list(_KINDS)
    listed = remembered(("list", *kinds), lambda: ({name: list(rows_of(name)) for name in kinds}, _all_of_package(kinds)))
    if as_json:
        print_json({name: [dict(row) for row in rows] for name, rows in listed.items()})
        return
    for name, rows in listed.items():
        header = list(rows[0]) if rows else ["name"]
        print_table(name, header, [[row[column] for column in header] for row in rows])


def registries() -> dict[str, Any]:
    """The registries by the word for one of their things."""
    from diffode import bridges, grids, hippo, metrics, paths, solvers, sources, targets
    from diffode.hippo import holds

    return {
        "target": targets.registry, "path": paths.registry, "grid": grids.registry, "solver": solvers.registry,
        "metric": metrics.registry, "source": sources.registry, "bridge": bridges.registry, "measure": hippo.registry,
        "hold": holds.registry,
    }  # fmt: skip


def _all_of_package(kinds: Sequence[str]) -> bool:
    """Whether everything that is registered is this package's own."""
    chosen = [registry for word, registry in registries().items() if f"{word}s" in kinds]
    return all(is_of_package(registry, name) for registry in chosen for name in registry.names())


def rows_of(kind: str) -> Iterator[dict[str, str]]:
    """The rows of a list, their cells by the names of columns."""
    if kind == "suites":
        from diffode.studies import load_suite, suite_names

        for name in suite_names():
            suite = load_suite(name)
            yield {"name": name, "summary": suite.summary, "runs": f"{len(suite.cells):,}"}
    elif kind == "methods":
        yield from _methods()
    elif kind == "targets":
        from diffode import targets

        for name in targets.names():
            target = targets.get(name)
            described = ", ".join(targets.tags(name))
            yield {"name": name, "summary": targets.card(name).summary, "dim": str(target.dim), "tags": described}
    else:
        registry = registries()[kind.removesuffix("s")]
        also: dict[str, list[str]] = {}
        for elsewhere, spec in registry.aliases.items():
            also.setdefault(spec.partition(":")[0], []).append(elsewhere)
        for name in registry.names():
            try:
                entry = registry.entry(name)
            except DiffodeError as error:
                yield {"name": name, "summary": str(error), "options": ""} | ({"also called": ""} if also else {})
                continue
            free = {key: value for key, value in options_of_maker(entry.make).items() if key not in entry.preset}
            options = ", ".join(f"{key}={value}" for key, value in free.items())
            row = {"name": name, "summary": plain_text(entry.summary), "options": options}
            yield {**row, "also called": ", ".join(also.get(name, ()))} if also else row


def _methods() -> Iterator[dict[str, str]]:
    """The ways to train: what each gives, from what it learns, and what it makes small."""
    from diffode.learned import MAP_METHODS
    from diffode.learned.methods import METHODS

    learns = {"exact": "field", "none": "data", "own": "data and itself"}
    for name, method in METHODS.items():
        row = MAP_METHODS.get(name)
        if row is None:
            summary = _OWN_WORDS.get(name) or plain_text((inspect.getdoc(method.make) or "").partition("\n")[0])
            yield {"name": name, "gives": "solver or grid", "learns from": "field", "summary": summary}
        else:
            from_ = " or ".join(learns[teacher] for teacher in row.teachers)
            yield {"name": name, "gives": "flow map", "learns from": from_, "summary": row.objective}


def options_of_maker(make: Callable[..., Any]) -> dict[str, str]:
    """The options of a maker with their defaults as a spec writes them, and with their possible values if these are listed.

    >>> from diffode import solvers
    >>> options_of_maker(solvers.registry.entry("dpmpp_2m_sde").make)["form"]
    'midpoint (or heun)'
    """
    from diffode.makers import parameters_of
    from diffode.specs import written_value

    found = {}
    for parameter in parameters_of(make) or ():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or parameter.name == "outcome":
            continue
        text = "..." if parameter.default is parameter.empty else written_value(parameter.default)
        others = [choice for choice in _choices(make, parameter) if choice != text]
        found[parameter.name] = f"{text} (or {', '.join(others)})" if others else text
    return found


def _choices(make: Callable[..., Any], parameter: inspect.Parameter) -> list[str]:
    """The possible values of an option whose type is a Literal, or a name for one."""
    annotation = parameter.annotation
    owners = [make, *(base for base in getattr(make, "__mro__", ()) if parameter.name in vars(base).get("__annotations__", {}))]
    for owner in owners if isinstance(annotation, str) else ():
        module = inspect.getmodule(owner)
        named = re.fullmatch(r"[\w.]+", annotation)
        if named and hasattr(module, annotation):
            annotation = getattr(module, annotation)
            break
    if isinstance(annotation, str):
        listed = re.fullmatch(r"Literal\[(.*)\]", annotation)
        return [part.strip().strip("'\"") for part in listed[1].split(",")] if listed else []
    return [str(value) for value in typing.get_args(annotation)] if typing.get_origin(annotation) is typing.Literal else []
