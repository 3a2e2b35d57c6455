"""Brownian motions of arbitrary resolution, so that runs with different steps share their noise."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.tableau.table import Tableau


class BrownianPath:
    """One Brownian motion per row of a batch over a solver's noise clock; a Brownian bridge adds values between known ones.

    A value stays once it is drawn. Values depend on the order in which grids ask for them, so begin with the finest grid where
    they must not. Row i depends on ``seed`` and i alone, not on the size of the batch. Compare runs of one kind only: solvers
    with another noise clock (another variable or eta) use another part of the motion.

    >>> import diffode
    >>> path = diffode.paths.get("edm")
    >>> fine, coarse = (diffode.solvers.get("dpmpp_2m_sde").tableau(path, "log_snr", n) for n in (8, 4))
    >>> brownian = BrownianPath((3, 2), seed=0)
    >>> a, b = brownian.draws(fine), brownian.draws(coarse)
    >>> tuple(a.shape), tuple(b.shape)
    ((8, 3, 2), (4, 3, 2))
    """

    def __init__(self, shape: Sequence[int], *, seed: int):
        if not isinstance(shape, Sequence) or len(shape) < 2 or not all(type(n) is int and n > 0 for n in shape):
            raise ArgumentError(f"shape must be (B, *shape), positive integers, got {shape!r}")
        if type(seed) is not int or seed < 0:
            raise ArgumentError(f"seed must be an integer >= 0, got {seed!r}")
        self.shape = tuple(shape)
        self._generators = [np.random.default_rng([int(seed), row]) for row in range(self.shape[0])]
        self._clocks: list[float] = []
        self._values: list[Tensor] = []

    def __repr__(self) -> str:
        return f"BrownianPath(shape={self.shape}, {len(self._clocks)} points known)"

    def draws(self, tableau: Tableau) -> Tensor:
        """The noise (draws, B, *shape) of a run, for ``solve(..., noise=)``: increments over its spans, of unit variance.

        Raises ArgumentError for a tableau whose draws are no increments of a Brownian motion.
        """
        if not isinstance(tableau, Tableau):
            raise ArgumentError(f"tableau must be one that a solver wrote (solver.tableau(path, grid)), got {tableau!r}")
        if not tableau.spans:
            raise ArgumentError(
                f"the draws of {tableau.solver!r} are no increments of a Brownian motion; use a solver of the reverse SDE"
            )
        self._know(sorted({clock for span in tableau.spans for clock in span}))
        return torch.stack([(self._at(b) - self._at(a)) / math.sqrt(b - a) for a, b in tableau.spans])

    def _at(self, clock: float) -> Tensor:
        return self._values[bisect.bisect_left(self._clocks, clock)]

    def _know(self, clocks: Sequence[float]) -> None:
        for clock in clocks:
            place = bisect.bisect_left(self._clocks, clock)
            if place < len(self._clocks) and self._clocks[place] == clock:
                continue
            value = self._bridged(clock, place)
            self._clocks.insert(place, clock)
            self._values.insert(place, value)

    def _bridged(self, clock: float, place: int) -> Tensor:
        """A new value between its neighbours (Brownian bridge), or beyond the first or last known one."""
        if not self._clocks:
            return torch.zeros(self.shape, dtype=torch.float64)
        z = torch.from_numpy(np.stack([g.standard_normal(self.shape[1:]) for g in self._generators]))
        if place == len(self._clocks):
            return self._values[-1] + math.sqrt(clock - self._clocks[-1]) * z
        if place == 0:
            return self._values[0] + math.sqrt(self._clocks[0] - clock) * z
        left, right = self._clocks[place - 1], self._clocks[place]
        share = (clock - left) / (right - left)
        middle = torch.lerp(self._values[place - 1], self._values[place], share)
        return middle + math.sqrt((clock - left) * (right - clock) / (right - left)) * z
