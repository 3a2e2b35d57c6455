"""The common parts of all training: free parameters, exact derivatives of a run, Gauss-Newton, starts and exact ends."""
