r"""Few-step generators that jump to the first evaluation for nothing: a table in the angle clock, with or without heads.

With c the scale of the data and m their mean, the angle clock has

.. math::
    \theta = \arctan(\rho/c), \qquad y = (x/\alpha - m)\cos\theta/c, \qquad d = (D - m)/c,

in which the flow of :math:`N(m, c^2 I)` leaves y as it is. At the first level, where noise hides everything else of the data,
y is therefore kept, without an evaluation, down to the first inner level. N evaluations at inner levels follow,

.. math::
    y_{k+1} = a_k y_k + \sum_{j\le k} b_{kj} d_j + \mathrm{head}_k(y_k, d_0, \dots, d_k), \qquad k = 0, \dots, N - 1,

and :math:`y_N` is the output. A table without heads has N(N + 3)/2 numbers and N levels; a head is a small network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.input_files import believed, shown
from diffode.maps import AngleClock
from diffode.maps.clock import Denoised
from diffode.tensor_files import content_of, finite, float64, read_tensors, text, write_tensors
from diffode.training_facts import Facts, read_facts

#: Name of a network's activation.
Activation = Literal["tanh", "silu"]
#: Functions by the name of an activation.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "silu": torch.nn.functional.silu}
#: Name and version of the file format.
JUMPS_SCHEMA = "diffode-jumps-1"
#: Largest number of evaluations, and of layers of a head, in a file.
_MOST_EVALUATIONS, _MOST_LAYERS = 64, 16
#: Largest level and scale in a file; the smallest scale, and the smallest last level, is its inverse.
_LARGEST = 1e30


@dataclass(frozen=True)
class Network:
    """A network of full layers: matrices (inputs, outputs) and offsets (outputs,), an activation after each but the last."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    activation: Activation

    def __call__(self, inputs: Tensor) -> Tensor:
        """The answers (B, outputs) to inputs (B, inputs), in their dtype and on their device.

        The products are made in the dtype of the layers: a head of random features needs float64, whatever the state is in.
        """
        function = _ACTIVATIONS[self.activation]
        values = inputs.to(self.layers[0][0].dtype)
        for number, (matrix, offset) in enumerate(self.layers):
            values = torch.addmm(offset.to(values), values if number == 0 else function(values), matrix.to(values))
        return values.to(inputs)

    @property
    def multiply_adds(self) -> int:
        """Number of products that an answer costs."""
        return sum(matrix.numel() for matrix, _ in self.layers)

    def tensors(self, number: int) -> dict[str, Tensor]:
        """The numbers by the names that they have in a file, for the head of evaluation ``number``."""
        named: dict[str, Tensor] = {}
        for layer, (matrix, offset) in enumerate(self.layers):
            named |= {f"matrix_{number}_{layer}": matrix, f"offset_{number}_{layer}": offset}
        return named


def follow(
    ask: Callable[[int, Tensor], Tensor],
    y: Tensor,
    kept: Sequence[float | Tensor],
    weights: Sequence[Sequence[float | Tensor]],
    heads: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """The output y (B, D) of the recursion above; ``ask(k, y)`` is d_k, the numbers are floats or (B, 1) tensors."""
    known: list[Tensor] = []
    for k, (own, row) in enumerate(zip(kept, weights, strict=True)):
        known.append(ask(k, y))
        following = y * own
        for d, weight in zip(known, row, strict=True):
            following = following + d * weight
        if heads:
            following = following + heads[k](torch.cat([y, *known], dim=1))
        y = following
    return y


@dataclass(frozen=True)
class Jumps:
    """A jump table, its heads if it has any, and what it was trained for.

    Attributes:
        clock: mean and scale of the data.
        levels: rho of the start, of the N evaluations and of the end, (N + 2,) float64.
        kept: a, (N,) float64.
        weights: b, (N, N) float64 and lower triangular.
        heads: none, or a network for each evaluation.
        content: hash of the target's parameters; empty for other fields.
        teacher: how the exact ends of the training were made, in words.
        teacher_error: their mean error, in units of the scale.
        training_error: mean end-point error on the starts of the training, in units of the scale.
        facts: origin and held-out errors.
    """

    clock: AngleClock
    levels: Tensor
    kept: Tensor
    weights: Tensor
    heads: tuple[Network, ...] = ()
    content: str = ""
    teacher: str = ""
    teacher_error: float = 0.0
    training_error: float = math.inf
    facts: Facts | None = None

    def __post_init__(self) -> None:
        count, dim = len(self.kept), self.dim
        if count < 1 or self.weights.shape != (count, count) or self.levels.shape != (count + 2,):
            raise ArgumentError(
                f"jumps need kept (N,), weights (N, N) and levels (N + 2,), got {tuple(self.kept.shape)}, "
                f"{tuple(self.weights.shape)} and {tuple(self.levels.shape)}"
            )
        numbers = (self.levels, self.kept, self.weights, self.clock.mean)
        if not all(bool(torch.isfinite(part).all()) for part in numbers) or bool(self.weights.triu(1).any()):
            raise ArgumentError("jumps must be finite, and their weights lower triangular")
        if not bool((self.levels > 0).all()) or not bool((self.levels[:-1] > self.levels[-1]).all()):
            raise ArgumentError("levels must be positive, and the last one the least")
        if len(self.heads) not in (0, count):
            raise ArgumentError(f"jumps have no heads or one for each of {count} evaluations, got {len(self.heads)}")
        for k, head in enumerate(self.heads):
            width = (k + 2) * dim
            for matrix, offset in head.layers:
                if matrix.ndim != 2 or matrix.shape[0] != width or offset.shape != matrix.shape[1:]:
                    raise ArgumentError(f"the layers of head {k} do not fit each other, or not a row of {dim} coordinates")
                width = matrix.shape[1]
            if width != dim or head.activation not in _ACTIVATIONS:
                raise ArgumentError(f"head {k} must answer with {dim} coordinates, through tanh or silu")

    @property
    def dim(self) -> int:
        """Number of coordinates of a row."""
        return len(self.clock.mean)

    @property
    def nfe(self) -> int:
        """Number of evaluations of the field."""
        return len(self.kept)

    @property
    def multiply_adds(self) -> int:
        """Number of products a row, beside the evaluations: of the table, and of the heads."""
        count = self.nfe
        return self.dim * (count + count * (count + 1) // 2) + sum(head.multiply_adds for head in self.heads)

    @property
    def digest(self) -> str:
        """A hash of all numbers that a run depends on."""
        layers = [part for head in self.heads for layer in head.layers for part in layer]
        scale = torch.tensor([self.clock.scale], dtype=torch.float64)
        return content_of((self.clock.mean, scale, self.levels, self.kept, self.weights, *layers))

    def run(self, denoised: Denoised, z: Tensor) -> Tensor:
        """The end z (B, D) at the last level, from z at the first."""
        levels: list[float] = self.levels.tolist()
        y = follow(
            lambda k, y: self.clock.asked(denoised, y, levels[k + 1]),
            self.clock.inward(z, levels[0]),
            self.kept.tolist(),
            [row[: k + 1] for k, row in enumerate(self.weights.tolist())],
            self.heads,
        )
        return self.clock.outward(y, levels[-1])

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors; raises ArgumentError if the file can't be written."""
        tensors = {"mean": self.clock.mean, "levels": self.levels, "kept": self.kept, "weights": self.weights}
        for k, head in enumerate(self.heads):
            tensors |= head.tensors(k)
        description = {
            "schema": JUMPS_SCHEMA,
            "scale": self.clock.scale,
            "dim": self.dim,
            "layers": len(self.heads[0].layers) if self.heads else 0,
            "activation": self.heads[0].activation if self.heads else "",
            "content": self.content,
            "teacher": self.teacher,
            "teacher_error": _or_none(self.teacher_error),
            "training_error": _or_none(self.training_error),
            **({} if self.facts is None else self.facts.description()),
        }
        write_tensors(file, {name: part.detach().contiguous() for name, part in tensors.items()}, description)


def load_jumps(file: str | FilePath) -> Jumps:
    """Read a jump table, with its heads if it has some, from a file.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if the file holds no jump table.
    """
    description, tensors = read_tensors(file, JUMPS_SCHEMA)
    with believed(file, "a jump table"):
        mean, levels, kept = (float64(tensors, name, 1) for name in ("mean", "levels", "kept"))
        weights, scale = float64(tensors, "weights", 2), finite(description, "scale")
        count, layers, activation = len(kept), description["layers"], text(description, "activation")
        if description["dim"] != len(mean):
            raise ValueError(f"it is for rows of {shown(description['dim'])} coordinates, its mean has {len(mean)}")
        if count > _MOST_EVALUATIONS or type(layers) is not int or not 0 <= layers <= _MOST_LAYERS:
            raise ValueError(f"it has {count} evaluations and {layers!r:.20} layers a head")
        if not 1 / _LARGEST <= scale <= _LARGEST or bool((levels > _LARGEST).any()) or bool((levels < 1 / _LARGEST).any()):
            raise ValueError(f"scale and levels must lie in [{1 / _LARGEST:g}, {_LARGEST:g}]")
        if len(tensors) != 4 + 2 * layers * count:
            raise ValueError(f"it must hold a table and {layers} layers for each of {count} evaluations")
        heads = tuple(_network(tensors, k, layers, activation) for k in range(count)) if layers else ()
        return Jumps(
            AngleClock(mean, scale), levels, kept, weights, heads, text(description, "content"), text(description, "teacher"),
            _or_infinite(description, "teacher_error"), _or_infinite(description, "training_error"),
            Facts(**read_facts(description)),
        )  # fmt: skip


def _network(tensors: dict[str, Tensor], number: int, layers: int, activation: str) -> Network:
    """The head of an evaluation; ValueError or KeyError if its numbers are not finite, or of another type."""
    found = []
    for layer in range(layers):
        for name, ndim in ((f"matrix_{number}_{layer}", 2), (f"offset_{number}_{layer}", 1)):
            stored = tensors[name].dtype
            float64(tensors, name, ndim, torch.float32 if stored == torch.float32 else torch.float64)
        found.append((tensors[f"matrix_{number}_{layer}"], tensors[f"offset_{number}_{layer}"]))
    if activation not in ("tanh", "silu"):
        raise ValueError(f"activation must be tanh or silu, got {activation[:20]!r}")
    return Network(tuple(found), "tanh" if activation == "tanh" else "silu")


def _or_none(error: float) -> float | None:
    """An error as JSON holds it, which has no infinity."""
    return error if math.isfinite(error) else None


def _or_infinite(description: dict[str, object], key: str) -> float:
    return math.inf if description[key] is None else finite(description, key)
