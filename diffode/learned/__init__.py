"""Solvers that learn: trained tables and grids, AMED, tables conditioned on the sample, and the files that hold them."""

from diffode.grid_files import TrainedGrid, load_grid
from diffode.learned.conditional.amed import LearnedAMED, TrainedAMED, load_amed, save_amed, train_amed
from diffode.learned.conditional.conditioned import TrainedConditioned, condition, load_conditioned
from diffode.learned.grids.grid_training import train_decoupled, train_grid
from diffode.learned.grids.levels import dmn, gits, ld3, ld3_decoupled, search
from diffode.learned.limit import Limit
from diffode.learned.tables.training import Trained, train_gaussian, train_table
from diffode.learned.universal.tuning import TunedUniversal, tune_universal
from diffode.solvers.trained.checkpoints import Checkpoint, load_checkpoint

__all__ = [
    "Checkpoint",
    "LearnedAMED",
    "Limit",
    "Trained",
    "TrainedAMED",
    "TrainedConditioned",
    "TrainedGrid",
    "TunedUniversal",
    "condition",
    "dmn",
    "gits",
    "ld3",
    "ld3_decoupled",
    "load_amed",
    "load_checkpoint",
    "load_conditioned",
    "load_grid",
    "save_amed",
    "search",
    "train_amed",
    "train_decoupled",
    "train_gaussian",
    "train_grid",
    "train_table",
    "tune_universal",
]
