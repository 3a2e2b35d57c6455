r"""The flow of two Gaussians mixed by guidance, exactly, where their covariances share eigenvectors.

With D = D_u + w (D_c - D_u) the velocity is affine along each shared eigenvector. Let c and u be the two variances along it,
q = rho^2 and l_c = alpha^2 c + sigma^2, l_u likewise. Deviations are multiplied by

.. math:: G(s \to t) = (l_c(t)/l_c(s))^{w/2}\, (l_u(t)/l_u(s))^{(1-w)/2},

and y = x - alpha m_c follows :math:`y(t) = G(s \to t)\, y(s) + (1 - w)(m_u - m_c)\, I` with

.. math:: I = -\frac{\alpha_t}{2} \int_{q_s}^{q_t} \Big(\frac{c + q_t}{c + q}\Big)^{w/2}
          \Big(\frac{u + q_t}{u + q}\Big)^{(1-w)/2} \frac{dq}{u + q}.

I is an incomplete beta function in general; Gauss's rule in log(q + min(c, u)), where the integrand is analytic in a strip of
half-width pi, gives it to rounding. On N(0, 1) against N(0, 2) from infinite noise the variance becomes 2^(1-w), the
counterexample of Bradley and Nakkiran, arXiv 2408.09000, section 3.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffode.fields import ExactField, Field, GuidedField, columns
from diffode.fields.exact import mixture_of
from diffode.flows.closed import KnownFlow, known_flow, noise_variance, rounding_of
from diffode.paths import Path
from diffode.targets.target import Scalar

#: Most dimensions in which a shared basis is sought.
_MOST_DIMENSIONS = 1024
#: What is left beside the diagonals in a shared basis, relative to the largest entry, that rounding explains.
_OFF_DIAGONAL = 1e-11
#: Nodes of Gauss's rule on a panel, and the longest panel in the logarithm of q + min(c, u).
_NODES, _PANEL = 16, 1.0
#: The square of the noise level that stands for an infinite one: what lies beyond is less than rounding.
_INFINITE = 1e36


@dataclass(frozen=True)
class SharedBasis:
    """Two Gaussians in a basis in which both covariances are diagonal.

    Attributes:
        basis: (D, D), a column for each direction, or None for the axes.
        conditional, unconditional: means and variances along the directions, (D,) each.
    """

    basis: Tensor | None
    conditional: tuple[Tensor, Tensor]
    unconditional: tuple[Tensor, Tensor]

    def into(self, x: Tensor) -> Tensor:
        """Rows (B, D) along the directions."""
        return x if self.basis is None else x @ self.basis.to(x)

    def back(self, y: Tensor) -> Tensor:
        """Rows along the directions as points (B, D)."""
        return y if self.basis is None else y @ self.basis.to(y).mT


def shared_basis(field: Field) -> SharedBasis | None:
    """The basis of a field guided by the linear rule from one Gaussian to another; None for any other field.

    >>> import diffode
    >>> wide, narrow = (diffode.GaussianMixture([1.0], [[0.0]], [c]) for c in (2.0, 1.0))
    >>> field = diffode.guide(diffode.exact_field(narrow, "edm"), diffode.exact_field(wide, "edm"), 3.0)
    >>> shared_basis(field).unconditional[1].item()
    2.0
    """
    if not isinstance(field, GuidedField) or not field.rule.linear or field.path is None:
        return None
    found = [mixture_of(member) for member in field.members]
    laws = [law for law in found if law is not None and law.count == 1 and not law.is_discrete]
    if len(laws) < 2 or laws[0].dim > _MOST_DIMENSIONS:
        return None
    means, covariances = [law.mean for law in laws], [law.covariance for law in laws]
    if all(torch.equal(whole, torch.diag(whole.diagonal())) for whole in covariances):
        one, other = zip(means, (whole.diagonal() for whole in covariances), strict=True)
        return SharedBasis(None, one, other)
    unit = [whole / whole.abs().max() for whole in covariances]
    # A sum with an irrational factor has the shared eigenvectors, and equal eigenvalues by accident only.
    _, basis = torch.linalg.eigh(unit[0] + unit[1] / math.sqrt(7))
    inside = [basis.mT @ whole @ basis for whole in unit]
    if any(float((part - torch.diag(part.diagonal())).abs().max()) > _OFF_DIAGONAL for part in inside):
        return None
    variances = [(basis * (whole @ basis)).sum(0) for whole in covariances]
    if any(float(part.min()) <= 0 for part in variances):
        return None
    one, other = zip((mean @ basis for mean in means), variances, strict=True)
    return SharedBasis(basis, one, other)


def known_of(field: Field) -> KnownFlow | None:
    """The flow of a field in closed form: of an exact field, or of one guided between two commuting Gaussians."""
    if isinstance(field, ExactField):
        return known_flow(field)
    weight = field.weight.constant if isinstance(field, GuidedField) else None
    shared, path = shared_basis(field), field.path
    if weight is None or shared is None or path is None:
        return None
    return KnownFlow(functools.partial(guided_flow, shared, path, weight), "closed-form")


def guided_flow(
    shared: SharedBasis, path: Path, weight: float, x: Tensor, start: Scalar, stop: Scalar
) -> tuple[Tensor, Tensor]:
    """Ends (B, D) and errors (B,) of points x (B, D); times are numbers or (B,), and everything is differentiable."""
    (mean, own), (other_mean, other) = (
        (part.to(x.device) for part in pair) for pair in (shared.conditional, shared.unconditional)
    )
    gain = torch.ones_like(own)
    for variance, power in ((own, weight / 2), (other, (1 - weight) / 2)):
        before, after = (columns(path.alpha(t) ** 2, x) * variance + columns(noise_variance(path, t), x) for t in (start, stop))
        gain = gain * (after / before) ** power
    inside = shared.into(x) - columns(path.alpha(start), x) * mean
    moved = gain * inside + columns(path.alpha(stop), x) * mean
    shift = (1 - weight) * (other_mean - mean)
    if bool((shift != 0).any()):
        moved = moved + shift * _offset(path, weight, own, other, x, start, stop)
    ends = shared.back(moved)
    # The factor of a direction that is stretched grows a start's rounding.
    stretch = gain.detach().abs().reshape(-1, len(own)).amax(1).clamp(min=1.0).cpu()
    # A power multiplies the relative error of what is raised.
    return ends, rounding_of(x, ends) * stretch * (2 + abs(weight))


def _offset(path: Path, weight: float, own: Tensor, other: Tensor, x: Tensor, start: Scalar, stop: Scalar) -> Tensor:
    """The integral I along each direction, (1, D) or (B, D)."""
    before, after = (_square_level(path, t, x) for t in (start, stop))
    least = torch.minimum(own, other)
    first, last = (before + least).log(), (after + least).log()
    panels = max(1, math.ceil(float((last - first).detach().abs().max()) / _PANEL))
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    total = torch.zeros_like(first + last)
    for panel in range(panels):
        for node, share in zip(nodes.tolist(), shares.tolist(), strict=True):
            at = first + (last - first) * (panel + (node + 1) / 2) / panels
            q = (at.exp() - least).clamp(min=0.0)
            power = weight / 2 * ((own + after) / (own + q)).log() + (1 - weight) / 2 * ((other + after) / (other + q)).log()
            total = total + share * power.exp() / (other + q) * at.exp()
    alpha = columns(path.alpha(stop), x)
    if not isinstance(alpha, Tensor) and alpha == 0:
        alpha = path.sigma(float(stop)) / math.sqrt(_INFINITE)
    return -alpha / 2 * total * (last - first) / (2 * panels)


def _square_level(path: Path, t: Scalar, x: Tensor) -> Tensor:
    """rho^2 at a time, (1, 1), or at a time for every row, (B, 1)."""
    alpha, noise = path.alpha(t), noise_variance(path, t)
    square = torch.as_tensor(alpha, dtype=torch.float64, device=x.device) ** 2
    level = torch.as_tensor(noise, dtype=torch.float64, device=x.device) / square.clamp(min=1e-300)
    return level.clamp(max=_INFINITE).reshape(-1, 1)
