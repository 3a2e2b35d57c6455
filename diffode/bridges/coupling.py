r"""Couplings: joint laws of (x_0, x_1), mixtures of joint Gaussians with the data x_0 and the source x_1 as marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.randomness import Randomness, generator_from, normal
from diffode.targets import GaussianMixture, Target
from diffode.targets import get as get_target
from diffode.targets.parameters import checked_weights, means_of, real

#: Largest number of pairs of components of a coupling, each of which holds matrices (2D, 2D).
_MOST_PAIRS = 4096
#: Ratio to its largest of an eigenvalue of a joint covariance below which it is no rounding error of a singular one.
_NEGATIVE = -1e-10


@dataclass(frozen=True, eq=False)
class Coupling:
    r"""A joint law of data x_0 and source x_1 in D dimensions: the mixture :math:`\sum_k w_k N(m_k, J_k)` of pairs.

    Attributes:
        weights: (K,), positive, summing to 1.
        data_means, source_means: (K, D).
        data_covariances, source_covariances: (K, D, D), C_k and D_k, positive definite.
        cross: (K, D, D), X_k = Cov[x_0, x_1] within the k-th pair; J_k = [[C, X], [X^T, D]] may be singular.
        name: what made it.
        sigma: standard deviation per unit time of the process whose bridge it is, for a Schroedinger coupling; else 0.
    """

    weights: Tensor
    data_means: Tensor
    source_means: Tensor
    data_covariances: Tensor
    source_covariances: Tensor
    cross: Tensor
    name: str = "explicit"
    sigma: float = 0.0

    def __repr__(self) -> str:
        return f"Coupling({self.name}, {self.count} pair{'s' if self.count != 1 else ''} in {self.dim} dimensions)"

    @property
    def count(self) -> int:
        """Number of pairs K."""
        return len(self.weights)

    @property
    def dim(self) -> int:
        """Number of coordinates D of either end."""
        return self.data_means.shape[1]

    @property
    def joint(self) -> Tensor:
        """The joint covariances J_k, (K, 2D, 2D)."""
        upper = torch.cat([self.data_covariances, self.cross], 2)
        return torch.cat([upper, torch.cat([self.cross.mT, self.source_covariances], 2)], 1)

    @property
    def energy(self) -> float:
        """E|x_0 - x_1|^2, the transport cost; that of the optimal coupling of two Gaussians is their squared W2 distance.

        >>> two = independent(GaussianMixture([1.0], [[0.0]], [1.0]), GaussianMixture([1.0], [[3.0]], [4.0]))
        >>> two.energy
        14.0
        """
        offset = (self.data_means - self.source_means).square().sum(1)
        spread = self.data_covariances - self.cross - self.cross.mT + self.source_covariances
        return float(self.weights @ (offset + spread.diagonal(dim1=1, dim2=2).sum(1)))

    def sample(self, n: int, *, generator: Randomness) -> tuple[Tensor, Tensor]:
        """n pairs of data and source, each (n, D) float64."""
        if type(n) is not int or n < 0:
            raise ArgumentError(f"n must be a number of pairs >= 0, got {n!r:.60}")
        drawn = generator_from(generator)
        uniform = torch.rand(n, generator=drawn, dtype=torch.float64, device=drawn.device).cpu()
        which = torch.searchsorted(self.weights.cumsum(0), uniform).clamp_(max=self.count - 1)
        z = normal((n, 2 * self.dim), generator=drawn).cpu()
        factors = square_root(self.joint)
        means = torch.cat([self.data_means, self.source_means], 1)
        pairs = means[which] + (factors[which] @ z[..., None])[..., 0]
        return pairs[:, : self.dim], pairs[:, self.dim :]


def square_root(matrices: Tensor) -> Tensor:
    """Symmetric square roots of positive semidefinite matrices (..., D, D); negative rounding errors count as 0."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    root: Tensor = vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT
    return root


def explicit(
    weights: Any,
    data_means: Any,
    source_means: Any,
    data_covariances: Any,
    source_covariances: Any,
    cross: Any = None,
) -> Coupling:
    """A coupling from its numbers, shaped as :class:`Coupling` says; ``cross`` is 0 unless given.

    Raises:
        ArgumentError: for wrong shapes, non-finite entries, weights that do not sum to 1, covariances that are not symmetric
            and positive definite, and cross-covariances that no pair of variables has. The message names the pair.

    >>> explicit([1.0], [[0.0]], [[2.0]], [[[1.0]]], [[[1.0]]], [[[0.5]]]).energy
    5.0
    """
    one, two = means_of(data_means, "data_means"), means_of(source_means, "source_means")
    if one.shape != two.shape:
        raise ArgumentError(
            f"data_means and source_means must have one shape (K, D), got {tuple(one.shape)} and {tuple(two.shape)}: "
            "a row of each makes a pair"
        )
    count, dim = one.shape
    shares = checked_weights(real(weights, "weights", 1), count)
    of_data = _covariances(data_covariances, "data_covariances", (count, dim, dim))
    of_source = _covariances(source_covariances, "source_covariances", (count, dim, dim))
    between = torch.zeros(count, dim, dim).double() if cross is None else _matrices(cross, "cross", (count, dim, dim))
    coupling = Coupling(shares, one, two, of_data, of_source, between)
    values = torch.linalg.eigvalsh(coupling.joint)
    worst = int((values[:, 0] / values[:, -1]).argmin())
    if float(values[worst, 0]) < _NEGATIVE * float(values[worst, -1]):
        raise ArgumentError(
            f"cross[{worst}] is no cross-covariance of these covariances: the joint one has the eigenvalue "
            f"{float(values[worst, 0]):.3g}; make it smaller, |X| <= C^1/2 D^1/2"
        )
    return coupling


def independent(data: GaussianMixture | str, source: GaussianMixture | str | None = None) -> Coupling:
    """Data and source drawn apart: K_0 K_1 pairs of components with cross-covariance 0.

    Without a source it is N(0, I), which processes that forget it (``langevin``) never see.

    Raises:
        ArgumentError: for laws that are no mixtures of Gaussians, of other dimensions, of points, or with too many pairs.

    >>> independent("bimodal1d", "gauss1d").count
    2
    """
    one, two = ends(data, source)
    pairs = torch.cartesian_prod(torch.arange(one.count), torch.arange(two.count)).reshape(-1, 2)
    return paired(one, two, pairs, one.weights[pairs[:, 0]] * two.weights[pairs[:, 1]], None, "independent")


def ends(data: GaussianMixture | str, source: GaussianMixture | str | None) -> tuple[GaussianMixture, GaussianMixture]:
    """Data and source as mixtures with densities in the same dimension; ArgumentError for others."""
    one = _mixture(data, "data")
    plain = GaussianMixture([1.0], torch.zeros(1, one.dim), torch.ones(1)) if source is None else source
    two = _mixture(plain, "source")
    if one.dim != two.dim:
        raise ArgumentError(f"source has {two.dim} dimensions and data {one.dim}; a bridge needs the same at both ends")
    if one.count * two.count > _MOST_PAIRS:
        raise ArgumentError(
            f"data and source make {one.count} x {two.count} pairs of components, more than {_MOST_PAIRS}: "
            "take mixtures of fewer components"
        )
    return one, two


def paired(
    data: GaussianMixture, source: GaussianMixture, pairs: Tensor, weights: Tensor, cross: Tensor | None, name: str,
    sigma: float = 0.0,
) -> Coupling:  # fmt: skip
    """The coupling of pairs (K, 2) of components with these weights, and cross-covariances (K, D, D), or none."""
    first, second = pairs[:, 0], pairs[:, 1]
    chosen = data.covariance_matrices[first], source.covariance_matrices[second]
    between = torch.zeros_like(chosen[0]) if cross is None else cross
    return Coupling(weights, data.means[first], source.means[second], *chosen, between, name, sigma)


def _mixture(law: Any, name: str) -> GaussianMixture:
    target = get_target(law) if isinstance(law, str | Target) else None
    mixture = None if target is None else target.as_mixture()
    if mixture is None:
        raise ArgumentError(f"{name} must be a mixture of Gaussians or the spec of one, got {law!r:.80}")
    if mixture.is_discrete:
        raise ArgumentError(f"{name} must have a density, got point masses: give its components a variance")
    return mixture


def _matrices(value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    array = real(value, name, None)
    if array.shape != shape:
        raise ArgumentError(f"{name} must have shape (K, D, D) = {shape}, got {tuple(array.shape)}")
    return array


def _covariances(value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    array = _matrices(value, name, shape)
    asymmetry = (array - array.mT).abs().amax((1, 2)) / array.abs().amax((1, 2)).clamp(min=1e-300)
    worst = int(asymmetry.argmax())
    if float(asymmetry[worst]) > 1e-10:
        raise ArgumentError(f"{name}[{worst}] is not symmetric; use (C + C.T)/2")
    symmetric = (array + array.mT) / 2
    values = torch.linalg.eigvalsh(symmetric)
    worst = int((values[:, 0] / values[:, -1].abs().clamp(min=1e-300)).argmin())
    if not float(values[worst, 0]) > 1e-14 * abs(float(values[worst, -1])):
        raise ArgumentError(
            f"{name}[{worst}] is not positive definite beyond rounding: smallest eigenvalue {float(values[worst, 0]):.3g}; "
            "add a small multiple of the identity"
        )
    return symmetric
