"""Suites: the combinations of target, path, grid, solver, NFE and seed that a study runs, written in TOML.

A suite has a ``name``, a ``summary``, optional ``imports`` (modules or .py files in which a user registers targets, solvers
and so on), ``[defaults]``, and one or more ``[[study]]`` sections; each study is the product of its lists. A lone ``"*"``
stands for every registered name. ``source``, ``guidance`` and ``bridges`` of a study become a part of the text that names a
cell's target, see ``fields/problem_text.py``.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from diffode import bridges, grids, metrics, paths, solvers, targets
from diffode.errors import ArgumentError, DiffodeError, UnknownNameError, suggestion
from diffode.extensions import import_extension
from diffode.fields.own import FieldText
from diffode.fields.problem_text import parts_of, problem_text
from diffode.input_files import read_bytes, shown
from diffode.specs import parse_spec
from diffode.studies.cell import Cell
from diffode.studies.problem import BRIDGE, INTERVAL, bridge_of, field_of

#: Folder of the suites that ship with diffode.
SUITES = FilePath(__file__).parent / "suites"
__all__ = ["Cell", "Suite", "load_suite", "parse_suite", "suite_names"]

#: Keys of a study whose values are lists.
_LISTS = ("targets", "paths", "grids", "solvers", "nfe", "seeds")
#: Other keys of a study, with their defaults.
_SCALARS = {"points": 256, "dtype": "float64", "metrics": ["endpoint"], "tolerance": 1e-9}
#: Key of a study that names the law of its noise; normal unless given.
_SOURCE = "source"
#: Key of a study that lists guidances of its targets, among them ``none``; not guided unless given.
_GUIDANCE = "guidance"
#: Names that a suite may not have: those that some systems keep for devices, and that of the store beside the reports.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?\Z|results\.sqlite", re.IGNORECASE)
#: Names that a suite may have.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?<!\.)\Z")
#: Largest number of characters of a suite's name.
_LONGEST_NAME = 100
#: Largest number of characters of another error's message in an error.
_LONGEST_REASON = 1000
#: Largest size of a suite's file, in bytes.
_LARGEST_FILE = 2**22
#: Largest number of cells of a suite, each of which takes about 500 bytes of memory.
_MOST_CELLS = 1_000_000
#: Largest budget of a cell, in network calls.
_MOST_EVALUATIONS = 100_000
#: Largest number of points of a cell.
_MOST_POINTS = 10**8


@dataclass(frozen=True)
class Suite:
    """A named list of cells. The name is also that of a folder: letters, digits, '.', '_' and '-', but no dot in front."""

    name: str
    summary: str
    cells: tuple[Cell, ...]
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        plain = isinstance(self.name, str) and len(self.name) <= _LONGEST_NAME and _PLAIN.match(self.name)
        if not plain or _RESERVED.match(self.name):
            raise ArgumentError(
                f"name of a suite must be 1 to {_LONGEST_NAME} letters, digits, '_', '-' and '.', not begin with '-' or '.', "
                f"and be none that systems reserve, since its report lies in a folder of this name; got {shown(self.name)}"
            )

    def __repr__(self) -> str:
        return f"Suite({self.name!r}, {len(self.cells):,} cells)"


def plain_name(text: str) -> str:
    """A text as a suite's name, without characters that such a name may not hold.

    >>> plain_name("quick-мой.field")
    'quick-_.field'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:_LONGEST_NAME].rstrip(".").lstrip(".-") or "_"


def suite_names() -> list[str]:
    """The suites that ship with diffode."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or one from a TOML file; UnknownNameError or ArgumentError if there is none."""
    if not isinstance(name, str):
        raise ArgumentError(f"a suite is a name or a TOML file, got {shown(name)}")
    if not name.endswith(".toml") and name not in suite_names():
        advice = f"its file is {name}.toml, give that" if FilePath(f"{name}.toml").is_file() else ""
        raise UnknownNameError("suite", name, [*suite_names(), "PATH.toml"], advice=advice)
    file = FilePath(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    content = read_bytes(file, f"suite file {name!r}", _LARGEST_FILE)
    try:
        parsed = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits raises a ValueError, deeply nested lists a RecursionError.
        raise ArgumentError(f"suite file {name!r} is not valid TOML: {str(error)[:200]}") from error
    return parse_suite(parsed, str(file))


def parse_suite(content: Mapping[str, Any], where: str = "suite") -> Suite:
    """A suite from the content of its TOML file, with every name checked; ArgumentError if the content is none."""
    if not isinstance(content, Mapping):
        raise ArgumentError(f"{where}: a suite is a table of keys, got {shown(content)}")
    _check_keys(content, ("name", "summary", "imports", "defaults", "study"), where)
    name, summary = content.get("name", FilePath(where).stem), content.get("summary", "")
    for key, value in (("name", name), ("summary", summary)):
        if not isinstance(value, str):
            raise ArgumentError(f"{where}: {key} must be a text, got {shown(value)}")
    imports = tuple(_texts(content.get("imports", []), "imports", where))
    studies, defaults = content.get("study"), content.get("defaults", {})
    if not isinstance(studies, list) or not studies or not all(isinstance(study, dict) for study in studies):
        raise ArgumentError(f"{where}: a suite needs at least one [[study]] table")
    if not isinstance(defaults, dict):
        raise ArgumentError(f"{where}: defaults must be a table, [defaults]")
    try:
        # A wrong name is refused before the user's modules run.
        Suite(name, summary, ())
        for module in imports:
            import_extension(module)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from error
    cells: dict[Cell, None] = {}
    asked = 0
    for number, study in enumerate(studies, start=1):
        label = f"{where}, study {number}"
        merged = _with_bridges(defaults, study, label)
        _check_keys(merged, (*_LISTS, *_SCALARS, _SOURCE, _GUIDANCE, "bridges"), label)
        lists = _lists(merged, label)
        lists["targets"] = _from_source(lists["targets"], merged.get(_SOURCE), label)
        lists["targets"] = _guided(lists["targets"], merged.get(_GUIDANCE), label)
        asked += math.prod(len(values) for values in lists.values())
        if asked > _MOST_CELLS:
            raise ArgumentError(
                f"{where}: its studies ask for {asked:,} runs up to study {number}, more than {_MOST_CELLS:,}: "
                "shorten their lists, or make several suites"
            )
        cells.update(dict.fromkeys(_product(lists, merged, label)))
    return Suite(name, summary, tuple(cells), imports)


def _with_bridges(defaults: Mapping[str, Any], study: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of a study with the defaults; named ``bridges`` are targets on their own interval."""
    merged = {**defaults, **study}
    if "bridges" not in merged:
        return merged
    for key in ("targets", "paths"):
        if key in study or (key == "targets" and key in defaults):
            raise ArgumentError(f"{where}: {key} and bridges exclude each other: make a [[study]] for each")
    chosen = _expanded(_texts(merged.pop("bridges"), "bridges", where), bridges.names())
    return merged | {"targets": [f"{BRIDGE}{name}" for name in chosen], "paths": [INTERVAL]}


def _lists(study: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """The lists of a study by their keys, with checked types and the lone "*" written out."""
    for key in _LISTS:
        if key not in study:
            raise ArgumentError(f"{where}: {key} is missing; give a list, in the study or in [defaults]")
    lists: dict[str, list[Any]] = {}
    for key, room in (("targets", targets), ("paths", paths), ("grids", grids), ("solvers", solvers)):
        given = study[key]
        if key == "grids":
            # Only a list of times may be an item that is no text.
            given = [_written(grid, where) if isinstance(grid, list) else grid for grid in _listed(given, key, where)]
        lists[key] = _expanded(_texts(given, key, where), room.names())
    for key, least, most in (("nfe", 1, _MOST_EVALUATIONS), ("seeds", 0, 2**63 - 1)):
        lists[key] = _listed(study[key], key, where)
        for value in lists[key]:
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ArgumentError(f"{where}: {key} must be integers >= {least} and <= {most}, got {shown(value)}")
    for key, values in lists.items():
        if not values:
            raise ArgumentError(f"{where}: {key} must not be empty")
    _in_our_words(lists, where)
    return lists


def _from_source(chosen: list[str], source: object, where: str) -> list[str]:
    """The targets of a study as texts that name its source too."""
    if source is None:
        return chosen
    if not isinstance(source, str):
        raise ArgumentError(f"{where}: source must be a text, such as 'student:dof=128', got {shown(source)}")
    try:
        return [problem_text(target, source) for target in chosen]
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from error


def _guided(chosen: list[str], guidances: object, where: str) -> list[str]:
    """The targets of a study with each of its guidances."""
    if guidances is None:
        return chosen
    try:
        given = [None if text == "none" else text for text in _texts(guidances, _GUIDANCE, where)]
        if not given:
            raise ArgumentError("guidance must not be empty: leave it out, or list texts such as 'label=three,weight=7.5'")
        return [problem_text(target, None, text) for target in chosen for text in given]
    except ArgumentError as error:
        raise ArgumentError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _written(grid: list[Any], where: str) -> str:
    """A list of times as a text."""
    try:
        return grids.spec_of(grid)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: grids: {error}") from error


def _product(lists: Mapping[str, Sequence[Any]], study: Mapping[str, Any], where: str) -> Iterable[Cell]:
    settings = {key: study.get(key, default) for key, default in _SCALARS.items()}
    chosen = tuple(_texts(settings.pop("metrics"), "metrics", where))
    if not chosen:
        raise ArgumentError(f"{where}: metrics must not be empty; the first of them ranks")
    _check_scalars(settings, where)
    _check_names(lists, chosen, where)
    for target, path, seed, grid, solver, nfe in itertools.product(
        lists["targets"], lists["paths"], lists["seeds"], lists["grids"], lists["solvers"], lists["nfe"]
    ):
        yield Cell(target, path, seed, grid, solver, nfe, metrics=chosen, **settings)


def _in_our_words(lists: dict[str, list[Any]], where: str) -> None:
    """Write lists of times as texts, and other names of paths and solvers as diffode's specs, so that one run has one key."""
    try:
        lists["paths"] = list(dict.fromkeys(map(paths.registry.canonical, lists["paths"])))
        lists["grids"] = [grids.spec_of(grid) for grid in lists["grids"]]
        # A solver that stands there in two spellings is one, and keeps the first.
        first: dict[str, str] = {}
        for solver in lists["solvers"]:
            first.setdefault(solvers.plain_spec(solver), solvers.registry.canonical(solver))
        lists["solvers"] = list(first.values())
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from error


def _check_names(lists: Mapping[str, Sequence[Any]], chosen: Sequence[str], where: str) -> None:
    """Build every object once, so that a misspelt name shows before an hour of work."""
    try:
        for name in lists["targets"]:
            if FieldText.names(name) or parts_of(name) != (name, None) or bridge_of(name) is not None:
                field_of(name, lists["paths"][0])
            else:
                targets.registry.entry(parse_spec(name)[0])
        for path in lists["paths"]:
            if path != INTERVAL:
                paths.get(path)
        for solver in lists["solvers"]:
            solvers.get(solver)
        for grid in lists["grids"]:
            grids.check(grid)
        for metric in chosen:
            metrics.check_options(metric)
        if len(set(chosen)) != len(chosen):
            raise ArgumentError(f"metrics has an entry twice: {list(chosen)}")
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {str(error)[:_LONGEST_REASON]}") from error
    except DiffodeError:
        raise
    except Exception as error:  # An object that anyone has registered may raise anything when it is made.
        raise ArgumentError(f"{where}: {type(error).__name__}: {str(error)[:_LONGEST_REASON]}") from error


def _check_scalars(settings: Mapping[str, Any], where: str) -> None:
    points, dtype, tolerance = settings["points"], settings["dtype"], settings["tolerance"]
    if not isinstance(points, int) or isinstance(points, bool) or not 2 <= points <= _MOST_POINTS:
        raise ArgumentError(f"{where}: points must be an integer >= 2 and <= {_MOST_POINTS}, got {shown(points)}")
    if dtype not in ("float32", "float64"):
        raise ArgumentError(f"{where}: dtype must be 'float32' or 'float64', got {shown(dtype)}")
    if not isinstance(tolerance, float) or not 1e-13 <= tolerance <= 1e-3:
        raise ArgumentError(f"{where}: tolerance must lie in [1e-13, 1e-3], got {shown(tolerance)}")


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ArgumentError(f"{where}: unknown key {shown(key)}{suggestion(str(key), known)}; keys: {', '.join(known)}")


def _listed(value: Any, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentError(f"{where}: {key} must be a list, got {shown(value)}")
    return value


def _texts(value: Any, key: str, where: str) -> list[str]:
    for item in _listed(value, key, where):
        if not isinstance(item, str):
            also = " or of lists of times, [[80.0, 10.0, 1.0], ...]" if key == "grids" else ""
            raise ArgumentError(f"{where}: {key} must be a list of texts{also}, got {shown(item)} in it")
    return list(value)


def _expanded(values: list[Any], names: list[str]) -> list[Any]:
    return names if values == ["*"] else values
