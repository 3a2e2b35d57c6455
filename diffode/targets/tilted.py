"""The law that guidance is often believed to sample, p(x|c)^w p(x)^(1-w), normalised by quadrature in one and two dimensions.

Neither the guided flow nor the guided SDE samples it (Bradley and Nakkiran, arXiv 2408.09000): it is here to be compared with.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError
from diffode.randomness import Randomness, generator_from
from diffode.targets.mixture import GaussianMixture

#: Width of the first box around all components, in their standard deviations.
_REACH = 9.0
#: Logarithm of the density at the box's border, below that of its top, from which on nothing lies outside.
_NEGLIGIBLE = -50.0
#: Most times that the box is doubled.
_DOUBLINGS = 8
#: Cells along a side of the first and of the finest grid, by dimension.
_CELLS = {1: (1 << 10, 1 << 20), 2: (1 << 7, 1 << 11)}
#: Relative change of the mass and the moments from a grid to the next at which the quadrature has settled.
_SETTLED = 1e-10
#: Largest such change at the finest grid.
_LARGEST_CHANGE = 1e-4
#: Points whose density is asked for at once.
_BLOCK = 1 << 17


class TiltedLaw:
    """The law with the density p_c(x)^w p_u(x)^(1-w) over its integral.

    The trapezoid rule on a box converges exponentially for such densities; the grid is halved until mass, mean and covariance
    stay what they are.

    Attributes:
        conditional, unconditional, weight: p_c, p_u and w; 0 gives p_u, 1 gives p_c.
        alpha, sigma: the noise level at which the densities are taken; the data's own unless given.
        log_mass: the logarithm of the integral.
        mean, covariance: of the law, (dim,) and (dim, dim).
        change: relative change of mass and moments in the last halving, which is far above the error.

    Raises:
        ArgumentError: for laws in three dimensions or more, points without noise, and densities that can't be normalised.
        NumericalError: if the finest grid is too coarse for the narrowest component.

    >>> wide, narrow = (GaussianMixture([1.0], [[0.0]], [c]) for c in (2.0, 1.0))
    >>> round(TiltedLaw(narrow, wide, 3.0).covariance.item(), 9)
    0.5
    """

    def __init__(
        self,
        conditional: GaussianMixture,
        unconditional: GaussianMixture,
        weight: float,
        alpha: float = 1.0,
        sigma: float = 0.0,
    ):
        self.conditional, self.unconditional, self.weight = conditional, unconditional, float(weight)
        self.alpha, self.sigma, self.dim = float(alpha), float(sigma), conditional.dim
        if self.dim not in _CELLS or unconditional.dim != self.dim:
            raise ArgumentError(
                f"a tilted law is normalised in one or two dimensions, the same for both laws; got {conditional.dim} and "
                f"{unconditional.dim}: compare moments with the conditional law in more"
            )
        if sigma == 0 and (conditional.is_discrete or unconditional.is_discrete):
            raise ArgumentError("a law of points has no density to tilt: give sigma > 0")
        self._low, self._high = self._box()
        cells, most = _CELLS[self.dim]
        found, self.change = self._measured(cells), math.inf
        while cells < most and self.change > _SETTLED:
            cells *= 2
            finer = self._measured(cells)
            self.change = max(
                abs(finer[0] - found[0]),
                float((finer[1] - found[1]).abs().max() / finer[2].diagonal().max().sqrt()),
                float((finer[2] - found[2]).abs().max() / finer[2].abs().max()),
            )
            found = finer
        if not self.change < _LARGEST_CHANGE:
            raise NumericalError(
                f"the tilted density can't be integrated on {cells} cells a side (relative change {self.change:.1e}): its "
                "components are too narrow beside their distances"
            )
        self._cells = cells
        self.log_mass, self.mean, self.covariance = found

    def __repr__(self) -> str:
        return f"TiltedLaw({self.conditional!r}, weight {self.weight:g})"

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at points (B, dim), shape (B,)."""
        return self._raw(x) - self.log_mass

    def sample(self, n: int, *, generator: Randomness) -> Tensor:
        """Draw n points, (n, dim): a cell of the quadrature by its mass, and a uniform point of the cell."""
        source = generator_from(generator)
        uniform = torch.rand(n, generator=source, dtype=torch.float64)
        which = torch.searchsorted(self._cumulated, uniform * self._cumulated[-1]).clamp_(max=len(self._cumulated) - 1)
        inside = torch.rand(n, self.dim, generator=source, dtype=torch.float64) - 0.5
        return self._points(self._cells, which) + inside * self._spacing(self._cells)

    @functools.cached_property
    def mode_weights(self) -> Tensor:
        """Mean posterior probability of each component of the conditional mixture, (K,)."""
        mass = torch.zeros(self.conditional.count, dtype=torch.float64)
        share = self._cumulated.diff(prepend=self._cumulated.new_zeros(1)) / self._cumulated[-1]
        for index in torch.split(torch.nonzero(share > 0)[:, 0], _BLOCK):
            points = self._points(self._cells, index)
            mass += share[index] @ self.conditional.responsibilities(points, self.alpha, self.sigma)
        return mass

    @functools.cached_property
    def _cumulated(self) -> Tensor:
        """Mass of all cells up to each, (cells^dim,)."""
        return torch.cat([(block - self.log_mass).exp() for _, block in self._blocks(self._cells)]).cumsum(0)

    def _raw(self, x: Tensor) -> Tensor:
        one, other = (law.noised_log_prob(x, self.alpha, self.sigma) for law in (self.conditional, self.unconditional))
        # A factor of 0 must not meet an infinite logarithm.
        parts = [factor * part for factor, part in ((self.weight, one), (1 - self.weight, other)) if factor != 0]
        return torch.stack(parts).sum(0)

    def _box(self) -> tuple[Tensor, Tensor]:
        ends = []
        for law in (self.conditional, self.unconditional):
            reach = _REACH * (self.alpha**2 * law.components.variances() + self.sigma**2).sqrt()
            ends.append(((self.alpha * law.means - reach).amin(0), (self.alpha * law.means + reach).amax(0)))
        # A guided law of more weight than 1 lies where the conditional one does, if the unconditional one lies around it.
        used = ends[:1] if self.weight >= 1 else ends
        low, high = (torch.stack(side) for side in zip(*used, strict=True))
        lower, upper = low.amin(0), high.amax(0)
        for _ in range(_DOUBLINGS):
            self._low, self._high = lower, upper
            cells = _CELLS[self.dim][0]
            top, border = -math.inf, -math.inf
            for index, block in self._blocks(cells):
                places = [index // cells, index % cells] if self.dim == 2 else [index]
                at_border = torch.stack([(place == 0) | (place == cells - 1) for place in places]).any(0)
                top = max(top, float(block.max()))
                border = max(border, float(block[at_border].max())) if bool(at_border.any()) else border
            if border - top < _NEGLIGIBLE:
                return lower, upper
            half = (upper - lower) / 2
            lower, upper = lower - half, upper + half
        raise ArgumentError(
            f"p(x|c)^w p(x)^(1-w) can't be normalised at w={self.weight:g}: it does not fall off away from the data"
        )

    def _spacing(self, cells: int) -> Tensor:
        return (self._high - self._low) / cells

    def _points(self, cells: int, index: Tensor) -> Tensor:
        """The centres of cells."""
        places = torch.stack([index // cells, index % cells] if self.dim == 2 else [index], dim=1)
        return self._low + (places + 0.5) * self._spacing(cells)

    def _blocks(self, cells: int) -> list[tuple[Tensor, Tensor]]:
        """Indices of cells and the logarithms of their masses, block by block."""
        size = float(self._spacing(cells).log().sum())
        every = torch.split(torch.arange(cells**self.dim), _BLOCK)
        return [(index, self._raw(self._points(cells, index)) + size) for index in every]

    def _measured(self, cells: int) -> tuple[float, Tensor, Tensor]:
        blocks = self._blocks(cells)
        log_mass = float(torch.stack([block.logsumexp(0) for _, block in blocks]).logsumexp(0))
        mean = torch.zeros(self.dim, dtype=torch.float64)
        for index, block in blocks:
            mean += (block - log_mass).exp() @ self._points(cells, index)
        covariance = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        for index, block in blocks:
            gap = self._points(cells, index) - mean
            covariance += gap.mT @ ((block - log_mass).exp()[:, None] * gap)
        return log_mass, mean, covariance
