"""Of a field: its contract with solvers, the equations it obeys, its likelihoods, and what is wrong with it."""
