"""What memories take: orders, positive numbers, signals, times; each checked, and named in the error if it is wrong."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from diffode.errors import ArgumentError, NumericalError
from diffode.input_files import shown

Array = np.ndarray[Any, Any]

#: Largest order of a memory: its matrix has 1 GiB then.
_MOST_ORDER = 2**13
#: Largest size of a number of a signal, or of a time, whose squares still fit.
_LARGEST = 1e150
#: Largest difference of equal steps, in units of the rounding of the last time.
_ROUNDINGS = 8.0


def order_of(order: Any, argument: str = "order", least: int = 1, most: int = _MOST_ORDER) -> int:
    """A whole number in a range; ArgumentError for anything else.

    >>> order_of(64)
    64
    """
    try:
        if isinstance(order, bool | np.bool_):
            raise TypeError
        number = operator.index(order)
    except TypeError:
        raise ArgumentError(f"{argument} must be a whole number from {least} to {most}, got {shown(order)}") from None
    if not least <= number <= most:
        raise ArgumentError(f"{argument} must be from {least} to {most}, got {shown(order)}")
    return number


def number_of(value: Any, argument: str, above: float = -math.inf, *, reached: bool = False) -> float:
    """A finite real number above a bound, or at least the bound if that may be ``reached``; ArgumentError for anything else."""
    wanted = "" if above == -math.inf else f" {'>=' if reached else '>'} {above:g}"
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ArgumentError(f"{argument} must be a finite number{wanted}, got {shown(value)}") from None
    if not (abs(number) <= _LARGEST and (number > above or (reached and number == above))):
        raise ArgumentError(f"{argument} must be a finite number{wanted}, got {shown(value)}")
    return number


def numbers_of(values: Any, argument: str, *, complex_too: bool = False) -> Array:
    """Finite numbers as a float64 array, or a complex one if these are taken too; ArgumentError for anything else."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{argument} must be numbers, got {shown(values)}: {error}") from None
    if found.dtype.kind not in ("fiuc" if complex_too else "fiu"):
        raise ArgumentError(f"{argument} must be {'' if complex_too else 'real '}numbers, got {found.dtype} {shown(values)}")
    found = found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)
    wrong = ~(np.abs(found) <= _LARGEST)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f" at {where[0] if len(where) == 1 else where}" if where else ""
        raise ArgumentError(
            f"{argument} must be finite numbers up to {_LARGEST:g}, got {found[where]}{place}; "
            "fill or leave out what is missing"
        )
    return found


def signal_of(u: Any) -> Array:
    """A signal (L,) or (L, channels), L >= 1, float32 if it is given so, else float64; ArgumentError for anything else."""
    found = numbers_of(u, "u")
    single = np.dtype(np.float32)
    kind = np.asarray(u).dtype
    if found.ndim not in (1, 2) or found.size == 0:
        raise ArgumentError(f"u must be a signal of shape (L,) or (L, channels) with L >= 1, got shape {found.shape}")
    return found.astype(single) if kind == single else found


def times_of(times: Any, length: int) -> Array:
    """The times of a signal's samples, (L,): given, or a step from time 0 on; ArgumentError unless they rise."""
    found = numbers_of(times, "times")
    single = np.asarray(times).dtype == np.float32
    if found.ndim == 0:
        return np.arange(length) * number_of(times, "times (a step)", 0.0)
    if found.shape != (length,):
        raise ArgumentError(f"times must be as many as the samples of u, ({length},), or one step; got shape {found.shape}")
    falls = np.flatnonzero(~(np.diff(found) > 0))
    if falls.size:
        k = int(falls[0])
        raise ArgumentError(f"times must rise, got {found[k]:g} and then {found[k + 1]:g} at index {k + 1}; sort them first")
    if single and length > 2 and np.ptp(np.diff(found)) <= _ROUNDINGS * np.spacing(np.float32(np.abs(found).max())):
        # Equal steps, as far as float32 tells.
        return np.linspace(found[0], found[-1], length)
    return found


def equal_steps(steps: Array, largest: float) -> bool:
    """Whether steps between times up to ``largest`` are one step, but for the rounding of these times."""
    return bool(steps.max() - steps.min() <= _ROUNDINGS * np.spacing(largest))


def gathered(steps: Array, largest: float) -> Array:
    """Steps between times up to ``largest``; those that differ by the rounding of these times alone become their mean."""
    order = np.argsort(steps)
    group = np.concatenate([[0], np.cumsum(np.diff(steps[order]) > _ROUNDINGS * np.spacing(largest))])
    means = np.bincount(group, steps[order]) / np.bincount(group)
    found = np.empty_like(steps)
    found[order] = means[group]
    return found


def finite(values: Array, what: str, remedy: str) -> Array:
    """The values; NumericalError with a remedy unless all are finite."""
    if not np.isfinite(values.sum()) and not np.isfinite(values).all():
        raise NumericalError(f"{what} is not finite: it is too large for {values.dtype}; {remedy}")
    return values
