"""The weight of guidance over the noise level: a number, a function or a table, inside an interval of levels.

A noise level is rho = sigma/alpha, which means the same on every path. Outside the interval the weight is 1, the conditional
field alone (Kynkaanniemi et al., arXiv 2404.07724).
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError, FieldError
from diffode.targets.target import Scalar

#: Largest size of a weight.
_LARGEST = 1e6
#: Relative distance up to which two noise levels are the same, as times that were written and read again are.
_SAME_LEVEL = 1e-9

#: A weight as it may be given: a number, a function of the noise level, or a table of weights by noise level.
Given = float | Callable[[float], float] | Mapping[float, float]


def number(value: Any, name: str, low: float, high: float) -> float:
    """A finite number within bounds as a float; ArgumentError for others."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high:
        raise ArgumentError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r:.60}")
    return float(value)


@dataclass(frozen=True)
class Weight:
    """A weight over the noise level.

    Attributes:
        value: a number; a function of the noise level; or ``{level: weight}``, between whose entries the weight is linear in
            the logarithm of the level, and beyond which it stays what it is at the last one.
        low, high: the interval of levels, ends included, in which the weight is in force; 1 outside.

    Raises:
        ArgumentError: for a weight that is no number, a table with fewer than two entries, or an empty interval.

    >>> round(Weight({0.1: 1.0, 10.0: 5.0}).at(1.0), 9), Weight(7.5, low=0.3, high=5.0).at(10.0)
    (3.0, 1.0)
    """

    value: Given
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.value, Mapping):
            if len(self.value) < 2:
                raise ArgumentError(f"weight as a table needs two entries {{level: weight}} at least, got {self.value!r:.60}")
            for level, weight in self.value.items():
                number(level, "a level of the table of weights", 1e-300, 1e300)
                number(weight, "weight", -_LARGEST, _LARGEST)
        elif not callable(self.value):
            convention = "weight (1 is the conditional field alone, 0 the unconditional)"
            object.__setattr__(self, "value", number(self.value, convention, -_LARGEST, _LARGEST))
        for name, end in (("low", self.low), ("high", self.high)):
            given: Any = end
            if isinstance(given, bool) or not isinstance(given, numbers.Real) or math.isnan(given) or given < 0:
                raise ArgumentError(f"interval must be two noise levels >= 0, got {name}={end!r:.60}")
        if not self.low < self.high:
            raise ArgumentError(f"interval must go from a lower noise level to a higher one, got ({self.low:g}, {self.high:g})")

    @property
    def constant(self) -> float | None:
        """The weight, if it is one number at all levels; else None."""
        always = self.low == 0 and self.high == math.inf
        return self.value if always and isinstance(self.value, float) else None

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels, falling, at which the weight has a jump or a bend."""
        bends = list(self.value) if isinstance(self.value, Mapping) else []
        inner = [float(level) for level in bends if self.low < level < self.high]
        return tuple(sorted({*inner, *(end for end in (self.low, self.high) if 0 < end < math.inf)}, reverse=True))

    def at(self, level: Scalar) -> Scalar:
        """The weight at a noise level, or at one for every row, (B,)."""
        if isinstance(level, Tensor):
            if isinstance(self.value, float):
                inside = torch.full_like(level, self.value, dtype=torch.float64)
            else:
                each = [self._inside(one) for one in level.detach().cpu().reshape(-1).tolist()]
                inside = torch.tensor(each, dtype=torch.float64, device=level.device).reshape(level.shape)
            return torch.where((level >= self.low) & (level <= self.high), inside, 1.0)
        return self._inside(level) if self.low <= level <= self.high else 1.0

    def between(self, upper: float, lower: float) -> Weight | None:
        """The weight on a stretch of levels that crosses none of ``levels``; None where it is out of force there."""
        middle = math.sqrt(upper * lower) if lower > 0 else upper / 2
        if math.isinf(upper):
            middle = 2 * lower if lower > 0 else 1.0
        return Weight(self.value) if self.low <= middle <= self.high else None

    def _inside(self, level: float) -> float:
        if isinstance(self.value, float):
            return self.value
        if isinstance(self.value, Mapping):
            rising = sorted(self.value)
            known = [float(self.value[each]) for each in rising]
            return float(np.interp(math.log(level) if level > 0 else -math.inf, np.log(rising), known))
        try:
            found = float(self.value(level))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"weight must be a function of one noise level that gives a number: {error}") from error
        if not math.isfinite(found):
            raise FieldError(f"weight, a function of the noise level, gave {found!r} at level {level:g}; it must be finite")
        return found


@dataclass(frozen=True)
class GridWeight:
    r"""The weights by which guidance becomes CFG++ on one grid, one for each step.

    CFG++ (Chung et al., arXiv 2406.08070, algorithm 2) goes by
    :math:`x' = \alpha' [D_u + \lambda (D_c - D_u)] + \sigma' \varepsilon_u`: it guides the denoised point, and renoises with
    the unconditional noise. With :math:`x = \alpha D + \sigma\varepsilon` for either field that is DDIM with the weight

    .. math:: w_i = \lambda \frac{\rho_i}{\rho_i - \rho_{i+1}},

    exactly, so that a field with a weight for each of the grid's levels expresses it. The weight grows without bound as steps
    shrink: CFG++ at a fixed lambda follows no field in the limit, and has no reference.

    Attributes:
        factor: lambda, 0 the unconditional step, 1 the conditional denoised point.
        rising: the grid's levels with the weight of the step that begins at each, in rising order of the levels.
    """

    factor: float
    rising: tuple[tuple[float, float], ...]

    @classmethod
    def on(cls, levels: Sequence[float], factor: float) -> GridWeight:
        """The weights on a grid's noise levels, which fall; the level that ends the last step may be 0.

        >>> GridWeight.on([4.0, 2.0, 0.0], 0.5).rising
        ((2.0, 0.5), (4.0, 1.0))
        """
        pairs = list(itertools.pairwise(levels))
        if not pairs or any(not 0 <= after < before < math.inf for before, after in pairs):
            raise ArgumentError("grid of cfg++ must have two finite noise levels or more, all of which fall")
        found = [(before, factor * before / (before - after)) for before, after in pairs]
        return cls(factor, tuple(sorted(found)))

    @property
    def constant(self) -> None:
        """None: there is one weight a step."""
        return None

    def at(self, level: Scalar) -> Scalar:
        """The weight of the step from a level, or from one for every row; FieldError between the grid's levels."""
        if isinstance(level, Tensor):
            each = [self.at(one) for one in level.detach().cpu().reshape(-1).tolist()]
            return torch.tensor(each, dtype=torch.float64, device=level.device).reshape(level.shape)
        known, weight = min(self.rising, key=lambda pair: abs(math.log(max(level, 1e-300) / pair[0])))
        if abs(level - known) > _SAME_LEVEL * known:
            raise FieldError(
                f"kind='cfg++' has one weight for each step of its grid, and noise level {level:g} begins none: run it on that "
                "grid with a solver that evaluates at the grid's times alone, ddim"
            )
        return weight
