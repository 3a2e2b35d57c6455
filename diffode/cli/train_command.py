"""``diffode train``: a sampler trained for a target and a number of evaluations, as a file with a picture."""

from __future__ import annotations

import math
import re
import shlex
import sys
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from diffode.cli import completed
from diffode.cli.methods_told import LAW_ONLY
from diffode.cli.output import guide_option, json_option, print_json, source_option

if TYPE_CHECKING:
    from diffode.learned import Trained, TrainedMap

#: Trainings whose solver runs from its file alone, which is always written.
_WRITTEN = ("bespoke", "conditioned", "amed", "jump", "head", "nodes", "ld3_decoupled")
#: Trainings that draw a picture beside the file.
_DRAWN = ("bespoke", "ld3_decoupled")
#: The end of a training in words, by ``stopped_by``.
_ENDED = {
    "counts": "all steps were taken: the same seed gives the same numbers again",
    "seconds": "the limit of seconds, before all steps were taken: another machine may get further or less far",
    "request": "Ctrl-C, before all steps were taken: this is the best result so far",
}


class Budgets(click.ParamType[tuple[int, ...]]):
    """Numbers of evaluations from 1 to 200, separated by commas."""

    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers of a text."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number of evaluations, or several, as 1,2,4", param, ctx)
        if not all(1 <= number <= 200 for number in numbers) or len(set(numbers)) < len(numbers):
            self.fail(f"{value!r} must be different numbers from 1 to 200", param, ctx)
        return numbers


@click.command("train")
@click.argument("spec")
@click.option(
    "--target",
    required=True,
    shell_complete=completed.targets,
    help="Target that is trained on, or a network that ships, as trained:ring8.",
)
@click.option(
    "--nfe",
    type=Budgets(),
    required=True,
    help="Number of evaluations; for a flow map and dc one or more, as 1,2,4, the first decides.",
)
@source_option
@guide_option
@click.option("--path", default="edm", show_default=True, help="Path spec.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=None,
    help="Most seconds of training, exact ends of starts included, which it can't cut short (not of gits and dmn); by default "
    "its counted steps alone end it.",
)
@click.option(
    "--points", type=click.IntRange(8, 10**6), default=None, help="Number of starts; the default depends on target and NFE."
)
@click.option("--steps", type=click.IntRange(1, 10**6), default=None, help="Most steps of training; SPEC's own by default.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of the starts.")
@click.option(
    "--output",
    default=None,
    help="File to write (.safetensors); by default SPEC-TARGET-NFE.safetensors; none for a grid, a member of universal, or "
    "dc for one NFE.",
)
@click.option("--device", default="cpu", show_default=True, help="Where a flow map's network is trained, such as cuda.")
@click.option("--force", is_flag=True, help="Write over a file that exists, and begin an interrupted training anew.")
@click.option("--resume", is_flag=True, help="Go on with a flow map's training that was interrupted.")
@json_option
def command(
    spec: str,
    target: str,
    nfe: tuple[int, ...],
    source: str | None,
    guide: str | None,
    path: str,
    seconds: float | None,
    points: int | None,
    steps: int | None,
    seed: int,
    output: str | None,
    device: str,
    force: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train SPEC on a target.

    SPEC is bespoke (all numbers of a table; options consistent=true, begin_from=SOLVER, trajectory=WEIGHT, and chart=gaussian
    for a table that jumps first and starts from mean and covariance of the data), conditioned (a table whose numbers depend on
    the sample; options units, chart=gaussian), universal (the member of the universal codebook that suits the target; with
    chart=gaussian the universal table of that chart, refined without derivatives of the field), amed (options host, order,
    time_range, per_step, jump=auto, chart=gaussian), jump (a table for few evaluations that asks the field at inner levels
    alone), head (such a table with a network after each evaluation; options kind, units, layers), nodes (the exact map on
    nodes in one or two dimensions, which asks no field; options count, kind), gits, dmn, ld3 or search (a grid for a solver of
    one evaluation per step, which is printed; options solver=NAME, and jump=auto for a jump whose level is the grid's first),
    ld3_decoupled (a grid with levels of its own), dc (ratios of DC-Solver, in the solver's spec, on a named grid; option
    grid=NAME; for several NFE, or weights=1+4+8 of a guided target, a file with a polynomial through them), or a way to train
    a flow map, such as flow_map, cd, shortcut or meanflow (diffode list methods names all, diffode show meanflow tells more).
    Errors are on starts outside of training, in units of the data's scale. A table's file runs anywhere as the solver
    bespoke:file=FILE, a map's as map:file=FILE, a grid's as the grid trained:file=FILE. The same command gives the same
    numbers unless --seconds ends it early. Ctrl-C keeps the best so far.

    \b
    Example:  diffode train bespoke --target ring8 --nfe 6
              diffode train bespoke:chart=gaussian --target ring8 --nfe 2
              diffode train universal --target ring8 --nfe 6
              diffode train universal:chart=gaussian --target ring8 --nfe 6
              diffode train bespoke --target ring8 --source student:dof=8 --nfe 6
              diffode train jump --target ring8 --guide label=three,weight=7.5 --nfe 8
              diffode train head --target ring8 --nfe 2
              diffode train ld3:solver=ipndm --target digits-gmm10 --nfe 8 --output ld3.safetensors
              diffode train dc --target ring8 --nfe 5,6,8,10 --output dc.safetensors
              diffode train ld3:solver=ipndm,jump=auto --target ring8 --nfe 2
              diffode train amed:host=ipndm,chart=gaussian --target ring8 --nfe 2
              diffode train shortcut --target ring8 --nfe 1,2,4
    """
    from diffode import learned
    from diffode.cli.training_log import TrainingLog, curve, interrupts
    from diffode.errors import ArgumentError, UnknownNameError
    from diffode.fields.problem_text import problem_text
    from diffode.learned import MAP_METHODS
    from diffode.learned.methods import METHODS
    from diffode.output_files import make_folder
    from diffode.specs import parse_spec

    target = problem_text(target, source, guide)
    name, options = parse_spec(spec)
    if name not in METHODS:
        raise UnknownNameError("trainable", name, METHODS)
    is_map = name in MAP_METHODS
    if len(nfe) > 1 and not METHODS[name].several:
        raise ArgumentError(f"nfe must be one number of evaluations for {name}; dc and flow maps take several")
    # Ratios for several numbers are no options of a spec.
    by_file = name in _WRITTEN or (name == "dc" and (len(nfe) > 1 or "weights" in options))
    # A member of the codebook is named by its solver's spec, a table that was refined is not.
    by_file = by_file or (name == "universal" and options.get("chart") == "gaussian")
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", target)
    file = FilePath(output or f"{name}-{plain}-{'-'.join(map(str, nfe))}.safetensors")
    writes = by_file or is_map or output is not None
    interrupted = file.with_suffix(".interrupted.safetensors")
    _check_output(name, file, writes, force or resume, draws=is_map or name in _DRAWN)
    _check_resume(interrupted, is_map, resume, force)
    if is_map:
        # An interrupted training is kept beside the file of its result.
        make_folder(file)
    try:
        with TrainingLog() as log, interrupts(log) as interrupt:
            trained = learned.train(
                spec, target, nfe if is_map or len(nfe) > 1 else nfe[0], path=path, points=points, steps=steps,
                seconds=seconds or math.inf, seed=seed, progress=log.step, stop=interrupt, device=device,
                resume_file=interrupted if is_map else None,
            )  # fmt: skip
            facts = _kept(trained, name, file, writes, by_file)
            log.finish()
            if len(trained.history.error) > 1:
                log.say(f"error, step by step: {curve(trained.history.held_out or trained.history.error)}")
    except KeyboardInterrupt:
        click.echo("diffode: interrupted; nothing was written, and the same command begins anew", err=True)
        sys.exit(130)
    if worse := _worse(trained):
        facts["note"] = worse
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    if interrupted.exists():
        click.echo("the same command with --resume goes on; with --force it begins anew", err=True)
    if trained.stopped_by == "request":
        sys.exit(130)


def _worse(trained: Trained) -> str:
    """What to say of a training whose result is no better on held-out starts than what it is compared with."""
    from diffode.cli.training_log import in_words

    before, after = trained.errors
    if before is None or not after >= before:
        return ""
    compared = in_words(trained.facts.begun_from)
    if after == before:
        return f"the training found nothing better than {compared}, which no training costs: this is that"
    return f"on held-out starts this is worse than {compared}, which no training costs: take that, or more evaluations"


def _kept(trained: Trained, name: str, file: FilePath, writes: bool, by_file: bool) -> dict[str, Any]:
    """Write the result, if it is to be written; returns the facts to print."""
    from diffode.learned import TrainedMap, load
    from diffode.output_files import make_folder
    from diffode.solvers.trained.ratios import Ratios
    from diffode.specs import format_spec

    if writes:
        make_folder(file)
        trained.save(file)
    if isinstance(trained, TrainedMap):
        return _map_facts(trained, file)
    facts: dict[str, Any] = {"solver": load(file).solver.spec if by_file else trained.solver.spec}
    if trained.grid is not None:
        facts["grid"] = " ".join(f"{t:.10g}" for t in trained.grid.tolist())
    if writes and not by_file:
        facts["file"] = load(file).solver.spec if trained.grid is None else format_spec("trained", {"file": str(file)})
        if trained.grid is not None:
            facts["run with"] = f"--solver {shlex.quote(facts['solver'])} --grid {shlex.quote(facts['file'])}"
    if name in _DRAWN:
        facts["picture"] = str(file.with_suffix(".png"))
        _draw(trained, file.with_suffix(".png"))
    before, after = trained.errors
    if isinstance(trained.content, Ratios):
        facts["evaluations"] = trained.content.range
    if trained.statistics is not None:
        facts["statistics"] = trained.statistics.kind
    facts |= {"nfe": trained.nfe, "started from": trained.facts.begun_from, "its error": before, "held-out error": after}
    if before is not None:
        facts["times smaller"] = before / max(after, 1e-300)
    if trained.history.steps:
        facts["steps"] = trained.history.steps
    products = getattr(trained.solver, "multiply_adds", None)
    if products is not None:
        facts["multiply-adds a row"] = products
    return {**facts, "seconds": trained.seconds, "stopped by": trained.stopped_by}


def _map_facts(trained: TrainedMap, file: FilePath) -> dict[str, Any]:
    """The facts of a flow map, of which its file was written, with a picture of its losses and errors."""
    from diffode.learned import load

    _draw_map(trained, file.with_suffix(".png"))
    facts: dict[str, Any] = {"solver": load(file).solver.spec, "picture": str(file.with_suffix(".png"))}
    facts |= {"method": trained.map.method, "Gaussian flow's error": trained.errors.before}
    if trained.map.law_only:
        facts["matches"] = LAW_ONLY
    facts |= {f"held-out error of {n} jump{'' if n == 1 else 's'}": error for n, error in trained.held_out.items()}
    return {**facts, "steps": trained.history.steps, "seconds": trained.seconds, "stopped by": trained.stopped_by}


def _check_resume(file: FilePath, is_map: bool, resume: bool, force: bool) -> None:
    """Raise ArgumentError if a training can't go on, or would begin anew by mistake; with ``force`` it may."""
    from diffode.errors import ArgumentError

    if resume and not is_map:
        raise ArgumentError("resume goes with flow maps; other trainings begin anew")
    if resume and force:
        raise ArgumentError("give --resume to go on or --force to begin anew, not both")
    if resume and not file.exists():
        raise ArgumentError(f"there is no interrupted training to go on with, {str(file)!r}: leave --resume out")
    if file.is_dir():
        raise ArgumentError(f"{str(file)!r}, in which an interrupted training is kept, is a folder: choose another --output")
    if is_map and file.exists() and not resume:
        if not force:
            raise ArgumentError(f"{str(file)!r} is an interrupted training: go on with --resume, or begin anew with --force")
        file.unlink()


def _check_output(name: str, file: FilePath, writes: bool, force: bool, *, draws: bool) -> None:
    """Raise ArgumentError, before the training, for a file that can't be written or must not be overwritten."""
    from diffode.cli.output import writable
    from diffode.errors import ArgumentError

    if file.suffix != ".safetensors":
        raise ArgumentError(f"output must end in .safetensors, got {str(file)!r}; the picture gets the same name with .png")
    if not writes:
        if force:
            raise ArgumentError(f"{name} writes no file unless --output names one: leave --force out, or say where to write it")
        return
    files = (file, file.with_suffix(".png")) if draws else (file,)
    if any(one.is_dir() for one in files):
        raise ArgumentError(f"output {str(file)!r} or its picture is a folder")
    present = next((one for one in files if one.exists()), None)
    if present is not None and not force:
        raise ArgumentError(f"output {str(present)!r} exists: choose another name with --output, or write over it with --force")
    for one in files:
        writable(one)


def _print(facts: dict[str, Any]) -> None:
    """Print each fact as a line, in words."""
    from diffode.cli.solver_told import kind_in_words
    from diffode.cli.training_log import in_words

    width = max(map(len, facts))
    for key, value in facts.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        if key == "stopped by":
            shown = _ENDED[value]
        elif key == "statistics":
            shown = kind_in_words(value)
        elif key == "started from":
            shown = in_words(value)
        elif value is None:
            shown = "none: it can't run here"
        elif "error" in key:
            shown = f"{shown} of the data's scale"
        elif key == "times smaller":
            shown = f"{shown} than the error of what it began from"
        click.echo(f"{key:{width}s}  {shown}")


def _draw_map(trained: TrainedMap, file: FilePath) -> None:
    """Draw the loss of every step, and the held-out errors along the training."""
    from matplotlib.figure import Figure

    from diffode import plot
    from diffode.learned.trained import History

    history, jumps = trained.history, f"{trained.nfe} jump{'' if trained.nfe == 1 else 's'}"
    with plot.style():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        loss, errors = figure.subplots(1, 2)
        plot.losses(History(error=history.error), ax=loss, before=0.0, ylabel="loss")
        loss.set_title(f"{trained.map.method}, {trained.facts.target}")
        own = History(held_out=history.held_out, steps=history.steps)
        what = {"ylabel": "distance of laws / scale"} if trained.map.law_only else {}
        plot.losses(own, ax=errors, before=trained.errors.before or 0.0, **what)
        errors.set_title(f"held-out starts, {jumps}; dashed: the Gaussian flow")
    plot.save(figure, file, dpi=90)


def _draw(trained: Trained, file: FilePath) -> None:
    """Draw the errors by step, and the trained levels and weights of a table beside those from which its training began."""
    from matplotlib.figure import Figure

    from diffode import plot
    from diffode.cli.training_log import in_words
    from diffode.learned import Checkpoint
    from diffode.learned.tables.training import output_weights

    checkpoint, origin = trained.content, trained.origin
    if not isinstance(checkpoint, Checkpoint) or origin is None:
        return
    with plot.style():
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        loss, levels, weights = figure.subplots(1, 3)
        plot.losses(trained, ax=loss, xlabel="Gauss-Newton step")
        loss.set_title(f"{checkpoint.target}, NFE {checkpoint.nfe}")
        named = (("learned", checkpoint.stages), (in_words(checkpoint.begun_from), origin))
        for i, (label, stages) in enumerate(named):
            first = 0 if checkpoint.statistics is None else 1
            levels.semilogy(stages.levels[first:].clamp(min=1e-8), label=label, **plot.look(i).line)
            weights.plot(output_weights(stages, first == 1), label=label, **plot.look(i).line)
        levels.set(title="noise levels", xlabel="evaluation", ylabel="rho / scale")
        figure.legend(*levels.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        weights.set(title="weights in the output / level", xlabel="evaluation")
        weights.axhline(0, color="grey", lw=0.5)
        for panel in (levels, weights):
            panel.set_xticks(range(checkpoint.nfe + 1))
            panel.grid(True)
    plot.save(figure, file, dpi=90)
