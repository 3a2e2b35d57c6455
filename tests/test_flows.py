"""The exact flow as a differentiable map: values of references, derivatives that obey the identities of a flow."""

import math

import numpy as np
import pytest
import torch

import diffode
from diffode import Field
from diffode.errors import ArgumentError, FieldError

KINDS = {"gauss2d": "closed-form", "bimodal1d": "quantile", "line16": "quantile", "ring8": "dop853"}
CASES = [(name, path) for name in KINDS for path in ("edm", "vp", "rectified_flow")]


def between(name, path, count=3, seed=5):
    """A field, points there at a middle time, that time, and one nearer to the data."""
    field = diffode.exact_field(name, path)
    s, t = (field.path.time_from_rho(rho * field.scale) for rho in (2.0, 0.3))
    return field, points_at(field, s, count, seed), s, t


def points_at(field, t, count, seed):
    data = field.target.sample(count, generator=seed)
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return field.path.alpha(t) * data + field.path.sigma(t) * noise


@pytest.mark.parametrize(("name", "path"), CASES)
def test_the_map_gives_what_references_give_and_rows_of_their_own_times_too(name, path):
    field, x, s, t = between(name, path)
    flow = diffode.flow(field)
    true = diffode.reference(field, x, s, t)
    assert true.method == KINDS[name]
    assert torch.equal(flow(x, s, t), true.x)
    start = torch.tensor([s, s, 0.5 * (s + t)], dtype=torch.float64)
    stop = torch.tensor([t, s, t], dtype=torch.float64)
    rows = flow(x, start, stop)
    torch.testing.assert_close(rows[1], x[1], rtol=0, atol=1e-14)
    found = flow.reference(x, start, stop)
    torch.testing.assert_close(rows, found.x, rtol=0, atol=1e-8)
    for i in range(3):
        alone = diffode.reference(field, x[i : i + 1], float(start[i]), float(stop[i]))
        torch.testing.assert_close(found.x[i], alone.x[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "path"), [
    pytest.param(*case, marks=pytest.mark.slow) if case in (("ring8", "vp"), ("ring8", "rectified_flow")) else case
    for case in CASES
])  # fmt: skip
def test_derivatives_are_those_of_differences_of_references(name, path):
    field, x, s, t = between(name, path)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_(True)
    s_rows, t_rows = (torch.full((3,), time, dtype=torch.float64, requires_grad=True) for time in (s, t))
    by_x, by_s, by_t = torch.autograd.grad((weights * diffode.flow(field, 1e-12)(x, s_rows, t_rows)).sum(), (x, s_rows, t_rows))

    def value(points, begin, end):
        return (weights * diffode.reference(field, points, begin, end, 1e-13, use_cache=False).x).flatten(1).sum(1)

    h = 1e-4
    x = x.detach()
    for i in range(x.shape[1] if x.shape[1] < 4 else 2):
        shift = torch.zeros_like(x)
        shift[:, i] = h * field.scale
        slope = (value(x + shift, s, t) - value(x - shift, s, t)) / (2 * h * field.scale)
        torch.testing.assert_close(by_x[:, i], slope, rtol=1e-5, atol=1e-6)
    for found, move in ((by_s, lambda e: value(x, s + e, t)), (by_t, lambda e: value(x, s, t + e))):
        step = h * min(s, t, 1 - max(s, t) if max(s, t) < 1 else math.inf)
        torch.testing.assert_close(found, (move(step) - move(-step)) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("name", ["gauss2d", "bimodal1d", "ring8", "moons"])
def test_the_determinant_of_the_derivative_is_the_change_of_density(name, path):
    """log |det D Phi| = log p_s(x) - log p_t(Phi): the flow carries the law of one time to that of the other."""
    field, x, s, t = between(name, path, 4)
    flow = diffode.flow(field, 1e-11)
    dim = x.shape[1]
    copies = x.repeat_interleave(dim, 0).requires_grad_(True)
    ends = flow(copies, s, t)
    (rows,) = torch.autograd.grad((ends * torch.eye(dim, dtype=torch.float64).repeat(len(x), 1)).sum(), copies)
    determinant = torch.linalg.slogdet(rows.reshape(len(x), dim, dim)).logabsdet
    change = field.log_prob(x, s) - field.log_prob(ends.detach()[::dim], t)
    torch.testing.assert_close(determinant, change, rtol=0, atol=1e-7)


def test_a_flow_in_two_parts_is_the_flow_and_so_are_its_derivatives():
    field, x, s, t = between("ring8", "vp")
    flow, middle = diffode.flow(field, 1e-12), 0.5 * (s + t)
    x.requires_grad_(True)
    whole, parts = flow(x, s, t), flow(flow(x, s, middle), middle, t)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)
    one, two = (torch.autograd.grad(ends.square().sum(), x)[0] for ends in (whole, parts))
    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


def test_the_derivative_of_a_quantile_map_is_exact_far_out():
    """dy/dx = p_s(x)/p_t(y), fifty standard deviations out too, where both densities are below the least number."""
    field = diffode.exact_field("bimodal1d", "edm")
    x = torch.tensor([[-100.0], [-60.0], [0.1], [60.0], [100.0]], dtype=torch.float64, requires_grad=True)
    y = diffode.flow(field)(x, 2.0, 0.5)
    (found,) = torch.autograd.grad(y.sum(), x)
    wanted = (field.log_prob(x.detach(), 2.0) - field.log_prob(y.detach(), 0.5)).exp()
    torch.testing.assert_close(found[:, 0], wanted, rtol=1e-10, atol=0)


def test_only_a_gaussian_flow_is_differentiable_twice():
    field, x, s, t = between("gauss2d", "vp")
    time = torch.full((3,), t, dtype=torch.float64, requires_grad=True)
    (speed,) = torch.autograd.grad(diffode.flow(field)(x, s, time).sum(), time, create_graph=True)
    (bend,) = torch.autograd.grad(speed.sum(), time)
    h = 1e-4
    plus, middle, minus = (diffode.reference(field, x, s, t + e).x.sum(1) for e in (h, 0.0, -h))
    torch.testing.assert_close(bend, (plus - 2 * middle + minus) / h**2, rtol=1e-5, atol=1e-5)
    for name in ("bimodal1d", "ring8"):
        field, x, s, t = between(name, "vp")
        x.requires_grad_(True)
        (first,) = torch.autograd.grad(diffode.flow(field)(x, s, t).square().sum(), x, create_graph=True)
        # The product has a derivative by x alone too, beside which the missing one would go unnoticed.
        with pytest.raises(ArgumentError, match="can be differentiated once"):
            torch.autograd.grad((x * first).sum(), x)
        (first,) = torch.autograd.grad(diffode.flow(field)(x, s, t).sum(), x, create_graph=True)
        with pytest.raises(ArgumentError, match="can be differentiated once"):
            torch.autograd.grad((x * first).sum(), x)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *((name, path) for name in ("gauss2d", "bimodal1d") for path in ("edm", "vp", "rectified_flow")),
        # Integration knows the noise level alone; what a path adds to it is added to the closed forms too.
        ("ring8", "edm"),
        *(pytest.param("ring8", path, marks=pytest.mark.slow) for path in ("vp", "rectified_flow")),
    ],
)
def test_rows_may_end_without_noise_and_start_there(name, path):
    field, x, s, t = between(name, path)
    zero = field.path.time_from_rho(0.0)
    flow = diffode.flow(field, 1e-8)
    x.requires_grad_(True)
    ends = flow(x, s, torch.tensor([zero, t, zero], dtype=torch.float64))
    true = diffode.reference(field, x, s, zero)
    torch.testing.assert_close(ends[::2].detach(), true.x[::2], rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(ends.sum(), x)
    near = flow(x, s, field.path.time_from_rho(1e-6 * field.scale))
    (beside,) = torch.autograd.grad(near.sum(), x)
    torch.testing.assert_close(slope[::2], beside[::2], rtol=1e-4, atol=1e-4)
    back = flow(true.x.requires_grad_(True), torch.full((3,), zero, dtype=torch.float64), s)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
    (up,) = torch.autograd.grad(back.sum(), true.x)
    assert bool(torch.isfinite(up).all())


@pytest.mark.parametrize("path", ["rectified_flow:t_max=1", "trigonometric:t_max=1"])
def test_rows_may_start_where_no_data_are_left_and_end_there(path):
    """alpha = 0 at t = 1, where x/alpha is no number."""
    field = diffode.exact_field("ring8", path)
    x, stop = field.prior(2, generator=0), torch.tensor([0.5, 0.3], dtype=torch.float64)
    flow = diffode.flow(field, 1e-9)
    x.requires_grad_(True)
    ends = flow(x, 1.0, stop)
    for i in range(2):
        alone = diffode.reference(field, x[i : i + 1].detach(), 1.0, float(stop[i])).x[0]
        torch.testing.assert_close(ends[i].detach(), alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(flow(ends.detach(), stop, 1.0), x.detach(), rtol=0, atol=1e-5)
    (slope,) = torch.autograd.grad(ends.sum(), x)
    assert bool(torch.isfinite(slope).all())


def test_a_field_of_ones_own_needs_times_for_rows_only_where_rows_have_them():
    exact = diffode.exact_field("ring8", "edm")

    def denoised(x, t):
        return exact.denoised(x, float(t))

    own = Field.from_denoised(denoised, exact.path, scale=exact.scale)
    x = points_at(exact, 2.0, 3, 1).requires_grad_(True)
    found, true = diffode.flow(own)(x, 2.0, 0.5), diffode.flow(exact)(x, 2.0, 0.5)
    torch.testing.assert_close(found, true, rtol=0, atol=1e-8)
    one, two = (torch.autograd.grad(ends.square().sum(), x)[0] for ends in (found, true))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    with pytest.raises(FieldError, match="time for every row"):
        diffode.flow(own)(x, 2.0, torch.tensor([0.5, 0.4, 0.3]))
    assert own.nfe == 0


def test_states_keep_their_shape_and_dtype():
    field = diffode.exact_field("ring8", "edm")
    x = points_at(field, 2.0, 3, 1).float()
    ends = diffode.flow(field)(x, 2.0, torch.tensor([0.5, 0.4, 0.3]))
    assert (ends.dtype, ends.shape) == (torch.float32, x.shape)
    assert diffode.flow(field)(x[:0], 2.0, 0.5).shape == (0, 2)
    assert repr(diffode.flow(field)).startswith("ExactFlow(")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x: (x, 2.0, torch.ones(4)), r"t must be a finite number or a tensor \(3,\) .* of shape \(4,\)"),
        (lambda x: (x, "2", 0.5), "s must be a finite number or a tensor"),
        (lambda x: (x, 2.0, float("nan")), "t must be a finite number"),
        (lambda x: (x, 10**400, 0.5), "s must be a finite number"),
        (lambda x: (x, torch.ones(3, dtype=torch.bool), 0.5), "got torch.bool"),
        (lambda x: (x, 2.0, torch.tensor([0.5, -1.0, 0.5])), "t"),
        (lambda x: (x[:, :1], 2.0, 0.5), "2 numbers a row"),
        (lambda x: (x / 0, 2.0, 0.5), "x must be a finite"),
        (lambda x: (x, True, 0.5), "s must be a finite number"),
    ],
)
def test_wrong_points_and_times_are_named(arguments, message):
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match=message):
        diffode.flow(field)(*arguments(torch.ones(3, 2, dtype=torch.float64)))
    with pytest.raises(ArgumentError, match="tolerance must lie"):
        diffode.flow(field, 1.0)
    with pytest.raises(ArgumentError, match="field must be a diffode field, got str"):
        diffode.flow("ring8")


def test_the_former_name_says_what_it_is_called_now():
    with pytest.warns(DeprecationWarning, match="is diffode.flows.reference now"):
        from diffode.references import reference
    assert reference is diffode.reference
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        diffode.references.other  # noqa: B018


@pytest.mark.parametrize("path", ["vp", "vp_cosine", "edm", "rectified_flow"])
@pytest.mark.parametrize("name", ["gauss1d", "gauss2d", "bimodal1d", "line16"])
def test_time_derivatives_are_the_velocity_at_no_noise_too(name, path):
    """sigma' is infinite at 0 on variance preserving paths, (sigma^2)' is not."""
    field, x, s, _ = between(name, path)
    zero = field.path.time_from_rho(0.0)
    flow, t = diffode.flow(field), torch.tensor([zero, 0.5 * s, zero], dtype=torch.float64, requires_grad=True)
    ends = flow(x, s, t)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * ends).sum(), t)
    speed = field.velocity(ends.detach(), t.detach())
    torch.testing.assert_close(found, (weights * speed).sum(1), rtol=1e-9, atol=1e-9)
    start, x0 = torch.full((3,), zero, dtype=torch.float64, requires_grad=True), ends.detach()[::2].repeat(2, 1)[:3]
    x0.requires_grad_(True)
    by_x, by_s = torch.autograd.grad((weights * flow(x0, start, s)).sum(), (x0, start))
    expected = -(by_x * field.velocity(x0.detach(), start.detach())).sum(1)
    torch.testing.assert_close(by_s, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hidden", [torch.no_grad(), torch.enable_grad()], ids=["no_grad", "detached"])
def test_a_field_that_hides_its_gradient_is_named(hidden):
    network = torch.nn.Linear(2, 2).double()

    def velocity(x, t):
        with hidden:
            return network(x.detach())

    field = Field.from_velocity(velocity, "rectified_flow")
    x = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    for t in (0.1, torch.tensor([0.1, 0.2])):
        with pytest.raises(FieldError, match="can't be differentiated"):
            diffode.flow(field)(x, 0.9, t).sum().backward()


def test_numbers_of_other_kinds_are_times_and_no_rows_have_derivatives():
    field = diffode.exact_field("ring8", "edm")
    x, flow = points_at(field, 2.0, 3, 1), diffode.flow(field)
    for one in (2, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor([2, 2, 2])):
        torch.testing.assert_close(flow(x, one, 0.5), flow(x, 2.0, 0.5), rtol=0, atol=1e-8)
    s = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    flow(x[:0], s, 0.5).sum().backward()
    assert float(s.grad) == 0


def test_what_a_field_raises_is_not_laid_to_its_times():
    def velocity(x, t):
        raise ValueError("no network today")

    x = torch.ones(2, 2, dtype=torch.float64)
    for probe in (True, False):
        field = Field.from_velocity(velocity, "rectified_flow", probe=probe)
        for t in (0.1, torch.tensor([0.1, 0.2])):
            with pytest.raises(FieldError, match=r"can't be called .* ValueError: no network today"):
                diffode.flow(field)(x, 0.9, t)
        with pytest.raises(FieldError, match=r"in float64: ValueError: no network today; .* net\(x.float\(\), t\)"):
            diffode.reference(field, x, 0.9, 0.1)
