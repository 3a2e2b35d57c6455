"""Components with full or low-rank-plus-noise covariances, evaluated in the eigenbasis of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from diffode.targets.components import LOG_2PI, Components, Level, same_for_all
from diffode.targets.target import Scalar

#: Ratio of the variance along a basis to that across it above which the two parts of a residual are kept apart.
_STEEP = 1e4


@dataclass(frozen=True)
class Rotated(Components):
    """C_k = Q_k diag(c_k) Q_k^T + n_k (I - Q_k Q_k^T): full (R = D) and low-rank-plus-noise (R < D) covariances.

    ``basis`` is (K, D, R) with orthonormal columns, ``eigenvalues`` (K, R), ``noise`` (K,) the variance across the
    basis; with R = D nothing lies across and ``noise`` is unused. A row needs K R numbers, its residuals along the bases.
    """

    basis: Tensor
    eigenvalues: Tensor
    noise: Tensor

    @property
    def rank(self) -> int:
        """R."""
        return self.basis.shape[2]

    @property
    def full(self) -> bool:
        """Whether the basis spans all dimensions."""
        return self.rank == self.dim

    @property
    @override
    def smallest_variance(self) -> float:
        along = float(self.eigenvalues.min())
        return along if self.full else min(along, float(self.noise.min()))

    @property
    @override
    def shared(self) -> bool:
        # Turning a covariance by an angle changes it, in its own metric, by the angle times the root of its condition number.
        widest = float(self.eigenvalues.max())
        tolerable = (self.smallest_variance / widest) ** 0.5
        return same_for_all(self.basis, tolerable) and same_for_all(self.eigenvalues) and same_for_all(self.noise)

    @override
    def widened(self, variance: float) -> Self:
        return replace(self, eigenvalues=self.eigenvalues + variance, noise=self.noise + variance)

    @functools.cached_property
    def steep(self) -> bool:
        """Whether a component is so much narrower across its basis than along it that differences of factors lose digits.

        f_across y + Q (f_along - f_across) Q^T y has the rounding error of f_across Q^T y, but should give f_along Q^T y: its
        relative error is at most u c_along/c_across at every noise level, u the unit round-off.
        """
        return not self.full and bool((self.eigenvalues > _STEEP * self.noise[:, None]).any())

    def _split(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates along the bases, (R, K, b), and the rest of the residuals across them, (D, K, b).

        The second pass removes the part along the bases that rounding left in the rest.
        """
        along = self._coordinates(residual)
        rest = residual - self._from_coordinates(along)
        more = self._coordinates(rest)
        return along + more, rest - self._from_coordinates(more)

    def _coordinates(self, residual: Tensor) -> Tensor:
        return torch.einsum("kdr,dkb->rkb", self.basis, residual)

    def _from_coordinates(self, along: Tensor) -> Tensor:
        return torch.einsum("kdr,rkb->dkb", self.basis, along)

    @override
    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        factors = function(self.eigenvalues.T)
        if self.full:
            return self._from_coordinates(factors * self._coordinates(residual))
        across = function(self.noise)
        if self.steep:
            along, rest = self._split(residual)
            return across * rest + self._from_coordinates(factors * along)
        return across * residual + self._from_coordinates((factors - across) * self._coordinates(residual))

    @override
    def quadratic(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        factors = function(self.eigenvalues.T)
        if self.full:
            return (factors * self._coordinates(residual).square()).sum(0)
        across = function(self.noise)
        if self.steep:
            along, rest = self._split(residual)
            return across * rest.square().sum(0) + (factors * along.square()).sum(0)
        along = self._coordinates(residual)
        return across * residual.square().sum(0) + ((factors - across) * along.square()).sum(0)

    @override
    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        along = function(self.eigenvalues.T).sum(0)
        return along if self.full else along + (self.dim - self.rank) * function(self.noise)

    @override
    def variances(self) -> Tensor:
        if self.full:
            return torch.einsum("kdr,kr->kd", self.basis.square(), self.eigenvalues)
        extra = self.eigenvalues - self.noise[:, None]
        return torch.einsum("kdr,kr->kd", self.basis.square(), extra) + self.noise[:, None]

    @override
    def mean_covariance(self, weights: Tensor) -> Tensor:
        inside = self.eigenvalues if self.full else self.eigenvalues - self.noise[:, None]
        scaled = self.basis * (weights[:, None] * inside)[:, None]
        result = torch.einsum("kdr,ker->de", scaled, self.basis)
        return result if self.full else result + self._identity(weights) * (weights @ self.noise)

    @override
    def disperse(self, which: Tensor, z: Tensor) -> Tensor:
        result = torch.empty_like(z)
        for k in sorted(set(which.tolist())):
            rows = which == k
            along = z[rows] @ self.basis[k]
            across = 0.0 if self.full else self.noise[k].sqrt()
            result[rows] = across * z[rows] + (along * (self.eigenvalues[k].sqrt() - across)) @ self.basis[k].T
        return result

    def _identity(self, like: Tensor) -> Tensor:
        return torch.eye(self.dim, dtype=like.dtype, device=like.device)

    @property
    @override
    def row_size(self) -> int:
        return self.count * self.rank

    def _along(self, x: Tensor, at: Level) -> Tensor:
        """Q_k^T (x - alpha mu_k), shape (K, R, b)."""
        flat = self.basis.permute(0, 2, 1).reshape(-1, self.dim)
        offsets = torch.einsum("kd,kdr->kr", self.means, self.basis)
        return (flat @ x.T).reshape(self.count, self.rank, -1) - at.alpha * offsets[..., None]

    def _back(self, y: Tensor) -> Tensor:
        """sum_k Q_k y_k for y of shape (K, R, b); the answer is (b, D)."""
        return y.reshape(-1, y.shape[-1]).T @ self.basis.permute(0, 2, 1).reshape(-1, self.dim)

    @override
    def log_joint(self, x: Tensor, at: Level) -> Tensor:
        u = at.variance(self.eigenvalues)
        bias = self.log_weights[:, None] - (self.dim * LOG_2PI + u.log().sum(1)) / 2
        along = self._along(x, at).square_()
        if self.full:
            return bias - along.div_(u).sum(1) / 2
        across = at.variance(self.noise)
        bias = bias - (self.dim - self.rank) / 2 * across.log()
        inside = along.mul_(1 / across[:, None] - 1 / u).sum(1)
        return bias - (self.distance(x, at) / across - inside) / 2

    @override
    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        c = self.eigenvalues[..., None]
        along = (p * at.alpha * c + g) / at.variance(self.eigenvalues)
        if self.full:
            return self._back(self._along(x, at).mul_(along).mul_(r[:, None])) + p * (r.T @ self.means)
        level = at.variance(self.noise)
        across = (p * at.alpha * self.noise[:, None] + g) / level
        shift = (r * (p * at.sigma**2 - g * at.alpha) / level).T @ self.means
        inside = self._back(self._along(x, at).mul_(along - across[:, None]).mul_(r[:, None]))
        return inside + x * (r * across).sum(0)[:, None] + shift
