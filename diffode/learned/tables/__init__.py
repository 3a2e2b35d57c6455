"""Training of a table for one field, from published samplers."""
