"""Files that diffode writes: tried before work begins, replaced whole, and with a remedy when they can't be written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import BinaryIO

from diffode.errors import ArgumentError, DiffodeError
from diffode.file_names import place_of

#: Remedies by the number of a system's error.
_REMEDIES = {
    errno.ENOSPC: "free some space there, or choose a place on another disk",
    errno.EDQUOT: "your quota there is used up: free some of it, or choose a place on another disk",
    errno.EFBIG: "if a limit on the size of files holds here (ulimit -f), raise it or start from a shell without it",
    errno.EMFILE: "too many files are open (ulimit -n): raise the limit, or run fewer workers with --jobs",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "a folder of this name is in the way: move it away, or choose another name",
    errno.ENOTDIR: "a file is where a folder should be: move it away, or choose another place",
    errno.EEXIST: "something of this name is in the way: move it away, or choose another name",
    errno.ENOENT: "its folder does not exist: make it first, or choose a place in a writable folder",
    errno.ELOOP: "its links lead in a circle: choose another place",
    errno.EROFS: "the disk is mounted read-only: choose a place that can be written",
    errno.EIO: "the disk reports an error: choose a place on another disk",
}


def remedy(error: OSError) -> str:
    """A remedy for an error of the system when a file can't be written.

    >>> remedy(OSError(errno.EFBIG, "File too large"))
    'if a limit on the size of files holds here (ulimit -f), raise it or start from a shell without it'
    """
    return _REMEDIES.get(error.errno or 0, "choose a place in a writable folder")


def unwritable(file: str | FilePath, error: OSError | ValueError, what: str = "file") -> ArgumentError:
    """The ArgumentError for a ``file``, called ``what`` in the message, that can't be written."""
    if not isinstance(error, OSError):
        return ArgumentError(f"{what} {str(file)!r} can't be written: {error}; choose another name")
    return ArgumentError(f"{what} {str(file)!r} can't be written: {error.strerror or error}; {remedy(error)}")


def write_whole(file: str | FilePath, content: bytes, what: str = "file") -> None:
    """Write a file so that at any time it holds all of ``content``, or all of its old content.

    Raises:
        ArgumentError: if it can't be written; the message names it and a remedy.
    """
    with whole_file(file, what) as handle:
        handle.write(content)


@contextlib.contextmanager
def whole_file(file: str | FilePath, what: str = "file") -> Iterator[BinaryIO]:
    """A file to write, see :func:`write_whole`, which replaces the old one at the end of the block, unless an error ends it."""
    named = place_of(file, what)
    try:
        # A link stays a link; the file that it leads to is replaced.
        place = FilePath(os.path.realpath(named))
        _look_at(place)
        with _beside(place) as temporary:
            with temporary.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, place)
    except (OSError, ValueError) as error:
        if isinstance(error, DiffodeError):
            raise
        raise unwritable(file, error, what) from error


def writable(file: str | FilePath, what: str = "output", *, make_folders: bool = False) -> FilePath:
    """Try whether a file can be written, before the work whose result it will hold; nothing is left behind.

    Args:
        file: the file.
        what: its name in the message.
        make_folders: whether its folders will be made if they are missing.

    Raises:
        ArgumentError: if it can't be written; the message names it and a remedy.
    """
    named = place_of(file, what)
    try:
        place = FilePath(os.path.realpath(named))
        _look_at(place)
        folders = _made(place.parent) if make_folders else contextlib.nullcontext()
        with folders, _beside(place) as temporary:
            temporary.write_bytes(b"\0")
    except (OSError, ValueError) as error:
        raise unwritable(file, error, what) from error
    return named


def make_folder(file: str | FilePath, what: str = "output") -> None:
    """Make the folder of a file, called ``what`` in the message, that a command is to write; ArgumentError if that fails."""
    try:
        place_of(file, what).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(file, error, what) from error


def _look_at(place: FilePath) -> None:
    """Raise OSError if a folder, a device or a protected file, which must not be replaced, is in the way."""
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if place.exists() and not place.is_file():
        raise FileExistsError(errno.EEXIST, "it is no regular file")
    # The system lets a new file replace a write-protected one, which its owner may want to keep.
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # The name may be too long where the temporary name is not, and a circle of links leads to no file.
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(os.lstat(place).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


@contextlib.contextmanager
def _beside(place: FilePath) -> Iterator[FilePath]:
    """A name for a temporary file in the same folder; the file is removed if it is still there at the end."""
    temporary = place.with_name(f".diffode-{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _made(folder: FilePath) -> Iterator[None]:
    """Make folders for a trial, and remove them after it."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[FilePath] = []
    try:
        for place in reversed(missing):
            place.mkdir()
            made.append(place)
        yield
    finally:
        for place in reversed(made):
            with contextlib.suppress(OSError):
                place.rmdir()
