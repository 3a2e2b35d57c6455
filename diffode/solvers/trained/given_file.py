"""The option ``file`` of solvers whose numbers are in a file, or were given in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from diffode.errors import ArgumentError

T = TypeVar("T")


def named(file: object) -> str:
    """The name of a file, given as a text or a path; an empty text for none.

    Raises ArgumentError for what a spec reads as a number or a list.

    >>> named("ring8.safetensors")
    'ring8.safetensors'
    """
    found = os.fspath(file) if isinstance(file, os.PathLike) else file
    if found is None:
        return ""
    if not isinstance(found, str):
        raise ArgumentError(
            f"file must be a name that does not read as a number or list, such as ./{found}, or quoted: '{found}'"
        )
    return found


def numbers_of(
    solver: str, file: str, option: str, given: T | None, kind: type[T], load: Callable[[str], T], wrote: str = ""
) -> T:
    """The numbers that were given as an option, or are in the file; ArgumentError unless it is one of both.

    Args:
        solver: name of the solver, for errors.
        file: name of the file, empty for none.
        option: name of the option that takes the file's place.
        given: its value.
        kind: the class of the numbers.
        load: reads them from a file.
        wrote: the command that writes such a file; by default it trains the method of the solver's name.
    """
    if given is not None and (file or not isinstance(given, kind)):
        raise ArgumentError(f"{option} must be what training gave, and takes the place of file=")
    if given is None and not file:
        raise ArgumentError(f"{solver} needs file=, the name of a file that `{wrote or f'diffode train {solver}'}` wrote")
    return load(file) if given is None else given
