"""The path of a scheduler of diffusers, and its levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffode.adapters import diffusers_keys as keys
from diffode.errors import ArgumentError
from diffode.paths import DDPM, EDM, Path, RectifiedFlow, Tabulated

#: Our names of diffusers' schedules.
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
#: Schedules of diffusers for which diffode has no named path.
_UNNAMED_SCHEDULES = ("sigmoid", "laplace")


def path_of(scheduler: Any, prediction_type: str | None = None) -> Path:
    """The path of a scheduler of diffusers; ArgumentError if its configuration has none that diffode knows."""
    config, name = scheduler.config, type(scheduler).__name__
    if is_flow(name, config, prediction_type):
        return RectifiedFlow()
    if is_continuous(config):
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]))
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None:
        return Tabulated(table)
    if "EDM" in name or hasattr(scheduler, "precondition_noise"):
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]))
    advice = keys.CLASSES.get(name, "wrap the model by hand: Field.from_noise(lambda x, t: ..., path)")
    raise ArgumentError(f"scheduler {name} has neither alphas_cumprod nor flow or EDM noise levels; {advice}")


def is_flow(name: str, config: Mapping[str, Any], prediction_type: str | None = None) -> bool:
    """Whether a class of schedulers follows rectified flow in a configuration."""
    # Only flow matching's configurations have a shift and no betas.
    shifted = "shift" in config and "beta_schedule" not in config
    flow = "FlowMatch" in name or name in keys.FLOWS or shifted or bool(config.get("use_flow_sigmas"))
    return flow or "flow_prediction" in (config.get("prediction_type"), prediction_type)


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether the network takes log(sigma)/4 of any level, so that the scheduler's own levels have no part in the path."""
    return config.get("timestep_type") == "continuous" and config.get("sigma_max") is not None


def no_levels(name: str) -> ArgumentError:
    """The error for a scheduler whose levels no solver can follow, with a call that works instead."""
    advice = keys.CLASSES.get(name, "wrap the model by hand: Field.from_noise(lambda x, t: ..., path)")
    return ArgumentError(f"no solver of ours can take the place of {name}, nor take its levels over: {advice}")


def levels_of(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The variance that each level adds and alpha^2 after it, each (levels,) float64, by diffusers' options."""
    trained = options.get("trained_betas")
    if trained is not None:
        betas = np.asarray(trained, dtype=np.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(np.all((betas > 0) & (betas <= 1))):
            raise ArgumentError("trained_betas must be at least two numbers above 0, at most 1")
    else:
        count, schedule = options.get("num_train_timesteps", 1000), options.get("beta_schedule", "linear")
        start, end = float(options.get("beta_start", 0.0001)), float(options.get("beta_end", 0.02))
        if schedule not in SCHEDULES and schedule not in _UNNAMED_SCHEDULES:
            named = ", ".join((*SCHEDULES, *_UNNAMED_SCHEDULES))
            raise ArgumentError(f"beta_schedule must be one of {named}, got {schedule!r}")
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ArgumentError(f"beta_start and beta_end must be finite, got {start!r} and {end!r}")
        # The path checks the options, also those of a schedule that it does not have.
        path = DDPM(schedule=SCHEDULES.get(schedule, "linear"), beta_start=start, beta_end=end, levels=count)
        if schedule == "sigmoid":
            betas = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))
        elif schedule == "laplace":
            betas = _laplace(count)
        else:
            betas = path.betas()
    kept = np.cumprod(1 - betas)
    if options.get("rescale_betas_zero_snr"):
        # Lin et al., arXiv 2305.08891, algorithm 1.
        root = np.sqrt(kept)
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return betas, kept


def _laplace(count: int) -> Any:
    """The betas of ``laplace`` as diffusers computes them, with alpha_bar = sqrt(snr/(1 + snr))."""
    t = np.arange(count + 1) / count
    with np.errstate(divide="ignore"):
        log_snr = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
    signal = np.sqrt(np.exp(log_snr) / (1 + np.exp(log_snr)))
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)
