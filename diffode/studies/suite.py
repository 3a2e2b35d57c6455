"""Suites: which combinations of target, path, grid, solver, NFE and seed a study runs, written in TOML.

A suite has a ``name``, a ``summary``, optional ``imports`` (modules or .py files that register the user's own things),
``[defaults]``, and one or more ``[[study]]`` tables; each study is the product of its lists. A lone ``"*"`` stands for every
registered name.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from diffode import grids, metrics, paths, solvers, targets
from diffode.errors import ArgumentError, UnknownNameError, suggestion
from diffode.extensions import import_extension
from diffode.fields.own import FieldText
from diffode.specs import parse_spec
from diffode.studies.problem import field_of

SUITES = FilePath(__file__).parent / "suites"
_LISTS = ("targets", "paths", "grids", "solvers", "nfe", "seeds")
_SCALARS = {"points": 256, "dtype": "float64", "metrics": ["endpoint"], "tolerance": 1e-9}


@dataclass(frozen=True, order=True)
class Cell:
    """One run to make and measure. All that decides its result is in these fields, the code and the target's parameters."""

    target: str
    path: str
    seed: int
    grid: str
    solver: str
    nfe: int
    points: int
    dtype: str
    metrics: tuple[str, ...]
    tolerance: float


@dataclass(frozen=True)
class Suite:
    """A named list of cells."""

    name: str
    summary: str
    cells: tuple[Cell, ...]
    imports: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Suite({self.name!r}, {len(self.cells):,} cells)"


def suite_names() -> list[str]:
    """The suites that ship with diffode."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or one from a TOML file."""
    file = FilePath(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not name.endswith(".toml") and name not in suite_names():
        raise UnknownNameError("suite", name, [*suite_names(), "PATH.toml"])
    try:
        return parse_suite(tomllib.loads(file.read_text(encoding="utf-8")), str(file))
    except OSError as error:
        raise ArgumentError(f"suite file {name!r} can't be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"suite file {name!r} is not valid TOML: {error}") from error


def parse_suite(content: Mapping[str, Any], where: str = "suite") -> Suite:
    """A suite from the content of its TOML file; every name in it is checked before anything runs."""
    _check_keys(content, ("name", "summary", "imports", "defaults", "study"), where)
    imports = tuple(_listed(content.get("imports", []), "imports", where))
    for module in imports:
        import_extension(module)
    studies, defaults = content.get("study"), content.get("defaults", {})
    if not isinstance(studies, list) or not studies or not all(isinstance(study, dict) for study in studies):
        raise ArgumentError(f"{where}: a suite needs at least one [[study]] table")
    if not isinstance(defaults, dict):
        raise ArgumentError(f"{where}: defaults must be a table, [defaults]")
    cells: dict[Cell, None] = {}
    for number, study in enumerate(studies, start=1):
        label = f"{where}, study {number}"
        merged = {**defaults, **study}
        _check_keys(merged, (*_LISTS, *_SCALARS), label)
        cells.update(dict.fromkeys(_product(merged, label)))
    return Suite(str(content.get("name", FilePath(where).stem)), str(content.get("summary", "")), tuple(cells), imports)


def _product(study: Mapping[str, Any], where: str) -> Iterable[Cell]:
    for key in _LISTS:
        if key not in study:
            raise ArgumentError(f"{where}: {key} is missing; give a list, in the study or in [defaults]")
    lists = {key: _listed(study[key], key, where) for key in _LISTS}
    for key, room in (("targets", targets), ("paths", paths), ("grids", grids), ("solvers", solvers)):
        lists[key] = _expanded(lists[key], room.names())
    for key in ("nfe", "seeds"):
        least = 1 if key == "nfe" else 0
        if not all(isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**63 for v in lists[key]):
            raise ArgumentError(f"{where}: {key} must be integers >= {least}, got {lists[key]}")
    _in_our_words(lists, where)
    settings = {key: study.get(key, default) for key, default in _SCALARS.items()}
    chosen = tuple(_listed(settings.pop("metrics"), "metrics", where))
    _check_scalars(settings, where)
    _check_names(lists, chosen, where)
    for target, path, seed, grid, solver, nfe in itertools.product(
        lists["targets"], lists["paths"], lists["seeds"], lists["grids"], lists["solvers"], lists["nfe"]
    ):
        yield Cell(target, path, seed, grid, solver, nfe, metrics=chosen, **settings)


def _in_our_words(lists: dict[str, list[Any]], where: str) -> None:
    """Write lists of times as texts and other people's names for solvers as ours, so that one run has one key."""
    try:
        lists["grids"] = [grids.spec_of(grid) for grid in lists["grids"]]
        lists["solvers"] = [solvers.registry.canonical(solver) for solver in lists["solvers"]]
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from error


def _check_names(lists: Mapping[str, Sequence[Any]], chosen: Sequence[str], where: str) -> None:
    """Build every object once, so that a typing error shows before an hour of work."""
    try:
        for name in lists["targets"]:
            if FieldText.names(name):
                field_of(name, lists["paths"][0])
            else:
                targets.registry.entry(parse_spec(name)[0])
        for path in lists["paths"]:
            paths.get(path)
        for solver in lists["solvers"]:
            solvers.get(solver)
        for grid in lists["grids"]:
            grids.check(grid)
        for metric in chosen:
            metrics.registry.check(metric, given=("outcome",))
        if len(set(chosen)) != len(chosen):
            raise ArgumentError(f"metrics has an entry twice: {list(chosen)}")
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from error


def _check_scalars(settings: Mapping[str, Any], where: str) -> None:
    points, dtype, tolerance = settings["points"], settings["dtype"], settings["tolerance"]
    if not isinstance(points, int) or points < 2:
        raise ArgumentError(f"{where}: points must be an integer >= 2, got {points!r}")
    if dtype not in ("float32", "float64"):
        raise ArgumentError(f"{where}: dtype must be 'float32' or 'float64', got {dtype!r}")
    if not isinstance(tolerance, float) or not 1e-13 <= tolerance <= 1e-3:
        raise ArgumentError(f"{where}: tolerance must lie in [1e-13, 1e-3], got {tolerance!r}")


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ArgumentError(f"{where}: unknown key {key!r}{suggestion(key, known)}; keys: {', '.join(known)}")


def _listed(value: Any, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentError(f"{where}: {key} must be a list, got {value!r}")
    return value


def _expanded(values: list[Any], names: list[str]) -> list[Any]:
    return names if values == ["*"] else values
