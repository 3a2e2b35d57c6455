"""Memories of signals as linear ODEs: HiPPO's measures, with everything about them known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffode.hippo import public_rules, scan, signals
from diffode.hippo.cauchy import cauchy_kernel
from diffode.hippo.fout import FouT
from diffode.hippo.holds import Hold, Polynomial, Rule, hold_of
from diffode.hippo.lagt import LagT
from diffode.hippo.legs import LegS
from diffode.hippo.legt import LegT
from diffode.hippo.measure import Measure
from diffode.hippo.memory import Memory
from diffode.hippo.registry import get, names, register, registry
from diffode.hippo.signals import Signal
from diffode.hippo.structure import DPLR, Spectrum, all_pass, s4d, s4d_transfer

__all__ = [
    "DPLR", "FouT", "Hippo", "Hold", "LagT", "LegS", "LegT", "Measure", "Memory", "Polynomial", "Rule", "Signal", "Spectrum",
    "all_pass", "cauchy_kernel", "get", "hold_of", "names", "public_rules", "register", "registry", "s4d", "s4d_transfer",
    "scan", "signals",
]  # fmt: skip

if TYPE_CHECKING:
    from diffode.hippo.module import Hippo


def __getattr__(name: str) -> Any:
    if name == "Hippo":
        from diffode.hippo.module import Hippo

        return Hippo
    raise AttributeError(f"module 'diffode.hippo' has no attribute {name!r}")
