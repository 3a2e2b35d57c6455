"""Labels of a mixture's components: the classes by which its law is conditioned. They do not enter the law or its hash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from diffode.errors import ArgumentError, suggestion

#: The label of a component: a whole number or a name.
Label = int | str
#: Longest name of a label, in characters.
_LONGEST = 100


def checked_labels(labels: Any, count: int) -> tuple[Label, ...] | None:
    """One label a component, as whole numbers and names; None stands for none.

    Raises:
        ArgumentError: unless there are ``count`` of them, each a whole number or a name; or if two differ only as a number
            and its text do, since a spec could not tell them apart.
    """
    if labels is None:
        return None
    given = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else labels
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ArgumentError(f"labels must be a list with a whole number or a name for each component, got {labels!r:.60}")
    found = tuple(given)
    if len(found) != count:
        raise ArgumentError(f"labels must have one entry per component ({count}), got {len(found)}")
    for k, label in enumerate(found):
        if isinstance(label, bool) or not isinstance(label, int | str) or not 0 < len(str(label).strip()) <= _LONGEST:
            raise ArgumentError(f"labels must be whole numbers or names, got {label!r:.60} at component {k}")
    if len({str(label) for label in found}) < len(set(found)):
        raise ArgumentError("labels must differ as texts too: a number and its text, such as 3 and '3', are one label")
    return found


def components_with(labels: tuple[Label, ...] | None, label: Any, what: str) -> list[int]:
    """The components that have a label; ArgumentError, with the nearest one, if none has.

    >>> components_with(("a", "b", "a"), "a", "the mixture")
    [0, 2]
    """
    if labels is None:
        raise ArgumentError(
            f"{what} has no labels, so label={label!r:.60} can't be given: make it with GaussianMixture(..., labels=...), or "
            "take a target whose card names some, such as ring8"
        )
    known = [str(each) for each in dict.fromkeys(labels)]
    if isinstance(label, bool) or not isinstance(label, int | str) or str(label) not in known:
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise ArgumentError(f"label {label!r:.60} is none of {what}{suggestion(str(label), known)}; labels: {shown}")
    return [k for k, each in enumerate(labels) if str(each) == str(label)]


def written_out(classes: Mapping[str, str], count: int) -> tuple[Label, ...]:
    """The label of every component, from a card's table of labels with their components, such as ``{a = "0-2,7"}``.

    A label of digits is a number. ArgumentError unless every component has exactly one.

    >>> written_out({"three": "0-2", "5": "3,4"}, 5)
    ('three', 'three', 'three', 5, 5)
    """
    found: dict[int, Label] = {}
    for name, ranges in classes.items():
        label: Label = int(name) if name.isdecimal() else name
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            for k in range(int(first), int(last or first) + 1):
                if k in found:
                    raise ArgumentError(f"component {k} has two labels, {found[k]!r} and {label!r}: give it one")
                found[k] = label
    if sorted(found) != list(range(count)):
        raise ArgumentError(f"labels must be given for components 0 to {count - 1}, each once; got {len(found)} of them")
    return tuple(found[k] for k in range(count))
