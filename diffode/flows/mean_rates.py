r"""Mean rates of a path between two times, :math:`(\alpha_t - \alpha_s)/(t - s)` and :math:`(\sigma_t^2 - \sigma_s^2)/(t - s)`.

The differences are never formed where the times are near each other: published paths have closed forms, others are differences
where the times are far apart and Gauss-Legendre means of the derivative where they are near.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffode.flows.closed import noise_variance
from diffode.numerics.exponential import phi
from diffode.paths import EDM, VP, Path, RectifiedFlow, SubVP, Trigonometric, VPCosine

#: Distance of two times, in units of the later one, below which the derivative is averaged. There a difference of values
#: would lose two digits, while the mean of eight nodes errs by less than rounding.
_NEAR = 1e-2
#: Nodes and weights of Gauss-Legendre quadrature on [0, 1].
_NODES, _WEIGHTS = ((values + shift) / 2 for values, shift in zip(np.polynomial.legendre.leggauss(8), (1.0, 0.0), strict=True))
#: Size of the argument below which sin(z)/z is its Taylor series, whose derivatives keep all digits.
_SMALL = 0.5


def mean_rates(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The mean rates of alpha and of sigma^2 between times s and t (B,), the derivatives at s = t, differentiable.

    >>> import diffode
    >>> s = torch.tensor([0.5], dtype=torch.float64)
    >>> mean_rates(diffode.paths.get("rectified_flow"), s, s + 1e-12)
    (tensor([-1.], dtype=torch.float64), tensor([1.0000], dtype=torch.float64))
    """
    # A subclass may have another alpha, so that its closed form is that of its very class.
    s = s + torch.zeros_like(t)
    t = t + torch.zeros_like(s)
    return _CLOSED.get(type(path), _of_any)(path, s, t)


def sinc(z: Tensor) -> Tensor:
    """sin(z)/z with derivatives to full precision near 0, which ``torch.sinc`` has not."""
    near = z.abs() < _SMALL
    square = torch.where(near, z, 0.0).square()
    total, term = torch.ones_like(z), torch.ones_like(z)
    for k in range(1, 9):
        term = -term * square / ((2 * k) * (2 * k + 1))
        total = total + term
    apart = torch.where(near, 1.0, z)
    return torch.where(near, total, apart.sin() / apart)


def _edm(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(s + t), s + t


def _straight(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return -torch.ones_like(s + t), s + t


def _trigonometric(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    rate = math.pi / 2
    alpha = -rate * (rate * (s + t) / 2).sin() * sinc(rate * (t - s) / 2)
    return alpha, rate * (rate * (s + t)).sin() * sinc(rate * (t - s))


def _cosine(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    # alpha = cos(theta)/cos(theta_0), theta = theta_0 + rate t.
    first = math.pi / 2 / (1 + path.s) * path.s  # type: ignore[attr-defined]
    rate = first / path.s  # type: ignore[attr-defined]
    alpha = -rate * (first + rate * (s + t) / 2).sin() * sinc(rate * (t - s) / 2) / math.cos(first)
    return alpha, -(path.alpha(s) + path.alpha(t)) * alpha


def _vp(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha = _decay(path, s, t)
    return alpha, -(path.alpha(s) + path.alpha(t)) * alpha


def _sub_vp(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha = _decay(path, s, t)
    sigma = -(path.alpha(s) + path.alpha(t)) * alpha
    return alpha, (path.sigma(s) + path.sigma(t)) * sigma


def _decay(path: Path, s: Tensor, t: Tensor) -> Tensor:
    """The mean rate of alpha = exp(-q), q = t (t (beta_max - beta_min)/4 + beta_min/2), counted from the larger alpha."""
    low, high = path.beta_min, path.beta_max  # type: ignore[attr-defined]
    rate = (s + t) * (high - low) / 4 + low / 2
    fall: Tensor = phi(1, -(rate * (t - s).abs()))
    found: Tensor = -rate * path.alpha(torch.minimum(s, t)) * fall
    return found


def _of_any(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    def variance(at: Tensor) -> Tensor:
        return torch.as_tensor(noise_variance(path, at))

    def variance_rate(at: Tensor) -> Tensor:
        return 2 * path.half_variance_rate(at)

    return _mean(path.alpha, path.alpha_derivative, s, t), _mean(variance, variance_rate, s, t)


def _mean(value: Callable[[Tensor], Tensor], rate: Callable[[Tensor], Tensor], s: Tensor, t: Tensor) -> Tensor:
    near = (t - s).abs() <= _NEAR * torch.maximum(s, t)
    # Each formula gets its own rows, since an infinite derivative of the other would make that of a masked row NaN.
    found = torch.zeros_like(s)
    if bool((~near).any()):
        first, last = s[~near], t[~near]
        found = found.index_put((~near,), (value(last) - value(first)) / (last - first))
    if bool(near.any()):
        first, gap = s[near], (t - s)[near]
        parts = [w * rate(first + node * gap) for node, w in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True)]
        found = found.index_put((near,), torch.stack(parts).sum(0))
    return found


_CLOSED: dict[type[Path], Callable[[Path, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    EDM: _edm,
    RectifiedFlow: _straight,
    Trigonometric: _trigonometric,
    VPCosine: _cosine,
    VP: _vp,
    SubVP: _sub_vp,
}
