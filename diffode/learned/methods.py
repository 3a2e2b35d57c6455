"""Training by name: the same request for every method, ``train("ld3:solver=ipndm", "ring8", 6)``.

A method of training flow maps is no entry of its own here: it is a row of ``maps/table.py``, with its residual in ``maps/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from diffode.arguments import check_count
from diffode.errors import ArgumentError, UnknownNameError, suggestion
from diffode.fields import Field
from diffode.learned.conditional.amed_training import train_amed
from diffode.learned.conditional.conditioning import condition
from diffode.learned.grids.compensation import train_compensation
from diffode.learned.grids.grid_training import train_decoupled, train_grid
from diffode.learned.heads.head_training import train_head
from diffode.learned.heads.jump_training import train_jump
from diffode.learned.heads.node_training import train_nodes
from diffode.learned.limit import Limit
from diffode.learned.maps.table import MAP_METHODS, MapMethod
from diffode.learned.maps.training import train_map
from diffode.learned.progress import Progress
from diffode.learned.tables.training import train_table
from diffode.learned.tables.tuning import tune_universal
from diffode.learned.trained import Trained
from diffode.paths import Path
from diffode.solvers.solver import check_budget
from diffode.specs import format_spec, parse_spec
from diffode.targets import Target

#: Share of a limit of seconds after which a conditioned table's own training ends and its conditioning begins.
_TABLE_SHARE = 0.5


class Method(NamedTuple):
    """A way to train.

    Attributes:
        make: the function, called with the field, ``nfe`` and keyword arguments.
        options: names of its options.
        takes: the arguments of a request that it takes, and what it calls them.
        several: whether it takes several numbers of evaluations.
    """

    make: Callable[..., Trained]
    options: tuple[str, ...]
    takes: Mapping[str, str]
    several: bool = False


def train(
    method: str,
    field: Field | Target | str,
    nfe: int | Sequence[int],
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    points: int | None = None,
    steps: int | None = None,
    seconds: float = math.inf,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    resume_file: str | FilePath | None = None,
) -> Trained:
    """Train a solver or a grid for a field, by a method's name.

    Args:
        method: ``bespoke`` (all numbers of a table), ``conditioned`` (a table whose numbers depend on the sample),
            ``universal`` (the best member of the codebook), ``amed``, ``jump`` (a table that asks the field at inner levels
            alone), ``head`` (such a table with a network after each evaluation), ``nodes`` (the map on nodes), a grid by
            ``gits``, ``dmn``, ``ld3`` or ``search``, or ``ld3_decoupled``, the ratios of DC-Solver by ``dc``; a flow map by a
            method of ``MAP_METHODS``, such as ``flow_map`` or ``meanflow``; with options, as ``"ld3:solver=ipndm"``. The
            options are the further arguments of ``train_table``, ``condition``, ``tune_universal``, ``train_amed``,
            ``train_jump``, ``train_head``, ``train_nodes``, ``train_compensation``, of the functions of these names, and those
            of a row of the table.
        field: a target or its name, a network that ships (``trained:ring8``), or a field with a path.
        nfe: number of evaluations; for flow maps and ``dc`` one or more, of which the first decides whose errors are told.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        points: number of starts to train on; the default is the method's.
        steps: largest number of steps of the training: of Gauss-Newton, or of the optimiser for ``amed`` and flow maps; the
            default is the method's.
        seconds: limit of time, from the call on. It counts the exact ends of all starts and can't cut them short. If it ends
            the training early, the best so far is returned, and ``stopped_by`` says so.
        seed: seed of the starts; those of training, held out and of the test are separate streams.
        device: for flow maps, the device on which the network is trained.
        progress: called with every :class:`Step`.
        stop: a function called after every step; if it returns True, the best so far is returned.
        resume_file: for flow maps, a file of an interrupted training, as in :func:`train_map`.

    Returns:
        :class:`Trained`: ``diffode.solve(field, x, **trained.arguments)`` runs it.

    Raises:
        UnknownNameError: for an unknown method. ArgumentError, BudgetError: for a wrong argument or option.
        FieldError: if the method needs a gradient in x that the field has not.
        NumericalError: if nothing that the training could begin from gives finite states.

    >>> trained = train("dmn", "ring8", 5)
    >>> trained.solver.spec, len(trained.grid)
    ('ab:order=3,chart=data', 6)
    """
    name, options = parse_spec(method)
    if name not in METHODS:
        raise UnknownNameError("way to train", name, METHODS)
    chosen = METHODS[name]
    if not chosen.several:
        if not isinstance(nfe, int):
            some = "dc and flow maps take several"
            raise ArgumentError(f"nfe must be one number of evaluations for {name}, got {nfe!r:.60}; {some}")
        check_budget(nfe)
    wrong = next((key for key in options if key not in chosen.options), None)
    if wrong is not None:
        known = ", ".join(chosen.options) or "none"
        raise ArgumentError(f"{name} does not take the option {wrong!r}{suggestion(wrong, chosen.options)}; options: {known}")
    for key, value in (("points", points), ("steps", steps)):
        if value is None:
            continue
        if key not in chosen.takes:
            raise ArgumentError(f"{name} has no number of {key} to choose: leave {key} out")
        if chosen.takes[key] != key:
            # Its own error would name an argument that the caller has not given.
            check_count(key, value, 1)
        options[chosen.takes[key]] = value
    common: dict[str, Any] = {"path": path, "dim": dim, "seconds": seconds, "seed": seed, "progress": progress, "stop": stop}
    if name in MAP_METHODS:
        common["device"] = device
    elif device != "cpu":
        raise ArgumentError(f"{name} is trained on the CPU, or where its field is: leave device out")
    if resume_file is not None:
        if name not in MAP_METHODS:
            raise ArgumentError(f"{name} can't go on with an interrupted training: leave resume_file out")
        common["resume_file"] = resume_file
    return chosen.make(field, nfe, **common, **options)


def _conditioned(
    field: Field | Target | str,
    nfe: int,
    *,
    seconds: float,
    points: int | None = None,
    stop: Callable[[], bool] | None = None,
    **given: Any,
) -> Trained:
    limit = Limit(seconds, stop)
    common = {key: given.pop(key) for key in ("path", "dim", "seed", "progress")}
    own = {key: given.pop(key) for key in ("begin_from", "chart", "statistics") if key in given}
    table = train_table(field, nfe, points=points, seconds=limit.part(_TABLE_SHARE), **own, **common)
    return condition(table, field, points=points, seconds=limit, **common, **given)


def _amed(field: Field | Target | str, nfe: int, **given: Any) -> Trained:
    # Every step costs two evaluations, and the analytic first step saves one.
    return train_amed(field, (nfe + 1) // 2, analytic_first_step=nfe % 2 == 1, **given)


def _grid(method: str) -> Callable[..., Trained]:
    def make(field: Field | Target | str, nfe: int, **given: Any) -> Trained:
        return train_grid(method, field, nfe, **given)

    return make


def _map(row: MapMethod) -> Method:
    def make(field: Field | Target | str, nfe: int | Sequence[int], **given: Any) -> Trained:
        options = {key: given.pop(key) for key in row.defaults if key in given}
        return train_map(format_spec(row.name, options), field, nfe, **given)

    takes = {"steps": "steps", **({"points": "points"} if row.trajectories else {})}
    return Method(make, tuple(row.defaults), takes, several=True)


#: Options of grids whose levels are trained.
_LEVELS = ("solver", "grid", "rounds")
#: Options of grids of solvers that know the data.
_INFORMED = ("jump", "statistics")
#: The methods by name.
METHODS = {
    "bespoke": Method(
        train_table,
        ("begin_from", "start", "chart", "statistics", "consistent", "trajectory", "groups"),
        {"points": "points", "steps": "steps"},
    ),
    "conditioned": Method(
        _conditioned,
        ("begin_from", "chart", "statistics", "units", "directions", "patience"),
        {"points": "points", "steps": "steps"},
    ),
    "universal": Method(tune_universal, ("chart", "statistics"), {"points": "points", "steps": "steps"}),
    "amed": Method(
        _amed,
        (
            "grid",
            "jump",
            "chart",
            "statistics",
            "host",
            "order",
            "teacher",
            "per_step",
            "direction_range",
            "time_range",
            "batch",
            "rate",
            "rounds",
        ),
        {"points": "points", "steps": "rounds"},
    ),
    "jump": Method(train_jump, (), {"points": "points", "steps": "steps"}),
    "head": Method(train_head, ("kind", "units", "layers"), {"points": "points", "steps": "steps"}),
    "nodes": Method(train_nodes, ("count", "kind", "span"), {"points": "points"}),
    "gits": Method(_grid("gits"), ("solver", "teacher", "discount", *_INFORMED), {"points": "points"}),
    "dmn": Method(_grid("dmn"), ("solver", "power"), {}),
    "ld3": Method(_grid("ld3"), (*_LEVELS, *_INFORMED), {"points": "points", "steps": "rounds"}),
    "ld3_decoupled": Method(train_decoupled, _LEVELS, {"points": "points", "steps": "rounds"}),
    "dc": Method(train_compensation, ("order", "variant", "chart", "grid", "weights"), {"points": "points"}, several=True),
    "search": Method(_grid("search"), ("solver", *_INFORMED), {"points": "points"}),
    **{name: _map(row) for name, row in MAP_METHODS.items()},
}
