"""A row of a table: one state of a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

#: A number, or a number for each row of the batch, (B,).
Number = float | Tensor
Coefficients = Mapping[int, Number]


@dataclass(frozen=True)
class Row:
    """One state: its time, and the coefficients of earlier states, evaluations and noise draws that make it.

    The time and the coefficients are floats, or (B,) float64 tensors in a table written for the rows of one batch.
    """

    time: Number
    states: Coefficients = field(default_factory=dict)
    evaluations: Coefficients = field(default_factory=dict)
    draws: Coefficients = field(default_factory=dict)
