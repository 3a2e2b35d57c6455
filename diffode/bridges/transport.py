"""Couplings that transport: optimal between Gaussians and mixtures, a given plan, and the Schroedinger bridge of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffode.bridges.coupling import Coupling, ends, paired
from diffode.errors import ArgumentError, NumericalError
from diffode.numerics.gaussian_transport import bures_costs, cross_covariance
from diffode.targets import GaussianMixture
from diffode.targets.parameters import real

#: Weight of a pair of components, in the least weight of a component, below which the linear programme leaves it out.
_LEAST_SHARE = 1e-9
#: Largest difference between the sums of a plan and the weights of the mixtures, before and after its rounding is taken off.
_SAME_WEIGHT, _EXACT_WEIGHT = 1e-6, 1e-12
#: Largest sigma^2 of a Schroedinger bridge relative to the variances of its ends; beyond that it is the independent coupling.
_LARGEST_RATIO = 1e12


def optimal(data: GaussianMixture | str, source: GaussianMixture | str) -> Coupling:
    r"""The optimal coupling of two Gaussians, and of mixtures the best one that is a mixture of Gaussians itself.

    Between Gaussians its energy is the squared W2 distance. Between mixtures a linear programme over pairs of components with
    their squared W2 distances as costs gives MW2 (Delon and Desolneux, arXiv 1907.05254), which is at least W2, and at most
    the energy of the independent coupling.

    Raises:
        ArgumentError: for laws that can't be coupled, as :func:`diffode.bridges.independent` says.
        NumericalError: if the programme has no solution.

    >>> optimal(GaussianMixture([1.0], [[0.0]], [1.0]), GaussianMixture([1.0], [[3.0]], [4.0])).energy
    10.0
    """
    one, two = ends(data, source)
    costs, cross = bures_costs((one.means, two.means), (one.covariance_matrices, two.covariance_matrices))
    plan = torch.ones(1, 1).double() if costs.numel() == 1 else _least_cost(costs, one.weights, two.weights)
    return _planned(one, two, plan, cross, "optimal")


def planned(data: GaussianMixture | str, source: GaussianMixture | str, plan: Any) -> Coupling:
    """The coupling with the weights ``plan`` (K_0, K_1) of pairs of components, each coupled optimally.

    Raises:
        ArgumentError: unless the plan's entries are >= 0, its rows sum to the weights of the data, and its columns to those
            of the source.
    """
    one, two = ends(data, source)
    given = real(plan, "plan", None)
    if given.shape != (one.count, two.count):
        raise ArgumentError(f"plan must have shape (K_0, K_1) = {(one.count, two.count)}, got {tuple(given.shape)}")
    if float(given.min()) < 0:
        raise ArgumentError(f"plan must have weights >= 0, got {float(given.min()):g}")
    for name, sums, weights in (("data", given.sum(1), one.weights), ("source", given.sum(0), two.weights)):
        worst = int((sums - weights).abs().argmax())
        if float((sums - weights).abs()[worst]) > _SAME_WEIGHT:
            raise ArgumentError(
                f"plan gives component {worst} of {name} the weight {float(sums[worst]):.6g}, which is "
                f"{float(weights[worst]):.6g}: its {'rows' if name == 'data' else 'columns'} must sum to the weights of {name}"
            )
    _, cross = bures_costs((one.means, two.means), (one.covariance_matrices, two.covariance_matrices))
    return _planned(one, two, given / given.sum(), cross, "planned")


def schroedinger(data: GaussianMixture | str, source: GaussianMixture | str, sigma: float = 1.0) -> Coupling:
    r"""The ends of the Schroedinger bridge between two Gaussians: of all couplings the nearest to those of sigma w_t.

    It is entropic transport with cost |x_0 - x_1|^2 and epsilon = 2 sigma^2, the optimal coupling for sigma -> 0, and the
    independent one for sigma -> infinity. With the coefficients ``foellmer`` of the same sigma, which a Bridge takes unless
    it is given others, x_t is the Schroedinger bridge at all times. Between mixtures it has no closed form.

    Raises:
        ArgumentError: for mixtures of more than one Gaussian, a sigma that is not positive or beyond 1e6 standard deviations.

    >>> coupling = schroedinger(GaussianMixture([1.0], [[0.0]], [1.0]), GaussianMixture([1.0], [[3.0]], [4.0]), 0.5)
    >>> precision = torch.linalg.inv(coupling.joint[0])
    >>> round(float(precision[0, 1] * 0.5**2), 12)
    -1.0
    """
    one, two = ends(data, source)
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise ArgumentError(
            f"sigma must be a finite number > 0, got {sigma!r:.60}; its limits are the couplings optimal (0) and independent "
            "(infinity)"
        )
    for name, law in (("data", one), ("source", two)):
        if law.count > 1:
            raise ArgumentError(
                f"the Schroedinger coupling is known between two Gaussians, and {name} has {law.count} components: take "
                "coupling optimal or independent with coefficients foellmer"
            )
    covariances = one.covariance_matrices, two.covariance_matrices
    least = min(float(torch.linalg.eigvalsh(part).min()) for part in covariances)
    if sigma**2 > _LARGEST_RATIO * least:
        raise ArgumentError(
            f"sigma={sigma:g} is more than 1e6 times the smallest standard deviation {math.sqrt(least):.3g} of an end, where "
            "the coupling is independent to all digits: take coupling independent"
        )
    cross = cross_covariance(*covariances, float(sigma))
    pair = torch.zeros(1, 2, dtype=torch.int64)
    return paired(one, two, pair, torch.ones(1).double(), cross, "schroedinger", float(sigma))


def _planned(data: GaussianMixture, source: GaussianMixture, plan: Tensor, cross: Tensor, name: str) -> Coupling:
    pairs = torch.nonzero(plan > 0)
    first, second = pairs[:, 0], pairs[:, 1]
    return paired(data, source, pairs, plan[first, second], cross[first, second], name)


def _least_cost(costs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The plan (K, J) of least cost whose rows and columns have these sums, to all digits."""
    from scipy.optimize import linprog
    from scipy.sparse import eye, kron, vstack

    many = costs.shape
    sums = vstack([kron(eye(many[0]), torch.ones(1, many[1]).numpy()), kron(torch.ones(1, many[0]).numpy(), eye(many[1]))])
    wanted = torch.cat([rows, columns])
    # One of the K + J sums follows from the others.
    found = linprog(costs.reshape(-1).numpy(), A_eq=sums.tocsr()[:-1], b_eq=wanted[:-1].numpy(), method="highs-ds")
    if found.x is None:
        raise NumericalError(f"the linear programme of the optimal coupling has no solution: {found.message}")
    plan = torch.from_numpy(found.x.copy()).reshape(many)
    used = torch.nonzero(plan > _LEAST_SHARE * float(torch.cat([rows, columns]).min()))
    # A vertex of the programme is known by its support, on which the sums say all: least squares take off its rounding.
    matrix = torch.zeros(sum(many), len(used)).double()
    place = torch.arange(len(used))
    matrix[used[:, 0], place] = matrix[many[0] + used[:, 1], place] = 1.0
    exact = torch.linalg.lstsq(matrix, wanted[:, None], driver="gelsd").solution[:, 0]
    if float((matrix @ exact - wanted).abs().max()) > _EXACT_WEIGHT or float(exact.min()) < -_EXACT_WEIGHT:
        raise NumericalError("the linear programme of the optimal coupling gave a plan with other sums than the weights")
    whole = torch.zeros(many).double()
    whole[used[:, 0], used[:, 1]] = exact.clamp(min=0)
    return whole
