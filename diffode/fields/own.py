"""A user's field from whatever the name of an attribute leads to."""

from __future__ import annotations

import inspect
from typing import Any

from diffode.errors import ArgumentError
from diffode.fields.field import PREDICTIONS, Field, Prediction
from diffode.paths import Path


def own_field(found: Any, kind: str | None, path: Path | None, scale: float = 1.0) -> Field:
    """A field from a :class:`Field`, from a function without arguments that makes one, or from fn(x, t) of some ``kind``.

    Args:
        found: the object.
        kind: what a plain callable gives: velocity, noise, denoised or score.
        path: the path of a plain callable.
        scale: root mean variance of its data.

    Raises:
        ArgumentError: if it is none of these, or ``kind`` or ``path`` is missing.
    """
    if not isinstance(found, Field) and callable(found) and kind is None and not _wants_arguments(found):
        found = found()
    if isinstance(found, Field):
        if kind is not None and kind != found.prediction:
            raise ArgumentError(f"kind={kind!r} goes with a plain function; this field gives its {found.prediction}")
        return found
    if not callable(found):
        raise ArgumentError(f"expected a diffode Field or a function fn(x, t), got {type(found).__name__}")
    if kind not in PREDICTIONS:
        raise ArgumentError(f"kind must say what fn(x, t) gives: one of {', '.join(PREDICTIONS)}; got {kind!r}")
    if path is None:
        raise ArgumentError("a plain function needs a path: path='edm', or another of diffode.paths.names()")
    known: Prediction = next(p for p in PREDICTIONS if p == kind)
    return Field(found, known, path, scale=scale)


def _wants_arguments(function: Any) -> bool:
    """Whether a callable can't be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:
        return True
    return False
