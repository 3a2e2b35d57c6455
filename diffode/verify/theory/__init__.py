"""Of a solver or an error on paper: orders, stability, the law left on a Gaussian, bounds on what a score error costs."""
