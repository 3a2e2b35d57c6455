"""Theory of solvers and fields: orders, stability, the law of the output on a Gaussian, bounds on effects of score errors."""
