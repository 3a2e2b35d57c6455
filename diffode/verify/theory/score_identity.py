r"""Score identity distillation on a Gaussian, where the fake score is known: its losses, their gradients, where they lead.

The data are N(m, lambda), a generator gives N(b, s^2), and the noise level is sigma. With the exact denoisers of both and

.. math:: k = \lambda/(\lambda + \sigma^2), \qquad q = s^2/(s^2 + \sigma^2),

.. math::
    L_1 = E|D_\phi - D_\psi|^2 = (1-k)^2(m-b)^2 + (k-q)^2(s^2+\sigma^2), \qquad
    L_2 = E\langle D_\phi - D_\psi, D_\phi - x_0\rangle = L_1,

the second by :math:`E\langle f(x_t), D_\psi\rangle = E\langle f(x_t), x_0\rangle`, which holds where the fake score
:math:`\psi` is that of the generator, whose points are :math:`x_0`. So the *value* of :math:`L_2 - \alpha L_1` is
:math:`(1-\alpha) L_1`, which tells nothing at :math:`\alpha = 1`; training follows its gradient with :math:`\psi` frozen, which
is another function.

Source: Zhou et al., arXiv 2404.04057 (SiD); the closed forms are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from diffode.errors import ArgumentError


class IdentityLosses(NamedTuple):
    """The losses of a generator at one noise level, in denoisers, and their gradients with the fake score frozen.

    Attributes:
        fisher: L1.
        identity: L2, which is L1.
        by_mean: gradient of L2 - alpha L1 by the generator's mean.
        by_deviation: gradient by its standard deviation.
        naive_by_mean: gradient of L1 alone, frozen, by the mean.
        naive_by_deviation: gradient of L1 alone, frozen, by the standard deviation: it never widens the generator.
    """

    fisher: float
    identity: float
    by_mean: float
    by_deviation: float
    naive_by_mean: float
    naive_by_deviation: float


def identity_losses(
    mean: float, variance: float, own_mean: float, own_deviation: float, sigma: float, alpha: float = 1.2
) -> IdentityLosses:
    """Losses and gradients for data N(mean, variance) and a generator N(own_mean, own_deviation^2) at a noise level.

    >>> found = identity_losses(0.0, 1.0, 0.0, 1.0, 0.5)
    >>> found.fisher, found.by_deviation
    (0.0, -0.0)
    """
    if not (variance > 0 and own_deviation >= 0 and sigma > 0):
        raise ArgumentError(
            f"variance and sigma must be positive, own_deviation 0 at least, got {variance!r}, {sigma!r} and {own_deviation!r}"
        )
    k, q = variance / (variance + sigma**2), own_deviation**2 / (own_deviation**2 + sigma**2)
    away, total = mean - own_mean, own_deviation**2 + sigma**2
    fisher = (1 - k) ** 2 * away**2 + (k - q) ** 2 * total
    return IdentityLosses(
        fisher,
        fisher,
        -(1 - k) * away * ((1 - q) + 2 * (alpha - 1) * (k - q)),
        -2 * own_deviation * (k - q) * ((1 - k) + alpha * (k - q)),
        2 * (1 - k) * (k - q) * away,
        2 * own_deviation * (k - q) ** 2,
    )


def identity_path(
    begin: tuple[float, float],
    alpha: float | None,
    *,
    mean: float = 0.0,
    variance: float = 1.0,
    sigmas: Sequence[float] = (),
    steps: int = 4000,
    rate: float = 0.02,
) -> list[tuple[float, float]]:
    """The generator's mean and standard deviation after each step of gradient descent with an exact fake score.

    Args:
        begin: mean and standard deviation at first.
        alpha: that of the loss; None for the naive L1 with a frozen fake score.
        mean, variance: of the data.
        sigmas: noise levels over which the gradient is averaged; 40 from .02 to 20, equal in the logarithm, unless given.
        steps, rate: number of steps and their rate.

    >>> b, s = identity_path((3.0, 0.3), 1.2, steps=4000)[-1]
    >>> abs(b) < 1e-4, round(s, 4)
    (True, 1.0)
    """
    levels = sigmas or [math.exp(math.log(0.02) + math.log(1000) * k / 39) for k in range(40)]
    b, s = begin
    found = [begin]
    for _ in range(steps):
        losses = [identity_losses(mean, variance, b, s, level, 1.0 if alpha is None else alpha) for level in levels]
        if alpha is None:
            slopes = [(one.naive_by_mean, one.naive_by_deviation) for one in losses]
        else:
            slopes = [(one.by_mean, one.by_deviation) for one in losses]
        b -= rate * sum(slope for slope, _ in slopes) / len(levels)
        s = max(s - rate * sum(slope for _, slope in slopes) / len(levels), 0.0)
        found.append((b, s))
    return found
