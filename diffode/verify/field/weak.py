r"""The equations of a diffusion in weak form, tested against smooth functions.

For every smooth test function :math:`\varphi` the law of :math:`x_t` obeys

.. math::
    \frac{d}{dt}E\varphi(x_t) = E\left[f\,x\cdot\nabla\varphi + \tfrac12 g^2\Delta\varphi\right] = E[v\cdot\nabla\varphi]
    = E\left[(v - \tfrac12\eta^2g^2 s)\cdot\nabla\varphi - \tfrac12\eta^2g^2\Delta\varphi\right]

for the forward SDE, the flow, and the reverse SDE with any :math:`\eta\ge0` (s is the score; the reverse noise enters with a
minus sign since time runs forwards). Expectations are taken by Gauss-Hermite quadrature of each component, by the trapezoid
rule over the support of a compact function, or by Monte Carlo with an interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.fields.exact import mixture_of
from diffode.randomness import Randomness, generator_from, normal
from diffode.targets import GaussianMixture
from diffode.verify.report import Check

#: Largest relative residual with polynomials.
_POLYNOMIAL = 1e-12
#: Largest relative residual of the reverse SDE and the flow.
_REVERSE = 1e-7
#: Largest residual of Stein's identity.
_STEIN = 1e-8
#: Largest relative residual of the characteristic function.
_FOURIER = 1e-12
#: Largest relative residual with a compact function.
_COMPACT = 1e-8
#: Largest mean of a term that should vanish, in standard errors; a single test has one false alarm in two million.
_DEVIATIONS = 5.0
#: Factors eta of the reverse noise that are tried.
ETAS = (0.0, 0.5, 1.0, 2.0)


class Jet(NamedTuple):
    """A test function at points: values (n,), gradients (n, D), Laplacians (n,)."""

    value: Tensor
    gradient: Tensor
    laplacian: Tensor


@dataclass(frozen=True)
class TestFunction:
    """A smooth function with its first derivatives and Laplacian in closed form."""

    __test__ = False

    name: str
    at: Callable[[Tensor], Jet]


def monomial(powers: Sequence[int], unit: float = 1.0) -> TestFunction:
    """prod_i (x_i/unit)^p_i.

    >>> monomial((2, 1)).at(torch.tensor([[3.0, 5.0]])).gradient
    tensor([[30.,  9.]])
    """

    def at(x: Tensor) -> Jet:
        y = x / unit
        factors = torch.stack([y[:, i] ** p for i, p in enumerate(powers)], dim=1)
        gradient, laplacian = [], torch.zeros_like(y[:, 0])
        for i, p in enumerate(powers):
            others = torch.cat([factors[:, :i], factors[:, i + 1 :]], dim=1).prod(1)
            gradient.append(others * (p * y[:, i] ** (p - 1) if p else 0 * y[:, i]) / unit)
            if p >= 2:
                laplacian = laplacian + others * p * (p - 1) * y[:, i] ** (p - 2) / unit**2
        return Jet(factors.prod(1), torch.stack(gradient, dim=1), laplacian)

    return TestFunction("x^" + ",".join(map(str, powers)), at)


def wave(direction: Tensor, shift: float = 0.7) -> TestFunction:
    """sin(w . x + shift) with w (D,); without the shift a sine's mean is 0 for symmetric laws, whatever the field."""

    def at(x: Tensor) -> Jet:
        phase = x @ direction + shift
        return Jet(phase.sin(), phase.cos()[:, None] * direction, -direction.square().sum() * phase.sin())

    return TestFunction("sin(w.x)", at)


def bump(centre: Tensor, radius: float) -> TestFunction:
    """exp(-1/(1 - r^2)) for r = |x - centre|/radius < 1, else 0: smooth, with compact support; centre is (D,)."""

    def at(x: Tensor) -> Jet:
        offset = (x - centre) / radius
        square = offset.square().sum(1)
        inside = square < 1 - 1e-3
        room = torch.where(inside, 1 - square, torch.ones_like(square))
        value = torch.where(inside, torch.exp(-1 / room), torch.zeros_like(square))
        # With h(q) = exp(-1/(1 - q)), q = r^2: h' = -h/(1-q)^2, h'' = h (1/(1-q)^4 - 2/(1-q)^3).
        first = -value / room**2
        second = value * (1 / room**4 - 2 / room**3)
        gradient = 2 * first[:, None] * offset / radius
        laplacian = (4 * square * second + 2 * x.shape[1] * first) / radius**2
        return Jet(value, gradient, laplacian)

    return TestFunction("bump", at)


class Quadrature(NamedTuple):
    """Points (n, D) that move with t, their rates dx/dt (n, D) at fixed quantiles of a component, and weights (n,)."""

    points: Tensor
    rates: Tensor
    weights: Tensor


def gauss_hermite(field: ExactField, t: float, nodes: int) -> Quadrature:
    """Gauss-Hermite quadrature of each component of a mixture at time t, ``nodes`` in each of at most three dimensions."""
    target, path = mixture_of(field), field.path
    if target is None or target.dim > 3:
        raise ArgumentError("Gauss-Hermite quadrature needs a Gaussian mixture in at most three dimensions")
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    axes = torch.from_numpy(np.stack(np.meshgrid(*[z] * target.dim), -1).reshape(-1, target.dim))
    weights = torch.from_numpy(np.prod(np.meshgrid(*[w / w.sum()] * target.dim), 0).reshape(-1))
    vectors, values = component_axes(target)
    alpha, sigma = path.alpha(t), path.sigma(t)
    width = (alpha**2 * values + sigma**2).sqrt()
    rate = (alpha * path.alpha_derivative(t) * values + path.half_variance_rate(t)) / width
    points, rates = (
        a * target.means[:, None] + torch.einsum("kde,ne,ke->knd", vectors, axes, b)
        for a, b in ((alpha, width), (path.alpha_derivative(t), rate))
    )
    return Quadrature(
        points.reshape(-1, target.dim), rates.reshape(-1, target.dim), (target.weights[:, None] * weights).reshape(-1)
    )


def component_axes(target: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Eigenvectors (K, D, D) and eigenvalues (K, D) of every component's covariance."""
    identity = torch.eye(target.dim, dtype=torch.float64)
    images = [target.components.filter(row[:, None, None], lambda c: c[..., None])[..., 0] for row in identity]
    covariances = torch.stack(images).permute(2, 0, 1)
    values, vectors = torch.linalg.eigh((covariances + covariances.mT) / 2)
    return vectors, values


def forward_generator(field: Field, x: Tensor, t: float, phi: Jet) -> list[Tensor]:
    """The terms of f x . grad phi + g^2/2 Lap phi, (n,) each."""
    path = field.require_path("its forward SDE")
    return [path.drift(t) * (x * phi.gradient).sum(1), path.diffusion(t) ** 2 / 2 * phi.laplacian]


def reverse_generator(field: Field, x: Tensor, t: float, phi: Jet, eta: float) -> list[Tensor]:
    """The terms of (v - eta^2 g^2/2 s) . grad phi - eta^2 g^2/2 Lap phi; eta = 0 is the flow's, v . grad phi alone."""
    half = eta**2 * field.require_path("its reverse SDE").diffusion(t) ** 2 / 2
    terms = [(field.velocity(x, t).detach().flatten(1) * phi.gradient).sum(1)]
    if eta:
        terms += [-half * (field.score(x, t).detach().flatten(1) * phi.gradient).sum(1), -half * phi.laplacian]
    return terms


def polynomial_check(field: ExactField, t: float, most: int = 4) -> Check:
    """The forward weak form on all monomials up to a degree, exact on both sides with four nodes in each dimension."""
    worst, where = 0.0, ""
    grid = gauss_hermite(field, t, 4)
    for powers in itertools.product(range(most + 1), repeat=field.target.dim):
        if 0 < sum(powers) <= most:
            phi = monomial(powers, field.scale).at(grid.points)
            terms = forward_generator(field, grid.points, t, phi)
            found = _relative(grid, phi, terms)
            worst, where = max((worst, where), (found, f"x^{powers} at t={t:.4g}"))
    return Check(f"weak form, polynomials to degree {most}", worst, _POLYNOMIAL, where)


def reverse_check(field: ExactField, t: float, eta: float, nodes: int = 60) -> Check:
    """The reverse SDE with this eta against d/dt E sin(w . x), by quadrature that has converged to 1e-8 there."""
    grid = gauss_hermite(field, t, nodes)
    phi = wave(_direction(field)).at(grid.points)
    terms = reverse_generator(field, grid.points, t, phi, eta)
    rate = (grid.weights * (grid.rates * phi.gradient).sum(1)).sum()
    size = abs(field.path.drift(t)) + field.path.diffusion(t) ** 2 / 2 / field.scale**2
    value = float((rate - sum((grid.weights * term).sum() for term in terms)).abs()) / size
    return Check(f"weak form, {'flow' if eta == 0 else f'reverse SDE eta={eta:g}'}", value, _REVERSE, f"sin(w.x) at t={t:.4g}")


def stein_check(field: ExactField, t: float, nodes: int = 60) -> Check:
    """E[score phi + grad phi] = 0."""
    grid = gauss_hermite(field, t, nodes)
    phi = wave(_direction(field)).at(grid.points)
    residual = (grid.weights[:, None] * (field.score(grid.points, t) * phi.value[:, None] + phi.gradient)).sum(0)
    # The score's unit is one over the spread of x at t, so that the residual has no unit.
    spread = math.hypot(field.path.alpha(t) * field.scale, field.path.sigma(t))
    return Check("Stein's identity of the score", float(residual.abs().max()) * spread, _STEIN, f"t={t:.4g}")


def compact_check(field: ExactField, t: float, eta: float | None = None, nodes: int = 240) -> Check:
    """A compactly supported function, integrated over its support by the trapezoid rule, which converges at every order there.

    The rate is that of the density itself, by automatic differentiation in t. ``eta`` chooses a reverse SDE, None the
    forward one.
    """
    dim, path = field.target.dim, field.path
    if dim > 2:
        raise ArgumentError("compact test functions are integrated in one and two dimensions")
    centre = path.alpha(t) * field.target.mean + 0.3 * path.sigma(t)
    radius = 2.0 * math.sqrt(path.sigma(t) ** 2 + (path.alpha(t) * field.scale) ** 2)
    count = nodes * 5 if dim == 1 else nodes
    axes = [centre[i] + radius * torch.linspace(-1, 1, count, dtype=torch.float64) for i in range(dim)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    phi = bump(centre, radius).at(x)
    inside = phi.value > 0
    x, phi = x[inside], Jet(*(part[inside] for part in phi))
    time = torch.full((len(x),), t, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        density = field.log_prob(x, time).exp()
        (rate,) = torch.autograd.grad(density.sum(), time)
    terms = forward_generator(field, x, t, phi) if eta is None else reverse_generator(field, x, t, phi, eta)
    volume = (2 * radius / (count - 1)) ** dim
    weights = density.detach() * volume
    sides = float((rate * phi.value).sum() * volume), float(sum((weights * term).sum() for term in terms))
    size = sum(float((weights * term.abs()).sum()) for term in terms)
    kind = "forward SDE" if eta is None else "flow" if eta == 0 else f"reverse SDE eta={eta:g}"
    return Check(f"weak form, compact function, {kind}", abs(sides[0] - sides[1]) / size, _COMPACT, f"t={t:.4g}")


def fourier_check(field: ExactField, t: float, seed: int = 2) -> Check:
    """The characteristic function psi(w) = E exp(i w . x_t): d_t psi = f w . grad_w psi - g^2/2 |w|^2 psi, in any dimension."""
    target, path = mixture_of(field), field.path
    if target is None:
        raise ArgumentError("the characteristic function is known for Gaussian mixtures")
    draw = normal((target.dim,), generator=generator_from(seed))
    w = (draw / field.scale / target.dim**0.5).requires_grad_(True)
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    worst = 0.0
    with torch.enable_grad():
        alpha, sigma = path.alpha(time), path.sigma(time)
        image = target.components.filter(w[:, None, None], lambda c: c[..., None])[..., 0]
        quadratic = (w[:, None] * image).sum(0) * alpha**2 + sigma**2 * w.square().sum()
        size = target.weights * torch.exp(-quadratic / 2)
        for part in (
            (size * torch.cos(alpha * (target.means @ w))).sum(),
            (size * torch.sin(alpha * (target.means @ w))).sum(),
        ):
            rate, gradient = torch.autograd.grad(part, (time, w), retain_graph=True)
            f, half = path.drift(t), path.diffusion(t) ** 2 / 2
            terms = f * (w * gradient).sum(), -half * w.square().sum() * part
            most = (abs(f) + half * float(w.detach().square().sum())) * (1 + 1 / field.scale)
            worst = max(worst, float((rate - sum(terms)).detach().abs()) / most)
    return Check("characteristic function", worst, _FOURIER, f"t={t:.4g}")


def sampled_check(
    field: Field, data: Tensor, t: float, *, eta: float | None = 0.0, generator: Randomness = 0, functions: int = 8
) -> Check:
    r"""The weak form by Monte Carlo, for any field whose data can be sampled: no density is needed.

    With x_t = alpha x_0 + sigma eps the difference of both sides is the mean of
    :math:`(\alpha' x_0 + \sigma'\epsilon)\cdot\nabla\varphi - L\varphi(x_t)`, whose size is judged by its standard error.

    Args:
        field: the field.
        data: draws of x_0, (n, *shape).
        t: the time.
        eta: of the reverse SDE; 0 is the flow, None the forward SDE.
        generator: generator or seed of eps and the functions.
        functions: number of waves that are tried.
    """
    path, source = field.require_path("its law"), generator_from(generator)
    noise = normal(data.shape, generator=source)
    x = path.alpha(t) * data + path.sigma(t) * noise
    rates = (path.alpha_derivative(t) * data + path.sigma_derivative(t) * noise).flatten(1)
    flat, worst = x.flatten(1), 0.0
    spread = flat.std(0).clamp(min=1e-12)
    for _ in range(functions):
        phi = wave(normal((flat.shape[1],), generator=source) / spread / flat.shape[1] ** 0.5).at(flat)
        terms = forward_generator(field, flat, t, phi) if eta is None else reverse_generator(field, x, t, phi, eta)
        difference = (rates * phi.gradient).sum(1) - sum(terms)
        error = float(difference.std()) / math.sqrt(len(difference))
        value = abs(float(difference.mean())) / max(error, 1e-300)
        # max() alone would ignore NaN.
        worst = max(worst, value) if math.isfinite(value) else math.inf
    kind = "forward SDE" if eta is None else "flow" if eta == 0 else f"reverse SDE eta={eta:g}"
    return Check(f"weak form, Monte Carlo, {kind}", worst, _DEVIATIONS, f"standard errors, {len(data)} draws, t={t:.4g}")


def sourced_check(field: ExactField, t: float, count: int = 16384, seed: int = 11) -> Check:
    """The flow's weak form for noise from a source, by Monte Carlo: E[(dx_t/dt - v) . h(x_t)] = 0, since v = E[dx_t/dt|x_t].

    The vectors h fall as 1/|x|^2, so that noise without a variance has means too.
    """
    path, generator = field.path, generator_from(seed)
    data = field.target.sample(count, generator=generator)
    noise = data if field.source is None else field.source.sample(*data.shape, generator=generator)
    x = path.alpha(t) * data + path.sigma(t) * noise
    rate = path.alpha_derivative(t) * data + path.sigma_derivative(t) * noise
    with torch.no_grad(), field.uncounted():
        apart = rate - field.velocity(x, t)
    worst, size = 0.0, float(x.norm(dim=1).median())
    waves = [wave(_direction(field) * field.scale / size, shift).at(x).gradient for shift in (0.0, 0.7, 1.4)]
    # The radial one sees noise of the right shape and a wrong size.
    for vectors in (*waves, x / size):
        terms = (apart * vectors).sum(1) / (1 + x.square().sum(1) / size**2)
        worst = max(worst, float(terms.mean().abs() / (terms.std() / count**0.5)))
    return Check("weak form, Monte Carlo, flow", worst, _DEVIATIONS, f"standard errors, {count} draws, t={t:.4g}")


def _direction(field: ExactField) -> Tensor:
    return torch.linspace(0.4, 0.8, field.target.dim, dtype=torch.float64) / field.scale


def _relative(grid: Quadrature, phi: Jet, terms: Sequence[Tensor]) -> float:
    """|d/dt E phi - E terms| over the sum of absolute terms of both sides."""
    moving = (grid.rates * phi.gradient).sum(1)
    difference = (grid.weights * (moving - sum(terms))).sum().abs()
    size = sum((grid.weights * term.abs()).sum() for term in (moving, *terms))
    return float(difference / size) if float(size) else 0.0


def weak(field: ExactField) -> list[Check]:
    """All weak forms that apply to an exact field, at a noise level of one and a half scales."""
    t = min(field.path.time_from_rho(1.5 * field.scale), field.path.t_max)
    if field.source is not None:
        return [sourced_check(field, t)]
    mixture = mixture_of(field)
    found = [fourier_check(field, t)] if mixture is not None else []
    if mixture is not None and mixture.dim <= 2:
        found += [polynomial_check(field, t), stein_check(field, t), *(reverse_check(field, t, eta) for eta in ETAS)]
        if not mixture.is_discrete:
            found += [compact_check(field, t), *(compact_check(field, t, eta) for eta in (0.0, 1.0))]
    else:
        data = field.target.sample(4096, generator=11)
        found += [sampled_check(field, data, t, eta=eta) for eta in (None, *ETAS)]
    return found
