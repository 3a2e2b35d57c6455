"""Pairs of starts and ends by which generators are trained, exact or from a table that is known to be good."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.flows import flow_states
from diffode.flows.closed import known_flow
from diffode.learned.arguments import finite_levels
from diffode.learned.fitting.teacher import EVALUATIONS, FEW_DIMENSIONS, GRID, TABLE
from diffode.learned.request import Request
from diffode.maps import AngleClock
from diffode.maps.clock import Denoised
from diffode.paths import Path
from diffode.tableau import Tableau

#: Largest number of exact ends in more than a few dimensions.
_FEW_ENDS = 4096
#: Number of starts on which the error of the table is measured.
_MEASURED = 128
#: Number of times that chances above 1 are cut to 1, and the rest raised.
_CAPPINGS = 20
#: Number of rows that run together.
_CHUNK = 2048


@dataclass(frozen=True)
class Pairs:
    """Starts and ends in the angle clock.

    Attributes:
        clock: mean and scale of the data.
        levels: noise levels of starts and ends.
        denoised: the field's denoised prediction at z = x/alpha and a level.
        start: y at the first level, (B, D).
        end: z at the last level, less the mean and in units of the scale, (B, D).
        made: how the ends were made, in words.
        error: mean error of the ends, in units of the scale; 0 for exact ones.
        weight: weight of each pair in a mean, (B,), 1 in the mean over all pairs that these stand for.
    """

    clock: AngleClock
    levels: tuple[float, float]
    denoised: Denoised
    start: Tensor
    end: Tensor
    made: str
    error: float
    weight: Tensor

    def part(self, rows: slice | Tensor) -> Pairs:
        """Some of the pairs."""
        return replace(self, start=self.start[rows], end=self.end[rows], weight=self.weight[rows])

    def mean_distance(self, y: Tensor) -> float:
        """The weighted mean of distances; infinite if one is not finite."""
        value = float((self.distance(y) * self.weight).mean())
        return value if math.isfinite(value) else math.inf

    def hardest(self, distance: Tensor, count: int, generator: torch.Generator) -> Pairs:
        """``count`` of the pairs or one less, mostly at large distances (B,), with weights that keep the means over all pairs.

        Errors are large where the flow divides between modes. A pair is drawn with a chance that grows with its error, from
        half of the mean chance on, and once at most.
        """
        shares = distance + distance.mean()
        chance = shares * (count / shares.sum())
        for _ in range(_CAPPINGS):
            sure = chance >= 1
            left = shares.masked_fill(sure, 0.0)
            chance = torch.where(sure, 1.0, left * ((count - sure.sum()) / left.sum().clamp(min=1e-300)))
        # Systematic sampling: the sums of chances are counted where they pass an integer, shifted by one draw for all.
        shift = torch.rand(1, generator=generator, dtype=torch.float64)
        counted = (torch.cumsum(chance, 0) + shift).floor().diff(prepend=torch.zeros(1, dtype=torch.float64)) > 0
        weight = 1 / chance[counted]
        return replace(self.part(counted), weight=weight / weight.mean())

    def single(self) -> Pairs:
        """The same pairs in float32."""
        return replace(self, start=self.start.float(), end=self.end.float(), weight=self.weight.float())

    def distance(self, y: Tensor) -> Tensor:
        """Distances (B,), in units of the scale, of outputs y (B, D) of a generator from the ends."""
        lengths: Tensor = (y / self.clock.cosine(self.levels[1]) - self.end).norm(dim=1)
        return lengths


def denoised_of(field: Field, path: Path, shape: tuple[int, ...]) -> Denoised:
    """The denoised prediction (B, D) at z = x/alpha (B, D) and a level."""

    def denoised(z: Tensor, level: float) -> Tensor:
        t = path.time_from_rho(level)
        return field.predict("denoised", (z * path.alpha(t)).reshape(-1, *shape), t).flatten(1)

    return denoised


def pairs_of(request: Request, clock: AngleClock, count: int, stream: str, *, stop: Callable[[], bool] | None = None) -> Pairs:
    """``count`` starts from the prior of a path, by a stream of the request, and their ends.

    Few ends, or those in few dimensions, are exact. Others are made in float32 by a published table, whose mean error is
    measured against exact ends.
    """
    path, field = request.path, request.field
    levels = finite_levels(path)
    x = path.prior((count, *request.shape), generator=request.stream(stream))
    exact = request.width <= FEW_DIMENSIONS or count <= _FEW_ENDS or known_flow(field) is not None
    times = (path.t_max, path.t_min)
    if exact:
        end, made, error = flow_states(field, x, times)[-1], "exact ends", 0.0
    else:
        table = solvers.table_solver(TABLE).within(path, GRID, EVALUATIONS)
        with torch.no_grad(), field.uncounted():
            end, ran = _run(table, field, x, stop)
            x = x[:ran]
            few = x[:_MEASURED]
            known = flow_states(field, few, times)[-1]
        error = float((end[:_MEASURED] - known).flatten(1).norm(dim=1).mean()) / (field.scale * path.alpha(path.t_min))
        made = f"{TABLE} @ {GRID}, {EVALUATIONS} evaluations in float32"
    z, last = (part.flatten(1) / path.alpha(t) for part, t in zip((x, end), times, strict=True))
    return Pairs(
        clock, levels, denoised_of(field, path, request.shape), clock.inward(z, levels[0]), (last - clock.mean) / clock.scale,
        made, error, torch.ones(len(z), dtype=torch.float64),
    )  # fmt: skip


def _run(table: Tableau, field: Field, x: Tensor, stop: Callable[[], bool] | None) -> tuple[Tensor, int]:
    """Ends of starts by a table, chunk by chunk, and the number of starts that were run before ``stop`` said so."""
    ends: list[Tensor] = []
    for begin in range(0, len(x), _CHUNK):
        if ends and stop is not None and stop():
            break
        ends.append(table.run(field, x[begin : begin + _CHUNK].float()).double())
    end = torch.cat(ends)
    if not bool(torch.isfinite(end).all()):
        raise ArgumentError(f"points must be at most {_FEW_ENDS} here: {TABLE} @ {GRID} gives non-finite ends of this field")
    return end, len(end)
