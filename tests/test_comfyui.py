"""Solvers as ComfyUI's samplers: called as its KSAMPLER calls them, they make diffode's own runs."""

import importlib.util
import sys
from pathlib import Path

import comfy_stand_in as comfy
import pytest
import torch

import diffode
from diffode import adapters, grids, solvers
from diffode.errors import ArgumentError, BudgetError, CapabilityError, NumericalError

FOLDER = Path(__file__).parents[1] / "examples" / "comfyui_diffode"
SPECS = ["dpmpp:order=2", "unipc:order=3", "heun:chart=noise", "exponential_rk", "lms:order=4", "euler", "res_m"]
NOISY = ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "edm_stochastic"]


def levels(steps):
    """Karras levels of Stable Diffusion, to 0."""
    path = diffode.paths.EDM(0.0292, 14.6146)
    return grids.get("karras:to_zero=true", path, steps)


def flow_levels(steps):
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def start(count=4, seed=0):
    """Noise and empty latents, (B, 2)."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise, torch.zeros_like(noise)


def run(spec, model, steps=8, schedule=levels, denoise=1.0, seed=5, callback=None, mask=None, latent=None, count=4, **options):
    noise, empty = start(count)
    sampler = comfy.KSAMPLER(adapters.as_comfyui_sampler(spec), options)
    node = comfy.KSampler(model, steps, schedule, denoise)
    return node.sample(sampler, noise, empty if latent is None else latent, seed, callback, mask), node.sigmas


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_of_noise_levels_is_diffodes_own(spec):
    model = comfy.BaseModel("ring8")
    found, sigmas = run(spec, model)
    x = start()[0] * torch.sqrt(1 + sigmas[0] ** 2)
    expected = diffode.solve(model.field, x, solver=spec, grid=sigmas.tolist())
    torch.testing.assert_close(found, expected.x, rtol=1e-11, atol=1e-12)
    assert len(model.calls) == expected.nfe


@pytest.mark.parametrize("spec", SPECS)
def test_denoise_below_one_begins_at_a_lower_level_from_the_latent(spec):
    model = comfy.BaseModel("ring8")
    latent = model.field.target.sample(4, generator=1)
    found, sigmas = run(spec, model, steps=5, denoise=0.5, latent=latent)
    assert len(sigmas) == 6
    assert float(sigmas[0]) == float(levels(10)[5])
    expected = diffode.solve(model.field, latent + sigmas[0] * start()[0], solver=spec, grid=sigmas.tolist()).x
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_a_flow_matching_model_is_recognised_and_follows_its_own_path(spec):
    model = comfy.BaseModel("ring8", flow=True)
    found, sigmas = run(spec, model, schedule=flow_levels)
    assert model.calls[0][0] == 1.0
    first = 1.0 if spec == "euler" else 1 - 1e-6
    x = start()[0]
    expected = diffode.solve(model.field, x, solver=spec, grid=[first, *sigmas[1:].tolist()]).x
    # The model is told the level 1, where the run has a millionth of data.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    lower, cut = run(spec, model, steps=4, schedule=flow_levels, denoise=0.5)
    expected = diffode.solve(model.field, cut[0] * x, solver=spec, grid=cut.tolist()).x
    torch.testing.assert_close(lower, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", [*SPECS, *NOISY, "restart:low=0.5,high=2"])
def test_the_callback_hears_of_every_step_once_with_its_preview(spec):
    told = []
    model = comfy.BaseModel("ring8")

    def callback(i, denoised, x, total):
        told.append((i, total))
        sigma = model.calls[-1][0]
        torch.testing.assert_close(denoised, model.field.denoised(x, sigma), rtol=1e-12, atol=1e-12)

    run(spec, model, callback=callback)
    assert told == [(i, 8) for i in range(8)]


@pytest.mark.parametrize("spec", NOISY)
def test_a_picture_has_the_noise_of_its_seed_and_place_whatever_its_batch(spec):
    runs = {count: run(spec, comfy.BaseModel("ring8"), count=count)[0] for count in (4, 2)}
    torch.testing.assert_close(runs[4][:2], runs[2], rtol=1e-12, atol=1e-12)
    again, other = (run(spec, comfy.BaseModel("ring8"), seed=seed)[0] for seed in (5, 9))
    assert torch.equal(again, runs[4])
    assert bool((again != other).any(1).all())
    sample = adapters.as_comfyui_sampler(spec)
    torch.manual_seed(0)
    alone = [sample(adapters.as_k_diffusion(comfy.BaseModel("ring8").field), start()[0], levels(3)) for _ in range(2)]
    assert bool((alone[0] != alone[1]).any())


def test_the_noise_of_a_row_is_that_of_its_own_generator():
    model = comfy.BaseModel("ring8")
    found, sigmas = run("euler_ancestral", model, steps=4)
    sources = [torch.Generator().manual_seed(5 + 1 + row) for row in range(4)]
    noise = torch.stack([torch.stack([torch.randn(2, generator=g, dtype=torch.float64) for g in sources]) for _ in range(3)])
    x = start()[0] * torch.sqrt(1 + sigmas[0] ** 2)
    expected = diffode.solve(model.field, x, solver="euler_ancestral", grid=sigmas.tolist(), noise=noise).x
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    quiet, _ = run("euler_ancestral", comfy.BaseModel("ring8"), steps=4, eta=0.0)
    torch.testing.assert_close(quiet, run("ddim", comfy.BaseModel("ring8"), steps=4)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("place", ["callback", "model"])
def test_an_interrupt_passes_unharmed(place):
    model = comfy.BaseModel("ring8")
    model.interrupt_at = 3 if place == "model" else None

    def callback(i, *_):
        if i == 2 and place == "callback":
            raise comfy.InterruptProcessingException

    with pytest.raises(comfy.InterruptProcessingException) as caught:
        run("heun:chart=noise", model, callback=callback)
    assert caught.value.__cause__ is None
    assert len(model.calls) == (3 if place == "model" else 5)


def test_masked_parts_stay_as_they_were():
    model = comfy.BaseModel("ring8")
    latent = model.field.target.sample(4, generator=1)
    mask = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    found, _ = run("dpmpp:order=2", model, latent=latent, mask=mask)
    torch.testing.assert_close(found[:, 1], latent[:, 1], rtol=1e-12, atol=1e-12)
    assert bool((found[:, 0] != latent[:, 0]).all())


def test_half_precision_is_the_models_alone():
    model = comfy.BaseModel("ring8")
    noise = start()[0].half()
    sample = adapters.as_comfyui_sampler("dpmpp:order=2")
    found = sample(comfy.CFGGuider(model), noise * 14.6, levels(6), {"model_options": {}, "seed": 1})
    assert found.dtype == torch.float16
    assert {dtype for _, dtype in model.calls} == {torch.float16}
    whole = sample(comfy.CFGGuider(model), (noise * 14.6).double(), levels(6), {"model_options": {}, "seed": 1})
    torch.testing.assert_close(found.double(), whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("schedule", ["karras:to_zero=true", "levels"])
def test_universal_tables_spend_one_call_a_step_and_end_clean(flow, schedule):
    model = comfy.BaseModel("ring8", flow)
    scale = model.field.scale
    sigmas = flow_levels(8) if flow else levels(8) if schedule != "levels" else torch.tensor([14.6, 9, 6, 4, 3, 2, 1, 0.5, 0])
    told = []
    sample = adapters.as_comfyui_sampler("universal", scale=scale)
    x = start()[0] if flow else start()[0] * 14.6
    found = sample(comfy.CFGGuider(model), x, sigmas, {"model_options": {}}, lambda said: told.append(said["i"]))
    assert len(model.calls) == 8
    assert told == list(range(8))
    if flow:
        first, last = 800 * scale / (1 + 800 * scale), min(0.125, 0.04 * scale / (1 + 0.04 * scale))
    else:
        first, last = float(sigmas[0]), min(float(sigmas[-2]), 0.04 * scale)
    inner = solvers.get("universal", scale=scale, dim=2).tableau(model.field.path, [first, last], 7).run(model.field, x)
    # The model is told the level 1 where the table begins a little below.
    torch.testing.assert_close(
        found, model.field.denoised(inner, last), rtol=1e-2 if flow else 1e-11, atol=1e-2 if flow else 1e-12
    )


def test_levels_that_repeat_or_are_none_do_nothing():
    model, sample = comfy.BaseModel("ring8"), adapters.as_comfyui_sampler("dpmpp:order=2")
    x, extra = start()[0] * 14.6, {"model_options": {}}
    once = sample(comfy.CFGGuider(model), x, [14.6, 3.0, 0.5, 0.0], extra)
    torch.testing.assert_close(sample(comfy.CFGGuider(model), x, [14.6, 3.0, 3.0, 0.5, 0.0], extra), once)
    for sigmas in ([], [14.6]):
        assert sample(comfy.CFGGuider(model), x, sigmas, extra) is x


def test_what_is_wrong_is_named():
    guider = comfy.CFGGuider(comfy.BaseModel("ring8"))
    x, extra = start()[0], {"model_options": {}}
    sample = adapters.as_comfyui_sampler("dpmpp:order=2")
    with pytest.raises(CapabilityError, match="has no tableau"):
        adapters.as_comfyui_sampler("rk_adaptive")
    with pytest.raises(ArgumentError, match="do not rise"):
        sample(guider, x, [1.0, 2.0], extra)
    with pytest.raises(ArgumentError, match="gamma: solver 'dpmpp' has only the options"):
        sample(guider, x, [2.0, 1.0], extra, gamma=2.0)
    with pytest.raises(ArgumentError, match="order must be one of 1, 2, 3, got 7"):
        sample(guider, x, [2.0, 1.0], extra, order=7)
    with pytest.raises(ArgumentError, match="has no eta"):
        sample(guider, x, [2.0, 1.0], extra, eta=0.5)
    with pytest.raises(ArgumentError, match="at most 1, got 2"):
        adapters.as_comfyui_sampler("euler", flow=True)(guider, x, [2.0, 1.0], extra)
    with pytest.raises(BudgetError, match="has no table for 21 noise levels that end at 0: give 5, 6"):
        adapters.as_comfyui_sampler("universal")(guider, x, levels(20), extra)
    with pytest.raises(NumericalError, match="not finite"):
        sample(lambda x, sigma, **_: x * float("nan"), x, [2.0, 1.0])
    with pytest.raises(ArgumentError, match="model must give a tensor of x's shape"):
        sample(lambda x, sigma, **_: x[:1], x, [2.0, 1.0])


@pytest.fixture
def nodes(monkeypatch):
    """The custom nodes, as ComfyUI loads a folder of them."""
    comfy.installed(monkeypatch)
    spec = importlib.util.spec_from_file_location(
        "comfyui_diffode", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "comfyui_diffode", module)
    monkeypatch.delitem(sys.modules, "comfyui_diffode.nodes", raising=False)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("comfyui_diffode.nodes", None)


def test_the_custom_nodes_offer_samplers_in_menus_and_as_nodes(nodes):
    samplers, functions = sys.modules["comfy.samplers"], sys.modules["comfy.k_diffusion.sampling"]
    for name, spec in nodes.MENU.items():
        assert all(name in names for names in (samplers.KSAMPLER_NAMES, samplers.SAMPLER_NAMES, samplers.KSampler.SAMPLERS))
        assert callable(getattr(functions, f"sample_{name}"))
        solvers.table_solver(spec)
    (sampler,) = nodes.NODE_CLASS_MAPPINGS["DiffodeSampler"]().get_sampler("dpmpp", "order=3,form=consistent", 1.0)
    listed, _ = nodes.NODE_CLASS_MAPPINGS["DiffodeSampler"].INPUT_TYPES()["required"]["solver"]
    assert {"dpmpp", "universal", "exponential_rk"} <= set(listed)
    assert not {"bespoke", "rk_adaptive", "map"} & set(listed)
    model, node = comfy.BaseModel("ring8"), comfy.KSampler(None, 8, levels)
    found = sampler.sample(comfy.CFGGuider(model), node.sigmas, {"model_options": {}, "seed": 1}, None, *start())
    expected, _ = run("dpmpp:order=3,form=consistent", comfy.BaseModel("ring8"))
    torch.testing.assert_close(found, expected)
    assert nodes.NODE_CLASS_MAPPINGS["DiffodeUniversal"]().get_sampler(-1, 4.0)[0].sampler_function is not None


@pytest.mark.parametrize("grid", ["simple", "sgm_uniform", "beta57", "karras:to_zero=true", "kl_optimal:to_zero=true"])
def test_the_scheduler_node_lays_a_grid_between_the_levels_of_the_model(nodes, grid):
    scheduler = nodes.NODE_CLASS_MAPPINGS["DiffodeScheduler"]()
    path = diffode.paths.get("ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012")
    (sigmas,) = scheduler.get_sigmas(comfy.BaseModel("ring8"), grid, 6, 1.0)
    expected = torch.tensor([path.rho(t) for t in grids.get(grid, path, 6).tolist()])
    torch.testing.assert_close(sigmas, expected.float(), rtol=1e-6, atol=1e-7)
    (half,) = scheduler.get_sigmas(comfy.BaseModel("ring8"), grid, 3, 0.5)
    torch.testing.assert_close(half, sigmas[3:])
    (flow,) = scheduler.get_sigmas(comfy.BaseModel("ring8", flow=True), "simple", 5, 1.0)
    torch.testing.assert_close(flow, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))
    assert len(scheduler.get_sigmas(comfy.BaseModel("ring8"), grid, 6, 0.0)[0]) == 0
