"""Files and texts of diffode's and of users' modules, and hashes of modules without a text."""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

_ROOT = Path(__file__).parent.parent
#: Ends of the names of compiled files and of their sources.
_NATIVE = tuple(
    {*importlib.machinery.EXTENSION_SUFFIXES, ".so", ".pyd", ".dll", ".dylib", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h"}
)
#: Folders of installed libraries.
_INSTALLED = ("site-packages", "dist-packages")


def source_of(module: str) -> str | None:
    """The text of a module of diffode or of a user; None for libraries and for modules without a text."""
    file = file_of(module)
    if file is None or file.suffix != ".py":
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


@functools.cache
def file_of(module: str) -> Path | None:
    """The file of a module of diffode or of a user, imported or not; None for others."""
    top, *rest = module.split(".")
    if top == "diffode":
        place = _ROOT.joinpath(*rest)
        found = [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
        return found[0] if found and module != "diffode.__init__" else None
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return None
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None and (not rest or module.rpartition(".")[0] in sys.modules):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            spec = None
        origin = spec.origin if spec is not None and spec.has_location else None
    if not isinstance(origin, str):
        return None
    file = Path(origin)
    return None if any(part in _INSTALLED for part in file.parts) and not _plugs_in(top) else file


def user_file(module: str) -> Path | None:
    """The file of Python of a user's module that is not installed; None for other modules."""
    file = file_of(module)
    if file is None or file.suffix != ".py" or module.split(".")[0] == "diffode":
        return None
    return None if any(part in _INSTALLED for part in file.parts) else file


@functools.cache
def _plugs_in(package: str) -> bool:
    """Whether an installed package extends diffode through an entry point of one of its groups."""
    points = importlib.metadata.entry_points()
    return any(point.module.split(".")[0] == package for group in points.groups if group.startswith("diffode.")
               for point in points.select(group=group))  # fmt: skip


def is_own(module: str) -> bool:
    """Whether a module without a text is a user's code, typed in or compiled."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top == "diffode":
        return module == "__main__"
    file = file_of(module)
    return file is not None or (module in sys.modules and getattr(sys.modules[module], "__file__", None) is None
                                and getattr(sys.modules[module], "__spec__", None) is None)  # fmt: skip


def is_package(module: str) -> bool:
    """Whether a module of diffode or of a user is a package."""
    file = file_of(module)
    return file is not None and file.name == "__init__.py"


def label(module: str) -> str:
    """A module's name; for a file that was imported by its location, the file's name without its folder."""
    file = file_of(module)
    return file.stem if file is not None and module.startswith("diffode_extension_") else module


@functools.cache
def native_code() -> str:
    """A hash of the compiled files and the C, C++ and CUDA sources inside diffode."""
    digest = hashlib.sha256()
    for file in sorted(file for file in _ROOT.rglob("*") if file.name.endswith(_NATIVE)):
        digest.update(f"{file.relative_to(_ROOT).as_posix()}|".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def compiled(module: ModuleType | None) -> str:
    """A hash of a module without a text: of its file if it is compiled, else of its functions' code and its plain values."""
    digest = hashlib.sha256()
    file = getattr(module, "__file__", None)
    if isinstance(file, str) and Path(file).is_file():
        digest.update(Path(file).read_bytes())
    else:
        for name, value in sorted(vars(module).items()) if module is not None else ():
            if not name.startswith("_"):
                digest.update(f"{name}={'|'.join(_told(value, module))};".encode())
    return digest.hexdigest()


def _told(value: object, module: ModuleType | None) -> Iterator[str]:
    """The texts that stand for a value in a hash: its code if it is defined in this module, itself if it is plain."""
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        yield repr(value)
    elif isinstance(value, FunctionType):
        yield from (*_instructions(value.__code__), repr(value.__defaults__), repr(value.__kwdefaults__))
    elif isinstance(value, type) and module is not None and value.__module__ == module.__name__:
        for name, member in sorted(vars(value).items()):
            inner = getattr(member, "__func__", getattr(member, "fget", member))
            yield from (name, *_told(inner, module))
    else:
        yield type(value).__qualname__


def _instructions(code: CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            # The order of a set differs from process to process.
            yield repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
