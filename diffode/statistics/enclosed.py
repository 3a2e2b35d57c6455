"""Statistics beside something else in one file: what was trained for data whose mean and covariance it has to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffode.statistics.files import checked
from diffode.statistics.known import Statistics

#: What the names of their tensors begin with.
_PREFIX = "statistics_"


def enclosed(known: Statistics | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a file holds of statistics: tensors, and a part of the description; nothing for none."""
    if known is None:
        return {}, {}
    parts, told = known.parts()
    return {_PREFIX + name: part for name, part in parts.items()}, {"statistics": told}


def disclosed(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Statistics | None, dict[str, Tensor]]:
    """The statistics in a file, if there are any, and its other tensors; ValueError for some that are none.

    >>> known = Statistics.of_target("ring8")
    >>> tensors, told = enclosed(known)
    >>> found, others = disclosed(told, tensors)
    >>> found.content == known.content, others
    (True, {})
    """
    own = {name.removeprefix(_PREFIX): part for name, part in tensors.items() if name.startswith(_PREFIX)}
    others = {name: part for name, part in tensors.items() if not name.startswith(_PREFIX)}
    told = description.get("statistics")
    if isinstance(told, dict):
        return Statistics.of_parts(*checked(told, own)), others
    if told is not None or own:
        raise ValueError("its statistics are not described")
    return None, others
