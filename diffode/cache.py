"""A folder of small computed arrays keyed by content: references are computed once a machine.

It lies in ``$DIFFODE_CACHE``, else in ``$XDG_CACHE_HOME/diffode`` or ``~/.cache/diffode``. Entries are written to a
temporary file and renamed, so a killed process leaves none half-written; an unreadable entry is computed again, and a
folder that can't be written only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


def folder() -> Path:
    """Where cached arrays lie."""
    own = os.environ.get("DIFFODE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffode"


def key_of(*parts: object) -> str:
    """A hash of texts, numbers and tensors: equal content, equal key."""
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
    """The arrays stored under a key, or None."""
    try:
        return load((folder() / f"{key}.safetensors").read_bytes())
    except (OSError, SafetensorError, ValueError):
        return None


def write(key: str, arrays: dict[str, Tensor]) -> None:
    """Store arrays under a key; does nothing if the folder can't be written."""
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder(), suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save({name: value.contiguous() for name, value in arrays.items()}))
            os.replace(temporary, folder() / f"{key}.safetensors")
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
