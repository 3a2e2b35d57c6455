"""Answers of ``list`` and ``show``, kept so that they need neither PyTorch nor the parameters of targets a second time.

An answer is known by what was asked, and by everything that can change it: every file of the package, the versions beside it,
and the plug-ins that are installed. What a user's own files say is asked each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffode
from diffode.cache_folder import recall, remember
from diffode.errors import DiffodeError

#: Folder of the answers.
_KIND = "answers"
#: Kinds of things that other packages may add.
_PLUG_INS = ("targets", "sources", "paths", "grids", "solvers", "metrics", "bridges", "measures", "holds")
#: Libraries whose release may change a number.
_LIBRARIES = ("numpy", "scipy", "torch")
#: Suffixes of files of the package on which no answer depends.
_OTHER = (".pyc", ".o", ".nbc", ".nbi", ".tmp")


def remembered(asked: tuple[object, ...], answer: Callable[[], tuple[Any, bool]]) -> Any:
    """The answer to what is asked; ``answer`` gives it, and whether it depends on the package alone, so that it can be kept."""
    key = _key(asked)
    held = recall(_KIND, key)
    if held is not None:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            return _unpacked(held)
    found, alone = answer()
    if alone:
        remember(_KIND, key, _packed(found))
    return found


def is_of_package(registry: Any, spec: str) -> bool:
    """Whether what a spec names is made by this package from nothing but numbers and words, no file or place of a user's."""
    from diffode.extensions import is_place
    from diffode.specs import parse_spec

    if not re.search("[A-Za-z]", spec):
        # A list of numbers, as grids may be.
        return True
    name, options = parse_spec(registry.canonical(spec)) if spec not in registry.names() else (spec, {})
    if registry.is_place(name) or any(isinstance(v, str) and (is_place(v) or Path(v).exists()) for v in options.values()):
        return False
    try:
        make = registry.entry(name).make
    except DiffodeError:
        # A plug-in that can't be loaded today may be mended tomorrow.
        return False
    make = getattr(make, "func", make)
    return str(getattr(make, "__module__", "")).partition(".")[0] == "diffode"


def _key(asked: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr((asked, sys.version, os.environ.get("DIFFODE_NATIVE"))).encode())
    package = Path(diffode.__file__).parent
    for file in sorted(package.rglob("*")):
        if file.suffix not in _OTHER and file.is_file():
            digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    for library in _LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    for kind in _PLUG_INS:
        for point in importlib.metadata.entry_points(group=f"diffode.{kind}"):
            digest.update(f"{kind} {point.name} {point.value}\n".encode())
    return digest.hexdigest()


def _packed(value: Any) -> Any:
    """A value in terms that JSON has: tuples, and dictionaries with keys that are no texts, are named as such."""
    if isinstance(value, tuple):
        return {"tuple": [_packed(item) for item in value]}
    if isinstance(value, list):
        return [_packed(item) for item in value]
    if isinstance(value, dict):
        return {"pairs": [[_packed(key), _packed(item)] for key, item in value.items()]}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if isinstance(value, dict):
        ((kind, items),) = value.items()
        if kind == "tuple":
            return tuple(_unpacked(item) for item in items)
        return {_unpacked(key): _unpacked(item) for key, item in items}
    return value
