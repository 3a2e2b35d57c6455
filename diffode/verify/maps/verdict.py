r"""``check_map``: the verdict on anyone's flow map, held against the exact flow of a field and against its law.

A map may be the flow map; may be it to one time only, as a consistency function is; may have the right law and another coupling
of noise and data; or be something else, which is named where it is known (`impostors.py`).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, cast

from diffode import solvers
from diffode.errors import ArgumentError, DiffodeError
from diffode.fields import Field, exact_field
from diffode.maps import FlowMap
from diffode.paths import Path
from diffode.solvers.trained.mapped import as_flow_map
from diffode.solvers.trained.shipped import ShippedMap
from diffode.verify.maps.contract import contract
from diffode.verify.maps.identities import NAMES as IDENTITIES
from diffode.verify.maps.identities import identities
from diffode.verify.maps.impostors import impostor, proportional
from diffode.verify.maps.law import NAMES, law
from diffode.verify.maps.pairs import Pair, pairs, slope, two_jumps
from diffode.verify.maps.trial import MapTrial
from diffode.verify.report import Check, Report

#: Least and largest number of trajectories.
_POINTS = (16, 100_000)


def check_map(
    phi: FlowMap | str | Callable[..., Any],
    field: Field | str,
    path: Path | str | None = None,
    *,
    points: int = 512,
    draws: int | None = None,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Hold a flow map against the exact flow of a field, and its law against the data's; see docs/verification.md.

    Args:
        phi: a flow map, a file that a training wrote, a function (x, s, t) in the times of the field's path, the place of
            one, ``module:attribute`` or ``file.py:attribute``, or one that ships, ``shipped_map:method=reflow``.
        field: a field with a path, or the spec of a target.
        path: path of a target given by its spec; that of the map, or EDM's, unless given.
        points: number of exact trajectories.
        draws: number of generated points whose law is judged, 20,000 in up to three dimensions and 4,000 in more unless given.
            A mode is lost if it should have twelve of them at least and has less than a tenth of its share.
        tolerance: the largest mean error that passes, in units of the data's scale for each coordinate.
        seed: seed of all draws.
        progress: called with the words for each part of the judgement as it begins; most of the time goes into exact
            trajectories where they are integrated, and into the law of the points.

    Returns:
        A report whose last check is the verdict in words. Facts: ``"verdict"``, the sentence; ``"error"``, the mean error of
        the worst pair of times; ``"pairs"``, errors with their quantiles for each pair; ``"tolerance"``, what is allowed.

    Raises:
        ArgumentError: if ``phi`` is no map, or one of another path.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "edm")
    >>> report = check_map(diffode.flow(field), field, points=64, draws=2000)
    >>> report.passed, report.facts["verdict"][:33]
    (True, 'is the flow map of this field to ')
    """
    for name, value, low, high in (
        ("points", points, *_POINTS),
        ("draws", 16 if draws is None else draws, 16, 10**7),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ArgumentError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    given: Any = tolerance
    if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 0 < float(given) < math.inf:
        raise ArgumentError(f"tolerance must be a positive number, got {tolerance!r}")
    if isinstance(phi, str) and phi.partition(":")[0] == ShippedMap.name:
        shipped = cast(ShippedMap, solvers.get(phi))
        phi = shipped.on(field if isinstance(field, Field) else exact_field(field, path or "edm")).phi
    if isinstance(field, str):
        own = as_flow_map(phi)
        free = path is None and getattr(own, "any_path", False)
        field = exact_field(field, path if path is not None else "edm" if free else own.path)
    elif path is not None:
        raise ArgumentError("path goes with the spec of a target; a field has its own")
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field or the spec of a target, got {type(field).__name__}")
    found = as_flow_map(phi, field.require_path("a flow map"))
    width = field.dim
    if found.dim is not None and width is not None and found.dim != width:
        raise ArgumentError(f"this map takes rows of {found.dim} numbers, the field's have {width}")
    with field.uncounted():
        tell = progress or (lambda _: None)
        return _judged(MapTrial.of(found, field, points, float(tolerance), seed, tell), draws, tell)


def _judged(trial: MapTrial, draws: int | None, tell: Callable[[str], None]) -> Report:
    tell("its contract")
    checks = contract(trial)
    if any(check.passed is False for check in checks):
        broken = next(check for check in checks if check.passed is False)
        why = broken.detail if broken.detail.startswith("raised") else f"not {_negated(broken)}"
        sentence = f"is no map that can be used: {why}"
        if not all(check.passed for check in checks[:2]) or broken.name == "deterministic":
            return _report(trial, checks, sentence, (), ())
        return _report(trial, [*checks, *_safely(identities, trial, "identities")], sentence, (), ())
    tell("its jumps against the flow")
    against, errors = pairs(trial)
    tell("identities")
    checks += _safely(identities, trial, "identities")
    checks += [against, _one(lambda: slope(trial, errors[0].mean), "slope")]
    tell("the law of its points")
    checks += _safely(lambda trial: law(trial, draws), trial, "law")
    tell("the verdict")
    sentence, advice = _verdict(trial, checks, errors)
    return _report(trial, checks, sentence, advice, errors)


def _report(trial: MapTrial, checks: list[Check], sentence: str, advice: tuple[str, ...], errors: tuple[Pair, ...]) -> Report:
    good = all(check.passed is not False for check in checks)
    facts = {
        "verdict": sentence,
        "error": max((pair.mean for pair in errors), default=math.inf),
        "tolerance": trial.allowed,
        "pairs": [vars(pair) for pair in errors],
    }
    return Report(trial.phi.name, (*checks, Check.found("verdict", good, sentence)), advice, facts)


def _verdict(trial: MapTrial, checks: list[Check], errors: tuple[Pair, ...]) -> tuple[str, tuple[str, ...]]:
    """The verdict in words, and the fixes of what is wrong."""
    passed = {check.name: check.passed for check in checks}
    worst = max(errors, key=lambda pair: pair.mean)
    to_end = [pair for pair in errors if pair.t == trial.times[-1]]
    lost = next((c.detail for c in checks if c.name == NAMES[1] and c.passed is False and c.detail.startswith("loses")), "")
    also = f"; {lost}" if lost else ""
    if passed["pairs"]:
        accuracy = f"to {worst.mean:.0e} of the scale"
        if trial.phi.one_jump:
            sentence = f"is right {accuracy} {worst.jump}, the only jump that it makes"
        elif trial.phi.fixed_end:
            sentence = f"is a consistency function of this field {accuracy}: it goes to t={trial.times[-1]:.4g} only"
        else:
            sentence = f"is the flow map of this field {accuracy}"
        return sentence + also + _identities_told(checks), ()
    right_law = all(passed[name] is not False for name in NAMES) and any(passed[name] for name in NAMES)
    if trial.phi.law_only:
        if right_law:
            apart = f"its ends are {errors[0].mean:.1e} of the scale from those of the flow"
            return f"has the law of the data, all that it was made for; {apart}", ()
        return lost or "does not have the law of the data, which it was made for", ("train longer: a law is all that it has",)
    known = impostor(trial)
    if known is not None:
        return f"is {known.what}{also}", (known.fix,)
    ratio = proportional(trial)
    if ratio is not None:
        return f"is the flow map times {ratio:.4g}{also}", (f"divide its answer by {ratio:.6g}",)
    if lost:
        return f"{lost} (mean error {worst.mean:.1e} of the scale)", ("train on more starts, or on the lost mode's",)
    if all(pair.mean <= trial.allowed for pair in to_end):
        sentence = f"is right to t={trial.times[-1]:.4g} only, where it errs by {max(p.mean for p in to_end):.0e} of the scale"
        return f"{sentence}: use it as a consistency function", ("train jumps to other times, or give it fixed_end=True",)
    if errors[0].mean <= trial.allowed:
        right = f"{errors[0].jump}, where it errs by {errors[0].mean:.0e} of the scale"
        if two_jumps(trial) <= trial.allowed:
            return f"is right {right}, in one jump and in two, but over other states than the flow's", ()
        advice = "use it with one evaluation, or train jumps from and to other times"
        return f"is right in one jump {right}, and not elsewhere", (advice,)
    if right_law:
        return (
            "has the law of the data, not the coupling of the flow: its ends are "
            f"{errors[0].mean:.1e} of the scale from those of the flow", (),
        )  # fmt: skip
    return f"is not the flow map of this field: mean error {worst.mean:.1e} of the scale {worst.jump}", ()


def _identities_told(checks: list[Check]) -> str:
    failed = [c.name for c in checks if c.passed is False and c.name in IDENTITIES]
    return f", but does not keep {', '.join(failed)}" if failed else ""


def _negated(check: Check) -> str:
    return {
        "answers with the shape and dtype of x": "of the shape and dtype of x",
        "leaves its x alone": "leaving x alone",
    }.get(check.name, check.name)


def _safely(make: Callable[[MapTrial], list[Check]], trial: MapTrial, name: str) -> list[Check]:
    try:
        return make(trial)
    except DiffodeError as error:
        return [Check.found(name, False, str(error))]
    except Exception as error:  # anyone's map may raise anything
        return [Check.found(name, False, f"raised {type(error).__name__}: {error}")]


def _one(make: Callable[[], Check], name: str) -> Check:
    try:
        return make()
    except Exception as error:  # anyone's map may raise anything
        return Check.found(name, None, f"not measured: {type(error).__name__}: {error}")
