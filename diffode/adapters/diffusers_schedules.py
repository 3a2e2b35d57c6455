"""What a scheduler of diffusers says of its noise: as a path, and as options of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffode.errors import ArgumentError
from diffode.paths import DDPM, EDM, Path, RectifiedFlow, Tabulated
from diffode.paths.given import NO_SIGNAL

_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
#: Options that mean the same in ours.
_SAME = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "final_sigmas_type",
)  # fmt: skip


def path_of(scheduler: Any, prediction_type: str | None = None) -> Path:
    """The path that a scheduler of diffusers stands for."""
    config, name = scheduler.config, type(scheduler).__name__
    if _flow(config, name) or prediction_type == "flow_prediction":
        return RectifiedFlow()
    if config.get("timestep_type") == "continuous" and config.get("sigma_max") is not None:
        # Its network takes log(sigma)/4 of any level; the table of levels it was given is not used.
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]))
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None:
        return Tabulated(table)
    if "EDM" in name or hasattr(scheduler, "precondition_noise"):
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]))
    raise ArgumentError(
        f"scheduler {name} has neither alphas_cumprod nor flow or EDM noise levels; wrap the model by hand: "
        "Field.from_noise(lambda x, t: ..., path)"
    )


def options_like(config: Mapping[str, Any], alphas_cumprod: Any = None) -> dict[str, Any]:
    """Options of our scheduler that keep the noise schedule and the meaning of the answer of another's configuration.

    Args:
        config: of a scheduler of diffusers.
        alphas_cumprod: its table, if there is one: where its options alone would give another, the table is kept.

    Raises:
        ArgumentError: if its noise levels are none that ours can have.
    """
    name = str(config.get("_class_name", "the other scheduler"))
    options = {key: config[key] for key in _SAME if config.get(key) is not None}
    if _flow(config, name):
        if config.get("use_dynamic_shifting"):
            raise ArgumentError(
                f"{name} shifts its times by the size of the image: give grid='shift:s=...' and prediction_type"
            )
        if config.get("prediction_type") not in (None, "flow_prediction"):
            raise ArgumentError(
                f"{name} has flow matching's noise levels, but prediction_type {config['prediction_type']!r}: ours knows them "
                "with flow_prediction alone"
            )
        shift = float(config.get("flow_shift", config.get("shift", 1.0)) or 1.0)
        spacing = {} if shift == 1 else {"grid": f"shift:s={shift!r}"}
        kept: dict[str, Any] = {key: options[key] for key in ("num_train_timesteps", "final_sigmas_type") if key in options}
        return {**kept, **spacing, "prediction_type": "flow_prediction"}
    continuous = config.get("timestep_type") == "continuous" and config.get("sigma_max") is not None
    if continuous or "beta_schedule" not in config:
        raise ArgumentError(
            f"the noise levels of {name} are none of a model trained at timesteps: take the model in by "
            "adapters.from_diffusers(model, scheduler) and run diffode.solve"
        )
    if alphas_cumprod is None:
        if (config.get("snr_shift_scale") or 1.0) != 1.0:
            raise ArgumentError(
                f"{name} changes its levels (snr_shift_scale): use as_diffusers_scheduler(solver, like=scheduler)"
            )
        return options
    theirs = torch.as_tensor(alphas_cumprod).double().cpu().numpy().copy()
    if theirs[-1] in NO_SIGNAL:
        theirs[-1] = 0.0
    _, made = levels_of(options)
    if len(made) == len(theirs) and np.allclose(made, theirs, rtol=1e-3, atol=1e-7):
        return options
    betas = 1 - theirs / np.concatenate([[1.0], theirs[:-1]])
    return {**options, "trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}


def levels_of(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The variances added level by level that diffusers' options stand for, and alpha^2 after each, (levels,) float64."""
    trained = options.get("trained_betas")
    if trained is not None:
        betas = np.asarray(trained, dtype=np.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(np.all((betas > 0) & (betas <= 1))):
            raise ArgumentError("trained_betas must be at least two numbers above 0, at most 1")
    else:
        count, schedule = options.get("num_train_timesteps", 1000), options.get("beta_schedule", "linear")
        start, end = float(options.get("beta_start", 0.0001)), float(options.get("beta_end", 0.02))
        if schedule not in _SCHEDULES:
            raise ArgumentError(f"beta_schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}")
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ArgumentError(f"beta_start and beta_end must be finite, got {start!r} and {end!r}")
        betas = DDPM(schedule=_SCHEDULES[schedule], beta_start=start, beta_end=end, levels=count).betas()
    kept = np.cumprod(1 - betas)
    if options.get("rescale_betas_zero_snr"):
        # Lin et al., arXiv 2305.08891, algorithm 1.
        root = np.sqrt(kept)
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return betas, kept


def _flow(config: Mapping[str, Any], name: str) -> bool:
    kind = config.get("prediction_type")
    # Only flow matching's configurations have a shift and no betas.
    shifted = "shift" in config and "beta_schedule" not in config
    return "FlowMatch" in name or shifted or bool(config.get("use_flow_sigmas")) or kind == "flow_prediction"
