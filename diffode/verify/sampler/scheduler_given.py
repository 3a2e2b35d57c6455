"""Levels given to a scheduler of diffusers in place of its own: in float64, and as fine as one likes.

A class rounds its own levels to training timesteps or keeps them in float32, so that errors between them stop falling before an
order shows. Classes that keep their levels in ``sigmas`` step between whatever stands there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffode.verify.sampler.scheduler_levels import CannotJudgeError, is_flow

#: Highest and lowest noise level sigma/alpha.
LEVELS = (20.0, 0.05)
#: Numbers of steps at which an order is measured.
STEPS = (16, 32, 64, 128, 256)
#: Exponent of the spacing between the levels (Karras et al., arXiv 2206.00364, eq. 5).
_SPACING = 7.0


def lay(scheduler: Any, highest: float, lowest: float) -> None:
    """Replace the levels that ``set_timesteps`` laid by Karras' between two; a last one at 0 stays there.

    Raises:
        CannotJudgeError: if the scheduler has no falling list of ``sigmas`` of its own.
    """
    held = getattr(scheduler, "sigmas", None)
    if not isinstance(held, Tensor) or not hasattr(scheduler, "set_begin_index") or scheduler.config.get("invert_sigmas"):
        raise CannotJudgeError("it keeps no list of levels for a run that could be replaced")
    old = held.double().cpu()
    if bool((old.diff() > 0).any()):
        raise CannotJudgeError("its levels rise")
    distinct = [level for level in dict.fromkeys(old.tolist()) if level > 0]
    high, low = (level ** (1 / _SPACING) for level in (highest, lowest))
    rho = (high + torch.linspace(0, 1, len(distinct), dtype=torch.float64) * (low - high)) ** _SPACING
    new = rho / (1 + rho) if is_flow(scheduler) else rho
    places = dict(zip(distinct, new.tolist(), strict=True))
    scheduler.sigmas = torch.tensor([places.get(level, 0.0) for level in old.tolist()], dtype=torch.float64)
    if hasattr(scheduler, "sigmas_interpol"):
        # KDPM2DiscreteScheduler.set_timesteps: the mean of the logarithms of each level and the one before.
        each = torch.cat([new, new.new_zeros(1)])
        inner = each.log().lerp(each.roll(1).log(), 0.5).exp()
        scheduler.sigmas_interpol = torch.cat([inner[:1], inner[1:].repeat_interleave(2), inner[-1:]])
    scheduler.set_begin_index(0)
