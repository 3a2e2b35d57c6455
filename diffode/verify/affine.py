r"""The true W2 of a learned score that is affine, on a Gaussian: there the law of what it generates is a Gaussian too.

With :math:`s_\theta(x, t) = A_t x + b_t` and time running to the data, mean and covariance follow

.. math::
    \dot m = -f m + c(A m + b), \qquad \dot V = (-f + cA)V + V(-f + cA)^T + \epsilon g^2 I,

with :math:`c = g^2, \epsilon = 1` for the reverse SDE and :math:`c = g^2/2, \epsilon = 0` for the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp

from diffode.errors import NumericalError
from diffode.fields import ExactField, Field
from diffode.metrics import gaussian_w2

#: Most coordinates: the score is read off at one point a coordinate.
_MOST_COORDINATES = 16
#: An affine map bends by rounding only.
_BEND = 1e-6
_TOLERANCE = 1e-10


class Distances(NamedTuple):
    """W2 between the exact law at the last time and what a learned score generates from the exact law at the first."""

    flow: float
    sde: float


def gaussian_distances(exact: ExactField, learned: Field, start: float) -> Distances | None:
    """True W2 distances at time ``start``, or None where they are not known in closed form.

    They are known if the target is one Gaussian, of 16 coordinates at most, and the learned score is affine in x.

    Raises:
        NumericalError: if the moments can't be integrated.
    """
    dim, path = exact.target.dim, exact.path
    if getattr(exact.target, "count", None) != 1 or dim > _MOST_COORDINATES:
        return None
    clocks = -path.log_snr(path.t_max), -path.log_snr(start)
    if not all(map(math.isfinite, clocks)):
        return None
    for clock in np.linspace(*clocks, 5).tolist():
        if _affine(learned, dim, path.time_from_log_snr(-clock)) is None:
            return None

    def rates(factor: float, noise: float) -> Callable[[float, np.ndarray], np.ndarray]:
        def rate(clock: float, y: np.ndarray) -> np.ndarray:
            t = path.time_from_log_snr(-clock)
            found = _affine(learned, dim, t)
            if found is None:
                raise NumericalError(f"the learned score is affine at some times, but not at t={t:g}")
            slope, offset = found
            # dt over the clock's step, time running to the data: the log-SNR grows at the rate g^2/(2 sigma^2).
            variance = 2 * path.sigma(t) ** 2
            pull = -path.drift(t) * variance / path.diffusion(t) ** 2 * np.eye(dim) + factor * variance * slope
            mean, covariance = y[:dim], y[dim:].reshape(dim, dim)
            spread = pull @ covariance
            return -np.concatenate(
                [pull @ mean + factor * variance * offset, (spread + spread.T + noise * variance * np.eye(dim)).reshape(-1)]
            )

        return rate

    def moments(t: float) -> tuple[torch.Tensor, torch.Tensor]:
        return path.alpha(t) * exact.target.mean, path.alpha(t) ** 2 * exact.target.covariance + path.sigma(t) ** 2 * torch.eye(
            dim, dtype=torch.float64
        )

    first, last = moments(path.t_max), moments(start)
    begin = np.concatenate([first[0].numpy(), first[1].numpy().reshape(-1)])
    distances = []
    for factor, noise in ((0.5, 0.0), (1.0, 1.0)):
        done = solve_ivp(rates(factor, noise), clocks, begin, method="DOP853", rtol=_TOLERANCE, atol=1e-14)
        if not done.success or not np.isfinite(done.y[:, -1]).all():
            raise NumericalError(f"the moments of what the learned score generates can't be integrated: {done.message}")
        mean, covariance = (torch.from_numpy(part.copy()) for part in (done.y[:dim, -1], done.y[dim:, -1].reshape(dim, dim)))
        distances.append(gaussian_w2(mean, covariance, *last))
    return Distances(*distances)


def _affine(learned: Field, dim: int, t: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A and b of an affine score at t, or None if it bends."""
    size = learned.require_path("its score").sigma(t) + learned.scale
    points = torch.cat([torch.zeros(1, dim), torch.eye(dim), -2 * torch.ones(1, dim)]).double() * size
    with torch.no_grad():
        found = learned.score(points, t).double()
    slope = ((found[1:-1] - found[:1]) / size).T
    expected = found[0] + slope @ points[-1]
    bend = float((found[-1] - expected).abs().max())
    if not bend <= _BEND * float(found.abs().max().clamp(min=1e-300)):
        return None
    return slope.numpy(), found[0].numpy()
