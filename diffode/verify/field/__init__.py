"""Verification of a field: its contract with solvers, its equations, its likelihoods, and its usual mistakes."""
