"""Files of tensors with a JSON description: safetensors, looked at before they are believed. Never pickle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffode.errors import ArgumentError, DiffodeError, FileFormatError

_LARGEST_FILE = 64 * 2**20


def write_tensors(file: str | FilePath, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors with a JSON description."""
    try:
        save_file(dict(tensors), str(file), metadata={"diffode": json.dumps(description)})
    except (OSError, SafetensorError) as error:
        raise ArgumentError(f"file {str(file)!r} can't be written: {error}; choose a path in a writable folder") from error


def read_tensors(file: str | FilePath, schema: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a file of this schema, sizes checked before anything is read."""
    place = FilePath(file)
    try:
        if place.is_dir():
            raise ArgumentError(f"file {str(file)!r} is a folder")
        size = place.stat().st_size
    except (OSError, ValueError) as error:
        raise ArgumentError(f"no such file: {file}") from error
    if size > _LARGEST_FILE:
        raise FileFormatError(f"{file} has {size} bytes, more than any file of diffode's")
    try:
        with safe_open(str(file), framework="pt") as content:
            description = json.loads((content.metadata() or {})["diffode"])
            if not isinstance(description, dict) or description.get("schema") != schema:
                found = description.get("schema") if isinstance(description, dict) else description
                raise FileFormatError(f"{file} has schema {str(found)[:60]!r}, expected {schema!r}")
            return description, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except DiffodeError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{file} is not a file of diffode's: {str(error)[:200]}") from error


def content_of(tensors: Iterable[Tensor]) -> str:
    """A hash of some numbers."""
    return hashlib.sha256(b"".join(part.detach().cpu().contiguous().numpy().tobytes() for part in tensors)).hexdigest()


def float64(tensors: Mapping[str, Tensor], name: str, ndim: int, stored: torch.dtype = torch.float64) -> Tensor:
    """A finite float64 tensor of so many axes, from one that is stored in this dtype."""
    value = tensors[name]
    if value.dtype != stored or value.ndim != ndim or value.numel() == 0 or not bool(torch.isfinite(value).all()):
        kind = str(stored).removeprefix("torch.")
        raise ValueError(f"{name} must be finite {kind} with {ndim} axes, got {value.dtype} of shape {tuple(value.shape)}")
    return value.to(torch.float64)


def finite(description: Mapping[str, Any], key: str) -> float:
    """A finite number of the description."""
    value = description[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {value!r}")
    return float(value)


def text(description: Mapping[str, Any], key: str) -> str:
    """A text of the description."""
    value = description[key]
    if not isinstance(value, str) or len(value) > 10_000:
        raise ValueError(f"{key} must be a text")
    return value
