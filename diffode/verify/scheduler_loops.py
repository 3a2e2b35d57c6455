r"""Schedulers of diffusers, each called as its own pipelines call it: its own levels, its own loop, its own kind of answer.

A loop lays a class's own levels for n steps, answers each call of the network from a field whose flow is known, and hands
back the end. The field is one in x/alpha over rho = sigma/alpha, where the flow is the same on every path. What the sample
is and where the levels stand is read off the class:

* ``vp``: :math:`x = \alpha x_0 + \sigma\epsilon` with :math:`\alpha^2 + \sigma^2 = 1`, from ``alphas_cumprod`` or ``sigmas``;
* ``ve``: :math:`x = x_0 + \sigma\epsilon`, from ``sigmas``; ``scale_model_input`` tells such a class from the first kind;
* ``flow``: :math:`x = (1 - \sigma)x_0 + \sigma\epsilon`, from ``sigmas``.
"""

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

#: rho that stands for pure noise, where alpha is 0: a field of data of any usual scale answers as at infinity.
PURE_NOISE = 1e9
#: Steps that divide 1000: a list of every k-th training level then begins near the last one.
STEPS = (10, 20, 50, 100, 200)

#: alpha and sigma of a sample.
Level = tuple[float, float]


class CannotJudgeError(ArgumentError):
    """A sampler is none that can be held against a flow or a law of diffode's; the message says why."""


@dataclass(frozen=True)
class Run:
    """A scheduler made and given its steps: its levels, and what runs it.

    Attributes:
        rho: noise levels of the sample, from the first to the last; 0 is no noise. They fall, or rise for an inversion.
        first, last: alpha and sigma of the first sample and of the end.
        follow: the loop: the field in x/alpha over rho, a start, a generator for its noise -> the end.
    """

    rho: tuple[float, ...]
    first: Level
    last: Level
    follow: Callable[[Field, Tensor, torch.Generator], Tensor]

    def into(self, end: int) -> float:
        """What x/alpha is multiplied by to be its sample, at the first (0) or the last level (-1)."""
        alpha, sigma = (self.first, self.last)[end]
        return max(alpha, sigma / PURE_NOISE)


@dataclass(frozen=True)
class Scheduler:
    """A class of diffusers' schedulers with options: ``unused`` was never run, and ``at(n)`` gives a copy of it n steps.

    Copies are made since some classes lay a thousand levels when they are made.
    """

    name: str
    unused: Any
    _levels: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def batched(self) -> str:
        """Why rows of its batch depend on each other as published, if they do."""
        published = "the size of its corrector's step is a mean over the batch, as published"
        return published if hasattr(self.unused, "step_correct") and hasattr(self.unused, "step_pred") else ""

    def levels(self, steps: int) -> tuple[float, ...]:
        """``rho`` of a run of so many steps."""
        if steps not in self._levels:
            self._levels[steps] = self.at(steps).rho
        return self._levels[steps]

    def at(self, steps: int) -> Run:
        """A new one with so many steps, quietly."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = copy.deepcopy(self.unused)
            for part, loop in _LOOPS.items():
                if part in self.name:
                    return loop(scheduler, steps)
            return _usual(scheduler, steps)


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
                # A module of Flax or another library that is not installed has no classes for us.
                try:
                    held = vars(importlib.import_module(f"{package}.{module.name}"))
                except Exception:
                    continue
                for name, one in held.items():
                    if inspect.isclass(one) and issubclass(one, base) and one is not base and one.__name__ == name:
                        found[name] = one
    return dict(sorted(found.items()))


def find_scheduler(name: str, options: Mapping[str, Any]) -> Scheduler:
    """The scheduler that is called ``name``, with options; its own clipping to [-1, 1] is off unless they ask for it.

    Raises:
        CannotJudgeError: if it is none of an ODE or SDE of a density on vectors, with the reason.
        ArgumentError: if there is no such class, or the options are wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = library("diffusers")
        made = getattr(diffusers, name, None)
    # Where a library that a class wants is missing, diffusers shows a stand-in of its name.
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


#: Parts of names, and why such classes can't be held against the flow or the law of a density.
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
    """Options that leave no flow and no law to hold it against."""
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


def _usual(scheduler: Any, steps: int) -> Run:
    """The loop of nearly all pipelines: scale_model_input, the network, step, over the scheduler's own timesteps."""
    config = scheduler.config
    lay = inspect.signature(scheduler.set_timesteps).parameters
    dynamic = {"mu": 1.0} if "mu" in lay and config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **dynamic)
    timesteps = list(scheduler.timesteps)
    takes = inspect.signature(scheduler.step).parameters
    levels, last, answer = _reading(scheduler, timesteps)
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
    return Run((_rho(first), *(_rho(level) for level in levels[1:]), _rho(last)), first, last, follow)


def _reading(scheduler: Any, timesteps: list[Any]) -> tuple[list[Level], Level, Callable[[Field, Tensor, Level], Tensor]]:
    """The level of each call of the network, that of the end, and how the network answers."""
    config, name = scheduler.config, type(scheduler).__name__
    sigmas = getattr(scheduler, "sigmas", None)
    table = getattr(scheduler, "alphas_cumprod", None)
    if hasattr(scheduler, "precondition_inputs"):
        return *_from_sigmas(scheduler, timesteps, _ve), _preconditioned(scheduler)
    if is_flow(scheduler):
        form, sign = _flow, 1.0
        if config.get("invert_sigmas"):
            form, sign = _flow_inverted, -1.0
        elif sigmas is not None and float(sigmas[0]) > float(sigmas[-1]) and float(timesteps[0]) < float(timesteps[-1]):
            # Timesteps that rise while the noise falls belong to a network whose velocity points to the data.
            sign = -1.0
        kind = config.get("prediction_type") or "flow_prediction"
        return *_from_sigmas(scheduler, timesteps, form), _predicted(kind, sign)
    kind = str(config.get("prediction_type") or "epsilon")
    # Such a class keeps its levels for each run; one that was never given any reads its table of training levels.
    laid = sigmas is not None and hasattr(scheduler, "set_begin_index")
    if laid:
        # A copy is asked, since the question counts as the beginning of a run.
        asked = copy.copy(scheduler)
        probe = asked.scale_model_input(torch.ones(1), timesteps[0]) if hasattr(asked, "scale_model_input") else 1.0
        return *_from_sigmas(scheduler, timesteps, _vp if float(probe) == 1.0 else _ve), _predicted(kind)
    if table is None:
        raise CannotJudgeError(f"where {name} keeps its noise levels is not known here: neither sigmas nor alphas_cumprod")
    kept = [_of_table(float(table[int(t)])) for t in timesteps]
    end = getattr(scheduler, "final_alpha_cumprod", None)
    if "Inverse" in name:
        end = table[int(timesteps[-1])]
    return kept, _of_table(1.0 if end is None else float(end)), _predicted(kind)


def is_flow(scheduler: Any) -> bool:
    """Whether its sigmas are flow matching's, between x_0 and noise."""
    config, name = scheduler.config, type(scheduler).__name__
    straight = "FlowMatch" in name or "FlowMap" in name or name.startswith(("MiniMaxH3", "LTXEuler"))
    return straight or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def _from_sigmas(scheduler: Any, timesteps: list[Any], form: Callable[[float], Level]) -> tuple[list[Level], Level]:
    sigmas = [float(s) for s in scheduler.sigmas]
    asked = list(sigmas)
    inner = getattr(scheduler, "sigmas_interpol", None)
    if inner is not None:
        # Every other call of a two-stage method is inside a step; the ancestral one counts these from the step's start.
        back = 1 if hasattr(scheduler, "sigmas_up") else 0
        asked = [float(inner[k - back]) if k % 2 else s for k, s in enumerate(sigmas[: len(timesteps)])]
    if hasattr(scheduler, "_second_order_timesteps"):
        asked = [math.sqrt(sigmas[k - 1] * s) if k % 2 and s else s for k, s in enumerate(sigmas[: len(timesteps)])]
    return [form(s) for s in asked[: len(timesteps)]], form(sigmas[min(len(timesteps), len(sigmas) - 1)])


def _first(scheduler: Any, level: Level, timesteps: list[Any]) -> Level:
    """The level of the first sample: that of the first call, unless the class looks one level ahead."""
    if type(scheduler).__name__ != "DDIMInverseScheduler":
        return level
    before = int(timesteps[0]) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return _of_table(float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.initial_alpha_cumprod))


def _of_table(kept: float) -> Level:
    return math.sqrt(max(kept, 0.0)), math.sqrt(max(1 - kept, 0.0))


def _vp(rho: float) -> Level:
    return 1 / math.hypot(1, rho), rho / math.hypot(1, rho)


def _ve(rho: float) -> Level:
    return 1.0, rho


def _flow(sigma: float) -> Level:
    return 1 - sigma, sigma


def _flow_inverted(sigma: float) -> Level:
    return sigma, 1 - sigma


def _rho(level: Level) -> float:
    alpha, sigma = level
    return PURE_NOISE if alpha * PURE_NOISE <= sigma else sigma / alpha


def both(field: Field, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The denoised point and the noise of a sample, of one evaluation, so that neither cancels."""
    rho = _rho(level)
    y = x / max(level[0], level[1] / PURE_NOISE)
    if rho >= 1:
        denoised = field.denoised(y, rho)
        return denoised, (y - denoised) / rho
    noise = field.noise(y, rho)
    return y - rho * noise, noise


def _predicted(kind: str, sign: float = 1.0) -> Callable[[Field, Tensor, Level], Tensor]:
    def answer(field: Field, x: Tensor, level: Level) -> Tensor:
        denoised, noise = both(field, x, level)
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return denoised
        if kind == "v_prediction":
            # The network sees its input scaled to unit size, whatever the sample is.
            return (level[0] * noise - level[1] * denoised) / math.hypot(*level)
        if kind == "flow_prediction":
            return sign * (noise - denoised)
        raise CannotJudgeError(f"what its network predicts (prediction_type={kind}) is not known here")

    return answer


def _preconditioned(scheduler: Any) -> Callable[[Field, Tensor, Level], Tensor]:
    """EDM's network: what its preconditioning turns into the denoised point."""

    def answer(field: Field, x: Tensor, level: Level) -> Tensor:
        sigma = torch.tensor(level[1], dtype=torch.float64)
        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        skip = float(scheduler.precondition_outputs(one, none, sigma))
        out = float(scheduler.precondition_outputs(none, one, sigma))
        return (both(field, x, level)[0] - skip * x) / out

    return answer


def _ipndm(scheduler: Any, steps: int) -> Run:
    """IPNDM keeps alphas and betas (its sigmas) for each run; its first alpha is 0, and its answer is a velocity-like v."""
    scheduler.set_timesteps(steps)
    levels = [(float(a), float(b)) for a, b in zip(scheduler.alphas, scheduler.betas, strict=True)]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        for t, level in zip(scheduler.timesteps, levels, strict=False):
            denoised, noise = both(field, x, level)
            x = scheduler.step(level[0] * noise - level[1] * denoised, t, x, return_dict=False)[0]
        return x

    return Run(tuple(_rho(level) for level in levels), levels[0], levels[-1], follow)


def _wuerstchen(scheduler: Any, steps: int) -> Run:
    """Times from 1 to 0 as tensors with one for each row; the last of them is the end."""
    scheduler.set_timesteps(steps)
    levels = [_of_table(float(scheduler._alpha_cumprod(t[None], torch.device("cpu")))) for t in scheduler.timesteps]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        for t, level in zip(scheduler.timesteps[:-1], levels, strict=False):
            output = both(field, x, level)[1]
            x = scheduler.step(output, t.expand(len(x)), x, generator=generator, return_dict=False)[0]
        return x

    return Run(tuple(_rho(level) for level in levels), levels[0], levels[-1], follow)


def _score_sde_ve(scheduler: Any, steps: int) -> Run:
    """Predictor and corrector; the network gives scores, and the end is the mean of the last prediction."""
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    levels = [_ve(float(s)) for s in reversed(scheduler.discrete_sigmas)]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        mean = x
        for k, t in enumerate(scheduler.timesteps):
            index = int(float(t) * (steps - 1))
            level = _ve(float(scheduler.discrete_sigmas[index]))

            def score(point: Tensor, level: Level = level) -> Tensor:
                return -both(field, point, level)[1] / level[1]

            for _ in range(scheduler.config.correct_steps if k else 0):
                x = scheduler.step_correct(score(x), x, generator=generator, return_dict=False)[0]
            x, mean = scheduler.step_pred(score(x), t, x, generator=generator, return_dict=False)
        return mean

    return Run((*(_rho(level) for level in levels), 0.0), levels[0], (1.0, 0.0), follow)


def _score_sde_vp(scheduler: Any, steps: int) -> Run:
    """Euler-Maruyama in time; the network gives noise, and the end is the mean of the last step."""
    scheduler.set_timesteps(steps)
    low, high = scheduler.config.beta_min, scheduler.config.beta_max

    def level_at(t: float) -> Level:
        kept = math.exp(-0.5 * t**2 * (high - low) - t * low)
        return _of_table(kept)

    levels = [level_at(float(t)) for t in scheduler.timesteps]

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        mean = x
        for t, level in zip(scheduler.timesteps, levels, strict=True):
            x, mean = scheduler.step_pred(both(field, x, level)[1], x, t, generator=generator)
        return mean

    return Run((*(_rho(level) for level in levels), 0.0), levels[0], (1.0, 0.0), follow)


def _karras_ve(scheduler: Any, steps: int) -> Run:
    """Karras's stochastic sampler: churn, an Euler step and a correction, except in the step to 0."""
    scheduler.set_timesteps(steps)
    levels = [float(s) for s in scheduler.schedule]
    # Its list counts from the last level; timestep t stands at place t of the reversed list.
    order = [float(scheduler.schedule[int(t)]) for t in scheduler.timesteps]
    levels = sorted(order, reverse=True)

    def follow(field: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        for sigma, following in zip(levels, [*levels[1:], 0.0], strict=True):
            hat, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator=generator)
            output = -both(field, hat, _ve(float(sigma_hat)))[1]
            x, slope = scheduler.step(output, sigma_hat, following, hat, return_dict=False)
            if following:
                again = -both(field, x, _ve(following))[1]
                x = scheduler.step_correct(again, sigma_hat, following, hat, x, slope, return_dict=False)[0]
        return x

    return Run((*levels, 0.0), _ve(levels[0]), (1.0, 0.0), follow)


#: Parts of names of the classes that have a loop of their own.
_LOOPS: dict[str, Callable[[Any, int], Run]] = {
    "IPNDM": _ipndm,
    "Wuerstchen": _wuerstchen,
    "ScoreSdeVe": _score_sde_ve,
    "ScoreSdeVp": _score_sde_vp,
    "KarrasVe": _karras_ve,
}
