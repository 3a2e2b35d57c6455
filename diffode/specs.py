"""Specs: ``name`` or ``name:key=value,key=value``, the same string in Python, TOML and on the command line.

A :class:`Registry` turns a spec into an object. Users extend any registry with one ``register`` call, or with an
entry point in the group ``diffode.<kind>s`` (for instance ``diffode.solvers``) that names the class or function.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from diffode.errors import ArgumentError, DiffodeError, UnknownNameError, suggestion

T = TypeVar("T")
Value = bool | int | float | str | tuple[int, ...] | None

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.*-]*(:[A-Za-z][A-Za-z0-9_]*)?\Z")
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_LIST = re.compile(r"\d+(\+\d+)+\Z")


def parse_spec(spec: str) -> tuple[str, dict[str, Value]]:
    """Split a spec into its name and options.

    Values are read as ``true``/``false``, ``none``, integers, reals, lists of integers written ``3+3+2``, else text.

    >>> parse_spec("dpmpp:order=2,lower_order_final=always")
    ('dpmpp', {'order': 2, 'lower_order_final': 'always'})
    """
    if not isinstance(spec, str):
        raise ArgumentError(f"a spec must be a string 'name:key=value,...', got {type(spec).__name__}: {spec!r}")
    name, colon, rest = spec.strip().partition(":")
    # A method of a library, such as torchdiffeq:dopri5, is one name.
    method, comma, others = rest.partition(",")
    if method and "=" not in method and _METHOD.match(method):
        name, colon, rest = f"{name}:{method}", comma, others
    if not _NAME.match(name):
        raise ArgumentError(f"spec {spec!r} has no valid name; expected 'name' or 'name:key=value,key=value'")
    options: dict[str, Value] = {}
    if colon and not rest:
        raise ArgumentError(f"spec {spec!r} ends after ':'; expected 'name' or 'name:key=value,key=value'")
    for item in rest.split(",") if rest else ():
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier() or not text:
            raise ArgumentError(f"spec {spec!r}: {item!r} is not of the form key=value")
        if key in options:
            raise ArgumentError(f"spec {spec!r} gives {key!r} twice")
        options[key] = _parse_value(text)
    return name, options


def format_spec(name: str, options: Mapping[str, Any]) -> str:
    """Write a name and options as a spec that :func:`parse_spec` reads back.

    >>> format_spec("dpm", {"order": 3, "step_orders": (3, 3, 2)})
    'dpm:order=3,step_orders=3+3+2'
    """
    pairs = ",".join(f"{key}={_format_value(value)}" for key, value in options.items())
    separator = "," if ":" in name else ":"
    return f"{name}{separator}{pairs}" if pairs else name


def options_of(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that differ from their defaults: what its spec has to say."""
    changed = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.init and field.repr and value != field.default:
            changed[field.name] = value
    return changed


def _parse_value(text: str) -> Value:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered == "none":
        return None
    if _LIST.match(text):
        return tuple(int(part) for part in text.split("+"))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _format_value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "+".join(str(int(part)) for part in value)
    return repr(float(value)) if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered name: a callable that makes the object, options preset for it, and a one-line summary."""

    name: str
    make: Callable[..., T]
    preset: Mapping[str, Any]
    summary: str


class Registry(Generic[T]):
    """Named makers of one kind of object (``kind`` is the word used in messages, such as ``"solver"``)."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}
        self._plugins_loaded = False

    def register(self, name: str, make: Callable[..., T], *, summary: str = "", **preset: Any) -> None:
        """Add ``name``. ``make(**options)`` builds the object; ``preset`` fixes some of its options.

        Raises :class:`ArgumentError` if the name is malformed or taken.
        """
        if not _NAME.match(name):
            raise ArgumentError(f"{self.kind} name {name!r} must be letters, digits, '_', '-', '.' and start with a letter")
        if name in self._entries:
            raise ArgumentError(f"{self.kind} {name!r} is registered already; choose another name")
        text = summary or (inspect.getdoc(make) or "").partition("\n")[0]
        self._entries[name] = Entry(name, make, preset, text)

    def names(self) -> list[str]:
        """All registered names, in the order of registration."""
        self._load_plugins()
        return list(self._entries)

    def entry(self, name: str) -> Entry[T]:
        """The entry of a name; raises :class:`UnknownNameError` with the nearest name otherwise."""
        if name not in self._entries:
            self._load_plugins()
        library, colon, method = name.partition(":")
        if colon and name not in self._entries and library in self._entries:
            raise ArgumentError(f"{self.kind} {name!r}: {method!r} is not of the form key=value")
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def make(self, spec: str, **options: Any) -> T:
        """Build the object a spec describes; keyword options override those of the spec."""
        entry = self.check(spec, given=tuple(options))
        chosen = {**parse_spec(spec)[1], **options}
        fixed = [key for key in chosen if key in entry.preset]
        if fixed:
            raise ArgumentError(f"{self.kind} {entry.name!r} fixes its option {fixed[0]!r} ({entry.preset[fixed[0]]!r})")
        merged = {**entry.preset, **chosen}
        try:
            return entry.make(**merged)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, DiffodeError):
                raise
            raise ArgumentError(f"{self.kind} {spec!r} can't be made: {error}; check the types of its options") from error

    def check(self, spec: str, given: Iterable[str] = ()) -> Entry[T]:
        """The entry of a spec, after checking that its maker knows every option named in the spec or in ``given``."""
        name, parsed = parse_spec(spec)
        entry = self.entry(name)
        merged = (*entry.preset, *parsed, *given)
        known = option_names(entry.make)
        for key in merged:
            if known is not None and key not in known:
                raise ArgumentError(
                    f"{self.kind} {name!r} has no option {key!r}{suggestion(key, known)}; "
                    f"options: {', '.join(sorted(known)) or 'none'}"
                )
        return entry

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for point in importlib.metadata.entry_points(group=f"diffode.{self.kind}s"):
            if point.name not in self._entries:
                self.register(point.name, point.load())


def option_names(make: Callable[..., Any]) -> Iterable[str] | None:
    """The keyword names a maker accepts, or None if it takes any."""
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
