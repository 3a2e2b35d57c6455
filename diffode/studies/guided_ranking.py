"""Which sampler at a number of steps under guidance of a weight: the standings of guided problems, apart by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffode.fields.problem_text import guidance_of
from diffode.studies.ranking import Curve, Standing, budgets, standings

#: Number of evaluations, and weight, about which people ask most.
_STEPS, _WEIGHT = 8, 7.5


@dataclass(frozen=True)
class Guided:
    """The standings at one weight and one budget.

    Attributes:
        weight: the weight of guidance, 1 the conditional field alone.
        nfe: the budget of network calls.
        evaluations: what it buys: a guided evaluation calls the network twice, one at weight 0 or 1 once.
        best: the methods with the smallest geometric mean of the error over all problems, the best first.
    """

    weight: float
    nfe: int
    evaluations: int
    best: tuple[Standing, ...]

    @property
    def row(self) -> list[str]:
        """Weight, evaluations, NFE, and the three best methods with their errors, as texts."""
        shown = [f"{one.method} {one.error:.1e}" for one in self.best[:3]]
        return [f"{self.weight:g}", str(self.evaluations), str(self.nfe), *shown, *[""] * (3 - len(shown))]


#: What a row says.
HEADER = ("weight", "evaluations", "NFE", "best", "second", "third")


def by_weight(curves: Sequence[Curve], most: int = 3) -> list[Guided]:
    """The standings of the guided problems among curves for each weight and budget; none where nothing is guided."""
    apart: dict[float, list[Curve]] = {}
    for curve in curves:
        guidance = guidance_of(curve.target)
        if guidance is not None:
            apart.setdefault(guidance.weight, []).append(curve)
    return [
        Guided(weight, nfe, nfe if weight in (0.0, 1.0) else nfe // 2, tuple(ranked[:most]))
        for weight, own in sorted(apart.items())
        for nfe in budgets(own)
        if (ranked := standings(own, nfe))
    ]


def sentence(found: Sequence[Guided]) -> str:
    """The answer in words for usual numbers, eight evaluations at weight 7.5 or the nearest one; empty if there are none."""
    eight = [one for one in found if one.evaluations == _STEPS and one.weight not in (0.0, 1.0)]
    if not eight:
        return ""
    one = min(eight, key=lambda each: abs(each.weight - _WEIGHT))
    first, *others = one.best
    more = "".join(f", then {each.method} ({each.error:.2g})" for each in others)
    return (
        f"With {_STEPS} evaluations at weight {one.weight:g} (NFE {one.nfe}) {first.method} errs least: {first.error:.2g} of "
        f"the scale, best on {first.wins} of {first.problems} problems{more}."
    )
