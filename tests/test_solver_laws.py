"""The laws of solvers: the registry keeps them, and every plug-in that breaks one is caught with the law named."""

import dataclasses
import math
import pickle
from dataclasses import dataclass

import pytest
import torch

from diffode import solvers, testing
from diffode.charts import StochasticDataChart
from diffode.errors import ArgumentError, LawError
from diffode.solvers import DirectSolver, Journey, Solver
from diffode.solvers.runge_kutta import Heun, add_step
from diffode.solvers.solver import noise_along, steps_of

#: What can't be made without a file, or follows the same code as a neighbour that is tried at much greater cost.
LEFT_OUT = {
    "bespoke", "amed_learned", "conditioned", "dc_regressed", "jump", "head", "nodes", "map", "shipped_map", "sde_adaptive",
    "scipy:RK23", "scipy:Radau",
    "scipy:BDF", "scipy:LSODA",
    "torchdiffeq:bosh3", "torchdiffeq:fehlberg2", "torchdiffeq:adaptive_heun", "torchdiffeq:dopri8",
}  # fmt: skip
#: Published schemes that break a law, which the kit has to see.
BROKEN = {
    # A sign and an index of the authors' code are wrong: the weights do not add up to the step.
    "ipndm_v": "a constant prediction is integrated exactly: residual",
    # Its order rises to twelve with the steps behind it, with which it is unstable on fewer than some thousand steps.
    "torchdiffeq:explicit_adams": "order of convergence: 2 is stated, -",
}


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("name", [name for name in solvers.names() if name not in LEFT_OUT])
def test_a_registered_solver_keeps_the_laws(name):
    if name in BROKEN:
        with pytest.raises(LawError, match=BROKEN[name]):
            testing.check_solver(name)
    else:
        assert testing.check_solver(name).passed


@pytest.mark.parametrize("spec", ["ipndm_v:form=consistent,order=3", "ddim:eta=1.0", "heun:chart=data", "dpmpp:order=3"])
def test_options_are_part_of_the_solver(spec):
    report = testing.check_solver(spec)
    assert report.check("spec and repr").passed
    assert report.subject == f"solver {solvers.get(spec).spec!r}"


@dataclass(frozen=True, kw_only=True)
class SaysThird(Heun):
    name = "says_third"
    order = 3


@dataclass(frozen=True, kw_only=True)
class WrongWeight(Heun):
    name = "wrong_weight"

    def write(self, table, chart, times):
        x = table.start
        for t in times[1:]:
            y = add_step(table, chart, x, t, [x], [1.0])
            x = table.output(add_step(table, chart, x, t, [x, y], [0.5, 0.51]))


@dataclass(frozen=True, kw_only=True)
class NotFinite(Heun):
    """Its fifth step divides by nothing."""

    name = "not_finite"

    def write(self, table, chart, times):
        super().write(table, chart, times)
        if len(times) == 6:
            table.rows[-1].states[0] = math.nan


@dataclass(frozen=True, kw_only=True)
class ForgetsAnOutput(Heun):
    name = "forgets_an_output"

    def write(self, table, chart, times):
        super().write(table, chart, times)
        if len(times) > 3:
            del table.outputs[1]


@dataclass(frozen=True, kw_only=True)
class SpendsMore(Heun):
    name = "spends_more"

    def within(self, path, grid, nfe):
        return self.tableau(path, grid, nfe)


@dataclass(frozen=True, kw_only=True)
class Reverse(Solver):
    """Exponential Euler for the reverse SDE, its noise too large by a share."""

    order = 1
    chart_name = "data"
    stochastic = True
    share: float = 0.0

    def chart_on(self, path):
        return StochasticDataChart(path, 1.0)

    def write(self, table, chart, times):
        x = table.start
        for _, s, t in steps_of(times):
            draws = {k: (1 + self.share) * c for k, c in noise_along(table, chart, (s, t))[0].items()}
            x = table.output(table.add(t, {x: chart.ratio(s, t)}, {x: chart.advance(s, t)}, draws))


@dataclass(frozen=True, kw_only=True)
class TooLoud(Reverse):
    name = "too_loud"
    share: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SaysQuiet(Reverse):
    name = "says_quiet"
    stochastic = False


@dataclass(frozen=True, kw_only=True)
class HidesAnOption(Heun):
    name = "hides_an_option"
    swapped: bool = dataclasses.field(default=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Follows(DirectSolver):
    """Euler's method that follows the field itself; what it does wrong is overridden."""

    order = 1

    def slope(self, field, x, t, generator):
        return field.velocity(x, t)

    def follow(self, field, x, times, generator):
        states = [x]
        for _, s, t in steps_of(times):
            states.append(states[-1] + (t - s) * self.slope(field, states[-1], s, generator))
        return Journey(torch.stack(states))


class Leaks(Follows):
    def slope(self, field, x, t, generator):
        return field.velocity(x, t) + 1e-6 * x.roll(1, 0)


class TurnsDouble(Follows):
    def follow(self, field, x, times, generator):
        return Journey(super().follow(field, x, times, generator).states.double())


class DrawsByItself(Follows):
    def slope(self, field, x, t, generator):
        return field.velocity(x, t) + 1e-9 * torch.randn(x.shape, dtype=x.dtype)


class DrawsNothing(Follows):
    stochastic = True


class OfSecondOrder(Follows):
    order = 2


class Loses(Follows):
    def follow(self, field, x, times, generator):
        return Journey(super().follow(field, x, times, generator).states[:, :-1])


@pytest.mark.parametrize(
    ("cls", "laws"),
    [
        (SaysThird, ("order of convergence: 3 is stated, 2.0",)),
        (WrongWeight, ("a constant prediction is integrated exactly: residual", "order of convergence: 2 is stated")),
        (NotFinite, ("tables are lower triangular and finite: on edm, karras, 5 steps",)),
        (ForgetsAnOutput, ("tables are lower triangular and finite: on edm, karras, 5 steps: its outputs lie at",)),
        (SpendsMore, ("a budget is kept: asked for nfe=1 it makes 2",)),
        (TooLoud, ("law on a Gaussian: W2 to the exact law",)),
        (SaysQuiet, ("draws",)),
        (HidesAnOption, ("spec and repr: 'hides_an_option' makes",)),
        (Leaks, ("rows do not depend on their batch mates: residual",)),
        (TurnsDouble, ("float64",)),
        (DrawsByItself, ("same noise, same answer: seed 0 gives ends",)),
        (DrawsNothing, ("same noise, same answer: seeds 0 and 1 give the same ends",)),
        (OfSecondOrder, ("order of convergence: 2 is stated, 1.",)),
        (Loses, ("runs",)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_solver_is_caught_with_the_law_named(cls, laws):
    with pytest.raises(LawError) as caught:
        testing.check_solver(cls(swapped=True) if cls is HidesAnOption else cls)
    assert caught.value.report.subject.replace("_", "").lower() == f"solver '{cls.__name__.lower()}'"
    for law in laws:
        assert law in str(caught.value)
    assert caught.value.exit_code == 1
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.report.failed) == (str(caught.value), caught.value.report.failed)


@pytest.mark.parametrize("cls", [Follows, Reverse, Heun])
def test_the_same_solvers_without_the_fault_pass(cls):
    assert testing.check_solver(cls).passed


def test_a_function_is_a_solver_and_other_classes_are_none():
    def euler(field, x, times):
        for _, s, t in steps_of(times):
            x = x + (t - s) * field.velocity(x, s)
        return x

    report = testing.check_solver(euler)
    assert report.check("order of convergence").passed
    assert report.check("spec and repr").passed is None
    with pytest.raises(ArgumentError, match="must be a subclass"):
        testing.check_solver(dict)
    with pytest.raises(ArgumentError, match="needs file="):
        testing.check_solver("bespoke")
