"""Moments and Wasserstein distances of Gaussians, and the exact split of a sampler's error on them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.metrics.measurement import Measurement, Outcome, exact_of, law_of, needs
from diffode.tableau import Propagated, Tableau
from diffode.targets import Target

GaussianPart = Literal["prior", "truncation", "discretisation", "total"]


class ErrorSplit(NamedTuple):
    """An error and its three parts: ``total <= prior + truncation + discretisation`` (triangle inequality)."""

    prior: float
    truncation: float
    discretisation: float
    total: float


def gaussian_w2(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    r"""W2 between two Gaussians: :math:`|m_1-m_2|^2 + \min_U |F_1 - F_2 U|^2`, rooted, with :math:`F_i F_i^T = C_i`.

    The orthogonal U is the polar factor of :math:`F_2^T F_1` (Procrustes). The minimum equals
    :math:`\mathrm{tr}(C_1 + C_2 - 2(C_1^{1/2}C_2C_1^{1/2})^{1/2})`, whose difference of traces has no digits left where the
    Gaussians are nearly the same; a sum of squares keeps them. Means are (D,), covariances (D, D), singular ones too.
    """
    factors = [_factor(covariance) for covariance in (covariance_1, covariance_2)]
    columns = max(1, *(factor.shape[1] for factor in factors))
    one, two = (torch.nn.functional.pad(factor, (0, columns - factor.shape[1])) for factor in factors)
    left, _, right = torch.linalg.svd(two.T @ one)
    return float(((mean_1 - mean_2).square().sum() + (one - two @ (left @ right)).square().sum()).sqrt())


def _factor(covariance: Tensor) -> Tensor:
    """F with F F^T = C, (D, R); eigenvalues no larger than rounding errors count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = float(values.abs().max()) * len(values) ** 0.5 * 2.0**-52
    kept = values > rounding
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor


def diagonal_w2(mean_1: Tensor, variance_1: Tensor, mean_2: Tensor, variance_2: Tensor) -> float:
    """W2 between Gaussians that share eigenvectors, from their means and variances along them."""
    return float(((mean_1 - mean_2).square().sum() + (variance_1.sqrt() - variance_2.sqrt()).square().sum()).sqrt())


def gaussian_split(tableau: Tableau, mean: Tensor | float, eigenvalues: Tensor, output: Propagated | None = None) -> ErrorSplit:
    """The exact W2 error of a tableau on N(mean, diag eigenvalues), and its parts, without sampling.

    *Prior*: the start has the law N(0, sigma^2 I) instead of the exact one; both are followed exactly to the last time.
    *Truncation*: the flow stops there instead of at the data. *Discretisation*: the tableau replaces the exact flow, from the
    same start. ``mean`` and ``eigenvalues`` are along the eigenvectors, (D,).

    A tableau that draws noise follows no flow: its prior part is the distance between its outputs from the two starts, its
    discretisation part the distance of its output from the exact start to the exact law. ``output`` is the law that
    ``tableau.propagate(mean, eigenvalues, start="prior")`` gives, if it is known already.
    """
    if tableau.path is None:
        raise ArgumentError("gaussian_split needs a tableau written for a path")
    path, variances = tableau.path, torch.as_tensor(eigenvalues, dtype=torch.float64)
    centre = torch.as_tensor(mean, dtype=torch.float64).expand_as(variances)
    first, last = tableau.ends
    noised = [path.alpha(t) ** 2 * variances + path.sigma(t) ** 2 for t in (first, last)]
    gain = (noised[1] / noised[0]).sqrt()
    flowed_mean = path.alpha(last) * centre - gain * path.alpha(first) * centre
    flowed_variance = gain.square() * path.sigma(first) ** 2
    output = output or tableau.propagate(centre, variances, start="prior")
    at_last = path.alpha(last) * centre
    if tableau.draws:
        matched = tableau.propagate(centre, variances, start="exact")
        prior = diagonal_w2(output.mean, output.variance, matched.mean, matched.variance)
        discretisation = diagonal_w2(matched.mean, matched.variance, at_last, noised[1])
    else:
        prior = diagonal_w2(flowed_mean, flowed_variance, at_last, noised[1])
        discretisation = diagonal_w2(output.mean, output.variance, flowed_mean, flowed_variance)
    return ErrorSplit(
        prior=prior,
        truncation=diagonal_w2(at_last, noised[1], centre, variances),
        discretisation=discretisation,
        total=diagonal_w2(output.mean, output.variance, centre, variances),
    )


@needs(fits=law_of)
def moments(outcome: Outcome) -> Measurement:
    """W2 between the Gaussians with the mean and covariance of the end points and of the data; a lower bound of the true W2.

    The floor is the same distance for as many exact draws.
    """
    mean, covariance = outcome.law.target.mean, outcome.law.target.covariance

    outcome.check_points(2, "moments")

    def distance(x: Tensor) -> float:
        return gaussian_w2(x.mean(0).cpu(), torch.cov(x.T).reshape(covariance.shape).cpu(), mean, covariance)

    return Measurement("moments", distance(outcome.end), distance(outcome.exact_draws(len(outcome.end), 1)))


def gaussian_of(field: Field) -> Target:
    """The one Gaussian that the data are; ArgumentError for other data, and for noise that is not normal."""
    exact = exact_of(field)
    if exact.source is not None:
        raise ArgumentError(
            f"gaussian_error follows normal noise; this field's is from source {exact.source.spec!r}: take endpoint"
        )
    if not exact.target.is_gaussian:
        raise ArgumentError("gaussian_error needs a target of one Gaussian; mixtures have endpoint, moments, ...")
    return exact.target


def check_part(part: object = "total") -> None:
    """Raise ArgumentError unless a part is one of :class:`ErrorSplit`."""
    if part not in ErrorSplit._fields:
        raise ArgumentError(f"part must be one of {', '.join(ErrorSplit._fields)}, got {part!r:.60}")


@needs(fits=gaussian_of, options=check_part)
def gaussian_error(outcome: Outcome, part: GaussianPart = "total") -> Measurement:
    """The exact W2 error of the solver on a Gaussian target, or a part of it (see :func:`gaussian_split`); nothing is sampled.

    It takes targets with one component and solvers that write tables, also those that draw noise; ArgumentError for others.
    """
    target, table = gaussian_of(outcome.field), outcome.solution.tableau
    if table is None:
        raise ArgumentError("gaussian_error needs a solver that writes a table, whose law on a Gaussian is known exactly")
    check_part(part)
    eigenvalues, vectors = torch.linalg.eigh(target.covariance)
    split = gaussian_split(table, target.mean @ vectors, eigenvalues.clamp(min=0))
    return Measurement("gaussian_error", float(getattr(split, part)))
