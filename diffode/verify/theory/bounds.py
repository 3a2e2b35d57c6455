r"""Bounds on W2 between the data and the samples of a learned score, by its score-matching loss (Kwon, Fan, Lee 2022).

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
from typing import Any, Literal

import numpy as np
import torch
from scipy.integrate import cumulative_simpson, simpson
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError, FieldError
from diffode.fields import ExactField, Field
from diffode.fields.exact import mixture_of
from diffode.flows import reference
from diffode.verify.theory.affine import Distances, gaussian_distances
from diffode.verify.theory.score_error import affine_slope, draws_at, score_error

#: Origin of a Lipschitz constant.
LipschitzKind = Literal["given", "exact", "bound", "estimate"]
#: Estimate of the error of Simpson's rule relative to its difference from the rule on every second node. That difference is 15
#: errors, so that an eighth is nearly twice the error.
_SIMPSON = 1 / 8


@dataclass(frozen=True)
class Bound:
    """A bound on W2: the ``integral`` form, the weaker one ``by_loss``, and the part of both that comes from the start."""

    integral: float
    by_loss: float
    prior: float


@dataclass(frozen=True)
class Certificate:
    """Bounds on the effect of a learned field's score error.

    Attributes:
        loss: J, half the integral of g^2 E|s - s_theta|^2.
        flow, sde: the bounds for both ways of sampling.
        times: nodes of the quadrature, increasing (M,).
        errors: delta at the nodes, (M,), from above.
        lipschitz: L_s at the nodes, (M,).
        true: the true W2 of both ways from the exact law at T, known for one Gaussian and an affine learned score; else None.
        coupled: root mean square distance of the learned flow's ends to the exact flow's from the same starts, an upper bound
            of W2 of the flow; None if ``coupled`` was 0.
        confidence: confidence that delta is not too small at any node: 1 without draws, else the given one.
        exact_error: whether delta is known exactly at all nodes, since the error of the score is affine.
        lipschitz_kind: ``"given"``, ``"exact"`` (an affine score), ``"bound"`` (the parameters of a mixture) or ``"estimate"``
            (the largest at some draws, which lies below the constant).
    """

    loss: float
    flow: Bound
    sde: Bound
    times: Tensor
    errors: Tensor
    lipschitz: Tensor
    true: Distances | None
    coupled: float | None
    confidence: float
    lipschitz_kind: LipschitzKind
    exact_error: bool

    @property
    def proved(self) -> bool:
        """Whether both bounds are proved: the score's error is affine, so that delta is exact, and L_s is no estimate.

        Otherwise delta comes from quadrature or draws, which see the error at some points only, whatever :attr:`confidence`.
        """
        finite = all(math.isfinite(value) for bound in (self.flow, self.sde) for value in (bound.integral, bound.by_loss))
        return self.lipschitz_kind != "estimate" and self.exact_error and finite


def certificate(
    exact: ExactField,
    learned: Field,
    *,
    lipschitz: Callable[[float], float] | None = None,
    prior_distance: float = 0.0,
    nodes: int = 129,
    points: int = 1024,
    lipschitz_points: int = 8,
    coupled: int = 0,
    seed: int = 0,
    confidence: float = 0.99,
) -> Certificate:
    """Both bounds for a learned field against the exact one on the same path.

    Args:
        exact: the true field.
        learned: any field on the same path.
        lipschitz: L_s as a function of t, if it is known. Otherwise it is computed if the learned score is affine, or the exact
            score of a mixture with one covariance; else it is estimated from below by the largest eigenvalue of the symmetric
            part of the score's Jacobian at ``lipschitz_points`` draws of p_t.
        prior_distance: W2(p_T, q_T) of the starts.
        nodes: number of nodes of Simpson's rule in the log-SNR.
        points: number of draws of p_t at each node, if delta is known neither from moments nor by quadrature.
        lipschitz_points: number of draws for the estimate of L_s.
        coupled: number of starts for the coupled distance; 0 leaves it out.
        seed: seed of all draws.
        confidence: confidence that delta's limits from draws hold at all nodes together, by the normal law of their means.

    Raises:
        ArgumentError: if the paths differ or a number is out of range. FieldError: if the learned field can't be
            differentiated and ``lipschitz`` is not given.
    """
    path = learned.require_path("its score")
    foreign = exact.source if exact.source is not None else learned.source
    if foreign is not None:
        raise ArgumentError(f"the bounds are for scores with normal noise; a field here has its noise from {foreign.spec!r}")
    if path.spec != exact.path.spec:
        raise ArgumentError(f"both fields need the same path, got {exact.path.spec!r} and {path.spec!r}")
    for name, value, least in (("nodes", nodes, 5), ("points", points, 2), ("lipschitz_points", lipschitz_points, 1)):
        if type(value) is not int or value < least:
            raise ArgumentError(f"{name} must be an integer >= {least}, got {value!r}")
    if not 0 <= prior_distance < math.inf:
        raise ArgumentError(f"prior_distance must be a W2 distance >= 0, got {prior_distance!r}")
    start = max(path.t_min, 1e-12 * path.t_max)
    if not 0.5 <= confidence < 1:
        raise ArgumentError(f"confidence must lie in [0.5, 1), got {confidence!r}")
    # Nodes are even in the log-SNR, in which the drift and the spread are smooth on every path.
    clock = np.linspace(-path.log_snr(start), -path.log_snr(path.t_max), nodes)
    times = np.array([path.time_from_log_snr(-float(c)) for c in clock])
    with learned.uncounted(), exact.uncounted():
        true = gaussian_distances(exact, learned, start)
        errors, constants = np.empty(nodes), np.empty(nodes)
        drawn, known, kinds, closed = False, True, set[LipschitzKind](), mixture_lipschitz(learned)
        for k, t in enumerate(times.tolist()):
            x = draws_at(exact, t, points, seed, k)
            # The confidence at each node is higher, so that all limits hold together.
            found = score_error(exact, learned, t, x, 1 - (1 - confidence) / nodes)
            errors[k], drawn = found.value, drawn or found.method == "draws"
            known = known and found.method == "affine"
            given: tuple[float, LipschitzKind] | None = None if lipschitz is None else (lipschitz(t), "given")
            if given and not math.isfinite(given[0]):
                raise ArgumentError(f"lipschitz must return a finite number at all times, got {given[0]} at t={t:.6g}")
            constants[k], kind = given or _lipschitz(learned, closed, x[:lipschitz_points], t)
            kinds.add(kind)
    square = np.array([path.diffusion(t) ** 2 for t in times.tolist()])
    drift = np.array([path.drift(t) for t in times.tolist()])
    # dt/d clock, since the log-SNR falls at the rate g^2/(2 sigma^2).
    rate = np.array([2 * path.sigma(t) ** 2 for t in times.tolist()]) / square
    loss = 0.5 * _integral(square * errors**2 * rate, clock)

    def bound(factor: float) -> Bound:
        exponent = (-drift + factor * square * constants) * rate
        growth = np.exp(cumulative_simpson(exponent, x=clock, initial=0))
        # The growth is enlarged by the largest effect of the rule's error in the exponent.
        growth *= math.exp(_integral(exponent, clock) - float(simpson(exponent, x=clock)))
        first = _integral(factor * square * growth * errors * rate, clock)
        weights = _integral(square * growth**2 * rate, clock)
        prior = float(growth[-1]) * prior_distance
        return Bound(first + prior, factor * math.sqrt(2 * weights * loss) + prior, prior)

    distance = None
    if coupled:
        x = exact.prior(coupled, generator=seed)
        ends = reference(exact, x, path.t_max, start, 1e-8, use_cache=False).x
        grid = [path.t_max, *(path.time_from_rho(r) for r in _levels(path.rho(path.t_max), path.rho(start))), start]
        with torch.no_grad():
            arrived = solvers.solve(learned, x, solver="rk4:chart=data", grid=grid).x
        distance = float((arrived - ends).flatten(1).square().sum(1).mean().sqrt())
    return Certificate(
        loss,
        bound(0.5),
        bound(1.0),
        torch.from_numpy(times),
        torch.from_numpy(errors),
        torch.from_numpy(constants),
        true,
        distance,
        confidence if drawn else 1.0,
        next(kind for kind in _WEAKEST_FIRST if kind in kinds),
        known,
    )


#: Origins of a Lipschitz constant, the least reliable first.
_WEAKEST_FIRST: tuple[LipschitzKind, ...] = ("estimate", "bound", "exact", "given")


def _integral(values: np.ndarray[Any, Any], clock: np.ndarray[Any, Any]) -> float:
    """Simpson's rule over evenly spaced nodes, plus the estimate of its error."""
    fine = float(simpson(values, x=clock))
    if len(clock) % 4 != 1:
        return fine
    return fine + _SIMPSON * abs(fine - float(simpson(values[::2], x=clock[::2])))


def _lipschitz(learned: Field, closed: Callable[[float], float] | None, x: Tensor, t: float) -> tuple[float, LipschitzKind]:
    """The one-sided Lipschitz constant of a score, and its origin."""
    if closed is not None:
        single = isinstance(learned, ExactField) and learned.target.is_gaussian
        return closed(t), "exact" if single else "bound"
    slope = affine_slope(learned, x[0].numel(), t)
    if slope is not None:
        return float(torch.linalg.eigvalsh((slope + slope.T) / 2).max()), "exact"
    return one_sided_lipschitz(learned, x, t), "estimate"


def mixture_lipschitz(learned: Field) -> Callable[[float], float] | None:
    """A bound on L_s as a function of t for the exact score of a mixture with one covariance C; None for other fields.

    With V = alpha^2 C + sigma^2 the Jacobian is -V^-1 + Cov of V^-1 alpha mu_k, k by its probability at x, and the variance
    along any direction is at most the square of the radius of a ball that holds all V^-1 alpha mu_k.
    """
    target = mixture_of(learned)
    if target is None or not target.components.shared:
        return None
    shared, path = target.components.first(), learned.require_path("its score")
    largest = float(torch.linalg.eigvalsh(shared.mean_covariance(torch.ones(1, dtype=torch.float64))).max())

    def constant(t: float) -> float:
        alpha, sigma = path.alpha(t), path.sigma(t)
        offsets = (target.means - target.mean).T
        pulled = shared.filter(offsets[:, None], lambda c: (alpha / (alpha**2 * c + sigma**2))[..., None])[:, 0]
        middle = (pulled.amax(1, keepdim=True) + pulled.amin(1, keepdim=True)) / 2
        radius = min(float((pulled - centre).square().sum(0).max()) for centre in (torch.zeros_like(middle), middle))
        return radius - 1 / (alpha**2 * largest + sigma**2)

    return constant


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
