"""One verified claim: a residual held against a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A residual and the tolerance it is held to.

    Attributes:
        name: what is claimed.
        value: the residual, relative unless ``detail`` says otherwise.
        tolerance: the largest residual that passes.
        detail: where it is largest, or what it was measured on; if it failed, what that means.
    """

    name: str
    value: float
    tolerance: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the residual is finite and within its tolerance."""
        return math.isfinite(self.value) and self.value <= self.tolerance
