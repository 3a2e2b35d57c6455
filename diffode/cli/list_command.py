"""``diffode list``: the names one can use."""

from __future__ import annotations

from collections.abc import Iterator

import click

from diffode.cli.output import json_option, print_json, print_table

_KINDS = ("targets", "paths", "grids", "solvers", "metrics", "suites")


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """List what is registered: targets, paths, grids, solvers, metrics, suites, or all of them.

    \b
    Example:  diffode list solvers
    """
    kinds = [kind] if kind else list(_KINDS)
    listed = {name: list(_rows(name)) for name in kinds}
    if as_json:
        print_json({name: [dict(row) for row in rows] for name, rows in listed.items()})
        return
    for name, rows in listed.items():
        header = list(rows[0]) if rows else ["name"]
        print_table(name, header, [[row[column] for column in header] for row in rows])


def _rows(kind: str) -> Iterator[dict[str, str]]:
    if kind == "suites":
        from diffode.studies import load_suite, suite_names

        for name in suite_names():
            suite = load_suite(name)
            yield {"name": name, "summary": suite.summary, "runs": f"{len(suite.cells):,}"}
    elif kind == "targets":
        from diffode import targets

        for name in targets.names():
            target = targets.get(name)
            described = ", ".join(targets.tags(target))
            yield {"name": name, "summary": targets.card(name).summary, "dim": str(target.dim), "tags": described}
    else:
        from diffode import grids, metrics, paths, solvers
        from diffode.specs import Registry, option_names

        registries: dict[str, Registry[object]] = {
            "paths": paths.registry,  # type: ignore[dict-item]
            "grids": grids.registry,  # type: ignore[dict-item]
            "solvers": solvers.registry,  # type: ignore[dict-item]
            "metrics": metrics.registry,  # type: ignore[dict-item]
        }
        registry = registries[kind]
        for name in registry.names():
            entry = registry.entry(name)
            options = [option for option in option_names(entry.make) or () if option != "outcome"]
            yield {"name": name, "summary": entry.summary, "options": ", ".join(options)}
