"""A user's field from the object that a name leads to, and fields named by a text: a user's, or a trained one."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffode.errors import ArgumentError, DiffodeError
from diffode.extensions import load_attribute
from diffode.fields.estimated import estimate_statistics
from diffode.fields.exact import ExactField, exact_field
from diffode.fields.field import PREDICTIONS, Field, Function, Prediction
from diffode.fields.model import Model
from diffode.fields.trained import trained
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.statistics import Statistics
from diffode.targets import Target
from diffode.targets import get as get_target

#: Kinds of statistics to which a text may reduce what is known; others need a rank or the shape of an image.
REDUCED = ("scale", "diagonal", "full")


def own_field(found: Any, kind: str | None, path: Path | None, scale: float = 1.0) -> Field:
    """A field from a :class:`Field`, a target, a function without arguments that makes one, or fn(x, t) of some ``kind``.

    Args:
        found: the object.
        kind: the view that a plain callable gives: velocity, noise, denoised or score.
        path: the path of a plain callable, or of a target (EDM's unless given). A :class:`Field` has a path of its own, and
            a given one must equal it.
        scale: root mean variance of the data of a plain callable.

    Raises:
        ArgumentError: if ``found`` is none of these, or ``kind`` or ``path`` is missing.
    """
    if not isinstance(found, Field) and callable(found) and kind is None and not _wants_arguments(found):
        try:
            found = found()
        except DiffodeError:
            raise
        except Exception as error:  # anyone's function may raise anything
            raise ArgumentError(f"the function that makes the field raised {type(error).__name__}: {error}") from error
    if isinstance(found, Target):
        if kind is not None:
            raise ArgumentError(f"kind={kind!r} goes with a plain function; the field of a target is known")
        return exact_field(found, "edm" if path is None else path)
    if isinstance(found, Field):
        if kind is not None and kind != found.prediction:
            raise ArgumentError(f"kind={kind!r} goes with a plain function; this field gives its {found.prediction}")
        if path is not None and path.spec != (found.path and found.path.spec):
            own = f"is on path {found.path.spec}" if found.path else "has no path"
            raise ArgumentError(f"path={path.spec!r} goes with a plain function; this field {own}: leave path (--path) out")
        return found
    if not callable(found):
        raise ArgumentError(f"expected a diffode Field, a target or a function fn(x, t), got {type(found).__name__}")
    if kind not in PREDICTIONS:
        raise ArgumentError(f"kind must say what fn(x, t) gives: one of {', '.join(PREDICTIONS)}; got {kind!r}")
    if path is None:
        raise ArgumentError("a plain function needs a path: path='edm' (--path edm), or another of diffode.paths.names()")
    known: Prediction = next(p for p in PREDICTIONS if p == kind)
    owner = getattr(found, "__self__", found)
    # A network is called in its own dtype, as its library would.
    function = _in_its_own_dtype(found) if isinstance(owner, nn.Module) else found
    return Field(function, known, path, scale=scale)


def _in_its_own_dtype(network: Callable[..., Tensor]) -> Function:
    model = Model(network, "the network")
    return lambda x, t: model(x, x, t)


@dataclass(frozen=True)
class FieldText:
    """A field named by a text, as studies and the command line hold it.

    ``module:attribute`` (or ``file.py:attribute``) with ``kind``, ``dim``, ``scale``, ``target`` and ``statistics`` as options,
    such as ``my_module:velocity,kind=velocity,dim=3x32x32``; ``trained:NAME`` for a shipped network.

    Attributes:
        place: ``module:attribute`` or ``trained:NAME``.
        kind: the view that a plain function gives.
        dim: shape of a row.
        scale: root mean variance of the data.
        target: the target whose field it approximates.
        statistics: what solvers are told of the data: ``estimated`` from the field at high noise, a kind such as ``scale`` to
            which what is known is reduced, or a file that :meth:`diffode.Statistics.save` wrote.

    >>> FieldText.read("my_module:velocity,kind=velocity,dim=3x32x32").dim
    (3, 32, 32)
    """

    place: str
    kind: str | None = None
    dim: tuple[int, ...] | None = None
    scale: float | None = None
    target: str | None = None
    statistics: str | None = None

    @staticmethod
    def names(text: str) -> bool:
        """Whether a text names such a field, as opposed to a target's spec ``name:key=value``."""
        # A target with a source, "TARGET from SOURCE", is none, though its source may be named by a place.
        place = text.partition(" from ")[0].partition(",")[0]
        return ":" in place and "=" not in place and not place.endswith(":")

    @classmethod
    def read(cls, text: str) -> FieldText:
        """The parts of a text; ArgumentError for an unknown or malformed option."""
        place, *options = text.split(",")
        found: dict[str, Any] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if key not in ("kind", "dim", "scale", "target", "statistics") or not equals or not value or key in found:
                raise ArgumentError(f"field {text!r}: {option!r} is not one of kind=, dim=, scale=, target=, statistics=")
            found[key] = row_shape(value) if key == "dim" else _positive(value) if key == "scale" else value
        return cls(place, **found)

    def __str__(self) -> str:
        dim = None if self.dim is None else "x".join(map(str, self.dim))
        options = {
            "kind": self.kind, "dim": dim, "scale": self.scale, "target": self.target, "statistics": self.statistics,
        }  # fmt: skip
        return ",".join([self.place, *(f"{key}={value}" for key, value in options.items() if value is not None)])

    def field(self, path: Path | str | None) -> Field:
        """The field along a path, with its ``shape`` set, and its ``truth`` and ``statistics`` where they are named.

        Raises ArgumentError where the object is no field, or its shape is unknown or contradicts ``dim``.
        """
        found = self._field(path)
        if self.statistics is None:
            return found
        # A shipped network's field is shared, and others are told other things of its data.
        found = copy.copy(found)
        found.statistics = self._known(found)
        return found

    def _known(self, field: Field) -> Statistics:
        """What the option ``statistics`` says of the data."""
        asked = self.statistics or ""
        if asked == "estimated":
            with field.uncounted():
                return estimate_statistics(field)
        if asked not in REDUCED:
            if not asked.endswith(".safetensors"):
                raise ArgumentError(
                    f"statistics must be estimated, one of {', '.join(REDUCED)}, or a file that Statistics.save wrote, "
                    f"NAME.safetensors; got {asked!r}"
                )
            return Statistics.load(asked)
        if field.statistics is None:
            raise ArgumentError(
                f"statistics={asked} reduces what is known of the data, and of {self.place} nothing is: take "
                "statistics=estimated, or a file"
            )
        return field.statistics.reduced(asked)

    def _field(self, path: Path | str | None) -> Field:
        library, _, name = self.place.partition(":")
        if library == "trained":
            return trained(name, "edm" if path is None else get_path(path))
        scale = self.scale
        exact_scale = get_target(self.target).scale if self.target else None
        found = load_attribute(self.place)
        if isinstance(found, Field) and found.path is not None and path in (found.path, found.path.spec):
            # A path that was given by numbers or functions has no spec that could be read.
            path = None
        on = None if path is None else get_path(path)
        if isinstance(found, Field) or (callable(found) and self.kind is None and not _wants_arguments(found)):
            own = own_field(found, self.kind, on)
            if scale is not None:
                own.scale = scale
        else:
            own = own_field(found, self.kind, on, scale or exact_scale or 1.0)
        if self.target:
            own.truth = exact_field(self.target, own.require_path("a target"))
        if isinstance(own, ExactField) and self.dim is not None and math.prod(self.dim) != own.dim:
            raise ArgumentError(f"{self.place} has {own.dim} coordinates a row: dim={self.dim} does not fit")
        own.shape = self.dim or own.shape or (own.truth.shape if own.truth else None)
        if own.shape is None:
            raise ArgumentError(
                f"the shape of a row is unknown for {self.place}: give dim (--dim), a number or a shape such as 3x32x32"
            )
        own.dim = math.prod(own.shape)
        return own


def row_shape(text: str) -> tuple[int, ...]:
    """``2`` or ``3x32x32`` as a shape; ArgumentError for anything else.

    >>> row_shape("3x32x32")
    (3, 32, 32)
    """
    try:
        sizes = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ArgumentError(f"dim must be a number of coordinates or a shape such as 3x32x32, got {text!r}")
    return sizes


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentError(f"scale must be a positive number, got {text!r}")
    return value


def _wants_arguments(function: Any) -> bool:
    """Whether a callable can't be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:
        return True
    return False
