"""Bridges between mixtures: the equation of continuity, laws along the flow, processes in closed form, refusals."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from mixed_bridges import coupled, mixture, own_bridge, skew, turning

import diffode
from diffode import bridges
from diffode.errors import ArgumentError, CapabilityError, FieldError
from diffode.fields import Field, RotatedField
from diffode.numerics.orders import fit_order


def residual(field, t, count=24, velocity=None):
    """|d_t log p + div v + v . grad log p| over its terms: the density by autograd, the velocity's divergence by autograd."""
    x = field.marginal(count, t, generator=5).requires_grad_(True)
    time = torch.full((count,), t, dtype=torch.float64, requires_grad=True)
    rate, gradient = torch.autograd.grad(field.log_prob(x, time).sum(), (time, x))
    speed = (field.velocity if velocity is None else velocity)(x, t)
    rows = [torch.autograd.grad(speed[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
    parts = rate, sum(rows), (speed * gradient).sum(1)
    size = rate.abs() + sum(row.abs() for row in rows) + (speed * gradient).abs().sum(1)
    return float((sum(parts).abs() / size).detach().max())


@pytest.mark.parametrize("t", [0.013, 0.37, 0.81, 0.994])
@pytest.mark.parametrize("gauge", ["symmetric", "interpolant"])
def test_the_velocity_carries_the_density_for_matrices_that_turn(gauge, t):
    assert residual(own_bridge(gauge), t) < 1e-12


@pytest.mark.parametrize("t", [0.004, 0.5, 0.98])
@pytest.mark.parametrize(
    "spec",
    ["linear", "linear:sigma=0.7", "trigonometric", "foellmer:sigma=1.3", "langevin", "blurring", "blurring:shape=2x2,blur=3"],
)
def test_the_velocity_carries_the_density_of_every_coefficients(spec, t):
    bridge = diffode.Bridge("independent", spec, data=mixture(3, 4, 20), source=mixture(2, 4, 30))
    assert residual(bridge, t) < 1e-12


@pytest.mark.parametrize("coupling", ["independent", "optimal"])
def test_the_velocity_carries_the_density_of_every_coupling(coupling):
    assert residual(diffode.Bridge(coupling, data="moons", source="ring8"), 0.4) < 1e-12


def test_score_and_divergence_are_derivatives():
    bridge = own_bridge()
    x = bridge.marginal(16, 0.3, generator=1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(bridge.log_prob(x, 0.3).sum(), x)
    assert float((gradient - bridge.score(x.detach(), 0.3)).abs().max()) < 1e-12 * float(gradient.abs().max())
    by_passes = Field.divergence(bridge, x.detach(), 0.3)
    assert float((by_passes - bridge.divergence(x.detach(), 0.3)).abs().max()) < 1e-11 * float(by_passes.abs().max())


def test_the_density_is_that_of_the_law_and_of_the_draws():
    bridge = own_bridge()
    law, x = bridge.law(0.6), bridge.marginal(4000, 0.6, generator=2)
    parts = torch.distributions.MultivariateNormal(law.means, law.covariances)
    density = torch.logsumexp(law.weights.log() + parts.log_prob(x[:50, None]), 1)
    assert torch.allclose(density, bridge.log_prob(x[:50], 0.6), atol=1e-12)
    error = (law.covariance.diagonal() / len(x)).sqrt()
    assert float(((x.mean(0) - law.mean) / error).abs().max()) < 4
    assert float((torch.cov(x.T) - law.covariance).abs().max()) < 0.1 * float(law.covariance.abs().max())


def test_log_density_along_the_flow_falls_by_the_divergence_with_order_four():
    bridge = own_bridge()
    x = bridge.marginal(20, 0.9, generator=3)
    start, errors = bridge.log_prob(x, 0.9), []
    for steps in (10, 20, 40):
        h, y, total = -0.8 / steps, x.clone(), torch.zeros(len(x)).double()
        for k in range(steps):
            t = 0.9 + k * h
            one = bridge.velocity(y, t)
            two = bridge.velocity(y + h / 2 * one, t + h / 2)
            three = bridge.velocity(y + h / 2 * two, t + h / 2)
            four = bridge.velocity(y + h * three, t + h)
            rates = [bridge.divergence(y, t)]
            rates += [bridge.divergence(y + h / 2 * slope, t + h / 2) for slope in (one, two)]
            rates.append(bridge.divergence(y + h * three, t + h))
            total += h / 6 * (rates[0] + 2 * rates[1] + 2 * rates[2] + rates[3])
            y = y + h / 6 * (one + 2 * two + 2 * three + four)
        errors.append(float((bridge.log_prob(y, 0.9 + steps * h) - start + total).abs().median()))
    assert math.log2(errors[0] / errors[1]) > 3.3
    assert math.log2(errors[1] / errors[2]) > 3.6


def test_transported_points_have_the_moments_of_the_data():
    bridge = own_bridge()
    x = diffode.solve(bridge, bridge.prior(4000, generator=4), solver="rk4", grid="time_uniform", steps=16).x
    law = bridge.law(0.0)
    errors = (law.covariance.diagonal() / len(x)).sqrt()
    assert float(((x.mean(0) - law.mean) / errors).abs().max()) < 4
    spread = (x - law.mean).square()
    assert float(((spread.mean(0) - law.covariance.diagonal()) / (spread.std(0) / len(x) ** 0.5)).abs().max()) < 4


def test_a_gauge_turns_the_flow_and_leaves_the_law():
    plain, turned = own_bridge(), own_bridge(spin=skew(3, 17))
    x = plain.marginal(8, 0.5, generator=6)
    assert torch.equal(plain.log_prob(x, 0.5), turned.log_prob(x, 0.5))
    assert float((plain.velocity(x, 0.5) - turned.velocity(x, 0.5)).abs().min()) > 1e-3
    assert residual(turned, 0.5) < 1e-12


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_a_rotation_keeps_the_law_and_what_is_not_skew_does_not(t):
    bridge, turn = own_bridge(), skew(3, 18)
    rotated = bridge.rotated(lambda time: (1 + time) * turn)
    assert isinstance(rotated, RotatedField)
    assert residual(rotated, t) < 1e-12
    x = bridge.marginal(8, t, generator=1)
    expected = bridge.velocity(x, t) + (1 + t) * bridge.score(x, t) @ turn.T
    assert torch.allclose(rotated.velocity(x, t), expected, rtol=1e-13)
    times = torch.full((8,), t, dtype=torch.float64)
    assert torch.allclose(rotated.velocity(x, times), expected, rtol=1e-12)
    # The mutant is made by hand, since a J that is not skew is refused.
    wrong = turn + 0.1 * torch.eye(3).double()
    assert residual(bridge, t, velocity=lambda x, t: bridge.velocity(x, t) + bridge.score(x, t) @ wrong.T) > 1e-2
    with pytest.raises(ArgumentError, match="J must be skew"):
        bridge.rotated(wrong)
    with pytest.raises(ArgumentError, match="J must be a real matrix"):
        bridge.rotated(skew(2, 1))
    with pytest.raises(ArgumentError, match="J must be skew"):
        bridge.rotated(lambda time: time * wrong).velocity(x, t)


def test_a_rotated_exact_field_has_its_marginals():
    field = diffode.exact_field("ring8", "vp")
    rotated = field.rotated(torch.tensor([[0.0, 0.3], [-0.3, 0.0]]).double())
    assert residual(rotated, 0.4) < 1e-12
    # Torch and not a kernel computes where a gradient may be wanted.
    x = field.marginal(8, 0.4, generator=0).requires_grad_(True)
    assert float((rotated.velocity(x, 0.4) - field.velocity(x, 0.4)).detach().abs().max()) > 1e-2
    assert rotated.path is None


class TestLangevin:
    """Critically damped Langevin dynamics against the matrix exponential."""

    @pytest.mark.parametrize(("rate", "mass"), [(4.0, 0.25), (1.0, 0.6), (2.5, 2.0)])
    @pytest.mark.parametrize("t", [1e-3, 0.08, 0.6])
    def test_propagator_and_noise_are_those_of_van_loan(self, rate, mass, t):
        process = bridges.Langevin(rate=rate, mass=mass)
        found = process.at(torch.tensor([t], dtype=torch.float64), 2)
        drift, diffusion = process.drift.numpy(), process.diffusion.numpy()
        assert abs(found.of_data[0].numpy() - scipy.linalg.expm(drift * t)).max() < 1e-14
        block = np.block([[-drift, diffusion], [0 * drift, drift.T]])
        whole = scipy.linalg.expm(block * t)
        noise = whole[2:, 2:].T @ whole[:2, 2:]
        # Van Loan's block grows as e^(2u) where the noise is stationary, which costs it as many digits.
        assert abs(found.noise[0].numpy() / noise - 1).max() < 1e-12 * math.exp(2 * process.rate / mass**0.5 * t)
        rate_of_noise = found.gauge[0] + found.gauge[0].T
        lyapunov = drift @ found.noise[0].numpy() + found.noise[0].numpy() @ drift.T + diffusion
        assert abs(rate_of_noise.numpy() - lyapunov).max() < 1e-13 * abs(lyapunov).max()

    def test_noise_keeps_its_digits_at_small_times(self):
        """Sigma_qq = P(3, 2u) is (2u)^3/6 (1 - 3u/2 + ...), which a difference would lose."""
        process, t = bridges.Langevin(), 1e-7
        u = process.rate / process.mass**0.5 * t
        found = float(process.at(torch.tensor([t], dtype=torch.float64), 2).noise[0, 0, 0])
        assert abs(found / ((2 * u) ** 3 / 6 * (1 - 1.5 * u)) - 1) < 1e-9

    def test_the_velocity_is_drift_minus_half_the_diffusion_times_the_score(self):
        bridge = diffode.Bridge(bridges.independent(bridges.phase_space("ring8")), "langevin")
        x = bridge.marginal(16, 0.3, generator=0)
        process, eye = bridge.coefficients, torch.eye(2).double()
        drift, diffusion = (torch.kron(part, eye) for part in (process.drift, process.diffusion))
        expected = x @ drift.T - bridge.score(x, 0.3) @ diffusion.T / 2
        assert float((bridge.velocity(x, 0.3) - expected).abs().max()) < 1e-11 * float(expected.abs().max())

    def test_positions_without_velocities_are_refused(self):
        with pytest.raises(ArgumentError, match="phase_space"):
            diffode.Bridge(bridges.independent("gauss1d"), "langevin")


def test_blurring_fades_each_frequency_at_its_own_pace():
    blur = bridges.Blurring(blur=3.0, least=0.01, shape="2x4")
    waves, squares = blur.basis(8)
    assert torch.allclose(waves.T @ waves, torch.eye(8).double(), atol=1e-14)
    t = torch.tensor([0.3], dtype=torch.float64)
    along = waves.T @ blur.at(t, 8).of_data[0] @ waves
    spread = 3.0**2 / 2 * math.sin(0.15 * math.pi) ** 4
    expected = math.cos(0.15 * math.pi) * (0.99 * (-squares * spread).exp() + 0.01)
    assert torch.allclose(along, torch.diag(expected), atol=1e-14)
    constant = torch.ones(8).double() / 8**0.5
    assert torch.allclose(blur.at(t, 8).of_data[0] @ constant, math.cos(0.15 * math.pi) * constant)
    with pytest.raises(ArgumentError, match="6 pixels, and a row 4 coordinates"):
        diffode.Bridge("independent", "blurring:shape=2x3", data=mixture(2, 4, 1), source=mixture(1, 4, 2))


#: Steps at which a solver's error falls as its order says: those of low order show it later.
STEPS = {"euler": (320, 640, 1280), "heun": (160, 320, 640), "ab:order=2": (160, 320, 640), "rk4": (80, 160, 320)}


class TestSolvers:
    """Solvers in the velocity chart follow a bridge, all others refuse by name."""

    bridge = diffode.Bridge("optimal", data=mixture(1, 3, 40), source=mixture(1, 3, 50))

    @pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("ab:order=2", 2), ("rk4", 4)])
    def test_solvers_have_their_order(self, solver, order):
        bridge = diffode.Bridge("independent", data=mixture(2, 3, 40), source=mixture(1, 3, 50))
        x = bridge.prior(16, generator=0)
        exact = diffode.reference(bridge, x, 1.0, 0.0)
        assert exact.method == "dop853"
        errors = [
            float((diffode.solve(bridge, x, solver=solver, grid="time_uniform", steps=n).x - exact.x).norm(dim=1).median())
            for n in STEPS[solver]
        ]
        assert fit_order(STEPS[solver], errors, 1e-13).slope == pytest.approx(order, abs=0.1)

    def test_straight_lines_take_one_step(self):
        """The optimal flow of two Gaussians is x_0 + t (x_1 - x_0): every solver is exact in any number of steps."""
        x = self.bridge.prior(64, generator=1)
        exact = diffode.reference(self.bridge, x, 1.0, 0.0)
        for solver in ("euler", "rk_adaptive", "torchdiffeq:dopri5"):
            options = {"nfe": 1} if solver == "euler" else {}
            found = diffode.solve(self.bridge, x, solver=solver, **options)
            assert float((found.x - exact.x).abs().max()) < 1e-8

    def test_the_exact_flow_and_a_run_upwards(self):
        x = self.bridge.prior(8, generator=2)
        flow = diffode.flow(self.bridge)
        times = torch.linspace(0.2, 0.6, 8, dtype=torch.float64)
        there = flow(x, 1.0, times)
        assert float((flow(there, times, 1.0) - x).abs().max()) < 1e-8
        down = diffode.solve(self.bridge, x, solver="rk4", grid="time_uniform", steps=4, between=(1.0, 0.5))
        assert down.times.tolist() == [1.0, 0.875, 0.75, 0.625, 0.5]
        up = diffode.solve(self.bridge, down.x, solver="rk4", grid="time_uniform", steps=4, between=(1.0, 0.5), upwards=True)
        assert float((up.x - x).abs().max()) < 1e-10

    @pytest.mark.parametrize(
        "solver", ["ddim", "dpmpp:order=2", "unipc", "euler_maruyama", "sde_adaptive", "dpm_adaptive", "universal"]
    )
    def test_solvers_that_need_a_path_refuse_by_name(self, solver):
        with pytest.raises(CapabilityError, match=solver.partition(":")[0]):
            diffode.solve(self.bridge, self.bridge.prior(2, generator=0), solver=solver, nfe=4, generator=0)

    def test_grids_of_noise_levels_are_refused(self):
        with pytest.raises(ArgumentError, match="time_uniform"):
            diffode.solve(self.bridge, self.bridge.prior(2, generator=0), solver="heun", grid="karras", steps=4)


class TestSDE:
    """dx = (v + g g^T score/2) dt + g dw has the law of the flow."""

    @pytest.mark.parametrize("diffusion", [0.8, lambda t: torch.tensor([[0.5, 0.3], [0.0, 1.0 + t]]).double()])
    @pytest.mark.parametrize("times", [(1.0, 0.0), (0.0, 1.0)])
    def test_simulated_points_have_the_moments_of_the_law(self, diffusion, times):
        bridge = diffode.Bridge("independent", "foellmer:sigma=0.5", data=mixture(2, 2, 60), source=mixture(1, 2, 70))
        n, grid = 2000, torch.linspace(*times, 61, dtype=torch.float64).tolist()
        x = bridge.sde(diffusion).simulate(bridge.marginal(n, times[0], generator=1), grid, generator=2)[-1]
        law = bridge.law(times[1])
        assert float(((x.mean(0) - law.mean) / (law.covariance.diagonal() / n).sqrt()).abs().max()) < 5
        assert float((torch.cov(x.T) - law.covariance).abs().max()) < 0.15 * float(law.covariance.abs().max())

    def test_what_is_no_diffusion_is_named(self):
        bridge = TestSolvers.bridge
        for wrong in (-1.0, "a", torch.ones(2), torch.full((3, 3), math.nan)):
            with pytest.raises(ArgumentError, match="diffusion must be"):
                bridge.sde(wrong)
        with pytest.raises(ArgumentError, match="times must rise or fall"):
            bridge.sde(1.0).simulate(bridge.prior(2, generator=0), [1.0, 0.5, 0.7], generator=0)
        with pytest.raises(ArgumentError, match="diffusion must be"):
            bridge.sde(torch.eye(2).double()).drift(bridge.prior(2, generator=0), 0.5)


@pytest.mark.parametrize("t", [-0.1, 1.2, math.nan, "a", True])
def test_times_outside_are_named(t):
    bridge = TestSolvers.bridge
    with pytest.raises(ArgumentError, match="t must be a time of the bridge, from 0"):
        bridge.velocity(bridge.prior(2, generator=0), t)


def test_wrong_points_views_and_rows_are_named():
    bridge = TestSolvers.bridge
    x = bridge.prior(4, generator=0)
    for view in ("noise", "denoised"):
        with pytest.raises(FieldError, match=f"has no {view}"):
            bridge.predict(view, x, 0.5)
    with pytest.raises(ArgumentError, match=r"x must be \(B, 3\)"):
        bridge.velocity(x[:, :2], 0.5)
    with pytest.raises(ArgumentError, match="float32 or float64"):
        bridge.velocity(x.long(), 0.5)
    with pytest.raises(ArgumentError, match="a time for each row"):
        bridge.velocity(x, torch.ones(3).double())
    with pytest.raises(ArgumentError, match="from 0"):
        bridge.velocity(x, torch.tensor([0.1, 0.2, 0.3, 1.1]).double())


def test_rows_with_their_own_times_have_the_answers_of_each_alone():
    bridge = own_bridge()
    x, times = bridge.marginal(6, 0.5, generator=0), torch.linspace(0, 1, 6, dtype=torch.float64)
    together = bridge.velocity(x, times)
    alone = torch.cat([bridge.velocity(x[i : i + 1], float(times[i])) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-11)
    assert bridge.velocity(x.float(), 0.5).dtype == torch.float32


def test_far_points_have_the_affine_field_of_the_nearest_components():
    """Of one pair the velocity is affine at any distance; of several, far away, that of the likeliest pair."""
    one = diffode.Bridge("independent", data=mixture(1, 2, 1), source=mixture(1, 2, 2))
    x = torch.ones(1, 2).double()
    for bridge in (one, diffode.Bridge("independent", data=mixture(2, 2, 1), source=mixture(2, 2, 2))):
        near, far = bridge.velocity(1e12 * x, 0.4) / 1e12, bridge.velocity(1e160 * x, 0.4) / 1e160
        assert torch.allclose(near, far, rtol=1e-9)
    assert torch.allclose(one.velocity(x, 0.4) - one.velocity(0 * x, 0.4), one.velocity(1e160 * x, 0.4) / 1e160, rtol=1e-9)


def test_what_a_simulation_is_given_is_named():
    bridge = diffode.Bridge("independent", data="ring8", source="gauss2d")
    x, sde = bridge.prior(3, generator=0), bridge.sde(1.0)
    for times in (10, "abc", [1.0, "a"]):
        with pytest.raises(ArgumentError, match="times must be a sequence of numbers"):
            sde.simulate(x, times, generator=0)
    with pytest.raises(ArgumentError, match=r"x must be points \(B, D\)"):
        sde.simulate(x.numpy(), [1.0, 0.0], generator=0)
    with pytest.raises(ArgumentError, match=r"diffusion can't be asked at t=1: TypeError"):
        bridge.sde(lambda: 1).simulate(x, [1.0, 0.0], generator=0)
    with pytest.raises(ArgumentError, match=r"diffusion must be \(2, 2\), got \(3, 3\)"):
        bridge.sde(torch.ones(3, 3))
    with pytest.raises(ArgumentError, match="dtype must be a floating-point dtype"):
        bridge.marginal(2, 0.5, generator=0, dtype=torch.int64)


def test_functions_that_leave_torch_or_are_singular_are_named():
    with pytest.raises(ArgumentError, match=r"data (has another derivative|can't be)"):
        bridges.OwnCoefficients(lambda t: 1 - float(t) ** 2, lambda t: t)
    with pytest.raises(ArgumentError, match="source must be a function"):
        bridges.OwnCoefficients(lambda t: 1 - t, 3)
    singular = bridges.OwnCoefficients(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t)))
    bridge = diffode.Bridge("independent", "linear", data=mixture(1, 2, 1), source=mixture(1, 2, 4))
    with pytest.raises(FieldError, match="not finite at t=0"):
        diffode.Bridge(bridge.coupling, singular)
    with pytest.raises(ArgumentError, match="skew must give skew"):
        diffode.Bridge(coupled(), bridges.OwnCoefficients(lambda t: 1 - t, lambda t: t, skew=lambda t: torch.eye(3).double()))
    with pytest.raises(ArgumentError, match="number, a diagonal"):
        diffode.Bridge(coupled(), bridges.OwnCoefficients(lambda t: (1 - t) * torch.eye(2).double(), lambda t: t))


def test_a_law_that_is_singular_on_the_way_is_named():
    """x_0 = -x_1 meet in one point half-way."""
    one = torch.eye(2).double()[None]
    bridge = diffode.Bridge(bridges.explicit([1.0], torch.zeros(1, 2), torch.zeros(1, 2), one, one, -one))
    with pytest.raises(FieldError, match=r"singular at t=0\.5"):
        bridge.velocity(torch.ones(1, 2).double(), 0.5)


def test_the_check_of_the_continuity_equation_takes_a_bridge():
    bridge = own_bridge()
    for field in (bridge, bridge.rotated(skew(3, 18))):
        found = diffode.verify.continuity(field, diffode.verify.typical_points(field, 4))
        assert found.values.max() < 1e-12
    bent = diffode.Bridge(coupled(), turning())
    law = bent._law
    bent._law = lambda t: law(t)._replace(rates=1.01 * law(t).rates)
    assert diffode.verify.continuity(bent, diffode.verify.typical_points(bent, 4)).values.max() > 1e-4
