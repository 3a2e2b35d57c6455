"""What trained numbers cost: products of their own networks in a run, and the time of their training."""

from __future__ import annotations

from dataclasses import dataclass

from diffode.fields import Field
from diffode.learned.conditional.amed import LearnedAMED
from diffode.learned.conditional.conditioned import ConditionedSolver
from diffode.maps import LearnedMap
from diffode.solvers.solver import Solver
from diffode.solvers.trained.bespoke import Bespoke
from diffode.solvers.trained.generators import Generator, OfNodes
from diffode.solvers.trained.mapped import MapSolver
from diffode.solvers.trained.shipped import ShippedMap
from diffode.training_facts import Facts


@dataclass(frozen=True)
class OwnCost:
    """What a solver costs beside, or instead of, evaluations of the field.

    Attributes:
        multiply_adds: products a row and evaluation, of networks of its own; None if there is one that is not counted.
        training: seconds that its training took, None where it was not trained or no one has said.
        instead: whether its evaluations are calls of its own network, and the field is not asked.
    """

    multiply_adds: int | None = 0
    training: float | None = None
    instead: bool = False


def own_cost(solver: Solver, field: Field) -> OwnCost:
    """What a solver costs beside, or instead of, evaluations of a field.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> own_cost(diffode.solvers.get("heun"), field)
    OwnCost(multiply_adds=0, training=None, instead=False)
    """
    if isinstance(solver, ShippedMap):
        solver = solver.on(field)
    if isinstance(solver, MapSolver):
        phi = solver.phi
        if not isinstance(phi, LearnedMap):
            return OwnCost(None, instead=True)
        return OwnCost(phi.multiply_adds // phi.cost, _seconds(phi.facts), instead=True)
    if isinstance(solver, Generator):
        return OwnCost(solver.multiply_adds // solver.nfe, _seconds(solver.trainee.facts), isinstance(solver, OfNodes))
    if isinstance(solver, Bespoke):
        return OwnCost(training=solver.checkpoint.seconds)
    if isinstance(solver, ConditionedSolver):
        return OwnCost(None, _seconds(solver.table.facts))
    if isinstance(solver, LearnedAMED):
        return OwnCost(None, _seconds(solver.facts))
    return OwnCost()


def _seconds(facts: Facts | None) -> float | None:
    return None if facts is None else facts.seconds
