"""``diffode show``: a target, source, path, grid, solver, metric, bridge, method, measure or hold, in full."""

from __future__ import annotations

import inspect
import math
from typing import Any

import click

from diffode.cli import completed
from diffode.cli.list_command import options_of_maker, registries
from diffode.cli.methods_told import is_method, method_told
from diffode.cli.network_told import is_network, network_told
from diffode.cli.output import json_option, print_facts, print_json, print_table
from diffode.cli.plain_text import plain_text
from diffode.cli.remembered import is_of_package, remembered
from diffode.cli.solver_told import print_solver, solver_told

_KINDS = ("target", "source", "path", "grid", "solver", "metric", "bridge", "measure", "hold")


@click.command("show")
@click.argument("spec", shell_complete=completed.solvers)
@click.option("--steps", type=click.IntRange(1, 50), default=3, show_default=True, help="Steps of the tableau or grid shown.")
@click.option("--path", default="edm", show_default=True, help="Path the tableau or grid is written for.")
@click.option("--grid", default="karras", show_default=True, help="Grid the tableau is written for.")
@json_option
def command(spec: str, steps: int, path: str, grid: str, as_json: bool) -> None:
    """Show the meaning of a name or spec of any kind.

    A target: its card, dimension, tags. A source: its description and options. A path: alpha, sigma and rho at some times.
    A grid: its times. A solver: source, order, options, tableau. A metric: its description. A bridge: coupling, energy, laws.
    A way to train a flow map: what it makes small, source, cost, departures, options. A measure of memories: its window and
    clock. A hold: its order. A network that ships, trained:NAME: on what it was trained, and its errors. A name of several
    kinds is shown as each, a hold only if nothing else has its name; path:NAME, solver:NAME, hold:NAME and the like choose one.

    \b
    Example:  diffode show dpmpp:order=2 --steps 4
              diffode show digits-gmm10
              diffode show path:ddpm
              diffode show meanflow
    """
    told = remembered(("show", spec, steps, path, grid), lambda: _told(spec, steps, path, grid))
    if as_json:
        print_json(next(iter(told.values())) if len(told) == 1 else told)
        return
    for number, (kind, facts) in enumerate(told.items()):
        if number:
            click.echo()
        _PRINTED.get(kind, print_facts)(facts)
    if len(told) > 1:
        click.echo(f"\n{spec} names {len(told)} things; {' or '.join(f'{kind}:{spec}' for kind in told)} shows one of them")


def _told(spec: str, steps: int, path: str, grid: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """What there is to tell, by kind, and whether it depends on this package alone."""
    from diffode.errors import UnknownNameError
    from diffode.learned import MAP_METHODS

    known = registries()
    word, colon, rest = spec.partition(":")
    if is_network(spec):
        return {"network": network_told(spec)}, True
    if (word == "method" and rest) or is_method(spec):
        return {"method": method_told(rest if word == "method" else spec)}, True
    kinds = [word] if colon and rest and word in _KINDS and not any(word in r.names() for r in known.values()) else None
    asked = rest if kinds else spec
    found = [kind for kind in kinds or _KINDS if _knows(known[kind], asked)]
    if len(found) > 1:
        # Euler's rule for memories shares its name with the solver, which is what is looked for.
        found = [kind for kind in found if kind != "hold"]
    if not found:
        # If the kind was named, its registry raises the best error.
        if kinds:
            known[kinds[0]].check(asked)
        names = [name for registry in known.values() for name in registry.names()] + list(MAP_METHODS)
        advice = known["solver"].advised(asked)
        kind = "target, source, path, grid, solver, metric, bridge, method, measure or hold"
        also = [name for registry in known.values() for name in registry.aliases]
        raise UnknownNameError(kind, asked.partition(":")[0], names, also=also, advice=advice)
    shows = {
        "target": lambda: _target(asked),
        "source": lambda: _source(asked),
        "path": lambda: _path(asked, steps),
        "grid": lambda: _grid(asked, path, steps),
        "solver": lambda: solver_told(asked, path, grid, steps),
        "metric": lambda: _metric(asked),
        "bridge": lambda: _bridge(asked, steps),
        "measure": lambda: _measure(asked),
        "hold": lambda: _hold(asked),
    }
    told = {kind: shows[kind]() for kind in found}
    texts = [*((kind, asked) for kind in found), ("path", path), ("grid", grid)]
    return told, all(is_of_package(known[kind], text) for kind, text in texts)


def _knows(registry: Any, spec: str) -> bool:
    """Whether a registry knows a spec's name or place; the options may still be wrong."""
    from diffode.errors import ArgumentError
    from diffode.specs import parse_spec

    try:
        name = parse_spec(registry.canonical(spec))[0]
        if registry.is_place(name) and registry.of is not None:
            registry.make(spec)
        else:
            registry.entry(name)
    except ArgumentError as error:
        # A registered name whose spec can't be read is not unknown: what is wrong is the rest of it.
        if "option" in str(error) or spec.partition(":")[0].strip() in registry.names():
            raise
        return False
    return registry.of is not None or ":" not in name


def _source(spec: str) -> dict[str, Any]:
    from diffode import sources

    maker = registries()["source"].entry(spec.partition(":")[0]).make
    if ":" in spec:
        sources.get(spec)
    return {"source": spec, "description": plain_text(inspect.getdoc(maker) or ""), "options": options_of_maker(maker)}


def _path(spec: str, steps: int) -> dict[str, Any]:
    from diffode import grids, paths

    path = paths.get(spec)
    times = grids.get("time_uniform", path, max(steps, 1)).tolist()
    rows = [{"t": t, "alpha": path.alpha(t), "sigma": path.sigma(t), "rho": path.rho(t)} for t in times]
    return {
        "path": path.spec,
        "description": plain_text(inspect.getdoc(type(path)) or ""),
        "t_max": path.t_max,
        "t_min": path.t_min,
        "options": options_of_maker(registries()["path"].entry(spec.partition(":")[0]).make),
        "times": rows,
    }


def _grid(spec: str, path: str, steps: int) -> dict[str, Any]:
    from diffode import grids, paths
    from diffode.specs import parse_spec

    on, text = paths.get(path), grids.spec_of(spec)
    times = grids.get(text, on, steps if grids.is_named(text) else None).tolist()
    entry = grids.registry.entry(parse_spec(text)[0])
    return {
        "grid": text,
        "description": plain_text(inspect.getdoc(entry.make) or entry.summary) if grids.is_named(text) else "a list of numbers",
        "options": options_of_maker(entry.make) if grids.is_named(text) else {},
        "on": on.spec,
        "times": [{"t": t, "rho": on.rho(t)} for t in times],
    }


def _metric(spec: str) -> dict[str, Any]:
    from diffode import metrics

    entry = metrics.registry.check(spec, given=("outcome",))
    text = plain_text(inspect.getdoc(entry.make) or entry.summary)
    return {"metric": entry.name, "description": text, "options": options_of_maker(entry.make)}


def _bridge(spec: str, steps: int) -> dict[str, Any]:
    from diffode import bridges, grids
    from diffode.specs import parse_spec

    bridge = bridges.get(spec)
    entry = bridges.registry.entry(parse_spec(spec)[0])
    times = grids.get("time_uniform", bridge.interval, max(steps, 1)).tolist()
    laws = [bridge.law(t) for t in times]
    spread = [float(law.variance.mean() ** 0.5) for law in laws]
    rows = [{"t": t, "|mean|": float(law.mean.norm()), "scale": s} for t, law, s in zip(times, laws, spread, strict=True)]
    return {
        "bridge": spec,
        "description": plain_text(inspect.getdoc(entry.make) or entry.summary),
        "dimension": bridge.coupling.dim,
        "coupling": bridge.coupling.name,
        "pairs": bridge.coupling.count,
        "energy": round(bridge.coupling.energy, 9),
        "coefficients": bridge.coefficients.spec,
        "data at t": bridge.interval.t_min,
        "source at t": bridge.interval.t_max,
        "options": options_of_maker(entry.make),
        "content": bridges.content(spec),
        "times": rows,
    }


def _measure(spec: str) -> dict[str, Any]:
    from diffode import hippo

    measure = hippo.registry.make(spec)
    return {
        "measure": measure.spec,
        "description": plain_text(inspect.getdoc(type(measure)) or ""),
        "window": "all the past" if math.isinf(measure.window) else measure.window,
        "clock": "logarithm of time" if measure.logarithmic else "time",
        "closed": measure.closed,
        "options": options_of_maker(type(measure)),
    }


def _hold(spec: str) -> dict[str, Any]:
    from diffode.hippo.holds import registry

    hold, entry = registry.make(spec), registry.check(spec)
    return {
        "hold": hold.spec,
        "description": plain_text(entry.summary),
        "order": hold.order,
        "exact for polynomials": f"up to degree {hold.degree}" if hold.exact else "no",
        "options": {key: value for key, value in options_of_maker(entry.make).items() if key not in entry.preset},
    }


def _target(spec: str) -> dict[str, Any]:
    from diffode import targets
    from diffode.specs import parse_spec

    target, card = targets.get(spec), targets.card(parse_spec(spec)[0])
    return {
        "name": spec,
        "summary": card.summary,
        "text": card.text,
        "dimension": target.dim,
        "components": target.modes,
        "scale": round(target.scale, 6),
        "tags": targets.tags(spec),
        "labels": [f"{label} ({(target.labels or ()).count(label)})" for label in dict.fromkeys(target.labels or ())],
        "source": card.source,
        "licence": card.licence,
        "content": target.content(),
        "changelog": list(card.changelog),
    }


def _print_target(facts: dict[str, Any]) -> None:
    shown = {
        key: ", ".join(value) if isinstance(value, list) else value
        for key, value in facts.items()
        if value not in (None, [], "")
    }
    print_table(str(facts["name"]), ["", " "], [[key, str(value)] for key, value in shown.items()])


_PRINTED = {"target": _print_target, "solver": print_solver}
