r"""Entropic transport between points of equal weights: Sinkhorn's iterations in the log domain, and Newton's where they crawl.

With costs c, :math:`\min_P \langle P, c\rangle + \epsilon\,\mathrm{KL}(P\,|\,a\otimes b)` has the dual
:math:`\max_f\ E f + E g`, where g is the soft minimum of c - f. Sinkhorn's iterations climb it block by block; their rate tends
to 1 where the plan falls into nearly separate parts, while the Hessian in f,
:math:`-\frac1\epsilon[\mathrm{diag}(r) - P\,\mathrm{diag}(b)^{-1}P^T]` with r the sums of the rows of P, sees through that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode.errors import NumericalError

#: Largest number of iterations of either kind.
MOST_ITERATIONS = 2000
#: Relative error of the sums of the plan's rows at which the search ends; it enters the value squared.
_MARGINAL = 1e-7
#: Iterations of Sinkhorn at the wanted epsilon before Newton's method, which goes on from there.
_FIRST = 60
#: Largest number of points of the smaller side for Newton's method, whose matrix has as many rows.
_MOST_ROWS = 2048
#: Smallest epsilon in units of the largest cost, below which rounding of the costs decides; beyond the largest it is infinite.
_LEAST, _LARGEST = 1e-12, 1e100
#: Shortest step of Newton's method as a share of the whole one.
_SHORTEST = 2.0**-40


def entropic_value(costs: Tensor, epsilon: float) -> float:
    """The least mean cost plus epsilon times the relative entropy, for costs (n, m) between points of equal weights.

    Raises:
        NumericalError: for an epsilon below the rounding of the costs, and iterations that do not come to an end.

    >>> round(entropic_value(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), 1e-3), 6)
    0.000693
    """
    largest = float(costs.max())
    if not largest:
        return 0.0
    wanted = min(epsilon, _LARGEST * largest)
    if wanted < _LEAST * largest:
        raise NumericalError(
            f"epsilon={epsilon:g} is less than the rounding of costs as large as {largest:.3g}: raise it, or take assigned"
        )
    if costs.shape[0] > costs.shape[1]:
        costs = costs.T
    symmetric = costs.shape[0] == costs.shape[1] and torch.equal(costs, costs.T)
    f = torch.zeros(costs.shape[0], dtype=costs.dtype)
    # Potentials of a larger epsilon are near those of a smaller one, which would take long to find from nothing.
    epsilon, at_wanted = max(wanted, largest), 0
    for _ in range(MOST_ITERATIONS):
        new = soft_least(costs - (f if symmetric else soft_least(costs - f[:, None], epsilon, 0)), epsilon, 1)
        # The average of two iterates goes to the one potential of equal clouds many times as fast.
        new = (f + new) / 2 if symmetric else new
        moved = float((new - f).abs().max())
        f = new
        if epsilon > wanted:
            epsilon = max(wanted, epsilon * 0.8)
            continue
        if moved <= _MARGINAL * min(wanted, largest):
            return _value(costs, f, wanted)
        at_wanted += 1
        if at_wanted == _FIRST and len(f) <= _MOST_ROWS:
            return _value(costs, _climbed(costs, f, wanted, largest), wanted)
    raise _endless(costs, wanted)


def soft_least(values: Tensor, epsilon: float, dim: int) -> Tensor:
    """-epsilon log mean exp(-values/epsilon) along a dimension, to rounding for every epsilon."""
    least = values.amin(dim, keepdim=True)
    mean = torch.expm1((least - values) / epsilon).mean(dim)
    found: Tensor = least.squeeze(dim) - epsilon * torch.log1p(mean)
    return found


def _value(costs: Tensor, f: Tensor, epsilon: float) -> float:
    return float(f.mean() + soft_least(costs - f[:, None], epsilon, 0).mean())


def _climbed(costs: Tensor, f: Tensor, epsilon: float, largest: float) -> Tensor:
    """The potential f (n,) by Newton's method with steps that are halved until the dual rises."""
    n, m = costs.shape
    value = _value(costs, f, epsilon)
    for _ in range(MOST_ITERATIONS):
        g = soft_least(costs - f[:, None], epsilon, 0)
        plan = ((f[:, None] + g - costs) / epsilon).exp() / (n * m)
        rows = plan.sum(1)
        apart = 1 - n * rows
        if float(apart.abs().max()) <= _MARGINAL * min(1.0, largest / epsilon):
            return f
        # A constant in f is taken from g: the matrix is singular along it, and the last term fills that.
        matrix = torch.diag(n * rows) - n * m * plan @ plan.T + 1 / n
        step = epsilon * _solved(matrix, apart)
        share = 1.0
        while share > _SHORTEST:
            risen = _value(costs, f + share * step, epsilon)
            if risen >= value:
                break
            share /= 2
        else:
            # Rounding of the value hides what is left to climb.
            if float(apart.abs().max()) <= math.sqrt(_MARGINAL):
                return f
            raise _endless(costs, epsilon)
        f, value = f + share * step, risen
    raise _endless(costs, epsilon)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of a positive matrix, with a little of the identity where rounding has made it singular."""
    for shift in (0.0, 1e-15, 1e-12, 1e-9, 1e-6):
        factor, failed = torch.linalg.cholesky_ex(matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype))
        if not int(failed):
            break
    found: Tensor = torch.cholesky_solve(right[:, None], factor)[:, 0]
    return found


def _endless(costs: Tensor, epsilon: float) -> NumericalError:
    return NumericalError(
        f"Sinkhorn's iterations did not come to an end in {MOST_ITERATIONS}: epsilon={epsilon:g} is small beside costs of "
        f"{float(costs.mean()):.3g}; raise it, or take assigned"
    )
