"""Training of flow maps, by any method of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as FilePath

import torch

from diffode.arguments import check_count
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.learned.limit import Limit
from diffode.learned.maps.law_run import LawRun
from diffode.learned.maps.options import options_of
from diffode.learned.maps.run import Run
from diffode.learned.maps.snapshots import resume, save_snapshot
from diffode.learned.maps.sources import Sources
from diffode.learned.maps.trained_map import TrainedMap
from diffode.learned.progress import Progress
from diffode.learned.request import Request, with_gradients
from diffode.maps import LearnedMap
from diffode.paths import Path
from diffode.solvers.solver import check_budget
from diffode.targets import Target

#: Number of steps unless it is given.
_STEPS = 4000
#: Numbers of jumps unless they are given.
_JUMPS = (1, 2, 4)
#: Number of trajectories unless it is given: by number of coordinates, up to each.
_POINTS = ((1, 16_384), (3, 32_768), (10**9, 65_536))


@with_gradients
def train_map(
    method: str,
    field: Field | Target | str,
    nfe: int | Iterable[int] | None = None,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    points: int | None = None,
    steps: int | None = None,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    device: torch.device | str = "cpu",
    begin_from: LearnedMap | str | FilePath | None = None,
    resume_file: str | FilePath | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainedMap:
    """Train a flow map of a field, by a published method.

    Args:
        method: a name of ``diffode.learned.MAP_METHODS`` with options, as ``"meanflow:law=uniform"``; ``flow_map`` learns from
            exact trajectories.
        field: a target or its name, or a field with a path: exact, or a network as the teacher.
        nfe: the numbers of jumps for which it is judged, and for which grids are kept; (1, 2, 4) unless given. The first one
            decides. A consistency function, such as cd gives, is judged for one jump: further ones draw noise. ``imm`` and
            ``sid`` learn the law of the data and are judged by it, whatever noise they couple with which point; ``sid`` makes
            one jump.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        points: number of trajectories, for methods that learn from them.
        steps: number of steps of the optimiser.
        seconds: limit of time, from the call on, trajectories and exact ends included, which it can't cut short. If it ends
            the training early, the best so far is returned, and ``stopped_by`` says so.
        seed: seed of all streams: the network, trajectories, batches, held-out starts, test starts.
        device: the device on which the network is trained; the map that it gives runs anywhere.
        begin_from: a map, or the file of one, from whose weights the training begins.
        resume_file: a file for an interrupted training. If it exists, the training goes on from it, and gives the numbers that
            it would have given at once; if this one is ended early, it is written, and removed when all steps were taken.
        progress: called with every step; ``error`` is the loss, ``held_out`` the last error on held-out starts.
        stop: a function called after every step; if it returns True, the best so far is returned.

    Returns:
        :class:`TrainedMap`: ``.map(x, s, t)``, ``.solver``, ``.held_out`` (errors by number of jumps, on starts that neither
        trained nor chose), ``.history``, ``.save(file)``. ``errors.before`` is that of the Gaussian flow of the data's mean and
        scale, ``errors.after`` that of the map with the first of ``nfe`` jumps.

    Raises:
        UnknownNameError: for an unknown method. ArgumentError: for a wrong argument or option, a method that needs data of a
            field that tells none, a teacher that it can't use.
        NumericalError: if the loss becomes non-finite.

    >>> trained = train_map("flow_map:width=16,depth=1", "gauss1d", nfe=(1,), points=256, steps=3)
    >>> trained.map.angles[0] > trained.map.angles[1]
    True
    """
    row, options = options_of(method)
    budgets = _budgets(nfe, row.name, options["fixed_end"], row.one_jump)
    limit = Limit.of(seconds, stop)
    request = Request.of("train_map", field, path=path, dim=dim, seed=seed, seconds=limit, progress=progress)
    total = _STEPS if steps is None else steps
    check_count("steps", total, 1)
    if points is not None and not row.trajectories:
        raise ArgumentError(f"{row.name} draws its states anew at every step and has no number of points: leave points out")
    count = next(most for dims, most in _POINTS if request.width <= dims) if points is None else points
    check_count("points", count, 2)
    sources = Sources(request, count, device=_usable(device))
    if row.one_jump:
        request.check_row_times()
        request.check_gradient()
    elif not row.trajectories:
        # States of other methods are noised data, whoever teaches.
        _ = sources.data
    asked = f"{method} on {request.target}, {request.path.spec}, {total} steps, {count} points, seed {seed}, nfe {budgets}"
    kind = LawRun if row.law_only else Run
    run = kind(row, options, request, sources, budgets, total, begin_from, asked)
    if resume_file is None:
        return run.trained()
    file = FilePath(resume_file)
    if file.exists():
        resume(run, file)
    trained = run.trained()
    if trained.stopped_by != "counts":
        save_snapshot(run, file)
    else:
        file.unlink(missing_ok=True)
    return trained


def _usable(device: torch.device | str) -> torch.device:
    """A device on which tensors can be made; ArgumentError for others."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise ArgumentError(f"device must be one of this machine, such as cpu or cuda, got {device!r}: {error}") from error
    if found.type == "meta":
        raise ArgumentError("device must be one of this machine, such as cpu or cuda, got meta, which holds no numbers")
    return found


def _budgets(nfe: int | Iterable[int] | None, name: str, fixed_end: bool, one_jump: bool) -> tuple[int, ...]:
    if nfe is None:
        return (1,) if fixed_end else _JUMPS
    given = (nfe,) if isinstance(nfe, int) else tuple(nfe) if isinstance(nfe, Iterable) else (nfe,)
    if not given or len(set(given)) < len(given):
        raise ArgumentError(f"nfe must be one or more different numbers of evaluations, got {nfe!r:.60}")
    for one in given:
        check_budget(one)
    if one_jump and given != (1,):
        raise ArgumentError(f"{name} trains a generator, which makes its points in one jump: nfe must be 1, got {nfe!r:.60}")
    if fixed_end and given != (1,):
        raise ArgumentError(
            f"{name} trains a consistency function, which is judged for one jump, since further ones draw noise: nfe must be "
            f"1, got {nfe!r:.60}"
        )
    return given
