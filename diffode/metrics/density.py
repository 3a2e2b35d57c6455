"""Errors of the law itself, through densities: push-forward divergence and mode weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.metrics.measurement import Measurement, Outcome, exact_of, law_of, needs
from diffode.targets import GaussianMixture

#: Share of its weight below which a mode counts as lost.
LOST_SHARE = 0.1


def check_max_dim(max_dim: object = 8) -> None:
    """Raise ArgumentError for what is no largest number of dimensions."""
    if type(max_dim) is not int or max_dim < 1:
        raise ArgumentError(f"max_dim must be an integer >= 1, got {max_dim!r:.60}")


def few_dimensions(field: Field, max_dim: int = 8) -> ExactField:
    """The exact field; ArgumentError if it is none, or has more than ``max_dim`` dimensions."""
    check_max_dim(max_dim)
    exact = exact_of(field)
    if exact.target.dim > max_dim:
        raise ArgumentError(f"push_forward_kl takes dim <= {max_dim} (a backward pass per coordinate), got {exact.target.dim}")
    return exact


@needs(length=False, fits=few_dimensions, options=check_max_dim)
def push_forward_kl(outcome: Outcome, max_dim: int = 8) -> Measurement:
    r"""KL(q | p), where the run takes the exact law at the first time to q, and p is the exact law at the last time.

    :math:`\log q(\Phi(x)) = \log p_{t_0}(x) - \log|\det\Phi'(x)|` on exact draws x of the first law, with the Jacobian of the
    whole run :math:`\Phi` by automatic differentiation. Sampling makes an interval, but no floor as in sampled distances.
    ArgumentError for solvers without a tableau and above ``max_dim`` dimensions.
    """
    field, table = few_dimensions(outcome.field, max_dim), outcome.solution.tableau
    if table is None:
        raise ArgumentError("push_forward_kl needs a solver with a tableau; an adaptive run is not one map")
    first, last = outcome.times[0], outcome.times[-1]
    outcome.check_points(2, "push_forward_kl")
    x = field.marginal(len(outcome.end), first, generator=outcome.stream(7))
    # The run is differentiated even if the caller has switched gradients off.
    with torch.inference_mode(False), torch.enable_grad(), field.uncounted():
        y, log_determinant = _with_jacobian(lambda point: table.run(field, point), x.clone())
    ratio = field.log_prob(x, first) - log_determinant - field.log_prob(y, last)
    error = float(ratio.std()) / len(ratio) ** 0.5
    value = float(ratio.mean())
    return Measurement("push_forward_kl", value, 0.0, value - 1.96 * error, value + 1.96 * error)


def _with_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and log|det f'(x)| of each row, by one backward pass per coordinate."""
    point = x.requires_grad_(True)
    y = function(point)
    rows = [torch.autograd.grad(y[:, i].sum(), point, retain_graph=True)[0] for i in range(y.shape[1])]
    jacobian = torch.stack(rows, dim=1)
    return y.detach(), torch.linalg.slogdet(jacobian)[1]


def modes_of(field: Field) -> GaussianMixture:
    """The mixture whose modes are counted; ArgumentError if the field's data are none."""
    return mixture_of(law_of(field))


@needs(length=False, fits=modes_of)
def mode_weights(outcome: Outcome) -> Measurement:
    """Total variation distance of the end points' weights, which are mean responsibilities, from the mixture's weights."""
    target, weights = mixture_of(outcome.law), _weights(outcome, outcome.end)
    floor = outcome.of_exact_draws(_weights, len(outcome.end), 2)
    value, least = (float((w - target.weights).abs().sum()) / 2 for w in (weights, floor))
    return Measurement("mode_weights", value, least)


@needs(length=False, fits=modes_of)
def lost_modes(outcome: Outcome) -> Measurement:
    """Number of modes that got less than a tenth of their weight; the floor is the number for as many exact draws."""
    target = mixture_of(outcome.law)

    def lost(weights: Tensor) -> float:
        return float((weights < LOST_SHARE * target.weights).sum())

    floor = outcome.of_exact_draws(_weights, len(outcome.end), 2)
    return Measurement("lost_modes", lost(_weights(outcome, outcome.end)), lost(floor))


def mixture_of(law: ExactField) -> GaussianMixture:
    """The mixture that the data is; ArgumentError if it is none."""
    mixture = law.target.as_mixture()
    if mixture is None:
        raise ArgumentError("mode metrics need a Gaussian mixture")
    return mixture


def responsibilities(law: ExactField, scale: float, last: float, x: Tensor) -> Tensor:
    """Posterior probabilities of the mixture's components at points (B, dim) of the last time, (B, K)."""
    # Point masses have no responsibilities at sigma = 0, so sigma stays at least far below the distances between them.
    sigma = max(law.path.sigma(last), 1e-6 * scale)
    return mixture_of(law).responsibilities(x, law.path.alpha(last), sigma)


def _weights(outcome: Outcome, x: Tensor) -> Tensor:
    return responsibilities(outcome.law, outcome.field.scale, outcome.times[-1], x).mean(0).cpu()
