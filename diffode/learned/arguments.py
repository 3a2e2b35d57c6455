"""Checks of the arguments of training: a field with a path, the shape of its rows, seeds and finite levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.paths import Path

#: Largest noise level and unit of length in a file, far beyond those of all data; their squares do not overflow.
LARGEST = 1e30


def row_shape(field: Field, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """Shape of a row of x: that of an exact field, or of any other field the one given as ``dim``."""
    wanted = field.dim if dim is None else dim
    if wanted is None:
        raise ArgumentError("dim is needed: how many coordinates a row of x has, or the shape of a row")
    shape = tuple(wanted) if isinstance(wanted, tuple | list | torch.Size) else (wanted,)
    if (
        not shape
        or any(type(n) is not int or n < 1 for n in shape)
        or (field.dim is not None and math.prod(shape) != field.dim)
    ):
        known = "" if field.dim is None else f"; a row of this field has {field.dim} coordinate{'s' if field.dim != 1 else ''}"
        raise ArgumentError(f"dim must be a number of coordinates >= 1 or the shape of a row of x, got {dim!r:.60}{known}")
    return shape


def bounded(value: float, name: str) -> float:
    """A positive number of a file, if its square and inverse are finite; ValueError otherwise."""
    if not 1 / LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} must lie in [{1 / LARGEST:g}, {LARGEST:g}], got {value!r}")
    return value


def check_seed(seed: object) -> None:
    """Raise ArgumentError unless a seed is an integer from 0 to 2^40 - 1, from which the streams of training are made."""
    if type(seed) is not int or not 0 <= seed < 2**40:
        raise ArgumentError(f"seed must be an integer from 0 to 2^40 - 1, got {seed!r}")


def finite_levels(path: Path) -> tuple[float, float]:
    """The first and last noise level of a path; ArgumentError if one is infinite or 0."""
    first, last = path.rho(path.t_max), path.rho(path.t_min)
    if not math.isfinite(first) or last <= 0:
        raise ArgumentError(
            f"training needs 0 < rho < infinity at both ends of path {path.spec!r}; choose t_max and t_min inside"
        )
    return first, last
