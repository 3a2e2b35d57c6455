"""Files of tensors with a JSON description: safetensors, checked before use. Never pickle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffode.errors import ArgumentError, FileFormatError
from diffode.input_files import believed, read_bytes, read_json, shown
from diffode.output_files import write_whole

#: Largest size of a file, in bytes.
_LARGEST_FILE = 64 * 2**20
#: Largest size of a file's header, in bytes.
_LARGEST_HEADER = 2**20
#: Size, in bytes, of the number at the beginning of a file that is the size of its header.
_SIZE_BYTES = 8
#: Bytes of the numbers that diffode stores, by the names of their types in a header.
_TYPES = {"F64": 8, "F32": 4, "I64": 8}
#: Largest finite number of a description.
_LARGEST_NUMBER = torch.finfo(torch.float64).max


def write_tensors(file: str | FilePath, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors with a JSON description; an existing file is replaced whole. ArgumentError if it can't be written."""
    try:
        content = save(dict(tensors), metadata={"diffode": json.dumps(description, allow_nan=False)})
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ArgumentError(f"file {str(file)!r} can't be written: {error}") from error
    if len(content) > _LARGEST_FILE:
        raise ArgumentError(f"file {str(file)!r} would have {len(content):,} bytes, more than could be read again")
    write_whole(file, content)


def read_tensors(file: str | FilePath, schema: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a file of a schema; its header is checked before any tensor is made.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged, of another kind or schema, or larger than any file of diffode's.
    """
    content = read_bytes(file, f"file {str(file)!r}", _LARGEST_FILE)
    with believed(file, "a file of diffode's"):
        header = _header(content)
        description = read_json(header.pop("__metadata__")["diffode"])
        found = description.get("schema") if isinstance(description, dict) else description
        if not isinstance(description, dict) or found != schema:
            raise FileFormatError(f"{file} has schema {shown(found)}, expected {schema!r}")
        _check_tensors(header, len(content))
        return description, load(content)


def schema_of(file: str | FilePath) -> Any:
    """The schema that a file names, whatever it is; ArgumentError and FileFormatError as for :func:`read_tensors`."""
    content = read_bytes(file, f"file {str(file)!r}", _LARGEST_FILE)
    with believed(file, "a file of diffode's"):
        description = read_json(_header(content)["__metadata__"]["diffode"])
        return description.get("schema") if isinstance(description, dict) else description


def _header(content: bytes) -> dict[str, Any]:
    """The header of a file; ValueError if it has none, or no description in it."""
    length = int.from_bytes(content[:_SIZE_BYTES], "little")
    if len(content) < _SIZE_BYTES or not 0 < length <= min(_LARGEST_HEADER, len(content) - _SIZE_BYTES):
        raise ValueError(f"a header of {length:,} bytes does not fit a file of {len(content):,}")
    header = read_json(content[_SIZE_BYTES : _SIZE_BYTES + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("diffode"), str):
        raise ValueError("it has no description")
    return dict(header)


def _check_tensors(header: Mapping[str, Any], size: int) -> None:
    """Raise ValueError unless the tensors lie one after the other, each with the size of its shape."""
    spans = []
    for name, entry in header.items():
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        for numbers in (shape, offsets):
            if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= size for n in numbers):
                raise ValueError(f"tensor {shown(name)} has a shape or place that is none")
        if kind not in _TYPES or len(offsets) != 2:
            raise ValueError(f"tensor {shown(name)} is of type {shown(kind)}; stored are {', '.join(_TYPES)}")
        if offsets[1] - offsets[0] != math.prod(shape) * _TYPES[kind]:
            raise ValueError(f"tensor {shown(name)} is not as long as its shape says")
        spans.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise ValueError("its tensors overlap, or something lies between them")
        end = last


def content_of(tensors: Iterable[Tensor]) -> str:
    """A hash of the numbers in some tensors."""
    return hashlib.sha256(b"".join(part.detach().cpu().contiguous().numpy().tobytes() for part in tensors)).hexdigest()


def float64(tensors: Mapping[str, Tensor], name: str, ndim: int, stored: torch.dtype = torch.float64) -> Tensor:
    """A tensor that is ``stored`` in a dtype with ``ndim`` axes, as float64; ValueError unless it is such a one, and finite."""
    value = tensors[name]
    if value.dtype != stored or value.ndim != ndim or value.numel() == 0 or not bool(torch.isfinite(value).all()):
        kind = str(stored).removeprefix("torch.")
        raise ValueError(f"{name} must be finite {kind} with {ndim} axes, got {value.dtype} of shape {tuple(value.shape)}")
    return value.to(torch.float64)


def finite(description: Mapping[str, Any], key: str) -> float:
    """A number of the description; ValueError unless it is finite."""
    value = description[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
        raise ValueError(f"{key} must be a finite number, got {shown(value)}")
    return float(value)


def text(description: Mapping[str, Any], key: str) -> str:
    """A text of the description; ValueError if it is none."""
    value = description[key]
    if not isinstance(value, str) or len(value) > 10_000:
        raise ValueError(f"{key} must be a text")
    return value
