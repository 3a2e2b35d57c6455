"""Guidance as a text, ``label=three,weight=7.5``, by which studies, files and the command line name a guided field."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from diffode.errors import ArgumentError, suggestion
from diffode.fields.exact import ExactField
from diffode.fields.guidance.guided import KINDS, GuidedField, guide
from diffode.paths import Path
from diffode.sources import Source
from diffode.specs import options_of, parse_spec, written_value
from diffode.targets import Target
from diffode.targets import get as get_target
from diffode.targets.labels import Label


@dataclass(frozen=True)
class Guidance:
    """What a text says of guidance; :meth:`read` makes one, :attr:`text` writes it.

    Attributes:
        label: the label of the condition; None, with kind ``auto``, for the target as it is.
        weight: 0 is the unconditional field, 1 the conditional one.
        kind: ``cfg``, ``rescaled``, ``projected`` or ``auto``.
        negative: the label of the field that takes the place of the unconditional one.
        low, high: the noise levels between which guidance is in force.
        phi, view, eta, norm, blur: options of a kind, see :func:`diffode.guide`; of ``auto``, ``blur`` is 0.5 unless given.
    """

    label: Label | None = None
    weight: float = 1.0
    kind: str = "cfg"
    negative: Label | None = None
    low: float = 0.0
    high: float = math.inf
    phi: float | None = None
    view: str | None = None
    eta: float | None = None
    norm: float | None = None
    blur: float | None = None

    @classmethod
    def read(cls, text: str) -> Guidance:
        """Guidance from its text; ArgumentError, with the nearest key, for a text that is none.

        >>> Guidance.read("weight=7.5,label=three")
        Guidance(label=three,weight=7.5)
        """
        if not isinstance(text, str) or not text.strip():
            raise ArgumentError(f"guidance must be a text such as 'label=three,weight=7.5', got {text!r:.60}")
        if "=" not in text:
            raise ArgumentError(f"guidance {text!r:.100} must be of the form label=three,weight=7.5")
        try:
            _, options = parse_spec(f"guidance:{text.strip()}")
        except ArgumentError as error:
            raise ArgumentError(f"guidance {text!r:.100} must be of the form label=three,weight=7.5: {error}") from error
        names = [field.name for field in fields(cls)]
        for key in options:
            if key not in names:
                raise ArgumentError(f"guidance has no {key!r}{suggestion(key, names)}; keys: {', '.join(names)}")
        given: dict[str, Any] = dict(options)
        if "weight" not in given:
            raise ArgumentError(f"guidance {text!r:.100} needs weight=, such as weight=7.5: 1 is the conditional field alone")
        for key in ("weight", "low", "high"):
            value = given.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                given[key] = float(value)
        found = cls(**given)
        found._check()
        return found

    def _check(self) -> None:
        if self.kind not in KINDS or self.kind == "cfg++":
            why = (
                ": cfg++ depends on the times of one run, make it with diffode.guide(..., grid=)"
                if self.kind == "cfg++"
                else ""
            )
            known = [kind for kind in KINDS if kind != "cfg++"]
            raise ArgumentError(
                f"kind must be one of {', '.join(known)}, got {self.kind!r:.40}{why or suggestion(str(self.kind), known)}"
            )
        if self.label is None and self.kind != "auto":
            raise ArgumentError("guidance needs label=, the label of the condition, such as label=three of ring8")
        if self.negative is not None and self.kind == "auto":
            raise ArgumentError("kind=auto guides by a weaker field, not by a negative label: leave negative out")
        if self.negative is not None and str(self.negative) == str(self.label):
            raise ArgumentError(f"negative={self.negative} is the label itself: the difference would be nothing")

    def __repr__(self) -> str:
        return f"Guidance({self.text})"

    @property
    def text(self) -> str:
        """The text in the order of the attributes, without those that are left at their defaults."""
        return ",".join(f"{key}={written_value(value)}" for key, value in {**options_of(self), "weight": self.weight}.items())

    def laws(self, target: Target | str) -> tuple[Target, Target]:
        """The laws of the conditional and of the unconditional field; ArgumentError for labels that the target has not."""
        law = get_target(target)
        try:
            conditional = law if self.label is None else law.given(self.label)
            return conditional, law if self.negative is None else law.given(self.negative)
        except ArgumentError as error:
            if not isinstance(target, str):
                raise
            raise ArgumentError(f"target {target!r}: {error}") from error

    def field(self, target: Target | str, path: Path | str, source: Source | Target | str | None = None) -> GuidedField:
        """The guided field of a target along a path, each given itself or as its spec."""
        one, other = (ExactField(law, path, source) for law in self.laws(target))
        auto = self.kind == "auto"
        options: dict[str, Any] = {name: getattr(self, name) for name in ("phi", "view", "eta", "norm", "blur")}
        kind: Any = self.kind
        interval = None if self.low == 0 and self.high == math.inf else (self.low, self.high)
        return guide(one, None if auto else other, self.weight, kind=kind, interval=interval, **options)
