"""What modules say, kept for later runs: to parse them all takes longer than most of what a second run has to do."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

from diffode.cache_folder import recall, remember
from diffode.closure import syntax
from diffode.closure.syntax import Binding, Module, Statement

#: Folder of what is kept, a file for each module.
_KIND = "modules"


def module_of(name: str, text: str, *, is_package: bool) -> Module:
    """What a module's text says, from an earlier run where it read the same text.

    Raises:
        SyntaxError, ValueError, RecursionError: if the text can't be parsed.
    """
    digest = hashlib.sha256(repr((name, text, is_package, _reader())).encode(errors="backslashreplace")).hexdigest()
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        held = recall(_KIND, name)
        if held is not None and held["digest"] == digest:
            return _unpacked(held)
    module = Module.of(name, text, is_package=is_package)
    remember(_KIND, name, {"digest": digest, **_packed(module)})
    return module


@functools.cache
def _reader() -> str:
    """What else the answer depends on: the code that reads, and the grammar of this Python."""
    return f"{sys.version}{Path(syntax.__file__).read_text(encoding='utf-8')}"


def _packed(module: Module) -> dict[str, Any]:
    return {
        "name": module.name,
        "bindings": [_told(binding) for binding in module.bindings],
        "names": [_told(binding) for binding in module.names.values()],
        "defined": sorted(module.defined),
        "statements": [
            [s.place, s.kind, s.name, s.text, sorted(s.chains), [_told(binding) for binding in s.bindings], s.calls]
            for s in module.statements
        ],
    }


def _told(binding: Binding) -> tuple[str, str, str | None]:
    return binding.name, binding.module, binding.attribute


def _unpacked(held: dict[str, Any]) -> Module:
    names = [Binding(*binding) for binding in held["names"]]
    statements = [
        Statement(place, kind, name, text, frozenset(map(tuple, chains)), tuple(Binding(*b) for b in bindings),
                  tuple((tuple(called), tuple(texts)) for called, texts in calls))
        for place, kind, name, text, chains, bindings, calls in held["statements"]
    ]  # fmt: skip
    bindings = tuple(Binding(*binding) for binding in held["bindings"])
    return Module(held["name"], bindings, {b.name: b for b in names}, frozenset(held["defined"]), tuple(statements))
