"""What a stored result depends on besides its cell: code and parameters, by content; and where it was computed."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

import torch

import diffode
from diffode import cache, grids, metrics, paths, solvers
from diffode.fields.own import FieldText
from diffode.specs import parse_spec
from diffode.studies.problem import content_of
from diffode.studies.suite import Cell

_ROOT = FilePath(diffode.__file__).parent
#: Code that every result depends on. Solvers and targets are versioned one by one instead.
_ENGINE = (
    "charts.py", "grids.py", "paths", "propagation.py", "randomness.py", "references.py", "tableau.py", "fields", "metrics",
    "targets",
)  # fmt: skip
_ENGINE_SOLVERS = ("ranged.py", "run.py", "solver.py", "stages.py")


def cell_key(cell: Cell) -> str:
    """The key of a cell's result: equal keys mean that computing it again would give the same numbers."""
    own_code = [
        extension_version(registry.entry(parse_spec(spec)[0]).make)
        for registry, specs in (
            (metrics.registry, cell.metrics),
            (paths.registry, () if FieldText.names(cell.target) else (cell.path,)),
            (grids.registry, (cell.grid,)),
        )
        for spec in specs
    ]
    own_code.append(grids.content(cell.grid))
    recipe = solvers.get(cell.solver)
    solver, content = solver_version(type(recipe)), recipe.content()
    return cache.key_of("cell", engine_version(), solver, content, content_of(cell.target, cell.path), own_code, cell)[:32]


@functools.cache
def engine_version() -> str:
    """A hash of the code that every result depends on, blind to comments, docstrings and layout."""
    digest = hashlib.sha256()
    files = [file for name in _ENGINE for file in _python_files(_ROOT / name)]
    files += [_ROOT / "solvers" / name for name in _ENGINE_SOLVERS]
    for file in files:
        digest.update(_skeleton(ast.parse(file.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()


@functools.cache
def solver_version(cls: type[solvers.Solver]) -> str:
    """A hash of a solver's own code: its class, the classes it builds on, and the functions of their modules."""
    digest = hashlib.sha256()
    for base in cls.__mro__:
        module = sys.modules.get(base.__module__)
        if base in (solvers.Solver, object) or module is None or base.__module__ in ("abc", "typing"):
            continue
        digest.update(_class_code(base, module).encode())
    return digest.hexdigest()


@functools.cache
def extension_version(maker: Callable[..., Any]) -> str:
    """A hash of the module of a user's metric, path or grid; empty for diffode's own, which the engine covers."""
    module = sys.modules.get(getattr(maker, "__module__", ""))
    if module is None or module.__name__.split(".")[0] == "diffode":
        return ""
    try:
        return hashlib.sha256(_skeleton(ast.parse(inspect.getsource(module))).encode()).hexdigest()
    except (OSError, TypeError):
        return module.__name__


def _class_code(cls: type[Any], module: ModuleType) -> str:
    """A class and everything in its module; in diffode's own zoo all but the other classes."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"
    # A module of the zoo holds a family, of which one member may change without the others.
    family = module.__name__.startswith("diffode.solvers.")
    kept = [node for node in tree.body if not (family and isinstance(node, ast.ClassDef) and node.name != cls.__name__)]
    return _skeleton(ast.Module(body=kept, type_ignores=[]))


def _skeleton(tree: ast.Module) -> str:
    """The syntax tree as text, without docstrings and positions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
    return ast.dump(tree)


def _python_files(place: FilePath) -> list[FilePath]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@functools.cache
def environment() -> dict[str, str]:
    """Versions and hardware, as stored with every result."""
    return {
        "diffode": diffode.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "scipy": importlib.metadata.version("scipy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
    }


def processor_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in FilePath("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
