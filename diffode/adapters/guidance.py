"""Classifier-free guidance of other libraries' models, by the name that adapters have for it."""

from __future__ import annotations

from diffode.errors import ArgumentError
from diffode.fields import Field, GuidedField, guide


def guided(conditional: Field, unconditional: Field, weight: float) -> GuidedField:
    """The field D_u + weight (D_c - D_u) (Ho and Salimans, arXiv 2207.12598, with weight = 1 + their w): ``diffode.guide``.

    An evaluation calls both networks, and both calls count: an NFE of 20 is 10 evaluations of the guided field. The fields
    must share a path, else ArgumentError; their views may differ.

    >>> import diffode
    >>> one, two = (diffode.exact_field(name, "vp") for name in ("ring8", "moons"))
    >>> field = guided(one, two, 2.0)
    >>> diffode.solve(field, one.prior(3, generator=0), solver="dpmpp:order=2", nfe=12).nfe
    12
    """
    if callable(weight):
        raise ArgumentError("weight must be a number (1 is the conditional field alone); diffode.guide takes functions")
    return guide(conditional, unconditional, weight)
