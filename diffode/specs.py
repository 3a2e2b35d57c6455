"""Specs: ``name`` or ``name:key=value,key=value``, the same string in Python, TOML and on the command line.

A :class:`Registry` turns a spec into an object. Users extend any registry with one ``register`` call, or with an
entry point in the group ``diffode.<kind>s`` (for instance ``diffode.solvers``) that names the class or function. An object
that is not registered is named by its place, ``file.py:attribute`` or ``module:attribute``, with options after a comma.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from diffode.errors import ArgumentError, DiffodeError, UnknownNameError, suggestion
from diffode.extensions import is_place, load_attribute, module_exists, plug_ins, same_definition
from diffode.makers import check_switches, missing, option_names

T = TypeVar("T")
Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | None

#: A name, perhaps with a library's method after a colon.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.*-]*(:[A-Za-z][A-Za-z0-9_]*)?\Z")
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
#: The beginning of a grid that lists times or levels.
_NUMBERS = re.compile(r"(times|levels)\s")
#: A list of numbers, none negative or with an exponent.
_LIST = re.compile(r"\d+(\.\d+)?(\+\d+(\.\d+)?)+\Z")
#: A text in quotes, which may hold anything; a quote in it is doubled.
_QUOTED = r"'(?:[^']|'')*'"
#: An option, after the beginning or a comma.
_ITEM = re.compile(rf"(?:\A|,)((?:[^,=]*=\s*{_QUOTED}\s*(?=,|\Z))|[^,]*)")


def parse_spec(spec: str) -> tuple[str, dict[str, Value]]:
    """Split a spec into its name and options.

    Values are ``true``/``false``, ``none``, integers, reals, lists (``3+3+2``, ``1.02+0.97``), or else texts. A text
    with commas, or one that reads as another value, is in quotes: ``file='a,b'``. Grids that list numbers, ``times 80 10 1``
    and ``levels 14.6 2 0``, have these as option ``at``. ArgumentError for a malformed spec.

    >>> parse_spec("dpmpp:order=2,lower_order_final=always")
    ('dpmpp', {'order': 2, 'lower_order_final': 'always'})
    >>> parse_spec("bespoke:file='a,b',scale=2")
    ('bespoke', {'file': 'a,b', 'scale': 2})
    """
    name, options = _parsed(_text(spec))
    return name, dict(options)


@functools.lru_cache(maxsize=4096)
def _parsed(spec: str) -> tuple[str, tuple[tuple[str, Value], ...]]:
    """The name and options of a text; studies read the same few thousands of times."""
    if _NUMBERS.match(spec.strip()):
        name, *words = spec.replace(",", " ").split()
        try:
            return name, (("at", tuple(map(float, words))),)
        except ValueError as error:
            raise ArgumentError(f"spec {spec!r} must list numbers: {error}") from None
    name, colon, rest = spec.strip().partition(":")
    # A method of a library, such as torchdiffeq:dopri5, is one name, as is a place such as mine.py:Sampler.
    first, comma, others = spec.strip().partition(",")
    method = rest.partition(",")[0]
    if is_place(first) or (method and "=" not in method and _METHOD.match(method)):
        name, colon, rest = first, comma, others
    if not _NAME.match(name) and not is_place(name):
        raise ArgumentError(f"spec {spec!r} has no valid name; expected 'name' or 'name:key=value,key=value'")
    options: dict[str, Value] = {}
    if colon and not rest:
        raise ArgumentError(f"spec {spec!r} ends after ':'; expected 'name' or 'name:key=value,key=value'")
    for item in _ITEM.findall(rest) if rest else ():
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier() or not text:
            raise ArgumentError(f"spec {spec!r}: {item!r} is not of the form key=value")
        if key in options:
            raise ArgumentError(f"spec {spec!r} gives {key!r} twice")
        options[key] = _parse_value(text)
    return name, tuple(options.items())


def _text(spec: object) -> str:
    if not isinstance(spec, str):
        raise ArgumentError(f"a spec must be a string 'name:key=value,...', got {type(spec).__name__}: {spec!r}")
    return spec


def format_spec(name: str, options: Mapping[str, Any]) -> str:
    """Write a name and options as a spec that :func:`parse_spec` reads back.

    >>> format_spec("dpm", {"order": 3, "step_orders": (3, 3, 2)})
    'dpm:order=3,step_orders=3+3+2'
    """
    pairs = ",".join(f"{key}={written_value(value)}" for key, value in options.items())
    separator = "," if ":" in name else ":"
    return f"{name}{separator}{pairs}" if pairs else name


def options_of(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that differ from their defaults, which are the options in its spec."""
    changed = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.init and field.repr and value != field.default:
            changed[field.name] = value
    return changed


def _parse_value(text: str) -> Value:
    if re.fullmatch(_QUOTED, text):
        return text[1:-1].replace("''", "'")
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered == "none":
        return None
    if _LIST.match(text):
        return tuple(map(float if "." in text else int, text.split("+")))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def written_value(value: Any) -> str:
    """The text of a value in a spec, from which :func:`parse_spec` makes the same value.

    >>> written_value((3, 3, 2)), written_value((1.02, 1.0)), written_value(None), written_value(0.5), written_value("0.5")
    ('3+3+2', '1.02+1', 'none', '0.5', "'0.5'")
    """
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple | list):
        written = "+".join(str(int(part)) if int(part) == part else repr(float(part)) for part in value)
        if len(value) > 1 and not _LIST.match(written):
            raise ArgumentError(f"a list in a spec has numbers >= 0, none below 1e-4, got {value!r:.60}: call the class")
        return written
    if isinstance(value, float):
        return repr(float(value))
    text = str(value)
    plain = text and text == text.strip() and not text.startswith("'") and "," not in text
    if isinstance(value, str) and not (plain and _parse_value(text) == text):
        return "'" + text.replace("'", "''") + "'"
    return text


@dataclasses.dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered name: a callable that makes the object, options preset for it, and a one-line summary."""

    name: str
    make: Callable[..., T]
    preset: Mapping[str, Any]
    summary: str


class Registry(Generic[T]):
    """Named makers of one kind of object.

    Args:
        kind: the word in messages, such as ``"solver"``.
        of: the class of the objects, if they have one; an object that a place names must be or make one of them.
        spelled: the spec here of a foreign name such as ``"euler_a"``, or None. Registered names have priority.
        advice: advice on a foreign name that stands for no single spec, or an empty text.
        aliases: foreign names with their specs, for lists of them.
        adopted: a maker from an object that a place names, if that is neither of the class nor makes one of it; else None.
    """

    def __init__(
        self,
        kind: str,
        of: type[T] | None = None,
        *,
        spelled: Callable[[str], str | None] = lambda name: None,
        advice: Callable[[str], str] = lambda name: "",
        aliases: Mapping[str, str] | None = None,
        adopted: Callable[[Any, str], Callable[..., T] | None] = lambda found, place: None,
    ):
        self.kind = kind
        self.of = of
        self.aliases: Mapping[str, str] = aliases or {}
        self._spelled = spelled
        self._advice = advice
        self._adopted = adopted
        self._entries: dict[str, Entry[T]] = {}

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {len(self._entries)} names)"

    def register(self, name: str, make: Callable[..., T], *, summary: str = "", **preset: Any) -> None:
        """Add ``name``. ``make(**options)`` builds the object; ``preset`` fixes some of its options.

        The same class or function registered again, as by a notebook's cell that runs twice, replaces the one before.

        Raises :class:`ArgumentError` if the name is malformed or taken by another object, or if the class is abstract.
        """
        if not callable(make):
            raise ArgumentError(f"make must be a class or a function that makes a {self.kind}, got {make!r:.80}")
        if not isinstance(name, str) or not _NAME.match(name):
            raise ArgumentError(f"{self.kind} name {name!r} must be letters, digits, '_', '-', '.' and start with a letter")
        known = self._entries.get(name)
        if known is not None and not (same_definition(known.make, make) and dict(known.preset) == preset):
            raise ArgumentError(f"{self.kind} {name!r} is registered already, as something else; choose another name")
        missing = sorted(getattr(make, "__abstractmethods__", ()))
        if missing:
            raise ArgumentError(f"{self.kind} {name!r} can't be made: its class {make.__name__} has no {', '.join(missing)}")
        text = summary or (inspect.getdoc(make) or "").partition("\n")[0]
        self._entries[name] = Entry(name, make, preset, text)

    def names(self) -> list[str]:
        """All registered names, in the order of registration."""
        return list(self._entries | self._plugins)

    def canonical(self, spec: str) -> str:
        """The spec with a foreign name replaced by the name here; any other spec as it is.

        >>> from diffode import solvers
        >>> solvers.registry.canonical("euler_a:eta=0.5")
        'euler_ancestral:eta=0.5'
        """
        given: object = spec
        if not isinstance(given, str):
            wanted = ["a text", *(f"such as {name!r}" for name in [*self._entries][:1])]
            wanted += [] if self.of is None else [f"or a {self.of.__name__}"]
            raise ArgumentError(f"{self.kind} must be {', '.join(wanted)}, got {given!r:.60}")
        name, _, rest = spec.strip().partition(":")
        if name in self._entries:
            return spec
        meant = self._spelled(name)
        if meant is None or name in self.names():
            return spec
        if not rest:
            return meant
        ours, fixed = parse_spec(meant)
        given = parse_spec(f"{ours}:{rest}")[1]
        both = next((key for key in given if key in fixed), None)
        if both is not None:
            raise ArgumentError(
                f"{self.kind} {name!r} stands for {meant!r}, which says {both!r} already; write {ours!r} instead"
            )
        return f"{meant}{',' if ':' in meant else ':'}{rest}"

    def entry(self, name: str) -> Entry[T]:
        """The entry of a name or of a place; :class:`UnknownNameError`, with the nearest name, if there is none."""
        if self.is_place(name):
            return self._placed(name)
        return self._registered(parse_spec(self.canonical(name))[0])

    def make(self, spec: str, **options: Any) -> T:
        """The object that a spec describes; keyword options override those of the spec."""
        return self._build(spec, self.check(spec, given=tuple(options)), options)

    def registered(self, spec: str, **options: Any) -> T:
        """:meth:`make` for specs from foreign files: it imports nothing, and so refuses a place."""
        self.check_registered(spec)
        return self.make(spec, **options)

    def check_registered(self, spec: str) -> None:
        """:meth:`check` for specs from foreign files: it makes nothing, and refuses a place."""
        name, options = parse_spec(self.canonical(spec))
        self._registered(name)
        place = next((value for value in options.values() if isinstance(value, str) and is_place(value)), None)
        if place is not None:
            raise ArgumentError(f"{self.kind} {name!r} of a file may not name code of its own, {place!r}")
        self.check(spec)

    def advised(self, name: str) -> str:
        """Advice on a foreign name that has no spec of its own here; an empty text for other names."""
        return self._advice(name)

    def check(self, spec: str, given: Iterable[str] = ()) -> Entry[T]:
        """The entry of a spec; ArgumentError unless its maker knows every option in the spec and in ``given``."""
        name, parsed = parse_spec(self._read(spec))
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

    def _read(self, spec: str) -> str:
        """The spec with a name of the registry; UnknownNameError for a foreign name that has no spec here."""
        ours = self.canonical(spec)
        name = ours.partition(":")[0].strip()
        if name and not _NAME.match(name) and not is_place(ours.partition(",")[0]):
            advice = self._advice(name)
            if advice:
                raise UnknownNameError(self.kind, name, self.names(), advice=advice)
        return ours

    def _build(self, spec: str, entry: Entry[T], options: Mapping[str, Any]) -> T:
        chosen = {**parse_spec(self.canonical(spec))[1], **options}
        fixed = [key for key in chosen if key in entry.preset]
        if fixed:
            raise ArgumentError(f"{self.kind} {entry.name!r} fixes its option {fixed[0]!r} ({entry.preset[fixed[0]]!r})")
        merged = {**entry.preset, **chosen}
        check_switches(self.kind, entry.name, entry.make, merged)
        try:
            return entry.make(**merged)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            # torch raises RuntimeError for the truth of many numbers, which options may cause, and when memory runs out.
            of_options = not isinstance(error, RuntimeError) or any(getattr(value, "ndim", 0) for value in merged.values())
            if isinstance(error, DiffodeError) or not of_options:
                raise
            if isinstance(error, TypeError) and (wanting := missing(entry.make, merged)):
                # A place has a colon of its own, after which commas set its options apart.
                written = spec + "".join(f"{',' if ':' in spec or k else ':'}{name}=..." for k, name in enumerate(wanting))
                needed = ", ".join(f"{name}=" for name in wanting)
                some = "options" if len(wanting) > 1 else "option"
                raise ArgumentError(f"{self.kind} {entry.name!r} needs its {some} {needed}; write {written}") from error
            raise ArgumentError(f"{self.kind} {spec!r} can't be made: {error}; check the types of its options") from error

    def _registered(self, name: str) -> Entry[T]:
        if name not in self._entries and name in self._plugins:
            self._load(self._plugins[name])
        library, colon, method = name.partition(":")
        if colon and name not in self._entries and library in self._entries:
            raise ArgumentError(f"{self.kind} {name!r}: {method!r} is not of the form key=value")
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self.names(), also=self.aliases, advice=self._advice(name))
        return self._entries[name]

    def is_place(self, name: str) -> bool:
        """Whether a name is a place in a file or in a module that exists, and not a misspelt name of the registry."""
        module = name.rpartition(":")[0]
        if name in self._entries or not is_place(name):
            return False
        ours = {known.partition(":")[0] for known in self.names()}
        if module in ours:
            return False
        return module.endswith(".py") or module_exists(module)

    def _placed(self, place: str) -> Entry[T]:
        found = load_attribute(place)
        kind = "object" if self.of is None else self.of.__name__
        if self.of is not None and isinstance(found, self.of):
            return Entry(place, functools.partial(_itself, found), {}, "")
        adopted = self._adopted(found, place)
        if adopted is not None:
            return Entry(place, adopted, {}, "")
        if not callable(found):
            raise ArgumentError(f"{place!r} is a {type(found).__name__}, not a {self.kind} (a {kind}, or a maker of one)")
        if self.of is None or (inspect.isclass(found) and issubclass(found, self.of)):
            return Entry(place, found, {}, "")

        @functools.wraps(found)
        def make(**options: Any) -> T:
            made = found(**options)
            if self.of is not None and not isinstance(made, self.of):
                raise ArgumentError(f"{place!r} makes a {type(made).__name__}, not a {self.kind} (a {kind})")
            return made  # type: ignore[no-any-return]

        return Entry(place, make, {}, "")

    def _load(self, point: importlib.metadata.EntryPoint) -> None:
        try:
            self.register(point.name, point.load())
        except (Exception, SystemExit) as error:  # anyone's module may raise anything
            raise ArgumentError(
                f"{self.kind} {point.name!r} can't be loaded from {point.value!r}, as an installed package names it: "
                f"{type(error).__name__}: {error}; mend that package, or uninstall it"
            ) from error

    @functools.cached_property
    def _plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Entry points by name; each is loaded when it is asked for, since some bring libraries that take seconds."""
        foreign = dict.fromkeys(self.aliases)
        return plug_ins(self.kind, {**foreign, **{name: entry.make for name, entry in self._entries.items()}})


def _itself(instance: T) -> T:
    return instance
