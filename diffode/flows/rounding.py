"""The tolerance that the rounding of a field's answers allows: a network in float32 has few digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffode.bridges import Bridge
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

    >>> from diffode.fields import trained
    >>> reachable(trained("ring8"), 1e-3), reachable(trained("ring8"), 1e-12) > 1e-6
    (0.001, True)
    """
    if isinstance(field, ExactField | GuidedField | Bridge):
        return tolerance
    on, row = field.require_path("the tolerance of a flow"), tuple(shape or field.shape or ())
    t = on.time_from_rho(min(max(field.scale, on.rho(on.t_min)), on.rho(on.t_max)))
    x = math.hypot(on.sigma(t), on.alpha(t) * field.scale) * normal((4, *row), generator=generator_from(1))
    return min(_LARGEST, max(tolerance, _FACTOR * field.rounding(x, t)))
