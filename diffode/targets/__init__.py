"""Distributions whose noised laws are known in closed form, and the registry of named ones."""

from __future__ import annotations

from diffode.targets.catalogue import Card, card, get, names, register, registry, tags
from diffode.targets.mixture import GaussianMixture
from diffode.targets.parameters import LowRank
from diffode.targets.target import Target
from diffode.targets.tilted import TiltedLaw

__all__ = ["Card", "GaussianMixture", "LowRank", "Target", "TiltedLaw", "card", "get", "names", "register", "registry", "tags"]
