"""``diffode train``: a sampler trained for a target and a number of evaluations, as a file with a picture."""

from __future__ import annotations

import math
import sys
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from diffode.cli.output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffode.cli.training_log import Interrupt, TrainingLog
    from diffode.learned import Trained

#: Names of the trainings.
_TRAINABLE = ("bespoke", "universal", "amed", "gits", "dmn", "ld3", "ld3_decoupled", "search")
#: Trainings whose result is always written to a file.
_WRITTEN = ("bespoke", "amed", "ld3_decoupled")
#: Trainings whose result is written to a file if --output names one.
_WRITTEN_ON_REQUEST = ("gits", "dmn", "ld3", "search")
#: Options of bespoke.
_OPTIONS = ("consistent", "begin_from", "start", "trajectory")
#: The end of a training in words, by ``stopped_by``.
_ENDED = {
    "counts": "all steps were taken: the same seed gives the same numbers again",
    "seconds": "the limit of seconds, before all steps were taken: another machine may get further or less far",
    "request": "Ctrl-C, before all steps were taken: this is the best result so far",
}


class Order(NamedTuple):
    """A requested training: its name and options, the problem, limits, and the file of its result."""

    name: str
    options: dict[str, Any]
    target: str
    nfe: int
    path: str
    seconds: float
    points: int | None
    seed: int
    file: FilePath
    writes: bool

    @property
    def given(self) -> dict[str, Any]:
        """The number of starts as a keyword argument, if it was given."""
        return {} if self.points is None else {"points": self.points}


@click.command("train")
@click.argument("spec")
@click.option("--target", required=True, help="Target that is trained on.")
@click.option("--nfe", type=click.IntRange(1, 200), required=True, help="Number of evaluations.")
@click.option("--path", default="edm", show_default=True, help="Path spec.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=None,
    help="Most seconds of training (not of gits, dmn and universal); by default its counted steps alone end it.",
)
@click.option(
    "--points", type=click.IntRange(8, 10**6), default=None, help="Number of starts; the default depends on target and NFE."
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of the starts.")
@click.option(
    "--output", default=None, help="File to write (.safetensors); by default SPEC-TARGET-NFE.safetensors, and none for a grid."
)
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@json_option
def command(
    spec: str,
    target: str,
    nfe: int,
    path: str,
    seconds: float | None,
    points: int | None,
    seed: int,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train SPEC on a target.

    SPEC is bespoke (all numbers of a table; options consistent=true, begin_from=SOLVER, trajectory=WEIGHT), universal (prints
    the member of the universal codebook that suits the target), amed (options host, order, time_range, per_step, rounds),
    gits, dmn, ld3 or search (a grid for a solver of one evaluation per step, which is printed; option solver=NAME), or
    ld3_decoupled (a grid whose evaluations have their own levels, as a table). Errors are on starts outside of training, in
    units of the data's scale. A bespoke file runs anywhere as the solver bespoke:file=FILE, a grid's file as the grid
    trained:file=FILE. The same command gives the same numbers unless --seconds ends it early. Ctrl-C keeps the best so far.

    \b
    Example:  diffode train bespoke --target ring8 --nfe 6
              diffode train universal --target ring8 --nfe 6
              diffode train ld3:solver=ipndm --target digits-gmm10 --nfe 8 --output ld3.safetensors
    """
    from diffode.cli.training_log import TrainingLog, interrupts
    from diffode.errors import ArgumentError, DiffodeError, UnknownNameError
    from diffode.specs import parse_spec

    name, options = parse_spec(spec)
    if name not in _TRAINABLE:
        raise UnknownNameError("trainable", name, _TRAINABLE)
    file = FilePath(output or f"{name}-{target}-{nfe}.safetensors")
    writes = name in _WRITTEN or (name in _WRITTEN_ON_REQUEST and output is not None)
    _check_output(name, file, writes, output is not None or force, force)
    order = Order(name, options, target, nfe, path, seconds or math.inf, points, seed, file, writes)
    makers: dict[str, Callable[[Order, TrainingLog, Interrupt], dict[str, Any]]] = {
        "bespoke": _bespoke, "universal": _universal, "amed": _amed, "ld3_decoupled": _decoupled,
    }  # fmt: skip
    try:
        with TrainingLog() as log, interrupts(log) as interrupt:
            facts = makers.get(name, _grid)(order, log, interrupt)
    except KeyboardInterrupt:
        click.echo("diffode: interrupted; nothing was written, and the same command begins anew", err=True)
        sys.exit(130)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DiffodeError):
            raise
        raise ArgumentError(f"{spec!r} has an option that {name} does not take: {error}") from error
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    if facts.get("stopped by") == "request":
        sys.exit(130)


def _check_output(name: str, file: FilePath, writes: bool, asked: bool, force: bool) -> None:
    """Raise ArgumentError, before the training, for a file that can't be written or must not be overwritten."""
    from diffode.cli.output import writable
    from diffode.errors import ArgumentError

    if file.suffix != ".safetensors":
        raise ArgumentError(f"output must end in .safetensors, got {str(file)!r}; the picture gets the same name with .png")
    if not file.parent.is_dir():
        raise ArgumentError(f"the folder of output {str(file)!r} does not exist; make it first")
    if "," in str(file) or str(file) != str(file).strip():
        raise ArgumentError(f"output {str(file)!r} can't be written in a spec: no comma and no blanks at its ends")
    if not writes:
        if asked:
            without = "--output and --force" if name == "universal" else "--force, or say with --output where to write it"
            raise ArgumentError(f"{name} prints its result and writes no file: leave {without} out")
        return
    files = (file, file.with_suffix(".png")) if name in ("bespoke", "ld3_decoupled") else (file,)
    if any(one.is_dir() for one in files):
        raise ArgumentError(f"output {str(file)!r} or its picture is a folder")
    if file.exists() and not force:
        raise ArgumentError(f"output {str(file)!r} exists: choose another name with --output, or write over it with --force")
    for one in files:
        writable(one)


def _print(facts: dict[str, Any]) -> None:
    """Print each fact as a line, in words."""
    from diffode.cli.training_log import in_words

    width = max(map(len, facts))
    for key, value in facts.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        if key == "stopped by":
            shown = _ENDED[value]
        elif key == "started from":
            shown = in_words(value)
        elif "error" in key or key.startswith(("on ", "universal, ")):
            shown = f"{shown} of the data's scale"
        elif key == "times smaller":
            shown = f"{shown} than the error of what it began from"
        click.echo(f"{key:{width}s}  {shown}")


def _bespoke(order: Order, log: TrainingLog, interrupt: Interrupt) -> dict[str, Any]:
    from diffode.errors import ArgumentError
    from diffode.learned import train_table

    unknown = set(order.options) - set(_OPTIONS)
    if unknown:
        raise ArgumentError(f"bespoke has no option {min(unknown)!r}; options: {', '.join(_OPTIONS)}")
    for key in ("begin_from", "start"):
        if not isinstance(order.options.get(key, ""), str):
            raise ArgumentError(f"bespoke does not take {key}={order.options[key]!r}: give 'solver @ grid' or universal")
    trained = train_table(
        order.target, order.nfe, path=order.path, seconds=order.seconds, points=order.points, seed=order.seed,
        progress=lambda stage, step, _, held: log.step(stage, step, held), stop=interrupt, **order.options,
    )  # fmt: skip
    return _table_facts(trained, order, log)


def _decoupled(order: Order, log: TrainingLog, interrupt: Interrupt) -> dict[str, Any]:
    from diffode.learned import train_decoupled

    trained = train_decoupled(
        order.target, order.nfe, path=order.path, seconds=order.seconds, seed=order.seed,
        progress=lambda step, _, held: log.step("train the levels", step, held), stop=interrupt, **order.given, **order.options,
    )  # fmt: skip
    return _table_facts(trained, order, log)


def _table_facts(trained: Trained, order: Order, log: TrainingLog) -> dict[str, Any]:
    """Write a trained table with its picture; returns the facts to print."""
    from diffode.cli.training_log import curve

    checkpoint, picture = trained.checkpoint, order.file.with_suffix(".png")
    checkpoint.save(order.file)
    _draw(trained, picture)
    log.finish()
    log.say(f"held-out error, step by step: {curve(trained.held_out)} (also in {picture})")
    return {
        "solver": f"bespoke:file={order.file}",
        "picture": str(picture),
        "started from": checkpoint.begun_from,
        "its error": checkpoint.start_error,
        "held-out error": checkpoint.held_out_error,
        "times smaller": checkpoint.start_error / max(checkpoint.held_out_error, 1e-300),
        "steps": len(trained.training) - 1,
        "seconds": checkpoint.seconds,
        "stopped by": trained.stopped_by,
    }


def _universal(order: Order, log: TrainingLog, interrupt: Interrupt) -> dict[str, Any]:
    from diffode.errors import ArgumentError
    from diffode.learned import tune_universal

    if order.options:
        raise ArgumentError(f"universal does not take the option {min(order.options)!r}: give --points and --seed")

    def progress(done: int, total: int) -> None:
        if done == total:
            log.say(f"compared {total} tables")

    found = tune_universal(
        order.target, order.nfe, path=order.path, points=order.points or 256, seed=order.seed, progress=progress
    )
    return {
        "solver": found.solver.spec,
        "held-out error": found.held_out_error,
        "universal, untuned": found.untuned_error,
        "tried": found.tried,
        "seconds": found.seconds,
    }


def _amed(order: Order, log: TrainingLog, interrupt: Interrupt) -> dict[str, Any]:
    import time

    from diffode import fields
    from diffode.cli.training_log import curve
    from diffode.learned.conditional.amed import save_amed, train_amed
    from diffode.learned.fitting.problems import problem_for
    from diffode.randomness import keyed

    began = time.perf_counter()
    field = fields.exact_field(order.target, order.path)
    trained = train_amed(
        field, (order.nfe + 1) // 2, analytic_first_step=order.nfe % 2 == 1, points=order.points or 2048,
        seconds=order.seconds, seed=order.seed, stop=interrupt,
        progress=lambda number, loss: log.step("train the predictor", number, math.sqrt(loss) / field.scale), **order.options,
    )  # fmt: skip
    save_amed(trained.solver, order.file)
    log.finish()
    log.say(f"loss, round by round: {curve(trained.losses)}")
    starts = keyed(order.seed, "train_amed", "test")
    test = problem_for(field, field.path, field.target.dim, 512, starts, differentiated=False)
    end = trained.solver.run(field, test.start * field.path.alpha(field.path.t_max))[-1] / field.path.alpha(field.path.t_min)
    return {
        "solver": f"amed_learned:file={order.file}",
        "nfe": trained.solver.nfe,
        "held-out error": float((end - test.end).norm(dim=1).mean()) / field.scale,
        "first loss": trained.losses[0],
        "last loss": trained.losses[-1],
        "seconds": time.perf_counter() - began,
        "stopped by": trained.stopped_by,
    }


def _grid(order: Order, log: TrainingLog, interrupt: Interrupt) -> dict[str, Any]:
    from diffode import fields
    from diffode.learned.grids.grid_training import errors_on, train_grid

    field = fields.exact_field(order.target, order.path)
    given = {} if order.name == "dmn" else order.given
    found = train_grid(
        order.name, order.target, order.nfe, path=order.path, seconds=order.seconds, seed=order.seed, stop=interrupt,
        progress=lambda step, error: log.step(f"{order.name} moves the levels", step, error), **given, **order.options,
    )  # fmt: skip
    errors = errors_on(field, found.solver, ("log_snr", "karras"), order.seed, steps=order.nfe)
    facts: dict[str, Any] = {
        "solver": found.solver,
        "grid": " ".join(f"{t:.10g}" for t in found.times.tolist()),
        "held-out error": found.held_out_error,
        "on log_snr": errors[0],
        "on karras": errors[1],
        "seconds": found.seconds,
        "stopped by": found.stopped_by,
    }
    if order.writes:
        found.save(order.file)
        facts["file"] = f"trained:file={order.file}"
    return facts


def _draw(trained: Trained, file: FilePath) -> None:
    """Draw the loss curve, and the trained levels and weights beside those from which training began."""
    from matplotlib.figure import Figure

    from diffode.cli.training_log import in_words
    from diffode.learned.tables.training import output_weights

    checkpoint = trained.checkpoint
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, levels, weights = figure.subplots(1, 3)
    loss.semilogy(trained.training, label="training starts")
    loss.semilogy(trained.held_out, label="held-out starts")
    loss.set(title=f"{checkpoint.target}, NFE {checkpoint.stages.nfe}", xlabel="Gauss-Newton step", ylabel="mean error / scale")
    loss.legend(fontsize=8)
    for label, stages, marker in (
        ("learned", checkpoint.stages, "o-"),
        (in_words(checkpoint.begun_from), trained.origin, "x--"),
    ):
        levels.semilogy(stages.levels.clamp(min=1e-8), marker, label=label, ms=5)
        weights.plot(output_weights(stages), marker, label=label, ms=5)
    levels.set(title="noise levels", xlabel="evaluation", ylabel="rho / scale")
    levels.legend(fontsize=8)
    weights.set(title="weights in the output / level", xlabel="evaluation")
    weights.axhline(0, color="grey", lw=0.5)
    for panel in (loss, levels, weights):
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=90)
