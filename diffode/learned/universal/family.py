"""A large random family of mixtures to train on, none of which is a target that trained solvers are measured on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from diffode.targets import GaussianMixture

#: Dimensions of the family, each as probable as it is frequent here.
_DIMENSIONS = (1, 1, 2, 2, 2, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 64, 64)
#: Largest number of modes, except for the mixtures of many modes of the wide family.
_MOST_MODES = 40
#: Dimensions of the wide family; half of them are 1 or 2.
_WIDE_DIMENSIONS = (1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4, 6, 8, 16, 32, 48, 64, 64)
#: Dimensions of its large mixtures.
_LARGE_DIMENSIONS = (128, 256)
#: Probability of a large mixture.
_LARGE_SHARE = 0.06
#: Largest number of modes of a large mixture.
_LARGE_MODES = 10
#: Numbers of directions in which the modes of mixtures with a wide spectrum differ.
_SPECTRAL_DIRECTIONS = (8, 16, 16, 32, 48)
#: Dimensions of mixtures whose modes have directions of their own.
_ROTATED_DIMENSIONS = (12, 16, 24, 32, 32, 48)
#: Share of these whose modes are nearly points, the largest number of such modes, and that of modes with full covariances.
_NARROW_SHARE, _NARROW_MODES, _FULL_MODES = 0.3, 150, 24


class Parts(NamedTuple):
    """A mixture with diagonal covariances as arrays: weights (K,), means and variances (K, dim)."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def in_units(self) -> Parts:
        """The same mixture in units of its scale, the root mean variance."""
        centred = self.means - self.weights @ self.means
        scale = math.sqrt(float((self.weights @ (self.variances + centred**2)).mean()))
        return Parts(self.weights, self.means / scale, self.variances / scale**2)


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
    means = random_means(rng, modes, dim)
    # Coordinates of unequal extent: a power-law spectrum, as images have.
    decay = rng.choice([0.0, 0.0, 0.5, 1.0, 1.0])
    extent = np.arange(1, dim + 1) ** -decay
    means *= extent
    spread = math.sqrt(float(np.mean(np.var(means, axis=0)))) if modes > 1 else 1.0
    width = math.exp(rng.uniform(math.log(0.01), math.log(0.5))) * (spread or 1.0)
    variances, weights = _variances(rng, width, extent, modes), _weights(rng, modes)
    offset = rng.normal(0, 0.3, dim) * spread * (rng.random() < 0.7)
    means = means - weights @ means + offset
    return GaussianMixture(*Parts(weights, means, variances).in_units())


def wide_mixture(seed: int) -> Parts:
    """A mixture of a wider family than :func:`random_mixture`: also up to 200 modes, 256 dimensions, low rank.

    Spectra decay up to as k^-3, or fall to 1/10 to 1/100 after a few coordinates. Nearly half are in one or two dimensions.

    >>> wide_mixture(0).means.shape
    (14, 2)
    """
    rng = np.random.default_rng([20_419, seed])
    dim = int(rng.choice(_WIDE_DIMENSIONS))
    modes = 1 if rng.random() < 0.12 else int(np.exp(rng.uniform(math.log(2), math.log(_MOST_MODES + 1))))
    large = rng.random() < _LARGE_SHARE
    if large:
        dim, modes = int(rng.choice(_LARGE_DIMENSIONS)), min(modes, _LARGE_MODES)
    elif modes > 20 and dim <= 16 and rng.random() < 0.3:
        modes = int(rng.integers(60, 200))
    extent = np.arange(1, dim + 1) ** -rng.choice([0.0, 0.0, 0.5, 1.0, 1.0, 1.5 if dim > 8 else 1.0])
    if dim > 8 and rng.random() < 0.25:
        rank = int(rng.integers(2, dim // 4 + 1))
        extent[rank:] = rng.choice([0.01, 0.03, 0.1]) * extent[rank]
    means = random_means(rng, modes, dim) * extent
    spread = math.sqrt(float(np.mean(np.var(means, axis=0)))) if modes > 1 else 1.0
    # The width of a single Gaussian is the unit.
    width = math.exp(rng.uniform(math.log(0.01), math.log(0.5))) * (spread or 1.0) if modes > 1 else 1.0
    variances, weights = _variances(rng, width, extent, modes), _weights(rng, modes)
    offset = rng.normal(0, 0.3, dim) * spread * (rng.random() < 0.7) * (extent if large else 1.0)
    return Parts(weights, means - weights @ means + offset, variances).in_units()


def spectral_mixture(seed: int) -> Parts:
    """A mixture with a wide spectrum, as images have, in the subspace of its components, in units of its scale there.

    It stands for data in any number of dimensions whose modes differ in up to 48 directions: along all others they are one
    Gaussian, which the Gaussian's chart follows exactly, so that these directions are left out. 2 to 100 modes; the extent of
    their means decays as k^-1/2 to k^-3/2, their widths as up to k^-1, and may fall after a rank.

    >>> spectral_mixture(0).means.shape[1] <= 48
    True
    """
    rng = np.random.default_rng([20_421, seed])
    modes = int(np.exp(rng.uniform(math.log(2), math.log(100))))
    kept = int(rng.choice(_SPECTRAL_DIRECTIONS))
    order = np.arange(1, kept + 1)
    extent = order ** -rng.uniform(0.5, 1.5)
    means = random_means(rng, modes, kept) * extent
    spread = math.sqrt(float(np.mean(np.var(means, axis=0))))
    width = math.exp(rng.uniform(math.log(0.03), math.log(1.0))) * spread
    decay = order ** -rng.uniform(0.0, 1.0)
    decay[int(rng.integers(1, kept + 1)) :] *= rng.choice([0.1, 0.3, 1.0])
    variances = _variances(rng, width, decay / math.sqrt(float(np.mean(decay**2))), modes)
    weights = _weights(rng, modes)
    return Parts(weights, means - weights @ means, variances).in_units()


def rotated_mixture(seed: int) -> GaussianMixture:
    """A mixture in 12 to 48 dimensions whose modes have full covariances along directions of their own, or are nearly points.

    The spectrum of the whole decays as k^0 to k^-1.4. In seven of ten mixtures 4 to 24 modes have a tenth to nine tenths of
    the variance within them, along random directions with a spectrum of their own; in the others 4 to 150 modes are narrow. So
    many more directions matter than in the other families, up to half of all.

    >>> rotated_mixture(0).dim in (12, 16, 24, 32, 48)
    True
    """
    rng = np.random.default_rng([20_431, seed])
    dim = int(rng.choice(_ROTATED_DIMENSIONS))
    order = np.arange(1, dim + 1)
    extent = order ** -rng.uniform(0.0, 0.7)
    narrow = rng.random() < _NARROW_SHARE
    modes = int(np.exp(rng.uniform(math.log(4), math.log(_NARROW_MODES if narrow else _FULL_MODES))))
    within = 0.0 if narrow else rng.uniform(0.1, 0.9)
    weights, means = _weights(rng, modes), rng.normal(size=(modes, dim)) * extent
    means -= weights @ means
    means *= math.sqrt((1 - within) * float((extent**2).sum()) / float((weights @ means**2).sum()))
    if narrow:
        width = math.exp(rng.uniform(math.log(0.01), math.log(0.2)))
        return GaussianMixture(weights, means, np.broadcast_to((width * extent) ** 2, (modes, dim)).copy())
    spectrum = order ** -rng.uniform(0.0, 2.0)
    spectrum *= within / spectrum.mean()
    floor = math.exp(2 * rng.uniform(math.log(0.003), math.log(0.1))) * float(np.mean(extent**2))
    covariances = []
    for _ in range(modes):
        axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        own = (axes * spectrum) @ axes.T * math.exp(rng.normal(0, 0.3))
        covariances.append(extent[:, None] * own * extent + floor * np.eye(dim))
    return GaussianMixture(weights, means, np.stack(covariances))


def _variances(rng: np.random.Generator, width: float, extent: np.ndarray, modes: int) -> np.ndarray:
    """Squares of a width times the extents, with factors for modes and, in a third of the mixtures, for single coordinates."""
    each = np.exp(rng.normal(0, rng.choice([0.0, 0.3, 0.7]), (modes, 1)))
    along = np.exp(rng.normal(0, rng.choice([0.0, 0.0, 0.4]), (modes, len(extent))))
    return np.asarray((width * each * along * extent) ** 2)


def _weights(rng: np.random.Generator, modes: int) -> np.ndarray:
    weights = np.full(modes, 1 / modes) if rng.random() < 0.5 else rng.dirichlet(np.full(modes, 2.0))
    weights = np.maximum(weights, 1e-3)
    return np.asarray(weights / weights.sum())


def random_means(rng: np.random.Generator, modes: int, dim: int) -> np.ndarray:
    """Means (modes, dim) of one of the kinds that :func:`random_mixture` names, by the first choice of ``rng``."""
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
