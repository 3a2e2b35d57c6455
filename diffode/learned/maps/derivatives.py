"""Residuals with derivatives of the map: Lagrangian, by where it goes, and Eulerian, by where it is."""

from __future__ import annotations

import torch
from torch import Tensor

from diffode.learned.maps import laws
from diffode.learned.maps.residuals import Context, Term

#: Weight of a Lagrangian residual at the angle b is sin b/(sin b + this): off the data the field grows as 1/sin b.
_LEVEL_SOFTENING = 0.1
#: What the norm of a tangent is softened by in sCM and AYF (arXiv 2410.11081, 2506.14603).
_TANGENT_SOFTENING = 0.1


def lagrangian(c: Context, n: int) -> list[Term]:
    """The velocity of the arriving point is the field's there: FMM-LMD and AYF-LMD with a teacher, LSD with the map's own."""
    diagonal_rows = round(c.options["same"] * n)
    a, b = c.pair(n - diagonal_rows)
    y = c.sources.noised(a).y
    there, rate = c.map.at_end(y, a, b)
    slope = c.velocity(there.detach(), b)
    weight: Tensor | float = 1.0
    if c.options.get("weight") == "level":
        weight = b.sin() / (b.sin() + _LEVEL_SOFTENING)
    terms = [Term(rate - slope, weight, (a, b))]
    if diagonal_rows:
        terms += _on_diagonal(c, diagonal_rows)
    return terms


def _on_diagonal(c: Context, n: int) -> list[Term]:
    """Flow matching on data where the map is its own teacher, else the teacher's velocity."""
    at = laws.one(c.sources, n, c.options["law"])
    noised = c.sources.noised(at)
    known = c.sources.velocity(noised.y, at) if c.options["teacher"] == "exact" else noised.velocity(at)
    return [Term(c.map.velocity(noised.y, at) - known, span=(at, at))]


def eulerian(c: Context, n: int) -> list[Term]:
    """Where it arrives does not change along a trajectory: |D_a Phi|^2 itself (FMM-EMD), or its own velocity (ESD)."""
    diagonal_rows = round(c.options["same"] * n)
    a, b = c.pair(n - diagonal_rows)
    noised = c.sources.noised(a)
    _, rate = c.map.at_start(noised.y, a, b, c.velocity(noised.y, a))
    terms = [Term(rate, span=(a, b))]
    if diagonal_rows:
        terms += _on_diagonal(c, diagonal_rows)
    return terms


def tangent(c: Context, n: int) -> list[Term]:
    """The Eulerian residual as a direction for the map's value: sCM (an end that is fixed) and AYF-EMD.

    The gradient is that of ``<Phi, sg g>`` with g the derivative D_a Phi, over its norm, times the sign that makes Phi follow.
    """
    if c.options["fixed_end"]:
        a, _ = laws.two(c.sources, n, c.options["law"], ends=c.options["ends"])
        b = torch.full_like(a, c.sources.angles[1])
    else:
        a, b = c.pair(n)
    noised = c.sources.noised(a)
    slope = c.velocity(noised.y, a, noised)
    with torch.no_grad():
        _, rate = c.map.at_start(noised.y, a, b, slope)
        # The warm-up of sCM: the part of the derivative that the network makes itself is let in slowly.
        grown = min(1.0, c.share / c.options["warm_up"]) if c.options["warm_up"] else 1.0
        if grown < 1:
            flat = c.map.parametrisation.rates(a, b)[0]
            keep, gain = c.map.parametrisation.coefficients(a, b)
            without = flat[0][:, None] * noised.y + keep[:, None] * slope + flat[1][:, None] * c.map.answers(noised.y, a, b)
            rate = without + grown * (rate - without)
        direction = rate * a.cos()[:, None] if c.options["fixed_end"] else rate
        direction = direction / (direction.norm(dim=1, keepdim=True) / direction.shape[1] ** 0.5 + _TANGENT_SOFTENING)
    answer = c.map.answers(noised.y, a, b)
    _, gain = c.map.parametrisation.coefficients(a, b)
    # Phi at the angle a is to be what it is at a smaller one, so it moves against its derivative; where B < 0, F moves with it.
    goal = answer.detach() - torch.sign(gain)[:, None] * direction
    return [Term(answer - goal, span=(a, b))]


def mean_flow(c: Context, n: int) -> list[Term]:
    """MeanFlow: F is what the Eulerian equation makes of the velocity and of F's own derivative along the trajectory.

    With ``improved``, the velocity that F implies is regressed on that of the data, with the map's own velocity as tangent.
    """
    a, b = c.pair(n, same=c.options["same"])
    noised = c.sources.noised(a)
    known = c.velocity(noised.y, a, noised)
    (keep_rate, gain_rate), _ = c.map.parametrisation.rates(a, b)
    keep, gain = c.map.parametrisation.coefficients(a, b)
    terms = []
    if c.options["improved"]:
        own = c.map.velocity(noised.y, a)
        terms.append(Term(own - known, span=(a, a)))
        slope = own.detach()
    else:
        slope = known
    answer, rate = c.map.network_at_start(noised.y, a, b, slope)
    rate = rate.detach()
    if c.options["improved"]:
        implied = -(keep_rate[:, None] * noised.y + gain_rate[:, None] * answer + gain[:, None] * rate) / keep[:, None]
        return [*terms, Term(implied - known, span=(a, b))]
    target = -(keep_rate[:, None] * noised.y + keep[:, None] * slope + gain[:, None] * rate) / gain_rate[:, None]
    return [Term(answer - target.detach(), span=(a, b))]


def direct(c: Context, n: int) -> list[Term]:
    """FMM without a teacher: maps in both directions; the velocity at a point that was pulled back is that of the data."""
    first, last = c.sources.angles
    a, b = (last + (first - last) * c.sources.uniform(n) for _ in range(2))
    noised = c.sources.noised(b)
    back = c.map(noised.y, b, a)
    there, rate = c.map.at_end(back, a, b)
    return [Term(rate - noised.velocity(b), span=(a, b)), Term(there - noised.y, span=(a, b))]
