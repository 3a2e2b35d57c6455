"""Linear systems of many rows, each solved in a Krylov space of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gmres(product: Callable[[Tensor], Tensor], right: Tensor, steps: int, rtol: float) -> Tensor:
    """Solutions of A_r x_r = b_r for the rows r, by GMRES from zero (Saad and Schultz, SIAM J. Sci. Comput. 7 (1986)).

    Args:
        product: A applied to vectors (B, n), row by row.
        right: b, (B, n).
        steps: largest dimension of the Krylov spaces, the number of products.
        rtol: residual, relative to b, below which all rows are done.

    Returns:
        x, (B, n), whose residuals are the smallest in the spaces.

    >>> matrix = torch.tensor([[2.0, 1.0], [0.0, 3.0]]).double()
    >>> found = gmres(lambda v: v @ matrix.T, torch.tensor([[3.0, 3.0]]).double(), 2, 1e-12)
    >>> bool((found - 1).abs().max() < 1e-12)
    True
    """
    norm = right.norm(dim=1, keepdim=True)
    basis = [right / norm.clamp(min=torch.finfo(right.dtype).tiny)]
    rows = len(right)
    hessenberg = right.new_zeros(rows, steps + 1, steps)
    weights = right.new_zeros(rows, 0, 1)
    for k in range(min(steps, right.shape[1])):
        vector = product(basis[k])
        for j, old in enumerate(basis):
            share = (old * vector).sum(1, keepdim=True)
            hessenberg[:, j, k] = share[:, 0]
            vector = vector - share * old
        length = vector.norm(dim=1, keepdim=True)
        hessenberg[:, k + 1, k] = length[:, 0]
        basis.append(vector / length.clamp(min=torch.finfo(right.dtype).tiny))
        target = right.new_zeros(rows, k + 2, 1)
        target[:, 0] = norm
        part = hessenberg[:, : k + 2, : k + 1]
        # Rows whose space is exhausted have a column of zeros, which the pseudo-inverse leaves out.
        weights = torch.linalg.pinv(part) @ target
        left = (part @ weights - target).norm(dim=1)
        if bool((left <= rtol * norm).all()):
            break
    return torch.stack(basis[: weights.shape[1]], dim=2).matmul(weights)[:, :, 0]
