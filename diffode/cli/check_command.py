"""``diffode check``: the verdict on a sampler, of diffode or of others."""

from __future__ import annotations

from typing import Any

import click

from diffode.cli import completed
from diffode.cli.output import apart_from_prints, json_option, print_report


@click.command("check")
@click.argument("sampler", shell_complete=completed.solvers)
@click.option("--order", type=click.IntRange(1, 10), default=None, help="Order claimed, if the sampler does not say.")
@click.option("--option", "options", multiple=True, help="KEY=VALUE for a sampler of another library; may be repeated.")
@click.option("--path", default=None, help="Path spec to run it on, instead of the usual one.")
@click.option("--grid", default=None, help="Grid spec to run it on, instead of the usual one.")
@json_option
def command(
    sampler: str, order: int | None, options: tuple[str, ...], path: str | None, grid: str | None, as_json: bool
) -> int:
    """Judge SAMPLER on fields whose flow is known exactly.

    SAMPLER is a solver's spec, torchdiffeq:METHOD, diffusers:CLASS, or MODULE:ATTR (FILE.py:ATTR) of: a diffode solver, a
    function (field, x, times) or (field, x, times, generator), a k-diffusion function (model, x, sigmas, ...), a class of
    azula's samplers. The verdict is about its order and limit, its moments on a Gaussian, the evaluations that it promises,
    makes and wastes, repeatability, independence of the other rows of a batch, and its behaviour at sigma = 0. A scheduler of
    diffusers is called as its own pipelines call it; an order claimed of it (--option solver_order=3, --order 3) is measured
    between levels in float64. Exit code 1 if something is wrong, 4 if it can't be judged.

    \b
    Example:  diffode check dpmpp:order=2
              diffode check my_sampler.py:sample --order 2
              diffode check azula.sample:zEABSampler --option order=3
              diffode check diffusers:DPMSolverMultistepScheduler --option solver_order=3
    """
    from diffode.verify import check_sampler

    with apart_from_prints():
        report = check_sampler(sampler, order=order, path=path, grid=grid, options=keyword_options(options))
    return print_report(report, as_json)


def keyword_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE texts as keyword options, with values read as in a spec; ArgumentError for other texts."""
    from diffode.errors import ArgumentError
    from diffode.specs import parse_spec

    for pair in pairs:
        if not all(part.strip() for part in pair.partition("=")):
            raise ArgumentError(f"option must be KEY=VALUE, got {pair!r}")
    return parse_spec("options:" + ",".join(pairs))[1] if pairs else {}
