"""What a practitioner asks for in place of a suite's own names: a schedule, a kind of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

from diffode import grids, paths, solvers, targets
from diffode.adapters.scheduler_files import note_of_file, path_of_file
from diffode.errors import ArgumentError, DiffodeError, UnknownNameError, suggestion
from diffode.fields.own import FieldText
from diffode.fields.problem_text import guidance_of, parts_of
from diffode.solvers.baselines import Baseline
from diffode.solvers.direct import DirectSolver
from diffode.solvers.solver import WritesTable
from diffode.studies.paste import method_parts
from diffode.studies.problem import INTERVAL, bridge_of
from diffode.studies.ranking import Curve
from diffode.studies.suite import Suite, plain_name


def path_of_schedule(schedule: str) -> str:
    """The spec of the path of a schedule: ``sd15``, ``sdxl``, ``flux``, ``edm``, another path, or a ``scheduler_config.json``.

    Raises:
        ArgumentError, FileFormatError: if there is none, or the file holds none that has a name.

    >>> path_of_schedule("sdxl"), path_of_schedule("flux")
    ('ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012', 'rectified_flow')
    """
    if _is_file(schedule):
        return path_of_file(schedule).spec
    try:
        return paths.get(schedule).spec
    except UnknownNameError as error:
        known = [*paths.PUBLISHED, *paths.names()]
        near = suggestion(schedule.lower(), known).removeprefix("; ")
        advice = f"{near + ' ' if near else ''}Give one of these, or the scheduler_config.json of a model"
        raise UnknownNameError("schedule", schedule, dict.fromkeys(known), advice=advice) from error


def schedule_note(schedule: str | None) -> str:
    """What a schedule's file says against solvers of a differential equation; an empty text for names, and for most files."""
    return note_of_file(schedule) if schedule is not None and _is_file(schedule) else ""


def _is_file(schedule: str) -> bool:
    return schedule.endswith(".json") or FilePath(schedule).is_file()


def same_path(text: str, spec: str) -> bool:
    """Whether the path that a suite names has a spec."""
    if text == INTERVAL:
        return False
    try:
        return text == spec or paths.get(text).spec == spec
    except DiffodeError:  # The path of stored results may no longer exist.
        return False


def on_schedule(suite: Suite, path: str) -> Suite:
    """The suite's runs on a schedule: its own runs there, or else all of them, with the path in the place of their own.

    Grids that would begin elsewhere than at the schedule's noisy end, as published levels do on another schedule, are left out,
    since their runs would have less to do.

    Raises:
        ArgumentError: if no run of the suite can be made there.
    """
    here = [cell for cell in suite.cells if same_path(cell.path, path)]
    if not here:
        kind = type(paths.get(path))
        known = {text for text in {cell.path for cell in suite.cells} if text != INTERVAL}
        alike = {text for text in known if type(paths.get(text)) is kind} or known
        fitting = {grid for grid in {cell.grid for cell in suite.cells} if _whole(grid, path)}
        here = [replace(cell, path=path) for cell in suite.cells if cell.path in alike and cell.grid in fitting]
    if not here:
        raise ArgumentError(f"suite {suite.name!r} has no run that can be made on path {path!r}: choose another suite")
    return replace(suite, name=plain_name(f"{suite.name}-on-{path}"), cells=tuple(dict.fromkeys(here)))


def _whole(grid: str, path: str) -> bool:
    """Whether a grid begins at the noisy end of a path."""
    on = paths.get(path)
    try:
        first = float(grids.get(grid, on, 4 if grids.is_named(grid) else None)[0])
    except DiffodeError:
        return False
    return abs(first - on.t_max) <= 1e-9 * on.t_max


def on_path(curves: Sequence[Curve], path: str | None) -> list[Curve]:
    """The curves on a path, as the suite spells it; all of them for None.

    Raises:
        ArgumentError: if there are none; it lists the paths that were run.
    """
    found = [c for c in curves if path in (None, c.path)]
    if not found:
        known = sorted({c.path for c in curves})
        raise ArgumentError(
            f"nothing of this suite was run on path {path!r}{suggestion(str(path), known)}; paths that were: "
            f"{', '.join(known) or 'none'}. Take one of these, or run the suite there, diffode bench SUITE --schedule PATH"
        )
    return found


def targets_like(named: Sequence[str], asked: str) -> list[str]:
    """The targets among some that are asked for, by name or by a tag of theirs such as ``images``.

    Raises:
        ArgumentError: if none is; it lists names and tags.

    >>> targets_like(["ring8", "digits-gmm10", "patches-gmm"], "images")
    ['digits-gmm10', 'patches-gmm']
    """
    if asked in named:
        return [asked]
    by_target = {name: tags_of(name) for name in named}
    found = [name for name, own in by_target.items() if asked in own]
    if not found:
        known = sorted({tag for own in by_target.values() for tag in own})
        raise ArgumentError(
            f"nothing of this suite was run on target or tag {asked!r}; targets: {', '.join(sorted(named))}; tags: "
            f"{', '.join(known) or 'none'}. Name another suite, or write one with this target: diffode new suite NAME"
        )
    return found


def calls_of(guidance: float | None) -> int:
    """Network calls of one evaluation: two with guidance, unless the weight leaves one of the networks out."""
    return 1 if guidance in (None, 0.0, 1.0) else 2


def once_a_step(curves: Sequence[Curve], steps: int, path: str | None = None) -> list[Curve]:
    """The curves of methods that ask the model once a step, in a run of some steps: programs count steps alone.

    Raises:
        ArgumentError: if there are none.
    """
    asks = {method: _asks_once(method, steps, path or "edm") for method in {c.method for c in curves}}
    found = [c for c in curves if asks[c.method]]
    if curves and not found:
        raise ArgumentError(
            f"no method that was run here asks the model once a step: give the budget in evaluations, --nfe {steps}, and see "
            "the lines to paste for the steps that it buys"
        )
    return found


def _asks_once(method: str, steps: int, path: str) -> bool:
    """Whether a method makes as many steps as evaluations, in a run of some evaluations."""
    spec, grid = method_parts(method)
    recipe = solvers.get(spec)
    # Other libraries' methods do not say what a step of theirs asks.
    if recipe.nfe_per_step != 1 or isinstance(recipe, Baseline):
        return False
    if not isinstance(recipe, WritesTable):
        return not isinstance(recipe, DirectSolver) or recipe.takes_budget
    try:
        table = recipe.within(path, grid, steps)
    except DiffodeError:  # A table that needs the data's statistics, or whose listed times are more, is not written here.
        return True
    return table.nfe <= len(table.outputs) - 1


def check_weight(suite: Suite, weight: float | None) -> None:
    """Raise ArgumentError, which lists the weights, if no run of a suite is guided with a weight; None asks for none."""
    _runs_of(list(dict.fromkeys(cell.target for cell in suite.cells)), weight)


def guided_by(curves: Sequence[Curve], weight: float | None) -> list[Curve]:
    """The curves of problems that are guided with a weight; all of them for None.

    Raises:
        ArgumentError: if none is; it lists the weights that were run.
    """
    own = _runs_of(list(dict.fromkeys(c.target for c in curves)), weight)
    return [c for c in curves if c.target in own]


def _runs_of(names: Sequence[str], weight: float | None) -> list[str]:
    """The targets that are guided with a weight, all for None; ArgumentError if there are none."""
    if weight is None:
        return list(names)
    weights = {name: guidance_of(name) for name in names}
    found = [name for name, one in weights.items() if one is not None and one.weight == weight]
    if not found:
        known = sorted({one.weight for one in weights.values() if one is not None})
        run = ", ".join(f"{one:g}" for one in known) or "none"
        raise ArgumentError(
            f"this suite has no run with guidance {weight:g}; weights that it has: {run}. Take one of these, or run yours, "
            f"diffode bench SUITE --guide label=NAME,weight={weight:g}"
        )
    return found


def tags_of(name: str) -> list[str]:
    """The tags of a study's target; none for fields, bridges and targets that no longer exist."""
    if FieldText.names(name) or bridge_of(name) is not None:
        return []
    try:
        return targets.tags(parts_of(name)[0])
    except DiffodeError:  # The target of stored results may no longer exist.
        return []


def budget_note(curves: Sequence[Curve], nfe: int) -> str:
    """A sentence about a budget that was not run as it is; empty if it was."""
    run = sorted({n for c in curves for n in c.budgets})
    if nfe in run or not run:
        return ""
    if nfe > run[-1]:
        return f"nothing was run with more than {run[-1]} evaluations: this is the ranking of these"
    below = [n for n in run if n < nfe]
    # A run whose cost depends on how it goes may belong to a larger budget and yet fit.
    return (
        f"{nfe} evaluations were not run: an error is that of the largest run within them, mostly {below[-1]}" if below else ""
    )
