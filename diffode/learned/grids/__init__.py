"""Grids trained for a solver and a field."""
