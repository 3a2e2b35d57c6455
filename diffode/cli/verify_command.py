"""``diffode verify``: a field held against the equations that define it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import click

from diffode.cli import completed
from diffode.cli.output import apart_from_prints, json_option, print_report, source_option, writable

_DEFAULT_PICTURE = "diffode-verify.png"


@click.command("verify")
@click.argument("field", shell_complete=completed.targets)
@click.option("--path", default=None, help="Path spec; edm unless given, a Field of your own has its own.")
@click.option("--kind", default=None, help="What a function of your own gives: velocity, noise, denoised or score.")
@click.option(
    "--target",
    default=None,
    shell_complete=completed.targets,
    help="Target that your field is to be the field of; gives it density and data.",
)
@source_option
@click.option("--density", default=None, help="MODULE:ATTR of log p(x, t) of your field.")
@click.option("--dim", default=None, help="Coordinates a row of x has, or the shape of a row such as 3x32x32.")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=None, help="Root mean variance of its data.")
@click.option("--symbolic", is_flag=True, help="SymPy's proofs and closed forms to 50 digits as well.")
@click.option("--derivation", is_flag=True, help="Print the derivation of both equations as LaTeX and end.")
@click.option("--picture", default=_DEFAULT_PICTURE, show_default=True, help="PNG of where the residual lives.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=5, show_default=True, help="Seed of the points.")
@click.option("--guide", default=None, hidden=True)
@json_option
def command(
    field: str,
    path: str | None,
    kind: str | None,
    target: str | None,
    source: str | None,
    density: str | None,
    dim: str | None,
    scale: float | None,
    symbolic: bool,
    derivation: bool,
    picture: str,
    guide: str | None,
    seed: int,
    as_json: bool,
) -> int:
    """Verify FIELD: a target by name, or MODULE:ATTR (FILE.py:ATTR), a diffode Field or a function fn(x, t) of some --kind.

    The checks that apply to it are made: the contract with solvers, continuity and Fokker-Planck equation pointwise and weakly,
    the reverse SDEs, mass, a finite-volume evolution, likelihood, symmetry of the score's Jacobian. Exit code 1 if one fails.

    \b
    Example:  diffode verify ring8
              diffode verify ring8 --source student:dof=128
              diffode verify my_field.py:velocity --kind velocity --path vp --target ring8
    """
    if guide is not None:
        raise click.UsageError(
            "--guide is of no use here: a guided field is no field of a law that is noised, so that beyond weight 1 the "
            "equations do not hold for it; diffode sample --guide and the suite guidance measure what it does"
        )
    if derivation:
        from diffode.verify.field.symbolic import derivation as derive

        for diffusion in (False, True):
            click.echo(derive(diffusion).latex() + "\n")
        return 0
    from diffode import fields, paths, targets
    from diffode.errors import ArgumentError
    from diffode.extensions import load_attribute
    from diffode.fields.own import FieldText, row_shape
    from diffode.fields.problem_text import problem_text
    from diffode.output_files import make_folder
    from diffode.verify import verify_field
    from diffode.verify.field.picture import save_residuals

    file = FilePath(picture)
    if file.suffix != ".png":
        raise ArgumentError(f"picture must end in .png, got {picture!r}")
    writable(file, "picture")
    options: dict[str, Any] = {"seed": seed}
    if FieldText.names(field):
        if source is not None:
            raise ArgumentError(f"--source goes with a target, not with a field of your own, {field!r}")
        own = FieldText(field, kind, None if dim is None else row_shape(dim), scale, target).field(path)
        options |= {"dim": own.shape, "truth": own.truth if target else None}
        if density is not None:
            options["density"] = load_attribute(density)
    else:
        if kind or density or target or dim:
            raise ArgumentError(f"--kind, --density, --target and --dim go with a field of your own, not with target {field!r}")
        own = fields.exact_field(targets.get(field), paths.get(path or "edm"), source)
        field = problem_text(field, source)
    with apart_from_prints():
        report = verify_field(own, **options)
    checks = report.checks
    if symbolic:
        from diffode.verify.field.symbolic import closed_form_checks, proofs

        checks = (*checks, *proofs(), *closed_form_checks())
    drawn, on, residuals = None, own.require_path("a report"), report.facts["residuals"]
    if residuals is not None:
        drawn = str(file)
        tolerance = next((c.tolerance for c in checks if c.name == "continuity equation"), None)
        what = "continuity equation" if tolerance else "asymmetry of the score's Jacobian"
        make_folder(file, "picture")
        save_residuals(residuals, on, f"{field}: {what}", tolerance, file)
    report = replace(report, subject=f"{field} on {on.spec}", checks=checks, facts={"path": on.spec, "picture": drawn})
    code = print_report(report, as_json)
    if drawn and not as_json:
        click.echo(f"picture: {drawn}")
    return code
