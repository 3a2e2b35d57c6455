"""``diffode train``: a sampler trained for a target and a number of evaluations, as a file with a picture."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from diffode.cli.output import json_option, print_json

if TYPE_CHECKING:
    from diffode.learned import Trained

_WHAT = ("bespoke", "universal", "amed", "gits", "dmn", "ld3", "search")


@click.command("train")
@click.argument("spec")
@click.option("--target", required=True, help="Target that is trained on.")
@click.option("--nfe", type=click.IntRange(1, 200), required=True, help="Number of evaluations.")
@click.option("--path", default="edm", show_default=True, help="Path spec.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="Most seconds of training (not of gits, dmn and universal, which take a few).",
)
@click.option("--points", type=click.IntRange(8, 10**6), default=None, help="Number of starts; default: as many as are cheap.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of the starts.")
@click.option("--output", default=None, help="File to write (.safetensors); by default SPEC-TARGET-NFE.safetensors.")
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@json_option
def command(
    spec: str,
    target: str,
    nfe: int,
    path: str,
    seconds: float,
    points: int | None,
    seed: int,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train SPEC on a target.

    SPEC is bespoke (all numbers of a table; options consistent=true, start=SOLVER, trajectory=WEIGHT), universal (prints which
    member of the universal codebook suits the target), amed (options host, order, time_range, per_step, rounds), or a grid that
    is printed for a solver of one evaluation a step: gits, dmn, ld3, search (option solver=NAME). Errors are on starts that
    were not trained on. A bespoke file runs anywhere as the solver bespoke:file=FILE.

    \b
    Example:  diffode train bespoke --target ring8 --nfe 6 --seconds 20
              diffode train universal --target ring8 --nfe 6
              diffode train ld3:solver=ipndm --target digits-gmm10 --nfe 8
    """
    from diffode.errors import ArgumentError, DiffodeError, UnknownNameError
    from diffode.specs import parse_spec

    name, options = parse_spec(spec)
    if name not in _WHAT:
        raise UnknownNameError("trainable", name, _WHAT)
    file = FilePath(output or f"{name}-{target}-{nfe}.safetensors")
    if file.suffix != ".safetensors":
        raise ArgumentError(f"output must end in .safetensors, got {str(file)!r}; the picture gets the same name with .png")
    if not file.parent.is_dir():
        raise ArgumentError(f"the folder of output {str(file)!r} does not exist; make it first")
    if "," in str(file) or str(file) != str(file).strip():
        raise ArgumentError(f"output {str(file)!r} can't be written in a spec: no comma and no blanks at its ends")
    if name in ("bespoke", "amed") and (file.is_dir() or file.with_suffix(".png").is_dir()):
        raise ArgumentError(f"output {str(file)!r} or its picture is a folder")
    if (output is not None or force) and name not in ("bespoke", "amed"):
        raise ArgumentError(f"{name} prints its result and writes no file: leave --output and --force out")
    if file.exists() and not force and name in ("bespoke", "amed"):
        raise ArgumentError(f"output {str(file)!r} exists: choose another name with --output, or write over it with --force")
    try:
        if name == "bespoke":
            facts = _bespoke(target, nfe, path, seconds, points, seed, file, options)
        elif name == "amed":
            facts = _amed(target, nfe, path, seconds, points, seed, file, options)
        elif name == "universal":
            facts = _universal(target, nfe, path, points, seed, options)
        else:
            facts = _grid(name, target, nfe, path, seconds, points, seed, options)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DiffodeError):
            raise
        raise ArgumentError(f"{spec!r} has an option that {name} does not take: {error}") from error
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        click.echo(f"{key:18s} {value:.4g}" if isinstance(value, float) else f"{key:18s} {value}")


def _bespoke(
    target: str, nfe: int, path: str, seconds: float, points: int | None, seed: int, file: FilePath, options: dict[str, Any]
) -> dict[str, Any]:
    from diffode.errors import ArgumentError
    from diffode.learned import train_table

    last = ""

    def progress(start: str, step: int, training: float, held: float) -> None:
        nonlocal last
        if start != last:
            click.echo(f"from {start}", err=True)
            last = start
        if step % 5 == 0:
            click.echo(f"  step {step:3d}  training {training:.3e}  held out {held:.3e}", err=True)

    unknown = set(options) - {"consistent", "start", "trajectory"}
    if unknown:
        raise ArgumentError(f"bespoke has no option {min(unknown)!r}; options: consistent, start, trajectory")
    trained = train_table(target, nfe, path=path, seconds=seconds, points=points, seed=seed, progress=progress, **options)
    checkpoint = trained.checkpoint
    checkpoint.save(file)
    _draw(trained, file.with_suffix(".png"))
    return {
        "solver": f"bespoke:file={file}",
        "picture": str(file.with_suffix(".png")),
        "started from": checkpoint.start,
        "its error": checkpoint.start_error,
        "held-out error": checkpoint.held_out_error,
        "times smaller": checkpoint.start_error / max(checkpoint.held_out_error, 1e-300),
        "steps": len(trained.training) - 1,
        "seconds": checkpoint.seconds,
    }


def _universal(target: str, nfe: int, path: str, points: int | None, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    from diffode.errors import ArgumentError
    from diffode.learned import tune_universal

    if options:
        raise ArgumentError(f"universal does not take the option {min(options)!r}: give --points and --seed")

    def progress(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            click.echo(f"  {done} of {total} choices", err=True)

    found = tune_universal(target, nfe, path=path, points=points or 256, seed=seed, progress=progress)
    return {
        "solver": found.solver.spec,
        "held-out error": found.held_out_error,
        "universal, untuned": found.untuned_error,
        "tried": found.tried,
        "seconds": found.seconds,
    }


def _amed(
    target: str, nfe: int, path: str, seconds: float, points: int | None, seed: int, file: FilePath, options: dict[str, Any]
) -> dict[str, Any]:
    import time

    from diffode import fields
    from diffode.learned.amed import save_amed, train_amed

    began = time.perf_counter()
    field = fields.exact_field(target, path)
    analytic = nfe % 2 == 1
    trained = train_amed(
        field, (nfe + 1) // 2, analytic_first_step=analytic, points=points or 2048, seconds=seconds, seed=seed, **options
    )
    save_amed(trained.solver, file)
    held_out = _held_out(field, seed)
    error = float((trained.solver.run(field, held_out[0])[-1] - held_out[1]).norm(dim=1).mean()) / field.scale
    return {
        "solver": f"amed_learned:file={file}",
        "nfe": trained.solver.nfe,
        "held-out error": error,
        "first loss": trained.losses[0],
        "last loss": trained.losses[-1],
        "seconds": time.perf_counter() - began,
    }


def _grid(
    name: str, target: str, nfe: int, path: str, seconds: float, points: int | None, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    from diffode import fields, solvers
    from diffode.errors import ArgumentError
    from diffode.learned import levels

    field = fields.exact_field(target, path)
    solver = options.pop("solver", "ddim" if name == "gits" else "ab:order=3,chart=data" if name == "dmn" else "dpmpp:order=2")
    given: dict[str, Any] = {"points": points} if points is not None and name != "dmn" else {}
    if name == "gits":
        grid = levels.gits(field, nfe, seed=seed, **given, **options)
    elif name == "dmn":
        grid = levels.dmn(field.path, nfe, solver=solver, **options)
    elif name == "ld3":
        grid = levels.ld3(field, nfe, solver=solver, seconds=seconds, seed=seed, **given, **options)
    else:
        grid = levels.search(field, nfe, solver=solver, seconds=seconds, seed=seed, **given, **options)
    x, exact = _held_out(field, seed)
    recipe = solvers.get(solver)
    if recipe.nfe_per_step != 1:
        raise ArgumentError(
            f"{name} lays a step for each evaluation; solver {recipe.spec!r} makes {recipe.nfe_per_step} a step"
        )
    errors = [
        float((recipe.tableau(field.path, on, steps).run(field, x) - exact).norm(dim=1).mean()) / field.scale
        for on, steps in ((grid, None), ("log_snr", nfe), ("karras", nfe))
    ]
    return {
        "solver": recipe.spec,
        "grid": " ".join(f"{t:.10g}" for t in grid.tolist()),
        "held-out error": errors[0],
        "on log_snr": errors[1],
        "on karras": errors[2],
    }


def _held_out(field: Any, seed: int) -> tuple[Any, Any]:
    """Starts from another stream than those of training, and where the exact flow takes them."""
    from diffode.references import reference

    path = field.path
    x = path.prior((512, field.dim), generator=1_000_003 + seed)
    return x, reference(field, x, path.t_max, path.t_min, 1e-7).x


def _draw(trained: Trained, file: FilePath) -> None:
    """Loss curve, levels and weights, learned against those it started from."""
    from matplotlib.figure import Figure

    from diffode.learned.training import output_weights

    checkpoint = trained.checkpoint
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, levels, weights = figure.subplots(1, 3)
    loss.semilogy(trained.training, label="training starts")
    loss.semilogy(trained.held_out, label="held-out starts")
    loss.set(title=f"{checkpoint.target}, NFE {checkpoint.stages.nfe}", xlabel="Gauss-Newton step", ylabel="mean error / scale")
    loss.legend(fontsize=8)
    for label, stages, marker in (("learned", checkpoint.stages, "o-"), (checkpoint.start, trained.start, "x--")):
        levels.semilogy(stages.levels.clamp(min=1e-8), marker, label=label, ms=5)
        weights.plot(output_weights(stages), marker, label=label, ms=5)
    levels.set(title="noise levels", xlabel="evaluation", ylabel="rho / scale")
    levels.legend(fontsize=8)
    weights.set(title="weights in the output / level", xlabel="evaluation")
    weights.axhline(0, color="grey", lw=0.5)
    for panel in (loss, levels, weights):
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=90)
