"""Named bridges: pairs of data and source that are worth a name, with any coupling and coefficients."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from diffode.bridges.bridge import Bridge
from diffode.bridges.processes import phase_space
from diffode.cache import key_of
from diffode.errors import ArgumentError
from diffode.randomness import generator_from, normal
from diffode.specs import Registry, parse_spec
from diffode.targets import GaussianMixture

registry: Registry[Bridge] = Registry("bridge", Bridge)
register = registry.register


@functools.lru_cache(maxsize=32)
def _made(spec: str) -> Bridge:
    bridge = registry.make(spec)
    bridge.spec = spec
    return bridge


def get(spec: str | Bridge, **options: Any) -> Bridge:
    """The bridge of a spec, such as ``"eight_to_moons:coupling=optimal"``; one that is given is returned.

    Raises:
        UnknownNameError: for an unknown name; ArgumentError for wrong options.

    >>> get("two_gaussians:coupling=schroedinger:sigma=0.5").coefficients.spec
    'foellmer:sigma=0.5'
    """
    if isinstance(spec, Bridge):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a spec; this bridge has its own already")
        return spec
    return registry.make(spec, **options) if options or not isinstance(spec, str) else _made(spec)


def names() -> list[str]:
    """All registered names of bridges."""
    return registry.names()


def content(spec: str) -> str:
    """A hash of all numbers of a bridge: those of its coupling, and the spec of its coefficients."""
    bridge = get(spec)
    of = bridge.coupling
    numbers = of.weights, of.data_means, of.source_means, of.data_covariances, of.source_covariances, of.cross
    # A plan and a square root may differ in their last digits from machine to machine; the laws they are made of do not.
    return key_of(bridge.coefficients.spec, of.name, of.sigma, *((part * 1e9).round() for part in numbers))


def check(spec: str) -> None:
    """Raise ArgumentError or UnknownNameError unless a spec describes a bridge."""
    parse_spec(spec)
    get(spec)


def eight_to_moons(coupling: str = "independent", coefficients: str | None = None) -> Bridge:
    """Eight Gaussians on a circle of radius 4 to two moons, in the plane: a source with structure."""
    return Bridge(coupling, coefficients, data=_moons(), source=_ring(4.0, 0.3))


def two_gaussians(coupling: str = "optimal", coefficients: str | None = None) -> Bridge:
    """Two Gaussians in three dimensions whose covariances do not commute: most is known in closed form."""
    data = _gaussian([2.0, 0.0, -1.0], [4.0, 1.0, 0.09], 1)
    source = _gaussian([-1.0, 1.0, 0.0], [0.25, 2.25, 1.0], 2)
    return Bridge(coupling, coefficients, data=data, source=source)


def mixtures16(coupling: str = "independent", coefficients: str | None = None) -> Bridge:
    """Three Gaussians to four in sixteen dimensions, with full covariances over two decades."""
    return Bridge(coupling, coefficients, data=_mixture(4, 16, 3), source=_mixture(3, 16, 4))


def phase_space_ring(coefficients: str = "langevin") -> Bridge:
    """Eight Gaussians on a circle with their velocities: critically damped Langevin dynamics, whose source is noise."""
    return Bridge("independent", coefficients, data=phase_space(_ring(1.0, 0.1)))


def _ring(radius: float, width: float) -> GaussianMixture:
    """Eight Gaussians on a circle."""
    angles = torch.arange(8).double() * (torch.pi / 4)
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(torch.full((8,), 1 / 8), means, torch.full((8,), width**2, dtype=torch.float64))


def _moons() -> GaussianMixture:
    """Sixteen narrow Gaussians along each of two interleaved half circles."""
    angles = torch.linspace(0, torch.pi, 16, dtype=torch.float64)
    upper = torch.stack([angles.cos() - 0.5, angles.sin() - 0.25], 1)
    return GaussianMixture(
        torch.full((32,), 1 / 32), 2 * torch.cat([upper, -upper]), torch.full((32,), 0.04, dtype=torch.float64)
    )


def _rotation(dim: int, seed: int) -> Tensor:
    """An orthogonal matrix, fixed by a seed."""
    found: Tensor = torch.linalg.qr(normal((dim, dim), generator=generator_from(seed)))[0]
    return found


def _gaussian(mean: list[float], variances: list[float], seed: int) -> GaussianMixture:
    turn = _rotation(len(mean), seed)
    whole = turn @ torch.diag(torch.tensor(variances, dtype=torch.float64)) @ turn.T
    return GaussianMixture([1.0], [mean], ((whole + whole.T) / 2)[None])


def _mixture(count: int, dim: int, seed: int) -> GaussianMixture:
    means = 1.5 * normal((count, dim), generator=generator_from(seed))
    variances = torch.logspace(-2, 0, dim, dtype=torch.float64)
    turns = [_rotation(dim, 10 * seed + k) for k in range(count)]
    weights = torch.arange(1, count + 1).double()
    covariances = torch.stack([turn @ torch.diag(variances) @ turn.T for turn in turns])
    return GaussianMixture(weights / weights.sum(), means, (covariances + covariances.mT) / 2)


for _bridge in (eight_to_moons, two_gaussians, mixtures16, phase_space_ring):
    registry.register(_bridge.__name__, _bridge)
