"""diffusers' own loop with noise levels of one's own, for comparisons step by step."""

import inspect

import torch


def follow_scheduler(scheduler, rho, noise, x, generator):
    """diffusers' own loop with noise levels given; ``noise(x, rho)`` is the noise prediction at the scheduler's x."""
    takes = inspect.signature(scheduler.step).parameters
    own = {"generator": generator} if "generator" in takes else {}
    two_stages = type(scheduler).__name__.startswith(("Heun", "KDPM2"))
    scheduler.set_timesteps(len(rho) if two_stages else len(rho) - 1)
    scheduler.set_begin_index(0)
    levels = torch.tensor(list(rho), dtype=torch.float64)
    asked = levels
    if two_stages:
        # They hold each level but the first twice, and KDPM2 the geometric means of neighbours beside them.
        levels = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
        asked = levels
        if hasattr(scheduler, "sigmas_interpol"):
            means = (levels[:-1:2] * levels[1::2]).sqrt().repeat_interleave(2)
            scheduler.sigmas_interpol = torch.cat([levels[:1], means])
            asked = torch.where(torch.arange(len(levels)) % 2 == 0, levels, scheduler.sigmas_interpol)
    scheduler.sigmas = levels
    for level, time in zip(asked[:-1].tolist(), scheduler.timesteps, strict=False):
        scheduler.scale_model_input(x, time)
        x = scheduler.step(noise(x, level), time, x, **own).prev_sample
    return x
