"""Heads that are perceptrons, for many dimensions, trained by SOAP on the mean distance.

The last head is trained first, on the states to which the jump table brings all starts: they are computed once. Then all heads,
the numbers and the levels are trained together through the field. What is kept is an exponential average of the parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.learned.heads.jump_fit import Numbers
from diffode.learned.heads.pairs import Pairs
from diffode.learned.heads.soap import SOAP
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress, Step
from diffode.solvers.trained.jumps import Jumps, Network, follow

#: Largest decay of the average of the parameters, and the number of steps after which it is about half of that.
_DECAY, _WARM = 0.998, 10
#: Share of the steps after which the rate falls, as a cosine does.
_LEVEL_SHARE = 0.3
#: Number of steps over which the rate rises at first, and that are timed where seconds are limited.
_RISE = 20
#: Number of times that a training tells of itself.
_TELLS = 20
#: Rate of a table's numbers, relative to that of the heads.
_NUMBERS_RATE = 0.1
#: Step of the central difference in log rho, in float32.
_LEVEL_STEP = 1e-2
#: Number of rows that run together where no gradient is asked.
_CHUNK = 2048

#: Layers of a head: a matrix and an offset each.
Layers = list[tuple[Tensor, Tensor]]


class Descent(NamedTuple):
    """How long and how fast a training goes: number of steps, starts of a step, and rate."""

    steps: int
    batch: int
    rate: float


class Perceptrons(NamedTuple):
    """A jump table with heads: its numbers as a vector, in float32, and the layers of each head."""

    vector: Tensor
    heads: list[Layers]

    @property
    def nfe(self) -> int:
        """Number of evaluations."""
        return len(self.heads)

    def numbers(self) -> Numbers:
        """The numbers, in float64."""
        return Numbers.of(self.vector.detach().double(), self.nfe)

    def tensors(self) -> list[Tensor]:
        """All that is trained: the vector, then the layers."""
        return [self.vector, *(part for head in self.heads for layer in head for part in layer)]

    def of(self, tensors: Sequence[Tensor]) -> Perceptrons:
        """The same with other values."""
        rest = iter(tensors[1:])
        return Perceptrons(tensors[0], [[(next(rest), next(rest)) for _ in head] for head in self.heads])

    def jumps(self, pairs: Pairs) -> Jumps:
        """The table with its heads, for the levels of some pairs."""
        heads = tuple(Network(tuple((m.detach(), o.detach()) for m, o in head), "silu") for head in self.heads)
        return replace(self.numbers().jumps(pairs), heads=heads)


def begun(numbers: Numbers, dim: int, hidden: int, layers: int, generator: torch.Generator) -> Perceptrons:
    """A table with heads of ``layers`` hidden layers of ``hidden`` units, whose answers are 0."""
    heads = []
    for k in range(numbers.nfe):
        sizes = [(k + 2) * dim, *[hidden] * layers]
        inner = [(torch.randn(a, b, generator=generator) / math.sqrt(a), torch.zeros(b)) for a, b in itertools.pairwise(sizes)]
        heads.append([*inner, (torch.zeros(hidden, dim), torch.zeros(dim))])
    return Perceptrons(numbers.vector().float(), heads)


def error_of(perceptrons: Perceptrons, pairs: Pairs) -> float:
    """Mean end-point error in units of the scale; infinite if the run overflows."""
    with torch.no_grad():
        ends = [_run(perceptrons, pairs.part(slice(b, b + _CHUNK)), False) for b in range(0, len(pairs.start), _CHUNK)]
        return pairs.mean_distance(torch.cat(ends))


def train_last(
    perceptrons: Perceptrons,
    pairs: Pairs,
    held_out: Pairs,
    descent: Descent,
    generator: torch.Generator,
    limit: Limit,
    progress: Progress | None,
) -> tuple[Perceptrons, list[tuple[float, float]]]:
    """Train the last head, with the numbers of its row, on states that the table makes; the steps before stay as they are.

    Returns what was trained, and its errors on the starts to train on and held out, as they were told.
    """
    nfe = perceptrons.nfe
    states, others = _last_inputs(perceptrons, pairs), _last_inputs(perceptrons, held_out)
    first = nfe + nfe * (nfe - 1) // 2
    places = [nfe - 1, *range(first, first + nfe)]

    def answer(own: list[Tensor], inputs: Tensor) -> Tensor:
        rest = iter(own[1:])
        head = Network(tuple((next(rest), next(rest)) for _ in perceptrons.heads[-1]), "silu")
        parts = torch.stack(inputs.chunk(nfe + 1, dim=1))
        return torch.einsum("nbd,n->bd", parts, own[0]) + head(inputs)

    def loss(own: list[Tensor], rows: Tensor) -> Tensor:
        part = pairs.part(rows)
        return (part.distance(answer(own, states[rows])) * part.weight).mean()

    own = [perceptrons.vector[places], *(part for layer in perceptrons.heads[-1] for part in layer)]
    found, told = _descended(
        own, loss, lambda own: held_out.mean_distance(answer(own, others)), len(pairs.start), descent, generator, limit,
        "train the last head", progress,
    )  # fmt: skip
    vector = perceptrons.vector.clone()
    vector[places] = found[0]
    rest = iter(found[1:])
    return Perceptrons(vector, [*perceptrons.heads[:-1], [(next(rest), next(rest)) for _ in perceptrons.heads[-1]]]), told


def train_together(
    perceptrons: Perceptrons,
    pairs: Pairs,
    held_out: Pairs,
    descent: Descent,
    generator: torch.Generator,
    limit: Limit,
    progress: Progress | None,
) -> tuple[Perceptrons, list[tuple[float, float]]]:
    """Train all heads, the numbers and the levels together, through the field; the result is as of :func:`train_last`."""

    def loss(own: list[Tensor], rows: Tensor) -> Tensor:
        part = pairs.part(rows)
        return (part.distance(_run(perceptrons.of(own), part, True)) * part.weight).mean()

    found, told = _descended(
        perceptrons.tensors(), loss, lambda own: error_of(perceptrons.of(own), held_out), len(pairs.start), descent, generator,
        limit, "train all heads", progress,
    )  # fmt: skip
    return perceptrons.of(found), told


def _descended(
    tensors: list[Tensor],
    loss: Callable[[list[Tensor], Tensor], Tensor],
    held_out: Callable[[list[Tensor]], float],
    count: int,
    descent: Descent,
    generator: torch.Generator,
    limit: Limit,
    stage: str,
    progress: Progress | None,
) -> tuple[list[Tensor], list[tuple[float, float]]]:
    """SOAP from given tensors, of which the first is a table's numbers; the average with the least held-out error."""
    own = [part.detach().clone().requires_grad_(True) for part in tensors]
    average = [part.detach().clone() for part in own]
    soap = SOAP(own, [_NUMBERS_RATE] + [1.0] * (len(own) - 1))
    best, least = [part.clone() for part in average], held_out(average)
    told: list[tuple[float, float]] = []
    steps, began, total, since = descent.steps, limit.elapsed, 0.0, 0
    for step in range(1, steps + 1):
        if step > steps:
            break
        rows = torch.randint(count, (descent.batch,), generator=generator)
        value = loss(own, rows)
        share = max(0.0, step / steps - _LEVEL_SHARE) / (1 - _LEVEL_SHARE)
        soap.step(torch.autograd.grad(value, own), descent.rate * min(1.0, step / _RISE) * (1 + math.cos(math.pi * share)) / 2)
        decay = min(_DECAY, step / (step + _WARM))
        for part, now in zip(average, own, strict=True):
            part.lerp_(now.detach(), 1 - decay)
        total, since = total + float(value.detach()), since + 1
        if step == _RISE and limit.reached((steps - step) * (limit.elapsed - began) / step):
            # The rate is to fall to its end within the seconds that are left.
            left = (limit.seconds - limit.elapsed) / (limit.elapsed - began) * step
            steps = step + max(1, min(int(left), steps - step))
        ends = step == steps or (step > _RISE and limit.reached())
        if ends or step % max(1, steps // _TELLS) == 0:
            error = held_out(average)
            told.append((total / since, error))
            total, since = 0.0, 0
            if error < least:
                best, least = [part.clone() for part in average], error
            if progress is not None:
                progress(Step(stage, step, descent.steps, *told[-1]))
        if ends:
            break
    return best, told


def _last_inputs(perceptrons: Perceptrons, pairs: Pairs) -> Tensor:
    """The inputs (B, (N + 1) D) of the last head, in float32."""
    found: list[Tensor] = []

    def last(inputs: Tensor) -> Tensor:
        found.append(inputs)
        return torch.zeros_like(inputs[:, : pairs.start.shape[1]])

    with torch.no_grad():
        for begin in range(0, len(pairs.start), _CHUNK):
            _run(perceptrons, pairs.part(slice(begin, begin + _CHUNK)), False, last)
    return torch.cat(found)


def _run(
    perceptrons: Perceptrons, pairs: Pairs, differentiated: bool, last: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The outputs y, differentiable in all tensors if asked; ``last`` stands for the last head."""
    nfe, vector, clock = perceptrons.nfe, perceptrons.vector, pairs.clock
    inner = nfe + nfe * (nfe + 1) // 2
    logs: list[float] = vector[inner:].tolist()

    def ask(k: int, y: Tensor) -> Tensor:
        answer = clock.asked(pairs.denoised, y, math.exp(logs[k]))
        if not differentiated:
            return answer
        with torch.no_grad():
            later, earlier = (clock.asked(pairs.denoised, y, math.exp(logs[k] + sign * _LEVEL_STEP)) for sign in (1, -1))
        # The difference is 0, and carries the derivative by the level alone.
        return answer + (later - earlier) / (2 * _LEVEL_STEP) * (vector[inner + k] - logs[k])

    weights = torch.split(vector[nfe:inner], list(range(1, nfe + 1)))
    heads: list[Callable[[Tensor], Tensor]] = [Network(tuple(head), "silu") for head in perceptrons.heads]
    if last is not None:
        heads[-1] = last
    return follow(ask, pairs.start, list(vector[:nfe].unbind(0)), [list(row.unbind(0)) for row in weights], heads)
