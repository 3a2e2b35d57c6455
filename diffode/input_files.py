"""Files that diffode reads, whoever wrote them: checked before they are opened, and of limited size."""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, BinaryIO

from diffode.errors import ArgumentError, FileFormatError
from diffode.file_names import place_of

#: Shortens values in messages: texts to 80 characters, lists to 3 levels.
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxother = 80
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value for a message, shortened, since a file may hold anything.

    >>> shown([[[[[]]]]])
    '[[[...]]]'
    """
    try:
        return _SHORT.repr(value)
    except Exception:  # The repr of anyone's object may fail, as that of an integer of many digits does.
        return f"a value of type {type(value).__name__}"


#: Files that were brought to this machine, by the names under which texts written elsewhere know them.
_BROUGHT: dict[str, FilePath] = {}


def bring(written: str, place: FilePath) -> None:
    """Let a name that a text gives to a file stand for a place on this machine, whose folders may be others."""
    _BROUGHT[written] = place


def here(file: str | FilePath) -> FilePath:
    """The place of a file on this machine: where it was brought, or else where its name says."""
    return _BROUGHT.get(str(file)) or FilePath(file)


@contextlib.contextmanager
def opened(file: str | FilePath, what: str, most: int) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open for reading, and its size in bytes.

    A pipe or a device is refused before it is opened, since reading it may never end.

    Args:
        file: the file.
        what: its name in messages.
        most: its largest size, in bytes.

    Raises:
        ArgumentError: if ``file`` is no text or path, there is no such file, it is no regular one, or it can't be read.
        FileFormatError: if it is larger.
    """
    place = place_of(file)
    try:
        place = here(place)
        found = place.stat()
        if stat.S_ISDIR(found.st_mode):
            raise ArgumentError(f"{what} can't be read: it is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise ArgumentError(f"{what} can't be read: it is no regular file")
        if found.st_size > most:
            raise FileFormatError(f"{what} has {found.st_size:,} bytes, more than the {most:,} it may have")
        handle = place.open("rb")
    except OSError as error:
        raise _unreadable(what, error) from error
    except ValueError as error:
        if isinstance(error, ArgumentError | FileFormatError):
            raise
        raise _unreadable(what, error) from error
    with handle:
        try:
            yield handle, found.st_size
        except OSError as error:
            if isinstance(error, ArgumentError | FileFormatError):
                raise
            raise _unreadable(what, error) from error


def read_bytes(file: str | FilePath, what: str, most: int) -> bytes:
    """The content of a regular file, see :func:`opened`; FileFormatError if its size changes meanwhile."""
    with opened(file, what, most) as (handle, size):
        content = handle.read(size + 1)
    if len(content) != size:
        raise FileFormatError(f"{what} changed while it was read")
    return content


def read_json(content: str | bytes) -> Any:
    """The value of a JSON text (UTF-8), read more strictly than Python does.

    Raises:
        ValueError: if it is no JSON, holds a key twice, NaN or an infinity, or is nested too deep.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"JSON has the key {shown(twice)} twice")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"JSON has no number {constant}")


def _unreadable(what: str, error: OSError | ValueError) -> ArgumentError:
    if isinstance(error, FileNotFoundError):
        return ArgumentError(f"{what} can't be read: no such file")
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return ArgumentError(f"{what} can't be read: {reason}")


@contextlib.contextmanager
def believed(file: str | FilePath, what: str, remedy: str = "") -> Iterator[None]:
    """Inside the block the contents of a file are checked and made into an object; any error becomes the file's.

    Args:
        file: the file.
        what: the expected contents, such as "a valid tableau".
        remedy: advice at the end of the message.

    Raises:
        FileFormatError: instead of any other error; it names the file.
    """
    try:
        yield
    except FileFormatError:
        raise
    except Exception as error:  # The numbers of a damaged file may make anything fail.
        if isinstance(error, KeyError) and not isinstance(error, ArgumentError):
            reason = f"it lacks {shown(error.args[0] if error.args else '')}"
        else:
            # An address in memory means nothing to a reader, and differs every time.
            reason = re.sub(r" at 0x[0-9a-f]+", "", str(error)[:300]) or type(error).__name__
        raise FileFormatError(f"{file} is not {what}: {reason}{'; ' if remedy else ''}{remedy}") from error
