"""The graph of the parts of modules, and hashes of the parts that some of them reach."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from diffode.closure.known import module_of
from diffode.closure.places import compiled, is_own, is_package, label, native_code, source_of
from diffode.closure.syntax import REST, WHOLE, Binding, Module

#: Beginning of the names of modules whose classes are parts of their own.
_FAMILIES = "diffode.solvers."
#: The module at which the closure stops.
_REGISTRY = "diffode.solvers.registry"
#: Functions that look up a solver by its spec: their names, and the module and function that they must be.
_LOOKUPS = {"get": (_REGISTRY, "get"), "solve": ("diffode.solvers.run", "solve")}
#: A package left out as the parent of its modules: its ``__init__`` imports code that runs and stores computations.
_RUNS = "diffode.studies"
#: Names of functions whose argument names a module.
_IMPORTERS = ("import_module", "import_extension")

#: A module and one of its classes, or ``WHOLE`` for all of it, or ``REST`` for all but its classes.
Part = tuple[str, str]


@dataclass(frozen=True)
class Closure:
    """The parts that some roots reach, and the specs of solvers that their code looks up."""

    parts: frozenset[Part]
    specs: frozenset[str]


def version_of(*roots: Any, specs_of: Callable[[str], Iterable[Any]] | None = None) -> str:
    """A hash of the code that modules (by name), classes, functions or instances depend on.

    ``specs_of`` gives the roots behind a solver's spec.
    """
    return _version(frozenset(part for root in roots for part in parts_of(root)), specs_of)


@functools.lru_cache(maxsize=4096)
def _version(roots: frozenset[Part], specs_of: Callable[[str], Iterable[Any]] | None) -> str:
    found = SOURCES.closure(roots)
    if specs_of is not None:
        looked_up: set[str] = set()
        while new := found.specs - looked_up:
            looked_up |= new
            more = {part for spec in new for root in specs_of(spec) for part in parts_of(root)}
            found = SOURCES.closure(found.parts | more)
    return SOURCES.digest(found.parts)


def parts_of(root: Any) -> list[Part]:
    """The parts in which a module (by name), class, function or instance is defined."""
    if isinstance(root, str):
        return [(root, WHOLE)]
    if isinstance(root, functools.partial):
        inner = (root.func, *root.args, *root.keywords.values())
        return [part for value in inner if callable(value) for part in parts_of(value)]
    if isinstance(root, MethodType):
        return [*parts_of(root.__self__), *parts_of(root.__func__)]
    if isinstance(root, type):
        return [(base.__module__, base.__qualname__.partition(".")[0]) for base in root.__mro__]
    wrapped = getattr(root, "__wrapped__", None)
    module, name = getattr(root, "__module__", None), getattr(root, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str):
        here = [(module, name.partition(".")[0])]
        return here if wrapped is None else [*here, *parts_of(wrapped)]
    return parts_of(type(root))


@dataclass(frozen=True)
class _Found:
    """The hash of one part, the parts that it names itself, and the specs that it looks up."""

    digest: str
    parts: frozenset[Part]
    specs: frozenset[str]


class Sources:
    """What modules say, each read once; ``read`` gives a module's text."""

    def __init__(self, read: Callable[[str], str | None] | None = None):
        self._read = read or source_of
        self._modules: dict[str, Module | None] = {}
        self._found: dict[Part, _Found] = {}

    def closure(self, roots: Iterable[Part]) -> Closure:
        """All parts that the roots reach, and their specs."""
        waiting, parts, specs = list(roots), set[Part](), set[str]()
        while waiting:
            part = self._canonical(*waiting.pop())
            if part is None or part in parts:
                continue
            parts.add(part)
            found = self._part(part)
            specs |= found.specs
            waiting += found.parts
        return Closure(frozenset(parts), frozenset(specs))

    def digest(self, parts: Iterable[Part]) -> str:
        """One hash of some parts and of diffode's native code."""
        lines = sorted(f"{label(module)}|{name}|{self._part((module, name)).digest}" for module, name in parts)
        return hashlib.sha256("\n".join([*lines, native_code()]).encode()).hexdigest()

    def changed(self, module: str, text: str) -> Sources:
        """The same modules, but with another text for one of them."""
        other = Sources(self._read)
        other._modules = {**self._modules, module: Module.of(module, text, is_package=is_package(module))}
        return other

    def module(self, name: str) -> Module | None:
        """A module that belongs to diffode or to a user, or None."""
        if name not in self._modules:
            text = self._read(name)
            try:
                self._modules[name] = None if text is None else module_of(name, text, is_package=is_package(name))
            except (SyntaxError, RecursionError, ValueError):
                # A file that can't be parsed can't run.
                self._modules[name] = None
        return self._modules[name]

    def _canonical(self, module: str, name: str) -> Part | None:
        """The part that holds a name: the whole module outside the families, one class or the rest inside."""
        known = self.module(module)
        if known is None:
            return (module, WHOLE) if is_own(module) else None
        if not module.startswith(_FAMILIES) or name == WHOLE:
            return module, WHOLE if module != _REGISTRY else REST
        return module, name if name in known.classes else REST

    def _part(self, part: Part) -> _Found:
        if part not in self._found:
            known = self.module(part[0])
            if known is None:
                self._found[part] = _Found(compiled(sys.modules.get(part[0])), frozenset(), frozenset())
            else:
                self._found[part] = self._read_part(known, part[1])
        return self._found[part]

    def _read_part(self, module: Module, name: str) -> _Found:
        # Specs choose at run time from the registry's statements, so that only its functions count.
        statements, bindings = module.kept(name, functions_only=module.name == _REGISTRY)
        bindings = [*bindings, *(binding for statement in statements for binding in statement.bindings)]
        names = {binding.name: binding for binding in (*module.bindings, *bindings)}
        parents = module.name.split(".")[:-1]
        reached: set[Part] = {(".".join(parents[:n]), WHOLE) for n in range(1, len(parents) + 1)}
        reached.discard((_RUNS, WHOLE))
        specs: set[str] = set()
        for binding in bindings:
            reached |= self._resolve(binding.module, binding.attribute)
        for statement in statements:
            for chain in statement.chains:
                if len(chain) > 1 and chain[0] in names:
                    reached |= self._follow(names[chain[0]], chain[1:])
            for called, texts in statement.calls:
                if called[-1] in _IMPORTERS:
                    reached |= {(text, WHOLE) for text in texts if not text.endswith(".py")}
                elif called[-1] in _LOOKUPS:
                    bound = names.get(called[0])
                    place = (module.name, called[0]) if bound is None else self._target(bound, called[1:])
                    specs.update(texts if place in _LOOKUPS.values() else ())
        written = [*(statement.text for statement in statements), *(repr(binding) for binding in bindings)]
        return _Found(
            hashlib.sha256("\n".join(written).encode(errors="backslashreplace")).hexdigest(),
            frozenset(reached),
            frozenset(specs),
        )

    def _target(self, binding: Binding, chain: tuple[str, ...]) -> tuple[str, str] | None:
        """The module and name in which the end of a chain of attributes is defined."""
        place: tuple[str, str | None] = (binding.module, binding.attribute)
        for attribute in (None, *chain):
            if attribute is not None:
                if place[1] is not None:
                    return None
                place = (place[0], attribute)
            place = self._defined(place[0], place[1])
        return None if place[1] is None else (place[0], place[1])

    def _follow(self, binding: Binding, chain: tuple[str, ...]) -> set[Part]:
        """The parts along a chain of attributes such as ``diffode.solvers.adams.IPNDM``."""
        module, attribute = self._defined(binding.module, binding.attribute)
        for name in chain:
            if attribute is not None:
                break
            module, attribute = self._defined(module, name)
        return {(module, WHOLE if attribute is None else attribute)}

    def _resolve(self, module: str, attribute: str | None) -> set[Part]:
        place, name = self._defined(module, attribute)
        return {(module, REST), (place, WHOLE if name is None else name)} if attribute else {(place, WHOLE)}

    def _defined(self, module: str, attribute: str | None) -> tuple[str, str | None]:
        """The module and name in which ``module.attribute`` is defined, past re-exports; the name is None for a module."""
        seen: set[tuple[str, str]] = set()
        while attribute is not None and (module, attribute) not in seen:
            seen.add((module, attribute))
            known = self.module(module)
            if known is None:
                return module, attribute
            binding = known.names.get(attribute)
            if binding is None or (binding.module, binding.attribute) == (module, attribute):
                if attribute not in known.defined and self.module(f"{module}.{attribute}") is not None:
                    return f"{module}.{attribute}", None
                return module, attribute
            module, attribute = binding.module, binding.attribute
        return module, attribute


#: The modules on disk.
SOURCES = Sources()
