"""What ``diffode show`` tells of a way to train a flow map."""

from __future__ import annotations

from typing import Any

#: What a method learns from, by the name of its teacher.
_TEACHERS = {
    "exact": "the field that is given, exact or a network (teacher=exact)",
    "none": "data and noise (teacher=none)",
    "own": "data and itself (teacher=own)",
}

#: What a map is that has the law of the data, and how it is judged.
LAW_ONLY = "the law, not the coupling: errors are distances of laws, the mean of W1 along directions"


def is_method(spec: str) -> bool:
    """Whether a spec names a way to train a flow map; its options may still be wrong."""
    from diffode.learned import MAP_METHODS

    return spec.partition(":")[0] in MAP_METHODS


def method_told(spec: str) -> dict[str, Any]:
    """The facts of a way to train a flow map; UnknownNameError or ArgumentError for a spec that is none."""
    from diffode.learned.maps.options import options_of
    from diffode.learned.maps.table import SHARED
    from diffode.specs import written_value

    row, options = options_of(spec)
    return {
        "method": spec,
        "makes small": row.objective,
        **({"matches": LAW_ONLY} if row.law_only else {}),
        "learns from": "; or ".join(_TEACHERS[teacher] for teacher in row.teachers),
        "source": row.source,
        "a step costs": row.cost,
        "departures": row.departures or "none",
        "in common": SHARED,
        "options": {key: written_value(value) for key, value in options.items()},
    }
