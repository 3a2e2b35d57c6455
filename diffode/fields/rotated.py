"""Fields with the same marginals and other trajectories: a rotation J of the score added to the velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields.field import Field
from diffode.paths import Interval
from diffode.randomness import Randomness
from diffode.targets.target import Scalar

#: Largest |J + J^T| relative to |J| of a skew matrix.
_SKEW = 1e-12

Rotation = Tensor | Callable[[float], Tensor]


class WithLaw(Protocol):
    """A field whose law at every time is known, as those of targets and bridges."""

    dim: int | None
    scale: float

    def velocity(self, x: Tensor, t: Scalar) -> Tensor:
        """dx/dt."""

    def score(self, x: Tensor, t: Scalar) -> Tensor:
        """grad log p_t(x)."""

    def log_prob(self, x: Tensor, t: Scalar) -> Tensor:
        """log p_t(x), (B,)."""

    def divergence(self, x: Tensor, t: Scalar) -> Tensor:
        """div v, (B,)."""

    def marginal(self, n: int, t: float, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """n draws at time t."""


class RotatedField(Field):
    r"""A field's velocity plus J(t) score(x, t), with J skew: :math:`\nabla\cdot(pJ\nabla\log p) = \nabla\cdot(J\nabla p) = 0`.

    So the law at every time is the field's own, while the trajectories, and what solvers make of them, are others: marginals
    do not fix a flow. It has no path, since its velocity is no combination of a denoised point and noise.

    Args:
        field: a field that knows its score, density and draws.
        rotation: J, (dim, dim), or a function of the time that gives it.
        interval: the times on which named grids are laid.

    Raises:
        ArgumentError: for a field without a density, and a J that is not skew or of another size.
    """

    def __init__(self, field: WithLaw, rotation: Rotation, interval: Interval | None = None):
        if field.dim is None:
            raise ArgumentError("field must know its number of coordinates to be rotated")
        super().__init__(self._rotated, "velocity", None, scale=field.scale, probe=False)
        self.field, self.rotation = field, rotation
        self.dim, self.shape = field.dim, (field.dim,)
        self.interval = interval
        if not callable(rotation):
            _checked(rotation, field.dim)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.field!r})"

    def log_prob(self, x: Tensor, t: Scalar) -> Tensor:
        """log p_t(x), (B,): that of the field itself."""
        return self.field.log_prob(x, t)

    def score(self, x: Tensor, t: Scalar) -> Tensor:
        """grad log p_t(x): that of the field itself."""
        return self.field.score(x, t)

    def divergence(self, x: Tensor, t: Scalar) -> Tensor:
        """The divergence of the velocity, (B,): that of the field itself, since J against the Hessian of log p sums to 0."""
        return self.field.divergence(x, t)

    def marginal(self, n: int, t: float, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """n draws of the law at time t, (n, dim): those of the field itself."""
        return self.field.marginal(n, t, generator=generator, dtype=dtype)

    def _rotated(self, x: Tensor, t: Scalar) -> Tensor:
        score = self.field.score(x, t)
        flat = score.flatten(1)
        if not callable(self.rotation):
            turned = flat @ _checked(self.rotation, flat.shape[1]).to(flat).T
        elif isinstance(t, Tensor) and t.ndim:
            each = torch.stack([_checked(self.rotation(float(at)), flat.shape[1]) for at in t.detach()])
            turned = (each.to(flat) @ flat[..., None])[..., 0]
        else:
            turned = flat @ _checked(self.rotation(float(t)), flat.shape[1]).to(flat).T
        return self.field.velocity(x, t) + turned.reshape(x.shape)


def _checked(rotation: object, dim: int) -> Tensor:
    if not isinstance(rotation, Tensor) or rotation.shape != (dim, dim) or not rotation.is_floating_point():
        kind = tuple(rotation.shape) if isinstance(rotation, Tensor) else type(rotation).__name__
        raise ArgumentError(f"J must be a real matrix ({dim}, {dim}), or a function of the time that gives one; got {kind}")
    apart, size = float((rotation + rotation.T).abs().max()), float(rotation.abs().max())
    if not apart <= _SKEW * size:
        raise ArgumentError(
            f"J must be skew, J + J^T = 0, else the law changes; |J + J^T| is {apart:.3g}, |J| {size:.3g}: take (J - J.T)/2"
        )
    return rotation
