"""What a solver can do is its type: it writes tables or follows a field, and claims an order or none."""

import itertools
import json
import re
from dataclasses import dataclass

import pytest
import torch
from click.testing import CliRunner
from solver_list import OF_A_FILE

import diffode
from diffode import adapters, solvers, verify
from diffode.cli.show_command import command as show
from diffode.errors import ArgumentError, BudgetError, CapabilityError
from diffode.solvers import DirectSolver, ForBudget, Journey, Solver, TableSolver, WritesTable
from diffode.solvers.solver import WithNoise

NAMES = [name for name in solvers.names() if name not in OF_A_FILE]


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_writes_tables_or_follows_a_field_and_has_no_method_that_only_raises(name):
    solver = solvers.get(name)
    assert isinstance(solver, Solver)
    assert isinstance(solver, WritesTable) != isinstance(solver, DirectSolver)
    has = {method for method in ("tableau", "within", "write", "follow") if hasattr(solver, method)}
    if isinstance(solver, DirectSolver):
        assert has == {"follow"}
    else:
        assert has == {"tableau", "within"} | ({"write"} if isinstance(solver, TableSolver) else set())


@pytest.mark.parametrize("name", NAMES)
def test_an_order_is_a_positive_number_or_none(name):
    solver = solvers.get(name)
    assert solver.order is None or (type(solver.order) is int and solver.order >= 1)
    assert (solver.order is None) == (name in ("lcm", "universal"))
    assert (solver.convergence_order is None) == (solver.order is None) == (solver.order_on("karras") is None)


def test_what_a_solver_lacks_is_said_by_name():
    edm = diffode.paths.get("edm")
    with pytest.raises(CapabilityError, match=r"'rk_adaptive' has no tableau.*run it with diffode\.solve"):
        solvers.get("rk_adaptive").within(edm, "karras", 5)
    with pytest.raises(CapabilityError, match="'rk_adaptive' has no tableau"):
        solvers.table_solver("rk_adaptive")
    with pytest.raises(CapabilityError, match="'ddim' does not follow a field itself"):
        solvers.get("ddim").follow(None, None, [1.0, 0.5], None)
    with pytest.raises(CapabilityError, match="'universal' writes no rows"):
        solvers.get("universal").write(None, None, [1.0, 0.5])
    # Who asks with hasattr, or catches what Python raises for an attribute that is missing, is answered as ever.
    assert getattr(solvers.get("rk_adaptive"), "tableau", None) is None
    assert issubclass(CapabilityError, ArgumentError)
    assert issubclass(CapabilityError, AttributeError)
    with pytest.raises(AttributeError, match="'DDIM' object has no attribute 'tabelau'"):
        _ = solvers.get("ddim").tabelau


class Rows:
    """Euler's rows for any class that has it among its bases."""

    def write(self, table, chart, times):
        x = table.start
        for s, t in itertools.pairwise(times):
            x = table.output(table.add(t, {x: chart.ratio(s, t)}, {x: chart.advance(s, t)}))


@dataclass(frozen=True, kw_only=True)
class Named(Solver):
    """A class that names ``Solver`` as its base, has rows, and extends what it inherits by that."""

    order = 1
    chart_name = "noise"
    asked: tuple = ()

    def write(self, table, chart, times):
        Rows.write(self, table, chart, times)

    def within(self, path, grid, nfe):
        return super().within(path, grid, nfe - 1)


@dataclass(frozen=True, kw_only=True)
class Mixed(Rows, Solver):
    order = 1
    chart_name = "noise"


@dataclass(frozen=True, kw_only=True)
class Noisy(WithNoise):
    order = 1
    chart_name = "noise"
    write = Rows.write


@pytest.mark.parametrize("cls", [Named, Mixed, Noisy])
def test_a_class_with_rows_writes_tables_whatever_base_it_names(cls):
    assert issubclass(cls, TableSolver)
    assert solvers.TableSolver.tableau is cls.tableau
    table, ddim = (s.tableau("edm", "karras", 5) for s in (cls(), solvers.get("ddim")))
    assert torch.equal(table.dense()[1], ddim.dense()[1])
    field = diffode.exact_field("ring8", "edm")
    assert diffode.solve(field, field.prior(2, generator=0), solver=cls(), nfe=6).nfe == (5 if cls is Named else 6)


def test_a_base_without_rows_is_no_writer_of_tables():
    @dataclass(frozen=True, kw_only=True)
    class Options(Solver):
        order = 1
        chart_name = "noise"

    assert not issubclass(Options, WritesTable)
    assert not issubclass(WithNoise, WritesTable)
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(CapabilityError, match="'Options' has no tableau and follows no field: give Options a method write"):
        diffode.solve(field, field.prior(2, generator=0), solver=Options(), nfe=6)


@dataclass(frozen=True, kw_only=True)
class Tabled(WritesTable):
    """A table of one's own: two steps of DDIM whatever the grid, as if it had been trained."""

    order = None
    chart_name = "noise"
    lays_levels = True

    def tableau(self, path, grid, steps=None):
        if steps not in (None, 2):
            raise BudgetError("two evaluations alone")
        path = diffode.paths.get(path)
        return solvers.table_solver("ddim").tableau(path, [path.t_max, 1.0, path.t_min])

    def within(self, path, grid, nfe):
        return self.tableau(path, grid)


def test_whoever_writes_a_table_runs_wherever_tables_run():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    expected = diffode.solve(field, x, solver="ddim", grid=[80.0, 1.0, 0.002]).x
    assert torch.equal(diffode.solve(field, x, solver=Tabled(), nfe=2).x, expected)
    sample = adapters.as_k_diffusion_sampler(Tabled())
    torch.testing.assert_close(sample(adapters.as_k_diffusion(field), x, torch.tensor([80.0, 0.002])), expected)
    with pytest.raises(ArgumentError, match="lays its own steps"):
        diffode.solve(field, x, solver=Tabled(), nfe=2, upwards=True)
    with pytest.raises(ArgumentError, match="claims no order"):
        verify.check_sampler(Tabled())


@dataclass(frozen=True, kw_only=True)
class Follows(DirectSolver):
    order = 1

    def follow(self, field, x, times, generator):
        states = [x]
        for s, t in itertools.pairwise(times):
            states.append(states[-1] + (t - s) * field.velocity(states[-1], s))
        return Journey(torch.stack(states))


@dataclass(frozen=True, kw_only=True)
class OfThree(Follows):
    """It was made for three evaluations, which its having ``check_nfe`` says."""

    order = 0

    def check_nfe(self, nfe):
        if nfe != 3:
            raise BudgetError(f"three evaluations, not {nfe}")

    def follow(self, field, x, times, generator):
        states = super().follow(field, x, [times[0], 5.0, 0.5, times[-1]], generator).states
        return Journey(states[[0, -1]])


def test_a_budget_is_a_number_of_steps_or_what_a_solver_was_made_for():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    assert (Follows().takes_steps, Follows().takes_budget, isinstance(Follows(), ForBudget)) == (True, True, False)
    assert (OfThree().takes_steps, OfThree().takes_budget, isinstance(OfThree(), ForBudget)) == (False, True, True)
    adaptive = solvers.get("rk_adaptive")
    assert (adaptive.takes_steps, adaptive.takes_budget, isinstance(adaptive, ForBudget)) == (False, False, False)
    assert diffode.solve(field, x, solver=OfThree(), nfe=3).nfe == 3
    assert len(diffode.solve(field, x, solver=Follows(), nfe=3).times) == 4
    with pytest.raises(BudgetError, match="three evaluations, not 4"):
        diffode.solve(field, x, solver=OfThree(), nfe=4)
    with pytest.raises(ArgumentError, match="chooses its own steps and can't be given a budget, nfe=4"):
        diffode.solve(field, x, solver="rk_adaptive", nfe=4)


def test_who_asks_for_a_solver_without_an_order_is_told_none():
    shown = CliRunner().invoke(show, ["lcm"]).output
    assert re.search(r"^order +none$", shown, re.MULTILINE)
    assert re.search(r"^claimed order +none$", shown, re.MULTILINE)
    facts = json.loads(CliRunner().invoke(show, ["solver:universal", "--json"]).output)
    assert facts["claimed order"] is facts["order"] is None
    assert json.loads(CliRunner().invoke(show, ["solver:heun", "--json"]).output)["claimed order"] == 2


def test_a_solver_that_said_zero_claims_no_order():
    assert OfThree().order is OfThree().convergence_order is None

    @dataclass(frozen=True, kw_only=True)
    class Untold(Follows):
        order: int = 0

    assert Untold().order is None


def test_the_order_of_a_solver_that_follows_the_field_is_measured_as_that_of_tables():
    found, expected = (verify.order(s, steps=(64, 128, 256), points=4) for s in (Follows(), "euler"))
    torch.testing.assert_close(torch.tensor(found.errors), torch.tensor(expected.errors))


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_weights_of_equal_steps_have_their_order_on_equal_steps_alone(method):
    """On rectified flow, where the explicit ones, of twelve steps, are stable with some hundred steps."""
    solver = solvers.get(f"torchdiffeq:{method}")
    assert (solver.order, solver.convergence_order) == (4, 2)
    assert [solver.order_on(grid) for grid in ("time_uniform", "karras:rho=3", "log_snr", [1.0, 0.5])] == [4, 2, 2, 2]
    assert solvers.get(f"torchdiffeq:{method},variable=log_snr").order_on("log_snr") == 4
    for grid in ("karras", "log_snr"):
        found = verify.order(solver, path="rectified_flow", grid=grid, steps=(256, 512, 1024), points=4)
        assert abs(found.slope - 2) < 0.1, found
    found = verify.order(solver, path="rectified_flow", grid="time_uniform", steps=(64, 128, 256, 512), points=4)
    assert found.slope > 4 - 0.2, found
