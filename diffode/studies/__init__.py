"""Studies: many combinations run, stored, ranked and reported."""

from diffode.studies.exported import export
from diffode.studies.runner import Summary, keyed_cells, run_suite
from diffode.studies.store import Result, Store
from diffode.studies.suite import Cell, Suite, load_suite, parse_suite, suite_names

__all__ = [
    "Cell",
    "Result",
    "Store",
    "Suite",
    "Summary",
    "export",
    "keyed_cells",
    "load_suite",
    "parse_suite",
    "run_suite",
    "suite_names",
]
