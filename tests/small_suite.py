"""A small suite for the tests of studies: two targets, two solvers, two budgets."""

from diffode.studies import Store, keyed_cells, parse_suite
from diffode.studies.report import write_report

SMALL = {
    "name": "small",
    "summary": "a suite for the tests",
    "defaults": {"paths": ["edm"], "grids": ["karras"], "nfe": [4, 8], "seeds": [0], "points": 16, "tolerance": 1e-6},
    "study": [{"targets": ["ring8", "gauss1d"], "solvers": ["ddim", "heun"]}],
}


def small(**changes):
    return parse_suite({**SMALL, **changes})


STUDY = {"targets": ["gauss1d"], "paths": ["edm"], "grids": ["karras"], "nfe": [4], "seeds": [0], "solvers": ["ddim"]}


TOML = 'name = "s"\nsummary = "t"\n[defaults]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\npoints = 4\n'


TOML += 'tolerance = 1e-6\nmetrics = ["endpoint"]\ndtype = "float32"\n[[study]]\ntargets = ["gauss1d"]\nsolvers = ["ddim"]\n'


SOLVER = '''
from dataclasses import dataclass
import diffode

@dataclass(frozen=True, kw_only=True)
class Mine(diffode.Solver):
    """A solver of the user's own."""
    name = "mine"
    order = 1
    chart_name = "noise"
    reference = "none"

    def write(self, table, chart, times):
        row = table.start
        for s, t in zip(times[:-1], times[1:]):
            row = table.output(table.add(t, {row: chart.ratio(s, t)}, {row: FACTOR * chart.advance(s, t)}))

if "mine" not in diffode.solvers.names():
    diffode.solvers.register("mine", Mine)
'''


def report_page(suite, folder):
    """The page of a report on what a suite has stored in a folder, as text."""
    with Store(folder / "s.sqlite") as store:
        results = store.get(keyed_cells(suite))
    page = write_report(suite, results, folder / "report", command="diffode bench small", jobs=1)
    return page.read_text(encoding="utf-8")
