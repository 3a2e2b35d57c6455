"""Solvers: recipes that write tableaux, one file a family; their registry; and ``solve``."""

from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.function import FunctionSolver
from diffode.solvers.registry import get, names, register, registry
from diffode.solvers.run import run_tableau, solve
from diffode.solvers.solution import Solution
from diffode.solvers.solver import Solver

__all__ = [
    "DirectSolver",
    "FunctionSolver",
    "Journey",
    "Solution",
    "Solver",
    "get",
    "names",
    "register",
    "registry",
    "run_tableau",
    "solve",
]
