"""Mixture evaluation that subtracts before it squares: it keeps every digit and holds D K numbers per row.

The matrix products of :mod:`diffode.targets.components` expand |x - alpha mu|^2, which costs digits when a component is
narrow beside the distances between components. Differences work on the residuals themselves, and take a noise level per
row for every kind of covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffode.targets.components import LOG_2PI, Components, Level, column
from diffode.targets.target import Scalar


@dataclass(frozen=True)
class Differences:
    """The three evaluations of :class:`Components`, on residuals x - alpha mu_k of shape (D, K, b)."""

    components: Components

    @property
    def row_size(self) -> int:
        """Count of numbers that evaluation holds per row of x."""
        return self.components.count * self.components.dim

    def _residuals(self, x: Tensor, at: Level) -> Tensor:
        return x.T[:, None] - at.alpha * self.components.means.T[..., None]

    def log_joint(self, x: Tensor, at: Level) -> Tensor:
        """log(w_k N(x; alpha mu_k, S_k)), shape (K, b)."""
        y = self._residuals(x, at)
        distance = self.components.quadratic(y, lambda c: 1 / at.variance(c))
        log_determinant = self.components.spectral_sum(lambda c: at.variance(c).log())
        constant = self.components.dim * LOG_2PI + log_determinant
        return self.components.log_weights[:, None] - (constant + distance) / 2

    def logits(self, x: Tensor, at: Level) -> Tensor:
        """``log_joint`` itself: leaving out a constant per row would save nothing here."""
        return self.log_joint(x, at)

    def sharpened(self, joint: Tensor, x: Tensor, at: Level) -> Tensor:
        """``log_joint`` itself, which has lost no digits."""
        return joint

    def view(self, x: Tensor, r: Tensor, at: Level, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], shape (b, D)."""
        y = self._residuals(x, at)
        y = self.components.filter(y, lambda c: (p * at.alpha * c[..., None] + g) / at.variance(c))
        return (r * y).sum(1).T + column(p) * (r.T @ self.components.means)

    def score_divergence(self, x: Tensor, r: Tensor, at: Level) -> Tensor:
        """sum_k r_k |g_k - score|^2 - sum_k r_k tr S_k^-1, shape (b,)."""
        y = self._residuals(x, at)
        y = self.components.filter(y, lambda c: 1 / at.variance(c))
        mean = (r * y).sum(1, keepdim=True)
        trace = self.components.spectral_sum(lambda c: 1 / at.variance(c))
        # The square of a component without weight may overflow.
        return (r * ((y - mean).square().sum(0) - trace).masked_fill(r == 0, 0.0)).sum(0)
