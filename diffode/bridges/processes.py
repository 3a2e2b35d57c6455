"""Coefficients of known processes: critically damped Langevin dynamics in phase space, and blurring with noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import check_number
from diffode.bridges.coupling import ends
from diffode.bridges.interpolants import Coefficients, Moments
from diffode.errors import ArgumentError
from diffode.targets import GaussianMixture


@dataclass(frozen=True)
class Langevin(Coefficients):
    r"""Critically damped Langevin dynamics (Dockhorn et al., arXiv 2112.07068): data flow into N(0, diag(1, m)).

    A row is (q, v), positions and then velocities (:func:`phase_space`). With mass m, rate b and friction 2 sqrt m,
    dq = b v/m dt and dv = -b (q + 2 v/sqrt m) dt + 2 m^(1/4) b^(1/2) dw. The source has no part in x_t, whose law at the last
    time is nearly stationary. With u = b t/sqrt m all is closed: :math:`e^{Ft} = e^{-u}(I + \ldots)`, and the entries of Sigma
    are incomplete gamma functions, which do not cancel at small times, where Sigma_qq grows as t^3.
    """

    rate: float = 4.0
    mass: float = 0.25
    duration: float = 1.0

    name = "langevin"
    forgets_source = True

    def __post_init__(self) -> None:
        for name in ("rate", "mass", "duration"):
            check_number(name, getattr(self, name), 0.0, above=True)

    @property
    @override
    def t_max(self) -> float:
        return float(self.duration)

    def check_dim(self, dim: int) -> None:
        """Raise ArgumentError for an odd number of coordinates, which is no phase space."""
        if dim % 2:
            raise ArgumentError(
                f"langevin needs rows of positions and as many velocities, got {dim} coordinates: lift the data, "
                "diffode.bridges.phase_space(data)"
            )

    @property
    def drift(self) -> Tensor:
        """F (2, 2) of dx = F x dt + L^(1/2) dw, for one position and its velocity."""
        return self.rate * torch.tensor([[0.0, 1 / self.mass], [-1.0, -2 / math.sqrt(self.mass)]], dtype=torch.float64)

    @property
    def diffusion(self) -> Tensor:
        """L (2, 2)."""
        return torch.diag(torch.tensor([0.0, 4 * math.sqrt(self.mass) * self.rate], dtype=torch.float64))

    @override
    def at(self, t: Tensor, dim: int) -> Moments:
        self.check_dim(dim)
        u, root = self.rate / math.sqrt(self.mass) * t, math.sqrt(self.mass)
        # In q and v/sqrt m, in which the stationary law is N(0, I).
        unit = torch.tensor([[1.0, 1 / root], [root, 1.0]], dtype=torch.float64, device=t.device)
        propagator = (-u).exp()[:, None, None] * _two_by_two(1 + u, u, -u, 1 - u) * unit
        decayed = (-2 * u).exp()
        third = torch.special.gammainc(torch.full_like(u, 3.0), 2 * u)
        across = 2 * u.square() * decayed * root
        noise = _two_by_two(third, across, across, self.mass * (third + 4 * u * decayed))
        drift, diffusion = self.drift.to(t.device), self.diffusion.to(t.device)
        gauge = drift @ noise + diffusion / 2
        parts = (propagator, torch.zeros_like(propagator), noise, drift @ propagator, torch.zeros_like(propagator), gauge)
        eye = torch.eye(dim // 2, dtype=torch.float64, device=t.device)
        return Moments(*(torch.kron(part, eye) for part in parts))


def phase_space(data: GaussianMixture | str, variance: float = 0.01) -> GaussianMixture:
    """Data of positions with velocities N(0, variance I) beside them: a mixture in 2 dim dimensions, for ``langevin``.

    0.01 is 0.04 times the mass 1/4, as in CLD.

    >>> phase_space("ring8").dim
    4
    """
    check_number("variance", variance, 0.0, above=True)
    mixture, _ = ends(data, None)
    rest = torch.zeros_like(mixture.means)
    positions = mixture.covariance_matrices
    velocities = variance * torch.eye(mixture.dim).double().expand_as(positions)
    upper = torch.cat([positions, torch.zeros_like(positions)], 2)
    whole = torch.cat([upper, torch.cat([torch.zeros_like(positions), velocities], 2)], 1)
    return GaussianMixture(mixture.weights, torch.cat([mixture.means, rest], 1), whole)


@dataclass(frozen=True)
class Blurring(Coefficients):
    r"""Blurring diffusion (Hoogeboom and Salimans, arXiv 2209.05557): each frequency of the data fades at its own pace.

    In the cosine basis (DCT-II, orthonormal) a frequency of squared wave number l has the coefficient
    :math:`\cos(\pi t/2)[(1 - d)e^{-l\tau} + d]`, :math:`\tau = (b^2/2)\sin^4(\pi t/2)`, and the source sin(pi t/2).

    Args:
        blur: b, the width of the blur at the end, in pixels.
        least: d, the least factor of the blur.
        shape: the shape of a row, ``8x8`` for an image; a line of all coordinates unless given.
    """

    blur: float = 20.0
    least: float = 0.001
    shape: str = ""

    name = "blurring"

    def __post_init__(self) -> None:
        check_number("blur", self.blur, 0.0)
        check_number("least", self.least, 0.0)
        if self.least > 1:
            raise ArgumentError(f"least must be a factor from 0 to 1, got {self.least!r:.60}")
        sizes = self.shape.split("x") if isinstance(self.shape, str) and self.shape else []
        if not isinstance(self.shape, str) or not all(size.isdigit() and int(size) > 0 for size in sizes):
            raise ArgumentError(f"shape must be sizes such as 8x8, got {self.shape!r:.60}")

    def _sizes(self, dim: int) -> list[int]:
        return [int(size) for size in self.shape.split("x")] if self.shape else [dim]

    def check_dim(self, dim: int) -> None:
        """Raise ArgumentError unless the shape has as many pixels as a row has coordinates."""
        if math.prod(self._sizes(dim)) != dim:
            raise ArgumentError(f"shape {self.shape!r} has {math.prod(self._sizes(dim))} pixels, and a row {dim} coordinates")

    def basis(self, dim: int) -> tuple[Tensor, Tensor]:
        """The cosine basis as columns (dim, dim), and the squared wave numbers (dim,) in radians per pixel."""
        whole, numbers = torch.ones(1, 1).double(), torch.zeros(1).double()
        for size in self._sizes(dim):
            k, place = torch.arange(size).double(), torch.arange(size).double()
            waves = torch.cos(math.pi / size * (place[:, None] + 0.5) * k) * math.sqrt(2 / size)
            waves[:, 0] /= math.sqrt(2)
            whole = torch.kron(whole, waves)
            numbers = (numbers[:, None] + (math.pi * k / size).square()).reshape(-1)
        return whole, numbers

    @override
    def at(self, t: Tensor, dim: int) -> Moments:
        self.check_dim(dim)
        waves, numbers = (part.to(t.device) for part in self.basis(dim))
        angle, speed = math.pi / 2 * t[:, None], math.pi / 2
        sine, cosine = angle.sin(), angle.cos()
        spread = self.blur**2 / 2 * sine**4
        faded = (1 - self.least) * (-numbers * spread).exp()
        spread_rate = self.blur**2 * 2 * speed * sine**3 * cosine
        factor = cosine * (faded + self.least)
        rate = -speed * sine * (faded + self.least) - cosine * faded * numbers * spread_rate

        def matrices(along: Tensor) -> Tensor:
            return (waves * along[:, None, :]) @ waves.mT

        eye, zero = torch.eye(dim, dtype=torch.float64, device=t.device), torch.zeros(len(t), dim, dim).to(t)
        source = [part[:, :, None] * eye for part in (sine, speed * cosine)]
        return Moments(matrices(factor), source[0], zero, matrices(rate), source[1], zero)


def _two_by_two(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Matrices (T, 2, 2) of their entries (T,)."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)
