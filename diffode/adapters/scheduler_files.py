"""The path that a diffusers ``scheduler_config.json`` describes, read without diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from diffode.adapters import diffusers_keys as keys
from diffode.adapters.diffusers_schedules import SCHEDULES, is_continuous, is_flow
from diffode.errors import ArgumentError, FileFormatError
from diffode.input_files import read_bytes
from diffode.paths import DDPM, EDM, Path, RectifiedFlow

#: Largest size of a configuration, in bytes.
_LARGEST = 2**20
#: Keys that change the levels of a schedule of betas into ones that no path has a name for.
_NAMELESS = ("trained_betas", "rescale_betas_zero_snr", "snr_shift_scale")


def path_of_file(file: str | FilePath) -> Path:
    """The path of the schedule in a ``scheduler_config.json``, which has a spec and so can be named in a suite.

    Args:
        file: place of the file, as diffusers' ``save_pretrained`` writes it.

    Raises:
        ArgumentError: if the file can't be read, or its levels are those of no path with a name (trained betas, zero SNR).
        FileFormatError: if it holds no configuration of a scheduler.
    """
    config = _configuration(file)
    try:
        return path_of_configuration(config)
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise ArgumentError(f"{str(file)!r}: {error}") from error
        raise FileFormatError(f"scheduler configuration {str(file)!r} has a value that is no number: {error}") from error


def note_of_file(file: str | FilePath) -> str:
    """What a ``scheduler_config.json`` says against solvers of a differential equation: a sentence, or an empty text.

    A consistency function answers with the end of the flow, so that a solver that takes the answer for a denoised mean goes
    elsewhere (Song et al., arXiv 2303.01469, algorithm 1; Luo et al., arXiv 2310.04378; Zheng et al., arXiv 2402.19159).

    Args:
        file: place of the file, as for :func:`path_of_file`, with the same errors.
    """
    name = str(_configuration(file)["_class_name"])
    if name not in keys.FEW_STEP:
        return ""
    call = "" if name in keys.FLOWS else "; adapters.from_consistency(model, scheduler) makes it a map"
    return (
        f"a {name} goes with a consistency function, whose answer is the end of the flow and no denoised mean: such a model "
        f"has a few-step sampler of its own, keep its scheduler{call}. This ranking is of denoisers with the same levels"
    )


def _configuration(file: str | FilePath) -> Mapping[str, Any]:
    content = read_bytes(file, f"scheduler configuration {str(file)!r}", _LARGEST)
    try:
        # diffusers writes infinities, as lambda_min_clipped, which JSON proper has not.
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"scheduler configuration {str(file)!r} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(config, Mapping) or not isinstance(config.get("_class_name"), str):
        raise FileFormatError(
            f"{str(file)!r} is no configuration of a scheduler: it has no _class_name; give the "
            "scheduler/scheduler_config.json of a model"
        )
    return config


def path_of_configuration(config: Mapping[str, Any]) -> Path:
    """The path of a configuration with its ``_class_name``; ArgumentError if no path with a name has its levels.

    >>> path_of_configuration({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear",
    ...                        "beta_start": 0.00085, "beta_end": 0.012}).spec
    'ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012'
    """
    name = str(config["_class_name"])
    if is_flow(name, config):
        return RectifiedFlow()
    if is_continuous(config) or "EDM" in name:
        # The class's own ends, where a file leaves them out.
        return EDM(float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0)))
    if name in keys.CLASSES:
        raise ArgumentError(f"scheduler {name} follows no path: {keys.CLASSES[name]}")
    schedule = config.get("beta_schedule", "linear")
    nameless = [f"{key}={config[key]!r:.40}" for key in _NAMELESS if config.get(key)]
    if schedule not in SCHEDULES:
        nameless.append(f"beta_schedule={schedule!r:.40}")
    if nameless:
        raise ArgumentError(
            f"no path that has a name has these levels: {', '.join(nameless)}; measure the model itself, with the levels of "
            "its scheduler: diffode bench schedules --field MODULE:ATTR, a field made by diffode.adapters.from_diffusers"
        )
    return DDPM(
        schedule=SCHEDULES[schedule],
        beta_start=float(config.get("beta_start", 1e-4)),
        beta_end=float(config.get("beta_end", 0.02)),
        levels=config.get("num_train_timesteps", 1000),
    )
