"""The statements of modules: their texts without comments, docstrings and layout, and the names and imports in them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Stands for all of a module, in place of a class.
WHOLE = "*"
#: Stands for the statements of a module that are no classes, in place of a class.
REST = ""


@dataclass(frozen=True)
class Binding:
    """A name that an import binds to a module, or to an attribute of one."""

    name: str
    module: str
    attribute: str | None


@dataclass(frozen=True)
class Statement:
    """One statement at the top of a module: its text without comments, docstrings and layout, and the names in it.

    ``place`` counts it among the module's statements, ``kind`` is the kind of its syntax, ``name`` that of a class or function.
    ``chains`` are names with the attributes that follow them (``a.b.c``), ``bindings`` the imports at any depth except those
    for type checkers alone, ``calls`` the functions that are called with texts, and these texts.
    """

    place: int
    kind: str
    name: str
    text: str
    chains: frozenset[tuple[str, ...]]
    bindings: tuple[Binding, ...]
    calls: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    @property
    def is_class(self) -> bool:
        """Whether it defines a class."""
        return self.kind == "ClassDef"

    @classmethod
    def of(cls, node: ast.stmt, place: int, package: str) -> Statement:
        """What a statement's syntax tree says."""
        reader = _Reader(package)
        reader.read(node)
        name = getattr(node, "name", "")
        text, chains = " ".join(reader.written), frozenset(reader.chains)
        return cls(place, type(node).__name__, name, text, chains, tuple(reader.bindings), tuple(reader.calls))


class _Reader:
    """Walks the syntax tree of one statement and collects what it says."""

    def __init__(self, package: str):
        self.package = package
        self.written: list[str] = []
        self.chains: set[tuple[str, ...]] = set()
        self.bindings: list[Binding] = []
        self.calls: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def read(self, node: ast.AST) -> None:
        write = self.written.append
        if isinstance(node, ast.Name | ast.Attribute):
            chain = _dotted(node)
            if chain is not None:
                self.chains.add(chain)
                write(".".join(chain))
                return
        elif isinstance(node, ast.Constant):
            write(repr(node.value))
            return
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.bindings += _bindings(node, self.package)
            return
        elif _for_type_checkers(node):
            return
        elif isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = tuple(a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str))
            chain = _dotted(node.func) if texts else None
            if chain is not None:
                self.calls.append((chain, texts))
        write(type(node).__name__)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                write("[")
                for item in value[_docstrings(node, name, value) :]:
                    if isinstance(item, ast.AST):
                        self.read(item)
                    else:
                        write(repr(item))
                write("]")
            elif isinstance(value, ast.AST):
                self.read(value)
            else:
                write(repr(value))


@dataclass(frozen=True)
class Module:
    """The statements of a module, its imports (``bindings``, and ``names`` with those that are guarded) and definitions."""

    name: str
    bindings: tuple[Binding, ...]
    names: dict[str, Binding]
    defined: frozenset[str]
    statements: tuple[Statement, ...]

    @functools.cached_property
    def classes(self) -> frozenset[str]:
        """The names of its classes."""
        return frozenset(statement.name for statement in self.statements if statement.is_class)

    @classmethod
    def of(cls, name: str, text: str, *, is_package: bool) -> Module:
        """What a module's text says.

        Raises:
            SyntaxError, ValueError, RecursionError: if it can't be parsed.
        """
        body = ast.parse(text).body
        package = name if is_package else name.rpartition(".")[0]
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        bindings = tuple(binding for node in imports for binding in _bindings(node, package))
        # Imports for type checkers count among ``names``, since they list the names that a lazy module offers.
        guarded = [n for node in body if isinstance(node, ast.If | ast.Try) for n in ast.walk(node)]
        lazily = [b for n in guarded if isinstance(n, ast.Import | ast.ImportFrom) for b in _bindings(n, package)]
        names = {binding.name: binding for binding in (*lazily, *bindings)}
        defined = frozenset(n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
        shown = [(place, node) for place, node in enumerate(body) if not (place == 0 and _is_text(node))]
        shown = [(place, node) for place, node in shown if node not in imports and not _says_release(node)]
        return cls(name, bindings, names, defined, tuple(Statement.of(node, place, package) for place, node in shown))

    def kept(self, name: str, *, functions_only: bool = False) -> tuple[list[Statement], list[Binding]]:
        """The statements of a part and the imports that it uses.

        A class comes with the statements that are no classes, and with the classes that these and it name.
        """
        if name == WHOLE:
            return [*self.statements], [*self.bindings]
        classes = {statement.name: statement for statement in self.statements if statement.is_class}
        kept = [statement for statement in self.statements if not statement.is_class]
        if functions_only:
            kept = [statement for statement in kept if statement.kind == "FunctionDef"]
        taken = {name} & classes.keys()
        waiting, used = [*kept, *(classes[n] for n in taken)], set[str]()
        while waiting:
            named = {chain[0] for chain in waiting.pop().chains}
            used |= named
            fresh = named & classes.keys() - taken
            taken |= fresh
            waiting += [classes[n] for n in fresh]
        kept += [statement for n, statement in classes.items() if n in taken]
        return kept, [binding for binding in self.bindings if binding.name in used]


def _bindings(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[Binding]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield Binding(alias.asname or top, alias.name if alias.asname else top, None)
            if not alias.asname and alias.name != top:
                yield Binding(f"{alias.name}()", alias.name, None)
        return
    module = node.module or ""
    if node.level:
        base = package.split(".")
        base = base[: len(base) - node.level + 1]
        module = ".".join([*base, *([module] if module else [])])
    for alias in node.names:
        yield Binding(alias.asname or alias.name, module, None if alias.name == "*" else alias.name)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and (_dotted(node.test) or ("",))[-1] == "TYPE_CHECKING"


def _says_release(node: ast.AST) -> bool:
    """Whether a statement sets the version of the release, which changes no number."""
    return isinstance(node, ast.Assign) and [_dotted(target) for target in node.targets] == [("__version__",)]


def _dotted(node: ast.AST) -> tuple[str, ...] | None:
    """The names in ``a.b.c``; None for another expression."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _docstrings(node: ast.AST, name: str, statements: list[Any]) -> int:
    """The number of docstrings, 1 or 0, at the beginning of a list of statements."""
    documented = name == "body" and isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return int(documented and bool(statements) and _is_text(statements[0]))
