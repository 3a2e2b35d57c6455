"""The file of anything trained, as the result that was saved to it: the schema in the file says what it holds."""

from __future__ import annotations

from pathlib import Path as FilePath

import torch

from diffode import paths, solvers
from diffode.errors import FileFormatError
from diffode.grid_files import GRID_SCHEMA, load_grid
from diffode.input_files import believed, shown
from diffode.learned.conditional.amed import AMED_SCHEMA, LearnedAMED, load_amed
from diffode.learned.conditional.conditioned import CONDITIONED_SCHEMA, ConditionedSolver, load_conditioned
from diffode.learned.maps.table import MAP_METHODS
from diffode.learned.maps.trained_map import SavedMap, TrainedMap
from diffode.learned.trained import Saved, Trained
from diffode.maps import LearnedMap
from diffode.maps.files import MAP_SCHEMA
from diffode.solvers.informed import informed
from diffode.solvers.trained.bespoke import Bespoke
from diffode.solvers.trained.checkpoints import CHECKPOINT_SCHEMA
from diffode.solvers.trained.generators import Head, Jump, OfNodes
from diffode.solvers.trained.jumps import JUMPS_SCHEMA, load_jumps
from diffode.solvers.trained.mapped import MapSolver
from diffode.solvers.trained.nodes import NODES_SCHEMA
from diffode.solvers.trained.ratios import RATIOS_SCHEMA, RegressedDC, load_ratios
from diffode.tensor_files import schema_of


def load(file: str | FilePath) -> Trained:
    """Read what a training saved: a table, a conditioned table, an AMED, a jump table, its heads, a map on nodes, a flow map,
    a grid or ratios of DC-Solver.

    Args:
        file: a file that ``.save(file)`` of a result or ``diffode train`` wrote.

    Returns:
        :class:`Trained`, without history, which files do not hold. Its solver has the spec that runs the file anywhere.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged, or holds nothing trained.
    """
    schema = schema_of(file)
    if schema == CHECKPOINT_SCHEMA:
        table = Bespoke(file=str(file))
        return Trained(table, table.checkpoint.nfe, table.checkpoint, table.checkpoint)
    if schema == GRID_SCHEMA:
        grid = load_grid(file)
        with believed(file, "a grid for a solver of diffode's, on a path of diffode's", "train it again"):
            # The path and the solver are only looked up: a file may name code that it should not run.
            times = torch.tensor(grid.times_on(paths.registry.registered(grid.path)), dtype=torch.float64)
            recipe = solvers.registry.registered(grid.solver)
            nfe = grid.steps - (recipe.jump is not None)
            told = recipe if grid.statistics is None else informed(recipe, grid.statistics)
            return Trained(told, nfe, grid, grid, times)
    if schema == RATIOS_SCHEMA:
        ratios = load_ratios(file)
        nfe, weight = next(iter(ratios.trained))
        regressed = RegressedDC(file=str(file), weight=weight if len(ratios.weights) > 1 else None)
        return Trained(regressed, nfe, ratios, ratios)
    if schema == MAP_SCHEMA:
        mapped = MapSolver(file=str(file))
        content_of_map = mapped.phi
        if not isinstance(content_of_map, LearnedMap) or content_of_map.facts is None:
            raise FileFormatError(f"{file} holds no trained map")
        if content_of_map.method.partition(":")[0] not in MAP_METHODS:
            raise FileFormatError(
                f"{file} holds a map of the method {shown(content_of_map.method)}, which is none of {', '.join(MAP_METHODS)}; "
                f"it runs as the solver {mapped.spec!r}"
            )
        jumps = next(iter(content_of_map.held_out), 1)
        return TrainedMap(mapped, jumps, content_of_map.facts, SavedMap(content_of_map))
    solver: ConditionedSolver | LearnedAMED | Jump | OfNodes
    content: Saved
    if schema == CONDITIONED_SCHEMA:
        solver = load_conditioned(file)
        content = solver.table
        facts = solver.table.facts
    elif schema == AMED_SCHEMA:
        solver = content = load_amed(file)
        facts = solver.facts
    elif schema == JUMPS_SCHEMA:
        content = load_jumps(file)
        solver = Head(file=str(file)) if content.heads else Jump(file=str(file))
        facts = content.facts
    elif schema == NODES_SCHEMA:
        solver = OfNodes(file=str(file))
        content, facts = solver.trainee, solver.trainee.facts
    else:
        raise FileFormatError(f"{file} has schema {shown(schema)}, which is of no result of training")
    if facts is None:
        raise FileFormatError(
            f"{file} is of a version whose files told no errors; it runs as the solver {solver.spec!r}, and trained again it "
            "can be loaded"
        )
    return Trained(solver, solver.nfe, facts, content)
