"""Solvers that look at the sample: AMED, and tables conditioned on features of the state."""
