"""Guided fields: the convention of the weight, each kind against its paper's formula, views, counts and refusals."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, FieldError, UnknownNameError
from diffode.fields import GuidedField, conversion
from diffode.fields.guidance import GridWeight, Guidance, Linear, Weight

RING = diffode.targets.get("ring8")
VIEWS = ("velocity", "noise", "denoised", "score")


def pair(path="edm", label="three"):
    return diffode.exact_field(RING.given(label), path), diffode.exact_field(RING, path)


def points(field, t, n=5):
    return field.marginal(n, t, generator=2)


def test_weight_0_is_the_unconditional_field_and_weight_1_the_conditional_one():
    one, other = pair()
    x = points(one, 2.0)
    for view in VIEWS:
        assert torch.equal(diffode.guide(one, other, 1.0).predict(view, x, 2.0), one.predict(view, x, 2.0))
        assert torch.equal(diffode.guide(one, other, 0.0).predict(view, x, 2.0), other.predict(view, x, 2.0))
    for kind in ("rescaled", "projected"):
        field = diffode.guide(one, other, 1.0, kind=kind)
        assert torch.equal(field.denoised(x, 2.0), one.denoised(x, 2.0))
        # Next to 1 the general formula is used, and must lead there.
        near = diffode.guide(one, other, 1 + 1e-9, kind=kind).denoised(x, 2.0)
        assert float((near - one.denoised(x, 2.0)).abs().max()) < 1e-7


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
def test_guidance_is_the_same_combination_in_every_view(path):
    """Score: (1 - w) grad log p + w grad log p(.|c), that is the score of the tilted density at that noise level."""
    one, other = pair(path)
    t = one.path.time_from_rho(1.3)
    x, weight = points(one, t), 4.5
    field = diffode.guide(one, other, weight)
    for view in VIEWS:
        expected = (1 - weight) * other.predict(view, x, t) + weight * one.predict(view, x, t)
        assert float((field.predict(view, x, t) - expected).abs().max()) < 1e-11
    point = x.clone().requires_grad_(True)
    tilted = weight * one.log_prob(point, t) + (1 - weight) * other.log_prob(point, t)
    (slope,) = torch.autograd.grad(tilted.sum(), point)
    assert float((field.score(x, t) - slope).abs().max()) < 1e-10


def test_views_are_those_of_the_guided_denoiser_for_every_kind():
    one, other = pair("vp")
    t = one.path.time_from_rho(0.8)
    x = points(one, t)
    for options in ({"kind": "projected", "eta": 0.3}, {"kind": "rescaled"}, {"kind": "rescaled", "view": "velocity"}):
        field = diffode.guide(one, other, 6.0, **options)
        denoised = field.denoised(x, t)
        for view in VIEWS:
            of_x, of_denoised = conversion(field.path, "denoised", view, t)
            assert float((field.predict(view, x, t) - of_x * x - of_denoised * denoised).abs().max()) < 1e-10


def test_rescaled_guidance_has_the_deviation_of_the_conditional_answer():
    """arXiv 2305.08891, section 3.4: x_cfg std(pos)/std(cfg), mixed with x_cfg by phi, on the network's own prediction."""
    target = diffode.targets.get("digits-gmm10")
    one, other = (diffode.exact_field(law, "vp") for law in (target.given(3), target))
    x, t, weight = points(one, 0.5), 0.5, 7.5
    for view in ("noise", "velocity", "denoised"):
        positive, negative = one.predict(view, x, t), other.predict(view, x, t)
        plain = negative + weight * (positive - negative)
        for phi in (0.0, 0.7, 1.0):
            found = diffode.guide(one, other, weight, kind="rescaled", phi=phi, view=view).predict(view, x, t)
            rescaled = plain * (positive.std(dim=1, keepdim=True) / plain.std(dim=1, keepdim=True))
            assert float((found - (phi * rescaled + (1 - phi) * plain)).abs().max()) < 1e-11
        assert float((found.std(1) - positive.std(1)).abs().max()) < 1e-11


def test_projected_guidance_moves_across_the_conditional_answer_only():
    """arXiv 2410.02416, written as there with a projection on the normalised conditional prediction."""
    one, other = pair()
    x, t, weight = points(one, 1.0, 9), 1.0, 5.0
    conditional, gap = one.denoised(x, t), one.denoised(x, t) - other.denoised(x, t)
    moved = diffode.guide(one, other, weight, kind="projected").denoised(x, t) - conditional
    assert float((moved * conditional).sum(1).abs().max()) < 1e-10
    unit = torch.nn.functional.normalize(conditional, dim=1)
    for eta, norm in ((0.0, math.inf), (0.4, math.inf), (1.0, math.inf), (0.4, 0.05)):
        short = gap * torch.minimum(torch.ones(9, 1).double(), norm / gap.norm(dim=1, keepdim=True))
        parallel = (short * unit).sum(1, keepdim=True) * unit
        expected = conditional + (weight - 1) * (short - parallel + eta * parallel)
        found = diffode.guide(one, other, weight, kind="projected", eta=eta, norm=norm).denoised(x, t)
        assert float((found - expected).abs().max()) < 1e-11
    plain = diffode.guide(one, other, weight).denoised(x, t)
    assert float((diffode.guide(one, other, weight, kind="projected", eta=1.0).denoised(x, t) - plain).abs().max()) < 1e-11


def test_autoguidance_by_blurred_data_is_guidance_by_the_field_of_that_law():
    one, _ = pair()
    weak = diffode.exact_field(RING.given("three").blurred(0.3 * one.scale), "edm")
    x = points(one, 0.5)
    found = diffode.guide(one, weight=2.5, kind="auto", blur=0.3).denoised(x, 0.5)
    expected = weak.denoised(x, 0.5) + 2.5 * (one.denoised(x, 0.5) - weak.denoised(x, 0.5))
    assert float((found - expected).abs().max()) < 1e-12
    assert torch.equal(
        diffode.guide(one, weak, 2.5, kind="auto").denoised(x, 0.5), diffode.guide(one, weak, 2.5).denoised(x, 0.5)
    )


def test_weights_change_with_the_noise_level_and_rows_may_have_their_own():
    one, other = pair("vp")
    path = one.path
    x = one.marginal(6, 0.5, generator=1)
    levels = [20.0, 3.0, 2.999, 0.5, 0.2999, 0.01]
    times = torch.tensor([path.time_from_rho(level) for level in levels], dtype=torch.float64)
    for weight, interval, expected in (
        (4.0, (0.3, 3.0), [1, 4, 4, 4, 1, 1]),
        (lambda level: 2 + level, None, [2 + level for level in levels]),
        ({3.0: 5.0, 0.3: 1.0}, None, [5, 5, None, None, 1, 1]),
    ):
        field = diffode.guide(one, other, weight, interval=interval)
        found = field.denoised(x, times)
        for row, (time, factor) in enumerate(zip(times.tolist(), expected, strict=True)):
            alone = field.denoised(x[row : row + 1], time)
            assert float((found[row] - alone[0]).abs().max()) < 1e-10
            if factor is not None and levels[row] != 3.0:
                base = other.denoised(x[row : row + 1], time)
                mixed = base + factor * (one.denoised(x[row : row + 1], time) - base)
                assert float((mixed - alone).abs().max()) < 1e-10
    table = Weight({3.0: 5.0, 0.3: 1.0})
    assert table.at(math.sqrt(0.9)) == pytest.approx(3.0, abs=1e-12)
    assert Weight({9.0: 5.0, 3.0: 4.0, 0.3: 1.0, 0.01: 2.0}, 0.1, 4.0).levels == (4.0, 3.0, 0.3, 0.1)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("low=0.5", 0.5, math.inf), ("high=4", 0, 4), ("low=0.5,high=4", 0.5, 4), ("eta=0.5,kind=projected", 0, math.inf)],
)
def test_a_text_says_one_end_of_the_interval_or_both(text, low, high):
    weight = Guidance.read(f"label=three,weight=3,{text}").field("ring8", "edm").weight
    assert (weight.low, weight.high) == (low, high)


def test_evaluations_count_the_calls_that_are_made():
    """Two where both networks are asked; one outside the interval and at weights 0 and 1, also in a run's own count."""
    one, other = pair()
    x = one.prior(3, generator=0)
    assert [diffode.guide(one, other, weight).calls for weight in (0.0, 1.0, 2.0)] == [1, 1, 2]
    field = diffode.guide(one, other, 3.0, interval=(0.5, 10.0))
    grid = [80.0, 20.0, 5.0, 1.0, 0.1, 0.002]
    solution = diffode.solve(field, x, solver="ddim", grid=grid)
    # Levels 80, 20 and 0.1 lie outside: one call each.
    assert (solution.nfe, field.nfe, one.nfe, other.nfe) == (7, 7, 5, 2)
    with field.uncounted():
        field.denoised(x, 1.0)
    assert (field.nfe, one.nfe, other.nfe) == (7, 5, 2)
    # A budget takes every evaluation for both.
    assert len(diffode.solve(field, x, solver="ddim", nfe=16).times) == 9


def test_guided_fields_are_guided_again_and_keep_gradients_and_dtypes():
    one, other = pair()
    twice = diffode.guide(diffode.guide(one, other, 3.0), one, 0.5)
    x = points(one, 1.0)
    expected = (0.5 * one.denoised(x, 1.0)) + 0.5 * diffode.guide(one, other, 3.0).denoised(x, 1.0)
    assert float((twice.denoised(x, 1.0) - expected).abs().max()) < 1e-12
    assert twice.calls == 3
    # Outside the interval of the inner field one network is spared.
    inner = diffode.guide(one, other, 3.0, interval=(2.0, 9.0))
    outer = diffode.guide(inner, one, 0.5)
    with outer.counted() as spent:
        outer.denoised(x, 1.0)
    assert (spent.calls, inner.nfe) == (2, 1)
    for kind in ("cfg", "projected", "rescaled"):
        field = diffode.guide(one, other, 3.0, kind=kind)
        assert field.denoised(x.float(), 1.0).dtype == torch.float32
        field.check_gradient(x, 1.0)
    spread = diffode.guide(one, other, 3.0).divergence(x, 1.0)
    expected = 3.0 * one.divergence(x, 1.0) - 2.0 * other.divergence(x, 1.0)
    assert float((spread - expected).abs().max()) < 1e-9


def test_adapters_name_the_same_field():
    one, other = pair()
    field = adapters.guided(one, other, 2.0)
    assert isinstance(field, GuidedField)
    assert isinstance(field.rule, Linear)
    assert field.members == (one, other)


@pytest.mark.parametrize("path", ["edm", "vp"])
def test_cfg_plus_plus_is_ddim_with_a_weight_for_each_step(path):
    """The loop of arXiv 2406.08070, algorithm 2: the guided denoised point, renoised by the unconditional noise."""
    one, other = pair(path)
    on, factor = one.path, 0.6
    times = diffode.grids.get("karras", on, 9).tolist()
    x = on.prior((4, 2), generator=3)
    field = diffode.guide(one, other, factor, kind="cfg++", grid=times)
    found = diffode.solve(field, x, solver="ddim", grid=times)
    point = x
    for begin, end in itertools.pairwise(times):
        base, noise = other.denoised(point, begin), other.noise(point, begin)
        clean = base + factor * (one.denoised(point, begin) - base)
        point = on.alpha(end) * clean + on.sigma(end) * noise
    assert float((found.x - point).abs().max()) < 1e-11 * float(x.abs().max())
    assert found.nfe == 18
    weights = [weight for _, weight in GridWeight.on([4.0, 3.9, 3.8], factor).rising]
    # Ten times finer steps have about ten times the weight: there is no limit.
    assert min(weights) > 20
    with pytest.raises(FieldError, match="begins none"):
        diffode.solve(field, x, solver="edm_heun", grid=[times[0], 0.5 * (times[0] + times[1]), times[1]])
    with pytest.raises(ArgumentError, match="no exact flow"):
        diffode.reference(field, x, times[0], times[-1])


def test_wrong_arguments_are_named():
    one, other = pair()
    vp = diffode.exact_field(RING, "vp")
    ode = diffode.Field.from_velocity(lambda x, t: -x)
    line = diffode.exact_field(diffode.targets.get("bimodal1d").given("left"), "edm")
    cases = (
        (lambda: diffode.guide(one, vp, 2.0), "on the same path"),
        (lambda: diffode.guide(one, line, 2.0), "as many coordinates"),
        (lambda: diffode.guide(one, diffode.exact_field(RING, "edm", "student:dof=8"), 2.0), "same source"),
        (lambda: diffode.guide(one, None, 2.0), "unconditional must be a diffode field"),
        (lambda: diffode.guide(ode, weight=2.0, kind="auto"), "blur needs the exact field"),
        (lambda: diffode.guide("ring8", other, 2.0), "conditional must be a diffode field, got str"),
        (lambda: diffode.guide(one, other, float("nan")), "weight"),
        (lambda: diffode.guide(one, other, True), "weight"),
        (lambda: diffode.guide(one, other, {1.0: 2.0}), "two entries"),
        (lambda: diffode.guide(one, other, {1.0: 2.0, -3.0: 1.0}), "a level of the table"),
        (lambda: diffode.guide(one, other, 2.0, interval=(3.0, 0.3)), "from a lower noise level to a higher one"),
        (lambda: diffode.guide(one, other, 2.0, interval=3.0), "two noise levels"),
        (lambda: diffode.guide(one, other, 2.0, phi=0.5), "phi goes with kind='rescaled'"),
        (lambda: diffode.guide(one, other, 2.0, kind="rescaled", phi=1.5), "phi must be a number in"),
        (lambda: diffode.guide(one, other, 2.0, kind="rescaled", view="x0"), "view must be one of"),
        (lambda: diffode.guide(one, other, 2.0, kind="projected", norm=0.0), "norm must be a positive length"),
        (lambda: diffode.guide(line, line, 2.0, kind="rescaled"), "two coordinates"),
        (lambda: diffode.guide(one, other, 0.5, kind="cfg++"), "needs grid="),
        (lambda: diffode.guide(one, other, 7.5, kind="cfg++", grid=[80.0, 1.0]), "lambda"),
        (lambda: diffode.guide(one, other, 0.5, kind="cfg++", grid=[1.0, 80.0]), "all of which fall"),
        (lambda: diffode.guide(ode, ode, 2.0, interval=(0.1, 1.0)), "without a path"),
        (lambda: diffode.guide(ode, ode, 2.0, kind="projected"), "without a path"),
        (lambda: adapters.guided(one, other, lambda level: 2.0), "diffode.guide takes functions"),
    )  # fmt: skip
    for make, message in cases:
        with pytest.raises(ArgumentError, match=message):
            make()
    with pytest.raises(UnknownNameError, match="did you mean 'rescaled'"):
        diffode.guide(one, other, 2.0, kind="rescale")
    with pytest.raises(FieldError, match="must be finite"):
        diffode.guide(one, other, lambda level: math.inf).denoised(points(one, 1.0), 1.0)
    with pytest.raises(ArgumentError, match="one noise level that gives a number"):
        diffode.guide(one, other, lambda level: "a").denoised(points(one, 1.0), 1.0)


def test_plain_odes_without_a_path_are_guided_by_one_weight():
    down, up = (diffode.Field.from_velocity(lambda x, t, k=k: k * x) for k in (-1.0, 1.0))
    field = diffode.guide(down, up, 0.25)
    x = torch.ones(2, 2, dtype=torch.float64)
    found = diffode.solve(field, x, solver="rk4", grid=torch.linspace(1, 0, 21).tolist()).x
    assert float((found - math.exp(-0.5)).abs().max()) < 1e-6


def test_a_field_without_a_flow_and_a_grid_that_is_none_say_so():
    ring = diffode.targets.get("ring8")
    one, other = (diffode.exact_field(law, "edm") for law in (ring.given("three"), ring))
    field = diffode.guide(one, other, 0.6, kind="cfg++", grid=[80.0, 2.0, 0.1])
    with pytest.raises(ArgumentError, match="has no exact flow"):
        diffode.flow(field)
    for grid in ("karras", [80.0, None, 1.0]):
        with pytest.raises(ArgumentError, match=r"grid of cfg\+\+ must be the times of the run"):
            diffode.guide(one, other, 0.6, kind="cfg++", grid=grid)
