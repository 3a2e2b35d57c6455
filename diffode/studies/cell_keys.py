"""Keys of stored results, made of the cell and the contents of the code and parameters behind it; the environment of a run.

A stored result is valid as long as its cell has the same key.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffode
from diffode import bridges, cache, grids, metrics, native, paths, solvers, sources, targets
from diffode.closure import version_of
from diffode.errors import ArgumentError
from diffode.extensions import import_extension, is_place, load_attribute
from diffode.fields.own import FieldText
from diffode.fields.problem_text import guidance_of, parts_of
from diffode.specs import Registry, parse_spec
from diffode.studies.cell import Cell
from diffode.studies.problem import bridge_of, content_of

#: The module that computes a cell, whose imports every result depends on.
_COMPUTATION = "diffode.studies.computation"


def cell_key(cell: Cell) -> str:
    """The key of a cell's result; equal keys mean that another computation would give the same numbers."""
    return next(cell_keys([cell]))


def cell_keys(cells: Iterable[Cell]) -> Iterator[str]:
    """The keys of cells. Files that solvers read are read once per call, so that thousands of cells cost little."""
    told_of: dict[object, str] = {}
    for cell in cells:
        solver = ("solver", cell.solver)
        problem = ("problem", cell.target, cell.path)
        measured = ("measured", cell.grid, cell.metrics)
        if solver not in told_of:
            told_of[solver] = cache.key_of(_of_solver(cell.solver))
        if problem not in told_of:
            told_of[problem] = cache.key_of(_of_problem(cell.target, cell.path))
        if measured not in told_of:
            code = _of_entries((grids.registry, [cell.grid]), (metrics.registry, cell.metrics))
            told_of[measured] = cache.key_of((*code, grids.content(cell.grid)))
        yield cache.key_of("cell", told_of[solver], told_of[problem], told_of[measured], cell)[:32]


def solver_version(cls: type[solvers.Solver]) -> str:
    """A hash of the code that a solver's class depends on, and of the code that runs it."""
    return version_of(_COMPUTATION, cls, specs_of=_named_by)


def _of_solver(spec: str) -> tuple[str, ...]:
    """A solver's part of a key: hashes of its code, of its options with those that its name presets, and of its files."""
    recipe = solvers.get(spec)
    maker = solvers.registry.entry(parse_spec(spec)[0]).make
    options = [getattr(recipe, field.name) for field in dataclasses.fields(recipe)]
    parts = [value for value in options if callable(value) or dataclasses.is_dataclass(value)]
    # An option may name a user's function, as file.py:attribute or module:attribute.
    parts += [load_attribute(value) for value in options if isinstance(value, str) and is_place(value)]
    if not type(recipe).__module__.startswith("diffode."):
        # A user's solver may look up other solvers that its options name.
        parts += [maker for value in options if isinstance(value, str) for maker in _named_by(value)]
    return version_of(_COMPUTATION, recipe, maker, *parts, specs_of=_named_by), _told(recipe), recipe.content()


def _of_problem(target: str, path: str) -> tuple[str, ...]:
    """The field's part of a key: hashes of the code and the parameters of a target and its path, or of a user's field."""
    if (bridge := bridge_of(target)) is not None:
        made = bridges.get(bridge)
        return version_of(bridges.registry.entry(parse_spec(bridge)[0]).make, type(made.coefficients)), content_of(target, path)
    code = _code_of_target(target)
    on: tuple[str, ...] = () if FieldText.names(target) else (targets.get(parts_of(target)[0]).arithmetic,)
    if not (FieldText.names(target) and path not in paths.names()):
        on += (*_of_entries((paths.registry, [path])), version_of(paths.get(path)), paths.get(path).spec)
    return code, content_of(target, path), *on


def _code_of_target(target: str) -> str:
    if not FieldText.names(target):
        data, source = parts_of(target)
        noise = sources.get(source)
        own = () if noise is None else (noise, noise.of) if isinstance(noise, sources.TargetSource) else (noise,)
        guided = () if (guidance := guidance_of(target)) is None else (type(guidance),)
        return version_of(targets.get(data), *own, *guided)
    text = FieldText.read(target)
    named = () if text.target is None else (targets.get(text.target),)
    module, _, _ = text.place.rpartition(":")
    if module == "trained":
        return version_of(*named)
    found = load_attribute(text.place)
    return version_of(import_extension(module).__name__, found, *named)


def _of_entries(*chosen: tuple[Registry[Any], Iterable[str]]) -> tuple[str, ...]:
    """Hashes of the code of the makers that specs name, and the options that the registry presets."""
    entries = [registry.entry(parse_spec(spec)[0]) for registry, specs in chosen for spec in specs]
    told = [f"{_told(entry.make)}{_told(dict(entry.preset))}" for entry in entries]
    return version_of(*(value for entry in entries for value in (entry.make, *entry.preset.values()))), *told


def _named_by(spec: str) -> list[Any]:
    """The class of the solver that a spec in some code names; none for a text that names no solver."""
    try:
        name = parse_spec(spec)[0]
        return [solvers.registry.entry(name).make] if name in solvers.names() else []
    except ArgumentError:
        return []


def _told(value: object) -> str:
    """A value as a text that is equal in every process; objects are told by their class and fields."""
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_told(key)}:{_told(item)}" for key, item in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(map(_told, value))) + "}"
    if isinstance(value, tuple | list):
        return "(" + ",".join(map(_told, value)) + ")"
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return cache.key_of(value)
    if isinstance(value, functools.partial):
        return f"partial({_told(value.func)},{_told(value.args)},{_told(value.keywords)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return f"{type(value).__qualname__}{_told(fields)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


@functools.cache
def environment() -> dict[str, str]:
    """Versions and hardware, which are stored with every result."""
    return {
        "diffode": diffode.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "scipy": importlib.metadata.version("scipy"),
        # The key of a target's cell holds the target's ``arithmetic`` instead, without a version.
        "fields": native.version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
    }


def processor_name() -> str:
    """The name that the system gives its processor."""
    try:
        for line in FilePath("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
