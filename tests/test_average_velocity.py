"""The average velocity of an exact flow: no digits lost near t = s, and the identities that flow maps are trained by."""

import math

import pytest
import torch

import diffode
from diffode.flows.mean_rates import _of_any, mean_rates, sinc
from diffode.targets import GaussianMixture

PATHS = ("edm", "rectified_flow", "trigonometric", "vp", "vp_cosine", "sub_vp")
#: A mixture with steep boundaries between its modes, whose flow is a quantile map.
LINE = GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[0.16], [0.36]])


def gaussian(lam, path):
    return diffode.exact_field(GaussianMixture([1.0], [[0.7]], [[lam]]), path)


def trial(field, count, seed, most=1.0):
    """Points of the field's law at times s, times s and t of either order with |log s/t| up to ``most`` of the range."""
    path, made = field.path, torch.Generator().manual_seed(seed)
    share = torch.rand(3, count, generator=made, dtype=torch.float64)
    low, high = (math.log(t) for t in (path.t_min, path.t_max))
    s = (low + (high - low) * share[0]).exp()
    t = (low + (high - low) * (share[0] + most * (share[1] - share[0]))).exp()
    data = field.target.sample(count, generator=seed + 1)
    noise = torch.randn(data.shape, generator=made, dtype=torch.float64)
    x = path.alpha(s)[:, None] * data + path.sigma(s)[:, None] * noise
    return x.requires_grad_(True), s.requires_grad_(True), t.requires_grad_(True)


def largest(residual, size):
    return float((residual.detach().norm(dim=1) / size.detach()).max())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lam", [0.01, 0.7, 10.0])
def test_the_average_velocity_of_a_gaussian_obeys_every_identity_to_rounding(path, lam):
    field = gaussian(lam, path)
    flow = diffode.flow(field)
    x, s, t = trial(field, 500, 3)
    u, v = flow.average_velocity(x, s, t), field.velocity(x, s)
    by_x, by_s, by_t = torch.autograd.grad(u.sum(), (x, s, t))
    end, gap = flow(x, s, t), (t - s)[:, None]
    v_end = field.velocity(end, t)
    size = u.norm(dim=1) + v.norm(dim=1)
    # A mean is larger than what it is of by rounding of its parts: x/t on paths whose x does not move.
    assert largest(u - v - gap * (by_s[:, None] + v * by_x), size) < 1e-12  # MeanFlow
    assert largest(u + gap * by_t[:, None] - v_end, u.norm(dim=1) + v_end.norm(dim=1)) < 1e-12  # Lagrangian
    assert largest(x + gap * u - end, end.norm(dim=1) + (gap * u).norm(dim=1)) < 1e-12
    r = s + (t - s) * torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, middle = flow.average_velocity(x, s, r), flow(x, s, r)
    rest = flow.average_velocity(middle, r, t)
    both = (r - s)[:, None] * first + (t - r)[:, None] * rest
    assert largest(both - gap * u, x.norm(dim=1) + end.norm(dim=1)) < 1e-12  # semigroup


@pytest.mark.parametrize("path", PATHS)
def test_the_flow_of_a_gaussian_obeys_lagrange_and_euler(path):
    field = gaussian(0.7, path)
    flow = diffode.flow(field)
    x, s, t = trial(field, 500, 4)
    end = flow(x, s, t)
    by_x, by_s, by_t = torch.autograd.grad(end.sum(), (x, s, t))
    v, v_end = field.velocity(x, s), field.velocity(end, t)
    # Where alpha' is large a velocity is a difference of terms of the size of x/t.
    assert largest(by_t[:, None] - v_end, v_end.norm(dim=1) + end.norm(dim=1) / t) < 1e-12
    assert largest(by_s[:, None] + by_x * v, (by_x * v).norm(dim=1) + by_x.norm(dim=1) * x.norm(dim=1) / s) < 1e-12
    assert largest(flow(x, s, s) - x, x.norm(dim=1) + 1) < 1e-14


@pytest.mark.parametrize("name", ["gauss", "line"])
@pytest.mark.parametrize("path", PATHS)
def test_times_a_billionth_apart_lose_nothing(path, name):
    """The quotient loses 1e-7 there; Taylor's u = v + (t - s)/2 D_s v bounds what is left of the average velocity by 1e-8."""
    field = gaussian(0.7, path) if name == "gauss" else diffode.exact_field(LINE, path)
    flow = diffode.flow(field)
    x, s, _ = trial(field, 200, 5)
    x, s = x.detach(), s.detach()
    # A power of two apart in the last digits, so that t - s is what it says.
    t = s - s * 2.0**-30
    gap, v = (t - s)[:, None], field.velocity(x, s)
    size = v.norm(dim=1) + x.norm(dim=1) / s
    quotient = (flow(x, s, t) - x) / gap
    middle = field.velocity(x + gap / 2 * v, (s + t) / 2)  # second order: errs by 1e-18
    assert largest(quotient - middle, size) > 1e-8
    assert largest(flow.average_velocity(x, s, t) - middle, size) < 1e-14
    assert largest(flow.average_velocity(x, s, s) - v, size) < 1e-14


def test_the_first_order_in_the_gap_is_half_the_acceleration():
    """On EDM D_s v = lam/(lam + s^2)^{3/2} (x - m)/sqrt(lam + s^2) in one dimension."""
    lam, s = 0.49, torch.tensor([0.3, 1.0, 5.0], dtype=torch.float64)
    field = gaussian(lam, "edm")
    x = torch.tensor([[0.1], [2.0], [-4.0]], dtype=torch.float64)
    h = 1e-3
    u = diffode.flow(field).average_velocity(x, s, s + h)
    acceleration = lam / (lam + s**2) ** 2 * (x[:, 0] - 0.7)
    torch.testing.assert_close((u - field.velocity(x, s))[:, 0] / (h / 2), acceleration, rtol=2e-3, atol=0)


@pytest.mark.parametrize("path", ["edm", "rectified_flow", "vp"])
def test_the_average_velocity_of_a_line_is_that_of_its_quantile_map(path):
    field = diffode.exact_field(LINE, path)
    flow = diffode.flow(field)
    x, s, t = trial(field, 300, 6)
    u, v, end = flow.average_velocity(x, s, t), field.velocity(x, s), flow(x, s, t)
    by_x, by_s, by_t = torch.autograd.grad(u.sum(), (x, s, t))
    gap, v_end = (t - s)[:, None], field.velocity(end, t)
    size = u.norm(dim=1) + v.norm(dim=1) + x.norm(dim=1) / s
    slope = by_x.norm(dim=1) + 1
    assert largest(u - v - gap * (by_s[:, None] + v * by_x), size * slope) < 1e-9
    assert largest(u + gap * by_t[:, None] - v_end, size + v_end.norm(dim=1) + end.norm(dim=1) / t) < 1e-9
    r = ((s + t) / 2).detach()
    there = flow(flow(x, s, r), r, t)
    stretch = torch.autograd.grad(end.sum(), x)[0].norm(dim=1)
    assert largest(there - end, end.norm(dim=1) + 1 + stretch * x.norm(dim=1)) < 1e-12


def test_the_average_velocity_agrees_on_both_sides_of_where_a_step_takes_the_place_of_the_quotient():
    for name, path, allowed in (("bimodal1d", "edm", 1e-11), ("ring8", "edm", 1e-8), ("ring8", "rectified_flow", 1e-8)):
        field = diffode.exact_field(name, path)
        flow = diffode.flow(field, tolerance=1e-12)
        x, s, _ = trial(field, 40, 7)
        for share in (9e-4, 1.1e-3, 0.019, 0.021):
            t = (s * (1 - share)).detach()
            u = flow.average_velocity(x.detach(), s.detach(), t)
            quotient = (flow(x.detach(), s.detach(), t) - x.detach()) / (t - s.detach())[:, None]
            # A point near 0 is known to the rounding of its mean.
            size = field.velocity(x, s).norm(dim=1) + (x.norm(dim=1) + 1) / s
            assert largest(u - quotient, size) < allowed


def test_the_identities_hold_in_two_dimensions():
    field = diffode.exact_field("ring8", "edm")
    flow = diffode.flow(field, tolerance=1e-12)
    x, s, t = trial(field, 6, 8, most=0.2)
    u, v, end = flow.average_velocity(x, s, t), field.velocity(x, s), flow(x, s, t)
    gap = (t - s)[:, None]
    # D_s u from one coordinate of u at a time.
    total = torch.zeros_like(u)
    for k in range(2):
        by_x, by_s = torch.autograd.grad(u[:, k].sum(), (x, s), retain_graph=True)
        total[:, k] = by_s + (by_x * v).sum(1)
    size = u.norm(dim=1) + v.norm(dim=1) + x.norm(dim=1) / s
    assert largest(u - v - gap * total, size) < 1e-6
    h = 1e-4 * t.detach()
    later = [flow(x.detach(), s.detach(), t.detach() + k * h) for k in (-2, -1, 1, 2)]
    slope = (later[0] - 8 * later[1] + 8 * later[2] - later[3]) / (12 * h[:, None])
    v_end = field.velocity(end, t)
    assert largest(slope - v_end, v_end.norm(dim=1) + end.norm(dim=1) / t) < 1e-6
    middle = (s * t).sqrt().detach()
    tight = diffode.flow(field, tolerance=1e-13)
    parts = tight(tight(x.detach(), s.detach(), middle), middle, t.detach())
    assert largest(parts - tight(x.detach(), s.detach(), t.detach()), x.norm(dim=1) + 1) < 1e-11


def test_a_point_keeps_its_shape_and_dtype_and_a_number_is_a_time():
    field = diffode.exact_field("gauss2d", "edm")
    flow = diffode.flow(field)
    x = field.prior(3, generator=0)
    u = flow.average_velocity(x.float(), 80.0, 0.5)
    assert (u.dtype, u.shape) == (torch.float32, x.shape)
    torch.testing.assert_close(u.double(), (flow(x, 80.0, 0.5) - x) / (0.5 - 80.0), rtol=1e-5, atol=1e-6)
    own = diffode.Field.from_velocity(lambda x, t: -x * t, probe=False)
    near = diffode.flow(own).average_velocity(torch.ones(2, 1, dtype=torch.float64), 1.0, 1.0 + 1e-9)
    torch.testing.assert_close(near, torch.full((2, 1), -1.0, dtype=torch.float64), rtol=1e-9, atol=0)
    with pytest.raises(diffode.errors.ArgumentError, match="t must be"):
        flow.average_velocity(x, 80.0, math.nan)


@pytest.mark.parametrize("name", PATHS)
def test_closed_forms_of_mean_rates_are_means_of_the_derivatives(name):
    path = diffode.paths.get(name)
    s, t = torch.tensor([[0.9, 0.5, 0.03, 0.5], [0.1, 0.5 + 1e-7, 0.029, 0.5]], dtype=torch.float64)
    for closed, mean in zip(mean_rates(path, s, t), _of_any(path, s, t), strict=True):
        torch.testing.assert_close(closed, mean, rtol=1e-13, atol=1e-14)


def test_a_subclass_with_another_alpha_has_its_own_mean_rates():
    class Half(type(diffode.paths.get("vp"))):
        def alpha(self, t):
            return super().alpha(t) / 2

        def alpha_derivative(self, t):
            return super().alpha_derivative(t) / 2

    s, t = torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    path, whole = Half(), diffode.paths.get("vp")
    torch.testing.assert_close(mean_rates(path, s, t)[0], mean_rates(whole, s, t)[0] / 2)


def test_sinc_keeps_its_derivative_near_0():
    z = torch.tensor([0.0, 1e-9, 1e-4, 0.49, 0.51, 3.0], dtype=torch.float64, requires_grad=True)
    value = sinc(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    far = z.detach()[3:]
    torch.testing.assert_close(value[3:], far.sin() / far, rtol=1e-14, atol=0)
    torch.testing.assert_close(slope[3:], far.cos() / far - far.sin() / far**2, rtol=1e-13, atol=0)
    torch.testing.assert_close(slope[:3], -z.detach()[:3] / 3, rtol=1e-8, atol=0)
