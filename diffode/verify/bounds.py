r"""W2 between the data and what a learned score generates is bounded by its score-matching loss (Kwon, Fan, Lee 2022).

With :math:`\delta(t) = (E_{p_t}|s - s_\theta|^2)^{1/2}`, L_s the one-sided Lipschitz constant of the *learned* score (it may
be negative) and time running from the data (:math:`t_0`) to noise (T),

.. math::
    W_2(p_{t_0}, q_{t_0}) \le \int c\,I\,\delta\,dt + I(T)\,W_2(p_T, q_T), \qquad
    I(t) = \exp\int_{t_0}^t (-f + c\,L_s)\,ds,

with :math:`c = g^2` for the reverse SDE and :math:`c = g^2/2` for the flow. By Cauchy-Schwarz the first term is at most
:math:`(2\int g^2I^2\,dt\cdot J)^{1/2}` for the SDE and :math:`(\tfrac12\int g^2I^2\,dt\cdot J)^{1/2}` for the flow, where
:math:`J = \tfrac12\int g^2\delta^2\,dt` is the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import cumulative_simpson, simpson
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError, FieldError
from diffode.fields import ExactField, Field
from diffode.references import reference
from diffode.verify.affine import Distances, gaussian_distances


@dataclass(frozen=True)
class Bound:
    """A bound on W2: the ``integral`` form, the weaker one ``by_loss``, and the share of both that is due to the start."""

    integral: float
    by_loss: float
    prior: float


@dataclass(frozen=True)
class Certificate:
    """What the score error of a learned field costs.

    Attributes:
        loss: J, half the integral of g^2 E|s - s_theta|^2.
        flow, sde: the bounds for both ways of sampling.
        times: nodes of the quadrature, increasing (M,).
        errors: delta at the nodes, (M,).
        lipschitz: L_s at the nodes, (M,): given, or the largest found at some draws, which is below the true constant.
        true: the true W2 of both ways, where it is known: one Gaussian and an affine learned score, from the exact law at T.
        coupled: root mean square distance of the learned flow's ends to the exact flow's from the same starts, which is not
            below W2 of the flow; None if it was not asked for.
    """

    loss: float
    flow: Bound
    sde: Bound
    times: Tensor
    errors: Tensor
    lipschitz: Tensor
    true: Distances | None
    coupled: float | None


def certificate(
    exact: ExactField,
    learned: Field,
    *,
    lipschitz: Callable[[float], float] | None = None,
    prior_distance: float = 0.0,
    nodes: int = 129,
    points: int = 256,
    lipschitz_points: int = 8,
    coupled: int = 0,
    seed: int = 0,
) -> Certificate:
    """Both bounds for a learned field against the exact one on the same path.

    Args:
        exact: the true field.
        learned: any field on the same path.
        lipschitz: L_s as a function of t, where it is known; else the top eigenvalue of the symmetric part of the learned
            score's Jacobian at ``lipschitz_points`` draws of p_t is taken, an estimate from below.
        prior_distance: W2(p_T, q_T) of the starts.
        nodes: of Simpson's rule in the log-SNR.
        points: draws of p_t at each node.
        lipschitz_points: see above.
        coupled: number of starts for the coupled distance; 0 leaves it out.
        seed: of all draws.

    Raises:
        ArgumentError: if the paths differ or a number is out of range. FieldError: if the learned field can't be
            differentiated and ``lipschitz`` is not given.
    """
    path = learned.require_path("its score")
    if path.spec != exact.path.spec:
        raise ArgumentError(f"both fields need the same path, got {exact.path.spec!r} and {path.spec!r}")
    for name, value, least in (("nodes", nodes, 5), ("points", points, 2), ("lipschitz_points", lipschitz_points, 1)):
        if type(value) is not int or value < least:
            raise ArgumentError(f"{name} must be an integer >= {least}, got {value!r}")
    if not 0 <= prior_distance < math.inf:
        raise ArgumentError(f"prior_distance must be a W2 distance >= 0, got {prior_distance!r}")
    start = max(path.t_min, 1e-12 * path.t_max)
    # Even in the log-SNR, in which the drift and the spread are smooth on every path.
    clock = np.linspace(-path.log_snr(start), -path.log_snr(path.t_max), nodes)
    times = np.array([path.time_from_log_snr(-float(c)) for c in clock])
    before = learned.nfe, exact.nfe
    true = gaussian_distances(exact, learned, start)
    errors, constants = np.empty(nodes), np.empty(nodes)
    for k, t in enumerate(times.tolist()):
        x = exact.marginal(points, t, generator=seed * 1_000_003 + k)
        with torch.no_grad():
            errors[k] = float((exact.score(x, t) - learned.score(x, t)).flatten(1).square().sum(1).mean().sqrt())
        constants[k] = lipschitz(t) if lipschitz is not None else one_sided_lipschitz(learned, x[:lipschitz_points], t)
    learned.nfe, exact.nfe = before
    square = np.array([path.diffusion(t) ** 2 for t in times.tolist()])
    drift = np.array([path.drift(t) for t in times.tolist()])
    # dt over the clock's step: the log-SNR falls at the rate g^2/(2 sigma^2).
    rate = np.array([2 * path.sigma(t) ** 2 for t in times.tolist()]) / square
    loss = 0.5 * float(simpson(square * errors**2 * rate, x=clock))

    def bound(factor: float) -> Bound:
        growth = np.exp(cumulative_simpson((-drift + factor * square * constants) * rate, x=clock, initial=0))
        first = float(simpson(factor * square * growth * errors * rate, x=clock))
        weights = float(simpson(square * growth**2 * rate, x=clock))
        prior = float(growth[-1]) * prior_distance
        return Bound(first + prior, factor * math.sqrt(2 * weights * loss) + prior, prior)

    distance = None
    if coupled:
        x = exact.prior(coupled, generator=seed)
        ends = reference(exact, x, path.t_max, start, 1e-8, use_cache=False).x
        grid = [path.t_max, *(path.time_from_rho(r) for r in _levels(path.rho(path.t_max), path.rho(start))), start]
        with torch.no_grad():
            found = solvers.solve(learned, x, solver="rk4:chart=data", grid=grid).x
        distance = float((found - ends).flatten(1).square().sum(1).mean().sqrt())
    return Certificate(
        loss,
        bound(0.5),
        bound(1.0),
        torch.from_numpy(times),
        torch.from_numpy(errors),
        torch.from_numpy(constants),
        true,
        distance,
    )


def one_sided_lipschitz(field: Field, x: Tensor, t: float) -> float:
    """The largest eigenvalue of the symmetric part of the score's Jacobian at some points (B, *shape)."""
    if not isinstance(field, ExactField):
        try:
            field.check_gradient(x[:1], t)
        except FieldError as error:
            raise FieldError(f"{error}; or give lipschitz=, the one-sided Lipschitz constant of its score") from error
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        score = field.score(point, t).flatten(1)
        rows = [torch.autograd.grad(score[:, i].sum(), point, retain_graph=True)[0].flatten(1) for i in range(score.shape[1])]
    matrix = torch.stack(rows, dim=1).double()
    return float(torch.linalg.eigvalsh((matrix + matrix.mT) / 2).max())


def _levels(first: float, last: float, steps: int = 240) -> list[float]:
    return [math.exp(math.log(first) + (math.log(last) - math.log(first)) * k / steps) for k in range(1, steps)]
