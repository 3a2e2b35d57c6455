r"""Heads of random features: a layer of fixed tanh units, whose outputs are trained by Gauss-Newton.

The layers are drawn with widths between two bounds and with their middles at inputs of the training. The outputs are trained
together with the table and its levels, on the mean end-point error. An output enters through a shift of its row's state: its
derivative is a feature times the derivative by that shift, so the curvature is made of Gram matrices of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffode.errors import FieldError
from diffode.learned.fitting.gauss_newton import output_directions
from diffode.learned.heads.jump_fit import CHUNK, LEAST_WEIGHT, Numbers, asked_with_levels, run
from diffode.learned.heads.pairs import Pairs
from diffode.numerics.least_squares import reweighted
from diffode.solvers.trained.jumps import Jumps, Network, follow


@dataclass(frozen=True)
class Featured:
    """A jump table with heads of random features: its numbers, the fixed layers, and the outputs W (U + 1, D) of each head."""

    numbers: Numbers
    layers: tuple[tuple[Tensor, Tensor], ...]
    outputs: tuple[Tensor, ...]

    def vector(self) -> Tensor:
        """All that is free: the numbers, then the outputs."""
        return torch.cat([self.numbers.vector(), *(w.reshape(-1) for w in self.outputs)])

    def of(self, vector: Tensor) -> Featured:
        """The same with other values of all that is free."""
        size = len(self.numbers.vector())
        parts = torch.split(vector[size:], [w.numel() for w in self.outputs])
        outputs = tuple(part.reshape(w.shape) for part, w in zip(parts, self.outputs, strict=True))
        return replace(self, numbers=Numbers.of(vector[:size], self.numbers.nfe), outputs=outputs)

    def confined(self, first: float, last: float) -> Featured:
        """The same with levels between two ends."""
        return replace(self, numbers=self.numbers.confined(first, last))

    def heads(self) -> tuple[Network, ...]:
        """The heads as networks."""
        return tuple(
            Network((layer, (w[:-1].contiguous(), w[-1].contiguous())), "tanh")
            for layer, w in zip(self.layers, self.outputs, strict=True)
        )

    def jumps(self, pairs: Pairs) -> Jumps:
        """The table with its heads, for the levels of some pairs."""
        return replace(self.numbers.jumps(pairs), heads=self.heads())

    def error(self, pairs: Pairs) -> float:
        """Mean end-point error in units of the scale; infinite if the run overflows."""
        with torch.no_grad():
            return pairs.mean_distance(run(self.numbers, pairs, self.heads()))


def drawn_layer(inputs: Tensor, units: int, widths: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random layer for inputs (B, F): slopes between two widths, in units of the inputs' spread, middles at inputs."""
    count = inputs.shape[1]
    shares = torch.rand(units, generator=generator, dtype=torch.float64)
    slopes = widths[0] * (widths[1] / widths[0]) ** shares
    matrix = torch.randn(count, units, generator=generator, dtype=torch.float64)
    matrix = matrix * slopes / inputs.std(dim=0).clamp(min=1e-12)[:, None] / math.sqrt(count)
    middles = inputs[torch.randint(len(inputs), (units,), generator=generator)]
    return matrix, -(middles * matrix.T).sum(dim=1)


def features(inputs: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    """The answers (B, U + 1) of a layer's units, and 1."""
    units = torch.tanh(torch.addmm(layer[1], inputs, layer[0]))
    return torch.cat([units, torch.ones_like(units[:, :1])], dim=1)


def normal_equations(featured: Featured, pairs: Pairs, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton matrix of the mean error by all that is free."""
    sums = _Sums(featured)
    for begin in range(0, len(pairs.start), CHUNK):
        part = pairs.part(slice(begin, begin + CHUNK))
        values = featured.numbers.vector()[:, None].repeat(1, len(part.start)).requires_grad_(True)
        shifts = [torch.zeros_like(part.start).requires_grad_(True) for _ in featured.outputs]
        known: list[Tensor] = []
        with torch.enable_grad():
            end = _differentiated(featured, part, values, shifts, known)
        if not end.requires_grad:
            raise FieldError("the field can't be differentiated: its answer has no gradient in x")
        error = end.detach() - part.end
        length = error.norm(dim=1)
        along, share, slope = output_directions(error, length, count, generator)
        weight = (reweighted(length, LEAST_WEIGHT) * part.weight / len(pairs.start))[:, None]
        found = [
            torch.autograd.grad((end * along[:, s]).sum(), [values, *shifts], retain_graph=s + 1 < along.shape[1])
            for s in range(along.shape[1])
        ]
        by_number = torch.stack([one[0].T for one in found], dim=1)
        by_shift = [torch.stack([one[k + 1] for one in found], dim=1) for k in range(len(shifts))]
        sums.add(by_number, by_shift, [phi.detach() for phi in known], weight * slope, weight * share)
    return sums.gradient, sums.whole()


class _Sums:
    """The gradient (P,) and the lower half, in blocks, of the curvature (P, P), added up chunk by chunk."""

    def __init__(self, featured: Featured):
        sizes = [len(featured.numbers.vector()), *(w.numel() for w in featured.outputs)]
        self._ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.gradient = torch.zeros(self._ends[-1], dtype=torch.float64)
        self.curvature = torch.zeros(self._ends[-1], self._ends[-1], dtype=torch.float64)

    def add(self, by_number: Tensor, by_shift: list[Tensor], known: list[Tensor], pull: Tensor, weight: Tensor) -> None:
        """Add rows: derivatives by the numbers (B, S, P) and by each step's shift (B, S, D), features (B, U + 1)."""
        own = self._ends[1]
        self.gradient[:own] += torch.einsum("bsp,bs->p", by_number, pull)
        self.curvature[:own, :own] += torch.einsum("bsp,bsq,bs->pq", by_number, by_number, weight)
        for k, (shift, phi) in enumerate(zip(by_shift, known, strict=True)):
            rows = slice(self._ends[k + 1], self._ends[k + 2])
            self.gradient[rows] += (phi.T @ torch.einsum("bsd,bs->bd", shift, pull)).reshape(-1)
            mixed = torch.einsum("bsd,bsp,bs->bdp", shift, by_number, weight).flatten(1)
            self.curvature[rows, :own] += (phi.T @ mixed).reshape(-1, own)
            for j in range(k + 1):
                columns = slice(self._ends[j + 1], self._ends[j + 2])
                shape = (phi.shape[1], shift.shape[2], known[j].shape[1], by_shift[j].shape[2])
                block = torch.zeros(shape, dtype=torch.float64)
                pairs = torch.einsum("bsd,bse,bs->bde", shift, by_shift[j], weight)
                for d in range(shape[1]):
                    for e in range(shape[3]):
                        if j == k and e > d:
                            continue
                        gram = (phi * pairs[:, d, e, None]).T @ known[j]
                        block[:, d, :, e] = gram
                        if j == k and e < d:
                            block[:, e, :, d] = gram.T
                self.curvature[rows, columns] += block.reshape(shape[0] * shape[1], -1)

    def whole(self) -> Tensor:
        """The curvature with its upper half."""
        return self.curvature.tril() + self.curvature.tril(-1).T


def _differentiated(featured: Featured, pairs: Pairs, values: Tensor, shifts: list[Tensor], known: list[Tensor]) -> Tensor:
    """The ends, less the mean and in units of the scale, differentiable in the numbers and in shifts; notes the features."""
    numbers, nfe = featured.numbers, featured.numbers.nfe
    columns = [value[:, None] for value in values.unbind(0)]
    inner = iter(columns[nfe:])
    weights = [[next(inner) for _ in range(k + 1)] for k in range(nfe)]

    def head(k: int) -> Callable[[Tensor], Tensor]:
        def answer(inputs: Tensor) -> Tensor:
            phi = features(inputs, featured.layers[k])
            known.append(phi)
            return phi @ featured.outputs[k] + shifts[k]

        return answer

    ask = asked_with_levels(numbers, pairs, columns[-nfe:])
    return follow(ask, pairs.start, columns[:nfe], weights, [head(k) for k in range(nfe)]) / pairs.clock.cosine(pairs.levels[1])
