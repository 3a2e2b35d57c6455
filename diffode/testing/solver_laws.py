"""The laws of a solver, which say that its claims are true and that its runs depend on the field alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.errors import ArgumentError, BudgetError
from diffode.fields import ExactField, Field, exact_field
from diffode.flows import reference
from diffode.paths import get as get_path
from diffode.solvers import DirectSolver, Solver, TableSolver, solve
from diffode.specs import parse_spec
from diffode.testing.laws import Largest, Law, kept, tried
from diffode.verify import Check, OrderEstimate, Report, gaussian
from diffode.verify import order as measured_order

#: Paths on which tables are written, one of each kind.
_PATHS = ("edm", "vp", "rectified_flow")
#: Families of grids on which tables are written.
_GRIDS = ("karras", "log_snr", "time_quadratic")
#: Numbers of steps of the tables.
_STEPS = (1, 2, 5, 12)
#: Path of runs that are compared; its range is narrow, since some solvers choose their steps and take many.
_NARROW = "edm:sigma_min=0.05,sigma_max=20"
#: Budgets, in evaluations, that a solver is given.
_BUDGETS = range(1, 17)
#: Largest amount by which a measured order may fall short of the stated one.
_SHORT = 0.35
#: Amount by which a measured order exceeds the stated one before the check becomes a remark.
_ABOVE = 0.6
#: Numbers of steps at which an order is measured, and whether the first step is ramped. The next entry is used if the order
#: falls short of the stated one, but by less than ``_WITHIN_REACH``.
_NESTED_STEPS = (((24, 48, 96, 192), False), ((64, 128, 256, 512), True), ((256, 512, 1024), True))
#: Largest shortfall of an order that finer grids may make up for.
_WITHIN_REACH = 0.9
#: Numbers of steps at which the order of a solver that follows the field itself is measured.
_FOLLOWED_STEPS = (16, 32, 64, 128, 256)
#: Number of starts for an order.
_STARTS = 8
#: Largest ratio of the errors of a law at twice the steps and before.
_LEFT = 0.75
#: Error that need not fall with the steps, in units of the data's scale.
_HARMLESS = 1e-6
#: Variances of the Gaussian on which the law of a solver's output is computed.
_VARIANCES = (1.0, 0.25)
#: Mean of that Gaussian.
_MEAN = 0.7
#: Numbers of steps at which the law is computed.
_LAW_STEPS = (40, 80, 160, 320)
#: Largest relative rounding of a run in float64.
_ROUNDING = 1e-9
#: Largest relative difference of a row between batches, if the solver chooses its steps.
_OWN_STEPS = 1e-2
#: Largest difference of a run in float32 from that in float64, in units of the data's scale.
_SINGLE = 1e-2


def check_solver(solver: Solver | type[Solver] | Callable[..., Any] | str, *, seed: int = 0) -> Report:
    """Hold a solver to the laws that every solver keeps; see docs/verification.md for the list.

    Args:
        solver: a solver, its class (made with its defaults), its spec, or a function ``(field, x, times)``.
        seed: seed of the starts and the noise.

    Returns:
        The report of all checks. A law that does not apply (the order, if none is stated; tables, if none are written) is a
        remark.

    Raises:
        LawError: if a law is broken; the message names it, the numbers and the place.

    >>> check_solver("heun:chart=noise").passed
    True
    """
    if inspect.isclass(solver):
        if not issubclass(solver, Solver):
            raise ArgumentError(f"solver must be a subclass of diffode.solvers.Solver, got {solver.__name__}")
        solver = solver()
    recipe = solvers.get(solver)
    trial = _Trial(recipe, seed)
    checks = [tried("runs", trial.runs)]
    laws: dict[str, Law] = {"spec and repr": lambda: _spec(recipe)}
    if not checks[0].passed:
        laws |= _of_tables(recipe) if isinstance(recipe, TableSolver) and recipe.order is not None else {}
    else:
        laws |= {
            "same noise, same answer": trial.repeats,
            "rows do not depend on their batch mates": trial.batches,
            "float32 stays float32": trial.single,
        }
        if isinstance(recipe, DirectSolver):
            laws["order of convergence"] = lambda: _followed_order(recipe, trial)
        elif isinstance(recipe, TableSolver) and recipe.order is not None:
            laws |= _of_tables(recipe)
    checks += [tried(name, law) for name, law in laws.items()]
    # An unregistered class may inherit the name of a registered one.
    named = recipe.spec if vars(type(recipe)).get("name") or type(recipe).spec is not Solver.spec else type(recipe).__name__
    return kept(f"solver {named!r}", checks)


def _of_tables(recipe: TableSolver) -> dict[str, Law]:
    return {
        "tables are lower triangular and finite": lambda: _tables(recipe),
        "a budget is kept": lambda: _budget(recipe),
        "a constant prediction is integrated exactly": lambda: _constant(recipe),
        "order of convergence": lambda: _order(recipe),
        "law on a Gaussian": lambda: _law(recipe),
    }


class _Trial:
    """A solver with a field in two dimensions and starts, run in the first way that it accepts."""

    def __init__(self, recipe: Solver, seed: int):
        self.recipe, self.seed = recipe, seed
        self.field: ExactField = exact_field("ring8", _NARROW)
        self.x = self.field.prior(5, generator=seed)
        self.way: dict[str, Any] = {}

    def run(self, x: Tensor, seed: int) -> Tensor:
        """The end points."""
        generator = torch.Generator().manual_seed(seed) if self.recipe.stochastic else None
        return solve(self.field, x, solver=self.recipe, generator=generator, **self.way).x

    def runs(self) -> Check:
        """The solver runs in one of the ways in which solvers are run."""
        ways: list[dict[str, Any]] = [{"grid": "karras", "steps": 6}, {"nfe": 6}, {"grid": "karras"}]
        ways.append({"grid": [self.field.path.t_max, self.field.path.t_min]})
        refusal = None
        for self.way in ways:
            try:
                end = self.run(self.x, self.seed)
            except ArgumentError as error:
                refusal = refusal or error
                continue
            if end.shape != self.x.shape or end.dtype != self.x.dtype:
                return Check.found("runs", False, f"{tuple(end.shape)} {end.dtype} from {tuple(self.x.shape)} {self.x.dtype}")
            if not bool(torch.isfinite(end).all()):
                return Check.found("runs", False, f"non-finite values at the end of {_shown(self.way)}")
            return Check.found("runs", True, f"with {_shown(self.way)}")
        return Check.found("runs", False, f"it does not: {refusal}")

    def repeats(self) -> Check:
        """A seed gives the same answer again, also after another run; with noise, another seed gives another answer."""
        name, first = "same noise, same answer", self.run(self.x, self.seed)
        self.run(self.x.flip(0), self.seed + 1)
        again, other = self.run(self.x, self.seed), self.run(self.x, self.seed + 1)
        if not torch.equal(first, again):
            return Check.found(name, False, f"seed {self.seed} gives ends {float((first - again).abs().max()):.1e} apart")
        if self.recipe.stochastic and torch.equal(first, other):
            return Check.found(name, False, f"seeds {self.seed} and {self.seed + 1} give the same ends: it draws no noise")
        return Check.found(name, True, f"seed {self.seed}, {_shown(self.way)}")

    def batches(self) -> Check:
        """A row's end does not depend on other rows, at one seed; first and last row are tried, as leaks go either way."""
        together, worst = self.run(self.x, self.seed), Largest()
        for row in (0, -1):
            others = self.field.prior(len(self.x), generator=self.seed + 8)
            others[row] = self.x[row]
            error = float((self.run(others, self.seed)[row] - together[row]).abs().max()) / self.field.scale
            worst.see(
                error, f"of the data's scale: the {'last' if row else 'first'} row changes with the others, {_shown(self.way)}"
            )
        own = isinstance(self.recipe, DirectSolver) and not self.recipe.takes_steps
        return worst.check("rows do not depend on their batch mates", _OWN_STEPS if own else _ROUNDING)

    def single(self) -> Check:
        """The run in float32 is near that in float64."""
        name, end = "float32 stays float32", self.run(self.x.float(), self.seed)
        if end.dtype != torch.float32:
            return Check.found(name, False, f"a start of torch.float32 ends as {end.dtype}")
        error = float((end.double() - self.run(self.x, self.seed)).abs().max()) / self.field.scale
        if self.recipe.stochastic:
            return Check.found(name, bool(torch.isfinite(end).all()), f"finite, {_shown(self.way)}")
        return Check(name, error, _SINGLE, f"of the data's scale away from the run in float64, {_shown(self.way)}")


def _shown(way: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in way.items())


def _spec(recipe: Solver) -> Check:
    name, text = "spec and repr", recipe.spec
    if "\n" in repr(recipe):
        return Check.found(name, False, f"repr has several lines: {recipe!r}")
    known = text.partition(":")[0] in {spec.partition(":")[0] for spec in solvers.names()}
    if not known and type(recipe).spec is not Solver.spec:
        return Check.found(name, None, f"{text!r} is no spec of a registry")
    make: Callable[..., Solver] = type(recipe)
    again = solvers.get(text) if known else make(**parse_spec(text)[1])
    same = again == recipe and again.content() == recipe.content()
    return Check.found(name, same, f"{text!r} makes it again" if same else f"{text!r} makes {again!r}, not {recipe!r}")


def _tables(recipe: TableSolver) -> Check:
    name = "tables are lower triangular and finite"
    count = 0
    for path in map(get_path, _PATHS):
        for grid in _GRIDS:
            for steps in _STEPS:
                where = f"on {path.spec}, {grid}, {steps} steps"
                try:
                    table = recipe.tableau(path, grid, steps)
                except Exception as error:  # anyone's code may raise anything
                    return Check.found(name, False, f"{where}: {error}")
                found = _fault(recipe, table, recipe.times_on(path, grid, steps))
                if found:
                    return Check.found(name, False, f"{where}: {found}")
                count += 1
    return Check.found(name, True, f"{count} tables on {', '.join(_PATHS)}")


def _fault(recipe: Solver, table: Any, times: Sequence[float]) -> str:
    """The fault of a table, or an empty text."""
    states, evaluations, draws = table.dense()
    for letter, matrix in (("A", states), ("B", evaluations), ("C", draws)):
        if not bool(torch.isfinite(matrix).all()):
            row = int((~torch.isfinite(matrix)).any(1).nonzero()[0])
            return f"row {row} of {letter} is not finite"
        if letter != "C" and float(matrix.triu().abs().max()) > 0:
            row = int((matrix.triu() != 0).any(1).nonzero()[0])
            return f"row {row} of {letter} uses itself or a later row"
    reached = [float(table.rows[row].time) for row in table.outputs]
    if len(reached) != len(times) or any(
        abs(one - other) > 1e-12 * abs(times[0]) for one, other in zip(reached, times, strict=True)
    ):
        return f"its outputs lie at {reached[:4]} ..., not at the {len(times)} times of the grid: mark each with table.output"
    if bool(table.draws) != recipe.stochastic and len(times) > 2:
        return f"{table.draws} draws of noise, but stochastic is {recipe.stochastic}"
    return ""


def _budget(recipe: TableSolver) -> Check:
    name, path = "a budget is kept", get_path("edm")
    calls = 0

    def counted(x: Tensor, t: float | Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -x / 2

    spent: list[int] = []
    for budget in _BUDGETS:
        try:
            table = recipe.within(path, "karras", budget)
        except BudgetError as error:
            if spent:
                return Check.found(name, False, f"{spent[-1]} evaluations are possible, and yet with nfe={budget}: {error}")
            continue
        if table.nfe > budget:
            return Check.found(name, False, f"asked for nfe={budget} it makes {table.nfe} evaluations")
        calls = 0
        field = Field(counted, table.prediction, path, probe=False)
        table.run(field, torch.ones(1, 1, dtype=torch.float64), noise=torch.zeros(table.draws, 1, 1, dtype=torch.float64))
        if calls != table.nfe:
            return Check.found(name, False, f"a table of nfe={table.nfe} makes {calls} evaluations")
        if spent and table.nfe < spent[-1]:
            return Check.found(name, False, f"{table.nfe} evaluations with nfe={budget}, {spent[-1]} with less")
        spent.append(table.nfe)
    if not spent:
        return Check.found(name, False, f"no run fits any budget up to {_BUDGETS[-1]}")
    return Check.found(name, True, f"{spent[0]} to {spent[-1]} evaluations for nfe up to {_BUDGETS[-1]}")


def _constant(recipe: TableSolver) -> Check:
    """A constant m moves z by m times the advance of the clock, in the solver's chart: the zeroth condition of order."""
    name = "a constant prediction is integrated exactly"
    if recipe.stochastic:
        return Check.found(name, None, "it draws noise")
    worst = Largest()
    for path in map(get_path, _PATHS):
        for steps in _STEPS:
            table, chart = recipe.tableau(path, "karras", steps), recipe.chart_on(path)
            times = recipe.times_on(path, "karras", steps)
            field = Field(lambda x, t: torch.full_like(x, 0.7), table.prediction, path, probe=False)
            x = torch.full((1, 1), 1.3 * max(1.0, path.sigma(times[0])), dtype=torch.float64)
            end = float(table.run(field, x))
            state, change = chart.ratio(times[0], times[-1]) * float(x), 0.7 * chart.advance(times[0], times[-1])
            size = max(abs(state), abs(change))
            worst.see(
                abs(end - state - change) / size,
                f"of the state, on {path.spec}, {steps} steps: {end:.9g}, not {state + change:.9g}",
            )
    return worst.check(name, _ROUNDING)


def _order(recipe: TableSolver) -> Check:
    """The order against the exact flow, measured on finer and finer grids until it is as stated."""
    name = "order of convergence"
    stated = recipe.order_on("log_snr")
    if recipe.stochastic or not stated:
        return Check.found(name, None, "it draws noise" if recipe.stochastic else "none is stated")
    found: OrderEstimate | None = None
    for steps, ramped in _NESTED_STEPS:
        try:
            finer = measured_order(recipe, grid="log_snr", steps=steps, points=_STARTS, ramped=ramped)
        except ArgumentError as error:
            # Errors at rounding on coarse grids leave nothing to measure on finer ones.
            if found is None and "levels have errors above" in str(error):
                return Check.found(name, None, f"exact on bimodal1d: {error}")
            break
        found = finer if found is None or finer.slope > found.slope else found
        if not stated - _WITHIN_REACH <= finer.slope < stated - _SHORT:
            break
    return _against(name, stated, found, "bimodal1d on edm, log_snr")


def _against(name: str, stated: int, found: OrderEstimate | None, where: str) -> Check:
    if found is None:
        return Check.found(name, None, "not measured")
    errors = f"errors {found.errors[0]:.1e} at {found.steps[0]} steps, {found.errors[-1]:.1e} at {found.steps[-1]}"
    said = f"{stated} is stated, {found.slope:.2f} measured ({errors}; {where})"
    passed = None if found.slope > stated + _ABOVE else found.slope >= stated - _SHORT
    return Check(name, found.slope, detail=said, passed=passed)


def _followed_order(recipe: DirectSolver, trial: _Trial) -> Check:
    """The order of a solver that follows the field itself, step by step."""
    name = "order of convergence"
    stated = recipe.order_on("log_snr")
    if not recipe.takes_steps or recipe.stochastic or not stated:
        why = (
            "it draws noise"
            if recipe.stochastic
            else "it chooses its own steps"
            if not recipe.takes_steps
            else "none is stated"
        )
        return Check.found(name, None, why)
    try:
        found = measured_order(recipe, grid="log_snr", steps=_FOLLOWED_STEPS, points=_STARTS, seed=trial.seed)
    except ArgumentError as error:
        # An exact solver leaves nothing to fit, and neither does one whose answers are off by any number.
        field = exact_field("bimodal1d", "edm")
        x, path = field.prior(_STARTS, generator=trial.seed), field.path
        end = recipe.follow(field, x, grids.get("log_snr", path, _FOLLOWED_STEPS[-1]).tolist(), None).states[-1]
        off = float((end - reference(field, x, path.t_max, path.t_min, 1e-12).x).square().mean().sqrt())
        good = off < _HARMLESS * field.scale
        return Check.found(name, None if good else False, f"{'exact' if good else 'none'} on bimodal1d: {error}")
    return _against(name, stated, found, "bimodal1d on edm, log_snr")


def _law(recipe: TableSolver) -> Check:
    """The law of the output on a Gaussian, propagated exactly without samples, tends to the law of the flow."""
    name = "law on a Gaussian"
    if not recipe.convergence_order:
        return Check.found(name, None, "no order is stated with which it would converge")
    errors: list[float] = []
    for steps in _LAW_STEPS:
        errors.append(gaussian(recipe, "vp", "log_snr", _VARIANCES, mean=_MEAN, steps=steps).split.discretisation)
        shown = ", ".join(f"{error:.1e} at {n} steps" for error, n in zip(errors, _LAW_STEPS, strict=False))
        said = f"W2 to the exact law {shown}"
        if not math.isfinite(errors[-1]):
            break
        if len(errors) > 1 and (errors[-1] < _HARMLESS or errors[-1] < _LEFT * errors[-2]):
            return Check(name, errors[-1], detail=f"{said}, on vp", passed=True)
    return Check(name, errors[-1], detail=f"{said}: more steps do not help, on vp", passed=False)
