r"""SiD, score identity distillation: a generator learns from its teacher's score and that of its own law (arXiv 2404.04057).

A generator's points y are noised to x_a. With the denoised points :math:`D_\phi` of the teacher and :math:`D_\psi` of the
generator's own law, the loss is :math:`L_2 - \alpha L_1`,

.. math:: L_1 = E|D_\phi - D_\psi|^2, \qquad L_2 = E\langle D_\phi - D_\psi, D_\phi - y\rangle,

and training follows its gradient with :math:`\psi` frozen, through the teacher, :math:`\psi` and y. A second network, the fake,
learns :math:`D_\psi` on the generator's points in turn. What is known in closed form is in `verify/theory/score_identity.py`.

Everything is in the angle clock. A generator ends at the last angle b, which need not be 0, so that "denoised" means the mean
E[y_b | y_a], a linear function of that at 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffode.learned.maps import laws
from diffode.learned.maps.moments import toward
from diffode.learned.maps.residuals import Context, Term
from diffode.maps import AngleMap

#: Smallest mean distance of a point from what the teacher makes of it, over which the loss is taken.
LEAST = 1e-5
#: Denoised points E[d|y_a] (B, D) as a function of states and angles.
Denoiser = Callable[[Tensor, Tensor], Tensor]
#: Points (n, D) that a map makes, and the angles (n,) at which they are.
Generate = Callable[[Context, int], tuple[Tensor, Tensor]]


def score_identity(c: Context, n: int) -> list[Term]:
    """The term of SiD for the generator, with its fake as it is."""
    points, b = generated(c, n)
    a = laws.karras(c.sources, n, c.options["reach"])
    gradient = identity_gradient(
        points.detach(), b, a, c.sources.normal(*points.shape), c.sources.denoised, of_network(fake_of(c)), c.options["alpha"]
    )
    return [Term(toward(points, gradient), span=(a, b))]


def fake_score(c: Context, n: int, generate: Generate) -> list[Term]:
    """The term of the fake: it learns the velocity of the generator's noised points, as flow matching does that of data."""
    with torch.no_grad():
        points, b = generate(c, n)
    a = laws.one(c.sources, n, c.options["law"])
    y = noised(points, b, a, c.sources.normal(*points.shape))
    known = _known(a, b)[:, None]
    back = (b.cos() / a.cos())[:, None]
    # The velocity (cos y - d)/sin whose denoised point, taken to the angle b, is the generator's point.
    share = (1 - known).clamp(min=1e-6) * (a.sin() * a.cos())[:, None]
    velocity = ((known + (1 - known) * (a.cos() ** 2)[:, None]) * y - points / back) / share
    return [Term(fake_of(c).answers(y, a, a) - velocity, (1 - known)[:, 0], (a, a))]


def fake_of(c: Context) -> AngleMap:
    """The network of the generator's own law; without one, there is nothing to compare the teacher with."""
    if c.fake is None:
        raise ValueError("a teacher's law is compared with the law of a fake, and there is none")
    return c.fake


def generated(c: Context, n: int) -> tuple[Tensor, Tensor]:
    """Points (n, D) of the generator, and the angle b (n,) at which they are."""
    start = c.sources.prior(n)
    first, last = (start.new_full((n,), angle) for angle in c.sources.angles)
    return c.map(start, first, last), last


def of_network(fake: AngleMap) -> Denoiser:
    """The denoised points E[d|y_a] of a network that gives velocities on its diagonal."""

    def denoised(y: Tensor, a: Tensor) -> Tensor:
        return a.cos()[:, None] * y - a.sin()[:, None] * fake.answers(y, a, a)

    return denoised


def noised(points: Tensor, b: Tensor, a: Tensor, eps: Tensor) -> Tensor:
    """Points (B, D) at angles b with the noise of larger angles a."""
    spread = (a.sin() ** 2 * (1 - _known(a, b))).clamp(min=0.0).sqrt()
    return (a.cos() / b.cos())[:, None] * points + spread[:, None] * eps


def _known(a: Tensor, b: Tensor) -> Tensor:
    """The part of the noise at angles a that points at angles b have already, as a ratio of variances: (tan b/tan a)^2."""
    return (b.tan() / a.tan()) ** 2


def taken_to(d: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """E[y_b|y_a] (B, D) from E[d|y_a]: by Tweedie's formula both are linear in the score."""
    known = _known(a, b)[:, None]
    found: Tensor = (b.cos() / a.cos())[:, None] * (known * y + (1 - known) * a.cos()[:, None] * d)
    return found


def identity_gradient(
    points: Tensor, b: Tensor, a: Tensor, eps: Tensor, teacher: Denoiser, fake: Denoiser, alpha: float, *, norm: bool = True
) -> Tensor:
    """The gradient (B, D) of every row's loss by the generator's point, with the fake frozen.

    Args:
        points: the generator's points (B, D) at angles b (B,).
        b: their angles.
        a: the angles (B,) to which they are noised.
        eps: the noise (B, D).
        teacher, fake: denoised points of the teacher's law and of the generator's.
        alpha: that of the loss L2 - alpha L1.
        norm: whether a row's loss is taken over its mean distance of the point from the teacher's, as SiD does.
    """
    with torch.enable_grad():
        at = points.detach().requires_grad_(True)
        y = noised(at, b, a, eps)
        real, own = (taken_to(answer(y, a), y, a, b) for answer in (teacher, fake))
        apart = real - own
        loss = (apart * (real - at - alpha * apart)).sum(1)
        if norm:
            loss = loss / (at - real).detach().abs().mean(1).clamp(min=LEAST)
        (found,) = torch.autograd.grad(loss.sum(), at)
    return found.detach()
