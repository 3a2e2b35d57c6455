"""Training of DC-Solver's ratios, step by step, on few exact trajectories: for one number of evaluations, or for many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffode import grids
from diffode.arguments import check_count
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field, GuidedField
from diffode.flows import flow_states
from diffode.grid_files import TrainedGrid
from diffode.learned.grids.grid_training import choice_problem, test_problem, told
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request
from diffode.learned.trained import Trained
from diffode.paths import Path
from diffode.solvers.dc import POINTS, DCSolver
from diffode.solvers.solver import check_budget
from diffode.solvers.trained.ratios import DIGITS, RANGE, Ratios, RegressedDC
from diffode.tableau import Tableau
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Accuracy of a ratio.
_ACCURACY = 1e-4
#: How far aside a ratio is moved to see what it does.
_ASIDE = 0.05


@torch.no_grad()
def train_compensation(
    field: Field | Target | str,
    nfe: int | Sequence[int],
    *,
    weights: float | Sequence[float] = (),
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
    ratios before it; 1 is kept where nothing is better. No derivative of the field is taken. For several numbers of evaluations
    or weights of guidance each pair is trained, and a polynomial is fitted to all ratios (:class:`Ratios`), which gives those
    of the numbers and weights between them.

    Args:
        field: a target or its name, or a field with a path; with ``weights`` a guided one.
        nfe: number of evaluations, which is that of the steps; there are ``nfe - 2`` ratios. Or several numbers.
        weights: weights of guidance that take the place of the field's own.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        order, variant, chart: options of UniPC; the order is 3 or 4.
        grid: named grid, which ends at the path's last level.
        points: number of trajectories; the publication takes ten.
        seconds: limit of time, the exact ends of all starts included, which it can't cut short; after it further ratios stay
            1, and of several trainings those are left out that it cut.
        seed: seed of the starts; those of training and of the test are separate streams.
        progress: called with a :class:`Step` for every ratio, whose error is the root mean square at that step.
        stop: a function called after every ratio; if it returns True, the training ends as at the limit.

    Returns:
        :class:`Trained`. For one number of evaluations its solver is ``dc`` with its ratios, on the times of ``grid``; for
        several it is ``dc_regressed``, which lays this grid itself, and ``trained.solver.solver(9)`` is ``dc`` with the ratios
        for 9. ``errors.before`` is that of UniPC; the first number and weight decide whose errors are told. The ratios for one
        number are all 1, which is UniPC, where that is better on starts of their own.

    Raises:
        ArgumentError, BudgetError: for a wrong argument. NumericalError: if UniPC's states are not finite.

    Source: Zhao et al., arXiv 2409.03755, algorithm 1, there by AdamW, and its cascade polynomial regression.

    >>> trained = train_compensation("ring8", 6)
    >>> len(trained.solver.ratios), trained.errors.after < trained.errors.before
    (4, True)
    """
    budgets = _budgets(nfe)
    check_count("points", points, 1)
    request = Request.of(
        "train_compensation", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop
    )
    plain = DCSolver(order=order, variant=variant, chart=chart)
    if plain.needs_statistics:
        raise ArgumentError(f"chart must be data or noise_log_snr, whose tables a spec can tell, got {chart!r}")
    fields = _weighed(request.field, weights)
    several = not isinstance(nfe, int) or weights != ()
    laid = {budget: _times(grid, request.path, budget, several=several) for budget in budgets}
    request = replace(request, field=next(iter(fields.values())))
    choice = None if several else choice_problem(request)
    test, total = test_problem(request), len(fields) * sum(budget - POINTS + 1 for budget in budgets)
    history, tell = told(progress)
    found: dict[tuple[int, float], tuple[float, ...]] = {}
    strengths: dict[tuple[int, float], tuple[float, ...]] = {}
    number = itertools.count(1)

    def say(error: float) -> None:
        tell(Step("find the ratios", next(number), total, error / test.unit))

    for weight, budget in itertools.product(fields, budgets):
        search = Search.of(replace(request, field=fields[weight]), plain, laid[budget], points)
        ratios = search.ratios(say)
        if not found or request.limit.stopped_by == "counts":
            found[budget, weight] = ratios
            strengths[budget, weight] = search.strengths(ratios) if several else ()
        if request.limit.stopped_by != "counts":
            break
    times, solver = laid[budgets[0]], replace(plain, ratios=next(iter(found.values())))
    origin, trained = (Stages.of(one.tableau(request.path, times)).scaled(1 / test.unit) for one in (plain, solver))
    if choice is not None and not choice.error(trained) <= choice.error(origin):
        solver, trained = replace(plain, ratios=(1.0,) * len(solver.ratios)), origin
    facts = request.facts(f"unipc:order={order} @ {grid}", test.error(origin), test.error(trained)).facts()
    rho = torch.tensor([request.path.rho(t) for t in times.tolist()], dtype=torch.float64)
    if several:
        ends = (float(rho[0]), float(rho[-1]))
        ratios_found = Ratios(trained=found, strengths=strengths, solver=plain.spec, grid=grid, ends=ends, **facts)
        chosen = next(iter(fields)) if len(ratios_found.weights) > 1 else None
        regressed = RegressedDC(ratios=ratios_found, weight=chosen)
        return Trained(regressed, budgets[0], ratios_found, ratios_found, history=history())
    content = TrainedGrid(levels=rho, method="dc", solver=solver.spec, **facts)
    return Trained(solver, budgets[0], content, content, times, history())


def _budgets(nfe: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of evaluations, each checked."""
    budgets = tuple(nfe) if isinstance(nfe, Sequence) else (nfe,)
    for budget in budgets:
        check_budget(budget)
        if budget < POINTS:
            raise ArgumentError(f"nfe must be at least {POINTS}, got {budget}: the steps before the third have no ratio")
    if not budgets or len(set(budgets)) < len(budgets):
        raise ArgumentError(f"nfe must be one number of evaluations, or different ones, got {nfe!r:.60}")
    return budgets


def _times(grid: str, path: Path, nfe: int, *, several: bool) -> Tensor:
    """The times of a grid with ``nfe`` steps to the path's last level."""
    if several and not grids.is_rule(grid):
        raise ArgumentError(f"grid must be a rule that has any number of steps, such as log_snr, got {grid!r}")
    times = grids.get(grid, path, nfe)
    if len(times) != nfe + 1 or float(times[-1]) != path.t_min:
        raise ArgumentError(f"grid must have {nfe} steps that end at the path's last level, which {grid!r} has not")
    return times


def _weighed(field: Field, weights: float | Sequence[float]) -> dict[float, Field]:
    """The field with each weight of guidance; its own where none are given."""
    given: tuple[Any, ...] = tuple(weights) if isinstance(weights, list | tuple) else (weights,)
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in given):
        raise ArgumentError(f"weights must be numbers, those of guidance, as 1+2+4 in a spec, got {weights!r:.60}")
    if not given:
        own = field.weight.constant if isinstance(field, GuidedField) else None
        return {1.0 if own is None else own: field}
    if not isinstance(field, GuidedField):
        raise ArgumentError(
            "weights are those of a guided field: name a label, as 'ring8 guided label=three,weight=1' "
            "(--guide label=three,weight=1)"
        )
    fields: dict[float, Field] = {float(weight): field.weighing(weight) for weight in given}
    if len(fields) < len(given):
        raise ArgumentError(f"weights must be different, got {weights!r:.60}")
    return fields


@dataclass(frozen=True)
class Search:
    """The search for the ratios of one field on one grid.

    Attributes:
        request: the training, with the field.
        plain: the solver without ratios.
        times: the grid.
        start: the starts (points, *shape).
        exact: their exact states at the times, (steps + 1, points, *shape).
    """

    request: Request
    plain: DCSolver
    times: Tensor
    start: Tensor
    exact: Tensor

    @classmethod
    def of(cls, request: Request, plain: DCSolver, times: Tensor, points: int) -> Search:
        """The search on ``points`` exact trajectories."""
        start = request.field.first_noise((points, *request.shape), generator=request.stream("training"))
        return cls(request, plain, times, start, flow_states(request.field, start, times.tolist()))

    def ratios(self, say: Callable[[float], None]) -> tuple[float, ...]:
        """The ratios, one after the other, of whose errors ``say`` is told; 1 for those that a limit leaves out."""
        # Imported where it is used: this module is loaded for its name alone whenever something of its package is.
        from scipy.optimize import minimize_scalar

        ratios = [1.0] * (len(self.times) - POINTS)
        for k in range(len(ratios)):
            if self.request.limit.reached():
                break

            def loss(ratio: float, k: int = k) -> float:
                off = self._state(ratios, k, ratio) - self.exact[k + POINTS]
                return float(off.square().flatten(1).sum(1).mean())

            usual = loss(1.0)
            if not math.isfinite(usual):
                raise NumericalError(
                    f"the states of {self.plain.spec!r} are not finite in step {k + POINTS}; look at the field first"
                )
            found = minimize_scalar(loss, bounds=RANGE, method="bounded", options={"xatol": _ACCURACY})
            best = min((usual, 1.0), (float(found.fun), float(found.x)))
            ratios[k] = round(best[1], DIGITS)
            say(math.sqrt(best[0]))
        return tuple(ratios)

    def strengths(self, ratios: Sequence[float]) -> tuple[float, ...]:
        """How far each ratio moves the state of its step, per unit of the ratio, in units of the spread of the states there."""
        field, path = self.request.field, self.request.path
        found = []
        for k, ratio in enumerate(ratios):
            low, high = max(ratio - _ASIDE, RANGE[0]), ratio + _ASIDE
            moved = (self._state(ratios, k, high) - self._state(ratios, k, low)) / (high - low)
            time = float(self.times[k + POINTS])
            spread = math.hypot(path.sigma(time), path.alpha(time) * field.scale)
            found.append(float(moved.square().flatten(1).sum(1).mean().sqrt()) / spread)
        return tuple(found)

    def _state(self, ratios: Sequence[float], k: int, ratio: float) -> Tensor:
        """The states after the step of ratio k, with another in its place and those before it."""
        # A spec holds numbers without an exponent.
        chosen = (*ratios[:k], round(float(ratio), DIGITS), *[1.0] * (len(ratios) - k - 1))
        table: Tableau = replace(self.plain, ratios=chosen).tableau(self.request.path, self.times)
        wanted = table.outputs[k + POINTS]
        return next(state for row, state in table.walk(self.request.field, self.start) if row == wanted)
