"""``stream``: samples without end in constant memory, the same points however they are cut into chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, overload

import torch
from torch import Tensor

from diffode import grids
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.randomness import RowNoise, keyed_normals
from diffode.solvers.informed import for_run
from diffode.solvers.registry import table_solver
from diffode.solvers.run import run_rows, table_for
from diffode.solvers.run_options import Extent, RunOptions
from diffode.solvers.solver import Solver
from diffode.solvers.starts import part_of
from diffode.tableau import Tableau

#: Numbers of the rows that run together: few enough to stay near the processor, so many that calls cost little beside them.
_NUMBERS = 2**15
#: Fewest rows that run together, however long one is.
_LEAST_ROWS = 256


@overload
def stream(
    field: Field,
    n: int,
    *,
    solver: str | Solver,
    grid: grids.Times | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    key: str = "stream",
    rows: int = 65_536,
    dtype: torch.dtype = torch.float64,
    on_failure: Literal["raise", "return"] = "raise",
    between: tuple[float, float] | None = None,
    with_starts: Literal[False] = False,
) -> Iterator[Tensor]: ...


@overload
def stream(
    field: Field,
    n: int,
    *,
    solver: str | Solver,
    grid: grids.Times | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    key: str = "stream",
    rows: int = 65_536,
    dtype: torch.dtype = torch.float64,
    on_failure: Literal["raise", "return"] = "raise",
    between: tuple[float, float] | None = None,
    with_starts: Literal[True],
) -> Iterator[tuple[Tensor, Tensor]]: ...


def stream(
    field: Field,
    n: int,
    *,
    solver: str | Solver,
    grid: grids.Times | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    key: str = "stream",
    rows: int = 65_536,
    dtype: torch.dtype = torch.float64,
    on_failure: Literal["raise", "return"] = "raise",
    between: tuple[float, float] | None = None,
    with_starts: bool = False,
) -> Iterator[Tensor] | Iterator[tuple[Tensor, Tensor]]:
    """Samples of a field as an iterator of chunks, each (rows, *shape), in memory that does not grow with their number.

    The starts are N(0, sigma^2 I) at the first time. Point i depends on the field, the solver, the grid, ``seed``, ``key`` and
    ``n``, but not on ``rows``: rows run together in batches of a fixed size. With compiled kernels (of mixtures, mostly in few
    dimensions), or any field whose rows do not depend on their batch to the last bit, it does not depend on ``n`` either.

    Args:
        field: a field that knows the shape of its rows, such as an exact one; for others set ``field.shape``.
        n: number of points.
        solver: a solver that writes a table, or its spec; one that draws noise draws it from ``seed``.
        grid, steps, nfe, between: as in :func:`diffode.solve`.
        seed: seed of the starts and of the noise.
        key: a text that, with the seed, fixes the starts: other keys, other points.
        rows: number of points of a chunk; the last one may have fewer.
        dtype: of the points.
        on_failure: ``"raise"`` raises :class:`NumericalError` when a row becomes non-finite, ``"return"`` NaN-fills it.
        with_starts: whether chunks are pairs, ends and the starts they come from, for ``metrics.streamed("endpoint", field)``.

    Raises:
        ArgumentError: for a wrong argument; CapabilityError for a solver that writes no table.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> total = torch.zeros(2, dtype=torch.float64)
    >>> for chunk in diffode.stream(field, 5000, solver="dpmpp:order=2", nfe=10, rows=2048):
    ...     total += chunk.sum(0)
    >>> bool((total / 5000).norm() < 0.3)
    True
    """
    for name, value, least in (("n", n, 0), ("rows", rows, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(f"{name} must be a number of points >= {least}, got {value!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed must be an integer >= 0 and < 2^63, got {seed!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field, got {type(field).__name__}")
    if field.shape is None:
        raise ArgumentError("the field must know the shape of its rows: set field.shape, such as (2,) or (1, 8, 8)")
    if not isinstance(field.shape, tuple | list) or not all(type(size) is int and size >= 1 for size in field.shape):
        raise ArgumentError(f"field.shape must be the sizes of a row, such as (2,) or (1, 8, 8), got {field.shape!r:.60}")
    if not isinstance(key, str) or not key.isprintable():
        raise ArgumentError(f"key must be a text of characters that can be printed, got {key!r}")
    recipe = table_solver(for_run(solver, field, math.prod(field.shape)))
    path = field.require_path("the noise of its starts")
    path = path if between is None else part_of(path, between, grid)
    table = table_for(field, recipe, Extent(path, grid, steps, nfe))
    options = RunOptions(generator=seed if table.draws else None, on_failure=on_failure)
    scale = path.sigma(table.ends[0])
    batches = _batches(table, field, n, scale, seed, key, dtype, options)
    if with_starts:
        pairs = _in_chunks((torch.stack(pair, dim=1) for pair in batches), rows)
        return ((pair[:, 0], pair[:, 1]) for pair in pairs)
    return _in_chunks((ends for ends, _ in batches), rows)


def _batches(
    table: Tableau, field: Field, n: int, scale: float, seed: int, key: str, dtype: torch.dtype, options: RunOptions
) -> Iterator[tuple[Tensor, Tensor]]:
    """The ends and starts of all rows, batch by batch."""
    shape = field.shape or ()
    size = max(_LEAST_ROWS, _NUMBERS // max(1, math.prod(shape)))
    counts = (min(size, n - begin) for begin in range(0, n, size))
    draw: Callable[[int], Tensor] | None = None
    if field.source is None:
        pieces = keyed_normals(shape, counts, seed=seed, key=key)
    else:
        drawn = field.source.keyed_draws(math.prod(shape), counts, seed=seed, key=key)
        pieces = (piece.reshape(-1, *shape) for piece in drawn)
    for number, noise in enumerate(pieces):
        x = (scale * noise).to(dtype)
        if isinstance(draw, RowNoise):
            draw.go_on(len(x))
        else:
            draw = options.draws(table, x)
        try:
            yield run_rows(table, field, x, draw, options).x, x
        except NumericalError as error:
            begin = number * size
            raise NumericalError(f"of rows {begin:,} to {begin + len(x) - 1:,}: {error}", error.solution) from error


def _in_chunks(batches: Iterator[Tensor], rows: int) -> Iterator[Tensor]:
    """The same rows in chunks of another length."""
    held: list[Tensor] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        while count >= rows:
            whole = torch.cat(held) if len(held) > 1 else held[0]
            yield whole[:rows].clone() if len(whole) > rows else whole
            held, count = [whole[rows:]] if count > rows else [], count - rows
    if count:
        yield torch.cat(held)
