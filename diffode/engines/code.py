"""A user's code and files by content: collected where a study begins, and laid out on the workers that lack them."""

from __future__ import annotations

import atexit
import base64
import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

from diffode.closure import SOURCES, WHOLE, user_file
from diffode.errors import ArgumentError, WorkerError
from diffode.extensions import import_extension, is_place
from diffode.input_files import bring
from diffode.specs import parse_spec

#: Largest size of the files of a study that travel to workers, in bytes.
_MOST = 32 * 2**20


@dataclass(frozen=True)
class Brought:
    """A file that travels.

    Attributes:
        written: the name under which specs and ``--import`` know it; for a module that is imported by name, the module's name.
        place: its place where the study began, which is taken where a worker finds the same content there.
        content: the bytes in base 64.
        module: the path, relative to a folder of modules, of a module that is imported by name; an empty text for other files.
    """

    written: str
    place: str
    content: str
    module: str = ""

    def bytes(self) -> bytes:
        """The content."""
        return base64.b64decode(self.content)

    def is_there(self) -> bool:
        """Whether this machine has the same content at the same place, as machines that share a disk do."""
        with contextlib.suppress(OSError):
            return FilePath(self.place).read_bytes() == self.bytes()
        return False


@dataclass(frozen=True)
class Code:
    """The files of a user that a study needs, and the folder in which it began."""

    folder: str
    files: tuple[Brought, ...]

    @staticmethod
    def of(modules: Iterable[str], specs: Iterable[str] = ()) -> Code:
        """The modules and files by name, those that ``specs`` name as places or options, and the user's that they import.

        Raises:
            ArgumentError: if they are too large to travel.
        """
        named, read = dict.fromkeys(modules), dict[str, None]()
        for spec in specs:
            for text in _texts(spec):
                if is_place(text):
                    named[text.rpartition(":")[0]] = None
                elif FilePath(text).is_file():
                    read[text] = None
        files = [_brought(text, FilePath(text)) for text in read]
        roots = []
        for module in named:
            if module.endswith(".py"):
                roots.append((import_extension(module).__name__, WHOLE))
                files.append(_brought(module, FilePath(module)))
            elif user_file(module) is not None:
                roots.append((module, WHOLE))
        for module in sorted({module for module, _ in SOURCES.closure(roots).parts}):
            file = user_file(module)
            if file is not None and not module.startswith("diffode_extension_") and module != "__main__":
                inside = module.replace(".", "/") + ("/__init__.py" if file.name == "__init__.py" else ".py")
                files.append(_brought(module, file, inside))
        size = sum(len(file.content) * 3 // 4 for file in files)
        if size > _MOST:
            raise ArgumentError(
                f"the modules and files of the study have {size:,} bytes, more than the {_MOST:,} that travel to workers: "
                "install them on the workers as a package, or name fewer"
            )
        return Code(os.getcwd(), tuple(files))

    def plain(self) -> dict[str, Any]:
        """The code as plain data."""
        return asdict(self)

    @staticmethod
    def read(plain: Mapping[str, Any]) -> Code:
        """The code that plain data hold."""
        return Code(plain["folder"], tuple(Brought(**file) for file in plain["files"]))

    def lay_out(self) -> None:
        """Put what this machine lacks into a folder of its own, where imports and readers of files find it.

        Raises:
            WorkerError: if this process has imported a module of the same name and another content.
        """
        missing = [file for file in self.files if not file.is_there()]
        folder = FilePath(tempfile.mkdtemp(prefix="diffode-code-")) if missing else None
        if folder is not None:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for number, file in enumerate(self.files):
            place = FilePath(file.place)
            if folder is not None and file in missing:
                place = folder / "modules" / file.module if file.module else folder / str(number) / place.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.bytes())
            if not file.module:
                bring(file.written, place)
                continue
            _check_unlike(file)
            root = str(FilePath(str(place).removesuffix(file.module)))
            if root not in sys.path:
                sys.path.insert(0, root)
        importlib.invalidate_caches()


def _check_unlike(file: Brought) -> None:
    known = getattr(sys.modules.get(file.written), "__file__", None)
    with contextlib.suppress(OSError):
        if isinstance(known, str) and FilePath(known).read_bytes() != file.bytes():
            raise WorkerError(f"this worker has imported another {file.written} ({known}): start the workers again")


def _brought(written: str, file: FilePath, module: str = "") -> Brought:
    return Brought(written, str(file.resolve()), base64.b64encode(file.read_bytes()).decode(), module)


def _texts(spec: str) -> list[str]:
    """The name in a spec and its options that are texts."""
    try:
        name, options = parse_spec(spec)
    except ArgumentError:
        return []
    return [name, *(value for value in options.values() if isinstance(value, str))]
