"""Training of DC-Solver's ratios, step by step, on few exact trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from diffode import grids
from diffode.arguments import check_count
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.flows import flow_states
from diffode.grid_files import TrainedGrid
from diffode.learned.grids.grid_training import choice_problem, test_problem, told
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request
from diffode.learned.trained import Trained
from diffode.paths import Path
from diffode.solvers.dc import POINTS, DCSolver
from diffode.solvers.solver import check_budget
from diffode.tableau import Tableau
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Smallest and largest ratio that is looked at.
_RATIOS = (0.0, 2.0)
#: Number of decimal digits of a ratio, and its accuracy.
_DIGITS, _ACCURACY = 4, 1e-4


@torch.no_grad()
def train_compensation(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    order: int = 3,
    variant: Literal["bh1", "bh2", "vary_coeff"] = "bh2",
    chart: str = "data",
    grid: str = "log_snr",
    points: int = 10,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Find the ratios of DC-Solver: in each step that with which the corrected state is nearest the exact one.

    The steps follow each other, and each ratio is found by Brent's method between 0 and 2 on the mean squared error, with the
    ratios before it; 1 is kept where nothing is better. No derivative of the field is taken.

    Args:
        field: a target or its name, or a field with a path.
        nfe: number of evaluations, which is that of the steps; there are ``nfe - 2`` ratios.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        order, variant, chart: options of UniPC; the order is 3 or 4.
        grid: named grid, which ends at the path's last level.
        points: number of trajectories; the publication takes ten.
        seconds: limit of time, the exact ends of all starts included, which it can't cut short; after it further ratios stay
            1.
        seed: seed of the starts; those of training and of the test are separate streams.
        progress: called with a :class:`Step` for every ratio, whose error is the root mean square at that step.
        stop: a function called after every ratio; if it returns True, further ratios stay 1.

    Returns:
        :class:`Trained`, whose solver is ``dc`` with its ratios, on the times of ``grid``. ``errors.before`` is that of UniPC,
        whose ratios, all 1, are kept where they are better on starts of their own.

    Raises:
        ArgumentError, BudgetError: for a wrong argument. NumericalError: if UniPC's states are not finite.

    Source: Zhao et al., arXiv 2409.03755, algorithm 1, there by AdamW.

    >>> trained = train_compensation("ring8", 6)
    >>> len(trained.solver.ratios), trained.errors.after < trained.errors.before
    (4, True)
    """
    # Imported where it is used: this module is loaded for its name alone whenever something of its package is.
    from scipy.optimize import minimize_scalar

    check_budget(nfe)
    if nfe < POINTS:
        raise ArgumentError(f"nfe must be at least {POINTS}, got {nfe}: the steps before the third have no ratio")
    check_count("points", points, 1)
    request = Request.of(
        "train_compensation", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop
    )
    plain = DCSolver(order=order, variant=variant, chart=chart)
    if plain.needs_statistics:
        raise ArgumentError(f"chart must be data or noise_log_snr, whose tables a spec can tell, got {chart!r}")
    times = grids.get(grid, request.path, nfe)
    if len(times) != nfe + 1 or float(times[-1]) != request.path.t_min:
        raise ArgumentError(f"grid must have {nfe} steps that end at the path's last level, which {grid!r} has not")
    choice, test = choice_problem(request), test_problem(request)
    start = request.field.first_noise((points, *request.shape), generator=request.stream("training"))
    exact = flow_states(request.field, start, times.tolist())
    history, tell = told(progress)
    ratios = [1.0] * max(nfe - POINTS + 1, 0)

    def table(chosen: Sequence[float]) -> Tableau:
        return replace(plain, ratios=tuple(chosen)).tableau(request.path, times)

    for k in range(len(ratios)):
        if request.limit.reached():
            break

        def loss(ratio: float, k: int = k) -> float:
            # A spec holds numbers without an exponent.
            written = table([*ratios[:k], round(float(ratio), _DIGITS), *ratios[k + 1 :]])
            at = k + POINTS
            state = _state(written, request.field, start, written.outputs[at])
            return float((state - exact[at]).square().flatten(1).sum(1).mean())

        usual = loss(1.0)
        if not math.isfinite(usual):
            raise NumericalError(f"the states of {plain.spec!r} are not finite in step {k + POINTS}; look at the field first")
        found = minimize_scalar(loss, bounds=_RATIOS, method="bounded", options={"xatol": _ACCURACY})
        best = min((usual, 1.0), (float(found.fun), float(found.x)))
        ratios[k] = round(best[1], _DIGITS)
        tell(Step("find the ratios", k + 1, len(ratios), math.sqrt(best[0]) / test.unit))
    origin, trained = (Stages.of(one).scaled(1 / test.unit) for one in (plain.tableau(request.path, times), table(ratios)))
    if not choice.error(trained) <= choice.error(origin):
        ratios, trained = [1.0] * len(ratios), origin
    solver = replace(plain, ratios=tuple(ratios))
    facts = request.facts(f"unipc:order={order} @ {grid}", test.error(origin), test.error(trained))
    rho = torch.tensor([request.path.rho(t) for t in times.tolist()], dtype=torch.float64)
    content = TrainedGrid(levels=rho, method="dc", solver=solver.spec, **facts.facts())
    return Trained(solver, nfe, content, content, times, history())


def _state(table: Tableau, field: Field, start: Tensor, row: int) -> Tensor:
    """The state of a row, without what follows it."""
    return next(state for number, state in table.walk(field, start) if number == row)
