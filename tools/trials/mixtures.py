"""Mixtures of every kind of covariance and size for trials, fields that break their contract, and noise of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffode
from diffode import Field, GaussianMixture, LowRank, Path, solvers

KINDS = ("isotropic", "diagonal", "full", "low_rank", "points")


def mixture(
    seed: int,
    kind: str,
    dim: int,
    count: int,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    spread: float = 1.0,
    tilt: float = 1.0,
) -> GaussianMixture:
    """``count`` components of size ``scale`` whose means lie ``offset`` scales from 0 and ``spread`` from each other.

    ``tilt`` is the exponent of the weights: 0 makes them equal, 20 makes some tiny and some huge.
    """
    rng = np.random.default_rng(seed)
    logs = tilt * rng.normal(size=count)
    weights = np.exp(logs - logs.max())
    weights = np.maximum(weights / weights.sum(), 1e-300)
    weights /= weights.sum()
    means = scale * (offset * rng.normal(size=dim) + spread * rng.normal(size=(count, dim)))
    widths = scale * np.exp(rng.normal(size=(count, dim)))
    if kind == "points":
        return GaussianMixture.from_points(means, weights)
    if kind == "isotropic":
        return GaussianMixture(weights, means, widths[:, 0] ** 2)
    if kind == "diagonal":
        return GaussianMixture(weights, means, widths**2)
    if kind == "low_rank":
        factors = scale * rng.normal(size=(count, dim, int(rng.integers(1, dim + 1))))
        return GaussianMixture(weights, means, LowRank(factors, widths[:, 0] ** 2 * 10.0 ** rng.uniform(-8, 0)))
    turns = np.stack([np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(count)])
    covariances = np.einsum("kij,kj,klj->kil", turns, widths**2, turns)
    return GaussianMixture(weights, means, (covariances + covariances.transpose(0, 2, 1)) / 2)


def nasty(kind: str, path: Path) -> Field:
    """A field of someone's that breaks its contract, at once or somewhere on the way."""
    middle = (path.t_min + path.t_max) / 2

    def function(x: Tensor, t: Any) -> Any:
        late = bool((torch.as_tensor(t) < middle).any())
        if kind == "nan" or (kind == "late nan" and late):
            return x * torch.nan
        if kind == "late huge" and late:
            return x * 1e300
        if kind == "one row":
            return torch.where(x[:, :1] > 0, x, x * torch.inf) if late else x
        if kind == "late shape" and late:
            return x[:, :1]
        if kind == "half":
            return x.to(torch.float16)
        if kind == "number":
            return 0.5
        return -x

    return Field(function, "noise", path)


NASTY = ("nan", "late nan", "late huge", "one row", "late shape", "half", "number", "none of these")


def fitting_noise(field: Field, x: Any, arguments: dict[str, Any], seed: int) -> Any:
    """Noise for a run with these arguments: of the shape that its table asks for, or of one draw if it has none."""
    if not isinstance(x, Tensor) or not isinstance(field, Field):
        return None
    draws = 1
    recipe = solvers.get(arguments["solver"])
    if isinstance(recipe, diffode.Solver) and isinstance(arguments.get("steps"), int):
        draws = recipe.tableau(field.path, arguments.get("grid"), arguments["steps"]).draws
    return torch.randn(draws, *x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)
