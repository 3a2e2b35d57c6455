"""The tolerance that the rounding of a field's answers allows: a network in float32 has few digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffode.arguments import check_number
from diffode.bridges import Bridge
from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field, GuidedField
from diffode.randomness import generator_from, normal

#: Ratio of the smallest tolerance of a reference to the relative rounding in the field's answers.
_FACTOR = 100
#: Largest tolerance that is taken for that of rounding; a field that rounds more is no field to follow.
_LARGEST = 1e-3


def reachable(field: Field, tolerance: float, shape: Sequence[int] | None = None) -> float:
    """A relative tolerance for the flow of a field: the given one, or the smallest that the rounding of its answers allows.

    An integration that is asked for less does not end, or takes a hundred times the evaluations, since its steps shrink until
    the rounding of neighbouring answers is all that it sees.

    Args:
        field: a field with a path; the answers of an exact one, or of a guided one, are taken to be in float64.
        tolerance: what is asked for.
        shape: shape of a row, where the field does not know it.

    Raises:
        ArgumentError: if ``field`` is none, its row's shape is unknown, or ``tolerance`` is no positive number.

    >>> from diffode.fields import exact_field
    >>> exact = exact_field("ring8", "edm")
    >>> single = Field.from_denoised(lambda x, t: exact.denoised(x.float(), t).double(), "edm")
    >>> reachable(exact, 1e-12), reachable(single, 1e-3, (2,)), 1e-6 < reachable(single, 1e-12, (2,)) < 1e-4
    (1e-12, 0.001, True)
    """
    if not isinstance(field, Field | Bridge):
        raise ArgumentError(f"field must be a Field, got {type(field).__name__}: make one, as by Field.from_denoised")
    check_number("tolerance", tolerance, 0.0, above=True)
    if isinstance(field, ExactField | GuidedField | Bridge):
        return tolerance
    on, row = field.require_path("the tolerance of a flow"), shape or field.shape
    if not row:
        raise ArgumentError("shape must be that of a row, which this field does not know: give shape=(dim,)")
    t = on.time_from_rho(min(max(field.scale, on.rho(on.t_min)), on.rho(on.t_max)))
    x = math.hypot(on.sigma(t), on.alpha(t) * field.scale) * normal((4, *row), generator=generator_from(1))
    return min(_LARGEST, max(tolerance, _FACTOR * field.rounding(x, t)))
