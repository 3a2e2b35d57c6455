r"""Rectified flows: how straight their trajectories are, what the coupling costs, and what rounds of them do to Gaussians.

With :math:`X_t = t X_1 + (1-t) X_0` for noise X_0 and data X_1, :math:`v = E[X_1 - X_0|X_t]` and Z the flow of v from X_0,

.. math::
    S(Z) = \int_0^1 E|Z_1 - Z_0 - \dot Z_t|^2 dt, \qquad V(X) = \int_0^1 E|X_1 - X_0 - v(X_t, t)|^2 dt, \qquad
    E|X_1 - X_0|^2 - E|Z_1 - Z_0|^2 = S(Z) + V(X).

S is 0 for straight trajectories, V for lines that do not cross. Liu, Gong, Liu, arXiv 2209.03003, equation 13 and theorems 3.5
to 3.8; the Gaussian closed forms are derived here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.flows import flow_states, reachable
from diffode.numerics.butcher import KUTTA

#: Number of nodes of Gauss and Legendre in time.
_NODES = 24
#: Number of steps of the matrix equation.
_STEPS = 2000


class Straightness(NamedTuple):
    """Straightness of a field's flow on a path, and the costs of couplings of noise and data.

    Attributes:
        curvature: S, the mean square of the difference of a trajectory's velocity and its chord's; 0 if all are straight.
        crossing: V, that of the velocities of the lines between pairs and the field's; 0 if lines do not cross.
        cost: mean square of the distance of pairs, noise and data as they are given.
        flow_cost: the same of the flow's starts and ends.
    """

    curvature: float
    crossing: float
    cost: float
    flow_cost: float


def straightness(field: Field, noise: Tensor, data: Tensor, nodes: int = _NODES) -> Straightness:
    """S, V and the costs of a field whose path is rectified flow, over its whole range of times.

    The lines are taken between the noised pairs at both ends of the range, the flow from the first of them, so that the costs
    differ by S + V up to the quadrature and the sample's own error.

    Args:
        field: the field, exact or a network.
        noise: draws of the noise, (N, *shape).
        data: draws of the data, (N, *shape).
        nodes: number of nodes of the quadrature in time.

    Raises:
        ArgumentError: unless the path is rectified flow and the draws have one shape.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "rectified_flow")
    >>> found = straightness(field, torch.randn(512, 1, dtype=torch.float64), field.target.sample(512, generator=0))
    >>> found.curvature > 0
    True
    """
    path = field.require_path("straightness")
    if path.name != "rectified_flow":
        raise ArgumentError(f"straightness is that of lines in rectified flow: give a field on this path, not on {path.spec}")
    if noise.shape != data.shape or noise.ndim < 2 or not len(noise):
        raise ArgumentError(f"noise and data must have one shape (N, *shape), got {tuple(noise.shape)} and {tuple(data.shape)}")
    first, last = path.t_max, path.t_min
    at, weights = np.polynomial.legendre.leggauss(nodes)
    times = (first + last) / 2 - (first - last) / 2 * at
    lines = noise - data
    start, end = (path.alpha(t) * data + path.sigma(t) * noise for t in (first, last))
    states = flow_states(field, start, [first, *times.tolist(), last], reachable(field, 1e-9, noise.shape[1:]))
    chord = (states[-1] - states[0]) / (last - first)
    bend, cross = 0.0, 0.0
    for time, weight, state in zip(times.tolist(), weights.tolist(), states[1:-1], strict=True):
        own = field.velocity(state, time)
        bend += weight / 2 * _square(own - chord)
        between = path.alpha(time) * data + path.sigma(time) * noise
        cross += weight / 2 * _square(field.velocity(between, time) - lines)
    length = (first - last) ** 2
    return Straightness(bend * length, cross * length, _square(end - start), _square(states[-1] - states[0]))


def _square(rows: Tensor) -> float:
    return float(rows.flatten(1).square().sum(1).mean())


class GaussianStraightness(NamedTuple):
    """Closed forms in one direction: noise of deviation s0, data of deviation s1, whatever their means.

    Attributes:
        curvature: S of the first rectified flow, (2 - pi/2) s0 s1.
        crossing: V of the independent pairs, (pi/2) s0 s1.
    """

    curvature: float
    crossing: float


def gaussian_straightness(noise: float, data: float) -> GaussianStraightness:
    """S and V in one direction; a second round has neither, and the first one's map is optimal transport.

    >>> sum(gaussian_straightness(1.0, 2.0))
    4.0
    """
    return GaussianStraightness((2 - math.pi / 2) * noise * data, math.pi / 2 * noise * data)


def rectified_map(noise: Tensor, data: Tensor, steps: int = _STEPS) -> Tensor:
    """The matrix M (D, D) by which a rectified flow takes N(0, noise) to N(0, data): M noise M^T = data.

    ``M' = (t S1 - (1 - t) S0) S_t^-1 M`` with ``S_t = t^2 S1 + (1 - t)^2 S0``, by the classical Runge-Kutta method. Where the
    covariances commute it is the symmetric square root of optimal transport; elsewhere it is not symmetric, so not optimal,
    though a second round is straight and leaves it as it is.

    Args:
        noise, data: covariances (D, D), float64.
        steps: number of steps.

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> torch.allclose(rectified_map(eye, 4 * eye), 2 * eye, atol=1e-9)
    True
    """
    if noise.shape != data.shape or noise.ndim != 2:
        raise ArgumentError(f"covariances must be (D, D) both, got {tuple(noise.shape)} and {tuple(data.shape)}")

    def rate(matrix: Tensor, t: float) -> Tensor:
        cross = t * data - (1 - t) * noise
        found: Tensor = cross @ torch.linalg.solve(t**2 * data + (1 - t) ** 2 * noise, matrix)
        return found

    found: Tensor = torch.eye(len(noise), dtype=torch.float64)
    for step in range(steps):
        found = KUTTA.step(rate, found, step / steps, 1 / steps)
    return found


def coupling_cost(noise: Tensor, data: Tensor, matrix: Tensor) -> float:
    """E|M X - X|^2 of the coupling of N(0, noise) with N(0, data) by a matrix M; of the independent one for M = 0.

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> coupling_cost(eye, 4 * eye, 2 * eye), coupling_cost(eye, 4 * eye, 0 * eye)
    (2.0, 10.0)
    """
    return float((noise + data - 2 * matrix @ noise).diagonal().sum())
