"""A large random family of mixtures to train on, so that what is learned does not know the targets it is measured on."""

from __future__ import annotations

import math

import numpy as np

from diffode.targets import GaussianMixture

_DIMENSIONS = (1, 1, 2, 2, 2, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 64, 64)
_MOST_MODES = 40


def random_mixture(seed: int) -> GaussianMixture:
    """A mixture of the family, with root mean variance 1: dimensions 1 to 64, 1 to 40 modes, diagonal covariances.

    Means lie in a ball, on a sphere, on a line, on a curve, on a lattice, or in clusters of clusters; widths are log-uniform
    from 1/100 to 1/2 of the scale and differ between modes; spectra are flat or decay as a power; weights are
    equal or Dirichlet.

    >>> random_mixture(0).scale
    1.0
    """
    rng = np.random.default_rng([20_417, seed])
    dim = int(rng.choice(_DIMENSIONS))
    modes = 1 if rng.random() < 0.12 else int(np.exp(rng.uniform(math.log(2), math.log(_MOST_MODES + 1))))
    means = _means(rng, modes, dim)
    # Coordinates of unequal extent: a power-law spectrum, as images have.
    decay = rng.choice([0.0, 0.0, 0.5, 1.0, 1.0])
    extent = np.arange(1, dim + 1) ** -decay
    means *= extent
    spread = math.sqrt(float(np.mean(np.var(means, axis=0)))) if modes > 1 else 1.0
    width = math.exp(rng.uniform(math.log(0.01), math.log(0.5))) * (spread or 1.0)
    each = np.exp(rng.normal(0, rng.choice([0.0, 0.3, 0.7]), (modes, 1)))
    along = np.exp(rng.normal(0, rng.choice([0.0, 0.0, 0.4]), (modes, dim)))
    variances = (width * each * along * extent) ** 2
    weights = np.full(modes, 1 / modes) if rng.random() < 0.5 else rng.dirichlet(np.full(modes, 2.0))
    weights = np.maximum(weights, 1e-3)
    weights = weights / weights.sum()
    offset = rng.normal(0, 0.3, dim) * spread * (rng.random() < 0.7)
    means = means - weights @ means + offset
    scale = math.sqrt(float((weights @ (variances + (means - weights @ means) ** 2)).mean()))
    return GaussianMixture(weights, means / scale, variances / scale**2)


def _means(rng: np.random.Generator, modes: int, dim: int) -> np.ndarray:
    kind = rng.choice(["ball", "ball", "sphere", "line", "curve", "lattice", "clusters"])
    if kind == "sphere":
        points = rng.normal(size=(modes, dim))
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))
    if kind == "line":
        return np.linspace(-1, 1, modes)[:, None] * rng.normal(size=dim) + 0.02 * rng.normal(size=(modes, dim))
    if kind == "curve":
        # A random smooth closed curve.
        angle = np.linspace(0, 2 * np.pi, modes, endpoint=False)[:, None]
        return sum((rng.normal(size=dim) * np.cos(k * angle) + rng.normal(size=dim) * np.sin(k * angle)) / k for k in (1, 2, 3))  # type: ignore[return-value]
    if kind == "lattice":
        side = max(2, math.ceil(modes ** (1 / min(dim, 3))))
        points = rng.integers(0, side, size=(modes, dim)).astype(float)
        return points + 0.01 * rng.normal(size=(modes, dim))
    if kind == "clusters":
        centres = rng.normal(size=(max(1, modes // 4), dim))
        return np.asarray(centres[rng.integers(len(centres), size=modes)] + 0.25 * rng.normal(size=(modes, dim)))
    return rng.normal(size=(modes, dim))
