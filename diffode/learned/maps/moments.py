r"""IMM, inductive moment matching: jumps from a state and from one on its way have ends of one law (arXiv 2503.07565).

Rows come in groups of M with the same angles a > r >= b. With :math:`x_j = \Phi(y_a^j, a\to b)`, :math:`y_j =
\mathrm{sg}\,\Phi(y_r^j, r\to b)`, both from the same data and noise, and a kernel k, what is made small is

.. math:: \frac{1}{M^2}\sum_{j,l} k(x_j, x_l) + k(y_j, y_l) - 2 k(x_j, y_l),

the squared distance of the two laws' embeddings. Pairs j = l of the last sum hold each point to its own neighbour, as
consistency training does; over distinct pairs alone, with M (M - 1) in place of M squared, the mean vanishes where the two laws
are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffode.learned.maps.residuals import Context, Term

#: Distance of two points, in units of the data, below which a kernel no longer pulls them apart.
_LEAST = 1e-8
#: Smallest width of a kernel, a coordinate.
_LEAST_WIDTH = 1e-4
#: What a kernel's pairs may be.
PAIRS = ("all", "distinct")


def squared_discrepancy(x: Tensor, y: Tensor, width: Tensor, pairs: str = "all") -> Tensor:
    """The squared maximum mean discrepancy (G,) of groups (G, M, D), for the kernel exp(-|x - y|/width) of widths (G,)."""
    own, other, between = (_kernel(u, v, width, pairs)[0].sum((1, 2)) for u, v in ((x, x), (y, y), (x, y)))
    return (own + other - 2 * between) / _count(x.shape[1], pairs)


def discrepancy_gradient(x: Tensor, y: Tensor, width: Tensor, pairs: str = "all") -> Tensor:
    """The gradient (G, M, D) of :func:`squared_discrepancy` by x."""
    total = torch.zeros_like(x)
    for other, sign in ((x, 1.0), (y, -1.0)):
        kernel, distance = _kernel(x, other, width, pairs)
        pull = torch.where(distance > _LEAST, -kernel / (distance.clamp(min=_LEAST) * width[:, None, None]), 0.0)
        total = total + sign * (pull.sum(2)[..., None] * x - pull @ other)
    return 2 * total / _count(x.shape[1], pairs)


def _kernel(x: Tensor, y: Tensor, width: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
    """Kernels and distances (G, M, M) of the points of groups; kernels of pairs that do not count are 0."""
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    kernel = (-distance.clamp(min=_LEAST) / width[:, None, None]).exp()
    if pairs == "distinct":
        kernel = kernel * (1 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
    return kernel, distance


def _count(size: int, pairs: str) -> int:
    return size * (size - 1) if pairs == "distinct" else size * size


def toward(points: Tensor, gradient: Tensor) -> Tensor:
    """The residual (B, D) whose mean square has the mean of a gradient (B, D) over the rows as its own.

    The residual is the distance to a point without a gradient, ``points - sg(points - D/2 gradient)``.
    """
    return points - (points - points.shape[1] / 2 * gradient).detach()


def moment_matching(c: Context, n: int) -> list[Term]:
    """The term of IMM, in groups of ``group`` rows."""
    size = c.options["group"]
    groups = max(1, n // size)
    a, b = c.pair(groups)
    r = torch.maximum(lower(a, c.sources.angles, c.options["halvings"]), b)
    every = [angle.repeat_interleave(size) for angle in (a, r, b)]
    noised = c.sources.noised(every[0])
    points = c.map(noised.y, every[0], every[2])
    with torch.no_grad():
        target = c.target(noised.at(every[1]), every[1], every[2])
        _, gain = c.map.parametrisation.coefficients(a, b)
        width = (points.shape[1] * gain.abs()).clamp(min=_LEAST_WIDTH)
        shape = (groups, size, points.shape[1])
        gradient = discrepancy_gradient(points.reshape(shape), target.reshape(shape), width, c.options["pairs"])
        # A group's discrepancy counts for its rows together, each of which has a share of its gradient.
        gradient = size * (weight(a, c.options["bias"], c.options["power"])[:, None, None] * gradient)
    return [Term(toward(points, gradient.reshape(points.shape)), span=(every[0], every[2]))]


def lower(a: Tensor, ends: tuple[float, float], halvings: int) -> Tensor:
    """The angles r whose noise levels lie the range of all levels over 2^halvings below those of angles a, or at 0."""
    levels = torch.tensor(ends, dtype=torch.float64).tan()
    gap = float(levels[0] - levels[1]) / 2.0**halvings
    return (a.tan() - gap).clamp(min=0.0).atan()


def weight(a: Tensor, bias: float, power: float) -> Tensor:
    """IMM's weight sigmoid(bias - log SNR) (-d log SNR/da)/2 alpha^power, at alpha = cos a and sigma = sin a, (B,)."""
    return torch.sigmoid(bias + 2 * a.tan().log()) / (a.sin() * a.cos()) * a.cos() ** power
