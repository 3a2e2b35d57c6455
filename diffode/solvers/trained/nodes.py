r"""The exact map from noise to data at nodes of a grid, in one or two dimensions, and interpolation between them.

The nodes are uniform in y, that is in the start, over ``span`` standard deviations to either side. A start outside is moved
to the nearest point of the grid, and its end back by the flow of :math:`N(m, c^2 I)`. In one dimension a cubic is monotone
(Fritsch and Carlson, in SciPy's form), so it has no mode that the map has not; in two it is a product of Hermite's cubics with
the slopes of central differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Literal

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.maps import AngleClock
from diffode.tensor_files import content_of, finite, float64, read_tensors, text, write_tensors
from diffode.training_facts import Facts, read_facts

#: How the map goes between nodes.
Kind = Literal["linear", "cubic"]
#: Name and version of the file format.
NODES_SCHEMA = "diffode-nodes-1"
#: Smallest number of nodes along a dimension, and largest number of dimensions.
FEWEST_NODES, MOST_DIMENSIONS = 4, 2
#: Largest scale, level and span in a file; the smallest is its inverse.
_LARGEST = 1e30


@dataclass(frozen=True)
class Nodes:
    """The ends of nodes.

    Attributes:
        clock: mean and scale of the data.
        levels: noise levels of start and end.
        span: distance of the outermost nodes from the middle, in standard deviations of y.
        ends: departures from the Gaussian flow at the nodes, in units of the scale, (n, 1) or (n, n, 2) float64.
        kind: ``"linear"`` or ``"cubic"``.
        content: hash of the target's parameters; empty for other fields.
        facts: origin and held-out error.
    """

    clock: AngleClock
    levels: tuple[float, float]
    span: float
    ends: Tensor
    kind: Kind
    content: str = ""
    facts: Facts | None = None
    _slopes: Tensor | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        shape = tuple(self.ends.shape)
        dim = len(shape) - 1
        square = 1 <= dim <= MOST_DIMENSIONS and shape == (shape[0],) * dim + (dim,) and shape[0] >= FEWEST_NODES
        if not square or self.clock.mean.shape != (dim,) or not bool(torch.isfinite(self.ends).all()):
            raise ArgumentError(
                f"ends of nodes must be finite, (n, 1) or (n, n, 2) with n >= {FEWEST_NODES}, and a mean of their dimension, "
                f"got {shape}"
            )
        if self.kind not in ("linear", "cubic"):
            raise ArgumentError(f"kind must be linear or cubic, got {self.kind!r:.20}")
        if not (0 < self.levels[1] < self.levels[0] < math.inf and 0 < self.span < math.inf):
            raise ArgumentError(f"levels must fall and span be positive, got {self.levels} and {self.span!r:.20}")
        if self.kind == "cubic" and dim == 1:
            # The map is monotone, its departure from the Gaussian flow is not.
            flowed = self._places() / self.clock.cosine(self.levels[1])
            slopes = monotone_slopes(flowed + self.ends[:, 0])
            object.__setattr__(self, "_slopes", slopes - self.step / self.clock.cosine(self.levels[1]))

    @property
    def dim(self) -> int:
        """Number of coordinates of a row."""
        return int(self.clock.mean.shape[0])

    @property
    def count(self) -> int:
        """Number of nodes along a dimension."""
        return len(self.ends)

    @property
    def nfe(self) -> int:
        """One: a call of the map."""
        return 1

    @property
    def step(self) -> float:
        """Distance of neighbouring nodes in y."""
        return 2 * self.span / (self.count - 1)

    @property
    def multiply_adds(self) -> int:
        """Number of products a row: a weight for each node that takes part, for each coordinate."""
        around: int = (2 if self.kind == "linear" else 4) ** self.dim
        return self.dim * around

    @property
    def digest(self) -> str:
        """A hash of all numbers that a run depends on."""
        numbers = torch.tensor([self.clock.scale, *self.levels, self.span, float(self.kind == "cubic")], dtype=torch.float64)
        return content_of((self.clock.mean, numbers, self.ends))

    def starts(self) -> Tensor:
        """The nodes as z at the first level, (n^dim, dim)."""
        axes = torch.meshgrid(*(self._places() for _ in range(self.dim)), indexing="ij")
        return self.clock.outward(torch.stack(axes, dim=-1).reshape(-1, self.dim), self.levels[0])

    def run(self, z: Tensor) -> Tensor:
        """The ends z (B, D) of starts z (B, D)."""
        y = self.clock.inward(z, self.levels[0]).to(torch.float64)
        inside = y.clamp(-self.span, self.span)
        place = (inside + self.span) / self.step
        cell = place.floor().clamp(0, self.count - 2)
        part, ends = place - cell, self.ends.to(z.device)
        departure = self._along(part[:, 0], cell[:, 0].long(), ends) if self.dim == 1 else self._across(part, cell.long(), ends)
        return (self.clock.outward(y, self.levels[1]) + departure * self.clock.scale).to(z.dtype)

    def _places(self) -> Tensor:
        """The nodes along a dimension, in y."""
        return torch.linspace(-self.span, self.span, self.count, dtype=torch.float64)

    def _along(self, part: Tensor, cell: Tensor, ends: Tensor) -> Tensor:
        """Departures (B, 1) in one dimension."""
        low, high = ends[cell, 0], ends[cell + 1, 0]
        if self._slopes is None:
            return (low + part * (high - low))[:, None]
        slopes = self._slopes.to(ends.device)
        weights = _hermite(part)
        return (weights[0] * low + weights[1] * slopes[cell] + weights[2] * high + weights[3] * slopes[cell + 1])[:, None]

    def _across(self, part: Tensor, cell: Tensor, ends: Tensor) -> Tensor:
        """Departures (B, 2) in two dimensions, as a sum over the nodes around."""
        sides = [self._sides(part[:, axis], cell[:, axis]) for axis in range(2)]
        total = torch.zeros_like(part)
        for first, weight in sides[0]:
            for second, other in sides[1]:
                total = total + (weight * other)[:, None] * ends[first, second]
        return total

    def _sides(self, part: Tensor, cell: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The nodes that take part along an axis, (B,) each, and their weights."""
        if self.kind == "linear":
            return [(cell, 1 - part), (cell + 1, part)]
        low, slope, high, other = _hermite(part)
        # The slopes are those of central differences, and of the one difference there is at an edge.
        before, after = cell > 0, cell < self.count - 2
        left, right = torch.where(before, 0.5, 1.0) * slope, torch.where(after, 0.5, 1.0) * other
        return [
            ((cell - 1).clamp(min=0), -left * before),
            (cell, low - left * ~before - right),
            (cell + 1, high + left + right * ~after),
            ((cell + 2).clamp(max=self.count - 1), right * after),
        ]

    def save(self, file: str | FilePath) -> None:
        """Write them as safetensors; raises ArgumentError if the file can't be written."""
        description = {
            "schema": NODES_SCHEMA, "scale": self.clock.scale, "levels": list(self.levels), "span": self.span,
            "kind": self.kind, "content": self.content, **({} if self.facts is None else self.facts.description()),
        }  # fmt: skip
        write_tensors(file, {"mean": self.clock.mean.contiguous(), "ends": self.ends.contiguous()}, description)


def monotone_slopes(values: Tensor) -> Tensor:
    """Slopes (n,), for nodes at distance 1, with which Hermite's cubic is monotone where its values (n,) are.

    >>> monotone_slopes(torch.tensor([0.0, 1.0, 1.0, 3.0], dtype=torch.float64))
    tensor([1.5000, 0.0000, 0.0000, 3.0000], dtype=torch.float64)
    """
    rises = values.diff()
    before, after = rises[:-1], rises[1:]
    same = before * after > 0
    inner = torch.where(same, 2 * before * after / torch.where(same, before + after, 1.0), 0.0)
    ends = []
    for first, second in ((rises[0], rises[1]), (rises[-1], rises[-2])):
        slope = (3 * first - second) / 2
        slope = torch.where(slope * first > 0, slope, 0.0)
        ends.append(torch.where((first * second <= 0) & (slope.abs() > 3 * first.abs()), 3 * first, slope))
    return torch.cat([ends[0][None], inner, ends[1][None]])


def _hermite(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hermite's cubics at u in [0, 1]: of the value and the slope at 0, and of those at 1."""
    return (1 + 2 * u) * (1 - u) ** 2, u * (1 - u) ** 2, u * u * (3 - 2 * u), u * u * (u - 1)


def load_nodes(file: str | FilePath) -> Nodes:
    """Read a map on nodes from a file.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if the file holds no map on nodes.
    """
    description, tensors = read_tensors(file, NODES_SCHEMA)
    with believed(file, "a map on nodes"):
        mean = float64(tensors, "mean", 1)
        ends = float64(tensors, "ends", 1 + len(mean))
        scale, span, levels = finite(description, "scale"), finite(description, "span"), description["levels"]
        if len(tensors) != 2 or not isinstance(levels, list) or len(levels) != 2:
            raise ValueError("it must hold a mean, ends, and the levels of start and end")
        both = (finite({"levels": levels[0]}, "levels"), finite({"levels": levels[1]}, "levels"))
        if not all(1 / _LARGEST <= value <= _LARGEST for value in (scale, span, *both)):
            raise ValueError(f"scale, levels and span must lie in [{1 / _LARGEST:g}, {_LARGEST:g}]")
        kind = text(description, "kind")
        if kind not in ("linear", "cubic"):
            raise ValueError(f"kind must be linear or cubic, got {kind[:20]!r}")
        chosen: Kind = "linear" if kind == "linear" else "cubic"
        facts = Facts(**read_facts(description))
        return Nodes(AngleClock(mean, scale), both, span, ends, chosen, text(description, "content"), facts)
