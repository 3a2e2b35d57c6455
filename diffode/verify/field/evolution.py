r"""The density as a conserved quantity: its mass, and a finite-volume evolution compared with the closed form.

The box is cut into cells. The flux out of a cell enters its neighbour, so that mass is conserved up to rounding. Fluxes through
a face are

* Fokker-Planck (forward SDE): :math:`f x\,\bar p - \tfrac12 g^2\,\delta p/h`,
* continuity (the flow): :math:`v\,\bar p`, with v the field's velocity at the face,

with the mean and difference of the two cells beside it: second order in the cell's size h. Time goes by RK4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField
from diffode.fields.exact import mixture_of
from diffode.numerics.butcher import KUTTA
from diffode.verify.report import Check

Equation = Literal["fokker_planck", "continuity"]
#: Largest difference of the density's mass from 1.
_MASS = 1e-10
#: Largest change of mass in an evolution.
_CONSERVED = 1e-12
#: Largest shortfall of the measured order of convergence from 2.
_SHORT_OF_ORDER = 0.3
#: Half width of the box in standard deviations of the law; a Gaussian has less than 1e-11 of its mass beyond 7.
_WIDTH = 7.5
#: Noise level at which an evolution starts, in units of the data's scale.
_FIRST_LEVEL = 0.8
#: Noise level at which it ends.
_LAST_LEVEL = 1.6
#: Largest distance that a component moves in an evolution, in its standard deviations.
_TRAVEL = 2.0


@dataclass(frozen=True)
class Evolution:
    """A finite-volume run: ``error`` is the L1 distance of its end to the closed form, ``mass_change`` the change of mass.

    ``density`` and ``exact`` are on the cells' centres, (cells,) or (cells, cells); ``axes`` are the centres, (D, cells).
    """

    cells: int
    error: float
    mass_change: float
    density: Tensor
    exact: Tensor
    axes: Tensor


def evolve(field: ExactField, start: float, stop: float, cells: int, equation: Equation = "fokker_planck") -> Evolution:
    """Evolve the exact density from time ``start`` to the later time ``stop`` on a grid of cells, in one or two dimensions."""
    dim = field.target.dim
    if dim > 2:
        raise ArgumentError(f"a density is evolved on a grid in one or two dimensions, the target has {dim}")
    if not start < stop:
        raise ArgumentError(f"a density is evolved towards noise: start < stop, got {start:g} and {stop:g}")
    low, high = _box(field, (start, stop))
    size = (high - low) / cells
    axes = torch.stack([low[i] + size[i] * (torch.arange(cells, dtype=torch.float64) + 0.5) for i in range(dim)])
    faces = [_faces(low, size, axes, i) for i in range(dim)]
    density = _on_cells(field, axes, start)
    before = float(density.sum())

    def rate(p: Tensor, t: float) -> Tensor:
        change = torch.zeros_like(p)
        for i in range(dim):
            flux = _flux(field, p, t, i, faces[i], float(size[i]), equation)
            change = change - torch.nn.functional.pad(flux, _sides(dim, i)).diff(dim=i) / float(size[i])
        return change

    steps = _steps(field, start, stop, size, low, high, equation)
    for k in range(steps):
        density = KUTTA.step(rate, density, start + (stop - start) * k / steps, (stop - start) / steps)
    exact, volume = _on_cells(field, axes, stop), float(size.prod())
    mass = abs(float(density.sum()) - before) / before
    return Evolution(cells, float((density - exact).abs().sum()) * volume, mass, density, exact, axes)


def evolution_checks(field: ExactField, cells: int = 48) -> list[Check]:
    """Checks of the order of convergence and of mass, for both equations on two grids of cells."""
    start, stop = _times(field)
    found = []
    for equation, name in (("fokker_planck", "Fokker-Planck"), ("continuity", "continuity")):
        coarse, fine = (evolve(field, start, stop, n, equation) for n in (cells, 2 * cells))  # type: ignore[arg-type]
        order = math.log2(coarse.error / fine.error) if fine.error > 0 else 0.0
        detail = f"L1 error {coarse.error:.1e} on {cells} cells a side, {fine.error:.1e} on {2 * cells}: order {order:.2f}"
        found.append(Check(f"finite volumes, {name}: order short of 2", max(0.0, 2 - order), _SHORT_OF_ORDER, detail))
        found.append(Check(f"finite volumes, {name}: mass", fine.mass_change, _CONSERVED, f"{2 * cells} cells a side"))
    return found


def mass_check(field: ExactField, cells: int = 128) -> Check:
    """The check that the density sums to 1 over a box of 7.5 standard deviations, at a noise level that the grid resolves."""
    t = _times(field)[1]
    low, high = _box(field, (t,))
    size = (high - low) / cells
    axes = torch.stack([low[i] + size[i] * (torch.arange(cells, dtype=torch.float64) + 0.5) for i in range(field.target.dim)])
    total = float(_on_cells(field, axes, t).sum() * size.prod())
    return Check("mass is 1", abs(total - 1), _MASS, f"{cells} points a side, t={t:.4g}")


def _times(field: ExactField) -> tuple[float, float]:
    """Two times between which noise changes, but no component moves by more than two of its standard deviations."""
    path = field.path
    last = min(path.time_from_rho(_LAST_LEVEL * field.scale), path.t_max)
    first = path.time_from_rho(_FIRST_LEVEL / _LAST_LEVEL * path.rho(last))
    own, far = _spread_and_distance(field)
    while abs(path.alpha(first) - path.alpha(last)) * far > _TRAVEL * math.hypot(path.alpha(first) * own, path.sigma(first)):
        first = (first + last) / 2
    return first, last


def _spread_and_distance(field: ExactField) -> tuple[float, float]:
    """Standard deviation of the narrowest component, and distance of the farthest mean from 0."""
    means, variances = _components(field)
    return float(variances.amin().sqrt()), float(means.abs().amax())


def _components(field: ExactField) -> tuple[Tensor, Tensor]:
    """Means and variances of the components along each axis, (K, D) each, or of the law if it has no components."""
    target, mixture = field.target, mixture_of(field)
    if mixture is None:
        return target.mean[None], target.variance[None]
    return mixture.means, mixture.components.variances()


def _box(field: ExactField, times: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    path = field.path
    lows, highs = [], []
    # A mixture's tails are those of its outermost components.
    means, variances = _components(field)
    own = variances.amax(0).sqrt()
    for t in times:
        alpha, sigma = path.alpha(t), path.sigma(t)
        width = _WIDTH * (alpha**2 * own**2 + sigma**2).sqrt()
        lows.append(alpha * means.amin(0) - width)
        highs.append(alpha * means.amax(0) + width)
    return torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def _on_cells(field: ExactField, axes: Tensor, t: float) -> Tensor:
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return field.log_prob(points.reshape(-1, len(axes)), t).exp().reshape(points.shape[:-1])


def _faces(low: Tensor, size: Tensor, axes: Tensor, i: int) -> Tensor:
    """Centres of the inner faces across axis i, (..., D)."""
    lines = [
        axes[j] if j != i else low[i] + size[i] * torch.arange(1, axes.shape[1], dtype=torch.float64) for j in range(len(axes))
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)


def _flux(field: ExactField, p: Tensor, t: float, i: int, faces: Tensor, h: float, equation: Equation) -> Tensor:
    count = p.shape[i]
    left, right = p.narrow(i, 0, count - 1), p.narrow(i, 1, count - 1)
    if equation == "continuity":
        speed = field.velocity(faces.reshape(-1, faces.shape[-1]), t)[:, i].reshape(faces.shape[:-1])
        return speed * (left + right) / 2
    path = field.path
    return path.drift(t) * faces[..., i] * (left + right) / 2 - path.diffusion(t) ** 2 / 2 * (right - left) / h


def _sides(dim: int, i: int) -> tuple[int, ...]:
    """No flux through the walls: zeros before and after along axis i, in the order that ``pad`` wants."""
    pads = [(1, 1) if j == i else (0, 0) for j in range(dim)]
    return tuple(n for pair in reversed(pads) for n in pair)


def _steps(field: ExactField, start: float, stop: float, size: Tensor, low: Tensor, high: Tensor, equation: Equation) -> int:
    """Steps that keep RK4 stable: a diffusion number of 1/2 a dimension, a Courant number of 1."""
    path, corners = field.path, torch.stack([low, high])
    if equation == "fokker_planck":
        half = max(path.diffusion(t) ** 2 / 2 for t in (start, stop))
        spreading = half * float((4 / size.square()).sum()) / 2
        moving = max(abs(path.drift(t)) for t in (start, stop)) * float((corners.abs() / size).amax(0).sum())
        return max(20, math.ceil((stop - start) * max(spreading, moving)))
    fastest = max(float((field.velocity(corners, t).abs() / size).max()) for t in (start, stop))
    return max(20, math.ceil((stop - start) * fastest * len(size)))
