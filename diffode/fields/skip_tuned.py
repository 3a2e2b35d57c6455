r"""Skip-Tuning: a denoiser whose skip connections are scaled, without training.

Of a network the connections that carry fine features across are multiplied; of an exact denoiser of a mixture its linear part,

.. math:: D_\rho(x) = \sum_i w_i(x)\,[\mu_i + C_i(C_i + \sigma^2)^{-1}(\rho\, x - \mu_i)],

the skip of each component, which is the analytic counterpart and not the network's effect. At rho = 1 both are the field.

Source: Ma et al., arXiv 2402.15170.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields.exact import ExactField, mixture_of
from diffode.fields.field import Field, columns
from diffode.fields.networks import Denoiser, PatchUNet, UNet
from diffode.fields.trained import TrainedField
from diffode.targets.parameters import LowRank


def skip_factors(count: int, bottom: float, top: float = 1.0) -> list[float]:
    """The factors of ``count`` skip connections, from the one farthest from the input to the nearest: a straight line.

    A network with one connection has the bottom factor.

    >>> skip_factors(5, 0.8)
    [0.8, 0.8500000000000001, 0.9, 0.95, 1.0]
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError(f"count must be an integer >= 1, got {count!r}")
    for name, value in (("bottom", bottom), ("top", top)):
        _check(name, value)
    return [bottom + i * (top - bottom) / (count - 1) for i in range(count)] if count > 1 else [bottom]


def skip_tuned(field: Field, rho: float) -> Field:
    """The field with its skip connections scaled by ``rho``; itself at 1.

    Args:
        field: the exact field of a mixture of Gaussians that is no set of points, or a trained UNet.
        rho: the factor, positive; the farthest connection's where a network has several.

    Raises:
        ArgumentError: for another field, or a factor that is not positive.

    >>> from diffode.fields import exact_field
    >>> exact = exact_field("ring8", "edm")
    >>> skip_tuned(exact, 1.0) is exact
    True
    """
    _check("rho", rho)
    if isinstance(field, TrainedField) and isinstance(field.denoiser.net, UNet | PatchUNet):
        return field if rho == 1 else TunedNetwork(field, rho)
    mixture = mixture_of(field)
    if isinstance(field, ExactField) and mixture is not None and not mixture.is_discrete:
        return field if rho == 1 else TunedMixture(field, rho)
    raise ArgumentError(
        "skip_tuned scales the skips of a trained UNet, as diffode.fields.trained('digits-gmm10'), or of the exact field of a "
        f"mixture with densities; got {type(field).__name__}"
    )


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be a positive number, got {value!r}")


class TunedNetwork(TrainedField):
    """A trained UNet whose connection across is scaled."""

    def __init__(self, field: TrainedField, rho: float):
        super().__init__(field.denoiser, field.facts, field.path)
        self.rho = rho

    @override
    def _in(self, x: Tensor) -> Denoiser:
        net = super()._in(x)
        if isinstance(net.net, UNet | PatchUNet):
            net.net.bridge = self.rho
        return net


class TunedMixture(Field):
    """The exact denoiser of a mixture whose components' skips are scaled."""

    def __init__(self, field: ExactField, rho: float):
        self.exact, self.rho = field, rho
        super().__init__(self._denoised, "denoised", field.path, scale=field.scale, probe=False)
        self.dim, self.shape = field.dim, field.shape

    def _denoised(self, x: Tensor, t: Any) -> Tensor:
        exact, path = self.exact, self.exact.path
        mixture = mixture_of(exact)
        if mixture is None or isinstance(mixture.covariances, LowRank):
            raise ArgumentError("the skips of low-rank components can't be scaled: give full or diagonal covariances")
        flat = x.flatten(1).to(torch.float64)
        alpha, sigma = (columns(value, flat) for value in (path.alpha(t), path.sigma(t)))
        shares = mixture.responsibilities(flat, alpha, sigma)
        covariances = mixture.covariances.to(flat)
        clean = flat / alpha
        level = torch.as_tensor(sigma / alpha, dtype=torch.float64) ** 2
        if covariances.ndim == 3:
            values, vectors = torch.linalg.eigh(covariances)
            own = torch.einsum("kdr,bd->bkr", vectors, clean)
            skips = torch.einsum("kdr,bkr->bkd", vectors, values / (values + level.reshape(-1, 1, 1)) * own)
        else:
            values = covariances if covariances.ndim == 2 else covariances[:, None]
            skips = values / (values + level.reshape(-1, 1, 1)) * clean[:, None]
        more = (self.rho - 1) * (shares[..., None] * skips).sum(1)
        with exact.uncounted():
            known = exact.denoised(x, t)
        return known + more.reshape(x.shape).to(known)
