"""Rules of public code that are of order 1 where order 2 is meant, to be measured beside the right ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.hippo.holds import Array, Hold, Polynomial, Rule, registry
from diffode.hippo.measure import Measure

Form = Literal["bilinear_held", "hippo_code", "scipy_foh"]

#: Summaries of the forms.
_FORMS: dict[Form, str] = {
    "bilinear_held": "The trapezoid rule with the input at the step's beginning alone (S4, SciPy's A and B): order 1",
    "hippo_code": "The trapezoid rule with the input at the step's end alone, and A/t' on both sides for legs: order 1",
    "scipy_foh": "SciPy's first-order hold without its C and D, whose state is another: order 1",
}


@dataclass(frozen=True)
class PublicRule(Hold):
    """A rule of public code, by its form. Use ``trapezoid`` or ``foh`` in its place.

    Args:
        form: ``bilinear_held``, ``hippo_code`` or ``scipy_foh`` (not for ``legs``, which SciPy does not discretise).
    """

    name: ClassVar[str] = "public"
    form: Form = "bilinear_held"

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise ArgumentError(f"form must be one of {', '.join(_FORMS)}, got {self.form!r}")

    @property
    @override
    def spec(self) -> str:
        return self.form

    @property
    @override
    def order(self) -> int:
        return 1

    @property
    @override
    def degree(self) -> int:
        return 1

    @override
    def cell(self, measure: Measure, order: int, step: float) -> tuple[Array, Array]:
        if self.form == "scipy_foh":
            if measure.logarithmic:
                raise ArgumentError(f"hold 'scipy_foh' has no form for measure {measure.name!r}; take 'foh'")
            moved, inputs = Polynomial(1).cell(measure, order, step)
            return moved, np.outer(inputs[:, 0] - inputs[:, 1] + moved @ inputs[:, 1], (1.0, 0.0))
        if measure.logarithmic and step == 0 and self.form == "bilinear_held":
            return Rule(0.0).cell(measure, order, step)
        before, after = ((1 - step) / step if step else 1.0, 1 - step) if measure.logarithmic else (step, step)
        before = after if self.form == "hippo_code" else before
        start, b = np.eye(order) + before / 2 * measure.matrix(order), before * measure.input(order)
        found = measure.solved(order, after / 2, np.column_stack([start, b]))
        moved = found[:, :order] if step or not measure.logarithmic else np.zeros((order, order))
        return moved, np.outer(found[:, order], (1.0, float(self.form == "hippo_code")))


for _form, _summary in _FORMS.items():
    registry.register(_form, PublicRule, summary=_summary, form=_form)
