"""How the network of a diffusers scheduler is called: its timesteps, what it is shown, and what its answer means."""

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

#: ``table``: trained at the levels of a table, shown x on the variance-preserving scale. ``flow``: rectified flow. ``edm``:
#: inside EDM's preconditioning. ``continuous``: shown x over sqrt(sigma^2 + 1) and told log(sigma)/4. ``exploding``: a
#: flow-matching scheduler whose levels are noise levels above 1. ``angle``: the trigonometric path.
Kind = Literal["table", "flow", "edm", "continuous", "exploding", "angle"]

_VIEWS: dict[str, Prediction] = {"epsilon": "noise", "sample": "denoised", "flow_prediction": "velocity"}


@dataclass(frozen=True)
class Convention:
    """What a network is given at a time of a path, and how its answer is read.

    Attributes:
        kind: see :data:`Kind`.
        prediction_type: ``epsilon``, ``sample``, ``v_prediction`` or ``flow_prediction``.
        steps: training timesteps, by which the table's levels or the times of the flow are counted.
        inverted: whether the network counts times, and answers, from noise to data (``invert_sigmas``).
        unit: standard deviation of the data in EDM's preconditioning.
        noise_label: EDM's timestep for a noise level.
        limit: what is done to a denoised prediction: clipped, or thresholded.
    """

    kind: Kind
    prediction_type: str
    steps: int = 1000
    inverted: bool = False
    unit: float = 1.0
    noise_label: Callable[[Tensor], Tensor] | None = None
    limit: Callable[[Tensor], Tensor] | None = None

    def label(self, t: float) -> float:
        """The timestep that the network is called with at a time."""
        if self.kind == "table":
            # A level beyond the table, without any signal, is called by its last.
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
            # An arctangent of the noise level, 1 where that is infinite.
            return math.tan(label * math.pi / 2)
        return math.exp(4 * label)

    @property
    def width(self) -> float:
        """Timesteps nearer than this may be the same: a network may want them rounded."""
        counted = self.kind in ("table", "flow", "exploding")
        return 1e-3 * self.steps if counted else 1e-3

    def shown(self, x: Tensor, t: float) -> Tensor:
        """What the network is shown of x."""
        if self.kind == "edm":
            return x / math.sqrt(t**2 + self.unit**2)
        return x / math.sqrt(t**2 + 1) if self.kind == "continuous" else x

    def answer(self, path: Path, output: Tensor, x: Tensor, t: float, wanted: Prediction) -> Tensor:
        """The network's answer (B, *shape) at x and t as the prediction that a table wants."""
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
    """Denoised predictions kept within -bound and bound (``clip_sample``)."""
    if not bound > 0:
        raise ArgumentError(f"clip_sample_range must be a number above 0, got {bound!r}")
    return lambda denoised: denoised.clamp(-bound, bound)


def thresholded(ratio: float, most: float) -> Callable[[Tensor], Tensor]:
    """Dynamic thresholding (Saharia et al., arXiv 2205.11487): clipped at a quantile of its own size, then divided by that."""
    if not 0 < ratio <= 1:
        raise ArgumentError(f"dynamic_thresholding_ratio must be above 0, at most 1, got {ratio!r}")

    def limit(denoised: Tensor) -> Tensor:
        flat: Any = denoised.flatten(1)
        bound = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(min=1).clamp(max=most)
        result: Tensor = (torch.maximum(torch.minimum(flat, bound), -bound) / bound).reshape(denoised.shape)
        return result

    return limit
