"""Trainings that were interrupted: all that a training of a flow map needs to go on as if nothing had happened, in a file."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.tensor_files import finite, read_tensors, text, write_tensors

if TYPE_CHECKING:
    from diffode.learned.maps.run import Run

#: Schema of the file of an interrupted training.
SNAPSHOT_SCHEMA = "diffode-map-training-1"


def save_snapshot(run: Run, file: str | FilePath) -> None:
    """Write the state of a training; ArgumentError if the file can't be written."""
    tensors: dict[str, Tensor] = {"generator": run.sources.generator.get_state().to(torch.int64)}
    parts = dict(run.modules)
    parts |= {f"frozen.{stage}": one for stage, one in run.frozen.items()}
    for place, module in parts.items():
        tensors |= {f"{place}.{key}": value for key, value in module.state_dict().items()}
    (best, weights), errors = run.planned or (run.best, run.errors)
    tensors |= {f"best.{key}": value for key, value in weights.items()}
    for number, optimiser in enumerate(run.all_optimisers):
        for key, state in optimiser.state_dict()["state"].items():
            for name, value in state.items():
                tensors |= _flat(f"optimiser.{number}.{key}.{name}", value)
    tensors |= {"losses": torch.tensor(run.losses, dtype=torch.float64), "errors": torch.tensor(errors, dtype=torch.float64)}
    description = {
        "schema": SNAPSHOT_SCHEMA, "request": run.asked, "number": run.number,
        "best": best if math.isfinite(best) else None, "seconds": run.request.limit.elapsed + run.before_seconds,
    }  # fmt: skip
    write_tensors(file, {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, description)


def _flat(place: str, value: Any) -> dict[str, Tensor]:
    """The tensors of a value of an optimiser's state: a tensor, a number, or a list of tensors."""
    if isinstance(value, list):
        return {f"{place}.{k}": part for k, part in enumerate(value)}
    return {place: value if isinstance(value, Tensor) else torch.tensor(value)}


def resume(run: Run, file: str | FilePath) -> None:
    """Put a training where an interrupted one was.

    Raises:
        ArgumentError: if there is no such file, or it is of another training.
        FileFormatError: if it is damaged, or holds no interrupted training.
    """
    description, tensors = read_tensors(file, SNAPSHOT_SCHEMA)
    with believed(file, "an interrupted training", "begin the training anew"):
        asked = text(description, "request")
        number = description["number"]
        if type(number) is not int or number < 1:
            raise ValueError("number must be the number of a step")
        best = math.inf if description["best"] is None else finite(description, "best")
        seconds = finite(description, "seconds")
        if best < 0 or seconds < 0:
            raise ValueError("best and seconds must not be negative")
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()) and name != "errors":
                raise ValueError(f"{name} must be finite")
    if asked != run.asked:
        raise ArgumentError(f"{file} is of another training, {asked}; this is {run.asked}")
    with believed(file, "an interrupted training", "begin the training anew"):
        if number >= run.total:
            raise ValueError(f"number must be that of a step before the last, {run.total}")
        run.sources.generator.set_state(tensors["generator"].to(torch.uint8))
        for stage in sorted({int(key.split(".")[1]) for key in tensors if key.startswith("frozen.")}):
            run.keep_frozen(stage, _loaded(copy.deepcopy(run.average), tensors, f"frozen.{stage}."))
        for place, module in run.modules.items():
            _loaded(module, tensors, f"{place}.")
        run.best = best, _named(tensors, "best.")
        for index, optimiser in enumerate(run.all_optimisers):
            whole = optimiser.state_dict()
            whole["state"] = _states(tensors, f"optimiser.{index}.")
            optimiser.load_state_dict(whole)
        run.losses, run.errors = tensors["losses"].tolist(), tensors["errors"].tolist()
        run.number, run.before_seconds = number, seconds


def _named(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    return {key.removeprefix(place): value.clone() for key, value in tensors.items() if key.startswith(place)}


def _loaded(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> nn.Module:
    module.load_state_dict(_named(tensors, place))
    return module


def _states(tensors: Mapping[str, Tensor], place: str) -> dict[int, dict[str, Any]]:
    """The state of an optimiser by number of the parameter: tensors, and lists of them."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in sorted(_named(tensors, place).items()):
        number, name, *inside = key.split(".")
        state = found.setdefault(int(number), {})
        if inside:
            state.setdefault(name, []).append(value)
        else:
            state[name] = value
    return found
