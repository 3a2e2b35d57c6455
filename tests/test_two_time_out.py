"""Our maps inside the loops of diffusers' few-step schedulers: the numbers of our own runs."""

import itertools

import pytest
import torch

import diffode
from diffode.adapters import as_two_time_model
from diffode.errors import ArgumentError, NumericalError
from diffode.maps import FunctionMap, LearnedMap
from diffode.solvers.trained.mapped import MapSolver

diffusers = pytest.importorskip("diffusers")
TARGET = "gauss2d"


def in_double(scheduler):
    """The scheduler with its levels, which diffusers keeps in float32, in float64."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    if scheduler.timesteps.is_floating_point():
        scheduler.timesteps = scheduler.timesteps.double()
    return scheduler


def run(scheduler, model, x, seed=0, **options):
    """diffusers' own loop, as its pipelines have it."""
    generator = torch.Generator().manual_seed(seed)
    takes = scheduler.step.__code__.co_varnames
    own = {"generator": generator} if "generator" in takes else {}
    steps = scheduler.timesteps[:-1] if isinstance(scheduler, diffusers.SCMScheduler) else scheduler.timesteps
    for t in steps:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(shown, t).sample, t, x, **own, **options).prev_sample
    return x


def ours(model, x, phi, seed=0):
    field = diffode.exact_field(TARGET, model.path)
    return diffode.solve(field, x, solver=MapSolver(of=phi), grid=model.times, generator=seed).x


def exact(path, **options):
    return FunctionMap(diffode.flow(diffode.exact_field(TARGET, path)), path, **options)


def start(path):
    return diffode.exact_field(TARGET, path).prior(6, generator=1)


def wrong(path, **options):
    """A map that is not the flow, so that every jump of a run shows in its end."""
    flow = diffode.flow(diffode.exact_field(TARGET, path))
    return FunctionMap(lambda x, s, t: flow(x, s, t) + 0.1 * ((s - t)[:, None] * x).sin(), path, **options)


#: Each scheduler, how it lays its levels, and the numbers of jumps.
CM = (diffusers.CMStochasticIterativeScheduler, {"clip_denoised": False, "sigma_min": 2**-9}, {}, (1, 2, 3, 40))
LCM = (diffusers.LCMScheduler, {}, {}, (1, 2, 4))
SCM = (diffusers.SCMScheduler, {"sigma_data": 0.7}, {"max_timesteps": 1.57}, (1, 2, 3))
FLOW_MAP = (diffusers.FlowMapEulerDiscreteScheduler, {"shift": 3.0}, {}, (1, 2, 4))


def cases():
    for make, config, laying, counts in (CM, LCM, SCM, FLOW_MAP):
        for count in counts:
            yield pytest.param(make, config, laying, count, id=f"{make.__name__}-{count}")
    for kind in ("sample", "v_prediction"):
        yield pytest.param(diffusers.LCMScheduler, {"prediction_type": kind}, {}, 3, id=f"LCM-{kind}")


def laid(make, config, laying, count):
    scheduler = make(**config)
    middle = {"intermediate_timesteps": None} if make is diffusers.SCMScheduler and count != 2 else {}
    scheduler.set_timesteps(count, **laying, **middle)
    return scheduler


def probe_path(scheduler):
    return as_two_time_model(FunctionMap(lambda x, s, t: x, any_path=True), scheduler).path


@pytest.mark.parametrize("make_map", [exact, wrong])
@pytest.mark.parametrize(("make", "config", "laying", "count"), list(cases()))
def test_a_schedulers_loop_makes_our_run(make, config, laying, count, make_map, monkeypatch):
    scheduler = in_double(laid(make, config, laying, count))
    path = probe_path(scheduler)
    phi = make_map(path, fixed_end=make is not diffusers.FlowMapEulerDiscreteScheduler)
    if make is diffusers.SCMScheduler:
        # It draws its noise in float32; ours is float64 from the same generator.
        module = diffusers.schedulers.scheduling_scm
        drawn = lambda shape, generator, device: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        monkeypatch.setattr(module, "randn_tensor", drawn)
    model, x = as_two_time_model(phi, scheduler), start(path)
    torch.testing.assert_close(run(scheduler, model, x), ours(model, x, phi), rtol=1e-9, atol=1e-9)
    # The last of all its levels is no jump.
    assert len(model.times) == (count if count == 40 else count + 1)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_trajectory_consistency_is_our_run_at_both_ends_of_eta(kind, count, eta):
    scheduler = in_double(laid(diffusers.TCDScheduler, {"prediction_type": kind}, {}, count))
    path = probe_path(scheduler)
    phi = wrong(path)
    model, x = as_two_time_model(phi, scheduler, eta=eta), start(path)
    own = phi if eta == 0 else wrong(path, fixed_end=True)
    torch.testing.assert_close(run(scheduler, model, x, eta=eta), ours(model, x, own), rtol=1e-9, atol=1e-9)


def test_between_it_jumps_beyond_and_adds_noise():
    """Zheng et al., arXiv 2402.19159, algorithm 4: to a cleaner time by the map, back to the next time by noise."""
    eta = 0.4
    scheduler = in_double(laid(diffusers.TCDScheduler, {}, {}, 3))
    path = probe_path(scheduler)
    phi, generator = wrong(path), torch.Generator().manual_seed(0)
    model, x = as_two_time_model(phi, scheduler, eta=eta), start(path)
    found = run(scheduler, model, x, eta=eta)
    for s, t in itertools.pairwise(model.times):
        beyond = float(int((1 - eta) * (t - 1)) + 1)
        x = phi(x, s, beyond)
        if t != model.times[-1]:
            ratio = path.alpha(t) / path.alpha(beyond)
            x = ratio * x + (1 - ratio**2) ** 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("make", "config", "laying", "count"), list(cases()))
def test_as_diffusers_ships_it_differs_by_its_float32(make, config, laying, count):
    scheduler = laid(make, config, laying, count)
    if make is diffusers.SCMScheduler and count > 1:
        pytest.skip("its noise is another draw in float32")
    path = probe_path(scheduler)
    phi = exact(path, fixed_end=make is not diffusers.FlowMapEulerDiscreteScheduler)
    model, x = as_two_time_model(phi, scheduler), start(path)
    torch.testing.assert_close(run(scheduler, model, x), ours(model, x, phi), rtol=1e-5, atol=1e-5)


def test_a_flow_map_model_is_asked_for_any_two_timesteps():
    scheduler = laid(*FLOW_MAP[:3], 4)
    path = probe_path(scheduler)
    phi = exact(path)
    model, x = as_two_time_model(phi, scheduler), diffode.exact_field(TARGET, path).marginal(4, 0.7, generator=0)
    here, r = torch.tensor(700.0, dtype=torch.float64), torch.tensor(123.0, dtype=torch.float64)
    there = scheduler.step(model(x, here, r).sample, here, x, r_timestep=r).prev_sample
    torch.testing.assert_close(there, phi(x, 0.7, 0.123), rtol=1e-9, atol=1e-9)
    stays = scheduler.step(model(x, 700.0, 700.0).sample, 700.0, x, r_timestep=700.0).prev_sample
    assert torch.equal(stays, x)
    with pytest.raises(ArgumentError, match="pass r_timestep="):
        model(x, 700.0)


def trained():
    """A network as a map, of the noise levels 80 to 0.002."""
    clock = diffode.maps.AngleClock.of(diffode.exact_field(TARGET, "edm"))
    edm = diffode.paths.get("edm")
    net = diffode.maps.networks.network("perceptron", (2,), width=8, depth=1)
    torch.nn.init.normal_(net.leave.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    ends = clock.angle(edm, 80.0), clock.angle(edm, 0.002)
    return LearnedMap(net.requires_grad_(False), "perceptron", (2,), 8, 1, "angle", clock, ends, edm)


def test_a_network_of_finite_levels_begins_where_it_can():
    scheduler = laid(*FLOW_MAP[:3], 2)
    x = start(diffode.paths.get("rectified_flow:t_min=0,t_max=1"))
    learned = trained()
    with pytest.raises(ArgumentError, match=r"noisiest time of this map, 0.98.*nearest=True"):
        run(scheduler, as_two_time_model(learned, scheduler), x)
    model = as_two_time_model(learned, scheduler, nearest=True)
    scheduler.set_timesteps(2)
    found = run(scheduler, model, x)
    assert model.times[-1] == pytest.approx(0.002 / 1.002)
    phi = learned.on(model.path)
    middle = phi(x * phi.ends[0], phi.ends[0], float(scheduler.sigmas[1]))
    torch.testing.assert_close(found, phi(middle, float(scheduler.sigmas[1]), phi.ends[1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_samples_keep_their_dtype(dtype):
    scheduler = laid(*FLOW_MAP[:3], 2)
    model = as_two_time_model(exact(probe_path(scheduler)), scheduler)
    x = torch.ones(3, 2, dtype=dtype)
    assert model(x, scheduler.timesteps[0]).sample.dtype == dtype
    assert isinstance(model(x, scheduler.timesteps[0], return_dict=False), tuple)


def identity(x, s, t):
    return x


def with_levels(make, count=2, **config):
    return laid(make, config, {}, count)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: as_two_time_model(identity, diffusers.DDIMScheduler()), "must be one of CMStoch.*as_diffusers_model"),
        (lambda: as_two_time_model(identity, diffusers.LCMScheduler), "an object, not a class"),
        (lambda: as_two_time_model(identity, None), "got NoneType"),
        (lambda: as_two_time_model(3, diffusers.LCMScheduler()), "a flow map is a file, a function"),
        (
            lambda: as_two_time_model(identity, diffusers.CMStochasticIterativeScheduler()),
            "clip_denoised=True.*clip_denoised=False",
        ),
        (lambda: as_two_time_model(identity, diffusers.LCMScheduler(thresholding=True)), "thresholding=False"),
        (
            lambda: as_two_time_model(identity, diffusers.CMStochasticIterativeScheduler(clip_denoised=False, s_noise=1.01)),
            "s_noise=1.01",
        ),
        (lambda: as_two_time_model(identity, diffusers.TCDScheduler(), eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
        (lambda: as_two_time_model(identity, diffusers.TCDScheduler(), eta=True), "eta must lie"),
        (lambda: as_two_time_model(identity, diffusers.LCMScheduler(), nearest=1), "nearest must be True or False"),
        (lambda: as_two_time_model(identity, diffusers.LCMScheduler(prediction_type="flow")), "prediction_type must be one of"),
        (
            lambda: as_two_time_model(
                FunctionMap(identity, fixed_end=True, any_path=True), diffusers.FlowMapEulerDiscreteScheduler()
            ),
            "jumps between any two times.*consistency scheduler",
        ),
        (lambda: as_two_time_model(exact("edm"), diffusers.LCMScheduler()), "this map is on the path 'edm'"),
        (lambda: as_two_time_model("none.safetensors", diffusers.LCMScheduler()), "none.safetensors"),
        (
            lambda: as_two_time_model(identity, with_levels(diffusers.SCMScheduler))(torch.zeros(2, 2), 0.123),
            "none of scheduler",
        ),
        (
            lambda: as_two_time_model(identity, with_levels(diffusers.SCMScheduler))(
                torch.zeros(2, 2), torch.tensor([1.3, 0.1])
            ),
            "same for all rows",
        ),
    ],
)
def test_what_cannot_run_is_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()


def test_points_that_are_not_finite_are_no_answer():
    scheduler = with_levels(diffusers.LCMScheduler)
    model = as_two_time_model(lambda x, s, t: x / 0, scheduler)
    with pytest.raises(NumericalError, match="not finite at timestep 999"):
        model(torch.ones(2, 2), scheduler.timesteps[0])
