"""Mathematics without diffusion: phi functions, polynomials, Butcher tableaux, least squares, orders, quantiles and
projections."""
