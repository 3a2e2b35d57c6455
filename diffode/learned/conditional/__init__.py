"""Solvers whose numbers depend on the sample: AMED, and tables conditioned on features of the state."""
