"""Mathematics without a word of diffusion: phi functions, polynomials, Butcher tableaux, least squares, quantiles."""
