"""Classes of solvers: their names, that they are public, what one of your own needs, and what it may raise."""

import pytest
import torch

import diffode
from diffode import Field, solvers
from diffode.errors import ArgumentError
from diffode.numerics.butcher import Butcher


def test_classes_without_a_name_have_names_of_their_own():
    class One(solvers.DirectSolver):
        order = 1

        def follow(self, field, x, times, generator):
            return solvers.Journey(x[None].expand(len(times), *x.shape))

    class Two(One):
        pass

    class Other(solvers.Heun):
        pass

    assert (One().spec, Two().spec, Other().spec) == ("One", "Two", "heun")


def test_every_class_of_the_registry_is_public_and_makes_what_its_spec_makes():
    classes = {entry.make for entry in map(solvers.registry.entry, solvers.names()) if isinstance(entry.make, type)}
    own = {each for each in classes if each.__module__.startswith("diffode.solvers.")}
    assert len(own) > 40
    assert {each for each in own if getattr(solvers, each.__name__, None) is not each} == set()
    assert {each.__name__ for each in own} <= set(solvers.__all__)
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    by_class, by_spec = (
        diffode.solve(field, x, solver=solver, grid="karras", steps=5)
        for solver in (solvers.DPMSolverPlusPlus(order=2), "dpmpp:order=2")
    )
    assert torch.equal(by_class.x, by_spec.x)
    assert list(by_class.status) == [solvers.Status.OK] * 2


def test_a_class_goes_wherever_a_solver_does_or_is_named():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    assert torch.equal(diffode.solve(field, x, solver=solvers.Heun, nfe=8).x, diffode.solve(field, x, solver="heun", nfe=8).x)
    with pytest.raises(ArgumentError, match="solver RungeKutta can't be made of its class"):
        diffode.solve(field, x, solver=solvers.RungeKutta, nfe=8)


def test_a_runge_kutta_class_has_a_method_and_uses_all_of_it():
    class TwoStages(solvers.RungeKutta):
        method = Butcher(((0.3,),), (0.2, 0.8), 1, "two stages of first order")

    class Wrong(solvers.RungeKutta):
        method = ((0.5,), (0.0, 1.0))

    class Without(solvers.RungeKutta):
        pass

    field = Field.from_velocity(lambda x, t: -x, probe=False)
    x, h = torch.ones(1, 1, dtype=torch.float64), -0.1
    end = diffode.solve(field, x, solver=TwoStages(), grid=[0.1, 0.0]).x
    # z(h) = 1 - 0.2 h - 0.8 h (1 - 0.3 h) for dx/dt = -x.
    assert float(end) == pytest.approx(1 - 0.2 * h - 0.8 * h * (1 - 0.3 * h), rel=1e-14)
    with pytest.raises(ArgumentError, match=r"method must be a diffode\.numerics\.butcher\.Butcher"):
        Wrong()
    with pytest.raises(ArgumentError, match="its class Without has no method"):
        solvers.register("without", Without)


def test_what_a_solver_raises_while_it_writes_is_said():
    class Raises(solvers.Heun):
        def write(self, table, chart, times):
            raise ValueError("mine")

    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match=r"writes no table on this grid \(80 to 0.002\): ValueError: mine"):
        diffode.solve(field, field.prior(2, generator=0), solver=Raises(), grid="karras", steps=4)
