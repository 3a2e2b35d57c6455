r"""The angle clock: state and time in which every path is one problem, and the flow of the data's Gaussian stands still.

With c the scale of the data and m their mean,

.. math::
    \theta = \arctan\frac{\sigma}{\alpha c}, \qquad y = \frac{x - \alpha m}{\sqrt{\alpha^2 c^2 + \sigma^2}}
      = \cos\theta\, d + \sin\theta\, \varepsilon, \qquad d = (x_0 - m)/c,

so that y is of variance 1 at every time, :math:`dy/d\theta = \cos\theta\, E[\varepsilon|y] - \sin\theta\, E[d|y]`, and the
flow of :math:`N(m, c^2 I)` is the identity. It is TrigFlow (Lu and Song, arXiv 2410.11081) in units of the data; EDM, rectified
flow and the variance-preserving paths are the same problem in other coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.fields.field import columns
from diffode.paths import Path
from diffode.targets.target import Scalar

#: The denoised prediction as a function of z = x/alpha (B, D) and rho.
Denoised = Callable[[Tensor, float], Tensor]
#: Smallest and largest scale of data that a clock takes: their squares are numbers of float32 too.
LARGEST_SCALE = 1e15


@dataclass(frozen=True, eq=False)
class AngleClock:
    """The angle clock of data with a mean and a scale.

    Attributes:
        mean: mean of the data, (D,) float64.
        scale: root mean variance of the data.

    >>> import diffode
    >>> clock = AngleClock.of(diffode.exact_field("ring8", "edm"))
    >>> round(clock.angle(diffode.paths.get("edm"), 80.0), 4)
    1.5265
    """

    mean: Tensor
    scale: float

    def __post_init__(self) -> None:
        if not 1 / LARGEST_SCALE <= self.scale <= LARGEST_SCALE:
            raise ArgumentError(f"scale must lie in [{1 / LARGEST_SCALE:g}, {LARGEST_SCALE:g}], got {self.scale!r}")
        if self.mean.ndim != 1 or not len(self.mean) or not bool(torch.isfinite(self.mean).all()):
            raise ArgumentError(f"mean must be a finite vector (D,), got shape {tuple(self.mean.shape)}")

    @classmethod
    def of(cls, field: Field, dim: int | None = None) -> AngleClock:
        """The clock of a field; for the mean of data that are not known stands what it answers to 0 at the first time.

        ``dim`` is the number of coordinates of a row, for a field that does not tell it.
        """
        if isinstance(field, ExactField):
            return cls(field.target.mean.detach().cpu().to(torch.float64), float(field.scale))
        width = field.dim if dim is None else dim
        if width is None:
            raise ArgumentError("this field does not tell its number of coordinates: give dim=")
        shape = field.shape if field.shape is not None else (width,)
        first = field.require_path("the angle clock").t_max
        with torch.no_grad(), field.uncounted():
            mean = field.predict("denoised", torch.zeros(1, *shape, dtype=torch.float64), first)
        return cls(mean.detach().cpu().reshape(-1), float(field.scale))

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.mean)

    def angle(self, path: Path, t: Scalar) -> Scalar:
        """theta of a time or times of a path; pi/2 where alpha is 0."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        if isinstance(alpha, Tensor) or isinstance(sigma, Tensor):
            return torch.atan2(torch.as_tensor(sigma), torch.as_tensor(alpha) * self.scale)
        return math.atan2(sigma, alpha * self.scale)

    def time(self, path: Path, angle: Scalar) -> Scalar:
        """The time of a path at which theta has a value, or values."""
        if isinstance(angle, Tensor):
            return path.time_from_rho(self.scale * angle.tan())
        return path.time_from_rho(self.scale * math.tan(angle))

    def state(self, x: Tensor, path: Path, t: Scalar) -> Tensor:
        """y (B, D) of points x (B, *shape) at a time, or at times (B,)."""
        alpha, size = path.alpha(t), self._size(path, t)
        flat = x.flatten(1)
        return (flat - columns(alpha, flat) * self.mean.to(flat)) / columns(size, flat)

    def point(self, y: Tensor, path: Path, t: Scalar) -> Tensor:
        """x (B, D) of states y (B, D) at a time, or at times (B,)."""
        alpha, size = path.alpha(t), self._size(path, t)
        return columns(alpha, y) * self.mean.to(y) + columns(size, y) * y

    def cosine(self, level: float) -> float:
        """cos(theta) at a noise level rho."""
        return self.scale / math.hypot(self.scale, level)

    def inward(self, z: Tensor, level: float) -> Tensor:
        """y (B, D) of z = x/alpha at a noise level rho."""
        return (z - self.mean.to(z)) * (self.cosine(level) / self.scale)

    def outward(self, y: Tensor, level: float) -> Tensor:
        """z = x/alpha (B, D) of y at a noise level rho."""
        return y * (self.scale / self.cosine(level)) + self.mean.to(y)

    def asked(self, denoised: Denoised, y: Tensor, level: float) -> Tensor:
        """d = (D - m)/c (B, D) at y and a noise level rho, from a denoised prediction."""
        return (denoised(self.outward(y, level), level) - self.mean.to(y)) / self.scale

    def _size(self, path: Path, t: Scalar) -> Scalar:
        """sqrt(alpha^2 c^2 + sigma^2)."""
        alpha, sigma = path.alpha(t) * self.scale, path.sigma(t)
        if isinstance(alpha, Tensor) or isinstance(sigma, Tensor):
            return torch.hypot(torch.as_tensor(alpha), torch.as_tensor(sigma))
        return math.hypot(alpha, sigma)

    def velocity(self, field: Field, y: Tensor, angle: Tensor, shape: torch.Size | tuple[int, ...] | None = None) -> Tensor:
        """dy/dtheta (B, D) of the field's flow at states y (B, D) and angles (B,) in (0, pi/2], from one evaluation.

        The field is asked for the denoised point, in float64.
        """
        d = self.denoised(field, y, angle, shape)
        a = angle.to(y)[:, None]
        return (y * a.cos() - d) / a.sin()

    def denoised(self, field: Field, y: Tensor, angle: Tensor, shape: torch.Size | tuple[int, ...] | None = None) -> Tensor:
        """E[d|y] (B, D), the denoised point in units of the data, at states y (B, D) and angles (B,)."""
        path = field.require_path("the angle clock")
        t = self.time(path, angle.to(torch.float64))
        rows = (self.dim,) if shape is None else tuple(shape)
        x = self.point(y.to(torch.float64), path, t).reshape(-1, *rows)
        found = field.denoised(x, t).flatten(1)
        return ((found - self.mean.to(found)) / self.scale).to(y)
