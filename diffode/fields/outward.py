"""A field in the forms in which other libraries call theirs: functions of (t, y), SDE objects, denoisers of sigma.

The field counts their calls as it counts others. torchdiffeq passes (t, y), flow matching (y, t); torchsde runs time forward,
so that its s is t_max - t; k-diffusion and EDM take x/alpha at sigma/alpha and want denoised points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields.field import Field
from diffode.targets.target import Scalar


def as_torchdiffeq(field: Field) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity as ``f(t, y)``, for ``torchdiffeq.odeint`` with decreasing times.

    Adaptive methods step past the last time and interpolate: beyond the path's times they get the velocity of its end.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "rectified_flow")
    >>> y = torch.zeros(1, 2, dtype=torch.float64)
    >>> torch.equal(as_torchdiffeq(field)(torch.tensor(0.5), y), field.velocity(y, 0.5))
    True
    """
    _checked(field)
    return lambda t, y: _continued(field, y, float(t))


def as_flow_matching(field: Field) -> Callable[..., Tensor]:
    """The velocity as ``model(x, t)`` with data at t = 1, as flow_matching's and torchcfm's solvers call it.

    Their time is 1 - t, for paths whose times lie in [0, 1] (ArgumentError for others); t is a number, or a time for each row.
    Adaptive methods step past the last time and interpolate: beyond the path's times they get the velocity of its end.
    """
    path = _checked(field).require_path("its direction of time")
    if path.t_max > 1:
        raise ArgumentError(f"flow matching's times lie in [0, 1]; path {path.spec!r} goes to t={path.t_max:g}")

    def model(x: Tensor, t: Tensor, **_: Any) -> Tensor:
        return -_continued(field, x, 1 - (t.double() if t.ndim else float(t)))

    return model


def _continued(field: Field, x: Tensor, t: Scalar) -> Tensor:
    """The velocity at time t; where an integrator asks beyond the path, that of the path's nearest time."""
    path = field.path
    if path is None:
        return field.velocity(x, t)
    inside: Scalar = t.clamp(min=0.0) if isinstance(t, Tensor) else max(t, 0.0)
    try:
        return field.velocity(x, inside)
    except ArgumentError:
        nearest: Scalar = t.clamp(path.t_min, path.t_max) if isinstance(t, Tensor) else min(max(t, path.t_min), path.t_max)
        if not bool(torch.as_tensor(nearest != inside).any()):
            raise
        return field.velocity(x, nearest)


def as_k_diffusion(field: Field) -> Callable[..., Tensor]:
    """The denoiser as ``model(x, sigma)``: x stands for x/alpha, (B, *shape), and sigma for sigma/alpha, a number or (B,)."""
    path = _checked(field).require_path("noise levels")

    def model(x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
        levels = torch.as_tensor(sigma).reshape(-1)
        if len(levels) > 1 and not bool((levels == levels[0]).all()):
            t = path.time_from_rho(levels.double())
            alpha: Any = path.alpha(t).to(x).reshape(-1, *[1] * (x.ndim - 1))
            return field.denoised(alpha * x, t)
        when = path.time_from_rho(float(levels[0]))
        return field.denoised(path.alpha(when) * x, when)

    return model


def as_torchsde(field: Field, eta: float = 1.0, *, start: float | None = None, stop: float | None = None) -> ReverseSDE:
    """The reverse SDE dx = [v - (eta^2 g^2/2) score] dt + eta g dw as an object for ``torchsde.sdeint``.

    Its time s runs forward from 0, where t is ``start`` (``path.t_max`` unless given), to ``start - stop``, where t is ``stop``
    (``path.t_min`` unless given); its states are (B, coordinates). ArgumentError for a negative eta.
    """
    path = _checked(field).require_path("a reverse SDE")
    if not 0 <= eta < float("inf"):
        raise ArgumentError(f"eta must be a number >= 0 (0 adds no noise), got {eta!r}")
    if eta and field.source is not None:
        raise ArgumentError(
            f"the reverse SDE takes the score for a multiple of normal noise; this field's comes from {field.source.spec!r}: "
            "take eta=0, its flow"
        )
    return ReverseSDE(field, eta, path.t_max if start is None else start, path.t_min if stop is None else stop)


class ReverseSDE:
    """The object that :func:`as_torchsde` makes, with ``f``, ``g``, ``noise_type`` and ``sde_type``."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, field: Field, eta: float, start: float, stop: float):
        self.field, self.eta, self.start, self.stop = field, eta, start, stop
        #: Shape in which the field gets a row; that of the states unless set.
        self.shape: tuple[int, ...] | None = None
        #: Dtype in which the field gets the states; their own unless set.
        self.dtype: torch.dtype | None = None
        self._last: tuple[float, Tensor, Tensor] | None = None

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """The drift at time s of torchsde."""
        # torchsde calls f on trial at the start of each interval and asks the same in its step: the last answer serves twice.
        if self._last is None or self._last[0] != float(s) or not torch.equal(self._last[1], y):
            self._last = (float(s), y, self._drift(float(s), y))
        return self._last[2]

    def _drift(self, s: float, y: Tensor) -> Tensor:
        path, t = self.field.require_path("a reverse SDE"), self.start - s
        at = y if self.shape is None else y.reshape(len(y), *self.shape)
        noise = self.field.predict("noise", at.to(self.dtype or at.dtype), t).to(at)
        drift = path.drift(t) * at + path.diffusion(t) ** 2 * (1 + self.eta**2) / (2 * path.sigma(t)) * noise
        return -drift.reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """The factor of the noise at time s of torchsde, shaped as y and the same in every direction."""
        path = self.field.require_path("a reverse SDE")
        return torch.full_like(y, self.eta * path.diffusion(max(self.start - float(s), self.stop)))


def _checked(field: object) -> Field:
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field (Field.from_velocity(fn, path) makes one), got {field!r:.80}")
    return field
