"""Numbers of verdicts on right and wrong samplers and schedulers, and what the other numbers of verification share."""

import functools
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import planted_samplers
import torch
from recorded import case, fields_of

import diffode
from diffode import GaussianMixture, paths, verify
from diffode.fields import ExactField
from diffode.verify.sampler import foreign, limits, scheduler_given, scheduler_levels, scheduler_loops, scheduler_trial, verdict
from diffode.verify.sampler.subject import Sampler, find_sampler
from diffode.verify.sampler.trial import Bench

SMALL, TINY = 1e-6, 1e-10


def steady(text):
    """A text without the digits of numbers that are rounding."""
    return re.sub(r"\d\.?\d*e-(?:0[89]|[1-9]\d)|(?<![\d.])0(?:\.0)?e\+00", "small", text)


def settled(value):
    """Numbers with 0 in place of those that are rounding."""
    if isinstance(value, dict):
        return {name: settled(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [settled(one) for one in value]
    if isinstance(value, torch.Tensor) and value.numel() and float(value.detach().abs().max()) < TINY:
        return torch.zeros_like(value)
    return 0.0 if isinstance(value, float) and abs(value) < TINY else value


def verdict_case(make=None, *, tolerance=1e-8):
    """A case whose numbers are settled."""

    def keep(function):
        return case(functools.wraps(function)(lambda: settled(function())), tolerance=tolerance)

    return keep if make is None else keep(make)


def seen(checks):
    """Checks without values that are rounding, and without the places of such."""
    found = []
    for c in checks:
        small = c.value is not None and c.value <= SMALL
        limit = c.tolerance if c.tolerance is None or c.tolerance > SMALL else f"{c.tolerance:.2g}"
        detail = "" if small and re.search(r"at t=|from t=|x\^", c.detail) else steady(c.detail)
        found.append([c.name, c.passed, "small" if small else c.value, limit, detail])
    return found


def message(function, *arguments, **options):
    """The text of the error that a call raises."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return str(error)
    return "nothing is raised"


def numbers(count, dim, seed=0):
    """Normal numbers, with means and scales that differ by the coordinate."""
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z * torch.linspace(0.5, 1.5, dim, dtype=torch.float64) + torch.linspace(-0.3, 0.4, dim, dtype=torch.float64)


class Wrong(ExactField):
    """An exact field whose views, divergence and density are each wrong by a share of their own."""

    def predict(self, prediction, x, t):
        """The view times a number."""
        factor = {"noise": 1.05, "denoised": 0.97, "velocity": 1.1, "score": 1.2}[prediction]
        return factor * super().predict(prediction, x, t) + 0.01 * torch.sin(x.roll(1, -1))

    def divergence(self, x, t):
        """The divergence and a part of it."""
        return 0.9 * super().divergence(x, t) + 0.03

    def log_prob(self, x, t):
        """The logarithm of a density that is none."""
        return 1.02 * super().log_prob(x, t) + 0.001


class WrongPath(type(paths.get("vp"))):
    """A path whose drift and diffusion are not those of its noise."""

    def drift(self, t):
        """Too much."""
        return 1.1 * super().drift(t)

    def diffusion(self, t):
        """Too little."""
        return 0.8 * super().diffusion(t)


TWO = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.2]], [[0.3, 0.2], [0.15, 0.4]])
LINE = GaussianMixture([0.4, 0.6], [[-0.8], [0.7]], [[0.1], [0.3]])
SKEW = GaussianMixture([1.0], [[0.4, -0.6]], [[0.3, 1.5]])


# Samplers.


@verdict_case
def verdicts_on_a_right_sampler_and_on_one_with_swapped_weights():
    found = {}
    for name, function, order in (
        ("2m", planted_samplers.second_order_multistep, 2), ("swapped", planted_samplers.swapped_history, 2),
    ):  # fmt: skip
        report = verify.check_sampler(function, order=order)
        found[name] = seen(report.checks)
        found[name + " order"] = fields_of(report.facts["order"])
    return found


@verdict_case
def verdicts_on_samplers_with_defects_in_few_steps():
    found = {}
    with mock.patch.object(verdict, "_STEPS", (16, 32, 64)), mock.patch.object(verdict, "_STARTS", 8):
        for name, (function, order, _) in planted_samplers.DEFECTS.items():
            planted_samplers.HISTORY.clear()
            if order is None or name in ("global noise", "swapped history"):
                continue
            own = replace(find_sampler(function, order=order), law_steps=16)
            found[name] = seen(verify.check_sampler(own).checks)
        for name, order in (("heun", None), ("heun", 3), ("euler", 2), ("2m", 3)):
            sampler = replace(find_sampler(planted_samplers.RIGHT[name][0], order=order), law_steps=20, grid="log_snr")
            found[f"{name} {order}"] = seen(verdict._order(Bench(sampler, paths.get("edm")))[0])
    return found


@verdict_case
def verdicts_on_samplers_that_draw_noise():
    found = {}
    for name, function in (
        ("right", planted_samplers.noisy), ("weak", planted_samplers.weak_noise), ("reused", planted_samplers.reused_noise),
    ):  # fmt: skip
        own = replace(find_sampler(function, order=1), draws=800, law_steps=60)
        found[name] = seen(verify.check_sampler(own).checks)
    return found


@verdict_case
def verdicts_on_moments_and_last_steps():
    def bent(field, x, times):
        return planted_samplers.heun(field, x, times) + 1e-3 * x**2

    def shifted(field, x, times):
        return planted_samplers.euler(field, x, times) + 0.1

    def lost(field, x, times):
        return planted_samplers.euler(field, x, times) + (30.0 if times[-1] == 0 else 0)

    def refusing(field, x, times):
        if times[-1] == 0:
            raise diffode.errors.ArgumentError(f"no step to {times[-1]}")
        return x

    def dividing(field, x, times):
        return x / times[-1] if times[-1] else x * float("nan")

    found = {}
    for function in (bent, shifted, lost, refusing, dividing, planted_samplers.euler):
        own = Bench(replace(find_sampler(function), law_steps=24), paths.get("edm"))
        found[function.__name__] = seen([limits.moments(own), limits.to_zero(own)])
        found[function.__name__ + " errors"] = [float(e) for e in limits._errors(own, 10)[0]]
    own = Bench(find_sampler("heun", path="vp"), paths.get("vp"))
    found["vp"] = [limits._errors(own, 7)[0], own.times(6), own.start(4), own.times(5, to_zero=True)]
    return found


class Standing:
    """A scheduler as a library of them has it: its levels and timesteps, and an Euler step of the form of its sample."""

    def __init__(self, form="ve", kind="epsilon", wrong=1.0, noise=0.0, **config):
        self.config, self.form, self.kind, self.wrong, self.noise = (
            {"prediction_type": kind, **config},
            form,
            kind,
            wrong,
            noise,
        )
        self.place = 0

    def set_begin_index(self, place):
        """Begin at a place."""
        self.place = place

    def set_timesteps(self, steps):
        """Levels of a run."""
        rho = torch.cat([torch.logspace(1.2, -1.5, steps, dtype=torch.float64), torch.zeros(1).double()])
        self.sigmas = rho / (1 + rho) if self.form == "flow" else rho
        self.timesteps, self.place = torch.linspace(999, 0, steps), 0

    def scale_model_input(self, x, t):
        """The network's input."""
        return x / 2 if self.form == "ve" else x

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        """A step of Euler's in x/alpha over the noise level, from any answer."""
        s, t = (float(level) for level in self.sigmas[self.place : self.place + 2])
        self.place += 1
        if self.form == "flow":
            end = sample + self.wrong * (t - s) * model_output
        else:
            unit, after = (1 / math.hypot(1, level) if self.form == "vp" else 1.0 for level in (s, t))
            y, size = sample / unit, math.hypot(1, s)
            noise = {
                "epsilon": lambda: model_output, "sample": lambda: (y - model_output) / s,
                "v_prediction": lambda: (model_output + s * y / size) / size,
            }[self.kind]()  # fmt: skip
            end = after * (y + self.wrong * (t - s) * noise)
        if self.noise and t:
            end = end + self.noise * torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        return (end.to(sample.dtype),)


STANDING = {
    "ve": {}, "vp": {"form": "vp"}, "v": {"form": "vp", "kind": "v_prediction"}, "x": {"kind": "sample"},
    "flow": {"form": "flow", "kind": "flow_prediction"}, "wrong": {"wrong": 1.1}, "flat": {"form": "vp", "wrong": 0.5},
}  # fmt: skip


def standing(name, claimed=None, **options):
    """A sampler of such a scheduler."""
    scheduler = scheduler_loops.Scheduler(name, Standing(**options))
    path = "edm:sigma_min=1e-09,sigma_max=1000000000.0"
    return Sampler(
        name, foreign.scheduler_run(scheduler), claimed, None, path, to_zero=False, scheduler=scheduler, foreign=True
    )


@verdict_case
def verdicts_on_schedulers():
    found = {}
    with mock.patch.object(scheduler_trial, "STEPS", (10, 20, 50)), mock.patch.object(scheduler_given, "STEPS", (16, 32, 64)):
        for name, options in STANDING.items():
            report = verify.check_sampler(standing(name, 1 if name != "flat" else 2, **options))
            found[name] = seen(report.checks)
            found[name + " order"] = None if report.facts["order"] is None else fields_of(report.facts["order"])
        found["none"] = seen(verify.check_sampler(standing("none", None)).checks)
    return found


@verdict_case
def verdicts_on_schedulers_that_draw_noise():
    found = {}
    with mock.patch.multiple(scheduler_trial, LAW_STEPS=(20, 40), _DRAWS=2000):
        for name, options in (
            ("a little", {"noise": 0.002}),
            ("much", {"noise": 0.3}),
            ("wrong", {"noise": 0.01, "wrong": 1.1}),
        ):
            found[name] = seen(verify.check_sampler(standing(name, **options)).checks)
    return found


@verdict_case
def levels_of_schedulers():
    found, x = {}, torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    field = diffode.exact_field(LINE, "edm")
    for name, options in STANDING.items():
        made = Standing(**options)
        made.set_timesteps(5)
        levels, last, answer = scheduler_levels.reading(made, list(made.timesteps))
        run = scheduler_loops.Scheduler(name, Standing(**options), (30.0, 0.1)).at(5)
        found[name] = [levels, last, [answer(field, x, level) for level in levels], run.rho, run.into(0), run.into(-1)]
    for name, options in (("flipped", {"invert_sigmas": True}), ("rising", {}), ("own", {"use_flow_sigmas": True})):
        made = Standing("flow", "flow_prediction" if name != "own" else "epsilon", **options)
        made.set_timesteps(4)
        made.timesteps = made.timesteps.flip(0) if name == "rising" else made.timesteps
        levels, last, answer = scheduler_levels.reading(made, list(made.timesteps))
        found[name] = [levels, last, answer(field, x, levels[1])]
    for name, extra in (("inner", {"sigmas_interpol": 1}), ("ancestral", {"sigmas_interpol": 1, "sigmas_up": 1}),
                        ("second", {"_second_order_timesteps": 1})):  # fmt: skip
        made = Standing()
        made.set_timesteps(6)
        vars(made).update(extra)
        if "sigmas_interpol" in extra:
            made.sigmas_interpol = made.sigmas * 0.9
        found[name] = scheduler_levels.reading(made, list(made.timesteps))[:2]
        if "sigmas_interpol" in extra:
            scheduler_given.lay(made, 20.0, 0.05)
            found[name + " laid"] = [made.sigmas, made.sigmas_interpol[1:]]
    table = SimpleNamespace(config={}, alphas_cumprod=torch.linspace(0.999, 0.0, 1000, dtype=torch.float64))
    found["table"] = scheduler_levels.reading(table, [900, 500, 100])[:2]
    table.final_alpha_cumprod = 0.97
    found["ending"] = scheduler_levels.reading(table, [999, 500])[:2]
    found["rho"] = [scheduler_levels.rho_of(level) for level in ((0.0, 1.0), (1e-9, 1.0), (1.1e-9, 1.0), (0.6, 0.8))]
    conditioned = SimpleNamespace(
        config={}, sigmas=torch.tensor([3.0, 1.0, 0.2]), precondition_inputs=1,
        precondition_outputs=lambda x, out, s: x * 0.25 / (s**2 + 0.25) + out * s * 0.5 / math.hypot(float(s), 0.5),
    )  # fmt: skip
    levels, last, answer = scheduler_levels.reading(conditioned, [0, 1])
    found["edm"] = [levels, last, [answer(field, x, level) for level in levels]]
    found["unknown"] = message(scheduler_levels._predicted("other"), field, x, (1.0, 2.0))
    return found


@verdict_case
def loops_of_schedulers_of_their_own():
    field, x = diffode.exact_field(LINE, "edm:sigma_max=100"), torch.tensor([[0.3], [-1.2]], dtype=torch.float64)

    class Drawn:
        """Answers are noted, and each step moves by a share of them."""

        config = SimpleNamespace(correct_steps=2, beta_min=0.1, beta_max=20.0)

        def set_timesteps(self, steps):
            self.timesteps = torch.linspace(1, 0.1, steps, dtype=torch.float64)
            self.alphas = (self.timesteps * math.pi / 2).cos()
            self.betas, self.schedule = (self.timesteps * math.pi / 2).sin(), 3 * self.timesteps.flip(0)
            self.discrete_sigmas = torch.linspace(0.1, 3, steps, dtype=torch.float64)

        def set_sigmas(self, steps):
            self.discrete_sigmas = self.discrete_sigmas * 1.5

        def _alpha_cumprod(self, t, device):
            return (1 - t) ** 2

        def step(self, output, t, *rest, **_):
            x = rest[-1]
            return x + 0.1 * output * float(torch.as_tensor(t).mean()), output

        def step_correct(self, output, *rest, **_):
            return (rest[0] + 0.01 * output if len(rest) == 1 else rest[3] + 0.05 * (output - rest[4]),)

        def step_pred(self, output, *rest, **_):
            x, t = rest if rest[0].ndim else rest[::-1]
            return x + 0.1 * output, x + 0.2 * output * float(t)

        def add_noise_to_input(self, x, sigma, generator):
            return x * 1.1, torch.tensor(sigma * 1.2)

    found = {}
    for name in ("IPNDM", "Wuerstchen", "ScoreSdeVe", "ScoreSdeVp"):
        run = scheduler_loops.Scheduler(name, Drawn()).at(5)
        found[name] = [run.rho, run.first, run.last, run.follow(field, x, torch.Generator())]
    karras = Drawn()
    karras.set_timesteps = lambda steps: vars(karras).update(
        schedule=torch.linspace(0.1, 3, steps, dtype=torch.float64), timesteps=torch.arange(steps).flip(0)
    )
    run = scheduler_loops._karras_ve(karras, 4)
    found["KarrasVe"] = [run.rho, run.first, run.last, run.follow(field, x, torch.Generator())]
    return found
