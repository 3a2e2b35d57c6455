"""A folder of small computed arrays keyed by content, so that a machine computes each reference once.

It lies where :mod:`diffode.cache_folder` says. Entries are written to a temporary
file and renamed, so that a killed process leaves no half-written one; each carries a checksum of its key and its arrays. An
unreadable or damaged entry is computed again, and a folder that can't be written only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffode.cache_folder import folder


def key_of(*parts: object) -> str:
    """A hash of texts, numbers and tensors; equal contents have equal keys."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"|")
    return digest.hexdigest()


def read(key: str) -> dict[str, Tensor] | None:
    """The arrays stored under a key; None if there are none, or their checksum does not fit."""
    try:
        content = (folder() / f"{key}.safetensors").read_bytes()
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return arrays if header["__metadata__"]["checksum"] == _checksum(key, arrays) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checksum(key: str, arrays: dict[str, Tensor]) -> str:
    return key_of(key, *(part for name in sorted(arrays) for part in (name, arrays[name])))


def write(key: str, arrays: dict[str, Tensor]) -> None:
    """Store arrays under a key; does nothing if the folder can't be written."""
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder(), suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                kept = {name: value.contiguous() for name, value in arrays.items()}
                file.write(save(kept, metadata={"checksum": _checksum(key, kept)}))
            os.replace(temporary, folder() / f"{key}.safetensors")
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
