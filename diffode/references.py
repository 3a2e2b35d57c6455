"""The former name of :mod:`diffode.flows`, kept for one version."""

import warnings
from typing import Any

from diffode import flows

#: What has moved.
_MOVED = ("Reference", "flow_states", "reference")


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"diffode.references.{name} is diffode.flows.{name} now", DeprecationWarning, stacklevel=2)
    return getattr(flows, name)
