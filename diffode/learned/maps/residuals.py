r"""Residuals: what a flow map obeys, as differences that a training makes small.

With :math:`D_a` the derivative along a trajectory and sg a number without a gradient:

* pairs: :math:`\Phi(y_a, a\to b) - y_b` on exact trajectories;
* diagonal: :math:`\partial_b\Phi(y, a\to b)|_{b=a} - v(y, a)`;
* semigroup: :math:`\Phi(y_a, a\to b) - \mathrm{sg}\,\Phi(y_r, r\to b)` with y_r by the map, a step of the teacher, or the same
  data and noise;
* Lagrangian: :math:`\partial_b\Phi - v(\mathrm{sg}\,\Phi, b)`;
* Eulerian: :math:`D_a\Phi = 0`.

Every function here takes a :class:`Context` and a number of rows, and gives the terms of a loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffode.learned.maps import laws
from diffode.learned.maps.sources import Noised, Sources
from diffode.maps import AngleMap

#: Number of Euler steps of the flow of a network that couples starts and ends anew.
_COUPLING_STEPS = 64


class Term(NamedTuple):
    """A part of a loss.

    Attributes:
        residual: differences (B, D) with a gradient.
        weight: weights (B,), or one for all.
        span: angles a and b of the rows, of which a learned weight is a function.
    """

    residual: Tensor
    weight: Tensor | float = 1.0
    span: tuple[Tensor, Tensor] | None = None


@dataclass
class Context:
    """What a residual is computed from.

    Attributes:
        map: the map that is trained.
        target: the map that makes targets, without a gradient: the same, an average of it, or a frozen one.
        sources: states and the teacher.
        options: options of the method.
        share: share of the training that is done, from 0 to 1.
        frozen: maps that stages of a training have left, by number of the stage.
        coupled: ends with which a rectified flow couples its starts, by number of the round.
        fake: a network that learns the law of what the map generates, for methods that have one.
    """

    map: AngleMap
    target: AngleMap
    sources: Sources
    options: dict[str, Any]
    share: float = 0.0
    frozen: dict[int, AngleMap] = field(default_factory=dict)
    coupled: dict[int, Tensor] = field(default_factory=dict)
    fake: AngleMap | None = None

    def pair(self, n: int, *, same: float = 0.0) -> tuple[Tensor, Tensor]:
        """Angles a >= b of the method's law."""
        return laws.two(self.sources, n, self.options["law"], same=same, ends=self.options["ends"])

    def held(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The target's map with numbers that do not train, which lets the gradient of its points through."""
        numbers = {name: value.detach() for name, value in self.target.named_parameters()}
        found: Tensor = torch.func.functional_call(self.target, numbers, (y, a, b))
        return found

    def velocity(self, y: Tensor, a: Tensor, noised: Noised | None = None) -> Tensor:
        """The velocity that the method learns from: the teacher's, that of the data, or the map's own on its diagonal."""
        teacher = self.options["teacher"]
        if teacher == "none" and noised is not None:
            return noised.velocity(a)
        if teacher == "own":
            with torch.no_grad():
                return self.target.velocity(y, a)
        return self.sources.velocity(y, a)


Residual = Callable[[Context, int], list[Term]]


def pairs(c: Context, n: int) -> list[Term]:
    """Regression on exact trajectories, between any two of their levels."""
    known, rows = c.sources.trajectories, c.sources.rows(n)
    begin, stop = c.sources.levels(n, c.options["ends"])
    a, b = known.angles[begin], known.angles[stop]
    return [Term(c.map(known.states[begin, rows], a, b) - known.states[stop, rows], span=(a, b))]


def ends(c: Context, n: int) -> list[Term]:
    """Regression on the two ends of exact trajectories: distillation."""
    known, rows = c.sources.trajectories, c.sources.rows(n)
    a, b = known.angles[:1].expand(n), known.angles[-1:].expand(n)
    return [Term(c.map(known.states[0, rows], a, b) - known.states[-1, rows], span=(a, b))]


def straight(c: Context, n: int) -> list[Term]:
    """Velocities of straight lines between coupled ends: the second and further rounds of a rectified flow.

    Lines are straight in the coordinates of rectified flow, ``y/(cos + sin)``, whose velocity F of ``average`` is.
    """
    known, rows = c.sources.trajectories, c.sources.rows(n)
    first, last = known.angles[0], known.angles[-1]
    start, end = known.states[0, rows] / (first.cos() + first.sin()), _coupled(c)[rows] / (last.cos() + last.sin())
    since, until = (angle.sin() / (angle.cos() + angle.sin()) for angle in (first, last))
    share = c.sources.uniform(n)
    share = torch.where(c.sources.uniform(n) < c.options["ends"] / 2, torch.ones_like(share), share)
    tau = (until + (since - until) * share)[:, None]
    x = start + (tau - since) * (end - start) / (until - since)
    a = torch.atan2(tau, 1 - tau)[:, 0]
    y = x * (a.cos() + a.sin())[:, None]
    return [Term(c.map.answers(y, a, a) - (end - start) / (until - since), span=(a, a))]


def _coupled(c: Context) -> Tensor:
    """The ends (P, D) that the starts of trajectories are coupled with: theirs, or those of the round before, by its flow."""
    known = c.sources.trajectories
    stage = max((k for k in c.frozen), default=-1)
    if stage < 0:
        return known.states[-1]
    if stage not in c.coupled:
        angles = torch.linspace(float(known.angles[0]), float(known.angles[-1]), _COUPLING_STEPS + 1).to(known.angles)
        y = known.states[0]
        with torch.no_grad():
            for a, b in itertools.pairwise(angles):
                y = c.frozen[stage](y, a.expand(len(y)), b.expand(len(y)))
        c.coupled[stage] = y
    return c.coupled[stage]


def diagonal(c: Context, n: int, a: Tensor | None = None) -> list[Term]:
    """Flow matching: the map's velocity on its diagonal is that of the data or the teacher."""
    a = laws.one(c.sources, n, c.options["law"]) if a is None else a
    noised = c.sources.noised(a)
    return [Term(c.map.velocity(noised.y, a) - c.velocity(noised.y, a, noised), span=(a, a))]


def consistency(c: Context, n: int) -> list[Term]:
    """One level of a consistency model: the ends from two neighbours of a grid are the same.

    The lower neighbour is a step of the teacher (distillation), or has the same data and noise (training).
    """
    angles = laws.levels(c.sources, _count(c), c.options["grid"])
    place = _place(c, n, angles)
    a, r = angles[place], angles[place + 1]
    noised = c.sources.noised(a)
    return [_compared(c, noised, a, r, _segment_end(c, r))]


def _count(c: Context) -> int:
    """The number of levels at this point of the training: constant, or doubling from ``fewest`` to ``levels``."""
    fewest, most = c.options.get("fewest", c.options["levels"]), c.options["levels"]
    if fewest >= most:
        return int(most)
    doublings = math.floor(math.log2(most / fewest))
    return int(min(fewest * 2 ** int(c.share * (doublings + 1)), most))


def _place(c: Context, n: int, angles: Tensor) -> Tensor:
    """Indices (n,) of steps of a grid: all alike, or as the method's lognormal law has them."""
    steps = len(angles) - 1
    if c.options["law"] == "uniform":
        return (c.sources.uniform(n) * steps).long().clamp(max=steps - 1)
    drawn = laws.one(c.sources, n, c.options["law"])
    return (torch.searchsorted(-angles, -drawn) - 1).clamp(0, steps - 1)


def _segment_end(c: Context, r: Tensor) -> Tensor:
    """The angle (n,) at which a consistency function ends: the last, or the lower end of the segment that r is in."""
    segments = c.options.get("segments", 1)
    first, last = c.sources.angles
    lower = torch.linspace(first, last, segments + 1, dtype=r.dtype, device=r.device)[1:]
    # An angle that is an end belongs to the segment above it, whose map is the identity there.
    return lower[torch.searchsorted(-lower, -r - 1e-6).clamp(max=segments - 1)]


def _compared(c: Context, noised: Noised, a: Tensor, r: Tensor, b: Tensor) -> Term:
    """Phi(y_a, a -> b) against that from y_r, the neighbour at r."""
    kind = c.options["teacher"]
    y = noised.at(r) if kind == "none" else c.sources.step(noised.y, a, r, c.options["step"])
    with torch.no_grad():
        target = c.target(y, r, b)
    weight: Tensor | float = 1.0
    if c.options.get("weight") == "gap":
        weight = 1 / (a.tan() - r.tan()).clamp(min=1e-6)
    return Term(c.map(noised.y, a, b) - target, weight, (a, b))


def easy_consistency(c: Context, n: int) -> list[Term]:
    """ECT: consistency training between noise levels t and r = t (1 - 2^-(stage + 1) (1 + 8 sigmoid(-t)))."""
    a = laws.two(c.sources, n, c.options["law"], ends=c.options["ends"])[0]
    r = _lower(a, int(c.share * c.options["stages"])).clamp(min=c.sources.angles[1])
    noised = c.sources.noised(a)
    return [_compared(c, noised, a, torch.minimum(r, a), torch.full_like(a, c.sources.angles[1]))]


def _lower(a: Tensor, stage: int) -> Tensor:
    """The angle r of ECT's lower noise level; its levels are those of data of scale 1/2."""
    level = a.tan()
    ratio = 1 - (1 + 8 * torch.sigmoid(-level / 2)) / 2.0 ** (stage + 1)
    return (level * ratio.clamp(min=0.0)).atan()


def truncated(c: Context, n: int) -> list[Term]:
    """TCM: a first stage of consistency training; then above the noise level of the data alone, the first stage below it."""
    border = torch.atan(torch.tensor(c.options["border"], dtype=c.sources.dtype, device=c.sources.device))
    if 0 not in c.frozen:
        return easy_consistency(c, n)
    edge = max(1, round(c.options["edge"] * n))
    a = laws.two(c.sources, n - edge, c.options["law"], ends=c.options["ends"])[0]
    a = torch.maximum(a, border)
    r = _lower(a, c.options["stages"] - 1)
    last = c.sources.angles[1]
    noised, end = c.sources.noised(a), torch.full_like(a, last)
    y = noised.at(r)
    with torch.no_grad():
        above, below = c.target(y, torch.maximum(r, border), end), c.frozen[0](y, torch.minimum(r, border), end)
        target = torch.where((r >= border)[:, None], above, below)
    at = border.expand(edge)
    here = c.sources.noised(at)
    with torch.no_grad():
        known = c.frozen[0](here.y, at, end[:1].expand(edge))
    return [
        Term(c.map(noised.y, a, end) - target, span=(a, end)),
        Term(c.map(here.y, at, end[:1].expand(edge)) - known, c.options["edge_weight"], (at, end[:1].expand(edge))),
    ]


def halves(c: Context, n: int) -> list[Term]:
    """The semigroup with the map's own steps: shortcut models at dyadic middles, PSD and SplitMeanFlow at any r."""
    diagonal_rows = round(c.options["same"] * n)
    if c.options["law"] == "dyadic":
        a, r, b = laws.dyadic(c.sources, n - diagonal_rows)
    else:
        a, b = c.pair(n - diagonal_rows)
        part = 0.5 if c.options["middle"] == "half" else c.sources.uniform(len(a))
        r = a + (b - a) * part
    y = c.sources.noised(a).y
    with torch.no_grad():
        target = c.target(c.target(y, a, r), r, b)
    terms = [Term(c.map(y, a, b) - target, _slopes(a, b, c), (a, b))]
    if diagonal_rows:
        law = "uniform" if c.options["law"] == "dyadic" else c.options["law"]
        at = laws.one(c.sources, diagonal_rows, law)
        noised = c.sources.noised(at)
        terms.append(Term(c.map.velocity(noised.y, at) - c.velocity(noised.y, at, noised), span=(at, at)))
    return terms


def _slopes(a: Tensor, b: Tensor, c: Context) -> Tensor | float:
    """Weights 1/(b - a)^2, which make differences of points those of velocities, bounded for short steps."""
    return 1 / ((a - b) ** 2 + 1e-3) if c.options.get("weight") == "slope" else 1.0


def progressive(c: Context, n: int) -> list[Term]:
    """Progressive distillation: one step of the map for two of the one before it, whose steps are half as long."""
    rounds = c.options["rounds"]
    stage = min(int(c.share * rounds), rounds - 1)
    angles = laws.levels(c.sources, 2 ** (rounds - 1 - stage), c.options["grid"])
    place = (c.sources.uniform(n) * (len(angles) - 1)).long().clamp(max=len(angles) - 2)
    a, b = angles[place], angles[place + 1]
    r = (a + b) / 2
    y = c.sources.noised(a).y
    with torch.no_grad():
        if stage == 0 or stage - 1 not in c.frozen:
            target = c.sources.step(c.sources.step(y, a, r, "heun"), r, b, "heun")
        else:
            before = c.frozen[stage - 1]
            target = before(before(y, a, r), r, b)
    return [Term(c.map(y, a, b) - target, span=(a, b))]


def _walked(c: Context, y: Tensor, a: Tensor, r: Tensor) -> Tensor:
    """The states to which several steps of the teacher take states y from angles a to r."""
    steps = c.options["steps"]
    for k in range(steps):
        y = c.sources.step(y, a + (r - a) * (k / steps), a + (r - a) * ((k + 1) / steps), c.options["step"])
    return y


def trajectory(c: Context, n: int) -> list[Term]:
    """CTM: the semigroup with a step of the teacher, compared after both are pushed to the end; denoising on the diagonal."""
    a, b = c.pair(n)
    # The teacher goes a part of the way, or all of it: without that, nothing holds the maps to inner times.
    r = a + (b - a) * torch.where(c.sources.uniform(n) < c.options["whole"], torch.ones_like(a), c.sources.uniform(n))
    last = torch.full_like(a, c.sources.angles[1])
    noised = c.sources.noised(a)
    y = _walked(c, noised.y, a, r)
    with torch.no_grad():
        target = c.target(c.target(y, r, b), b, last)
    mine = c.held(c.map(noised.y, a, b), b, last)
    ones = torch.ones_like(a)
    at = laws.one(c.sources, n, "lognormal")
    clean = c.sources.noised(at)
    denoised = c.map.answers(clean.y, at, at) - clean.d
    return [Term(mine - target, span=(a, b)), Term(denoised, c.options["denoising"] * ones, (at, at))]
