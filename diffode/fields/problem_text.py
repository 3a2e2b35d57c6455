"""A target and its source as one text, ``TARGET from SOURCE``, by which studies, files and pictures name an exact field."""

from __future__ import annotations

from diffode import sources
from diffode.errors import ArgumentError
from diffode.fields.exact import ExactField, exact_field
from diffode.paths import Path

#: What stands between a target's spec and its source's.
_BETWEEN = " from "


def problem_text(target: str, source: str | None) -> str:
    """The text of a target with a source; the target alone for normal noise, which has no other text.

    >>> problem_text("ring8", "student:dof=128"), problem_text("ring8", "normal"), problem_text("ring8", None)
    ('ring8 from student:dof=128', 'ring8', 'ring8')
    """
    if source is None:
        return target
    if _BETWEEN in target:
        raise ArgumentError(f"target {target!r} names a source already: leave source={source!r} out")
    found = sources.get(source)
    return target if found is None else f"{target}{_BETWEEN}{found.spec}"


def parts_of(text: str) -> tuple[str, str | None]:
    """The target and the source of a text; None without a source.

    >>> parts_of("ring8 from student:dof=128"), parts_of("ring8")
    (('ring8', 'student:dof=128'), ('ring8', None))
    """
    target, between, source = text.partition(_BETWEEN)
    return (target, source) if between else (text, None)


def field_of_text(text: str, path: Path | str) -> ExactField:
    """The exact field of a text along a path.

    >>> field_of_text("ring8 from ring8", "rectified_flow").source
    TargetSource(ring8)
    """
    target, source = parts_of(text)
    return exact_field(target, path, source)
