"""Tests for plug-ins: the laws that every solver, target, path and flow map keeps, and Hypothesis strategies.

A plug-in's author runs one line in a test; the error names each broken law, with its numbers and the place:

    from diffode import testing

    def test_my_solver_keeps_the_laws():
        testing.check_solver(MySolver)

Every example of a strategy is a seed and a few structural integers, so that it shrinks to the smallest structure that fails and
can be named in a report. Strategies need hypothesis (``pip install hypothesis``):

    from hypothesis import given

    @given(testing.fields(), testing.seeds())
    def test_my_field(field, seed): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffode.testing.map_laws import check_map
from diffode.testing.path_laws import check_path
from diffode.testing.solver_laws import check_solver
from diffode.testing.target_laws import check_target

if TYPE_CHECKING:
    from diffode.testing.strategies import (
        DETERMINISTIC,
        FAMILIES,
        KINDS,
        STOCHASTIC,
        Kind,
        fields,
        grid_specs,
        levels,
        mixture,
        mixtures,
        paths,
        random_times,
        seeds,
        solvers,
    )

__all__ = [
    "DETERMINISTIC",
    "FAMILIES",
    "KINDS",
    "STOCHASTIC",
    "Kind",
    "check_map",
    "check_path",
    "check_solver",
    "check_target",
    "fields",
    "grid_specs",
    "levels",
    "mixture",
    "mixtures",
    "paths",
    "random_times",
    "seeds",
    "solvers",
]


def __getattr__(name: str) -> Any:
    # The laws work without hypothesis, so strategies are imported on first use.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffode.testing import strategies

    return getattr(strategies, name)
