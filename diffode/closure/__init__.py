"""What code a computation depends on: the transitive closure of what its modules import, as one hash.

Modules of diffode and a user's own modules belong to it; the standard library and installed libraries do not. Comments,
docstrings and layout change nothing. In a module of ``solvers`` a class is reached only if it is imported or used by name, so
that one member of a family can change without the others; everything else in the module counts. The registry of solvers
knows them all, so the closure stops there: a spec in the code that it can look up is handed back in ``Closure.specs``.
"""

from diffode.closure.graph import SOURCES, Closure, Part, Sources, parts_of, version_of
from diffode.closure.syntax import REST, WHOLE

__all__ = ["REST", "SOURCES", "WHOLE", "Closure", "Part", "Sources", "parts_of", "version_of"]
