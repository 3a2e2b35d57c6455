"""diffode: a numerical laboratory for diffusion ODEs and SDEs.

A **target** noised along a **path** gives a **field**; a **solver** follows the field over a **grid** by writing a
**tableau**; the **solution** is held against a **reference** by a **metric**; a **study** does that for many
combinations and a **report** shows error against NFE (number of function evaluations).

Names are imported on first use, so that ``import diffode`` is instant and does not load PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = (
    "adapters",
    "bridges",
    "charts",
    "engines",
    "errors",
    "fields",
    "flows",
    "grids",
    "hippo",
    "learned",
    "maps",
    "metrics",
    "numerics",
    "paths",
    "plot",
    "solvers",
    "sources",
    "statistics",
    "studies",
    "tableau",
    "targets",
    "testing",
    "verify",
)
_NAMES = {
    "Bridge": "bridges",
    "BrownianPath": "tableau",
    "Chart": "charts",
    "ExactField": "fields",
    "Field": "fields",
    "GaussianMixture": "targets",
    "LowRank": "targets",
    "Path": "paths",
    "Solution": "solvers",
    "Solver": "solvers",
    "Statistics": "statistics",
    "Tableau": "tableau",
    "Target": "targets",
    "ExactFlow": "flows",
    "exact_field": "fields",
    "flow": "flows",
    "guide": "fields",
    "reference": "flows",
    "solve": "solvers",
    "stream": "solvers",
}

# Type checkers read names that are written out.
__all__ = [
    "Bridge",
    "BrownianPath",
    "Chart",
    "ExactField",
    "ExactFlow",
    "Field",
    "GaussianMixture",
    "LowRank",
    "Path",
    "Solution",
    "Solver",
    "Statistics",
    "Tableau",
    "Target",
    "__version__",
    "adapters",
    "bridges",
    "charts",
    "engines",
    "errors",
    "exact_field",
    "fields",
    "flow",
    "flows",
    "grids",
    "guide",
    "hippo",
    "learned",
    "maps",
    "metrics",
    "numerics",
    "paths",
    "plot",
    "reference",
    "solve",
    "solvers",
    "sources",
    "statistics",
    "stream",
    "studies",
    "tableau",
    "targets",
    "testing",
    "verify",
]

if TYPE_CHECKING:
    from diffode import (
        adapters,
        bridges,
        charts,
        engines,
        errors,
        fields,
        flows,
        grids,
        hippo,
        learned,
        maps,
        metrics,
        numerics,
        paths,
        plot,
        solvers,
        sources,
        statistics,
        studies,
        tableau,
        targets,
        testing,
        verify,
    )
    from diffode.bridges import Bridge
    from diffode.charts import Chart
    from diffode.fields import ExactField, Field, exact_field, guide
    from diffode.flows import ExactFlow, flow, reference
    from diffode.paths import Path
    from diffode.solvers import Solution, Solver, solve, stream
    from diffode.statistics import Statistics
    from diffode.tableau import BrownianPath, Tableau
    from diffode.targets import GaussianMixture, LowRank, Target


def __getattr__(name: str) -> Any:
    if name in _ROOMS or name == "references":
        return importlib.import_module(f"diffode.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"diffode.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'diffode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
