"""The arguments of a noised law, points and noise levels, each checked by its name."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.targets.target import Scalar

#: The names of scalars in the order in which laws take them.
_NAMES = ("alpha", "sigma", "denoised_weight", "score_weight")


def given(x: Any, dim: int, *scalars: Any) -> tuple[Scalar, ...]:
    """A noise level, alpha and sigma, and any weights for points x (B, dim), each a float or a (B,) tensor.

    If any is a tensor, alpha and sigma are. A call with floats alone, the most frequent one, costs less than a microsecond.

    Raises:
        ArgumentError: unless x is a dense floating-point tensor (B, dim), and each scalar a number or a tensor with one for
            each row, (B,) or (B, 1).
    """
    if (
        not isinstance(x, Tensor)
        or x.ndim != 2
        or x.shape[1] != dim
        or not x.dtype.is_floating_point
        or x.layout != torch.strided
    ):
        raise _not_points(x, dim)
    for scalar in scalars:
        if type(scalar) is not float:
            return _unlike(x, scalars)
    return scalars


def _not_points(x: Any, dim: int) -> ArgumentError:
    if not isinstance(x, Tensor):
        return ArgumentError(f"x must be a tensor (B, {dim}), got {type(x).__name__}: make it one with torch.as_tensor(x)")
    if x.layout != torch.strided:
        return ArgumentError(f"x must be a dense tensor (B, {dim}), got layout {x.layout}: use x.to_dense()")
    if x.ndim != 2 or x.shape[1] != dim:
        return ArgumentError(f"x must be (B, {dim}), got {tuple(x.shape)}")
    return ArgumentError(f"x must be a floating-point tensor, got {x.dtype}: use x.double()")


def _unlike(x: Tensor, scalars: tuple[Any, ...]) -> tuple[Scalar, ...]:
    """Scalars of which not all are floats."""
    rows, device, found, per_row = x.shape[0], x.device, list(scalars), False
    for k, value in enumerate(scalars):
        if isinstance(value, Tensor):
            shape = value.shape
            if (
                value.layout is torch.strided
                and not value.is_meta
                and shape in ((rows, 1), (rows,))
                and value.dtype is torch.float64
            ):
                found[k] = (value if value.device == device else value.to(device)).reshape(-1)
            else:
                found[k] = _rows_of_scalar(x, _NAMES[k], value)
            per_row = True
        elif type(value) is not float:
            found[k] = _number(x, _NAMES[k], value)
    if per_row:
        for k in range(2):
            if not isinstance(found[k], Tensor):
                found[k] = torch.full((rows,), found[k], dtype=torch.float64, device=device)
    return tuple(found)


def _rows_of_scalar(x: Tensor, name: str, value: Tensor) -> Tensor:
    rows = x.shape[0]
    if value.is_meta and not x.is_meta:
        raise ArgumentError(f"{name} must be numbers, got a tensor on the meta device, which holds none; x is on {x.device}")
    real = not value.dtype.is_complex and value.layout == torch.strided
    # A single number is that of all rows.
    if real and (value.shape in ((rows, 1), (rows,)) or value.numel() == 1):
        return value.to(x.device, torch.float64).reshape(-1).expand(rows)
    raise ArgumentError(
        f"{name} must be a number, or a dense tensor of real ones, one for each of the {rows} rows of x, ({rows},) or "
        f"({rows}, 1); got {value.dtype} of shape {tuple(value.shape)}"
    )


def _number(x: Tensor, name: str, value: Any) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        # An integer may be larger than any float.
        with contextlib.suppress(OverflowError):
            return float(value)
    raise ArgumentError(
        f"{name} must be a number, or a tensor with one for each of the {x.shape[0]} rows of x, got {value!r:.60}"
    )
