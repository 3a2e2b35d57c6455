r"""The components of a Gaussian mixture, by kind of covariance, evaluated at any noise level.

At noise level (alpha, sigma) component k is :math:`N(\alpha\mu_k, S_k)`, :math:`S_k = \alpha^2 C_k + \sigma^2 I`: **the
eigenvectors never change**, so one eigen-decomposition serves every t. With responsibilities :math:`r_k(x)`,

* score :math:`= -G`, :math:`G = \sum_k r_k S_k^{-1}(x - \alpha\mu_k)`;
* denoised :math:`D = \sum_k r_k [\mu_k + \alpha C_k S_k^{-1}(x - \alpha\mu_k)]`;
* Laplacian of log p :math:`= \sum_k r_k |g_k - s|^2 - \sum_k r_k \mathrm{tr} S_k^{-1}`,
  :math:`g_k = -S_k^{-1}(x - \alpha\mu_k)`.

A *view* :math:`pD + gG` is computed from both weights at once, so that no useful view cancels: along an eigenvector of
variance c, :math:`x - \alpha\mu_k` gets the factor :math:`(p\alpha c + g)/(\alpha^2 c + \sigma^2)`.

A view is evaluated in one of two ways. *Matrix products* (this file) expand the squares, so that isotropic and diagonal
mixtures hold nothing larger than (K, b) for a chunk of b rows; they lose digits when components are narrow beside their
distances. *Differences* (:mod:`diffode.targets.differences`) subtract before squaring and lose none. The mixture decides.

Layout: points are rows (b, D); an array with a component axis has it first and the rows last, (K, b), which suits vector
units when K or D is small and costs matrix products nothing.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from diffode.targets.target import Scalar

LOG_2PI = math.log(2 * math.pi)

#: Number of dimensions below which a weighted mean of the means is computed with the rows last: it is then faster.
_NARROW = 8


@dataclass(frozen=True)
class Level:
    """A noise level: alpha and sigma are floats, or (b,) tensors with a value for each row."""

    alpha: Scalar
    sigma: Scalar

    def rows(self, start: int, stop: int) -> Level:
        """The level of the rows ``start:stop``."""
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
        """The first component alone, which stands for all where they share a covariance."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v[:1] for name, v in values.items() if isinstance(v, Tensor)})

    def chosen(self, index: Sequence[int]) -> Self:
        """Some of the components, with weights that sum to 1."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: v[list(index)] for name, v in values.items() if isinstance(v, Tensor)}
        kept["log_weights"] = kept["log_weights"] - kept["log_weights"].logsumexp(0)
        return replace(self, **kept)

    @abstractmethod
    def widened(self, variance: float) -> Self:
        """The components of the law's sum with N(0, variance I): every eigenvalue grows by the variance."""

    # Members that depend on the kind of covariance.

    @property
    @abstractmethod
    def smallest_variance(self) -> float:
        """The smallest eigenvalue of all components' covariances."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether all components have the same covariance."""

    @abstractmethod
    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(C_k) applied to residuals (D, K, b); ``function`` maps eigenvalues (...) to factors (..., b or 1)."""

    def quadratic(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """y^T f(C_k) y for residuals y (D, K, b), shape (K, b)."""
        return (residual * self.filter(residual, function)).sum(0)

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
        """Count of numbers that evaluation holds per row of x, by which the rows of a chunk are chosen."""

    @abstractmethod
    def log_joint(self, x: Tensor, at: Level) -> Tensor:
        """log(w_k N(x; alpha mu_k, S_k)), shape (K, b)."""

    def logits(self, x: Tensor, at: Level) -> Tensor:
        """``log_joint`` up to a constant per row, which cancels in responsibilities; cheaper for some kinds."""
        return self.log_joint(x, at)

    @functools.cached_property
    @torch.inference_mode(False)
    def norms(self) -> Tensor:
        """|mu_k|^2, (K,)."""
        return self.means.square().sum(1)

    @abstractmethod
    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], shape (b, D)."""

    def sharpened(self, joint: Tensor, x: Tensor, at: Level) -> Tensor:
        """``log_joint`` with the likeliest component's entry computed without the rounding of the products."""
        return joint

    def distance(self, x: Tensor, at: Level) -> Tensor:
        """|x - alpha mu_k|^2, shape (K, b), by one matrix product."""
        cross = self.means @ x.T
        return x.square().sum(1) - 2 * at.alpha * cross + at.alpha**2 * self.norms[:, None]


@dataclass(frozen=True)
class Isotropic(Components):
    """C_k = c_k I; ``variance`` is (K,). With a ``common`` variance a view needs one weighted mean of the means only."""

    variance: Tensor
    common: bool = False
    takes_row_levels = True

    @property
    @override
    def smallest_variance(self) -> float:
        return float(self.variance.min())

    @property
    @override
    def shared(self) -> bool:
        return self.common

    @override
    def chosen(self, index: Sequence[int]) -> Self:
        kept = super().chosen(index)
        return replace(kept, common=bool((kept.variance == kept.variance[0]).all()))

    @override
    def widened(self, variance: float) -> Self:
        return replace(self, variance=self.variance + variance)

    @override
    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return residual * function(self.variance)

    @override
    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return self.dim * function(self.variance)

    @override
    def variances(self) -> Tensor:
        return self.variance[:, None].expand(-1, self.dim)

    @override
    def mean_covariance(self, weights: Tensor) -> Tensor:
        return torch.eye(self.dim, dtype=weights.dtype, device=weights.device) * (weights @ self.variance)

    @override
    def disperse(self, which: Tensor, z: Tensor) -> Tensor:
        return z * self.variance[which].sqrt()[:, None]

    @property
    @override
    def row_size(self) -> int:
        return self.count

    @override
    def log_joint(self, x: Tensor, at: Level) -> Tensor:
        u = at.variance(self.variance)
        bias = self.log_weights[:, None] - self.dim / 2 * (LOG_2PI + u.log())
        return bias - self.distance(x, at) / (2 * u)

    @override
    def logits(self, x: Tensor, at: Level) -> Tensor:
        if not self.common or at.per_row:
            return self.log_joint(x, at)
        # With one level and one variance |x|^2 is the same for all k and drops out: one product and a column are left.
        alpha = float(at.alpha)
        total = alpha**2 * self.common_variance + float(at.sigma) ** 2
        bias = self.log_weights - self.norms * (alpha**2 / (2 * total))
        return torch.addmm(bias[:, None], self.means, x.T, alpha=alpha / total)

    @functools.cached_property
    def common_variance(self) -> float:
        """The variance that all components have, if it is common."""
        return float(self.variance[0])

    @override
    def sharpened(self, joint: Tensor, x: Tensor, at: Level) -> Tensor:
        likeliest = joint.detach().argmax(0)
        u = at.alpha**2 * self.variance[likeliest] + at.sigma**2
        residual = x - column(at.alpha) * self.means[likeliest]
        distance = residual.square().sum(1) / u
        exact = self.log_weights[likeliest] - (self.dim * (LOG_2PI + u.log()) + distance) / 2
        return joint.scatter(0, likeliest[None], exact[None])

    @override
    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        shift = p * at.sigma**2 - g * at.alpha
        if self.common:
            c = self.common_variance
            u = at.alpha**2 * c + at.sigma**2
            along, weight = (p * at.alpha * c + g) / u, shift / u
            if isinstance(along, Tensor) or isinstance(weight, Tensor):
                return (r.T @ self.means) * column(weight) + x * column(along)
            if self.dim < _NARROW:
                # With the rows last the product runs along them; a product with two or three columns is slow.
                return torch.add(x * along, (self.means.T @ r).T, alpha=weight)
            return torch.addmm(x, r.T, self.means, beta=along, alpha=weight)
        weight = r / at.variance(self.variance)
        along = (weight * (p * at.alpha * self.variance[:, None] + g)).sum(0)
        return (weight.T @ self.means) * column(shift) + x * along[:, None]

    def attended_view(self, x: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        """:meth:`view` for a common variance and one level, from x alone.

        The mean of the means is attention with queries x, and the means as keys and values: the exponent of a component is
        alpha x.mu_k/u plus a number of its own, and u is the same for all.
        """
        alpha, c = float(at.alpha), self.common_variance
        u = alpha**2 * c + float(at.sigma) ** 2
        bias = self.log_weights - self.norms * (alpha**2 / (2 * u))
        means = self.means[None, None]
        mean = torch.nn.functional.scaled_dot_product_attention(
            x[None, None], means, means, attn_mask=bias.expand(1, 1, len(x), -1), scale=alpha / u
        )[0, 0]
        return x * column((p * alpha * c + g) / u) + mean * column((p * at.sigma**2 - g * alpha) / u)

    def score_divergence(self, x: Tensor, r: Tensor, at: Level) -> Tensor:
        """sum_k r_k |g_k - score|^2 - sum_k r_k tr S_k^-1, shape (b,), for a common variance.

        g_k - score = alpha (mu_k - m)/u with m = sum_j r_j mu_j, which holds no x. Distances are taken from the likeliest
        mean, whose own distance is then exactly zero, so that nothing cancels when it has all the weight.
        """
        u = at.variance(self.variance)
        likeliest = r.argmax(0)
        anchor = self.means[likeliest]
        spread = self.norms[:, None] - 2 * (self.means @ anchor.T) + self.norms[likeliest]
        spread = spread.scatter(0, likeliest[None], 0.0)
        centre = r.T @ self.means - anchor
        variance = (r * spread).sum(0) - centre.square().sum(1)
        # Factor by factor, since the square alone may overflow where the variance is 0.
        slope = at.alpha / u[0]
        return variance * slope * slope - self.dim * (r / u).sum(0)


@dataclass(frozen=True)
class Diagonal(Components):
    """C_k = diag(c_k); ``variance`` is (K, D)."""

    variance: Tensor

    @property
    @override
    def smallest_variance(self) -> float:
        return float(self.variance.min())

    @property
    @override
    def shared(self) -> bool:
        return same_for_all(self.variance)

    @override
    def widened(self, variance: float) -> Self:
        return replace(self, variance=self.variance + variance)

    @override
    def filter(self, residual: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return residual * function(self.variance.T)

    @override
    def spectral_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(self.variance.T).sum(0)

    @override
    def variances(self) -> Tensor:
        return self.variance

    @override
    def mean_covariance(self, weights: Tensor) -> Tensor:
        return torch.diag(weights @ self.variance)

    @override
    def disperse(self, which: Tensor, z: Tensor) -> Tensor:
        return z * self.variance[which].sqrt()

    @property
    @override
    def row_size(self) -> int:
        return self.count

    @override
    def log_joint(self, x: Tensor, at: Level) -> Tensor:
        precision = 1 / at.variance(self.variance)[..., 0]
        alpha = float(at.alpha)
        bias = self.log_weights - (self.dim * LOG_2PI - precision.log().sum(1)) / 2
        bias = bias - alpha**2 / 2 * (self.means.square() * precision).sum(1)
        squares = torch.addmm(bias[:, None], precision, x.square().T, alpha=-0.5)
        return squares.addmm_(self.means * precision, x.T, alpha=alpha)

    @override
    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        u = at.variance(self.variance)[..., 0]
        along = (p * at.alpha * self.variance + g) / u
        shift = self.means * (p * at.sigma**2 - g * at.alpha) / u
        return x * (r.T @ along) + r.T @ shift


def same_for_all(values: Tensor, unit: float = 0.0) -> bool:
    """Whether all components carry the same values, up to rounding relative to each value and to ``unit``.

    Variances may have any size, so that no absolute difference is small for all (``unit`` 0); the entries of unit vectors
    have ``unit`` 1.
    """
    first = values[:1]
    return bool(((values - first).abs() <= 1e-12 * first.abs() + 1e-14 * unit).all())
