"""``diffode check-field``: the usual mistakes in a user's field, and their fixes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from diffode.cli import completed
from diffode.cli.output import apart_from_prints, json_option, print_report

if TYPE_CHECKING:
    import torch


@click.command("check-field")
@click.argument("field")
@click.option("--kind", required=True, help="What it is said to give: velocity, noise, denoised or score.")
@click.option("--path", default="edm", show_default=True, help="Path it is said to be on.")
@click.option("--dim", default=None, help="Coordinates a row of x has, or the shape of a row such as 3x32x32.")
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=None, help="Root mean variance of its data; 1 unless known."
)
@click.option(
    "--target",
    default=None,
    shell_complete=completed.targets,
    help="Target whose field it is to be: gives data, dim and scale.",
)
@click.option("--data", default=None, help=".npy file of some data (n, *shape): makes the diagnosis surer.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of the draws.")
@json_option
def command(
    field: str,
    kind: str,
    path: str,
    dim: str | None,
    scale: float | None,
    target: str | None,
    data: str | None,
    seed: int,
    as_json: bool,
) -> int:
    """Look for the usual mistakes in FIELD, MODULE:ATTR or FILE.py:ATTR of a function fn(x, t).

    It tries other views (noise for velocity ...), signs, times (0 to 999, reversed, noise levels) and input scalings, and
    compares how well they predict noise; it also checks the contract with solvers: shape, dtype, independence of rows,
    determinism. Exit code 1 if something is wrong. With --data or --target it is surest.

    \b
    Example:  diffode check-field my_field.py:noise --kind noise --path vp --dim 2 --data points.npy
    """
    from diffode import targets
    from diffode.errors import ArgumentError
    from diffode.extensions import load_attribute
    from diffode.fields import PREDICTIONS
    from diffode.fields.own import row_shape
    from diffode.verify import check_field

    function = load_attribute(field)
    if not callable(function):
        raise ArgumentError(f"{field} is a {type(function).__name__}, not a function fn(x, t)")
    known = next((view for view in PREDICTIONS if view == kind), None)
    if known is None:
        raise ArgumentError(f"kind must be one of {', '.join(PREDICTIONS)}, got {kind!r}")
    points: torch.Tensor | None = None
    shape = None if dim is None else row_shape(dim)
    if target is not None:
        exact = targets.get(target)
        points, scale, shape = exact.sample(512, generator=seed), scale or exact.scale, shape or (exact.dim,)
    else:
        if data is not None:
            points = _points(data)
            shape = shape or tuple(points.shape[1:])
            scale = scale or float(points.var(0).mean().sqrt())
        if shape is None:
            raise ArgumentError("dim is needed: --dim with the number of coordinates of a row, or its shape such as 3x32x32")
    with apart_from_prints():
        report = check_field(function, known, path, shape, scale=scale, data=points, seed=seed)
    return print_report(replace(report, subject=f"{field} as {kind} on {path}"), as_json)


def _points(file: str) -> torch.Tensor:
    import torch

    from diffode.array_files import points_from

    return torch.from_numpy(points_from(file, f"data {file!r}", 16))
