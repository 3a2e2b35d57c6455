"""Where computed things are kept for later runs, and small ones of plain values, as texts with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

#: Largest size of a text that is read, in bytes.
_LARGEST = 2**22


def folder() -> Path:
    """``$DIFFODE_CACHE``, else ``$XDG_CACHE_HOME/diffode`` or ``~/.cache/diffode``."""
    own = os.environ.get("DIFFODE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffode"


def recall(kind: str, name: str) -> Any:
    """What :func:`remember` kept under a name, in values that JSON has; None if there is nothing, or nothing whole."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        file = _file(kind, name)
        if file.stat().st_size <= _LARGEST:
            total, _, text = file.read_text(encoding="ascii").partition("\n")
            if total == _sum(text):
                return json.loads(text)
    return None


def remember(kind: str, name: str, value: Any) -> None:
    """Keep a value that JSON has under a name; does nothing if the folder can't be written."""
    text = json.dumps(value, separators=(",", ":"))
    file = _file(kind, name)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(f"{_sum(text)}\n{text}", encoding="ascii")
            os.replace(temporary, file)
        except OSError:
            temporary.unlink(missing_ok=True)


def _file(kind: str, name: str) -> Path:
    return folder() / kind / f"{name}.json"


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()
