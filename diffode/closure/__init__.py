"""The code that a computation depends on: the transitive closure of its modules' imports, as one hash.

Modules of diffode and of a user belong to it; the standard library and installed libraries do not. Comments, docstrings and
layout change no hash. A class in a module of ``solvers`` belongs to it only if it is imported or used by name, so that one
member of a family can change without the others; all other code of the module does belong to it. The registry of solvers
imports them all, so the closure stops there: ``Closure.specs`` holds the specs in the code that the registry can look up.
"""

from diffode.closure.graph import SOURCES, Closure, Part, Sources, parts_of, version_of
from diffode.closure.places import user_file
from diffode.closure.syntax import REST, WHOLE

__all__ = ["REST", "SOURCES", "WHOLE", "Closure", "Part", "Sources", "parts_of", "user_file", "version_of"]
