"""Engines: what runs the groups of a study, or any function on many items, on one machine or many.

An engine is called with a function and items and gives results as they come, see :class:`Engine`. One is named by a spec
(``local``, ``local:jobs=2``), registered under a name, or comes from an entry point of the group ``diffode.engines``.
``tests/test_engines.py`` holds each to the rows of an uninterrupted run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffode.engines.cluster import Dask
from diffode.engines.local import Local
from diffode.engines.work import Engine, Work, place_of, results
from diffode.errors import ArgumentError
from diffode.makers import option_names
from diffode.specs import Registry, parse_spec

__all__ = ["Dask", "Engine", "Local", "Work", "each", "get", "names", "register", "registry", "results"]


def _adopted(found: Any, place: str) -> Callable[..., Engine] | None:
    """A maker of the engine that a place names; None for an object that makes engines itself."""
    try:
        inspect.signature(found).bind(None, ())
    except (TypeError, ValueError):
        return None
    return None if inspect.isclass(found) else functools.partial(_itself, found)


def _itself(engine: Engine) -> Engine:
    return engine


registry: Registry[Engine] = Registry("engine", adopted=_adopted)
register = registry.register
names = registry.names
registry.register("local", Local)
registry.register("dask", Dask)


def get(engine: str | Engine | None = None, *, jobs: int | None = None) -> Engine:
    """The engine that a spec or an address such as ``dask://host:8786`` names, or an engine itself; local if None.

    Args:
        engine: the spec or the engine.
        jobs: number of worker processes, for engines that begin their own.

    Raises:
        ArgumentError: if it is neither, or has no option ``jobs`` while this is given.
    """
    given = {} if jobs is None else {"jobs": jobs}
    if engine is None:
        engine = "local"
    if not isinstance(engine, str):
        if not callable(engine):
            raise ArgumentError(f"engine must be a spec such as 'local' or a callable (function, items), got {engine!r:.80}")
        if given:
            raise ArgumentError("jobs goes with an engine that is named by a spec; an engine of your own has its own workers")
        return engine
    scheme, slashes, address = engine.partition("://")
    spec = f"{scheme}:address={address}" if slashes and ":" not in scheme else engine
    known = option_names(registry.entry(parse_spec(spec)[0]).make)
    if given and known is not None and "jobs" not in known:
        raise ArgumentError(f"jobs={jobs} (--jobs) goes with engines that begin their own workers; {engine} does not")
    return registry.make(spec, **given)


def each(
    function: Callable[[Any], Any] | str,
    items: Sequence[Any],
    *,
    engine: str | Engine | None = None,
    jobs: int | None = None,
) -> Iterator[tuple[int, Any]]:
    """The number of each item and the function's result for it, as they come.

    Args:
        function: a function defined at the top of a module or file. Its argument and result are plain data.
        items: the arguments, one a call.
        engine: the engine or its spec; local by default.
        jobs: number of worker processes, for engines that begin their own.

    Raises:
        ArgumentError: if there is no such engine, or no worker could find the function.
        WorkerError: if workers are lost, or have other code.

    >>> from diffode import engines
    >>> dict(engines.each("math:sqrt", [4.0, 9.0], jobs=1))
    {0: 2.0, 1: 3.0}
    """
    chosen, work = get(engine, jobs=jobs), Work(place_of(function))
    yield from results(chosen, work if getattr(chosen, "begins_workers", False) else work.elsewhere(), items)
