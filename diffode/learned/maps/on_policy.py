r"""On-policy distillation of a flow map, as AnyFlow does it (arXiv 2605.13724): the law of the ends of the map's own ways.

A way from noise to data is split into three jumps of the map, :math:`x_T \to x_a \to x_b \to x_0`, whatever the number of steps
that a run will make. The gradient of the distance of laws by the end, that of distribution matching (Yin et al., arXiv
2311.18828, equation 7), goes through the last jump, whose numbers are held, into the second, which learns:

.. math:: \frac{D_\psi(y) - D_\phi(y)}{E|x_0 - D_\phi(y)|},

y the end with noise, :math:`D_\phi` the denoised points of the teacher and :math:`D_\psi` those of the ends' own law, which
the fake learns. Regression on pairs, which comes first, goes on beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffode.learned.maps import laws
from diffode.learned.maps.identity import LEAST, Denoiser, fake_of, noised, of_network, taken_to
from diffode.learned.maps.moments import toward
from diffode.learned.maps.residuals import Context, Term, pairs


def any_step(c: Context, n: int) -> list[Term]:
    """The terms of AnyFlow: pairs, and in the second part of a training the ends of the map's own ways too."""
    known = pairs(c, n)
    if c.share < c.options["first"]:
        return known
    points, b = own_ways(c, n)
    a = laws.karras(c.sources, n, c.options["reach"])
    gradient = matching_gradient(
        points.detach(), b, a, c.sources.normal(*points.shape), c.sources.denoised, of_network(fake_of(c))
    )
    return [*known, Term(toward(points, gradient), c.options["matching"], (a, b))]


def own_ways(c: Context, n: int) -> tuple[Tensor, Tensor]:
    """Ends (n, D) of ways of three jumps, the second of which has a gradient, and their angle (n,)."""
    a, b = c.pair(n)
    first, last = (torch.full_like(a, angle) for angle in c.sources.angles)
    with torch.no_grad():
        there = c.map(c.sources.prior(n), first, a)
    return c.held(c.map(there, a, b), b, last), last


def matching_gradient(points: Tensor, b: Tensor, a: Tensor, eps: Tensor, teacher: Denoiser, fake: Denoiser) -> Tensor:
    """The gradient (B, D) of the divergence from the teacher's law to that of points (B, D), by the points, a row alone.

    Args:
        points: the points at angles b (B,).
        b: their angles.
        a: the angles (B,) to which they are noised.
        eps: the noise (B, D).
        teacher, fake: denoised points of the teacher's law and of that of the points.
    """
    with torch.no_grad():
        y = noised(points, b, a, eps)
        real, own = (taken_to(answer(y, a), y, a, b) for answer in (teacher, fake))
        return (own - real) / (points - real).abs().mean(1, keepdim=True).clamp(min=LEAST)
