"""Statistics of a model over the noise level, which say which part of its field is linear and how fast the rest changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.tensor_files import content_of, float64, read_tensors, text, write_tensors

#: Schema of a file of them.
SCHEMA = "diffode-model-statistics-1"
#: Least number of levels, which a cubic spline needs.
_LEAST_LEVELS = 4


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    r"""The coefficients l, s and b of DPM-Solver-v3 at noise levels ("empirical model statistics").

    Of the field in z = x/alpha, dz/d lambda = -rho eps, the coefficient l takes off what is linear, f = rho eps - l z; s and b
    are those with which s f + b is nearest to the derivative of f along the flow.

    Attributes:
        log_snr: the levels lambda, (n,) float64, increasing.
        l, s, b: coefficients at the levels, (n, D) float64, or (n, 1) for all coordinates alike, where b is 0.
        alike: whether they are for all coordinates alike.
        source: where the numbers are from, in words.

    Raises:
        ArgumentError: for numbers of other shapes, that are not finite, or levels that do not increase.
    """

    log_snr: Tensor
    l: Tensor
    s: Tensor
    b: Tensor
    alike: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for name, ndim in (("log_snr", 1), ("l", 2), ("s", 2), ("b", 2)):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.ndim != ndim or not bool(torch.isfinite(value).all()):
                raise ArgumentError(f"{name} must be a finite tensor with {ndim} axes, got {value!r:.60}")
            object.__setattr__(self, name, value.detach().cpu().to(torch.float64))
        if len(self.log_snr) < _LEAST_LEVELS or not bool((self.log_snr.diff() > 0).all()):
            raise ArgumentError(
                f"log_snr must be at least {_LEAST_LEVELS} increasing levels, got {self.log_snr.tolist()!r:.60}"
            )
        for name in ("l", "s", "b"):
            if getattr(self, name).shape != (len(self.log_snr), self.l.shape[1]):
                raise ArgumentError(
                    f"{name} must have a row for each of the {len(self.log_snr)} levels and as many columns as l, got shape "
                    f"{tuple(getattr(self, name).shape)}"
                )
        if self.alike and (self.l.shape[1] != 1 or bool(self.b.any())):
            raise ArgumentError("l and s must be (n, 1) and b 0 where one number stands for all coordinates alike")

    def __repr__(self) -> str:
        kind = "all coordinates alike" if self.dim is None else f"{self.dim} coordinates"
        ends = f"{float(self.log_snr[0]):.3g} to {float(self.log_snr[-1]):.3g}"
        return f"ModelStatistics({len(self.log_snr)} levels, log-SNR {ends}, {kind}, {self.source or 'given'})"

    @property
    def dim(self) -> int | None:
        """The number D of coordinates that have coefficients of their own; None if all have the same."""
        return None if self.alike else self.l.shape[1]

    @functools.cached_property
    def content(self) -> str:
        """A hash of all numbers."""
        return content_of((self.log_snr, self.l, self.s, self.b, torch.tensor([self.alike], dtype=torch.float64)))

    def save(self, file: str | FilePath) -> None:
        """Write them as safetensors with their description as JSON metadata; ArgumentError if that is not possible."""
        tensors = {name: getattr(self, name).contiguous() for name in ("log_snr", "l", "s", "b")}
        write_tensors(file, tensors, {"schema": SCHEMA, "alike": self.alike, "source": self.source})

    @classmethod
    def load(cls, file: str | FilePath) -> ModelStatistics:
        """Read what :meth:`save` wrote; FileFormatError for any other file, ArgumentError if it can't be read."""
        description, tensors = read_tensors(file, SCHEMA)
        with believed(file, "statistics of a model"):
            return cls._of_parts(tensors, description)

    @classmethod
    def _of_parts(cls, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> ModelStatistics:
        if set(tensors) != {"log_snr", "l", "s", "b"}:
            raise ValueError("the tensors must be log_snr, l, s and b")
        if type(told["alike"]) is not bool:
            raise ValueError("alike must be true or false")
        parts = {name: float64(tensors, name, 1 if name == "log_snr" else 2) for name in tensors}
        return cls(**parts, alike=told["alike"], source=text(told, "source"))
