"""Guided fields: two fields mixed by a rule with a weight, and the texts that name them.

Throughout, weight 0 is the unconditional field, weight 1 the conditional one: D = D_u + w (D_c - D_u). Libraries call w the
guidance scale; the w of Ho and Salimans (arXiv 2207.12598) is w - 1 here.
"""

from diffode.fields.guidance.guided import KINDS, GuidedField, guide
from diffode.fields.guidance.rules import Linear, Projected, Rescaled, Rule
from diffode.fields.guidance.text import Guidance
from diffode.fields.guidance.weights import GridWeight, Weight

__all__ = ["KINDS", "GridWeight", "Guidance", "GuidedField", "Linear", "Projected", "Rescaled", "Rule", "Weight", "guide"]
