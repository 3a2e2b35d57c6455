"""Functions of one number that are given as an option: themselves, or by their place; checked where they are asked."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable

from diffode.errors import ArgumentError
from diffode.extensions import load_attribute

#: A function of one number.
Given = Callable[[float], float]


def function_of(given: str | Given, name: str, of: str) -> Given:
    """The function itself, or that of ``module:function`` or ``file.py:function``; ArgumentError if it is none of ``of``."""
    found = load_attribute(given) if isinstance(given, str) else given
    if not callable(found):
        raise ArgumentError(f"{name} {given!r} is a {type(found).__name__}, not a function of {of}")
    function: Given = found
    return function


def checked(function: Given, name: str, of: str, below: float = math.inf) -> Given:
    """The same function, with ArgumentError where it fails, or is negative or not below a bound."""

    def asked(at: float) -> float:
        try:
            value = float(function(at))
        except Exception as error:  # anyone's function may raise anything
            raise ArgumentError(f"{name} fails at {of}={at:g}: {type(error).__name__}: {error}") from error
        if not 0 <= value < below:
            bound = "finite and >= 0" if math.isinf(below) else f">= 0 and below {below:g}"
            raise ArgumentError(f"{name} must be {bound}, it is {value!r} at {of}={at:g}")
        return value

    return asked


def content_of_function(function: Given) -> str:
    """A hash of a function's text and of the values that it was made with, which may change under its name."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = repr(function)
    # The values that a function was made with are not in its text.
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    made_with = [repr(value) for value in (*cells, getattr(function, "__defaults__", None))]
    return hashlib.sha256("|".join([text, *made_with]).encode()).hexdigest()[:16]
