r"""Upper bounds of the root mean square error of a learned score, :math:`\delta(t) = (E_{p_t}|s - s_\theta|^2)^{1/2}`.

If the error is affine in x, delta follows from the moments of the law. For a mixture in at most three dimensions it comes from
two rules of Gauss-Hermite quadrature, whose difference gives the error; else from draws, with an upper confidence limit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from diffode.fields import ExactField, Field
from diffode.fields.exact import mixture_of
from diffode.numerics.affine import affine_map, probe_points
from diffode.verify.field.weak import gauss_hermite

#: Origin of delta.
Method = Literal["affine", "quadrature", "draws"]

#: Largest number of coordinates in which a map is tested for being affine.
_MOST_COORDINATES = 16
#: Further deviation of a difference of two scores, relative to the scores, by rounding.
_ROUNDING = 1e-12
#: Number of nodes of the finer rule in each of one, two and three dimensions.
_NODES = (64, 24, 12)
#: Number of nodes of the coarser rule.
_COARSE_NODES = (48, 18, 9)
#: Largest number of points of the finer rule.
_MOST_POINTS = 40_000
#: Largest relative difference of the two rules; beyond it draws take their place.
_KNOWN = 0.05


class ScoreError(NamedTuple):
    """An upper bound of delta at one time, and its ``method``; for ``"draws"`` it is a confidence limit."""

    value: float
    method: Method


def score_error(exact: ExactField, learned: Field, t: float, draws: Tensor, confidence: float) -> ScoreError:
    """delta(t); if nothing exact is known, ``draws`` (n, dim) of p_t give a one-sided limit with ``confidence``."""
    ways: tuple[tuple[Method, Callable[[ExactField, Field, float], float | None]], ...] = (
        ("affine", _affine_error), ("quadrature", _quadrature),
    )  # fmt: skip
    for method, known in ways:
        found = known(exact, learned, t)
        if found is not None:
            return ScoreError(found, method)
    squares = _error(exact, learned, draws, t).square().sum(1)
    spread = float(squares.std()) / math.sqrt(len(squares))
    return ScoreError(math.sqrt(float(squares.mean()) + float(norm.ppf(confidence)) * spread), "draws")


def draws_at(exact: ExactField, t: float, count: int, seed: int, node: int) -> Tensor:
    """Draws of p_t (count, dim) from a separate stream for every seed and node."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(b"certificate"), node]).generate_state(1, np.uint64)
    return exact.marginal(count, t, generator=int(entropy[0]))


def affine_slope(function: Field, dim: int, t: float) -> Tensor | None:
    """The matrix A (dim, dim) of a score A x + b at t, or None if it is not affine or has too many coordinates."""
    if dim > _MOST_COORDINATES:
        return None
    path = function.require_path("its score")
    size = path.sigma(t) + path.alpha(t) * function.scale
    points = probe_points(torch.zeros(dim, dtype=torch.float64), size)
    with torch.no_grad():
        found = affine_map(function.score(points, t).flatten(1).double(), points, size)
    return None if found is None else found[0]


def _error(exact: ExactField, learned: Field, x: Tensor, t: float) -> Tensor:
    with torch.no_grad():
        return (exact.score(x, t) - learned.score(x, t)).flatten(1).double()


def _affine_error(exact: ExactField, learned: Field, t: float) -> float | None:
    """delta of an error A x + b: |A m + b|^2 + tr(A C A^T) with mean m and covariance C of p_t."""
    target, path, dim = exact.target, exact.path, exact.target.dim
    if dim > _MOST_COORDINATES or target.as_mixture() is None:
        return None
    mean = path.alpha(t) * target.mean
    size = math.hypot(path.sigma(t), path.alpha(t) * exact.scale)
    points = probe_points(mean, size)
    with torch.no_grad():
        rounding = _ROUNDING * float(exact.score(points, t).abs().max())
    found = affine_map(_error(exact, learned, points, t), points, size, rounding)
    if found is None:
        return None
    slope, centre, bend = found
    covariance = path.alpha(t) ** 2 * target.covariance + path.sigma(t) ** 2 * torch.eye(dim, dtype=torch.float64)
    square = centre.square().sum() + (slope @ covariance @ slope.T).trace()
    return math.sqrt(float(square)) + bend * math.sqrt(dim)


def _quadrature(exact: ExactField, learned: Field, t: float) -> float | None:
    target = mixture_of(exact)
    if target is None or target.dim > len(_NODES):
        return None
    fine, coarse = _NODES[target.dim - 1], _COARSE_NODES[target.dim - 1]
    if target.count * fine**target.dim > _MOST_POINTS:
        return None
    values = []
    for nodes in (fine, coarse):
        grid = gauss_hermite(exact, t, nodes)
        values.append(float((grid.weights * _error(exact, learned, grid.points, t).square().sum(1)).sum()))
    change = abs(values[0] - values[1])
    if not change <= _KNOWN * values[0]:
        return 0.0 if values[0] == values[1] == 0 else None
    return math.sqrt(values[0] + change)
