"""Where computed things are kept for later runs."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """``$DIFFODE_CACHE``, else ``$XDG_CACHE_HOME/diffode`` or ``~/.cache/diffode``."""
    own = os.environ.get("DIFFODE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffode"
