"""The equations that define a diffusion, pointwise and weakly, on every registry target and every path.

Time derivatives are taken by automatic differentiation of the log-density in t, divergences from the closed form: two routes
that share no formula. Residuals are measured against the sum of the absolute terms; the tolerances are those that an
independent derivation measured (worst 5.6e-13) with a margin of twenty.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import diffode
from diffode import paths, targets
from diffode.verify.field import weak

ALL = targets.names()
PATHS = paths.names()
RHOS = (80.0, 10.0, 1.0, 0.3, 0.05, 0.002)
FEW = [name for name in ALL if targets.get(name).dim <= 2]


#: Targets of so many numbers that each of these laws takes a minute of them.
LARGE = ("fashion-points", "fashion-mfa")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in ALL])
def target(request):
    return targets.get(request.param)


def fields_of(target):
    for name in PATHS:
        yield diffode.exact_field(target, name)


def levels(field, count=24, rhos=RHOS):
    """Exact draws at noise levels from 80 to 0.002, in units of the target's own scale where that is large."""
    unit = max(1.0, field.scale)
    for rho in rhos:
        t = min(field.path.time_from_rho(rho * unit if rho > 1 else rho), field.path.t_end)
        yield t, field.marginal(count, t, generator=5)


def log_density_and_rate(field, x, t):
    """log p and d log p/dt at fixed x, by automatic differentiation in t."""
    time = torch.full((len(x),), t, dtype=torch.float64, requires_grad=True)
    value = field.log_prob(x, time)
    (rate,) = torch.autograd.grad(value.sum(), time)
    return value.detach(), rate


@pytest.fixture(scope="module")
def rates(target):
    """Draws at every level of every path, each with d log p/dt and the score there: two equations share what takes longest."""
    return [
        (field, t, x, log_density_and_rate(field, x, t)[1], field.score(x, t))
        for field in fields_of(target)
        for t, x in levels(field)
    ]


def relative(residual, *terms):
    return float((residual.abs() / sum(term.abs() for term in terms).clamp(min=1e-300)).max())


def test_continuity_equation_holds_pointwise(rates):
    """d_t log p + div v + v.score = 0."""
    for field, t, x, rate, score in rates:
        velocity, divergence = field.velocity(x, t), field.divergence(x, t)
        transport, absolute = (velocity * score).sum(1), (velocity * score).abs().sum(1)
        # div v = f D - g^2/2 Lap log p: both terms count, since on a variance-preserving path they nearly cancel.
        laplacian = field.path.drift(t) * x.shape[1] - divergence
        residual = rate + divergence + transport
        terms = (rate, divergence, absolute, laplacian, divergence - laplacian)
        assert relative(residual, *terms) < 1e-11, (field.path.name, t)


def test_fokker_planck_equation_holds_pointwise(rates, target):
    """d_t log p = -div f - f.score + g^2/2 (div score + |score|^2) for the forward SDE."""
    for field, t, x, rate, score in rates:
        f, g = field.path.drift(t), field.path.diffusion(t)
        laplacian = target.noised_score_divergence(x, field.path.alpha(t), field.path.sigma(t))
        norm = score.square().sum(1)
        dim = torch.full_like(norm, f * x.shape[1])
        transport = f * (x * score).sum(1)
        absolute = abs(f) * (x * score).abs().sum(1)
        residual = rate + dim + transport - g**2 / 2 * (laplacian + norm)
        assert relative(residual, rate, dim, absolute, g**2 / 2 * laplacian, g**2 / 2 * norm) < 1e-11, (field.path.name, t)


def test_score_is_the_gradient_of_the_log_density(target):
    field = diffode.exact_field(target, "vp")
    for t, x in levels(field):
        point = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(field.log_prob(point, t).sum(), point)
        score = field.score(x, t)
        assert (gradient - score).abs().max() <= 1e-9 * score.abs().max()


def test_views_are_consistent(target):
    """Tweedie and the conversions: x = alpha D + sigma eps, v = alpha' D + sigma' eps, score = -eps/sigma."""
    for field in fields_of(target):
        path = field.path
        for t, x in levels(field):
            denoised, noise = field.denoised(x, t), field.noise(x, t)
            alpha, sigma = path.alpha(t), path.sigma(t)
            size = (alpha * denoised).abs().max() + (sigma * noise).abs().max()
            assert (alpha * denoised + sigma * noise - x).abs().max() < 1e-12 * size
            parts = path.alpha_derivative(t) * denoised, path.sigma_derivative(t) * noise
            assert (sum(parts) - field.velocity(x, t)).abs().max() < 1e-12 * (parts[0].abs().max() + parts[1].abs().max())
            assert (field.score(x, t) + noise / sigma).abs().max() <= 1e-12 * (noise / sigma).abs().max()


def test_float32_agrees_with_float64(target):
    """At the same float32 points: every view within 2e-4 of its root mean square at that level, if float32 can hold that."""
    for field in fields_of(target):
        for t, x in levels(field):
            single = x.float()
            for view in (field.score, field.denoised, field.velocity, field.noise):
                exact = view(single.double(), t)
                error = (view(single, t).double() - exact).norm(dim=1)
                assert float((error / exact.square().sum(1).mean().sqrt().clamp(min=1e-30)).max()) < 2e-4, (
                    view.__name__,
                    field.path.name,
                    t,
                )


def test_everything_is_finite_far_out_and_at_extreme_noise(target):
    for field in fields_of(target):
        for rho in (1e3, 80.0, 0.002):
            t = min(field.path.time_from_rho(rho), 1e3)
            for dtype in (torch.float32, torch.float64):
                x = torch.full((2, target.dim), 1e4, dtype=dtype)
                x[1] = -3.0
                for view in (field.velocity, field.noise, field.denoised, field.score, field.log_prob, field.divergence):
                    assert torch.isfinite(view(x, t)).all(), (view.__name__, rho, dtype)


def test_rows_do_not_depend_on_their_batch(target):
    field = diffode.exact_field(target, "edm")
    for t, x in levels(field, rhos=(10.0, 0.3)):
        together = field.velocity(x, t)
        apart = torch.cat([field.velocity(x[i : i + 1], t) for i in range(len(x))])
        assert (together - apart).abs().max() <= 1e-11 * together.abs().max()


def test_a_time_a_row_gives_the_rows_of_one_time(target):
    field = diffode.exact_field(target, "vp")
    times = torch.tensor([field.path.time_from_rho(rho) for rho in (10.0, 1.0, 0.3)], dtype=torch.float64)
    x = torch.cat([field.marginal(1, float(t), generator=1) for t in times])
    for view in (field.velocity, field.denoised, field.score, field.log_prob, field.divergence):
        rows = torch.cat([view(x[i : i + 1], float(t)) for i, t in enumerate(times)])
        assert (view(x, times) - rows).abs().max() <= 1e-9 * rows.abs().max()


def test_sample_moments_are_the_exact_ones(target):
    """Within five standard errors of 20,000 draws, coordinate by coordinate."""
    x = target.sample(20000, generator=9)
    # A coordinate that is the same in all points, such as a corner of pictures, has the rounding of its mean.
    allowed = 5 / math.sqrt(20000) * target.variance.sqrt() + 1e-12 * target.mean.abs().clamp(min=1.0)
    assert bool(((x.mean(0) - target.mean).abs() < allowed).all())
    assert torch.allclose(target.variance, target.covariance.diagonal(), rtol=1e-10)
    squares = x.sub_(target.mean).square_()
    second, fourth = squares.mean(0), squares.square_().mean(0)
    error = (fourth.sqrt() / math.sqrt(20000)).clamp(min=1e-12)
    assert ((second - target.variance).abs() / error).max() < 6


@pytest.mark.parametrize("name", [name for name in FEW if targets.get(name).count <= 40])
def test_stein_identity_of_the_score(name):
    """E[score phi + grad phi] = 0 by Gauss-Hermite quadrature a component, phi = sin of a projection."""
    field = diffode.exact_field(name, "edm")
    t = 1.5 * field.scale
    x, w = quadrature(field, t, 60)
    direction = torch.linspace(0.3, 0.7, field.dim, dtype=torch.float64) / field.scale
    phi, gradient = torch.sin(x @ direction), torch.cos(x @ direction)[:, None] * direction
    residual = (w[:, None] * (field.score(x, t) * phi[:, None] + gradient)).sum(0)
    assert residual.abs().max() * field.scale < 1e-8


def quadrature(field, t, nodes):
    """Gauss-Hermite points (n, D) and weights (n,) of the mixture at time t; t may be a tensor that wants a gradient."""
    target, path = field.target, field.path
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    axes = torch.from_numpy(np.stack(np.meshgrid(*[z] * target.dim), -1).reshape(-1, target.dim))
    weights = torch.from_numpy(np.prod(np.meshgrid(*[w / w.sum()] * target.dim), 0).reshape(-1))
    vectors, values = weak.component_axes(target)
    alpha, sigma = path.alpha(t), path.sigma(t)
    widths = (alpha**2 * values + sigma**2).sqrt()
    points = alpha * target.means[:, None] + torch.einsum("kde,ne,ke->knd", vectors, axes, widths)
    return points.reshape(-1, target.dim), (target.weights[:, None] * weights).reshape(-1)


@pytest.mark.parametrize("name", FEW)
def test_weak_form_of_fokker_planck_on_polynomials(name):
    """d/dt E phi = E[f x.grad phi + g^2/2 Lap phi] for all monomials of degree <= 4; four nodes a dimension are exact."""
    for path_name in PATHS:
        field = diffode.exact_field(name, path_name)
        path, unit = field.path, field.scale
        for rho in (10.0, 0.7):
            t = torch.tensor(min(path.time_from_rho(rho * unit), path.t_end), dtype=torch.float64, requires_grad=True)
            f, g = path.drift(t.item()), path.diffusion(t.item())
            moving, w = quadrature(field, t, 4)
            moving = moving / unit
            x = moving.detach()
            for powers in [p for p in np.ndindex(*[5] * field.dim) if 0 < sum(p) <= 4]:
                (rate,) = torch.autograd.grad((w * monomial(moving, powers)).sum(), t, retain_graph=True)
                # Terms of the generator, in units of the scale.
                terms = [f * sum(powers) * w * monomial(x, powers)]
                for i, p in enumerate(powers):
                    lowered = tuple(q - 2 * (j == i) for j, q in enumerate(powers))
                    if p >= 2:
                        terms.append(g**2 / 2 / unit**2 * p * (p - 1) * w * monomial(x, lowered))
                generator = sum(term.sum() for term in terms)
                size = (
                    sum(term.abs().sum() for term in terms) + (abs(f) + g**2 / unit**2) * (w * monomial(x, powers).abs()).sum()
                )
                assert abs(rate - generator) <= 1e-12 * size, (path_name, powers)


def monomial(x, powers):
    return torch.stack([x[:, i] ** p for i, p in enumerate(powers)]).prod(0)


@pytest.mark.parametrize("name", ["bimodal1d", "ring8", "pinwheel"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_reverse_sde_family_keeps_the_marginals(name, eta):
    """d/dt E phi = E[(v - eta^2 g^2/2 score).grad phi - eta^2 g^2/2 Lap phi], time running towards the data, for every eta."""
    field = diffode.exact_field(name, "vp")
    time = field.path.time_from_rho(1.5 * field.scale)
    t = torch.tensor(time, dtype=torch.float64, requires_grad=True)
    direction = torch.linspace(0.4, 0.8, field.dim, dtype=torch.float64) / field.scale
    x, w = quadrature(field, t, 60)
    (rate,) = torch.autograd.grad((w * torch.sin(x @ direction)).sum(), t)
    x = x.detach()
    half = eta**2 * field.path.diffusion(time) ** 2 / 2
    drift = field.velocity(x, time) - half * field.score(x, time)
    sine, cosine = torch.sin(x @ direction), torch.cos(x @ direction)
    # Lap sin(d.x) = -|d|^2 sin(d.x); the reverse-time noise enters the forward-time rate with a minus sign.
    generator = (w * (cosine * (drift @ direction) + half * direction.square().sum() * sine)).sum()
    assert abs(rate - generator) < 1e-7


def test_fourier_transform_obeys_its_equation(target):
    """psi(w) = E exp(i w.x_t): d_t psi = f w.grad_w psi - g^2/2 |w|^2 psi."""
    generator = torch.Generator().manual_seed(2)
    for field in fields_of(target):
        path = field.path
        unit = field.scale
        t = torch.tensor(path.time_from_rho(unit), dtype=torch.float64, requires_grad=True)
        w = (torch.randn(target.dim, generator=generator, dtype=torch.float64) / unit / target.dim**0.5).requires_grad_(True)
        alpha, sigma = path.alpha(t), path.sigma(t)
        image = target.components.filter(w[:, None, None], lambda c: c[..., None])[..., 0]
        quadratic = (w[:, None] * image).sum(0) * alpha**2 + sigma**2 * w.square().sum()
        psi = target.weights * torch.exp(-quadratic / 2)
        for part in ((psi * torch.cos(alpha * (target.means @ w))).sum(), (psi * torch.sin(alpha * (target.means @ w))).sum()):
            rate, gradient = torch.autograd.grad(part, (t, w), retain_graph=True)
            f, g = path.drift(t.item()), path.diffusion(t.item())
            terms = f * (w * gradient).sum(), -(g**2) / 2 * w.square().sum() * part
            scale = abs(f) + g**2 / 2 * w.square().sum()
            assert abs(rate - sum(terms)) <= 1e-12 * scale * (1 + 1 / unit)


@pytest.mark.parametrize("name", ["gauss2d", "ring8", "grid25", "moons", "pinwheel", "gmm40"])
def test_mass_is_one(name):
    """Trapezoid over a box of seven standard deviations, at a noise level the grid resolves."""
    field = diffode.exact_field(name, "edm")
    t = 2.0 * field.scale
    half = 7 * (t + field.scale)
    axis = field.target.mean.mean() + torch.linspace(-half, half, 128, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    step = float(axis[1] - axis[0])
    assert float(field.log_prob(points, t).exp().sum()) * step**2 == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("name", "factor"), [("ring8", 100), ("bimodal1d", 100), ("digits-gmm10", 1000)])
@pytest.mark.parametrize("path_name", ["edm", "vp", "rectified_flow"])
def test_likelihood_follows_the_flow(name, factor, path_name):
    """log p_u(x_u) - log p_t(x_t) = - integral of div v, both integrated together at rtol 1e-10."""
    field = diffode.exact_field(name, path_name)
    path, rtol = field.path, 1e-10
    start, stop = path.time_from_rho(20.0), path.time_from_rho(0.05)
    x = field.marginal(2, start, generator=4)

    def slope(log_snr, state):
        t = path.time_from_log_snr(float(log_snr))
        # dt/dlambda = -2 sigma^2/g^2: the log-SNR falls at the rate g^2/(2 sigma^2).
        rate = -2 * path.sigma(t) ** 2 / path.diffusion(t) ** 2
        points = torch.from_numpy(state[: x.numel()]).reshape(x.shape)
        return rate * torch.cat([field.velocity(points, t).reshape(-1), -field.divergence(points, t)]).numpy()

    begin = torch.cat([x.reshape(-1), field.log_prob(x, start)]).numpy()
    span = path.log_snr(start), path.log_snr(stop)
    end = solve_ivp(slope, span, begin, method="DOP853", rtol=rtol, atol=rtol * 1e-2).y[:, -1]
    points = torch.from_numpy(end[: x.numel()]).reshape(x.shape)
    exact = field.log_prob(points, stop)
    error = (torch.from_numpy(end[x.numel() :]) - exact).abs() / exact.abs().clamp(min=1)
    assert float(error.max()) < factor * rtol


def test_the_score_jacobian_is_symmetric():
    field = diffode.exact_field("digits-gmm10", "edm")
    x = field.marginal(1, 0.5, generator=3)
    jacobian = torch.autograd.functional.jacobian(lambda y: field.score(y[None], 0.5)[0], x[0])
    assert (jacobian - jacobian.T).abs().max() < 1e-12 * jacobian.abs().max()
    trace = target_divergence(field, x, 0.5)
    assert float(jacobian.trace()) == pytest.approx(float(trace), rel=1e-11)


def target_divergence(field, x, t):
    return field.target.noised_score_divergence(x, field.path.alpha(t), field.path.sigma(t))


def test_posterior_covariance_is_positive_semi_definite():
    """(sigma^2/alpha^2)(I + sigma^2 grad score)."""
    field = diffode.exact_field("digits-empirical", "vp")
    for rho in (3.0, 0.5):
        t = field.path.time_from_rho(rho)
        x = field.marginal(1, t, generator=8)
        jacobian = torch.autograd.functional.jacobian(lambda y: field.score(y[None], t)[0], x[0])  # noqa: B023
        covariance = torch.eye(64, dtype=torch.float64) + field.path.sigma(t) ** 2 * jacobian
        assert torch.linalg.eigvalsh((covariance + covariance.T) / 2).min() > -1e-10


def test_one_component_has_an_affine_field():
    field = diffode.exact_field("gauss64-powerlaw", "vp")
    x, y = field.marginal(8, 0.3, generator=1), field.marginal(8, 0.3, generator=2)
    middle = field.velocity((x + y) / 2, 0.3)
    assert torch.allclose(middle, (field.velocity(x, 0.3) + field.velocity(y, 0.3)) / 2, rtol=1e-12, atol=1e-13)


def test_hutchinson_over_all_signs_is_the_divergence():
    field = diffode.exact_field("pinwheel", "edm")
    x = field.marginal(6, 0.4, generator=1)
    total = 0
    for signs in np.ndindex(2, 2):
        e = (2 * torch.tensor(signs, dtype=torch.float64) - 1).expand_as(x)
        point = x.clone().requires_grad_(True)
        (pulled,) = torch.autograd.grad((field.velocity(point, 0.4) * e).sum(), point)
        total = total + (e * pulled).sum(1) / 4
    assert torch.allclose(total, field.divergence(x, 0.4), rtol=1e-11)


def test_the_divergence_keeps_its_digits_far_out(target):
    """Far from all data one component decides, and the Laplacian is -tr S_k^-1: the squares must not cancel."""
    if target.is_discrete:
        return
    field = diffode.exact_field(target, "edm")
    x = 1e6 * field.scale * torch.ones(1, target.dim, dtype=torch.float64)
    traces = target.components.spectral_sum(lambda c: 1 / (c[..., None] + 0.25))[:, 0]
    k = int(target.responsibilities(x, 1.0, 0.5).argmax())
    assert float(target.noised_score_divergence(x, 1.0, 0.5)) == pytest.approx(-float(traces[k]), rel=1e-6)
