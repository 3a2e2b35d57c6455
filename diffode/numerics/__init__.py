"""Mathematics that knows nothing of diffusion: phi functions, polynomials, Butcher tableaux, least squares, quantiles."""
