r"""Couplings of two Gaussians in closed form: optimal transport, and its entropic relative, the Schroedinger bridge.

Of all joint Gaussians with marginals N(m, C) and N(n, D), the one with cross-covariance :math:`X = E[(x_0-m)(x_1-n)^T]` that
minimises :math:`E|x_0-x_1|^2 - 2 s^2 H`, H its entropy, is

.. math:: X = L f(M) L^{-1}, \qquad C = LL^T,\quad M = L^T D L,\quad f(\lambda) = \frac{2\lambda}{\sqrt{4\lambda+s^4}+s^2}

for any factor L (Janati et al., arXiv 2006.02572; Bunne et al., arXiv 2202.05722). At s = 0 it is X = C T with the optimal map
T, TCT = D. The form of f has no cancellation for large s, where X vanishes; the eigenvalues of M are squared singular values
of :math:`L^T L_D`, so that no digits are lost by forming M.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _parts(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factor L of the first covariance, and singular values and left vectors of L^T L_D."""
    lower = torch.linalg.cholesky(first)
    vectors, singular, _ = torch.linalg.svd(lower.mT @ torch.linalg.cholesky(second))
    return lower, vectors, singular


def cross_covariance(first: Tensor, second: Tensor, sigma: float = 0.0) -> Tensor:
    """The cross-covariance X (..., D, D) of the optimal (sigma = 0) or entropic coupling of covariances (..., D, D).

    ``sigma`` is the standard deviation per unit time of the reference process, sqrt(epsilon/2) of entropic transport with
    cost |x - y|^2 and epsilon KL.

    >>> one, four = torch.eye(1).double(), 4 * torch.eye(1).double()
    >>> float(cross_covariance(one, four)), round(float(cross_covariance(one, four, 1e3)), 8)
    (2.0, 4e-06)
    """
    lower, vectors, singular = _parts(first, second)
    square = singular.square()
    values = 2 * square / ((4 * square + sigma**4).sqrt() + sigma**2) if sigma else singular
    inner = vectors * values[..., None, :] @ vectors.mT
    # X = L f(M) L^-1, by a triangular solve from the right.
    cross: Tensor = torch.linalg.solve_triangular(lower, lower @ inner, upper=False, left=False)
    return cross


def optimal_map(first: Tensor, second: Tensor) -> Tensor:
    """The symmetric positive matrix T (..., D, D) with T C T = D, the gradient of Brenier's potential between N(0, C), N(0, D).

    >>> optimal_map(torch.eye(2).double(), 9 * torch.eye(2).double()).round(decimals=12).tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    lower, vectors, singular = _parts(first, second)
    root = vectors * singular.sqrt()[..., None, :]
    half: Tensor = torch.linalg.solve_triangular(lower.mT, root, upper=True)
    return half @ half.mT


def bures_costs(means: tuple[Tensor, Tensor], covariances: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Squared W2 distances (K, J) of all pairs of Gaussians, and the cross-covariances (K, J, D, D) of their couplings.

    The cost |m - n|^2 + tr (I - T) C (I - T)^T is a sum of squares, which keeps its digits where the two are nearly the same.
    Means are (K, D) and (J, D), covariances (K, D, D) and (J, D, D).
    """
    first, second = covariances[0][:, None], covariances[1][None]
    first, second = (part.expand(len(means[0]), len(means[1]), *part.shape[2:]) for part in (first, second))
    transport = optimal_map(first, second)
    moved = torch.eye(transport.shape[-1], dtype=transport.dtype) - transport
    spread = (moved @ torch.linalg.cholesky(first)).square().sum((-2, -1))
    offset = (means[0][:, None] - means[1][None]).square().sum(-1)
    return offset + spread, first @ transport
