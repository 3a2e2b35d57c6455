"""Checks of numbers that are asked for, which name the argument and what it may be."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any

from diffode.errors import ArgumentError


def check_count(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raise ArgumentError unless a number that was asked for is an integer in a range.

    >>> check_count("steps", 8, 1)
    """
    if type(value) is not int or not least <= value <= most:
        wanted = f">= {least}" if most == math.inf else f"from {least} to {most}"
        raise ArgumentError(f"{name} must be an integer {wanted}, got {value!r:.60}")


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> None:
    """Raise ArgumentError unless a number that was asked for is finite, from ``least`` on or ``above`` it, and below ``most``.

    >>> check_number("sigma", 0.5, 0.0, above=True)
    """
    # An integer may be larger than any float.
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not known or not least <= value < most or (above and value == least):
        bounds = (
            f" {'>' if above else '>='} {least:g}" if most == math.inf else f" in {'(' if above else '['}{least:g}, {most:g})"
        )
        raise ArgumentError(f"{name} must be a number{bounds if least > -math.inf else ''}, got {value!r:.60}")


def number_of(name: str, value: Any, least: float = -math.inf, *, above: bool = False) -> float:
    """A number as a float, those of NumPy and tensors of one number too, held to what :func:`check_number` asks.

    >>> number_of("unit", 2)
    2.0
    """
    if not isinstance(value, str | bytes | bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            value = float(value)
    check_number(name, value, least, above=above)
    return float(value)
