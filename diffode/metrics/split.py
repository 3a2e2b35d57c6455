"""The split of a sampler's error on any target: prior, truncation, discretisation, point by point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField
from diffode.flows import reference
from diffode.metrics.gaussian import ErrorSplit
from diffode.paths import EDM
from diffode.tableau import Tableau

#: Noise level rho, in units of the data's scale, at which the normal prior is exact to a few parts in a million.
_FAR_LEVEL = 1e6


def error_split(field: ExactField, tableau: Tableau, z: Tensor, tolerance: float = 1e-9) -> ErrorSplit:
    r"""Root mean square distances between the ends to which samplers take standard normals z (B, dim).

    The exact sampler takes z from infinite noise down the probability-flow ODE to the data. A real one starts at t_max from
    sigma z (*prior* error: both starts are followed exactly to the last time), stops before the data (*truncation*: the exact
    flow goes on from the last time to sigma = 0), and takes finite steps (*discretisation*). As vectors the three add up.
    Raises ArgumentError for z of another shape, or a first time at which alpha is 0.
    """
    path, target = field.path, field.target
    if field.source is not None:
        raise ArgumentError(f"error_split begins at a normal prior; this field's noise is from source {field.source.spec!r}")
    if z.ndim != 2 or z.shape[0] == 0:
        raise ArgumentError(f"z must be standard normals (B, {target.dim}), one at least, got shape {tuple(z.shape)}")
    first, last = tableau.ends
    if not math.isfinite(path.rho(first)):
        raise ArgumentError(f"the split of an error needs a first time with some signal; at t={first:g} alpha is 0")
    z = z.to(torch.float64)
    start = path.sigma(first) * z
    level = path.rho(first)
    far = max(_FAR_LEVEL * target.scale, level)
    edm = EDM(sigma_min=0.0, sigma_max=2 * far)
    distant = target.mean.to(z) + far * z
    exact_start = path.alpha(first) * reference(ExactField(target, edm), distant, far, level, tolerance).x
    output = tableau.run(field, start)
    flowed = reference(field, start, first, last, tolerance).x
    exact = reference(field, exact_start, first, last, tolerance).x
    data = reference(field, exact, last, path.time_from_rho(0.0), tolerance).x if path.sigma(last) > 0 else exact

    def rms(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum(1).mean().sqrt())

    return ErrorSplit(rms(flowed, exact), rms(exact, data), rms(output, flowed), rms(output, data))
