"""Derivatives of functions along given directions, by forward automatic differentiation."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value", Tensor, tuple[Tensor, Tensor])


def along(function: Callable[..., Value], at: Sequence[Tensor], directions: Sequence[Tensor]) -> tuple[Value, Value]:
    """The value of a function at some tensors, and its derivative along directions of their shapes.

    Both keep a graph by the function's own parameters.

    >>> value, rate = along(torch.sin, [torch.tensor(0.0)], [torch.tensor(2.0)])
    >>> float(value), float(rate)
    (0.0, 2.0)
    """
    _prepare()
    found: Any = torch.func.jvp(function, tuple(x.contiguous() for x in at), tuple(directions))
    return found[0], found[1]


@functools.cache
def _prepare() -> None:
    """Let PyTorch compile what it needs for forward derivatives, which it does once, with a warning about its own compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
