"""What becomes of each key of a replaced scheduler: honoured, harmless, or refused by name; and what is asked for beside it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import inspect
import json
import pathlib
import warnings

import pytest
import torch

import diffode
from diffode import adapters
from diffode.adapters import diffusers_keys as keys
from diffode.errors import ArgumentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PUBLISHED = json.loads((pathlib.Path(__file__).parent / "data" / "scheduler_configs.json").read_text())
CLASSES = [
    name for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith("Flax") and inspect.isclass(getattr(diffusers, name))
    and hasattr(getattr(diffusers, name), "from_config")
]  # fmt: skip
X = torch.linspace(-3, 3, 32, dtype=torch.float64).reshape(2, 1, 4, 4)


def made_of(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**options)


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_of_every_class_is_honoured_harmless_or_refused(name):
    if name in keys.CLASSES:
        with pytest.raises(ArgumentError, match=name):
            adapters.DiffodeScheduler.from_config({"_class_name": name})
        return
    read = [key for key in inspect.signature(getattr(diffusers, name).__init__).parameters if key not in ("self", "kwargs")]
    lists = (keys.LEVELS, keys.ANSWER, keys.HARMLESS.keys(), keys.REFUSED.keys())
    assert {key: sum(key in one for one in lists) for key in read} == dict.fromkeys(read, 1)
    made = adapters.as_diffusers_scheduler("ddim", like=made_of(name))
    made.set_timesteps(6)
    assert len(made.timesteps) == 6


def test_refused_keys_and_unknown_ones_are_named():
    with pytest.raises(ArgumentError, match="scale_factors"):
        adapters.as_diffusers_scheduler("ddim", like=diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 1.0]))
    with pytest.raises(ArgumentError, match="has no bent"):
        adapters.as_diffusers_scheduler("ddim", like=diffusers.DDIMScheduler(), bent=3)
    with pytest.raises(ArgumentError, match="has mystery=3, a key that no scheduler of diffusers reads"):
        adapters.DiffodeScheduler.from_config({**diffusers.DDIMScheduler().config, "mystery": 3}, solver="ddim")
    with pytest.raises(ArgumentError, match="use_flow_sigmas"):
        adapters.as_diffusers_scheduler("ddim", like=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"))

    class Own(diffusers.DDIMScheduler):
        pass

    with pytest.raises(ArgumentError, match="no class of diffusers itself"):
        adapters.as_diffusers_scheduler("ddim", like=Own())


def test_advice_for_networks_told_noise_levels_or_times_runs():
    """The calls that the refusals of ScoreSdeVe and of Wuerstchen's scheduler name, on exact networks."""
    for name, view, spec in (
        ("ScoreSdeVeScheduler", "score", "edm:sigma_min=0.01,sigma_max=1348"),
        ("DDPMWuerstchenScheduler", "noise", "vp_cosine"),
    ):
        assert f"Field.from_{view}(" in keys.CLASSES[name]
        assert f"diffode.paths.get('{spec}')" in keys.CLASSES[name]
        exact = diffode.exact_field("ring8", spec)
        wrap = getattr(diffode.Field, f"from_{view}")
        found = wrap(lambda x, t, exact=exact, view=view: exact.predict(view, x, t), diffode.paths.get(spec))
        x = exact.prior(4, generator=0)
        torch.testing.assert_close(
            diffode.solve(found, x, solver="ddim", nfe=4).x,
            diffode.solve(exact, x, solver="ddim", nfe=4).x,
            rtol=1e-6,
            atol=1e-6,
        )


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_saved_configuration_is_strict_json_and_makes_the_same_run(model, tmp_path):
    made = adapters.DiffodeScheduler.from_config(PUBLISHED[model], solver="unipc:order=2")
    made.save_config(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads((tmp_path / "scheduler_config.json").read_text(), parse_constant=refuse)
    assert stored["replaced"]["_class_name"] == PUBLISHED[model]["_class_name"]
    mu = {"mu": 0.8} if stored.get("use_dynamic_shifting") else {}
    for again in (adapters.DiffodeScheduler.from_pretrained(tmp_path), adapters.DiffodeScheduler.from_config(made.config)):
        for scheduler in (made, again):
            scheduler.set_timesteps(7, **mu)
        assert again.config.solver == "unipc:order=2"
        assert torch.equal(again.timesteps, made.timesteps)
        assert torch.equal(again.sigmas, made.sigmas)
        assert again.init_noise_sigma == made.init_noise_sigma


@pytest.mark.parametrize(
    "options", [{"clip_sample": True, "clip_sample_range": 1.5},
                {"clip_sample": False, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.7}]
)  # fmt: skip
def test_clipping_and_thresholding_are_what_ddim_does_with_a_clipped_output(options):
    other = diffusers.DDIMScheduler(**options)
    made = adapters.as_diffusers_scheduler("ddim", like=other)
    ours, reached = X, X
    for scheduler in (made, other):
        scheduler.set_timesteps(5)
    for t in other.timesteps:
        ours = made.step(torch.sin(ours), t, ours).prev_sample
        reached = other.step(torch.sin(reached), int(t), reached, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, reached, rtol=1e-3, atol=1e-3)


def test_a_configuration_changed_by_a_pipeline_is_followed():
    made = adapters.as_diffusers_scheduler("ddim", like=diffusers.DDIMScheduler(clip_sample=False))
    made.register_to_config(steps_offset=1)
    made.set_timesteps(10)
    other = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    other.set_timesteps(10)
    assert made.timesteps.tolist() == other.timesteps.tolist()


@pytest.mark.parametrize("solver", ["ipndm:order=3", "dpmpp:order=2", "edm_heun"])
@pytest.mark.parametrize("grid", ["karras", "log_snr", "karras:to_zero=true"])
def test_with_a_grid_the_run_is_that_of_solve_to_the_digit(solver, grid):
    """The line that is advised beside a study's result makes that result."""
    field = diffode.exact_field("digits-gmm10", "ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012")
    network = adapters.as_diffusers_model(field, (1, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        like = diffusers.EulerDiscreteScheduler.from_config(PUBLISHED["sdxl"])
    made = adapters.as_diffusers_scheduler(solver, like=like, grid=grid)
    made.set_timesteps(8)
    start = x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in made.timesteps:
        x = made.step(network(made.scale_model_input(x, t), t).sample, t, x).prev_sample
    ours = diffode.solve(field, start, solver=solver, grid=grid, steps=8)
    assert ours.nfe == len(made.timesteps)
    torch.testing.assert_close(x, ours.x, rtol=1e-9, atol=1e-10)


def test_each_row_may_have_a_generator_of_its_own():
    def end(generator, rows):
        made = adapters.as_diffusers_scheduler("euler_ancestral", like=diffusers.DDIMScheduler(clip_sample=False))
        made.set_timesteps(5)
        x = X[rows]
        for t in made.timesteps:
            x = made.step(torch.sin(x), t, x, generator=generator).prev_sample
        return x

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    both = end([seeded(1), seeded(2)], slice(0, 2))
    torch.testing.assert_close(both[:1], end(seeded(1), slice(0, 1)))
    torch.testing.assert_close(both[1:], end(seeded(2), slice(1, 2)))
    with pytest.raises(ArgumentError, match="one for each of 2 rows"):
        end([seeded(1)] * 3, slice(0, 2))


def test_arguments_of_other_steps_are_not_ignored():
    made = adapters.as_diffusers_scheduler("ddim", like=diffusers.DDIMScheduler())
    made.set_timesteps(3)
    made.step(X, made.timesteps[0], X, eta=0.0)
    with pytest.raises(ArgumentError, match="eta is not"):
        made.step(X, made.timesteps[1], X, eta=0.5)


def test_an_inverted_network_is_taken_in_with_its_times_and_sign():
    exact = diffode.exact_field("ring8", "rectified_flow")
    other = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    field = adapters.from_diffusers(lambda x, t: -exact.velocity(x, 1 - t.double() / 1000), other)
    x = exact.marginal(5, 0.3, generator=0)
    torch.testing.assert_close(field.velocity(x, 0.3), exact.velocity(x, 0.3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["sigmoid", "laplace"])
def test_schedules_that_only_ddpm_has(schedule):
    other = diffusers.DDPMScheduler(beta_schedule=schedule, clip_sample=False)
    made = adapters.as_diffusers_scheduler("ddim", like=other)
    torch.testing.assert_close(made.alphas_cumprod, other.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)
    alone = adapters.as_diffusers_scheduler("ddim", beta_schedule=schedule)
    torch.testing.assert_close(alone.alphas_cumprod, other.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)


def test_a_shift_that_a_pipeline_has_set_is_taken_over():
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    other.set_shift(7.0)
    made = adapters.as_diffusers_scheduler("ddim", like=other)
    other.set_timesteps(5)
    made.set_timesteps(5)
    assert made.timesteps.tolist() == pytest.approx(other.timesteps.tolist(), rel=1e-6)
    fresh = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    fresh.set_timesteps(5)
    assert made.timesteps[1] > fresh.timesteps[1] + 50


def test_a_list_of_levels_is_a_grid_of_its_own_number_of_steps():
    other = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    made = adapters.as_diffusers_scheduler("dpmpp:order=2", like=other, grid="levels 14 5 0.5 0.1")
    made.set_timesteps(3)
    assert made.sigmas.tolist() == pytest.approx([14, 5, 0.5, 0.1], rel=1e-9)
    with pytest.raises(ArgumentError, match="it makes 3 steps, not 20"):
        made.set_timesteps(20)


def test_clipping_and_the_end_are_those_of_the_class():
    for name in ("UnCLIPScheduler", "LCMScheduler", "DDIMScheduler"):
        assert name in keys.CLIPPING
    tcd = diffusers.TCDScheduler(set_alpha_to_one=True)
    made = adapters.as_diffusers_scheduler("ddim", like=tcd)
    made.set_timesteps(4)
    assert float(made.sigmas[-1]) > 0
