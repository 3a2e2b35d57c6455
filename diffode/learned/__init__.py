"""Solvers that learn: trained tables, their training by Gauss-Newton, and the files that hold them."""

from diffode.learned.training import Trained, train_table

__all__ = ["Trained", "train_table"]
