"""Models of two times of other libraries as our maps: exact ones answer as the flow does, and wrong conventions are named."""

import itertools
import math
import warnings

import pytest
import torch
from two_time_models import GAUSSIAN, MEAN, VARIANCE, average, columns, network, straight

import diffode
from diffode.adapters import from_consistency, from_flow_map_model, from_meanflow, from_shortcut
from diffode.adapters.two_time import FORMS, Labels
from diffode.errors import ArgumentError, ConventionWarning, FieldError
from diffode.solvers.trained.mapped import MapSolver
from diffode.verify import check_map

FIELD = diffode.exact_field(GAUSSIAN, "rectified_flow")
DATA = GAUSSIAN.sample(256, generator=0)


def start(t=1.0, rows=5):
    return diffode.exact_field(GAUSSIAN, "rectified_flow:t_min=0,t_max=1").marginal(rows, t, generator=0)


def told(make):
    """The warning of an adapter that is made, or nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    assert all(one.category is ConventionWarning for one in caught)
    return str(caught[0].message) if caught else ""


def shortcut(steps="length", data_at=1, finest=128):
    def model(x, t, d):
        length = torch.where(d >= math.log2(finest), 0.0, 2.0**-d) if steps == "log2" else d
        if data_at == 1:
            return -average(x, 1 - t, 1 - t - length)
        return average(x, t, t + length)

    return model


@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("span", [1.0, 1000.0])
@pytest.mark.parametrize("form", FORMS)
def test_an_exact_meanflow_is_the_flow_by_its_own_name(form, span, data_at):
    phi = from_meanflow(network(form, data_at, span=span), form, data_at=data_at, span=span)
    for s, t in [(1.0, 0.0), (1.0, 0.3), (0.6, 0.59), (0.4, 0.0), (0.5, 0.5)]:
        x = start(s)
        torch.testing.assert_close(phi(x, s, t), straight(x, s, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["edm", "vp", "trigonometric", "rectified_flow"])
def test_it_runs_on_every_path(path):
    phi = from_meanflow(network(), "t,r")
    field = diffode.exact_field(GAUSSIAN, path)
    x = field.prior(4, generator=0)
    run = diffode.solve(field, x, solver=MapSolver(of=phi), nfe=3)
    torch.testing.assert_close(run.x, diffode.flow(field)(x, field.path.t_max, field.path.t_min), rtol=1e-9, atol=1e-9)
    assert run.nfe == 3
    if path == "vp":
        assert check_map(phi, field, points=16, draws=100).passed


def test_its_times_are_even_in_the_librarys_own_time():
    phi = from_meanflow(network(), "t,r")
    assert phi.times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    edm = phi.on("edm").times(2)
    first, last = 80 / 81, 0.002 / 1.002
    middle = (first + last) / 2
    assert edm == pytest.approx([80.0, middle / (1 - middle), 0.002])


@pytest.mark.parametrize(("steps", "data_at"), [("length", 1), ("log2", 1), ("length", 0)])
def test_an_exact_shortcut_model_is_the_flow(steps, data_at):
    phi = from_shortcut(shortcut(steps, data_at), steps=steps, data_at=data_at)
    x = start()
    for count in (1, 2, 4, 8):
        y = x
        for s, t in itertools.pairwise(phi.times(count)):
            y = phi(y, s, t)
        torch.testing.assert_close(y, straight(x, 1.0, 0.0), rtol=1e-10, atol=1e-10)


def test_labels_of_a_shortcut_are_those_of_its_code():
    """log2 of the number of steps, at most log2(128): arXiv 2410.12557's code."""
    seen = []

    def model(x, t, d):
        seen.append((float(t[0]), float(d[0])))
        return 0 * x

    phi = from_shortcut(model, steps="log2")
    for count in (1, 4, 128, 256):
        times = phi.times(count)
        phi(start(), times[0], times[1])
    assert seen == [(0.0, 0.0), (0.0, 2.0), (0.0, 7.0), (0.0, 7.0)]


#: True conventions, and the one that is named: (form, data_at, sign, span).
CASES = [
    (true, asked)
    for asked in (("t,r", 0, 1, 1.0), ("t,t-r", 0, 1, 1.0), ("t,r-t", 1, 1, 1.0))
    for true in (
        ("t,r", 0, 1, 1.0),
        ("r,t", 0, 1, 1.0),
        ("t,t-r", 0, 1, 1.0),
        ("t,r", 1, 1, 1.0),
        ("t,r", 0, -1, 1.0),
        ("t,r", 0, 1, 1000.0),
        ("t,t-r", 1, -1, 1.0),
        ("t,r-t", 1, 1, 1.0),
    )
]


@pytest.mark.parametrize(
    "given", [{"data": DATA}, {"field": FIELD}, {"field": diffode.exact_field(GAUSSIAN, "edm")}], ids=lambda g: next(iter(g))
)
@pytest.mark.parametrize(("true", "asked"), CASES[::2])
def test_a_wrong_convention_is_named_with_its_fix(true, asked, given):
    form, data_at, _, span = asked
    message = told(lambda: from_meanflow(network(*true), form, data_at=data_at, span=span, **given))
    fix = Labels(*asked).told(Labels(*true))
    assert message.endswith(fix) if fix else not message, (fix, message)


def test_points_and_displacements_are_told_from_velocities():
    points = told(lambda: from_meanflow(straight, "t,r", data=DATA))
    assert "it gives the points, not a velocity: use diffode.maps.FunctionMap" in points
    moved = told(lambda: from_meanflow(lambda x, t, r: straight(x, t, r) - x, "t,r", field=FIELD))
    assert "it gives the displacement of a point" in moved


@pytest.mark.parametrize("given", [{"data": DATA}, {"field": FIELD}], ids=lambda g: next(iter(g)))
@pytest.mark.parametrize(
    ("model", "options", "fix"),
    [
        (shortcut(), {}, ""),
        (shortcut("log2"), {"steps": "log2"}, ""),
        (shortcut("log2"), {}, "pass steps='log2' with finest=128"),
        (shortcut(), {"steps": "log2"}, "pass steps='length'"),
        (shortcut("length", 0), {}, "its data lie at t = 0: pass data_at=0"),
        (network("t,r", 1), {}, "pass form='t,r'"),
        (lambda x, t, d: -shortcut()(x, t, d), {}, "its sign is wrong: return -model"),
    ],
)
def test_a_wrong_reading_of_a_shortcut_is_named(model, options, fix, given):
    message = told(lambda: from_shortcut(model, **options, **given))
    assert message.endswith(fix) if fix else not message, message


def test_what_no_mistake_explains_is_told_as_such():
    message = told(lambda: from_meanflow(lambda x, t, r: 5 * x, "t,r", data=DATA))
    assert "no usual mistake explains it" in message


def test_a_half_trained_network_is_not_accused():
    """An error of a tenth of the velocity is no other convention."""
    rough = network()
    assert not told(lambda: from_meanflow(lambda x, t, r: rough(x, t, r) + 0.1 * (3 * x).sin(), "t,r", data=DATA))


def test_a_network_is_called_in_its_own_dtype_with_its_own_arguments():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float32))

        def forward(self, x, t, r, label):
            assert x.dtype == t.dtype == r.dtype == torch.float32
            assert label.shape == (len(x),)
            return (self.weight * average(x.double(), t.double(), r.double()).float(),)

    phi = from_meanflow(Net(), "t,r", extra={"label": torch.tensor([3])})
    x = start()
    found = phi(x, 1.0, 0.2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, straight(x, 1.0, 0.2), rtol=1e-5, atol=1e-5)
    other = Net()
    torch.nn.init.constant_(other.weight, 1.5)
    digests = {MapSolver(of=from_meanflow(net, "t,r", extra={"label": torch.tensor([3])})).digest for net in (Net(), other)}
    assert len(digests) == 2


class FlowMapScheduler:
    """What the adapter reads of FlowMapEulerDiscreteScheduler."""

    def __init__(self):
        self.config = {"num_train_timesteps": 1000, "shift": 3.0}

    def apply_shift(self, sigmas):
        return 3 * sigmas / (1 + 2 * sigmas)

    def set_timesteps(self, count):
        self.sigmas = torch.cat([self.apply_shift(torch.linspace(1, 0, count + 1, dtype=torch.float64)[:-1]), torch.zeros(1)])


def test_a_flow_map_model_of_diffusers_gets_timesteps_for_every_frame():
    def model(sample, timestep, r_timestep):
        assert timestep.shape == r_timestep.shape == sample.shape[:2]
        return average(sample.flatten(0, 1), timestep.flatten() / 1000, r_timestep.flatten() / 1000).reshape(sample.shape)

    phi = from_flow_map_model(model, FlowMapScheduler(), frames=True)
    x = start(1.0, 12).reshape(4, 3, 2)
    torch.testing.assert_close(phi(x, 1.0, 0.4), straight(x.flatten(0, 1), 1.0, 0.4).reshape(4, 3, 2), rtol=1e-12, atol=1e-12)
    assert phi.times(2) == [1.0, 0.75, 0.0]


def test_the_loop_of_diffusers_is_our_run_of_its_model():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=2.0)
    model = network(span=1000.0)
    phi, x = from_flow_map_model(model, scheduler, field=FIELD), start()
    scheduler.set_timesteps(3)
    y = x
    for t, r in zip(scheduler.timesteps, scheduler.sigmas[1:] * 1000, strict=True):
        y = scheduler.step(model(y, t, r), t, y).prev_sample
    field = diffode.exact_field(GAUSSIAN, phi.path)
    torch.testing.assert_close(diffode.solve(field, x, solver=MapSolver(of=phi), nfe=3).x, y, rtol=1e-12, atol=1e-12)


def broken(x, t, r):
    return x[:1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_meanflow(network(), "r-t"), "form must be one of 't,r'"),
        (lambda: from_meanflow(network(), "t,r", data_at=2), "data_at must be 0 or 1"),
        (lambda: from_meanflow(network(), "t,r", data_at=True), "data_at must be 0 or 1"),
        (lambda: from_meanflow(network(), "t,r", span=0), "span must be a positive number"),
        (lambda: from_meanflow(network(), "t,r", path="edm"), "times from 0 to 1"),
        (lambda: from_meanflow(network(), "t,r", shape=(0,)), "shape must be the sizes of a row"),
        (lambda: from_meanflow(3, "t,r"), "model must be a network or a function"),
        (lambda: from_meanflow(network(), "t,r", data=DATA[:3]), "at least 16 points"),
        (lambda: from_meanflow(network(), "t,r", data=torch.ones(20, 2)), "not all be the same point"),
        (lambda: from_meanflow(network(), "t,r", data=torch.ones(20, 2, dtype=torch.long)), "floating-point"),
        (lambda: from_meanflow(network(), "t,r", data=DATA, field=FIELD), "data= or field=, not both"),
        (lambda: from_meanflow(network(), "t,r", field="ring8"), "field must be a diffode field, got str"),
        (lambda: from_meanflow(network(), "t,r", on="none"), "unknown path"),
        (lambda: from_shortcut(shortcut(), steps="log"), "steps must be 'length'"),
        (lambda: from_shortcut(shortcut(), finest=100), "finest must be a power of 2"),
        (lambda: from_flow_map_model(network(), None), "FlowMapEulerDiscreteScheduler"),
        (lambda: from_meanflow(network(), "t,r")(start(), 1.5, 0.0), "beyond the noise end"),
        (lambda: from_meanflow(network(), "t,r")(start(), "a", 0.0), "s must be a number"),
        (lambda: from_meanflow(network(), "t,r")(start(), torch.ones(3), 0.0), "a time for each row"),
        (lambda: from_meanflow(network(), "t,r")(torch.ones(3), 1.0, 0.0), "x must be a float32"),
        (lambda: from_meanflow(network(), "t,r", shape=(3,))(start(), 1.0, 0.0), r"rows of shape \(3,\), got \(2,\)"),
        (
            lambda: from_meanflow(network(), "t,r", path="rectified_flow").on("edm")(start(), 5000.0, 1.0),
            "outside of its 0.999",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()


def test_an_answer_of_another_shape_is_an_error_of_the_model():
    with pytest.raises(FieldError, match="they must match"):
        from_meanflow(broken, "t,r")(start(), 1.0, 0.0)


def consistency(x, rho):
    """The consistency function of the Gaussian from a noise level rho on EDM's path, to data without noise."""
    rho = columns(rho, x)
    return MEAN + (VARIANCE / (VARIANCE + rho**2)).sqrt() * (x - MEAN)


def to_floor(x, rho, floor=0.002):
    rho = columns(rho, x)
    return MEAN + ((VARIANCE + floor**2) / (VARIANCE + rho**2)).sqrt() * (x - MEAN)


EDM_LABELS = {
    "timesteps": lambda label: (label / 250).exp(),
    "log": lambda label: (4 * label).exp(),
    "sigma": lambda label: label,
}


def edm_network(labels="timesteps", sign=1, scaled=True, unit=0.5, floor=0.002):
    """F of the exact consistency function."""

    def model(given, label):
        sigma = columns(EDM_LABELS[labels](label), given)
        size = (sigma**2 + unit**2).sqrt()
        x = given * size if scaled else given
        above = (sigma - floor).clamp(min=1e-12)
        skip, out = unit**2 / (above**2 + unit**2), above * unit / size
        return sign * (to_floor(x, sigma, floor) - skip * x) / out

    return model


@pytest.mark.parametrize("labels", list(EDM_LABELS))
def test_an_exact_consistency_model_is_the_flow_to_its_end(labels):
    field = diffode.exact_field(GAUSSIAN, "edm")
    phi = from_consistency(edm_network(labels), "edm", labels=labels)
    for s in (80.0, 3.0, 0.1, 0.0021):
        x = field.marginal(4, s, generator=0)
        torch.testing.assert_close(phi(x, s, 0.002), to_floor(x, s), rtol=1e-9, atol=1e-9)
    with pytest.raises(ArgumentError, match=r"goes to t=0.002 only"):
        phi(x, 1.0, 0.5)
    assert phi.times(3) == pytest.approx(diffode.grids.get("karras", field.path, 3).tolist())


#: Where the model itself is F, under other conventions, each with its fix.
CONSISTENCY = [
    (edm_network(), "edm", {}, ""),
    (edm_network("log"), "edm", {}, "pass labels='log'"),
    (edm_network("sigma"), "edm", {}, "pass labels='sigma'"),
    (edm_network(), "edm", {"labels": "sigma"}, "pass labels='timesteps'"),
    (edm_network(sign=-1), "edm", {}, "its sign is wrong"),
    (edm_network(scaled=False), "edm", {}, "it wants x as it is"),
    (lambda x, label: to_floor(x, (label / 250).exp()), "edm", {}, "it gives the points themselves"),
]


def trigflow_network(labels="angle", sign=1, unit=0.5):
    def model(given, label):
        if labels == "angle":
            t = columns(label, given)
            x = given * unit
        else:
            tau = columns(label, given)
            t = torch.atan2(tau, 1 - tau)
            x = unit * given / (tau**2 + (1 - tau) ** 2).sqrt()
        end = MEAN + (VARIANCE / (t.cos() ** 2 * VARIANCE + t.sin() ** 2 * unit**2)).sqrt() * (x - t.cos() * MEAN)
        answer = (t.cos() * x - end) / (t.sin().clamp(min=1e-12) * unit)
        if labels == "flow":
            # Back through SANA-Sprint's transformation.
            size = (tau**2 + (1 - tau) ** 2).sqrt()
            answer = (answer * size - (1 - 2 * tau) * given) / size**2
        return sign * answer

    return model


CONSISTENCY += [
    (trigflow_network(), "trigflow", {}, ""),
    (trigflow_network("flow"), "trigflow", {"labels": "flow"}, ""),
    (trigflow_network("flow"), "trigflow", {}, "pass labels='flow'"),
    (trigflow_network(), "trigflow", {"labels": "flow"}, "pass labels='angle'"),
    (trigflow_network(sign=-1), "trigflow", {}, "its sign is wrong"),
]


@pytest.mark.parametrize(
    "given", [{"data": DATA}, {"field": diffode.exact_field(GAUSSIAN, "edm")}], ids=lambda g: next(iter(g))
)
@pytest.mark.parametrize(("model", "form", "options", "fix"), CONSISTENCY)
def test_a_wrong_reading_of_a_consistency_model_is_named(model, form, options, fix, given):
    message = told(lambda: from_consistency(model, form, **options, **given))
    assert fix in message if fix else not message, message


def test_trigflow_ends_at_the_data():
    phi = from_consistency(trigflow_network(unit=0.7), "trigflow:sigma_data=0.7")
    edm = phi.on("edm")
    x = diffode.exact_field(GAUSSIAN, "edm").marginal(4, 5.0, generator=0)
    torch.testing.assert_close(edm(x, 5.0, edm.ends[1]), consistency(x, 5.0), rtol=1e-9, atol=1e-9)
    assert edm.ends[1] == 0.0
    assert phi.times(2) == pytest.approx([math.pi / 2, math.pi / 4, 0.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_consistency(network(), "lcm"), "must be 'edm', 'trigflow' or a scheduler"),
        (lambda: from_consistency(network(), "edm:sigma=1"), "edm has no option 'sigma'"),
        (lambda: from_consistency(network(), "edm:sigma_data=0"), "sigma_data must be a positive number"),
        (lambda: from_consistency(network(), "edm:sigma_min=90"), "t_min < t_max"),
        (lambda: from_consistency(network(), "edm", labels="t"), "labels of 'edm' must be one of"),
        (lambda: from_consistency(network(), "trigflow", labels="t"), "labels of 'trigflow' must be"),
        (lambda: from_consistency(network(), dict), "or a scheduler of diffusers"),
        (lambda: from_consistency(network(), FlowMapScheduler()), "got 'FlowMapScheduler'"),
    ],
)
def test_a_wrong_argument_of_a_consistency_model_is_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
