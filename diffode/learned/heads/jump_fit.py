r"""Fits of jump tables: numbers by least squares on exact states in between, then numbers and levels by Gauss-Newton.

The derivative by every number comes from automatic differentiation through the field, sample by sample: a number enters as a
value for each row. A level enters through the rate of its evaluation, a central difference at the same y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import FieldError
from diffode.learned.fitting.gauss_newton import output_directions
from diffode.learned.heads.pairs import Pairs
from diffode.numerics.least_squares import NormalEquations, reweighted
from diffode.solvers.trained.jumps import Jumps, follow

#: Step of the central difference in log rho.
_LEVEL_STEP = 1e-5
#: Smallest inner level, relative to the last level.
ABOVE_LAST = 1.01
#: Shortest error as a share of the median; a shorter one weighs as much as this one.
LEAST_WEIGHT = 0.02
#: Number of rows whose graphs are in memory together.
CHUNK = 2048


@dataclass(frozen=True)
class Numbers:
    """What is free in a jump table of N evaluations: a (N,), b (N, N) lower triangular, and N inner levels.

    They stand in a vector in the order a, b row by row, log rho.
    """

    kept: Tensor
    weights: Tensor
    levels: Tensor

    @property
    def nfe(self) -> int:
        """Number of evaluations."""
        return len(self.kept)

    def vector(self) -> Tensor:
        """The numbers as a vector, (N + N(N + 1)/2 + N,)."""
        rows, columns = torch.tril_indices(self.nfe, self.nfe)
        return torch.cat([self.kept, self.weights[rows, columns], self.levels.log()])

    @classmethod
    def of(cls, vector: Tensor, nfe: int) -> Numbers:
        """The numbers of a vector."""
        rows, columns = torch.tril_indices(nfe, nfe)
        weights = torch.zeros(nfe, nfe, dtype=vector.dtype)
        weights[rows, columns] = vector[nfe : nfe + len(rows)]
        return cls(vector[:nfe], weights, vector[nfe + len(rows) :].exp())

    def confined(self, first: float, last: float) -> Numbers:
        """The same numbers with levels between two ends, the last a little above its own."""
        return Numbers(self.kept, self.weights, self.levels.clamp(last * ABOVE_LAST, first))

    def jumps(self, pairs: Pairs) -> Jumps:
        """The table for the levels of some pairs."""
        ends = torch.tensor(pairs.levels, dtype=torch.float64)
        return Jumps(pairs.clock, torch.cat([ends[:1], self.levels, ends[1:]]), self.kept, self.weights)


def ddim_numbers(pairs: Pairs, levels: Tensor) -> Numbers:
    """A table on given levels, exact on :math:`N(m, c^2 I)`: each step adds to y what DDIM does with the departure from it.

    A step from the angle s to t adds :math:`w (d - y\\cos s)` with :math:`w = \\cos t - \\cos s\\sin t/\\sin s`, and that
    Gaussian has :math:`d = y\\cos s`.
    """
    known = [*levels.tolist(), pairs.levels[1]]
    kept, weights = [], torch.zeros(len(levels), len(levels), dtype=torch.float64)
    for k in range(len(levels)):
        cosine, after = pairs.clock.cosine(known[k]), pairs.clock.cosine(known[k + 1])
        weight = after - cosine * math.sqrt((1 - after**2) / (1 - cosine**2))
        kept.append(1 - weight * cosine)
        weights[k, k] = weight
    return Numbers(torch.tensor(kept, dtype=torch.float64), weights, levels)


def error_of(numbers: Numbers, pairs: Pairs) -> float:
    """Mean end-point error in units of the scale; infinite if the run overflows."""
    with torch.no_grad():
        return pairs.mean_distance(run(numbers, pairs))


def run(numbers: Numbers, pairs: Pairs, heads: Sequence[Callable[[Tensor], Tensor]] = ()) -> Tensor:
    """The outputs y of a generator from the starts of some pairs."""
    levels: list[float] = numbers.levels.tolist()
    return follow(
        lambda k, y: pairs.clock.asked(pairs.denoised, y, levels[k]),
        pairs.start,
        numbers.kept.tolist(),
        [row[: k + 1] for k, row in enumerate(numbers.weights.tolist())],
        heads,
    )


def normal_equations(numbers: Numbers, pairs: Pairs, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton matrix of the mean error by all numbers of the vector."""
    equations = NormalEquations(len(numbers.vector()))
    for begin in range(0, len(pairs.start), CHUNK):
        part = pairs.part(slice(begin, begin + CHUNK))
        rows = len(part.start)
        values = numbers.vector()[:, None].repeat(1, rows).requires_grad_(True)
        columns = [value[:, None] for value in values.unbind(0)]
        with torch.enable_grad():
            end = _differentiated(numbers, part, columns)
        if not end.requires_grad:
            raise FieldError("the field can't be differentiated: its answer has no gradient in x")
        error = end.detach() - part.end
        length = error.norm(dim=1)
        along, share, slope = output_directions(error, length, count, generator)
        weight = reweighted(length, LEAST_WEIGHT) * part.weight / len(pairs.start)
        for k in range(along.shape[1]):
            (found,) = torch.autograd.grad((end * along[:, k]).sum(), values, retain_graph=k + 1 < along.shape[1])
            equations.add(found.T, weight * slope[:, k], weight * share[:, k])
    return equations.gradient, equations.curvature


def asked_with_levels(numbers: Numbers, pairs: Pairs, columns: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
    """d as a function of the number of the evaluation and of y, differentiable in y and in columns (B, 1) of log rho."""
    clock = pairs.clock
    levels: list[float] = numbers.levels.tolist()

    def ask(k: int, y: Tensor) -> Tensor:
        answer = clock.asked(pairs.denoised, y, levels[k])
        with torch.no_grad():
            later, earlier = (
                clock.asked(pairs.denoised, y.detach(), levels[k] * math.exp(sign * _LEVEL_STEP)) for sign in (1, -1)
            )
        # The difference is 0, and carries the derivative alone.
        return answer + (later - earlier) / (2 * _LEVEL_STEP) * (columns[k] - columns[k].detach())

    return ask


def _differentiated(numbers: Numbers, pairs: Pairs, columns: list[Tensor]) -> Tensor:
    """The ends, less the mean and in units of the scale, differentiable in a column (B, 1) for each number."""
    nfe = numbers.nfe
    inner = iter(columns[nfe:])
    weights = [[next(inner) for _ in range(k + 1)] for k in range(nfe)]
    ask = asked_with_levels(numbers, pairs, columns[-nfe:])
    return follow(ask, pairs.start, columns[:nfe], weights, ()) / pairs.clock.cosine(pairs.levels[1])
