"""Members of a codebook that no training was needed for."""

import torch

from diffode.learned.universal import codebook
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau.stages import count_of

FIRST, LAST = (2.0, 800.0), (3e-6, 0.04)


def like(nfe):
    """A table of no numbers, with the ranges that codebooks have here."""
    return Ranged(nfe, FIRST, LAST, 256, torch.zeros(9, count_of(nfe), dtype=torch.float64))


def random_members(nfe, count=3):
    """Published samplers, moved a little in every coefficient."""
    chosen = codebook.published(nfe, like(nfe))[:: max(1, len(codebook.published(nfe, like(nfe))) // count)][:count]
    generator = torch.Generator().manual_seed(3)
    moved = [t.coefficients + 1e-3 * torch.randn(t.coefficients.shape, generator=generator).double() for t in chosen]
    return torch.stack(moved)
