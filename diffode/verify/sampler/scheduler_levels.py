r"""The levels of a run of a diffusers scheduler, the form of its sample there, and the answer of its network.

A loop takes a class's own levels for n steps, answers each call of the network from a field whose flow is known, and returns
the end. The field is one in x/alpha over rho = sigma/alpha, in which the flow is the same on every path. The class tells the
form of its sample and the place of its levels:

* ``vp``: :math:`x = \alpha x_0 + \sigma\epsilon` with :math:`\alpha^2 + \sigma^2 = 1`, from ``alphas_cumprod`` or ``sigmas``;
* ``ve``: :math:`x = x_0 + \sigma\epsilon`, from ``sigmas``; such a class scales its sample in ``scale_model_input``;
* ``flow``: :math:`x = (1 - \sigma)x_0 + \sigma\epsilon`, from ``sigmas``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field

#: Noise level rho in place of infinity, where alpha is 0; at data of any usual scale a field answers the same there.
PURE_NOISE = 1e9


#: alpha and sigma of a sample.
Level = tuple[float, float]


class CannotJudgeError(ArgumentError):
    """A sampler can't be held against a flow or a law of diffode; the message says why."""


@dataclass(frozen=True)
class Run:
    """A scheduler with a number of steps: its levels, and its loop.

    Attributes:
        rho: noise levels of the sample, from the first to the last, which may be 0. They fall, or rise for an inversion.
        first, last: alpha and sigma of the first sample and of the end.
        follow: the loop, a function of the field in x/alpha over rho, a start and a generator for its noise, to the end.
    """

    rho: tuple[float, ...]
    first: Level
    last: Level
    follow: Callable[[Field, Tensor, torch.Generator], Tensor]

    def into(self, end: int) -> float:
        """Factor from x/alpha to the scheduler's sample, at the first (0) or the last level (-1)."""
        alpha, sigma = (self.first, self.last)[end]
        return max(alpha, sigma / PURE_NOISE)


def reading(scheduler: Any, timesteps: list[Any]) -> tuple[list[Level], Level, Callable[[Field, Tensor, Level], Tensor]]:
    """The level of each call of the network, that of the end, and the function that answers a call."""
    config, name = scheduler.config, type(scheduler).__name__
    sigmas = getattr(scheduler, "sigmas", None)
    table = getattr(scheduler, "alphas_cumprod", None)
    if hasattr(scheduler, "precondition_inputs"):
        return *_from_sigmas(scheduler, timesteps, exploding), _preconditioned(scheduler)
    if is_flow(scheduler):
        form, sign = _flow, 1.0
        if config.get("invert_sigmas"):
            form, sign = _flow_inverted, -1.0
        elif sigmas is not None and float(sigmas[0]) > float(sigmas[-1]) and float(timesteps[0]) < float(timesteps[-1]):
            # If timesteps rise while the noise falls, the network's velocity points to the data.
            sign = -1.0
        kind = config.get("prediction_type") or "flow_prediction"
        return *_from_sigmas(scheduler, timesteps, form), _predicted(kind, sign)
    kind = str(config.get("prediction_type") or "epsilon")
    # Such a class keeps the levels of each run; without a run it reads its table of training levels.
    laid = sigmas is not None and hasattr(scheduler, "set_begin_index")
    if laid:
        # A copy is called, since the call begins a run.
        asked = copy.copy(scheduler)
        probe = asked.scale_model_input(torch.ones(1), timesteps[0]) if hasattr(asked, "scale_model_input") else 1.0
        return *_from_sigmas(scheduler, timesteps, _vp if float(probe) == 1.0 else exploding), _predicted(kind)
    if table is None:
        raise CannotJudgeError(f"where {name} keeps its noise levels is not known here: neither sigmas nor alphas_cumprod")
    kept = [of_table(float(table[int(t)])) for t in timesteps]
    end = getattr(scheduler, "final_alpha_cumprod", None)
    if "Inverse" in name:
        end = table[int(timesteps[-1])]
    return kept, of_table(1.0 if end is None else float(end)), _predicted(kind)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's sigmas are those of flow matching, between x_0 and noise."""
    config, name = scheduler.config, type(scheduler).__name__
    straight = "FlowMatch" in name or "FlowMap" in name or name.startswith(("MiniMaxH3", "LTXEuler"))
    return straight or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def _from_sigmas(scheduler: Any, timesteps: list[Any], form: Callable[[float], Level]) -> tuple[list[Level], Level]:
    sigmas = [float(s) for s in scheduler.sigmas]
    asked = list(sigmas)
    inner = getattr(scheduler, "sigmas_interpol", None)
    if inner is not None:
        # Every other call of a two-stage method is inside a step; the ancestral method counts it from the step's start.
        back = 1 if hasattr(scheduler, "sigmas_up") else 0
        asked = [float(inner[k - back]) if k % 2 else s for k, s in enumerate(sigmas[: len(timesteps)])]
    if hasattr(scheduler, "_second_order_timesteps"):
        asked = [math.sqrt(sigmas[k - 1] * s) if k % 2 and s else s for k, s in enumerate(sigmas[: len(timesteps)])]
    return [form(s) for s in asked[: len(timesteps)]], form(sigmas[min(len(timesteps), len(sigmas) - 1)])


def of_table(kept: float) -> Level:
    """The level of a variance-preserving sample at which alpha^2 is ``kept``."""
    return math.sqrt(max(kept, 0.0)), math.sqrt(max(1 - kept, 0.0))


def _vp(rho: float) -> Level:
    return 1 / math.hypot(1, rho), rho / math.hypot(1, rho)


def exploding(rho: float) -> Level:
    """The level of a sample whose data are not scaled."""
    return 1.0, rho


def _flow(sigma: float) -> Level:
    return 1 - sigma, sigma


def _flow_inverted(sigma: float) -> Level:
    return sigma, 1 - sigma


def rho_of(level: Level) -> float:
    """sigma/alpha, at most ``PURE_NOISE``."""
    alpha, sigma = level
    return PURE_NOISE if alpha * PURE_NOISE <= sigma else sigma / alpha


def both(field: Field, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The denoised point and the noise of a sample, from one evaluation, without cancellation in either."""
    rho = rho_of(level)
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
            # The network's input is scaled to unit size, whatever the form of the sample.
            return (level[0] * noise - level[1] * denoised) / math.hypot(*level)
        if kind == "flow_prediction":
            return sign * (noise - denoised)
        raise CannotJudgeError(f"what its network predicts (prediction_type={kind}) is not known here")

    return answer


def _preconditioned(scheduler: Any) -> Callable[[Field, Tensor, Level], Tensor]:
    """The answer of EDM's network, which its preconditioning turns into the denoised point."""

    def answer(field: Field, x: Tensor, level: Level) -> Tensor:
        sigma = torch.tensor(level[1], dtype=torch.float64)
        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        skip = float(scheduler.precondition_outputs(one, none, sigma))
        out = float(scheduler.precondition_outputs(none, one, sigma))
        return (both(field, x, level)[0] - skip * x) / out

    return answer
