"""The registry of targets: each entry has shipped parameters and a card.

A name always means the same density: its parameters are read from ``data/<name>.npz`` and checked against the hash on the
card, never made again from a seed. The rules of :func:`tags` compute tags from the parameters.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffode.array_files import read_arrays
from diffode.errors import ArgumentError, DiffodeError, FileFormatError
from diffode.specs import Registry, parse_spec
from diffode.targets.components import Diagonal, Isotropic
from diffode.targets.labels import written_out
from diffode.targets.mixture import GaussianMixture
from diffode.targets.parameters import LowRank
from diffode.targets.rotated import Rotated
from diffode.targets.target import Target

DATA = Path(__file__).parent / "data"
_CARDS = Path(__file__).parent / "cards.toml"


@dataclass(frozen=True)
class Card:
    """Description and origin of a registry entry.

    ``shape`` is that in which a sample is shown, (8, 8) for an image, or None; ``sha256`` fixes the shipped parameters;
    ``labels`` are classes with the components that they hold, such as ``{"three": "0-2", "five": "3-7"}``.
    """

    name: str
    summary: str
    text: str = field(repr=False)
    source: str = "constructed for diffode"
    licence: str = "Apache-2.0"
    sha256: str = ""
    shape: tuple[int, ...] | None = None
    changelog: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = field(default=None, repr=False)


registry: Registry[Target] = Registry("target", Target)
_cards: dict[str, Card] = {}


def get(spec: str | Target, **options: Any) -> Target:
    """The target that a spec describes, made once and shared (treat it as read-only); UnknownNameError for an unknown name.

    >>> get("ring8").dim
    2
    """
    if isinstance(spec, Target):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a spec; this target has its own already")
        return spec
    return registry.make(spec, **options)


def names() -> list[str]:
    """All registered target names."""
    return registry.names()


def card(name: str) -> Card:
    """The card of a registered target; UnknownNameError, with the nearest name, if there is none."""
    return _cards.get(name) or Card(name, registry.entry(name).summary, "A target registered by the user.", "", "")


def register(name: str, make: Callable[..., Target], *, card: Card | None = None, **preset: Any) -> None:
    """Add a target under ``name``, with its card; ``make(**preset)``, with a spec's options, builds it."""
    registry.register(name, make, summary=card.summary if card else "", **preset)
    if card:
        _cards[name] = card


def tags(target: Target | str) -> list[str]:
    """Tags of a target (or its name) by rule: dimension, kind of covariance, number of modes, stiffness, exact flow.

    ``1d``/``2d``/``high-dimensional`` (D >= 50); ``gaussian`` (one component); ``isotropic``/``diagonal``/``full``/
    ``low-rank``/``points``; ``many-modes`` (K >= 100); ``stiff`` (largest distance of a mean from the centre over the
    smallest width >= 1e4); ``exact-flow`` (Gaussian, one-dimensional, or means on a line with one covariance). A name whose
    card has the shape of an image has ``images`` too, which a target without its name does not tell.
    """
    given = get(target)
    result = [f"{given.dim}d"] if given.dim <= 2 else ["high-dimensional"] if given.dim >= 50 else []
    named = _cards.get(parse_spec(target)[0]) if isinstance(target, str) else None
    if named is not None and len(named.shape or ()) >= 2:
        result.append("images")
    mixture = given.as_mixture()
    if mixture is None:
        return result
    parts = mixture.components
    if mixture.count == 1:
        result.append("gaussian")
    if mixture.is_discrete:
        result.append("points")
    elif isinstance(parts, Isotropic):
        result.append("isotropic")
    elif isinstance(parts, Diagonal):
        result.append("diagonal")
    elif isinstance(parts, Rotated):
        result.append("full" if parts.full else "low-rank")
    if mixture.count >= 100:
        result.append("many-modes")
    if not mixture.is_discrete:
        reach = float((mixture.means - mixture.mean).norm(dim=1).max())
        if reach / parts.smallest_variance**0.5 >= 1e4:
            result.append("stiff")
    if mixture.count == 1 or mixture.line is not None:
        result.append("exact-flow")
    return result


def parameter_hash(parameters: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(parameters):
        value = np.ascontiguousarray(parameters[key])
        digest.update(f"{key}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def shipped(name: str) -> Target:
    """The mixture of an entry's parameters, read anew; FileFormatError unless they agree with its card."""
    path = DATA / f"{name}.npz"
    try:
        parameters = read_arrays(path)
    except DiffodeError as error:
        raise FileFormatError(f"parameters of target {name!r} can't be read from {path}: {error}") from error
    if parameter_hash(parameters) != _cards[name].sha256:
        raise FileFormatError(f"parameters of target {name!r} in {path} differ from those on its card; reinstall diffode")
    classes = _cards[name].labels
    return from_arrays(classes=classes, **parameters)


_shared = functools.cache(shipped)


def _register_shipped() -> None:
    for name, entry in tomllib.loads(_CARDS.read_text(encoding="utf-8")).items():
        shape = tuple(entry.pop("shape")) if "shape" in entry else None
        changelog = tuple(entry.pop("changelog", ()))
        register(
            name,
            functools.partial(_shared, name),
            card=Card(name, shape=shape, changelog=changelog, **entry),
        )


def from_arrays(*, classes: Mapping[str, str] | None = None, **arrays: Any) -> Target:
    """A mixture from the arrays of a shipped file, shaped as :class:`GaussianMixture` says; ArgumentError if one is missing.

    Their names are weights, means, and covariances or both factors and noise; ``classes`` are a card's labels. An array of
    integers may be a measure in steps: with ``NAME_step``, and ``NAME_first`` unless that is 0, it stands for
    NAME_first + NAME_step * NAME.
    """
    arrays = _measured(arrays)
    labels = None if classes is None else written_out(classes, len(arrays.get("points", arrays.get("means", ()))))
    if "points" in arrays:
        return GaussianMixture.from_points(arrays["points"], arrays.get("weights"), labels=labels)
    missing = {"weights", "means"} - arrays.keys()
    if missing:
        raise ArgumentError(f"a mixture needs arrays {sorted(missing)}")
    covariances = arrays.get("covariances")
    if covariances is None:
        covariances = LowRank(arrays["factors"], arrays["noise"])
    return GaussianMixture(arrays["weights"], arrays["means"], covariances, labels=labels)


def _measured(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays with those that are in steps as the numbers that they stand for."""
    found = {name: value for name, value in arrays.items() if not name.endswith(("_step", "_first"))}
    for name in (name.removesuffix("_step") for name in arrays if name.endswith("_step")):
        if name not in found:
            raise ArgumentError(f"{name}_step goes with an array {name}, which is missing")
        step = np.asarray(arrays[f"{name}_step"], np.float64)
        found[name] = arrays.get(f"{name}_first", 0.0) + step * np.asarray(found[name], np.float64)
    return found


_register_shipped()
