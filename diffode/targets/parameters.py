"""The given parameters of a Gaussian mixture, checked and turned into components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.targets.components import Components, Diagonal, Isotropic
from diffode.targets.rotated import Rotated

#: Ratio to its matrix's largest eigenvalue below which an eigenvalue counts as zero.
_SINGULAR = 1e-14
#: Largest entry of a mean, in the unit of the data, so that its square fits float64.
_LARGEST_MEAN = 1e150
#: Smallest variance, in the squared unit of the data, whose inverse fits float64.
_SMALLEST_VARIANCE = 1e-300
#: Largest variance, in the squared unit of the data, whose sums fit float64.
_LARGEST_VARIANCE = 1e300


@dataclass(frozen=True)
class LowRank:
    """Covariances F_k F_k^T + n_k I: ``factors`` is (K, D, R), ``noise`` is (K,) and positive."""

    factors: Any
    noise: Any


def real(value: Any, name: str, ndim: int | None) -> Tensor:
    """A finite float64 copy of an array argument with ``ndim`` axes (any number if None); ArgumentError for others."""
    try:
        if not isinstance(value, Tensor) and np.iscomplexobj(value):
            raise ArgumentError(f"{name} must be real, got complex numbers")
        array = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{name} must be an array of real numbers: {error}") from None
    if array.is_complex():
        raise ArgumentError(f"{name} must be real, got complex numbers")
    if ndim is not None and array.ndim != ndim:
        shape = {1: "(K,)", 2: "(K, D)", 3: "(K, D, R)"}[ndim]
        raise ArgumentError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if 0 in array.shape:
        raise ArgumentError(f"{name} is empty: shape {tuple(array.shape)}")
    if not bool(torch.isfinite(array).all()):
        raise ArgumentError(f"{name} has non-finite entries (NaN or infinity)")
    return array.to(torch.float64, copy=True)


def means_of(value: Any, name: str) -> Tensor:
    """Means (K, D), checked to be small enough for their squares to fit float64."""
    means = real(value, name, 2)
    if float(means.abs().max()) > _LARGEST_MEAN:
        raise ArgumentError(f"{name} must stay below {_LARGEST_MEAN:g}, got {float(means.abs().max()):.3g}; rescale the data")
    return means


def checked_weights(weights: Tensor, count: int) -> Tensor:
    """Positive weights (count,), scaled to sum to 1; ArgumentError unless they do already to the digits of float32."""
    if weights.shape[0] != count:
        raise ArgumentError(f"weights must have one entry per component ({count}), got {weights.shape[0]}")
    if bool((weights <= 0).any()):
        worst = int(weights.argmin())
        raise ArgumentError(f"weights must be positive, got {float(weights[worst]):g} at component {worst}; drop it")
    total = float(weights.sum())
    if abs(total - 1) > 1e-6:
        raise ArgumentError(f"weights must sum to 1, got {total:.10g}; divide them by their sum")
    return weights / total if abs(total - 1) > 1e-12 else weights


def components_of(weights: Tensor, means: Tensor, covariances: Any) -> Components:
    """Components of the kind that the shape of ``covariances`` implies; ArgumentError for wrong covariances."""
    count, dim = means.shape
    log_weights = weights.log()
    if isinstance(covariances, LowRank):
        return _low_rank(log_weights, means, covariances)
    array = real(covariances, "covariances", None)
    if array.shape == (count,):
        _check_positive(array[:, None], each=True)
        return Isotropic(log_weights, means, array, bool((array == array[0]).all()))
    if array.shape == (count, dim):
        _check_positive(array, each=True)
        return Diagonal(log_weights, means, array)
    if array.shape == (count, dim, dim):
        asymmetry = (array - array.mT).abs().amax((1, 2)) / array.abs().amax((1, 2)).clamp(min=1e-300)
        worst = int(asymmetry.argmax())
        if float(asymmetry[worst]) > 1e-10:
            raise ArgumentError(f"covariances[{worst}] is not symmetric; use (C + C.T)/2")
        eigenvalues, basis = torch.linalg.eigh((array + array.mT) / 2)
        _check_positive(eigenvalues)
        return Rotated(log_weights, means, basis, eigenvalues, torch.zeros_like(log_weights))
    raise ArgumentError(
        f"covariances must be (K,), (K, D), (K, D, D) or LowRank with K={count}, D={dim}; got {tuple(array.shape)}"
    )


def _low_rank(log_weights: Tensor, means: Tensor, covariances: LowRank) -> Components:
    factors = real(covariances.factors, "covariances.factors", 3)
    noise = real(covariances.noise, "covariances.noise", 1)
    count, dim = means.shape
    if factors.shape[:2] != (count, dim) or factors.shape[2] > dim or noise.shape != (count,):
        raise ArgumentError(
            f"LowRank needs factors (K, D, R) and noise (K,) with K={count}, D={dim}, R <= D; "
            f"got factors {tuple(factors.shape)}, noise {tuple(noise.shape)}"
        )
    _check_positive(noise[:, None], each=True)
    basis, singular, _ = torch.linalg.svd(factors, full_matrices=False)
    return Rotated(log_weights, means, basis, singular.square() + noise[:, None], noise)


def _check_positive(eigenvalues: Tensor, *, each: bool = False) -> None:
    """Raise ArgumentError unless all exceed the rounding error of their component's largest; ``each`` given alone has none."""
    if float(eigenvalues.max()) > _LARGEST_VARIANCE:
        raise ArgumentError(f"covariances must stay below {_LARGEST_VARIANCE:g}, got {float(eigenvalues.max()):.3g}; rescale")
    floor = (eigenvalues.abs().amax(1) * (0.0 if each else _SINGULAR)).clamp(min=_SMALLEST_VARIANCE)
    smallest = eigenvalues.amin(1)
    bad = torch.nonzero(smallest <= floor)
    if bad.numel():
        k = int(bad[0])
        raise ArgumentError(
            f"covariances[{k}] is not positive definite beyond rounding: smallest eigenvalue {float(smallest[k]):.3g}, "
            f"largest {float(eigenvalues[k].max()):.3g}; add a small multiple of the identity, give variances (K, D) or "
            "LowRank, or use GaussianMixture.from_points for point masses"
        )
