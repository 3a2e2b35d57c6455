"""Tables that were written before: they never change, so that a run whose table is known needs not write it again.

A table is known by its solver with all its options and content, the path, the grid and the steps or budget. Only what is made
of plain values is kept: a solver, path or grid of a user's own may depend on what no key shows, and is asked each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from diffode import grids
from diffode.extensions import is_place
from diffode.paths import Path
from diffode.solvers.solver import WritesTable
from diffode.tableau import Tableau

#: Rows of all tables that are kept, each about a kilobyte; the tables asked for longest ago give way.
_MOST_ROWS = 2**14

_lock = threading.Lock()
_tables: OrderedDict[Hashable, Tableau] = OrderedDict()
_rows = 0


def kept(
    solver: WritesTable, path: Path | None, grid: grids.Times, amount: tuple[str, int | None], write: Callable[[], Tableau]
) -> Tableau:
    """The table of a solver on a path and a grid for an ``amount``, such as ``("steps", 10)``; ``write`` makes it if needed."""
    key = _key(solver, path, grid, amount)
    if key is None:
        return write()
    with _lock:
        table = _tables.get(key)
        if table is not None:
            _tables.move_to_end(key)
            return table
    table = write()
    if table.batch is None and len(table.rows) <= _MOST_ROWS // 4:
        _keep(key, table)
    return table


def forget() -> None:
    """Forget all tables, so that the next run of each solver writes its own."""
    global _rows
    with _lock:
        _tables.clear()
        _rows = 0


def _keep(key: Hashable, table: Tableau) -> None:
    global _rows
    with _lock:
        if key not in _tables:
            _tables[key] = table
            _rows += len(table.rows)
        while _rows > _MOST_ROWS:
            _, oldest = _tables.popitem(last=False)
            _rows -= len(oldest.rows)


def _key(solver: WritesTable, path: Path | None, grid: grids.Times, amount: tuple[str, int | None]) -> Hashable | None:
    """What a table depends on; None if that can't be told from plain values."""
    parts = (_plain(solver), _plain(path), _of_grid(grid))
    return None if None in parts else (*parts, type(amount[1]), amount, solver.content())


def _plain(value: object) -> Hashable | None:
    """An object of a class of this package by its class and attributes; None if these are not all numbers and texts."""
    if value is None:
        return "none"
    if type(value).__module__.partition(".")[0] != "diffode":
        return None
    attributes = vars(value)
    # Numbers that are equal may be of different types, and then have different texts.
    return (type(value), repr(attributes)) if all(map(_is_plain, attributes.values())) else None


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    # A text may name a place in a user's module.
    return value is None or type(value) in (bool, int, float) or (type(value) is str and not is_place(value))


def _of_grid(grid: grids.Times) -> Hashable | None:
    if isinstance(grid, str):
        return grid if grids.is_rule(grid) else None
    if isinstance(grid, Tensor):
        return tuple(grid.tolist()) if grid.dtype == torch.float64 and grid.ndim == 1 else None
    if isinstance(grid, tuple | list):
        return tuple(grid) if all(type(time) is float for time in grid) else None
    return None
