"""The hash of a target's parameters as given: the same for any number of threads, on every machine and in every release."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diffode.targets.parameters import LowRank, real


class Content:
    """The hash of named arrays, computed on demand; covariances are hashed at once, as a mixture keeps another form of them."""

    def __init__(self, arrays: dict[str, Tensor]):
        kept = ("weights", "means", "points")
        self._kept = {name: value for name, value in arrays.items() if name in kept}
        self._parts = {name: _hash(value) for name, value in arrays.items() if name not in kept}

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        parts = self._parts | {name: _hash(value) for name, value in self._kept.items()}
        return hashlib.sha256("|".join(f"{name}:{parts[name]}" for name in sorted(parts)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Derived:
    """The hash of a law that is made from another: of that one's hash, and of what was done to it."""

    of: str
    how: str

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        return hashlib.sha256(f"{self.of}|{self.how}".encode()).hexdigest()[:16]


def _hash(array: Tensor) -> str:
    """A hash of a float64 array, in which 0 and -0 are equal."""
    numbers = np.ascontiguousarray(array.numpy(), dtype="<f8") + 0.0
    return hashlib.sha256(f"{tuple(array.shape)}".encode() + numbers.tobytes()).hexdigest()


def given_covariances(covariances: Any) -> dict[str, Tensor]:
    """The arrays that make up given covariances, by name."""
    if isinstance(covariances, LowRank):
        return {"factors": real(covariances.factors, "covariances.factors", 3),
                "noise": real(covariances.noise, "covariances.noise", 1)}  # fmt: skip
    return {"covariances": real(covariances, "covariances", None)}
