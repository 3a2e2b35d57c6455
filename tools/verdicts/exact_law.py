"""The exact law that a sampler function leaves on a Gaussian, without draws, and its weak order.

On a Gaussian a run is affine in its start and its noise. Rows of one batch get a unit start or a unit of one noise each, so
that one run gives all gains. The noise between two levels is an increment of one Brownian motion in sigma, as the trees of
k-diffusion have it; functions whose steps do not overlap see independent noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode import fields, grids
from diffode.metrics.gaussian import diagonal_w2
from diffode.numerics.orders import OrderEstimate, fit_order
from diffode.targets import GaussianMixture
from diffode.verify.sampler.foreign import Wrapped

MEAN, VARIANCE = 0.7, 0.25
STEPS = (32, 64, 128, 256, 512)
_PATH = "edm:sigma_min=0.02,sigma_max=40"


def law(function: Callable[..., Any], sigmas: Sequence[float], **options: Any) -> tuple[float, float]:
    """Mean and variance of the ends of ``function(model, x, sigmas, noise_sampler=...)``, whose starts have the exact law."""
    field = fields.exact_field(GaussianMixture([1.0], [[MEAN]], [[VARIANCE]]), _PATH)
    levels = torch.tensor(list(sigmas), dtype=torch.float64)
    asked: list[tuple[float, float]] = []

    def run(x: Tensor, noise: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        model = Wrapped(field, sigmas[0], sigmas[-1] or sigmas[-2])
        end: Tensor = function(model, x, levels, noise_sampler=noise, disable=True, **options)
        return end[:, 0]

    def noted(begin: Tensor, end: Tensor) -> Tensor:
        asked.append((float(begin), float(end)))
        return torch.zeros(1, 1, dtype=torch.float64)

    run(torch.zeros(1, 1, dtype=torch.float64), noted)
    places = sorted({level for pair in asked for level in pair})
    count = max(len(places) - 1, 0)
    lengths = torch.tensor([b - a for a, b in itertools.pairwise(places)], dtype=torch.float64)

    def unit(begin: Tensor, end: Tensor) -> Tensor:
        low, high = sorted((float(begin), float(end)))
        inside = torch.tensor([low <= a and b <= high for a, b in itertools.pairwise(places)])
        weights = torch.where(inside, (lengths / (high - low)).sqrt(), torch.zeros(()))
        return torch.cat([torch.zeros(2, dtype=torch.float64), weights])[:, None]

    x = torch.zeros(2 + count, 1, dtype=torch.float64)
    x[1] = 1.0
    ends = run(x, unit)
    gains = ends[1:] - ends[0]
    variance = gains[0] ** 2 * (VARIANCE + sigmas[0] ** 2) + gains[1:].square().sum()
    return float(ends[0] + gains[0] * MEAN), float(variance)


def weak_order(function: Callable[..., Any], **options: Any) -> OrderEstimate:
    """The order with which the law on a Gaussian approaches the exact one (Wasserstein 2), levels uniform in log sigma."""
    field = fields.exact_field(GaussianMixture([1.0], [[MEAN]], [[VARIANCE]]), _PATH)
    errors = []
    for steps in STEPS:
        times = grids.get("log_snr", field.path, steps).tolist()
        mean, variance = (torch.tensor([value], dtype=torch.float64) for value in law(function, times, **options))
        true = torch.tensor([VARIANCE + times[-1] ** 2], dtype=torch.float64)
        errors.append(diagonal_w2(mean, variance, torch.full_like(true, MEAN), true))
    return fit_order(STEPS, errors, 1e-14 * math.hypot(MEAN, 1.0))
