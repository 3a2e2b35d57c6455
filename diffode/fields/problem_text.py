"""A target, its source and its guidance as one text, ``TARGET from SOURCE guided GUIDANCE``.

Studies, files and pictures name an exact field, or a guided one, by it.
"""

from __future__ import annotations

from diffode import sources
from diffode.errors import ArgumentError
from diffode.fields.exact import ExactField, exact_field
from diffode.fields.guidance import Guidance, GuidedField
from diffode.paths import Path

#: What stands between a target's spec and its source's.
_BETWEEN = " from "
#: What stands before the text of a guidance.
_GUIDED = " guided "


def problem_text(target: str, source: str | None, guidance: str | None = None) -> str:
    """The text of a target with a source and a guidance; the target alone for normal noise and the guidance ``none``.

    >>> problem_text("ring8", "student:dof=128"), problem_text("ring8", "normal"), problem_text("ring8", None)
    ('ring8 from student:dof=128', 'ring8', 'ring8')
    >>> problem_text("ring8", None, "weight=7.5,label=three")
    'ring8 guided label=three,weight=7.5'
    """
    if source is not None:
        if _BETWEEN in target:
            raise ArgumentError(f"target {target!r} names a source already: leave source={source!r} out")
        found = sources.get(source)
        target = target if found is None else f"{target}{_BETWEEN}{found.spec}"
    if guidance is None or guidance == "none":
        return target
    if _GUIDED in target:
        raise ArgumentError(f"target {target!r} names a guidance already: leave guidance={guidance!r} out")
    return f"{target}{_GUIDED}{Guidance.read(guidance).text}"


def parts_of(text: str) -> tuple[str, str | None]:
    """The target and the source of a text; None without a source.

    >>> parts_of("ring8 from student:dof=128"), parts_of("ring8"), parts_of("ring8 guided label=three,weight=2.0")
    (('ring8', 'student:dof=128'), ('ring8', None), ('ring8', None))
    """
    target, between, source = unguided(text).partition(_BETWEEN)
    return (target, source) if between else (target, None)


def unguided(text: str) -> str:
    """A text without its guidance."""
    return text.partition(_GUIDED)[0]


def guidance_of(text: str) -> Guidance | None:
    """The guidance of a text, or None."""
    _, between, guidance = text.partition(_GUIDED)
    return Guidance.read(guidance) if between else None


def field_of_text(text: str, path: Path | str) -> ExactField | GuidedField:
    """The exact field of a text along a path, or the guided one.

    >>> field_of_text("ring8 from ring8", "rectified_flow").source
    TargetSource(ring8)
    >>> field_of_text("ring8 guided label=three,weight=7.5", "edm").calls
    2
    """
    target, source = parts_of(text)
    guidance = guidance_of(text)
    if guidance is None:
        return exact_field(target, path, source)
    return guidance.field(target, path, source)
