"""Loops of diffusers schedulers, each called as its own pipelines call it, at its own levels."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import math
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError, suggestion
from diffode.extensions import library
from diffode.fields import Field
from diffode.verify.sampler import scheduler_given
from diffode.verify.sampler.scheduler_levels import CannotJudgeError, Level, Run, both, exploding, of_table, reading, rho_of

#: Numbers of steps, divisors of 1000, for which a list of every k-th training level begins near the last one.
STEPS = (10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers with options: ``unused`` was never run, and ``at(n)`` gives a run of n steps with a copy.

    Runs use copies, since some classes compute a thousand levels when they are made. With ``given``, a highest
    and a lowest level, its runs go between levels of ``scheduler_given`` instead of its own.
    """

    name: str
    unused: Any
    given: tuple[float, float] | None = None
    _levels: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def batched(self) -> str:
        """Why rows of its batch depend on each other as published, if they do."""
        published = "the size of its corrector's step is a mean over the batch, as published"
        return published if hasattr(self.unused, "step_correct") and hasattr(self.unused, "step_pred") else ""

    def levels(self, steps: int) -> tuple[float, ...]:
        """Noise levels ``rho`` of a run of ``steps`` steps."""
        if steps not in self._levels:
            self._levels[steps] = self.at(steps).rho
        return self._levels[steps]

    def at(self, steps: int) -> Run:
        """A run of ``steps`` steps with a copy of the scheduler; its warnings are silenced."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = copy.deepcopy(self.unused)
            for part, loop in _LOOPS.items():
                if part in self.name:
                    if self.given is not None:
                        raise CannotJudgeError("its loop keeps levels of its own")
                    return loop(scheduler, steps)
            return _usual(scheduler, steps, self.given)

    def between_given_levels(self) -> Scheduler:
        """The scheduler with levels of ``scheduler_given``."""
        return Scheduler(self.name, self.unused, scheduler_given.LEVELS)


def classes() -> dict[str, Any]:
    """Every class of the installed diffusers' schedulers, by name, deprecated ones too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = library("diffusers").SchedulerMixin
        found: dict[str, Any] = {}
        for package in ("diffusers.schedulers", "diffusers.schedulers.deprecated"):
            try:
                folder = importlib.import_module(package).__path__
            except ImportError:
                continue
            for module in pkgutil.iter_modules(folder):
                # A module that needs Flax or another library that is not installed is left out.
                try:
                    held = vars(importlib.import_module(f"{package}.{module.name}"))
                except Exception:
                    continue
                for name, one in held.items():
                    if inspect.isclass(one) and issubclass(one, base) and one is not base and one.__name__ == name:
                        found[name] = one
    return dict(sorted(found.items()))


def find_scheduler(name: str, options: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a name, with options; its clipping to [-1, 1] is off unless an option turns it on.

    Raises:
        CannotJudgeError: if it does not solve an ODE or SDE of a density on vectors; the message says why.
        ArgumentError: if there is no such class, or the options are wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = library("diffusers")
        made = getattr(diffusers, name, None)
    # If a library that a class needs is missing, diffusers has a placeholder of its name.
    if not (inspect.isclass(made) and issubclass(made, diffusers.SchedulerMixin)):
        known = classes()
        if name not in known:
            raise ArgumentError(
                f"diffusers has no {name!r}{suggestion(name, known)}; its schedulers are called "
                "EulerDiscreteScheduler, UniPCMultistepScheduler ..."
            )
        made = known[name]
    for part, reason in _UNJUDGED.items():
        if part in name:
            raise CannotJudgeError(reason)
    takes = inspect.signature(made.__init__).parameters
    chosen = dict(options)
    if "clip_sample" in takes:
        chosen.setdefault("clip_sample", False)
    unknown = [key for key in chosen if key not in takes]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ArgumentError(f"diffusers:{name} has no option {unknown[0]!r}{suggestion(unknown[0], takes)}")
    missing = [
        key
        for key, p in takes.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and key not in ("self", *chosen)
    ]
    if missing:
        raise CannotJudgeError(f"it can't be made without {', '.join(missing)}: give them as --option {missing[0]}=...")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = made(**chosen)
        except Exception as error:  # the class checks its options in its own way
            raise ArgumentError(f"diffusers:{name} can't be made with {chosen}: {error}") from error
    _refuse(scheduler, name)
    return Scheduler(name, scheduler)


#: Parts of names of classes that can't be held against the flow or the law of a density, with the reasons.
_UNJUDGED = {
    **dict.fromkeys(
        ("Amused", "BlockRefinement", "DiscreteDDIM", "EntropyBound", "VQDiffusion"),
        "it draws discrete tokens; a field and its flow are of continuous states",
    ),
    **dict.fromkeys(
        ("CMStochasticIterative", "ConsistencyDecoder", "LCM", "TCD", "SCM", "HeliosDMD"),
        "it is no ODE solver: its network is a map straight to the data (a consistency or distilled model), between which it "
        "adds noise again; driven by a denoiser it has another law than the data's at any number of steps",
    ),
    "Piflow": "it is no ODE solver: its network predicts a whole policy (n_grid points ahead) and not one field's value",
    "RePaint": "it fills in a masked part of an image: its law is that of the rest given the part, which its loop needs",
    "RFD4Proteina": "it lowers the temperature (tsr_k) of a masked chain of residues: its law is not the field's",
}


def _refuse(scheduler: Any, name: str) -> None:
    """Raise CannotJudgeError for options with which a scheduler follows no known flow or law."""
    config = scheduler.config
    if str(config.get("variance_type") or "").startswith("learned"):
        raise CannotJudgeError(f"with variance_type={config['variance_type']} its network predicts variances too")
    if config.get("thresholding"):
        raise CannotJudgeError("thresholding cuts denoised images off by their quantiles: the run is no flow of a field")
    if config.get("stochastic_sampling"):
        raise CannotJudgeError("with stochastic_sampling it noises the denoised point anew, for a map straight to the data")
    if config.get("lambda_min_clipped", -math.inf) > -math.inf:
        raise CannotJudgeError("lambda_min_clipped leaves noise levels out: its first step is none of the flow")
    if (config.get("stages") or 1) > 1:
        raise CannotJudgeError(
            "it runs in stages of growing size, between which its pipeline enlarges and noises: --option stages=1 judges one"
        )


def _usual(scheduler: Any, steps: int, given: tuple[float, float] | None = None) -> Run:
    """The loop of nearly all pipelines: scale_model_input, the network, step, over the scheduler's timesteps."""
    config = scheduler.config
    lay = inspect.signature(scheduler.set_timesteps).parameters
    dynamic = {"mu": 1.0} if "mu" in lay and config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **dynamic)
    if given is not None:
        scheduler_given.lay(scheduler, *given)
    timesteps = list(scheduler.timesteps)
    takes = inspect.signature(scheduler.step).parameters
    levels, last, answer = reading(scheduler, timesteps)
    own = {"return_dict": False} if "return_dict" in takes else {}
    needed = {
        key for key, p in takes.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    } - {"model_output", "timestep", "sample", "old_pred_original_sample", "timestep_back"}  # fmt: skip
    if needed:
        raise CannotJudgeError(f"its step needs {', '.join(sorted(needed))}, which nothing here stands for")

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = {"generator": generator} if "generator" in takes else {}
        old: Tensor | None = None
        for k, t in enumerate(timesteps):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            extra: dict[str, Any] = {}
            if "old_pred_original_sample" in takes:
                extra = {"old_pred_original_sample": old, "timestep_back": timesteps[k - 1] if k else None}
            if "prev_timestep" in takes:
                extra = {"prev_timestep": timesteps[k + 1] if k + 1 < len(timesteps) else None}
            output = answer(field, x, levels[k])
            found = scheduler.step(output, sample=x, timestep=t, **extra, **drawn, **own)
            x, old = found[0], found[1] if "old_pred_original_sample" in takes else None
        return x

    first = _first(scheduler, levels[0], timesteps)
    return Run((rho_of(first), *(rho_of(level) for level in levels[1:]), rho_of(last)), first, last, follow)


def _first(scheduler: Any, level: Level, timesteps: list[Any]) -> Level:
    """The level of the first sample: that of the first call, unless the class looks one level ahead."""
    if type(scheduler).__name__ != "DDIMInverseScheduler":
        return level
    before = int(timesteps[0]) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return of_table(float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.initial_alpha_cumprod))


def _ipndm(scheduler: Any, steps: int) -> Run:
    """IPNDM has alphas and betas (its sigmas) for each run; its first alpha is 0, and its network gives a velocity-like v."""
    scheduler.set_timesteps(steps)
    levels = [(float(a), float(b)) for a, b in zip(scheduler.alphas, scheduler.betas, strict=True)]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        for t, level in zip(scheduler.timesteps, levels, strict=False):
            denoised, noise = both(field, x, level)
            x = scheduler.step(level[0] * noise - level[1] * denoised, t, x, return_dict=False)[0]
        return x

    return Run(tuple(rho_of(level) for level in levels), levels[0], levels[-1], follow)


def _wuerstchen(scheduler: Any, steps: int) -> Run:
    """The loop with times from 1 to 0, as tensors with a time for each row; the last time is that of the end."""
    scheduler.set_timesteps(steps)
    levels = [of_table(float(scheduler._alpha_cumprod(t[None], torch.device("cpu")))) for t in scheduler.timesteps]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        for t, level in zip(scheduler.timesteps[:-1], levels, strict=False):
            output = both(field, x, level)[1]
            x = scheduler.step(output, t.expand(len(x)), x, generator=generator, return_dict=False)[0]
        return x

    return Run(tuple(rho_of(level) for level in levels), levels[0], levels[-1], follow)


def _score_sde_ve(scheduler: Any, steps: int) -> Run:
    """The loop of predictor and corrector; the network gives scores, and the end is the mean of the last prediction."""
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    levels = [exploding(float(s)) for s in reversed(scheduler.discrete_sigmas)]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        mean = x
        for k, t in enumerate(scheduler.timesteps):
            index = int(float(t) * (steps - 1))
            level = exploding(float(scheduler.discrete_sigmas[index]))

            def score(point: Tensor, level: Level = level) -> Tensor:
                return -both(field, point, level)[1] / level[1]

            for _ in range(scheduler.config.correct_steps if k else 0):
                x = scheduler.step_correct(score(x), x, generator=generator, return_dict=False)[0]
            x, mean = scheduler.step_pred(score(x), t, x, generator=generator, return_dict=False)
        return mean

    return Run((*(rho_of(level) for level in levels), 0.0), levels[0], (1.0, 0.0), follow)


def _score_sde_vp(scheduler: Any, steps: int) -> Run:
    """The loop of Euler-Maruyama in time; the network gives noise, and the end is the mean of the last step."""
    scheduler.set_timesteps(steps)
    low, high = scheduler.config.beta_min, scheduler.config.beta_max

    def level_at(t: float) -> Level:
        kept = math.exp(-0.5 * t**2 * (high - low) - t * low)
        return of_table(kept)

    levels = [level_at(float(t)) for t in scheduler.timesteps]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        mean = x
        for t, level in zip(scheduler.timesteps, levels, strict=True):
            x, mean = scheduler.step_pred(both(field, x, level)[1], x, t, generator=generator)
        return mean

    return Run((*(rho_of(level) for level in levels), 0.0), levels[0], (1.0, 0.0), follow)


def _karras_ve(scheduler: Any, steps: int) -> Run:
    """Karras's stochastic sampler: churn, an Euler step and a correction, except in the step to 0."""
    scheduler.set_timesteps(steps)
    levels = [float(s) for s in scheduler.schedule]
    # The list of levels begins at the last level, so that timestep t is at place t of the reversed list.
    order = [float(scheduler.schedule[int(t)]) for t in scheduler.timesteps]
    levels = sorted(order, reverse=True)

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        for sigma, following in zip(levels, [*levels[1:], 0.0], strict=True):
            hat, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator=generator)
            output = -both(field, hat, exploding(float(sigma_hat)))[1]
            x, slope = scheduler.step(output, sigma_hat, following, hat, return_dict=False)
            if following:
                again = -both(field, x, exploding(following))[1]
                x = scheduler.step_correct(again, sigma_hat, following, hat, x, slope, return_dict=False)[0]
        return x

    return Run((*levels, 0.0), exploding(levels[0]), (1.0, 0.0), follow)


#: Parts of names of the classes that have a loop of their own.
_LOOPS: dict[str, Callable[[Any, int], Run]] = {
    "IPNDM": _ipndm,
    "Wuerstchen": _wuerstchen,
    "ScoreSdeVe": _score_sde_ve,
    "ScoreSdeVp": _score_sde_vp,
    "KarrasVe": _karras_ve,
}
