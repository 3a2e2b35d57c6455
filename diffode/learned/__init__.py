"""Solvers that learn: trained tables and grids, AMED, tables conditioned on the sample, few-step generators, and their files.

:func:`train` trains by a method's name, every training gives a :class:`Trained`, and :func:`load` reads its file.
"""

import warnings
from typing import Any

from diffode.grid_files import TrainedGrid, load_grid
from diffode.learned.conditional.amed import LearnedAMED, load_amed
from diffode.learned.conditional.amed_training import train_amed
from diffode.learned.conditional.conditioned import load_conditioned
from diffode.learned.conditional.conditioning import condition
from diffode.learned.grids.compensation import train_compensation
from diffode.learned.grids.grid_training import train_decoupled, train_grid
from diffode.learned.grids.levels import dmn, gits, ld3, ld3_decoupled, search
from diffode.learned.heads.head_training import train_head
from diffode.learned.heads.jump_training import train_jump
from diffode.learned.heads.node_training import train_nodes
from diffode.learned.limit import Limit
from diffode.learned.loading import load
from diffode.learned.maps.table import MAP_METHODS
from diffode.learned.maps.trained_map import TrainedMap
from diffode.learned.maps.training import train_map
from diffode.learned.methods import train
from diffode.learned.progress import Step
from diffode.learned.tables.training import train_gaussian, train_table
from diffode.learned.tables.tuning import tune_universal
from diffode.learned.trained import Errors, History, Trained
from diffode.solvers.trained.checkpoints import Checkpoint, load_checkpoint
from diffode.training_facts import Facts

__all__ = [
    "MAP_METHODS",
    "Checkpoint",
    "Errors",
    "Facts",
    "History",
    "LearnedAMED",
    "Limit",
    "Step",
    "Trained",
    "TrainedGrid",
    "TrainedMap",
    "condition",
    "dmn",
    "gits",
    "ld3",
    "ld3_decoupled",
    "load",
    "load_amed",
    "load_checkpoint",
    "load_conditioned",
    "load_grid",
    "search",
    "train",
    "train_amed",
    "train_compensation",
    "train_decoupled",
    "train_gaussian",
    "train_grid",
    "train_head",
    "train_jump",
    "train_map",
    "train_nodes",
    "train_table",
    "tune_universal",
]

#: Former names of the result of a training.
_FORMER = ("TrainedAMED", "TrainedConditioned", "TunedUniversal")


def __getattr__(name: str) -> Any:
    if name == "save_amed":
        warnings.warn("save_amed(solver, file) is solver.save(file) now", DeprecationWarning, stacklevel=2)
        return LearnedAMED.save
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"diffode.learned.{name} is diffode.learned.Trained now; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    return Trained
