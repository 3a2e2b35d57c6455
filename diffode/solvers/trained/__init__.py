"""Solvers with trained tables: read from a file, or shipped with diffode; the files that hold them."""
