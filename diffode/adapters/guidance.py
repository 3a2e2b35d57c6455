"""Classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import SupportsFloat

from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field


def guided(conditional: Field, unconditional: Field, weight: float) -> Field:
    """The field D_u + weight (D_c - D_u) (Ho and Salimans, arXiv 2207.12598, with weight = 1 + their w).

    An evaluation calls both networks, and both calls count: an NFE of 20 is 10 evaluations of the guided field. The fields
    must share a path, else ArgumentError; their views may differ.

    >>> import diffode
    >>> one, two = (diffode.exact_field(name, "vp") for name in ("ring8", "moons"))
    >>> field = guided(one, two, 2.0)
    >>> diffode.solve(field, one.prior(3, generator=0), solver="dpmpp:order=2", nfe=12).nfe
    12
    """
    for name, field in (("conditional", conditional), ("unconditional", unconditional)):
        if not isinstance(field, Field):
            raise ArgumentError(f"{name} must be a diffode field, got {type(field).__name__}")
    # SupportsFloat takes NumPy's numbers too.
    if isinstance(weight, bool) or not isinstance(weight, SupportsFloat) or not math.isfinite(weight):
        raise ArgumentError(f"weight must be a number (1 is the conditional field alone), got {weight!r}")
    if (conditional.path and conditional.path.spec) != (unconditional.path and unconditional.path.spec):
        raise ArgumentError("both fields must be on the same path: guidance mixes their predictions at the same x and t")
    view, weight = conditional.prediction, float(weight)

    def predict(x: Tensor, t: float | Tensor) -> Tensor:
        base = unconditional.predict(view, x, t)
        return base + weight * (conditional.predict(view, x, t) - base)

    calls = conditional.calls + unconditional.calls
    field = GuidedField(predict, view, conditional.path, scale=conditional.scale, calls=calls)
    field.members = (conditional, unconditional)
    field.dim, field.shape = conditional.dim, conditional.shape
    return field


class GuidedField(Field):
    """The field that :func:`guided` makes; both ``members`` are checked against their conventions before the first run."""

    members: tuple[Field, ...] = ()

    @override
    def check_once(self, x: Tensor, t: float) -> None:
        for member in self.members:
            member.check_once(x, t)
        super().check_once(x, t)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Calls inside the block count neither for this field nor for its members."""
        with ExitStack() as stack:
            stack.enter_context(super().uncounted())
            for member in self.members:
                stack.enter_context(member.uncounted())
            yield

    @contextmanager
    @override
    def rows(self, index: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.rows(index))
            yield
