"""Training of heads: on a jump table, random features in few dimensions, perceptrons in many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from diffode.arguments import check_count
from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import descend
from diffode.learned.heads import features, networks
from diffode.learned.heads.jump_fit import Numbers, error_of, run
from diffode.learned.heads.jump_training import Fitted, described, fit_jump, jump_points, trained_jumps
from diffode.learned.heads.networks import Descent, Perceptrons
from diffode.learned.heads.pairs import Pairs, pairs_of
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress
from diffode.learned.request import Request, held_out_count, with_gradients
from diffode.learned.trained import History, Trained
from diffode.paths import Path
from diffode.solvers.solver import check_budget, check_choice
from diffode.solvers.trained.jumps import Jumps
from diffode.targets import Target

#: Largest number of dimensions in which heads are random features unless it is said otherwise.
_FEW_DIMENSIONS = 3
#: Bounds of the widths of random layers, in units of the inputs' spread, of which the best is taken.
_WIDTHS = ((0.5, 5.0), (1.0, 20.0), (3.0, 60.0))
#: Number of random units of a head for up to two evaluations, and for more, whose Gram matrices are many.
_UNITS, _FEWER_UNITS = 400, 300
#: Number of Gauss-Newton steps of a look at widths, and the share of the starts that it takes.
_LOOK_STEPS, _LOOK_PART = 3, 0.25
#: Number of Gauss-Newton steps of the training, times the number of evaluations and that of coordinates, which a step costs.
_FEATURE_STEPS = 96
#: Number of starts from which those with the largest errors are drawn, relative to the number to train on.
_DRAWN_FROM = 8
#: Damping of the first step of Gauss-Newton, and smallest entry of the curvature's diagonal, relative to the largest.
_DAMPING, _LEAST_CURVATURE = 1e-7, 1e-12
#: Number of derivatives for each sample, if it has more dimensions than that.
_DIRECTIONS = 4
#: Number of steps without a smaller held-out error that end a training.
_PATIENCE = 8
#: Numbers of starts to train on, of random features and of perceptrons.
_FEATURE_POINTS, _NETWORK_POINTS = 8192, 100_352
#: Hidden layers of a perceptron, and units of each.
_LAYERS, _HIDDEN = 3, 192
#: The training of the last head, when it is the only one and when others follow, and of all heads.
_ALONE, _LAST, _TOGETHER = Descent(4000, 1024, 5e-3), Descent(2000, 1024, 5e-3), Descent(400, 256, 7e-4)
#: The level of the one evaluation of a perceptron, relative to that of the jump table. Short trials of levels mislead: they
#: like lower ones, which are worse after thousands of steps. In few dimensions the level of the table stays.
_HIGHER = 1.25
#: Shares of a limit of seconds after which pairs, and the training of the last head, end.
_PAIRS_SHARE, _LAST_SHARE = 0.5, 0.7


@with_gradients
def train_head(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    kind: Literal["features", "network"] | None = None,
    units: int | None = None,
    layers: int = _LAYERS,
    points: int | None = None,
    steps: int | None = None,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train a jump table, and then a head for each of its evaluations, which is zero at the start.

    Heads of random features are trained by Gauss-Newton together with the table and its levels, on starts that are drawn by the
    errors of the table. Perceptrons are trained by SOAP, the last one first, then all through the field.

    Args:
        field: a target or its name, or a field with a path, differentiable in x.
        nfe: number of evaluations, all of them at inner levels.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        kind: ``"features"``, the default in up to three dimensions, or ``"network"``.
        units: number of units of a head: of its random layer, by default 400 (300 from three evaluations on), or of each hidden
            layer of a perceptron, by default 192.
        layers: number of hidden layers of a perceptron.
        points: number of starts, by default 8,192 for features, 100,352 for perceptrons.
        steps: largest number of steps: of Gauss-Newton for features, by default 96 over ``nfe`` and the dimension; of SOAP for
            perceptrons, where all heads together take as many steps more.
        seconds: limit of time, in seconds or as a :class:`Limit`, exact ends included, which it can't cut short.
        seed: seed of the starts and layers; starts of training, held out and of the test are separate streams.
        progress: called with every :class:`Step`.
        stop: a function called after every step; if it returns True, the best so far is returned.

    Returns:
        :class:`Trained`, whose solver is ``head``; ``errors.before`` is that of the jump table without heads.

    Raises:
        ArgumentError, BudgetError: for a wrong argument. FieldError: if the field can't be differentiated.
        NumericalError: if no table begins with finite states.

    >>> trained = train_head("bimodal1d", 1, units=60, points=512, steps=5)
    >>> trained.errors.after < trained.errors.before / 3
    True
    """
    check_budget(nfe)
    check_choice("kind", kind, (None, "features", "network"))
    request = Request.of("train_head", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    for name, value, least, most in (("points", points, 8, 10**7), ("steps", steps, 1, 10**7), ("units", units, 1, 10**4)):
        if value is not None:
            check_count(name, value, least, most)
    check_count("layers", layers, 1, 12)
    request.check_gradient()
    few = request.width <= _FEW_DIMENSIONS if kind is None else kind == "features"
    count = (_FEATURE_POINTS if few else _NETWORK_POINTS) if points is None else points
    table = fit_jump(request, nfe, min(count, jump_points(request, nfe)), 80, request.limit)
    held_out = held_out_count(count)
    if few:
        units = (_UNITS if nfe <= 2 else _FEWER_UNITS) if units is None else units
        jumps, pairs, history = _with_features(
            request, table, units, count, steps or max(1, _FEATURE_STEPS // (nfe * request.width))
        )
    else:
        jumps, pairs, history = _with_networks(request, table, units or _HIDDEN, layers, count, steps)
    test = pairs_of(request, pairs.clock, held_out, "test")
    numbers = Numbers(jumps.kept, jumps.weights, jumps.levels[1:-1])
    with torch.no_grad():
        after = test.mean_distance(run(numbers, test, jumps.heads))
        training = pairs.mean_distance(run(numbers, pairs, jumps.heads)) if few else history.error[-1]
    done = described(jumps, request, pairs, training, error_of(table.numbers, test), after, "the jump table without heads")
    return trained_jumps(done, history)


def _with_features(request: Request, table: Fitted, units: int, count: int, steps: int) -> tuple[Jumps, Pairs, History]:
    """A table with heads of random features, the pairs on which it was trained, and the errors of its steps."""
    clock, limit = table.pairs.clock, request.limit
    every = pairs_of(request, clock, _DRAWN_FROM * count, "pairs")
    held_out = pairs_of(request, clock, held_out_count(count) * 4, "held out")
    with torch.no_grad():
        distance = every.distance(run(table.numbers, every))
    pairs = every.hardest(distance, count, request.stream("hardest"))
    drawn, directions = request.stream("layers"), request.stream("directions")
    inputs = _inputs(table.numbers, pairs)

    def fitted(begin: features.Featured, on: Pairs, most: int, stage: str) -> tuple[float, features.Featured, History]:
        found = descend(
            begin.vector(),
            lambda values: begin.of(values).error(on),
            lambda values: begin.of(values).error(held_out),
            lambda values: features.normal_equations(begin.of(values), on, _DIRECTIONS, directions),
            damping=_DAMPING,
            least=_LEAST_CURVATURE,
            steps=most,
            limit=limit,
            patience=_PATIENCE,
            stage=stage,
            progress=request.progress,
            confined=lambda values: begin.of(values).confined(*pairs.levels).vector(),
        )
        history = History(found.training, found.held_out, len(found.training) - 1)
        return min(found.held_out), begin.of(found.values), history

    few = pairs.part(slice(max(round(_LOOK_PART * count), 1)))
    looked: list[tuple[float, features.Featured, History]] = []
    for number, widths in enumerate(_WIDTHS, 1):
        if looked and limit.reached():
            break
        drawn_layers = tuple(features.drawn_layer(one, units, widths, drawn) for one in inputs)
        nothing = tuple(torch.zeros(units + 1, request.width, dtype=torch.float64) for _ in inputs)
        begin = features.Featured(table.numbers, drawn_layers, nothing)
        looked.append(fitted(begin, few, min(steps, _LOOK_STEPS), f"look at widths {number}"))
    error, best, history = min(looked, key=lambda one: one[0])
    if not limit.reached():
        further = fitted(best, pairs, steps, "train the heads")
        if further[0] <= error:
            _, best, history = further
    return best.jumps(pairs), pairs, history


def _inputs(numbers: Numbers, pairs: Pairs) -> list[Tensor]:
    """The inputs of every head, (B, (k + 2) D) each, on the states of the table without heads."""
    found: list[Tensor] = []

    def noted(inputs: Tensor) -> Tensor:
        found.append(inputs)
        return torch.zeros_like(inputs[:, : pairs.start.shape[1]])

    with torch.no_grad():
        run(numbers, pairs, [noted] * numbers.nfe)
    return found


def _with_networks(
    request: Request, table: Fitted, hidden: int, layers: int, count: int, steps: int | None
) -> tuple[Jumps, Pairs, History]:
    """A table with perceptrons, the pairs on which it was trained, and the errors of its steps."""
    clock, limit, nfe = table.pairs.clock, request.limit, table.numbers.nfe
    pairs = pairs_of(request, clock, count, "pairs", stop=limit.part(_PAIRS_SHARE).reached).single()
    held_out = pairs_of(request, clock, held_out_count(count), "held out").single()
    weights, rows = request.stream("layers"), request.stream("rows")

    def descent(usual: Descent) -> Descent:
        return usual._replace(steps=usual.steps if steps is None else steps, batch=min(usual.batch, len(pairs.start)))

    def last(begin: Perceptrons, usual: Descent, within: Limit) -> tuple[Perceptrons, list[tuple[float, float]]]:
        return networks.train_last(begin, pairs, held_out, descent(usual), rows, within, request.progress)

    best = networks.begun(table.numbers, request.width, hidden, layers, weights)
    told: list[tuple[float, float]] = []
    if nfe == 1:
        factor = _HIGHER if request.width > _FEW_DIMENSIONS else 1.0
        higher = replace(table.numbers, levels=table.numbers.levels * factor).confined(*table.pairs.levels)
        best, told = last(Perceptrons(higher.vector().float(), best.heads), _ALONE, limit)
    else:
        best, told = last(best, _LAST, limit.part(_LAST_SHARE))
        if not limit.reached():
            best, more = networks.train_together(
                best, pairs, held_out, descent(_TOGETHER), rows, limit, request.progress
            )  # fmt: skip
            told += more
    training, checked = zip(*told, strict=True)
    return best.jumps(pairs), pairs, History(training, checked, len(told))
