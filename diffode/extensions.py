"""A user's own code: modules and files imported by name, and their attributes."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

from diffode.errors import ArgumentError, PluginWarning, suggestion
from diffode.input_files import here


def import_extension(module: str) -> ModuleType:
    """Import a module by name, or a .py file by its location; a second import gives the same module.

    Raises ArgumentError if there is no such module or file, or it fails when imported.
    """
    if not isinstance(module, str) or not module or "\0" in module:
        raise ArgumentError(f"module must be a text, such as mine or mine.py; got {module!r}")
    if not module.endswith(".py"):
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise ArgumentError(f"module {module!r} can't be imported: {error}") from error
        except (Exception, SystemExit) as error:  # A module of anyone's may raise anything, or end the process.
            raise ArgumentError(f"module {module!r} fails when imported: {type(error).__name__}: {error}") from error
    try:
        if not here(module).is_file():
            raise ArgumentError(f"extension file {module!r} does not exist")
    except OSError as error:
        raise ArgumentError(f"extension file {module!r} can't be read: {error.strerror or error}") from error
    key = hashlib.sha256(str(FilePath(module).resolve()).encode()).hexdigest()[:12]
    name = f"diffode_extension_{FilePath(module).stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, here(module))
    if spec is None or spec.loader is None:
        raise ArgumentError(f"extension file {module!r} can't be imported")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):
            raise ArgumentError(f"extension file {module!r} fails when imported: {type(error).__name__}: {error}") from error
        raise
    return sys.modules[name]


#: A module's name.
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")
#: An attribute's name, or several joined by dots.
_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")


def is_place(text: str) -> bool:
    """Whether a text has the form ``file.py:attribute`` or ``module:attribute``; nothing is imported.

    >>> is_place("my/samplers.py:Mine"), is_place("karras:rho=7")
    (True, False)
    """
    module, colon, name = text.rpartition(":")
    named = module.endswith(".py") or _MODULE.match(module)
    return bool(colon and named and _ATTRIBUTE.match(name) and not {",", "="} & set(text))


def module_exists(module: str) -> bool:
    """Whether a module that is not Python's own can be found; the module itself is not imported."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    _look_here()
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _look_here() -> None:
    """Let Python find modules in the folder from which the command line is called, as python -m does."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def origin(made: Any) -> tuple[str, str] | None:
    """The file (or module) and the qualified name of a class or function; None for other objects."""
    name, module = getattr(made, "__qualname__", None), getattr(made, "__module__", None)
    if not isinstance(name, str) or not isinstance(module, str) or "<lambda>" in name:
        return None
    file = getattr(sys.modules.get(module), "__file__", None)
    return (str(FilePath(file).resolve()) if file else module), name


def same_definition(one: Any, other: Any) -> bool:
    """Whether two makers are one class or function: the same object, or two runs of the same definition."""
    if one is other:
        return True
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return same_definition(one.func, other.func) and one.args == other.args and one.keywords == other.keywords
    if (code := getattr(one, "__code__", None)) is not None and "<lambda>" in one.__qualname__:
        # Equal code with other bound values is another function.
        return bool(code == getattr(other, "__code__", None) and _bound(one) == _bound(other))
    found = origin(one)
    return found is not None and found == origin(other) and "<locals>" not in found[1]


def _bound(function: Any) -> tuple[Any, ...]:
    cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return (cells, function.__defaults__, function.__kwdefaults__)


def library(name: str, install: str = "") -> Any:
    """A module of another library; ArgumentError, with the command that installs it, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(
            f"this needs {name.partition('.')[0]}: pip install {install or name.partition('.')[0]} ({error})"
        ) from error


def load_attribute(place: str) -> Any:
    """The object named ``module:attribute`` or ``file.py:attribute``, or an attribute of one after a dot; else ArgumentError.

    >>> load_attribute("math:pi")
    3.141592653589793
    """
    module, colon, name = place.rpartition(":")
    if not colon or not module or not name:
        raise ArgumentError(f"{place!r} is not of the form module:attribute or file.py:attribute")
    _look_here()
    found: Any = import_extension(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ArgumentError(f"{module!r} has no attribute {name!r}{suggestion(part, dir(found))}")
        found = getattr(found, part)
    return found


def plug_ins(kind: str, makers: Mapping[str, Callable[..., Any] | None]) -> dict[str, importlib.metadata.EntryPoint]:
    """The plug-ins of a kind by name, without those by whose name there is something else, which a warning names.

    ``makers`` are what there is by name, None for a foreign name with a spec of its own.
    """
    points = {point.name: point for point in importlib.metadata.entry_points(group=f"diffode.{kind}s")}
    for name in points.keys() & makers.keys():
        make = makers[name]
        own = "diffode" if make is None else getattr(getattr(make, "func", make), "__module__", "another package")
        # A plug-in that was imported already may have registered itself, from any module of its package.
        if own.partition(".")[0] != re.split("[.:]", points[name].value)[0]:
            warnings.warn(
                f"{kind} {name!r} of an installed package, {points[name].value!r}, is not used, since {own} has one by this "
                "name; give it another name in that package's entry points",
                PluginWarning,
                stacklevel=2,
            )
            del points[name]
    return points
