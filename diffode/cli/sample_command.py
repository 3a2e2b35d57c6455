"""``diffode sample``: samples of a target with a solver, as points and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, BinaryIO

import click

from diffode.cli import completed
from diffode.cli.output import (
    NFE_HELP,
    field_options,
    field_text,
    guide_option,
    json_option,
    print_json,
    source_option,
    writable,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffode.metrics import Streamed

#: Number of points that are held in memory, for the picture and the error.
_HELD = 10_000
#: Budget of a run that asks for none.
_USUAL_BUDGET = 20


@click.command("sample")
@click.argument("target", shell_complete=completed.targets)
@field_options
@click.option("--solver", default="dpmpp:order=2", show_default=True, shell_complete=completed.solvers, help="Solver spec.")
@click.option("--path", default=None, help="Path spec; edm unless given, a Field of your own has its own.")
@source_option
@guide_option
@click.option("--grid", default=None, help="Grid: a spec, times as 80,10,1,0.002, or 'levels 80 10 1'.  [default: karras]")
@click.option(
    "--nfe",
    type=click.IntRange(1),
    default=None,
    help=f"{NFE_HELP} Adaptive solvers take none.  [default: {_USUAL_BUDGET}]",
)
@click.option("-n", "--points", type=click.IntRange(1, 10**10), default=1000, show_default=True, help="Number of samples.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the starting noise.")
@click.option("--output", default="samples.npy", show_default=True, help="File of the points; the picture lies beside it.")
@click.option("--metric", "specs", multiple=True, help="A metric of all points, such as moments or sliced_w2; may be repeated.")
@json_option
def command(
    target: str,
    kind: str | None,
    dim: str | None,
    scale: float | None,
    truth: str | None,
    solver: str,
    path: str | None,
    source: str | None,
    guide: str | None,
    grid: str | None,
    nfe: int | None,
    points: int,
    seed: int,
    output: str,
    specs: Sequence[str],
    as_json: bool,
) -> None:
    """Sample TARGET: writes the points as .npy, shape (n, *row), and a picture as .png.

    TARGET is a target by name, a field of your own (MODULE:ATTR or FILE.py:ATTR), or a trained one (trained:NAME).

    \b
    Example:  diffode sample spiral --solver unipc:order=3 --nfe 12 --output spiral.npy
              diffode sample ring8 -n 1000000 --metric moments --metric mode_weights
              diffode sample ring8 --source student:dof=128 --solver ipndm:order=3
              diffode sample ring8 --guide label=three,weight=7.5 --nfe 16
              diffode sample my_field.py:noise --kind noise --path vp --dim 1x8x8
    """
    from diffode import grids, metrics, plot, solvers, targets
    from diffode.errors import ArgumentError, DiffodeError
    from diffode.fields.own import FieldText
    from diffode.fields.problem_text import parts_of, problem_text, unguided
    from diffode.flows import reference
    from diffode.output_files import make_folder, whole_file
    from diffode.solvers.direct import DirectSolver, LaysTimes
    from diffode.solvers.jumped import Jumped
    from diffode.solvers.run import table_for
    from diffode.solvers.run_options import Extent
    from diffode.solvers.solver import WritesTable
    from diffode.solvers.streaming import stream
    from diffode.studies import figures
    from diffode.studies.low_starts import begins_low
    from diffode.studies.problem import field_of, path_of, shape_of, starts, tolerance_of

    file = FilePath(output)
    if file.suffix != ".npy":
        raise ArgumentError(f"output must end in .npy, got {output!r}; the picture gets the same name with .png")
    picture = file.with_suffix(".png")
    for place in (file, picture):
        writable(place)
    if FieldText.names(target):
        target = field_text(target, kind, dim, scale, truth)
    elif kind or dim or scale or truth:
        raise ArgumentError(f"--kind, --dim, --scale and --target go with a field of your own, not with target {target!r}")
    target = problem_text(target, source, guide)
    field, on = field_of(target, path), path_of(target, path)
    shape, latency = shape_of(field), None
    recipe = solvers.for_run(solver, field, math.prod(shape))
    asked, grid = grid, grid or "karras"
    # Its tolerance says how many steps it makes.
    adaptive = isinstance(recipe, DirectSolver) and not recipe.takes_budget
    nfe = _USUAL_BUDGET if nfe is None and not adaptive else nfe
    # A flow map lays its own times.
    own_times = isinstance(recipe, LaysTimes) and grids.is_named(grid)
    table = table_for(field, recipe, Extent(field.path, grid, nfe=nfe)) if isinstance(recipe, WritesTable) else None
    # Some grids, such as the published levels of ays_*, begin at their own level.
    begins = on.t_max if table is None else table.ends[0]
    remarks = [low] if (low := begins_low(grid, on, begins)) else []
    own_levels = isinstance(recipe, WritesTable) and recipe.lays_levels and not isinstance(recipe, Jumped)
    if asked is not None and (own_times or own_levels):
        remarks.append(f"solver {recipe.spec!r} lays its own levels: --grid {asked} gives no more than their ends")
    start = starts(target, path, seed, min(points, _HELD), begins)
    ends = (on.t_max, on.t_min) if table is None else table.ends
    for remark in remarks:
        click.echo(remark, err=True)
    measured = [metrics.streamed(spec, field, between=ends, seed=seed) for spec in specs]
    if table is not None and table.draws and any(metrics.needs_of(spec).flow for spec in specs):
        raise ArgumentError(
            f"--metric endpoint compares with the exact flow, which {solver!r} does not follow since it draws noise"
        )
    make_folder(file)
    # The points are written as they come, and before their picture, since some points can't be drawn.
    with whole_file(file, "output") as handle:
        if table is not None:
            pairs = stream(field, points, solver=recipe, grid=grid, nfe=nfe, seed=seed, key=unguided(target), with_starts=True)
            shown, used, noisy = written(handle, points, shape, pairs, measured), table.nfe * field.calls, table.draws > 0
        else:
            # Steps that depend on the solution are those of one batch.
            start = starts(target, path, seed, points, begins)
            laid = None if own_times or (adaptive and asked is None) else grid
            solution = solvers.solve(field, start, solver=recipe, grid=laid, nfe=nfe, generator=seed)
            pairs = iter([(solution.x, start)])
            shown, used, noisy = written(handle, points, shape, pairs, measured), solution.nfe, recipe.stochastic
            ends, latency = (float(solution.times[0]), float(solution.times[-1])), solution.latency
    some = min(points, 256)
    error = None
    if not noisy:
        exact = reference(field, start[:some], *ends, tolerance_of(target, on.spec, 1e-7))
        error = float((shown[:some] - exact.x).flatten(1).norm(dim=1).mean())
    title = f"{target}, {solver} on {on.spec}, NFE {used}" + ("" if latency is None else f", latency {latency}")
    picture_shape = shape if FieldText.names(target) else targets.card(parts_of(target)[0]).shape
    reason = None
    try:
        part = "" if len(shown) == points else f", the first {len(shown):,} of {points:,} points"
        plot.save(figures.draw_samples(shown, field, picture_shape, title + part), picture, dpi=110)
    except DiffodeError:
        raise
    except Exception as failure:  # The points of a user's field may have any values.
        reason = f"{type(failure).__name__}: {failure}"
    found = {spec: metric.value() for spec, metric in zip(specs, measured, strict=True)}
    facts = {
        "points": str(file),
        "picture": None if reason else str(picture),
        "nfe": used,
        # Calls that had to wait for each other, where some were made in one batch.
        **({} if latency is None else {"latency": latency}),
        "mean_endpoint_error": error,
        "scale": field.scale,
        "from": float(begins),
        "remarks": remarks,
        "metrics": {spec: asdict(measurement) for spec, measurement in found.items()},
    }
    if as_json:
        print_json(facts)
    else:
        if error is None:
            click.echo(f"{title}: it draws noise, so there is no exact end point to compare with")
        else:
            click.echo(f"{title}: mean end-point error {error:.3e} (scale {field.scale:.3g}, first {some} points)")
        for spec, measurement in found.items():
            click.echo(f"{spec}: {measurement.value:.3e} (floor {measurement.floor:.3e})")
        click.echo(f"points: {file}, picture: {picture}" if reason is None else f"points: {file}")
    if reason is not None:
        click.echo(f"picture {picture} could not be drawn: {reason}", err=True)


def written(
    handle: BinaryIO, count: int, shape: Sequence[int], pairs: Iterable[tuple[Tensor, Tensor]], measured: Sequence[Streamed]
) -> Tensor:
    """Write ``count`` points of a shape as ``.npy``, chunk by chunk, and measure them; the first ones, up to ``_HELD``.

    ``pairs`` are ends, which are the points, and the starts that they come from.
    """
    import torch

    from diffode.array_files import write_header, write_numbers

    held: list[Tensor] = []
    write_header(handle, (count, *shape))
    for chunk, starts in pairs:
        for metric in measured:
            metric.add(chunk, starts)
        left = _HELD - sum(len(part) for part in held)
        if left > 0:
            held.append(chunk[:left].clone())
        write_numbers(handle, chunk.numpy())
    return torch.cat(held)
