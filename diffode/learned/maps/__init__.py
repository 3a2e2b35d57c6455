"""Training of flow maps: where states come from, the laws of their times, the residuals, the table of methods, one loop."""
