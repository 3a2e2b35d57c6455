"""Training of jump tables: ladders of levels are looked at, and the best are trained to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffode.arguments import check_count
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import Fit, descend
from diffode.learned.fitting.problems import FEWEST, starts_for
from diffode.learned.heads.jump_fit import ABOVE_LAST, Numbers, ddim_numbers, error_of, normal_equations
from diffode.learned.heads.pairs import Pairs, pairs_of
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress
from diffode.learned.request import Request, held_out_count, with_gradients
from diffode.learned.trained import History, Trained
from diffode.maps import AngleClock
from diffode.paths import Path
from diffode.solvers.solver import check_budget
from diffode.solvers.trained.generators import Head, Jump, content_of_field
from diffode.solvers.trained.jumps import Jumps
from diffode.targets import Target

#: First and last inner levels, in units of the scale, of the ladders from which training begins.
_LADDERS = ((0.5, 0.1), (0.5, 0.3), (1.5, 0.03), (1.5, 0.1), (1.5, 0.3), (4.0, 0.1), (4.0, 0.3), (4.0, 1.0))
#: Number of steps of a look at a ladder, number of ladders that are trained on, and of their steps.
_LOOK_STEPS, _KEPT, _STEPS = 8, 3, 80
#: Number of starts of a look as a share of all; at least this many.
_LOOK_PART, _FEWEST = 0.25, 128
#: Number of coordinates of all starts together.
_NUMBERS = 32_768
#: Number of derivatives for each sample, if it has more dimensions than that.
_DIRECTIONS = 4
#: Number of steps without a smaller held-out error that end a training.
_PATIENCE = 15
#: Share of a limit of seconds after which no further ladder is looked at.
_LOOK_SHARE = 0.4


class Fitted(NamedTuple):
    """A jump table after its training, the problems that it was trained on, and what it began from."""

    numbers: Numbers
    begun: Numbers
    fit: Fit
    pairs: Pairs


@with_gradients
def train_jump(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    points: int | None = None,
    steps: int = _STEPS,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train a jump table: all its N(N + 3)/2 numbers, and its N levels, by Gauss-Newton on the mean end-point error.

    Args:
        field: a target or its name, or a field with a path, differentiable in x.
        nfe: number of evaluations, all of them at inner levels.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        points: number of starts, by default as many as :func:`diffode.learned.train_table` takes, or 32,768 over the dimension.
        steps: largest number of steps from one ladder of levels.
        seconds: limit of time, in seconds or as a :class:`Limit`, exact ends included, which it can't cut short.
        seed: seed of the starts; those of training, held out and of the test are separate streams.
        progress: called with every :class:`Step`.
        stop: a function called after every step; if it returns True, the best table so far is returned.

    Returns:
        :class:`Trained`, whose solver is ``jump``; ``errors.before`` is that of the table in which each step is DDIM's for the
        departure from the Gaussian flow, on the best ladder.

    Raises:
        ArgumentError, BudgetError: for a wrong argument. FieldError: if the field can't be differentiated.
        NumericalError: if no table begins with finite states.

    >>> trained = train_jump("bimodal1d", 1, points=1024)
    >>> trained.errors.after < 0.06  # the best of hundreds of published samplers: 0.73
    True
    """
    check_budget(nfe)
    request = Request.of("train_jump", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    count = points if points is not None else jump_points(request, nfe)
    check_count("points", count, 8)
    check_count("steps", steps, 1)
    request.check_gradient()
    fitted = fit_jump(request, nfe, count, steps, request.limit)
    test = pairs_of(request, fitted.pairs.clock, held_out_count(count), "test")
    jumps = described(
        fitted.numbers.jumps(fitted.pairs),
        request,
        fitted.pairs,
        fitted.fit.training[-1],
        error_of(fitted.begun, test),
        error_of(fitted.numbers, test),
        "DDIM on the departure from a Gaussian",
    )
    history = History(fitted.fit.training, fitted.fit.held_out, len(fitted.fit.training) - 1)
    return trained_jumps(jumps, history)


def jump_points(request: Request, nfe: int) -> int:
    """The number of starts unless it is given: that of tables, but less in many dimensions, where each says more."""
    return min(starts_for(request.field, request.width, nfe), max(_NUMBERS // request.width, FEWEST))


def fit_jump(request: Request, nfe: int, count: int, steps: int, limit: Limit) -> Fitted:
    """The best jump table of a request, on ``count`` starts."""
    clock = AngleClock.of(request.field, request.width)
    pairs, held_out = (
        pairs_of(request, clock, n, stream) for n, stream in ((count, "training"), (held_out_count(count), "held out"))
    )
    few = pairs.part(slice(min(max(round(_LOOK_PART * count), _FEWEST), count)))
    directions = request.stream("directions")

    def fitted(on: Pairs, begin: Numbers, stage: str, most: int, within: Limit) -> Fit | None:
        try:
            return descend(
                begin.vector(),
                lambda values: error_of(Numbers.of(values, nfe), on),
                lambda values: error_of(Numbers.of(values, nfe), held_out),
                lambda values: normal_equations(Numbers.of(values, nfe), on, _DIRECTIONS, directions),
                steps=most,
                limit=within,
                patience=_PATIENCE,
                stage=stage,
                progress=request.progress,
                confined=lambda values: Numbers.of(values, nfe).confined(*pairs.levels).vector(),
            )
        except NumericalError:
            # Another ladder may not overflow.
            return None

    looked: list[tuple[float, Tensor, Numbers]] = []
    within = limit.part(_LOOK_SHARE)
    for number, levels in enumerate(_ladders(pairs, nfe), 1):
        if looked and within.reached():
            break
        begun = ddim_numbers(pairs, levels)
        found = fitted(few, begun, f"look at levels {number}", _LOOK_STEPS, within)
        if found is not None:
            looked.append((min(found.held_out), found.values, begun))
    if not looked:
        raise NumericalError(f"every jump table overflows on {request.target}; look at the field first")
    best: Fitted | None = None
    for number, (_, values, begun) in enumerate(sorted(looked, key=lambda one: one[0])[:_KEPT], 1):
        if best is not None and limit.reached():
            break
        found = fitted(pairs, Numbers.of(values, nfe), f"train the table {number}", steps, limit)
        if found is not None and (best is None or min(found.held_out) < min(best.fit.held_out)):
            best = Fitted(Numbers.of(found.values, nfe), begun, found, pairs)
    if best is None:
        raise NumericalError(f"every jump table overflows on {request.target}; look at the field first")
    return best


def _ladders(pairs: Pairs, nfe: int) -> Iterator[Tensor]:
    """Inner levels, (N,) each, to begin from: with one evaluation the first rungs alone."""
    least = ABOVE_LAST * pairs.levels[1]
    rungs = dict.fromkeys((high, high) if nfe == 1 else (high, low) for high, low in _LADDERS)
    for high, low in rungs:
        ends = [min(max(rung * pairs.clock.scale, least), pairs.levels[0]) for rung in (high, low)]
        yield torch.logspace(math.log10(ends[0]), math.log10(ends[1]), nfe, dtype=torch.float64)


def trained_jumps(jumps: Jumps, history: History) -> Trained:
    """The result of a training that gave a jump table, with heads or without."""
    if jumps.facts is None:
        raise ArgumentError("jumps of a training have facts")
    solver = Head(jumps=jumps) if jumps.heads else Jump(jumps=jumps)
    return Trained(solver, jumps.nfe, jumps.facts, jumps, None, history)


def described(
    jumps: Jumps, request: Request, pairs: Pairs, training: float, before: float, after: float, begun_from: str
) -> Jumps:
    """Jumps with all that their training says of itself."""
    return Jumps(
        jumps.clock, jumps.levels, jumps.kept, jumps.weights, jumps.heads, content_of_field(request.field), pairs.made,
        pairs.error, training, request.facts(begun_from, before if math.isfinite(before) else None, after),
    )  # fmt: skip
