r"""Data and noise that are both Gaussian mixtures, independent: one part for each pair of components.

Of a pair (i, j) the mean is :math:`\alpha m_i + \sigma n_j` and the covariance :math:`S = \alpha^2 C_i + \sigma^2 D_j`. One
basis V of each pair serves all times: with :math:`C = V\Lambda V^T`, :math:`D = V\Delta V^T`,
:math:`u = \alpha^2\lambda + \sigma^2\delta` and :math:`z = V^{-1}(x - \alpha m - \sigma n)`

.. math::
    s = -V^{-T}(z/u), \qquad
    p\,E[x_0|x] + e\,E[x_1|x] = p\,m + e\,n + V\left[(p\,\alpha\lambda + e\,\sigma\delta)\,z/u\right] .

Isotropic and diagonal pairs have V = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.sources.law import Law, Parts, Weights, check_levels
from diffode.targets import GaussianMixture
from diffode.targets.components import LOG_2PI, Components, Diagonal, Isotropic
from diffode.targets.target import Scalar

#: Largest count of numbers in the bases of all pairs, 128 MB in float64.
_MOST_NUMBERS = 2**24


class Pairs(Law):
    """The law of alpha x_0 + sigma x_1 for two mixtures of one dimension, not both of point masses.

    Attributes:
        means: means m_i of the data's components and n_j of the noise's, (C, D) each.
        spectra: lambda and delta, (C, D) each.
        basis: V and its inverse, (C, D, D) each; None where all pairs are diagonal.
    """

    @torch.inference_mode(False)
    def __init__(self, data: GaussianMixture, noise: GaussianMixture):
        self.dim = data.dim
        i, j = (
            index.reshape(-1) for index in torch.meshgrid(torch.arange(data.count), torch.arange(noise.count), indexing="ij")
        )
        self.log_weights = data.weights.log()[i] + noise.weights.log()[j]
        self.means = data.means[i], noise.means[j]
        self.centred = not bool(noise.means.any())
        self._points = data.is_discrete, noise.is_discrete
        self.basis: tuple[Tensor, Tensor] | None = None
        if is_diagonal(data.components) and is_diagonal(noise.components):
            self.spectra = data.components.variances()[i], noise.components.variances()[j]
            self.log_volume = torch.zeros_like(self.log_weights)
            return
        if not fits(data, noise):
            raise ArgumentError(
                f"target and source have {data.count} x {noise.count} pairs of full covariances in {data.dim} dimensions, too "
                "many to hold a basis for each: take a source with isotropic components, (K,) variances"
            )
        both = (data, i), (noise, j)
        full = [mixture.covariance_matrices[index] for mixture, index in both]
        # The better conditioned one of two covariances is made the identity, so that its basis loses fewest digits.
        narrow = [_condition(mixture.components)[index] for mixture, index in both]
        by_noise = narrow[1] <= narrow[0]
        whole = torch.where(by_noise[:, None, None], full[1], full[0])
        other = torch.where(by_noise[:, None, None], full[0], full[1])
        root: Tensor = torch.linalg.cholesky(whole)
        inner = torch.linalg.solve_triangular(root, other, upper=False)
        inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
        values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
        values, one = values.clamp(min=0), torch.ones_like(values)
        self.spectra = torch.where(by_noise[:, None], values, one), torch.where(by_noise[:, None], one, values)
        inverse = torch.linalg.solve_triangular(root.mT, vectors, upper=True).mT
        self.basis = root @ vectors, inverse
        self.log_volume = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)

    @override
    def count(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> int:
        return len(self.log_weights)

    @override
    def parts(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> PairParts:
        check_levels(alpha, sigma, *self._points)
        return PairParts(self, x, alpha, sigma)

    def widths(self, alpha: Scalar, sigma: Scalar) -> Tensor:
        """u = alpha^2 lambda + sigma^2 delta, (C, 1, D), or (C, B, D) for levels (B, 1)."""
        data, noise = (spectrum[:, None].to(_device(alpha)) for spectrum in self.spectra)
        return alpha**2 * data + sigma**2 * noise

    def centres(self, alpha: Scalar, sigma: Scalar) -> Tensor:
        """alpha m + sigma n, shaped as the widths are."""
        data, noise = (means[:, None].to(_device(alpha)) for means in self.means)
        return alpha * data + sigma * noise


class PairParts(Parts):
    """The pairs at some points."""

    def __init__(self, law: Pairs, x: Tensor, alpha: Scalar, sigma: Scalar):
        self.law, self.alpha = law, alpha
        self.u = law.widths(alpha, sigma).to(x.device)
        offsets = x - law.centres(alpha, sigma).to(x.device)
        self.z = offsets if law.basis is None else torch.einsum("cij,cbj->cbi", law.basis[1].to(x.device), offsets)
        spread = self.u.log().sum(-1) + law.log_volume[:, None].to(x.device)
        distance = (self.z.square() / self.u).sum(-1)
        self.log_joint = law.log_weights[:, None].to(x.device) - (law.dim * LOG_2PI + spread + distance) / 2

    @override
    def scores(self) -> Tensor:
        scaled = -self.z / self.u
        return scaled if self.law.basis is None else torch.einsum("cij,cbi->cbj", self.law.basis[1].to(scaled.device), scaled)

    @override
    def views(self, weights: Weights) -> Tensor:
        moved = self._gain(weights) * self.z
        if self.law.basis is not None:
            moved = torch.einsum("cij,cbj->cbi", self.law.basis[0].to(moved.device), moved)
        data, noise = (means[:, None].to(moved.device) for means in self.law.means)
        return moved + weights.data * data if self.law.centred else moved + weights.data * data + weights.noise * noise

    @override
    def divergences(self, weights: Weights) -> Tensor:
        return self._gain(weights).sum(-1).expand(self.log_joint.shape)

    def _gain(self, weights: Weights) -> Tensor:
        data, noise = (spectrum[:, None].to(self.u.device) for spectrum in self.law.spectra)
        return (weights.data * self.alpha * data + weights.pull * noise) / self.u


def is_diagonal(components: Components) -> bool:
    """Whether covariances are multiples of the identity or diagonal."""
    return isinstance(components, Isotropic | Diagonal)


def fits(data: GaussianMixture, noise: GaussianMixture) -> bool:
    """Whether the bases of all pairs of full covariances can be held."""
    return data.count * noise.count * data.dim**2 <= _MOST_NUMBERS


def _device(alpha: Scalar) -> torch.device:
    return alpha.device if isinstance(alpha, Tensor) else torch.device("cpu")


def _condition(components: Components) -> Tensor:
    """Largest over smallest eigenvalue of each component's covariance, (K,); infinite for point masses."""
    if isinstance(components, Isotropic):
        return torch.where(components.variance > 0, 1.0, torch.inf)
    values = components.variance if isinstance(components, Diagonal) else components.eigenvalues  # type: ignore[attr-defined]
    noise = getattr(components, "noise", None)
    across = values if noise is None or components.full else torch.cat([values, noise[:, None]], 1)  # type: ignore[attr-defined]
    ends: Tensor = across.amax(1) / across.amin(1)
    return ends
