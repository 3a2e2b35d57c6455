"""The folder of a report: a new report is made beside the old one and put in its place whole; other files there stay.

``report.json`` lists the files of a report with their checksums, and a hash of all that the report was made of, so that one
that is up to date is not made again. Only files listed there are ever replaced or deleted. Not every system exchanges
one folder for another in one step, and the exchange would take the user's own files away for a moment. The finished files
are therefore moved one by one, each in one step. ``index.html``, which holds all pictures and tables, comes last, so that it
shows the whole old report or the whole new one, whenever the process is killed. Until the last file is moved ``report.json``
lists the files of both reports, so that the next report replaces them all. An error puts the files of the old report back.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

from diffode.errors import ArgumentError, FileFormatError
from diffode.output_files import unwritable

_locks: ModuleType | None
try:
    _locks = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover - Windows has no such locks.
    _locks = None

#: File of the page.
PAGE = "index.html"
#: File of all numbers.
TABLE = "results.csv"
#: Folder of the pictures.
FIGURES = "figures"
#: File that lists the files of a report.
MANIFEST = "report.json"
#: File, in the folder of a new report only, that says what it is made of.
_MADE_OF = "made-of"
#: Schema of the list.
_SCHEMA = "diffode-report-1"
#: Largest size of the list, in bytes.
_LARGEST_MANIFEST = 2**20
#: Names that the list may hold.
LISTED = re.compile(rf"({PAGE}|{TABLE}|{FIGURES}/[A-Za-z0-9_=-][A-Za-z0-9_.=-]*\.png)\Z")
#: Names of folders of unfinished reports.
_STAGING = re.compile(r"\.diffode-new-[0-9a-f]{12}\Z")


def check_folder(place: FilePath, names: Iterable[str]) -> None:
    """Try whether a report with given files could be put in a folder, before the work of making it.

    Raises:
        ArgumentError: if the folder can't be written, or a file is in the way that no report has listed.
    """
    with _explained(place):
        _check_names(place, names, _listed(place))
        with _staging(place) as folder:
            (folder / PAGE).write_bytes(b"\0")


def is_current(place: FilePath, made_of: str) -> bool:
    """Whether a folder holds a whole report that was made of this (a hash), and no file of it was changed since."""
    try:
        content = _manifest(place / MANIFEST) or {}
        sums = content.get("checksums")
        if content.get("made_of") != made_of or not isinstance(sums, dict) or sums.keys() != set(content["files"]):
            return False
        return all(_checksum(place / name) == known for name, known in sums.items())
    except (OSError, FileFormatError):
        # A report that can't be read is made again, which says what is wrong.
        return False


def say_made_of(folder: FilePath, made_of: str) -> None:
    """Say what a new report in its folder is made of, see :func:`is_current`; one of which nothing is said is made again."""
    (folder / _MADE_OF).write_text(made_of, encoding="utf-8")


@contextlib.contextmanager
def new_report(place: FilePath) -> Iterator[FilePath]:
    """A folder in which to make a report; at the end of the block its files become the report of ``place``, if no error did.

    What :func:`say_made_of` says of the folder goes with it.

    Raises:
        ArgumentError: if the folder can't be written, or a file is in the way that no report has listed.
    """
    with _staging(place) as staging:
        yield staging
        with _explained(place), _held(place):
            _put_in_place(staging, place)


@contextlib.contextmanager
def _staging(place: FilePath) -> Iterator[FilePath]:
    """A folder inside ``place``, removed at the end; ``place`` goes too if it was made for this and stayed empty."""
    held = contextlib.ExitStack()
    with _explained(place):
        made = not place.exists()
        place.mkdir(parents=True, exist_ok=True)
        # The lock keeps another process that begins a report from taking this folder for an abandoned one.
        with _held(place):
            _remove_abandoned(place)
            staging = place / f".diffode-new-{secrets.token_hex(6)}"
            staging.mkdir()
            held.enter_context(_held(staging))
    try:
        with held:
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                place.rmdir()


def _put_in_place(staging: FilePath, place: FilePath) -> None:
    new = sorted(file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file())
    new = sorted((name for name in new if LISTED.match(name)), key=lambda name: (name == PAGE, name == TABLE, name))
    old = _listed(place)
    _check_names(place, new, old)
    for name in new:
        _flush(staging / name)
    kept = staging / "old"
    _write_manifest(staging, place, old.union(new))
    done: list[str] = []
    try:
        for name in new:
            (place / name).parent.mkdir(exist_ok=True)
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place / name):
                _keep(place / name, kept / name)
            done.append(name)
            os.replace(staging / name, place / name)
    except BaseException:
        # An interruption by the keyboard is a BaseException too.
        for name in done:
            _restore(kept / name, place / name)
        raise
    for name in sorted(old.difference(new)):
        (place / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        # The folder of figures goes unless other files lie in it.
        if old and not any(name.startswith(FIGURES) for name in new):
            (place / FIGURES).rmdir()
    said = staging / _MADE_OF
    _write_manifest(staging, place, new, said.read_text(encoding="utf-8") if said.is_file() else "")


def _check_names(place: FilePath, names: Iterable[str], listed: set[str]) -> None:
    if os.path.lexists(place / FIGURES) and ((place / FIGURES).is_symlink() or not (place / FIGURES).is_dir()):
        raise ArgumentError(f"{str(place / FIGURES)!r} is no folder of its own: move it away, or choose another --output")
    for name in names:
        file = place / name
        if not os.path.lexists(file):
            continue
        if name not in listed:
            raise ArgumentError(
                f"{str(file)!r} is in the way of the report, and no report lists it as its own ({MANIFEST} beside it): "
                "move it away, or choose another --output"
            )
        if file.is_dir():
            raise ArgumentError(f"{str(file)!r} is a folder, where the report has a file: move it away")


def _listed(place: FilePath) -> set[str]:
    """The files that the report in a folder has listed; none if there is no report."""
    content = _manifest(place / MANIFEST)
    return set() if content is None else set(content["files"])


def _manifest(file: FilePath) -> dict[str, Any] | None:
    """The list of a report, whose ``files`` are names of a report's files; None if there is none."""
    if not os.path.lexists(file):
        return None
    damaged = f"{file} is not the list of a report: move it away, or choose another --output"
    if not file.is_file() or file.stat().st_size > _LARGEST_MANIFEST:
        raise FileFormatError(damaged)
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        names = content["files"] if content["schema"] == _SCHEMA else None
        # A list with a name that no report's file has was not made by a report.
        if not isinstance(names, list) or not all(isinstance(name, str) and LISTED.match(name) for name in names):
            raise ValueError("files must be the names of a report's files")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(damaged) from error
    return content


def _write_manifest(staging: FilePath, place: FilePath, names: Iterable[str], made_of: str = "") -> None:
    """List files: with their checksums once they are all there, and ``made_of`` says what they were made of."""
    content: dict[str, Any] = {"schema": _SCHEMA, "files": sorted(names)}
    if made_of:
        content |= {"made_of": made_of, "checksums": {name: _checksum(place / name) for name in content["files"]}}
    made = staging / MANIFEST
    made.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _flush(made)
    os.replace(made, place / MANIFEST)


def _checksum(file: FilePath) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _keep(file: FilePath, copy: FilePath) -> None:
    """Make a hard link to a file, or a copy where the disk has no hard links."""
    try:
        os.link(file, copy, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(file, copy, follow_symlinks=False)


def _restore(kept: FilePath, file: FilePath) -> None:
    with contextlib.suppress(OSError):
        if os.path.lexists(kept):
            os.replace(kept, file)
        else:
            file.unlink(missing_ok=True)


def _flush(file: FilePath) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def _held(folder: FilePath) -> Iterator[None]:
    """Hold a lock on a folder inside the block; it ends with the process. Systems without such locks get none."""
    if _locks is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _locks.flock(handle, _locks.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(place: FilePath) -> None:
    """Remove unfinished reports whose process was killed, so that no process holds their lock."""
    if _locks is None:
        return
    for folder in place.iterdir():
        if not _STAGING.match(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                _locks.flock(handle, _locks.LOCK_EX | _locks.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _explained(place: FilePath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(place, error, "report folder") from error
    except ValueError as error:
        if isinstance(error, ArgumentError | FileFormatError):
            raise
        raise unwritable(place, error, "report folder") from error
