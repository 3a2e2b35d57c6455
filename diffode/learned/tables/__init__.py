"""A table for one field: published samplers to begin from, and training."""
