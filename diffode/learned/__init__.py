"""Solvers that learn: trained tables and grids, AMED, tables conditioned on the sample, and the files that hold them."""

from diffode.learned.amed import LearnedAMED, TrainedAMED, load_amed, save_amed, train_amed
from diffode.learned.conditioned import TrainedConditioned, condition
from diffode.learned.levels import dmn, gits, ld3, ld3_decoupled, search
from diffode.learned.training import Trained, train_gaussian, train_table
from diffode.learned.tuning import TunedUniversal, tune_universal

__all__ = [
    "LearnedAMED",
    "Trained",
    "TrainedAMED",
    "TrainedConditioned",
    "TunedUniversal",
    "condition",
    "dmn",
    "gits",
    "ld3",
    "ld3_decoupled",
    "load_amed",
    "save_amed",
    "search",
    "train_amed",
    "train_gaussian",
    "train_table",
    "tune_universal",
]
