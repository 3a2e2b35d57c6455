r"""The true W2 of an affine learned score on a Gaussian, where the law of its samples is a Gaussian too.

With :math:`s_\theta(x, t) = A_t x + b_t` and time running to the data, mean and covariance follow

.. math::
    \dot m = -f m + c(A m + b), \qquad \dot V = (-f + cA)V + V(-f + cA)^T + \epsilon g^2 I,

with :math:`c = g^2, \epsilon = 1` for the reverse SDE and :math:`c = g^2/2, \epsilon = 0` for the flow.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from diffode.fields import ExactField, Field
from diffode.metrics import gaussian_w2
from diffode.numerics.affine import affine_map, probe_points
from diffode.numerics.butcher import KUTTA

#: Largest number of coordinates, each of which takes one evaluation of the score.
_MOST_COORDINATES = 16
#: Number of steps of the classical fourth-order method over the log-SNR.
_STEPS = 1024
#: Largest relative difference to a run with half the steps.
_SAME = 1e-6


class Distances(NamedTuple):
    """W2, by flow and by SDE, between the exact law at the last time and samples of a learned score from that at the first."""

    flow: float
    sde: float


def gaussian_distances(exact: ExactField, learned: Field, start: float) -> Distances | None:
    """True W2 distances at time ``start``, or None where they are not known.

    They are known if the target is one Gaussian with at most 16 coordinates, and the learned score is affine in x at each of
    about two thousand times, by probes up to five standard deviations out.
    """
    dim, path = exact.target.dim, exact.path
    clocks = -path.log_snr(path.t_max), -path.log_snr(start)
    if not exact.target.is_gaussian or dim > _MOST_COORDINATES or not all(map(math.isfinite, clocks)):
        return None
    nodes = np.linspace(*clocks, 2 * _STEPS + 1)
    pulls = []
    for clock in nodes.tolist():
        t = path.time_from_log_snr(-clock)
        found = _affine(learned, dim, t)
        if found is None:
            return None
        # dt/d log_snr towards the data, where the log-SNR grows at the rate g^2/(2 sigma^2).
        variance = 2 * path.sigma(t) ** 2
        pulls.append((-path.drift(t) * variance / path.diffusion(t) ** 2, variance, *found))
    step = float(nodes[0] - nodes[1])

    def moments(t: float) -> tuple[torch.Tensor, torch.Tensor]:
        noise = path.sigma(t) ** 2 * torch.eye(dim, dtype=torch.float64)
        return path.alpha(t) * exact.target.mean, path.alpha(t) ** 2 * exact.target.covariance + noise

    first, last = moments(path.t_max), moments(start)
    distances = []
    for factor, noise in ((0.5, 0.0), (1.0, 1.0)):
        found_twice = []
        for stride in (1, 2):
            mean, covariance = _followed(first[0].numpy(), first[1].numpy(), pulls[::stride], 2 * stride * step, factor, noise)
            if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
                return None
            found_twice.append(gaussian_w2(torch.from_numpy(mean), torch.from_numpy(covariance), *last))
        size = abs(found_twice[0]) + float(last[1].trace().sqrt())
        if not abs(found_twice[0] - found_twice[1]) <= _SAME * size:
            return None
        distances.append(found_twice[0])
    return Distances(*distances)


def _followed(
    mean: np.ndarray, covariance: np.ndarray, pulls: list[Any], step: float, factor: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at the last node; ``pulls`` are (drift, 2 sigma^2, A, b) at the nodes and midway of the steps."""
    identity = np.eye(len(mean))

    def rate(moments: np.ndarray, place: float) -> np.ndarray:
        """Rates of the mean, the first column, and of the covariance at a node; a step goes to the next node but one."""
        drift, variance, slope, offset = pulls[int(place)]
        matrix = drift * identity + factor * variance * slope
        change: np.ndarray = matrix @ moments
        change[:, 1:] += change[:, 1:].T + noise * variance * identity
        change[:, 0] += factor * variance * offset
        return step / 2 * change

    moments = np.column_stack([mean, covariance])
    with np.errstate(over="ignore", invalid="ignore"):
        for node in range(0, len(pulls) - 2, 2):
            moments = KUTTA.step(rate, moments, node, 2)
    return moments[:, 0], moments[:, 1:]


def _affine(learned: Field, dim: int, t: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A (dim, dim) and b (dim,) of an affine score at t, or None if it is not affine at the probes."""
    path = learned.require_path("its score")
    size = path.sigma(t) + path.alpha(t) * learned.scale
    points = probe_points(torch.zeros(dim, dtype=torch.float64), size)
    with torch.no_grad():
        found = affine_map(learned.score(points, t).double(), points, size)
    return None if found is None else (found[0].numpy(), found[1].numpy())
