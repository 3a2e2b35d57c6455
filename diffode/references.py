"""The former name of :mod:`diffode.flows`, kept for one version."""

import warnings
from typing import Any

from diffode import flows

__all__ = ["Reference", "flow_states", "reference"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"diffode.references.{name} is diffode.flows.{name} now; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(flows, name)
