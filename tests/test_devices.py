"""What runs on an accelerator gives what it gives on the CPU, on the device of its start. Skipped where there is none."""

import contextlib

import pytest
import torch

import diffode
from diffode import metrics, solvers, targets
from diffode.errors import ArgumentError, FieldError
from diffode.learned import MAP_METHODS, condition, search, train_amed, train_map, train_table, tune_universal
from diffode.metrics import Outcome
from diffode.verify import log_likelihood, sample_with_likelihood

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator here")

DEVICE = "cuda"
VIEWS = ("velocity", "noise", "denoised", "score", "divergence", "log_prob")
#: Trained solvers that are made from a file of their own.
WITH_FILES = {"amed_learned", "bespoke", "conditioned", "dc_regressed", "head", "jump", "map", "nodes", "shipped_map"}


@contextlib.contextmanager
def fast_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS = {"plain": contextlib.nullcontext, "autocast": lambda: torch.autocast(DEVICE), "TF32": fast_products}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("name", targets.names())
def test_exact_fields_are_the_same_on_a_device(name, path, setting):
    field = diffode.exact_field(name, path)
    t = 0.3 * field.path.t_max
    x = field.marginal(5, t, generator=0)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        for at in (t, torch.full((5,), t, dtype=torch.float64), torch.full((5,), t, dtype=torch.float64, device=DEVICE)):
            for view in VIEWS:
                exact = getattr(field, view)(x, t)
                with SETTINGS[setting]():
                    found = getattr(field, view)(x.to(DEVICE, dtype), at)
                assert (found.device.type, found.dtype) == (DEVICE, dtype), view
                error = (found.double().cpu() - exact).abs().max()
                assert float(error) < tolerance * max(1.0, float(exact.abs().max())), view


@pytest.mark.parametrize("name", sorted(set(solvers.names()) - WITH_FILES))
def test_every_solver_runs_on_a_device(name):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(6, generator=0)
    recipe = solvers.get(name)
    budget = {"nfe": 12} if getattr(recipe, "takes_steps", True) else {}
    on_cpu, on_device = (
        diffode.solve(field, start, solver=name, generator=1, keep="all", **budget) for start in (x, x.to(DEVICE))
    )
    assert on_device.x.device.type == DEVICE
    assert bool(torch.isfinite(on_device.x).all())
    if not name.startswith("torchsde"):
        # torchsde draws on the device itself, whose stream is another.
        assert on_device.nfe == on_cpu.nfe
        torch.testing.assert_close(on_device.x.cpu(), on_cpu.x, rtol=1e-7, atol=1e-7)
    if getattr(recipe, "draws_for_rows", True):
        rows = [
            diffode.solve(field, start, solver=name, generator=[1, 2, 3, 4, 5, 6], **budget).x for start in (x, x.to(DEVICE))
        ]
        assert rows[1].device.type == DEVICE
        torch.testing.assert_close(rows[1].cpu(), rows[0], rtol=1e-7, atol=1e-7)


def test_generators_of_a_device_draw_on_it():
    source = torch.Generator(DEVICE).manual_seed(0)
    field = diffode.exact_field("ring8", "edm")
    for drawn in (
        field.prior(3, generator=source),
        field.marginal(3, 1.0, generator=source),
        field.target.sample(3, generator=source),
        field.path.prior((3, 2), generator=source),
    ):
        assert drawn.device.type == DEVICE
    x = field.prior(3, generator=source)
    for generator in (source, [torch.Generator(DEVICE).manual_seed(k) for k in range(3)]):
        for name in ("euler_ancestral", "dpmpp_2m_sde", "sde_adaptive", "restart"):
            budget = {} if name == "sde_adaptive" else {"nfe": 12}
            assert diffode.solve(field, x, solver=name, generator=generator, **budget).x.device.type == DEVICE
    table = solvers.get("dpmpp_2m_sde").tableau(field.path, "log_snr", 10)
    noise = diffode.BrownianPath(x.shape, seed=1).draws(table)
    on_device = table.run(field, x, noise=noise.to(DEVICE))
    torch.testing.assert_close(on_device.cpu(), table.run(field, x.cpu(), noise=noise), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(table.run(field, x, noise=noise), on_device, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gauss2d", "bimodal1d", "line16", "ring8"])
def test_references_and_likelihoods_are_the_same_on_a_device(name):
    field = diffode.exact_field(name, "edm")
    x = field.prior(4, generator=0)
    for start, stop in ((80.0, 0.002), (80.0, 80.0)):
        exact = diffode.reference(field, x, start, stop, use_cache=False)
        found = diffode.reference(field, x.to(DEVICE), start, stop, use_cache=False)
        assert (found.x.device.type, found.errors.device.type) == (DEVICE, exact.errors.device.type)
        torch.testing.assert_close(found.x.cpu(), exact.x, rtol=1e-8, atol=1e-8)
    ends = diffode.reference(field, x, 80.0, 0.002).x
    probes = torch.Generator(DEVICE).manual_seed(3)
    assert log_likelihood(field, ends.to(DEVICE), divergence="hutchinson", generator=probes).device.type == DEVICE
    for options in ({}, {"divergence": "hutchinson", "generator": 3}, {"differentiable": True}):
        known = log_likelihood(field, ends, **options)
        found = log_likelihood(field, ends.to(DEVICE), **options)
        assert found.device.type == DEVICE
        torch.testing.assert_close(found.cpu(), known, rtol=1e-6, atol=1e-6)
    samples, log_prob = sample_with_likelihood(field, x.to(DEVICE))
    assert samples.device.type == log_prob.device.type == DEVICE
    torch.testing.assert_close(samples.cpu(), ends, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gauss2d", "bimodal1d", "line16", "ring8"])
def test_flows_and_their_derivatives_are_the_same_on_a_device(name):
    """In closed form, along a line, and by integration with its adjoint."""
    field = diffode.exact_field(name, "edm")
    flow = diffode.flow(field)
    answers = []
    for device in ("cpu", DEVICE):
        x = field.marginal(3, 5.0, generator=0).to(device).requires_grad_()
        s = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64, device=device, requires_grad=True)
        t = torch.tensor([0.5, 0.1, 2.0], dtype=torch.float64, device=device, requires_grad=True)
        end = flow(x, s, t)
        assert end.device.type == device
        answers.append((end.detach(), *torch.autograd.grad((end**2).sum(), (x, s, t))))
    for known, found in zip(*answers, strict=True):
        assert found.device.type == DEVICE
        torch.testing.assert_close(found.cpu(), known, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", metrics.names())
def test_metrics_are_the_same_on_a_device(name):
    field = diffode.exact_field("gauss2d", "edm")
    x = field.prior(200, generator=0)
    values = []
    for start in (x, x.to(DEVICE)):
        run = diffode.solve(field, start, solver="heun", nfe=9, keep="all")
        values.append(metrics.measure(name, Outcome(field, start, run)).value)
    assert values[1] == pytest.approx(values[0], rel=1e-6, abs=1e-9)


def test_networks_on_a_device_are_followed_from_anywhere():
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2, dtype=torch.float64)

    def velocity(x, t):
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
        return network(torch.cat([x, times], 1))

    path = diffode.paths.get("rectified_flow")
    x = path.prior((4, 2), generator=0)
    with torch.no_grad():
        exact = diffode.solve(diffode.Field.from_velocity(velocity, path), x, solver="heun", nfe=8).x
        network.to(DEVICE)
        found = diffode.solve(diffode.Field.from_velocity(velocity, path), x.to(DEVICE), solver="heun", nfe=8).x
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), exact, rtol=1e-12, atol=1e-12)


class Denoiser(torch.nn.Module):
    """The exact denoiser of N(0, diag(1, 4)) as a network of EDM's code, with its variances on the device."""

    sigma_min, sigma_max, sigma_data = 0.002, 80.0, 1.5

    def __init__(self):
        super().__init__()
        self.variances = torch.nn.Parameter(torch.tensor([1.0, 4.0], dtype=torch.float64, device=DEVICE))

    def forward(self, x, sigma, class_labels=None):
        assert x.device.type == sigma.device.type == DEVICE
        return x * self.variances / (self.variances + sigma.reshape(-1, 1) ** 2)


def test_training_asks_a_network_on_its_own_device(tmp_path):
    """Starts are drawn on the CPU; an adapted network gets them where its weights are, and its answers come back."""
    field = diffode.adapters.from_edm(Denoiser())
    trained = train_table(field, 3, dim=2, points=32, begin_from="ddim @ log_snr")
    assert trained.history.held_out[-1] < trained.history.held_out[0]
    trained.save(tmp_path / "t.safetensors")
    run = condition(trained, field, dim=2, points=32, steps=2, units=3).solver
    other = train_amed(field, 2, dim=2, points=32, batch=16, rounds=2).solver
    tuned = tune_universal(field, 4, dim=2, points=32).solver
    levels = search(field, 4, dim=2, points=16, seconds=2)
    x = field.path.prior((8, 2), generator=0).to(DEVICE)
    runs = (
        (run, None, 3),
        (f"bespoke:file={tmp_path / 't.safetensors'}", None, 3),
        (other, None, None),
        (tuned, None, 4),
        ("heun", levels, None),
    )
    for solver, grid, nfe in runs:
        found = diffode.solve(field, x, solver=solver, grid=grid, nfe=nfe)
        assert found.x.device.type == DEVICE
        assert bool(torch.isfinite(found.x).all())


def test_a_network_on_a_device_is_named_where_starts_are_elsewhere():
    network = Denoiser()
    field = diffode.Field.from_denoised(lambda x, t: x * network.variances, "edm")
    with pytest.raises(FieldError, match="device"):
        diffode.solve(field, field.path.prior((4, 2), generator=0), solver="heun", nfe=8)


def test_schedulers_and_samplers_of_other_libraries_run_on_a_device():
    exact = diffode.exact_field("gauss2d", "ddpm")
    model = diffode.adapters.as_diffusers_model(exact, (1, 1, 2))
    for solver in ("dpmpp:order=2", "dpmpp_2m_sde"):
        ends = []
        for device in ("cpu", DEVICE):
            scheduler = diffode.adapters.as_diffusers_scheduler(solver)
            scheduler.set_timesteps(8, device=device)
            x = (
                diffode.paths.get("ddpm").prior((4, 1, 1, 2), generator=0, dtype=torch.float32).to(device)
                * scheduler.init_noise_sigma
            )
            generator = torch.Generator().manual_seed(1)
            for t in scheduler.timesteps:
                assert t.device.type == torch.device(device).type
                answer = model(scheduler.scale_model_input(x, t), t).sample
                x = scheduler.step(answer, t, x, generator=generator).prev_sample
            assert x.device.type == torch.device(device).type
            ends.append(x.cpu())
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)
    denoise = diffode.adapters.as_k_diffusion(diffode.exact_field("ring8", "edm"))
    sigmas = diffode.grids.get("karras", "edm", 8)
    x = diffode.paths.get("edm").prior((4, 2), generator=0)
    for solver in ("dpmpp:order=2", "euler_ancestral"):
        sampler = diffode.adapters.as_k_diffusion_sampler(solver)
        found = sampler(denoise, x.to(DEVICE), sigmas.to(DEVICE))
        assert found.device.type == DEVICE
        if solver == "dpmpp:order=2":
            torch.testing.assert_close(found.cpu(), sampler(denoise, x, sigmas), rtol=1e-8, atol=1e-8)
    right = diffode.adapters.as_torchdiffeq(diffode.exact_field("ring8", "edm"))
    t = torch.tensor(3.0, dtype=torch.float64)
    torch.testing.assert_close(right(t.to(DEVICE), x.to(DEVICE)).cpu(), right(t, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", list(MAP_METHODS))
def test_flow_maps_train_on_a_device(method):
    """Random numbers are those of the CPU, so that a few steps give the same map up to rounding."""
    request = {"points": 200} if MAP_METHODS[method].trajectories else {}
    spec = f"{method}:width=16,depth=1,batch=64,rate=1e-3"
    on_cpu, on_device = (train_map(spec, "ring8", nfe=1, steps=6, device=device, **request) for device in ("cpu", DEVICE))
    assert on_device.held_out[1] == pytest.approx(on_cpu.held_out[1], rel=2e-2)
    x = torch.randn(9, 2, dtype=torch.float64)
    found = on_device.map(x.to(DEVICE), 80.0, 0.002)
    assert found.device.type == DEVICE
    assert torch.allclose(found.cpu(), on_device.map(x, 80.0, 0.002), atol=1e-9)


def test_a_flow_map_trained_on_a_device_goes_on_after_an_interrupt(tmp_path):
    file = tmp_path / "resume.safetensors"
    spec = "tcm:width=16,depth=1,batch=64,optimiser=muon"
    whole = train_map(spec, "ring8", nfe=1, steps=40, device=DEVICE)
    asked = []
    train_map(spec, "ring8", nfe=1, steps=40, device=DEVICE, resume_file=file, stop=lambda: len(asked.append(0) or asked) == 25)
    rest = train_map(spec, "ring8", nfe=1, steps=40, device=DEVICE, resume_file=file)
    assert rest.held_out[1] == pytest.approx(whole.held_out[1], rel=1e-3)


def test_a_device_that_is_not_there_is_told():
    with pytest.raises(ArgumentError, match="device must be"):
        train_map("ct:width=8,depth=1", "ring8", nfe=1, steps=1, device="cuda:77")
