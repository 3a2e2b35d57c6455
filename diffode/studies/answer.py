"""The answers of a study: what to take at each budget, what may be as good, and the same for targets of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffode import solvers
from diffode.errors import ArgumentError, DiffodeError
from diffode.studies.paste import method_parts
from diffode.studies.question import tags_of
from diffode.studies.ranking import Curve, budgets, is_length
from diffode.studies.recommendation import Advice, recommend

#: Budget of the sentence, or the nearest one that was run: what people ask for.
_ASKED = 8
#: Budgets of the table of kinds.
_KINDS_AT = (4, 8, 20)


@dataclass(frozen=True)
class Answer:
    """The best method at a budget, and the methods that may be as good on other problems, the best first.

    ``without`` is the best of those that need not know the data, if the best has to.
    """

    nfe: int
    best: Advice
    as_good: tuple[Advice, ...]
    without: Advice | None = None


def answers(curves: Sequence[Curve]) -> list[Answer]:
    """An answer for every budget at which some method has a result on all problems, increasing."""
    return [found for nfe in budgets(curves) if (found := answer_at(curves, nfe)) is not None]


def answer_at(curves: Sequence[Curve], nfe: int) -> Answer | None:
    """The answer at one budget; None if no method has a result within it on all problems."""
    try:
        ranked = recommend(curves, nfe)
    except ArgumentError:
        return None
    return Answer(nfe, ranked[0], tuple(a for a in ranked[1:] if a.as_good), best_without(ranked))


def best_without(ranked: Sequence[Advice]) -> Advice | None:
    """The best method that need not know mean and covariance of the data, if the first of a ranking has to."""
    if not knows_data(ranked[0].method):
        return None
    return next((a for a in ranked if not knows_data(a.method)), None)


def knows_data(method: str) -> bool:
    """Whether a method of a ranking has to know mean and covariance of the data; False for one that exists no more.

    >>> knows_data("ipndm:order=3,jump=auto @ log_snr"), knows_data("ddim")
    (True, False)
    """
    try:
        return solvers.get(method_parts(method)[0]).needs_statistics
    except DiffodeError:
        return False


def plain(value: float, digits: int = 1) -> str:
    """A positive number with a few digits, without an exponent where it is neither large nor small.

    >>> plain(23.4), plain(0.0456, 2), plain(3e-7)
    ('20', '0.046', '3e-07')
    """
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.{digits}g}" if not 1 <= rounded < 1e5 else f"{rounded:g}"


def counted(number: int, what: str) -> str:
    """A number of things in words.

    >>> counted(1, "path"), counted(2720, "run")
    ('1 path', '2,720 runs')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_a_sentence(found: Sequence[Answer], metric: str = "endpoint") -> str:
    """The answer in words, at eight evaluations or the nearest budget, by the metric that ranks."""
    one = min(found, key=lambda a: (abs(a.nfe - _ASKED), a.nfe))
    best = one.best
    many = "problem" if best.problems == 1 else "problems"
    error = plain(best.error, 2)
    measured = f"an error of {error} of the scale" if is_length(metric) else f"{metric} {error}"
    said = f"At {one.nfe} evaluations take {best.method}: {measured} on {best.problems} {many}"
    if best.problems == 1:
        return f"{said}, which says little of others."
    known = ""
    if one.without is not None:
        other = f"{one.without.method}: {plain(one.without.error, 2)}"
        known = f" It knows mean and covariance of the data; without these take {other}."
    if not one.as_good:
        return f"{said}; no other is as good when the problems are drawn anew.{known}"
    names = ", ".join(a.method for a in one.as_good[:2]) + (f" and {len(one.as_good) - 2} more" if len(one.as_good) > 2 else "")
    return f"{said}; {names} {'is' if len(one.as_good) == 1 else 'are'} within its interval.{known}"


def alike(curves: Sequence[Curve]) -> list[tuple[str, int, list[Answer | None]]]:
    """By tag of two targets or more: their number, and the answers at about 4, 8 and 20 evaluations."""
    run = budgets(curves)
    wanted = sorted({min(run, key=lambda n: (abs(n - at), n)) for at in _KINDS_AT}) if run else []
    found = []
    for tag, own in _tagged(curves).items():
        there = [c for c in curves if c.target in own]
        found.append((tag, len(own), [answer_at(there, nfe) for nfe in wanted]))
    return [row for row in found if all(row[2])]


def other_kinds(curves: Sequence[Curve], nfe: int, best: str) -> str:
    """A sentence about tags whose targets have another best method within a budget; empty if there are none."""
    others: dict[str, list[str]] = {}
    for tag, own in _tagged(curves).items():
        found = answer_at([c for c in curves if c.target in own], nfe)
        if found is not None and found.best.method != best:
            others.setdefault(found.best.method, []).append(tag)
    said = [f"{method} on targets with the tag {' or '.join(tags)} (--target {tags[0]})" for method, tags in others.items()]
    return f"another is best on some: {'; '.join(said)}" if said else ""


def _tagged(curves: Sequence[Curve]) -> dict[str, set[str]]:
    """Targets by tag, without the tags that all or one of the targets have, which tell them from nothing."""
    targets = list(dict.fromkeys(c.target for c in curves))
    tagged: dict[str, set[str]] = {}
    for target in targets:
        for tag in tags_of(target):
            tagged.setdefault(tag, set()).add(target)
    return {tag: own for tag, own in sorted(tagged.items()) if 1 < len(own) < len(targets)}
