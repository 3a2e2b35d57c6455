"""Samplers of other libraries as functions of a field of diffode; each gets its usual inputs and is otherwise unchanged."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.extensions import library
from diffode.fields import Field
from diffode.fields.outward import as_k_diffusion
from diffode.verify.sampler.scheduler_loops import Scheduler, find_scheduler

#: Runs a sampler: the field, the start x (B, *shape), decreasing times, a generator for its noise.
Run = Callable[[Field, Tensor, Sequence[float], torch.Generator], Tensor]

#: Orders of torchdiffeq's fixed-step methods, by its documentation.
_TORCHDIFFEQ = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4}
#: Evaluations a step of those that are of one step, by their tableaus.
STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


def torchdiffeq_fixed(method: str, options: Mapping[str, Any]) -> tuple[Run, int]:
    """A fixed-step method and its order; n steps are set by ``step_size`` = 1/n on [0, 1], as its users do."""
    if method not in _TORCHDIFFEQ:
        known = ", ".join(_TORCHDIFFEQ)
        raise ArgumentError(f"torchdiffeq's fixed-step methods are {known}; {method!r} chooses its own steps")
    odeint = library("torchdiffeq").odeint

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        first, length = times[0], times[-1] - times[0]

        def slope(s: Tensor, y: Tensor) -> Tensor:
            return length * field.velocity(y, first + float(s) * length)

        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        end: Tensor = odeint(slope, x, ends, method=method, options={"step_size": 1 / (len(times) - 1), **options})[-1]
        return end

    return run, _TORCHDIFFEQ[method]


class Wrapped:
    """A denoiser as ComfyUI wraps it: its sampler functions ask it for the object that knows the model's levels.

    That object is of no class of theirs, so that a level is taken for one of x = x_0 + sigma eps.
    """

    def __init__(self, field: Field, first: float, last: float):
        self._denoised = as_k_diffusion(field)
        self._ends = math.log(first), math.log(last)
        self.inner_model = self.model_patcher = self.model_sampling = self

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """Denoised points."""
        return self._denoised(x, sigma)

    def get_model_object(self, name: str) -> Wrapped:
        """The model's levels."""
        return self

    def percent_to_sigma(self, percent: float) -> float:
        """The level at a share of the way, uniform in log sigma."""
        first, last = self._ends
        return math.exp(first + percent * (last - first))

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, most: bool = False) -> Tensor:
        """Noise of a level added to a denoised point."""
        return latent + sigma * noise


def k_diffusion(function: Callable[..., Any], options: Mapping[str, Any]) -> Run:
    """A function ``(model, x, sigmas, ...)``, with a model that gives denoised points for a sigma in every row."""
    takes = inspect.signature(function).parameters
    quiet = {"disable": True} if "disable" in takes else {}

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        model = Wrapped(field, times[0], times[-1] or times[-2])
        # These samplers draw from the global generator, which is seeded from the given one.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=generator)))
            # Their callers pass levels in the dtype of the states.
            end: Tensor = function(model, x, torch.tensor(list(times), dtype=x.dtype), **quiet, **options)
        return end

    return run


def is_azula(found: Any) -> bool:
    """Whether an object is a class of azula's samplers; azula is not imported for that."""
    return inspect.isclass(found) and any(base.__module__ == "azula.sample" for base in found.__mro__)


def azula_sampler(cls: Any, options: Mapping[str, Any]) -> Run:
    """A class of azula's samplers, on its own variance-exploding schedule with steps uniform in log sigma."""
    denoise, noise = (library(f"azula.{name}", "--no-deps azula einops") for name in ("denoise", "noise"))

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        schedule = noise.VESchedule(sigma_min=times[-1], sigma_max=times[0])

        class Exact(denoise.Denoiser):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.schedule = schedule

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                return denoise.DiracPosterior(field.denoised(x_t, float(schedule.sigma(t))))

        sampler = cls(Exact(), steps=len(times) - 1, silent=True, dtype=torch.float64, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=generator)))
            end: Tensor = sampler(x)
        return end

    return run


def diffusers_scheduler(name: str, options: Mapping[str, Any]) -> tuple[Run, Scheduler]:
    """A scheduler of diffusers as its pipelines call it, in x/alpha at rho; the number of times sets that of its steps."""
    scheduler = find_scheduler(name, options)
    return scheduler_run(scheduler), scheduler


def scheduler_run(scheduler: Scheduler) -> Run:
    """Runs of a scheduler between its levels."""

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        own = scheduler.at(len(times) - 1)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            end = own.follow(field, x * own.into(0), generator)
        return end / own.into(-1)

    return run
