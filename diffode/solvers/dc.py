"""DC-Solver: UniPC whose newest denoised point is interpolated at another time in each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.numerics.polynomials import weights_of
from diffode.solvers.solver import check_choice
from diffode.solvers.unipc import Form, UniPC, combined

#: Number of denoised points that are interpolated (the authors' ``dc_order`` of 2, and one).
POINTS = 3


@dataclass(frozen=True, kw_only=True)
class DCSolver(UniPC):
    r"""UniPC-p in whose step from t_i the newest denoised point D_i gives way to the parabola through the last three, at

    t_i + (ratio - 1)(t_i - t_{i-1}), t the time of the path. The result stands for D_i in this step and in those after it.
    A ratio of 1 changes nothing, a smaller one moves the point back towards the one before it.

    ``ratios`` are those of the steps 3 to N in order, as ``ratios=1.02+0.97+1.1`` for 5 steps: a table for one number of steps
    and one field, whose numbers ``diffode.learned.train_compensation`` finds. Without them it is UniPC. The other options are
    those of ``unipc``. The regression of ratios over the number of steps and the weight of guidance is ``dc_regressed``.
    """

    ratios: tuple[float, ...] = ()

    name = "dc"
    reference: ClassVar[str] = "Zhao et al., arXiv 2409.03755, algorithms 1 and 2; the authors' code, dc_solver.py, dc_order=2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (3, 4))
        given = self.ratios if isinstance(self.ratios, tuple) else (self.ratios,)
        if not all(type(ratio) in (int, float) and math.isfinite(ratio) for ratio in given):
            raise ArgumentError(
                "ratios must be finite numbers (in a spec not negative, and without an exponent), as ratios=1.02+0.97+1.1 for "
                f"5 steps, got {self.ratios!r:.60}"
            )
        # A spec with one ratio reads as a number.
        object.__setattr__(self, "ratios", tuple(map(float, given)))

    @override
    def newest(self, history: Sequence[tuple[float, Form]], number: int, steps: int) -> Form:
        if self.ratios and len(self.ratios) != max(steps - POINTS + 1, 0):
            own = len(self.ratios) + POINTS - 1
            raise ArgumentError(
                f"ratios are those of {own} steps, one for each from the third on, and this run has {steps}: take {own} steps, "
                "or leave them out"
            )
        if not self.ratios or number < POINTS:
            return super().newest(history, number, steps)
        last = history[:POINTS]
        (now, _), (before, _) = last[:2]
        places = [(time - now) / (now - before) for time, _ in last]
        shift = self.ratios[number - POINTS] - 1
        return combined([form for _, form in last], weights_of(places, [shift**k for k in range(POINTS)]))
