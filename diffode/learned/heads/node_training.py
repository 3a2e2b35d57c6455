"""Maps on nodes: the exact ends of a grid of starts, a yardstick for generators with networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from diffode.arguments import check_count, check_number
from diffode.errors import ArgumentError, BudgetError
from diffode.fields import Field
from diffode.flows import flow_states
from diffode.learned.arguments import finite_levels
from diffode.learned.heads.pairs import pairs_of
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request
from diffode.learned.trained import History, Trained
from diffode.maps import AngleClock
from diffode.paths import Path
from diffode.solvers.solver import check_budget, check_choice
from diffode.solvers.trained.generators import OfNodes, content_of_field
from diffode.solvers.trained.nodes import FEWEST_NODES, MOST_DIMENSIONS, Nodes
from diffode.targets import Target

#: Number of starts on which the error is measured, unless it is given.
_TEST = 4096
#: Distance of the outermost nodes from the middle, in standard deviations: one start of two million lies outside.
_SPAN = 5.0
#: Largest number of nodes of a grid.
_MOST_NODES = 10**6


def train_nodes(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    count: int = 257,
    kind: Literal["linear", "cubic"] | None = None,
    span: float = _SPAN,
    points: int = _TEST,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Compute the exact map from noise to data at nodes, in one or two dimensions.

    Args:
        field: a target or its name, or a field with a path.
        nfe: 1, since a run costs one call of the map; the field is not asked.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        count: number of nodes along a dimension.
        kind: ``"cubic"``, the default in one dimension, where it is monotone; or ``"linear"``, the default in two.
        span: distance of the outermost nodes from the middle, in standard deviations of the start.
        points: number of starts on which the error is measured.
        seconds: limit of time, which cuts nothing short: the nodes are one computation.
        seed: seed of the starts on which the error is measured.
        progress: called with one :class:`Step`.
        stop: a function that may ask for the end, which there is at once anyway.

    Returns:
        :class:`Trained`, whose solver is ``nodes``; ``errors.before`` is that of the flow of N(m, c^2 I).

    Raises:
        ArgumentError: for a wrong argument, or a field in more than two dimensions. BudgetError: for another ``nfe`` than 1.

    >>> train_nodes("bimodal1d", 1, points=512).errors.after < 0.01
    True
    """
    check_budget(nfe)
    if nfe != 1:
        raise BudgetError(f"a map on nodes costs one call: nfe must be 1, got {nfe}")
    request = Request.of("train_nodes", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    width, scale = request.width, request.field.scale
    if width > MOST_DIMENSIONS:
        raise ArgumentError(f"nodes are for fields in one or two dimensions, this one has {width}: train head or jump instead")
    check_count("count", count, FEWEST_NODES, _MOST_NODES if width == 1 else math.isqrt(_MOST_NODES))
    check_choice("kind", kind, (None, "linear", "cubic"))
    check_number("span", span, 0.1, 40)
    check_count("points", points, 8)
    clock, levels = AngleClock.of(request.field, width), finite_levels(request.path)
    chosen = kind if kind is not None else "cubic" if width == 1 else "linear"
    shape = (*(count,) * width, width)
    empty = Nodes(clock, levels, float(span), torch.zeros(shape, dtype=torch.float64), chosen)
    starts, on = empty.starts(), request.path
    x = (starts * on.alpha(on.t_max)).reshape(-1, *request.shape)
    ends = flow_states(request.field, x, (on.t_max, on.t_min))[-1].flatten(1) / on.alpha(on.t_min)
    departures = ((ends - empty.run(starts)) / scale).reshape(shape)
    test = pairs_of(request, clock, points, "test")
    z, wanted = clock.outward(test.start, levels[0]), test.end * scale + clock.mean

    def error(nodes: Nodes) -> float:
        return float((nodes.run(z) - wanted).norm(dim=1).mean()) / scale

    before = error(empty)
    after = error(Nodes(clock, levels, float(span), departures, chosen))
    request.tell(Step("compute the nodes", 1, 1, after))
    facts = request.facts("the flow of a Gaussian", before, after)
    nodes = Nodes(clock, levels, float(span), departures, chosen, content_of_field(request.field), facts)
    return Trained(OfNodes(nodes=nodes), 1, facts, nodes, None, History((before, after), (), 1))
