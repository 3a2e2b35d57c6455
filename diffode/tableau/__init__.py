"""Tables, the form of every sampler: rows, the loop that runs them, exact propagation, files, noise, and the common form."""

from diffode.tableau.brownian import BrownianPath
from diffode.tableau.propagation import Propagated
from diffode.tableau.rows import Coefficients, Number, Row
from diffode.tableau.stages import Stages
from diffode.tableau.table import Driven, Tableau
from diffode.tableau.writer import Writer

__all__ = ["BrownianPath", "Coefficients", "Driven", "Number", "Propagated", "Row", "Stages", "Tableau", "Writer"]
