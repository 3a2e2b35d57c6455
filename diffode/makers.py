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


def check_switches(kind: str, name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """:class:`ArgumentError` where a function's switch is neither true nor false: it takes any text for true.

    Classes check their options themselves.
    """
    for parameter in (parameters_of(make) or ()) if inspect.isfunction(make) else ():
        value = options.get(parameter.name, parameter.default)
        if isinstance(parameter.default, bool) and not isinstance(value, bool):
            raise ArgumentError(f"{parameter.name} must be true or false in {kind} {name!r}, got {value!r:.40}")


def missing(make: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """The names of the options without a default that a maker was not given."""
    named = [p for p in parameters_of(make) or () if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [p.name for p in named if p.default is p.empty and p.name not in options]
