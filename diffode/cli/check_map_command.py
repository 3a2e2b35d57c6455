"""``diffode check-map``: the verdict on a flow map, learned or of a user."""

from __future__ import annotations

import click

from diffode.cli import completed
from diffode.cli.output import apart_from_prints, json_option, print_report
from diffode.cli.progress_bar import status_line


@click.command("check-map")
@click.argument("phi", metavar="MAP")
@click.option("--target", required=True, shell_complete=completed.targets, help="Target whose flow it is to be.")
@click.option("--path", default=None, help="Path whose times it takes; that of the map, or edm for a function.")
@click.option("--points", type=click.IntRange(16), default=512, show_default=True, help="Exact trajectories.")
@click.option("--draws", type=click.IntRange(16), default=None, help="Generated points whose law is judged.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="Largest mean error that passes, in units of the data's scale for each coordinate.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of the draws.")
@json_option
def command(
    phi: str, target: str, path: str | None, points: int, draws: int | None, tolerance: float, seed: int, as_json: bool
) -> int:
    """Judge MAP, a file of diffode train, MODULE:ATTR or FILE.py:ATTR of a function phi(x, s, t) or a FlowMap, or a map that
    ships.

    It is held against the exact flow of the target: at no jump, in parts, at near times, by both its differential equations, at
    several pairs of times, and by its slope; and the law of the points that one jump makes is held against the data's. The
    verdict says what the map is: the flow map and how well, a consistency function, the right law with another coupling, a map
    that loses a mode, or one of the usual mistakes. Exit code 1 if something is wrong.

    \b
    Example:  diffode check-map ring8-map.safetensors --target ring8
              diffode check-map my_map.py:phi --target bimodal1d --path rectified_flow
              diffode check-map shipped_map:method=reflow --target ring8
    """
    from diffode.verify import check_map

    with apart_from_prints(), status_line(f"judging {phi}") as tell:
        report = check_map(phi, target, path, points=points, draws=draws, tolerance=tolerance, seed=seed, progress=tell)
    return print_report(report, as_json)
