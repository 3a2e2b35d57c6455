"""The statements of modules: their texts without comments, docstrings and layout, and the names and imports in them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
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


class _Statement:
    """One statement at the top of a module: its text without comments, docstrings and layout, and the names in it.

    ``chains`` are names with the attributes that follow them (``a.b.c``), ``bindings`` the imports at any depth except those
    for type checkers alone, ``calls`` the functions that are called with texts, and these texts.
    """

    def __init__(self, node: ast.stmt, package: str):
        self.node, self.package = node, package
        self.chains: set[tuple[str, ...]] = set()
        self.bindings: list[Binding] = []
        self.calls: list[tuple[tuple[str, ...], list[str]]] = []
        written: list[str] = []
        self._read(node, written.append)
        self.text = " ".join(written)

    def _read(self, node: ast.AST, write: Callable[[str], None]) -> None:
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
            texts = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
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
                        self._read(item, write)
                    else:
                        write(repr(item))
                write("]")
            elif isinstance(value, ast.AST):
                self._read(value, write)
            else:
                write(repr(value))


class Module:
    """The statements, imports and definitions of a module."""

    def __init__(self, name: str, text: str, *, is_package: bool):
        body = ast.parse(text).body
        self.name = name
        package = name if is_package else name.rpartition(".")[0]
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        self.bindings = [binding for node in imports for binding in _bindings(node, package)]
        # Imports for type checkers count among ``names``, since they list the names that a lazy module offers.
        guarded = [n for node in body if isinstance(node, ast.If | ast.Try) for n in ast.walk(node)]
        lazily = [b for n in guarded if isinstance(n, ast.Import | ast.ImportFrom) for b in _bindings(n, package)]
        self.names = {binding.name: binding for binding in (*lazily, *self.bindings)}
        self.defined = {n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
        self.classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
        shown = body[1:] if body and _is_text(body[0]) else body
        shown = [node for node in shown if node not in imports and not _says_release(node)]
        self._statements = [_Statement(node, package) for node in shown]

    def kept(self, name: str, *, functions_only: bool = False) -> tuple[list[_Statement], list[Binding]]:
        """The statements of a part and the imports that it uses.

        A class comes with the statements that are no classes, and with the classes that these and it name.
        """
        if name == WHOLE:
            return self._statements, self.bindings
        classes = {s.node.name: s for s in self._statements if isinstance(s.node, ast.ClassDef)}
        kept = [s for s in self._statements if not isinstance(s.node, ast.ClassDef)]
        if functions_only:
            kept = [s for s in kept if isinstance(s.node, ast.FunctionDef)]
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
