"""Rows whose coefficients differ between the directions of the data's covariance: their sums, made in its basis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.statistics import Statistics
from diffode.tableau.rows import Number, along_directions


class Frame:
    """The basis and the mean of the data for the rows of a run, in their dtype and on their device."""

    def __init__(self, statistics: Statistics):
        self.statistics = statistics
        self._for: tuple[torch.dtype, torch.device] | None = None

    def into(self, x: Tensor) -> Tensor:
        """The coordinates (B, W) of points x (B, *shape)."""
        if self._for != (x.dtype, x.device):
            self.statistics.check_dim(math.prod(x.shape[1:]))
            self._basis = self.statistics.basis.to(x)
            self._mean = self._basis.into(self.statistics.mean.to(x)[None])
            self._for = (x.dtype, x.device)
        return self._basis.into(x.flatten(1))

    def back(self, coordinates: Tensor, like: Tensor) -> Tensor:
        """The points of coordinates, shaped as others."""
        return self._basis.back(coordinates).reshape(like.shape)

    def sum(
        self,
        slots: list[Any],
        row: int,
        terms: tuple[tuple[int, Number], ...],
        draws: tuple[tuple[int, Number], ...],
        mean: Number,
        draw: Callable[[int], Tensor] | None,
    ) -> Tensor:
        """The state of a row. The coordinates of each slot are kept in the second half of ``slots``, since rows share them."""
        held = len(slots) // 2
        total: Tensor | None = None
        like = None
        for slot, factor in terms:
            like = slots[slot]
            if slots[held + slot] is None:
                slots[held + slot] = self.into(like)
            term = slots[held + slot] * self._factor(factor, like)
            total = term if total is None else total.add_(term)
        if total is None or like is None:
            raise ArgumentError(f"row {row} uses no earlier state")
        for k, factor in draws:
            if draw is None:
                raise ArgumentError("this tableau uses noise draws; pass noise= or generator=")
            total.add_(self.into(draw(k)) * self._factor(factor, like))
        if along_directions(mean) or mean != 0:
            total = total + self._mean * self._factor(mean, like)
        slots[held + row] = total
        return self.back(total, like)

    def _factor(self, factor: Number, like: Tensor) -> Number:
        if not isinstance(factor, Tensor):
            return factor
        return self.statistics.basis.spread(factor.to(like)) if factor.ndim == 2 else factor.to(like)[:, None]
