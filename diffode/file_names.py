"""What a file may be called by: a text or a path."""

from __future__ import annotations

import os
from pathlib import Path as FilePath

from diffode.errors import ArgumentError


def place_of(file: object, argument: str = "file") -> FilePath:
    """The place that an argument names; ArgumentError, which names the argument, for anything but a text or a path.

    >>> place_of("ring8.safetensors").suffix
    '.safetensors'
    """
    named = os.fspath(file) if isinstance(file, os.PathLike) else file
    if not isinstance(named, str):
        raise ArgumentError(f"{argument} must be a file's name, a text or a path, got {file!r:.60}")
    if not named:
        raise ArgumentError(f"{argument} must be a file's name, got an empty text")
    return FilePath(named)
