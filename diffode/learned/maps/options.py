"""The options of a method that trains a flow map, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diffode.arguments import check_count, check_number
from diffode.errors import ArgumentError, UnknownNameError, suggestion
from diffode.learned.maps.laws import LAWS
from diffode.learned.maps.losses import NORMS
from diffode.learned.maps.moments import PAIRS
from diffode.learned.maps.optimisers import OPTIMISERS
from diffode.learned.maps.table import MAP_METHODS, MapMethod
from diffode.maps.parametrisations import PARAMETRISATIONS
from diffode.solvers.solver import check_choice
from diffode.specs import parse_spec


def options_of(method: str) -> tuple[MapMethod, dict[str, Any]]:
    """The row of a method's spec and its options, checked; UnknownNameError or ArgumentError for others.

    >>> row, options = options_of("meanflow:same=0.5")
    >>> row.name, options["same"], options["law"]
    ('meanflow', 0.5, 'logit_normal')
    """
    name, given = parse_spec(method)
    if name not in MAP_METHODS:
        raise UnknownNameError("method that trains a flow map", name, MAP_METHODS)
    row = MAP_METHODS[name]
    known = row.defaults
    for key, value in given.items():
        if key not in known:
            listed = ", ".join(known)
            raise ArgumentError(f"{name} does not take the option {key!r}{suggestion(key, known)}; options: {listed}")
        known[key] = _checked(name, row, key, value, known[key])
    fixed = {"ctm": "ddim", "reflow": "average"}.get(name)
    if fixed is not None and known["parametrisation"] != fixed:
        raise ArgumentError(f"{name} is written for parametrisation={fixed}, got {known['parametrisation']!r}")
    for key in ("fixed_end", "one_time"):
        if known[key] != row.defaults[key]:
            raise ArgumentError(f"{key} is part of what {name} is, and can't be changed")
    if known.get("pairs") == "distinct" and known["group"] < 2:
        raise ArgumentError(f"group must be 2 at least for pairs=distinct, got {known['group']}")
    if known.get("group", 1) > known["batch"]:
        raise ArgumentError(f"batch must be a group at least, group={known['group']}, got {known['batch']}")
    if (row.law_only or row.generate is not None) and known["norm"] != "squared":
        raise ArgumentError(f"{name} follows a gradient, for which norm must be squared, got {known['norm']!r}")
    if "segments" in known and known["levels"] % known["segments"]:
        raise ArgumentError(f"levels must be a multiple of segments, got {known['levels']} and {known['segments']}")
    return row, known


def _checked(name: str, row: MapMethod, key: str, value: Any, default: Any) -> Any:
    """An option's value; ArgumentError for one that it can't have."""
    if value is None and default is not None:
        # A spec reads the word none as None.
        value = "none"
    choices: Sequence[Any] | None = {
        "parametrisation": tuple(PARAMETRISATIONS),
        "law": (*LAWS, *(("dyadic",) if row.options.get("law") == "dyadic" else ())),
        "teacher": row.teachers,
        "target": ("online", "average"),
        "norm": NORMS,
        "kind": ("perceptron", "unet"),
        "optimiser": OPTIMISERS,
        "middle": ("half", "any"),
        "step": ("euler", "heun"),
        "weight": ("none", "gap", "slope", "level"),
        "pairs": PAIRS,
    }.get(key)
    if key == "teacher" and value not in row.teachers:
        raise ArgumentError(
            f"{name} learns from {' or '.join(row.teachers)}, not from teacher={value!r} (exact is the field that is given, "
            "none the data, own the map itself)"
        )
    if choices is not None:
        check_choice(key, value, choices)
        return value
    if isinstance(default, bool):
        check_choice(key, value, (True, False))
        return value
    if key == "grid":
        return value
    if isinstance(default, int):
        check_count(key, value, 1)
        return value
    most = {
        "ends": 1.0,
        "same": 1.0,
        "average": 1.0,
        "edge": 1.0,
        "warm_up": 1.0,
        "whole": 1.0,
        "reach": 1.0,
        "first": 1.0,
    }.get(key, math.inf)
    check_number(key, value, 0, most)
    if key in ("rate", "fake_rate", "border", "reach") and value == 0:
        raise ArgumentError(f"{key} must be positive, got {value!r}")
    return float(value)
