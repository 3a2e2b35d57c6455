"""The convention of a diffusers scheduler's network: its timesteps, its input, and the meaning of its answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Prediction, conversion
from diffode.paths import Path

#: ``table``: trained at the discrete levels of ``alphas_cumprod``, with x on the variance-preserving path as input. ``flow``:
#: rectified flow. ``edm``: inside EDM's preconditioning. ``continuous``: x over sqrt(sigma^2 + 1) as input, log(sigma)/4 as
#: timestep. ``exploding``: flow matching with noise levels above 1. ``angle``: the trigonometric path.
Kind = Literal["table", "flow", "edm", "continuous", "exploding", "angle"]

#: The views of diffusers' prediction types, except for ``v_prediction``, which is none.
_VIEWS: dict[str, Prediction] = {"epsilon": "noise", "sample": "denoised", "flow_prediction": "velocity"}


@dataclass(frozen=True)
class Convention:
    """The input of a network at a time of a path, and the reading of its answer.

    Attributes:
        kind: see :data:`Kind`.
        prediction_type: ``epsilon``, ``sample``, ``v_prediction`` or ``flow_prediction``.
        steps: number of training timesteps: of levels, or the timestep of t = 1 in flow matching.
        inverted: whether the network's times and velocities run from noise to data (``invert_sigmas``).
        unit: standard deviation of the data in EDM's preconditioning.
        noise_label: EDM's timestep for a noise level.
        limit: clips or thresholds a denoised prediction.
    """

    kind: Kind
    prediction_type: str
    steps: int = 1000
    inverted: bool = False
    unit: float = 1.0
    noise_label: Callable[[Tensor], Tensor] | None = None
    limit: Callable[[Tensor], Tensor] | None = None

    def label(self, t: float) -> float:
        """The timestep with which the network is called at a time."""
        if self.kind == "table":
            # A level beyond the last of training, without signal, has the timestep of the last.
            return min(t - 1, self.steps - 1)
        if self.kind in ("flow", "exploding"):
            return self.steps * (1 - t if self.inverted else t)
        if self.kind == "angle":
            return t
        level = torch.tensor([t], dtype=torch.float64)
        return float((level.log() / 4 if self.noise_label is None else self.noise_label(level))[0])

    def time(self, label: float) -> float:
        """The time at which the network is called with a timestep."""
        if self.kind == "table":
            return label + 1
        if self.kind in ("flow", "exploding"):
            return 1 - label / self.steps if self.inverted else label / self.steps
        if self.kind == "angle":
            return label
        if self.noise_label is not None and self.label(1e8) < 2:
            # This timestep is an arctangent of the noise level, and 1 where the level is infinite.
            return math.tan(label * math.pi / 2)
        return math.exp(4 * label)

    @property
    def width(self) -> float:
        """Distance of timesteps below which they may be the same, since a network may want them rounded."""
        counted = self.kind in ("table", "flow", "exploding")
        return 1e-3 * self.steps if counted else 1e-3

    def shown(self, x: Tensor, t: float) -> Tensor:
        """The network's input for a state x."""
        if self.kind == "edm":
            return x / math.sqrt(t**2 + self.unit**2)
        return x / math.sqrt(t**2 + 1) if self.kind == "continuous" else x

    def answer(self, path: Path, output: Tensor, x: Tensor, t: float, wanted: Prediction) -> Tensor:
        """The network's answer (B, *shape) at x and t as the ``wanted`` view."""
        known, value = self._read(path, output, x, t)
        if self.limit is not None:
            known, value = "denoised", self.limit(_as(path, known, "denoised", value, x, t))
        return _as(path, known, wanted, value, x, t)

    def _read(self, path: Path, output: Tensor, x: Tensor, t: float) -> tuple[Prediction, Tensor]:
        asked = self.prediction_type
        if self.kind == "edm":
            # Karras et al., arXiv 2206.00364, table 1.
            size, sign = math.sqrt(t**2 + self.unit**2), -1.0 if asked == "v_prediction" else 1.0
            return "denoised", (self.unit / size) ** 2 * x + sign * t * self.unit / size * output
        if asked == "v_prediction":
            # v = alpha eps - sigma x_0 with alpha^2 + sigma^2 = 1 (Salimans and Ho, arXiv 2202.00512).
            if self.kind == "continuous":
                return "denoised", x / (t**2 + 1) - t / math.sqrt(t**2 + 1) * output
            return "denoised", path.alpha(t) * x - path.sigma(t) * output
        return _VIEWS[asked], -output if self.inverted else output


def _as(path: Path, known: Prediction, wanted: Prediction, value: Tensor, x: Tensor, t: float) -> Tensor:
    if known == wanted:
        return value
    of_x, of_value = conversion(path, known, wanted, t)
    result: Tensor = of_x * x + of_value * value
    return result


def clipped(bound: float) -> Callable[[Tensor], Tensor]:
    """A function that clips denoised predictions to [-bound, bound] (``clip_sample``)."""
    if not bound > 0:
        raise ArgumentError(f"clip_sample_range must be a number above 0, got {bound!r}")
    return lambda denoised: denoised.clamp(-bound, bound)


def thresholded(ratio: float, most: float) -> Callable[[Tensor], Tensor]:
    """Dynamic thresholding (Saharia et al., arXiv 2205.11487): clips at a quantile of a row's sizes and divides by it."""
    if not 0 < ratio <= 1:
        raise ArgumentError(f"dynamic_thresholding_ratio must be above 0, at most 1, got {ratio!r}")

    def limit(denoised: Tensor) -> Tensor:
        flat: Any = denoised.flatten(1)
        bound = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(min=1).clamp(max=most)
        result: Tensor = (torch.maximum(torch.minimum(flat, bound), -bound) / bound).reshape(denoised.shape)
        return result

    return limit
