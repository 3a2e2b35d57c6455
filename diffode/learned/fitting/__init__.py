"""What all training shares: exact derivatives of a run, what is free in it, Gauss-Newton, starts and exact ends."""
