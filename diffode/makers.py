"""What the maker of an object, a class or a function, takes as options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diffode.errors import ArgumentError


@functools.lru_cache(maxsize=1024)
def parameters_of(make: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a maker; None for one without a signature, as some classes of Python's own are."""
    try:
        return list(inspect.signature(make).parameters.values())
    except ValueError:
        return None


def option_names(make: Callable[..., Any]) -> Iterable[str] | None:
    """The keyword names a maker accepts, or None if it takes any."""
    parameters = parameters_of(make)
    if parameters is None:
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def check_options(kind: str, name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """:class:`ArgumentError` where an option without a default is missing, or a switch is neither true nor false."""
    named = [p for p in parameters_of(make) or () if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        needed, written = (link.join(f"{option}={end}" for option in missing) for link, end in ((" and ", ""), (",", "...")))
        raise ArgumentError(f"{kind} {name!r} needs {needed}; write {name}:{written}")
    # Classes check their options themselves; a function takes any text that is not empty for true.
    for parameter in named if inspect.isfunction(make) else ():
        value = options.get(parameter.name, parameter.default)
        if isinstance(parameter.default, bool) and not isinstance(value, bool):
            raise ArgumentError(f"{parameter.name} must be true or false in {kind} {name!r}, got {value!r:.40}")
