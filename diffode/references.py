"""The former name of :mod:`diffode.flows`, kept for one version."""

import warnings

from diffode.flows import Reference, flow_states, reference

__all__ = ["Reference", "flow_states", "reference"]

warnings.warn("diffode.references is diffode.flows now", DeprecationWarning, stacklevel=2)
