"""The measures by name, and memories from specs."""

from __future__ import annotations

from typing import Any

from diffode.errors import ArgumentError
from diffode.hippo.fout import FouT
from diffode.hippo.lagt import LagT
from diffode.hippo.legs import LegS
from diffode.hippo.legt import LegT
from diffode.hippo.measure import Measure
from diffode.hippo.memory import Memory
from diffode.specs import Registry

registry: Registry[Measure] = Registry("measure", Measure)
for _measure in (LegS, LegT, LagT, FouT):
    registry.register(_measure.name, _measure)


def get(measure: str | Measure, order: int, **options: Any) -> Memory:
    """The memory of an order that a measure's spec describes; UnknownNameError or ArgumentError if it describes none.

    >>> get("legt:window=0.25", 64).measure.window
    0.25
    """
    if isinstance(measure, Measure):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a spec; this measure has its own already")
        return Memory(measure, order)
    return Memory(registry.make(measure, **options), order)


def names() -> list[str]:
    """All registered measures' names."""
    return registry.names()


register = registry.register
