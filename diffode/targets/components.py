r"""The components of a Gaussian mixture, by kind of covariance, evaluated at any noise level.

At noise level (alpha, sigma) component k is :math:`N(\alpha\mu_k, S_k)`, :math:`S_k = \alpha^2 C_k + \sigma^2 I`: **the
eigenvectors never change**, so one eigen-decomposition serves every t. With responsibilities :math:`r_k(x)`,

* score :math:`= -G`, :math:`G = \sum_k r_k S_k^{-1}(x - \alpha\mu_k)`;
* denoised :math:`D = \sum_k r_k [\mu_k + \alpha C_k S_k^{-1}(x - \alpha\mu_k)]`;
* Laplacian of log p :math:`= \sum_k r_k |g_k - s|^2 - \sum_k r_k \mathrm{tr} S_k^{-1}`,
  :math:`g_k = -S_k^{-1}(x - \alpha\mu_k)`.

A *view* :math:`pD + gG` is asked for with both weights, since every useful one is then a sum without cancellation:
the eigen-direction with variance c carries the factor :math:`(p\alpha c + g)/(\alpha^2 c + \sigma^2)` on
:math:`x - \alpha\mu_k`.

Two ways of evaluating it. *Matrix products* (this file) expand the squares, so isotropic and diagonal mixtures hold
nothing larger than (K, b) for a chunk of b rows; they lose digits when components are narrow beside their distances.
*Differences* (:mod:`diffode.targets.differences`) subtract before squaring and lose none. The mixture decides.

Layout: points are rows (b, D); whatever has a component axis has it first and the rows last, (K, b), which is what
vector units like when K or D is small and costs matrix products nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from diffode.targets.target import Scalar

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Level:
    """A noise level: alpha and sigma are floats, or (b,) tensors with one value a row."""

    alpha: Scalar
    sigma: Scalar

    def rows(self, start: int, stop: int) -> Level:
        """The levels of some rows."""
        return Level(rows_of(self.alpha, start, stop), rows_of(self.sigma, start, stop))

    @property
    def per_row(self) -> bool:
        """Whether each row has a level of its own."""
        return isinstance(self.alpha, Tensor)

    def variance(self, eigenvalues: Tensor) -> Tensor:
        """alpha^2 c + sigma^2 with a last axis for the rows (of length 1 when they share one level)."""
        return self.alpha**2 * eigenvalues[..., None] + self.sigma**2


def rows_of(value: Scalar, start: int, stop: int) -> Scalar:
    """Rows ``start:stop`` of a per-row scalar; a plain number is the same for every row."""
    return value[start:stop] if isinstance(value, Tensor) else value


def column(value: Scalar) -> Scalar:
    """A per-row scalar (b,) as (b, 1), to multiply points; a plain number stays one."""
    return value[:, None] if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Components(ABC):
    """K Gaussians in D dimensions. ``log_weights`` is (K,), ``means`` is (K, D)."""

    log_weights: Tensor
    means: Tensor

    @property
    def count(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        """The same components as tensors of another dtype or device."""
        moved = {}
        for field in fields(self):
            value: Any = getattr(self, field.name)
            moved[field.name] = value.to(dtype=dtype, device=device) if isinstance(value, Tensor) else value
        return replace(self, **moved)

    def first(self) -> Self:
        """The first component alone: where all share a covariance, it stands for them all."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v[:1] for name, v in values.items() if isinstance(v, Tensor)})

    # What the kind of covariance decides.

    @property
    @abstractmethod
    def smallest_variance(self) -> float:
        """The smallest eigenvalue of any component's covariance."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether all components have the same covariance."""

    @abstractmethod
    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(C_k) applied to residuals (D, K, b); ``function`` maps eigenvalues (...) to factors (..., b or 1)."""

    @abstractmethod
    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """tr f(C_k), shape (K, b or 1)."""

    @abstractmethod
    def variances(self) -> Tensor:
        """The diagonal of each component's covariance, (K, D)."""

    @abstractmethod
    def mean_covariance(self, weights: Tensor) -> Tensor:
        """sum_k w_k C_k, (D, D)."""

    @abstractmethod
    def disperse(self, which: Tensor, z: Tensor) -> Tensor:
        """C_k^(1/2) z for the component of each row; ``which`` is (n,), ``z`` is (n, D)."""

    # Evaluation by matrix products.

    #: Whether the matrix-product forms accept per-row levels.
    takes_row_levels = False

    @property
    @abstractmethod
    def row_size(self) -> int:
        """Numbers held per row of x while evaluating: decides how many rows a chunk has."""

    @abstractmethod
    def log_joint(self, x: Tensor, at: Level) -> Tensor:
        """log(w_k N(x; alpha mu_k, S_k)), shape (K, b)."""

    @abstractmethod
    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], shape (b, D)."""

    @abstractmethod
    def score_divergence(self, x: Tensor, r: Tensor, at: Level) -> Tensor:
        """sum_k r_k |g_k - score|^2 - sum_k r_k tr S_k^-1, shape (b,)."""

    def sharpened(self, joint: Tensor, x: Tensor, at: Level) -> Tensor:
        """``log_joint`` with what rounding took from the likeliest component restored, where the products lose it."""
        return joint

    def distance(self, x: Tensor, at: Level) -> Tensor:
        """|x - alpha mu_k|^2, shape (K, b), by one matrix product."""
        cross = self.means @ x.T
        return x.square().sum(1) - 2 * at.alpha * cross + at.alpha**2 * self.means.square().sum(1)[:, None]


@dataclass(frozen=True)
class Isotropic(Components):
    """C_k = c_k I; ``variance`` is (K,). With a common variance the view is one weighted mean of the means."""

    variance: Tensor
    common: bool = False
    takes_row_levels = True

    @property
    def smallest_variance(self) -> float:  # noqa: D102
        return float(self.variance.min())

    @property
    def shared(self) -> bool:  # noqa: D102
        return self.common

    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: D102
        return residual * function(self.variance)

    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: D102
        return self.dim * function(self.variance)

    def variances(self) -> Tensor:  # noqa: D102
        return self.variance[:, None].expand(-1, self.dim)

    def mean_covariance(self, weights: Tensor) -> Tensor:  # noqa: D102
        return torch.eye(self.dim, dtype=weights.dtype) * (weights @ self.variance)

    def disperse(self, which: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return z * self.variance[which].sqrt()[:, None]

    @property
    def row_size(self) -> int:  # noqa: D102
        return self.count

    def log_joint(self, x: Tensor, at: Level) -> Tensor:  # noqa: D102
        if not self.common or at.per_row:
            u = at.variance(self.variance)
            bias = self.log_weights[:, None] - self.dim / 2 * (LOG_2PI + u.log())
            return bias - self.distance(x, at) / (2 * u)
        # One level and one variance: all that depends on k besides the product is a column.
        alpha, total = float(at.alpha), float(at.variance(self.variance[0]))
        bias = self.log_weights - self.dim / 2 * (LOG_2PI + math.log(total))
        bias = bias - self.means.square().sum(1) * (alpha**2 / (2 * total))
        joint = torch.addmm(bias[:, None], self.means, x.T, alpha=alpha / total)
        return joint.sub_(x.square().sum(1) / (2 * total))

    def sharpened(self, joint: Tensor, x: Tensor, at: Level) -> Tensor:  # noqa: D102
        likeliest = joint.detach().argmax(0)
        u = at.alpha**2 * self.variance[likeliest] + at.sigma**2
        residual = x - column(at.alpha) * self.means[likeliest]
        distance = residual.square().sum(1) / u
        exact = self.log_weights[likeliest] - (self.dim * (LOG_2PI + u.log()) + distance) / 2
        return joint.scatter(0, likeliest[None], exact[None])

    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:  # noqa: D102
        shift = p * at.sigma**2 - g * at.alpha
        if self.common:
            c = float(self.variance[0])
            u = at.alpha**2 * c + at.sigma**2
            return (r.T @ self.means) * column(shift / u) + x * column((p * at.alpha * c + g) / u)
        weight = r / at.variance(self.variance)
        along = (weight * (p * at.alpha * self.variance[:, None] + g)).sum(0)
        return (weight.T @ self.means) * column(shift) + x * along[:, None]

    def score_divergence(self, x: Tensor, r: Tensor, at: Level) -> Tensor:  # noqa: D102
        u = at.variance(self.variance)
        trace = self.dim * (r / u).sum(0)
        if not self.common:
            score = self.view(x, r, at, 0.0, -1.0)
            return (r / u.square() * self.distance(x, at)).sum(0) - score.square().sum(1) - trace
        # g_k - score = alpha (mu_k - m)/u, m = sum_j r_j mu_j: the spread of the means, whatever x is. Distances are
        # taken from the likeliest mean, which makes its own exactly zero: no cancellation when it has all the weight.
        likeliest = r.argmax(0)
        anchor = self.means[likeliest]
        norms = self.means.square().sum(1)
        spread = norms[:, None] - 2 * (self.means @ anchor.T) + norms[likeliest]
        spread = spread.scatter(0, likeliest[None], 0.0)
        centre = r.T @ self.means - anchor
        return ((r * spread).sum(0) - centre.square().sum(1)) * (at.alpha / u[0]) ** 2 - trace


@dataclass(frozen=True)
class Diagonal(Components):
    """C_k = diag(c_k); ``variance`` is (K, D)."""

    variance: Tensor

    @property
    def smallest_variance(self) -> float:  # noqa: D102
        return float(self.variance.min())

    @property
    def shared(self) -> bool:  # noqa: D102
        return _same(self.variance)

    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: D102
        return residual * function(self.variance.T)

    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: D102
        return function(self.variance.T).sum(0)

    def variances(self) -> Tensor:  # noqa: D102
        return self.variance

    def mean_covariance(self, weights: Tensor) -> Tensor:  # noqa: D102
        return torch.diag(weights @ self.variance)

    def disperse(self, which: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return z * self.variance[which].sqrt()

    @property
    def row_size(self) -> int:  # noqa: D102
        return self.count

    def log_joint(self, x: Tensor, at: Level) -> Tensor:  # noqa: D102
        precision = 1 / at.variance(self.variance)[..., 0]
        alpha = float(at.alpha)
        bias = self.log_weights - (self.dim * LOG_2PI - precision.log().sum(1)) / 2
        bias = bias - alpha**2 / 2 * (self.means.square() * precision).sum(1)
        squares = torch.addmm(bias[:, None], precision, x.square().T, alpha=-0.5)
        return squares.addmm_(self.means * precision, x.T, alpha=alpha)

    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:  # noqa: D102
        u = at.variance(self.variance)[..., 0]
        along = (p * at.alpha * self.variance + g) / u
        shift = self.means * (p * at.sigma**2 - g * at.alpha) / u
        return x * (r.T @ along) + r.T @ shift

    def score_divergence(self, x: Tensor, r: Tensor, at: Level) -> Tensor:  # noqa: D102
        precision = 1 / at.variance(self.variance)[..., 0]
        score = self.view(x, r, at, 0.0, -1.0)
        squares = (
            (r.T @ precision.square()) * x.square()
            - (r.T @ (precision.square() * self.means)) * (2 * at.alpha) * x
            + r.T @ (precision * self.means * at.alpha).square()
        )
        return squares.sum(1) - score.square().sum(1) - r.T @ precision.sum(1)


@dataclass(frozen=True)
class Rotated(Components):
    """C_k = Q_k diag(c_k) Q_k^T + n_k (I - Q_k Q_k^T): full (R = D) and low-rank-plus-noise (R < D) covariances.

    ``basis`` is (K, D, R) with orthonormal columns, ``eigenvalues`` (K, R), ``noise`` (K,) the variance across the
    basis; with R = D there is no "across" and ``noise`` is unused. A row costs K R numbers, its residuals along the bases.
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
        """Whether the basis spans everything."""
        return self.rank == self.dim

    @property
    def smallest_variance(self) -> float:  # noqa: D102
        along = float(self.eigenvalues.min())
        return along if self.full else min(along, float(self.noise.min()))

    @property
    def shared(self) -> bool:  # noqa: D102
        return _same(self.basis) and _same(self.eigenvalues) and _same(self.noise)

    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: D102
        along = torch.einsum("kdr,dkb->rkb", self.basis, residual)
        factors = function(self.eigenvalues.T)
        if self.full:
            return torch.einsum("kdr,rkb->dkb", self.basis, factors * along)
        across = function(self.noise)
        return across * residual + torch.einsum("kdr,rkb->dkb", self.basis, (factors - across) * along)

    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: D102
        along = function(self.eigenvalues.T).sum(0)
        return along if self.full else along + (self.dim - self.rank) * function(self.noise)

    def variances(self) -> Tensor:  # noqa: D102
        if self.full:
            return torch.einsum("kdr,kr->kd", self.basis.square(), self.eigenvalues)
        extra = self.eigenvalues - self.noise[:, None]
        return torch.einsum("kdr,kr->kd", self.basis.square(), extra) + self.noise[:, None]

    def mean_covariance(self, weights: Tensor) -> Tensor:  # noqa: D102
        inside = self.eigenvalues if self.full else self.eigenvalues - self.noise[:, None]
        scaled = self.basis * (weights[:, None] * inside)[:, None]
        result = torch.einsum("kdr,ker->de", scaled, self.basis)
        return result if self.full else result + torch.eye(self.dim, dtype=weights.dtype) * (weights @ self.noise)

    def disperse(self, which: Tensor, z: Tensor) -> Tensor:  # noqa: D102
        result = torch.empty_like(z)
        for k in sorted(set(which.tolist())):
            rows = which == k
            along = z[rows] @ self.basis[k]
            across = 0.0 if self.full else self.noise[k].sqrt()
            result[rows] = across * z[rows] + (along * (self.eigenvalues[k].sqrt() - across)) @ self.basis[k].T
        return result

    @property
    def row_size(self) -> int:  # noqa: D102
        return self.count * self.rank

    def _along(self, x: Tensor, at: Level) -> Tensor:
        """Q_k^T (x - alpha mu_k), shape (K, R, b)."""
        flat = self.basis.permute(0, 2, 1).reshape(-1, self.dim)
        offsets = torch.einsum("kd,kdr->kr", self.means, self.basis)
        return (flat @ x.T).reshape(self.count, self.rank, -1) - at.alpha * offsets[..., None]

    def _back(self, y: Tensor) -> Tensor:
        """sum_k Q_k y_k for y of shape (K, R, b); the answer is (b, D)."""
        return y.reshape(-1, y.shape[-1]).T @ self.basis.permute(0, 2, 1).reshape(-1, self.dim)

    def log_joint(self, x: Tensor, at: Level) -> Tensor:  # noqa: D102
        u = at.variance(self.eigenvalues)
        bias = self.log_weights[:, None] - (self.dim * LOG_2PI + u.log().sum(1)) / 2
        along = self._along(x, at).square_()
        if self.full:
            return bias - along.div_(u).sum(1) / 2
        across = at.variance(self.noise)
        bias = bias - (self.dim - self.rank) / 2 * across.log()
        inside = along.mul_(1 / across[:, None] - 1 / u).sum(1)
        return bias - (self.distance(x, at) / across - inside) / 2

    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:  # noqa: D102
        c = self.eigenvalues[..., None]
        along = (p * at.alpha * c + g) / at.variance(self.eigenvalues)
        if self.full:
            return self._back(self._along(x, at).mul_(along).mul_(r[:, None])) + p * (r.T @ self.means)
        level = at.variance(self.noise)
        across = (p * at.alpha * self.noise[:, None] + g) / level
        shift = (r * (p * at.sigma**2 - g * at.alpha) / level).T @ self.means
        inside = self._back(self._along(x, at).mul_(along - across[:, None]).mul_(r[:, None]))
        return inside + x * (r * across).sum(0)[:, None] + shift

    def score_divergence(self, x: Tensor, r: Tensor, at: Level) -> Tensor:  # noqa: D102
        u = at.variance(self.eigenvalues)
        score = self.view(x, r, at, 0.0, -1.0)
        along = self._along(x, at).square_()
        trace = (1 / u).sum(1)
        if self.full:
            squares = along.div_(u.square()).sum(1)
        else:
            level = at.variance(self.noise)
            inside = along.mul_(1 / u.square() - 1 / level.square()[:, None]).sum(1)
            squares = self.distance(x, at) / level.square() + inside
            trace = trace + (self.dim - self.rank) / level
        return (r * (squares - trace)).sum(0) - score.square().sum(1)


def _same(values: Tensor) -> bool:
    """Whether all components carry the same values, to rounding."""
    return bool(torch.allclose(values, values[:1].expand_as(values), rtol=1e-12, atol=1e-14))
