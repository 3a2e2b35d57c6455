"""``diffode recommend``: a solver and a grid for a budget, from results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from diffode.cli import completed
from diffode.cli.bench_command import chosen_suite, on_named_schedule, on_own_field, rerun_command, store_file, with_maps
from diffode.cli.output import (
    NFE_HELP,
    field_text,
    json_option,
    output_option,
    print_json,
    print_table,
    schedule_option,
    store_option,
)

if TYPE_CHECKING:
    from diffode.studies import Suite
    from diffode.studies.ranking import Coverage, Curve
    from diffode.studies.recommendation import Advice


@click.command("recommend")
@click.option("--nfe", type=click.IntRange(1), default=None, help=NFE_HELP)
@click.option(
    "--steps", type=click.IntRange(1), default=None,
    help="Instead: steps of a sampler that asks the model once a step, the number that programs ask for; one evaluation each.",
)  # fmt: skip
@schedule_option
@click.option(
    "--guidance", type=float, default=None, metavar="WEIGHT",
    help="Weight of guidance, 1 the conditional model alone: what the suite guidance found of guided models.",
)  # fmt: skip
@click.option("--path", default=None, help="Only this path (a spec of the suite); default: all.")
@click.option(
    "--target", default=None, shell_complete=completed.targets,
    help="Only this target, or targets with this tag, such as images; with --field, the target that it approximates.",
)  # fmt: skip
@click.option("--field", default=None, help="Use what diffode bench --field stored of this field, named as it was there.")
@click.option("--kind", default=None, help="The --kind that bench was given.")
@click.option("--dim", default=None, help="The --dim that bench was given.")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=None, help="The --scale that bench was given.")
@click.option("--map", "maps", multiple=True, help="A flow map that bench was given, which is ranked as well.")
@click.option(
    "--suite", default=None, shell_complete=completed.suites,
    help="Suite whose results are used; quick, with --schedule schedules, with --guidance guidance.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Number of methods to show.")
@click.option("--import", "imports", multiple=True, help="Module or .py file that registers your own solvers or targets.")
@click.option("--seed", "seeds", type=click.IntRange(0, 2**63 - 1), multiple=True, help="Seeds that bench was run with.")
@output_option
@store_option
@json_option
def command(
    nfe: int | None,
    steps: int | None,
    schedule: str | None,
    guidance: float | None,
    path: str | None,
    target: str | None,
    field: str | None,
    kind: str | None,
    dim: str | None,
    scale: float | None,
    maps: tuple[str, ...],
    suite: str | None,
    top: int,
    imports: tuple[str, ...],
    seeds: tuple[int, ...],
    output: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Say which solver and grid to take for a budget, how sure that is and of what, and print lines to paste.

    Results come from what bench stored. The suite schedules ships with its results, so that --schedule needs no run.

    \b
    Example:  diffode recommend --schedule sdxl --steps 8
              diffode recommend --schedule scheduler_config.json --nfe 20 --target images
              diffode recommend --guidance 7.5 --steps 8
              diffode recommend --nfe 8 --field my_field.py:velocity --kind velocity --path vp --dim 2
    """
    from diffode.studies.answer import knows_data, other_kinds, plain
    from diffode.studies.paste import lines_to_paste
    from diffode.studies.question import (
        budget_note,
        calls_of,
        check_weight,
        guided_by,
        on_path,
        once_a_step,
        schedule_note,
        targets_like,
    )
    from diffode.studies.recommendation import recommend

    if (nfe is None) == (steps is None):
        raise click.UsageError("give --nfe N or --steps N, one of them")
    # With guidance a step asks two networks, or one twice.
    calls = calls_of(guidance)
    budget = nfe or (steps or 1) * calls
    if schedule is not None and path is not None:
        raise click.UsageError("--schedule and --path both say the path: give one of them")
    if guidance is not None and field is not None:
        raise click.UsageError("--guidance is of a suite's targets; a field of your own is guided where it is made")
    named = suite or ("guidance" if guidance is not None else "quick" if schedule is None else "schedules")
    own = None if field is None else field_text(field, kind, dim, scale, target)
    if own is None and (kind is not None or dim is not None or scale is not None):
        raise click.UsageError("--kind, --dim and --scale go with --field")
    chosen = chosen_suite(named, imports, seeds)
    check_weight(chosen, guidance)
    if own is not None:
        # The only problem of such a suite is the field on its path.
        on = path if schedule is None else _path(schedule)
        chosen, target, path = on_own_field(chosen, own, on, known_truth=target is not None), None, None
    elif schedule is not None or path is not None:
        wanted = schedule if path is None else path
        chosen, path = _on_path(chosen, str(wanted), is_schedule=path is None)
    if maps:
        chosen = with_maps(chosen, maps)
    again = rerun_command(named, imports, seeds, [] if schedule is None else ["--schedule", schedule])
    found = _results(
        chosen, named, store_file(output, store), again, of_package=not (maps or imports or seeds or own), path=path
    )
    used = guided_by(on_path(found.curves, path), guidance)
    if target is not None:
        like = targets_like(list(dict.fromkeys(c.target for c in used)), target)
        used = [c for c in used if c.target in like]
    if steps is not None:
        used = once_a_step(used, steps, path)
    ranked = recommend(used, budget)
    covered = scope(used, known=own is None, guidance=guidance)
    once = max(1, budget // calls)
    # Runs that were all on one path are on it for other programs too.
    ran_on = path or (used[0].path if len({c.path for c in used}) == 1 else None)
    programs = lines_to_paste(ranked[0].method, once, ran_on, calls=calls, guidance=guidance)
    elsewhere, knowing = None, knows_data(ranked[0].method)
    if "diffusers" not in programs or knowing:
        # Whoever has no latents at hand takes the best that need not know their statistics.
        rest = (a for a in ranked[1:] if not (knowing and knows_data(a.method)))
        others = ((a, lines_to_paste(a.method, once, ran_on, calls=calls, guidance=guidance)) for a in rest)
        elsewhere = next(((a, lines) for a, lines in others if "diffusers" in lines), None)
    kinds = other_kinds(used, budget, ranked[0].method)
    notes = [text for text in (kinds, schedule_note(schedule), budget_note(used, budget), found.told) if text]
    if as_json:
        facts = {"nfe": budget, "schedule": schedule, "guidance": guidance, "path": path, "target": target, "field": field}
        told = {"coverage": None if found.coverage is None else asdict(found.coverage), "notes": notes, "covers": covered}
        paste = [*programs["diffode"], *programs.get("diffusers", ())]
        there = None if elsewhere is None else {"method": elsewhere[0].method, "programs": elsewhere[1]}
        ranking = [asdict(a) for a in ranked[:top]]
        print_json({**facts, **told, "ranking": ranking, "paste": paste, "programs": programs, "elsewhere": there})
        return
    where = ", ".join(f"{k} {v}" for k, v in (("target", target), ("schedule", schedule or path)) if v)
    within = f"Within {budget} evaluations"
    if guidance is not None:
        within = f"Within {budget} network calls, {calls} a step with guidance of weight {guidance:g},"
    _print_ranking(f"{within} on {where or 'all targets and paths'}", ranked, top)
    click.echo(verdict(ranked, chosen.cells[0].metrics[0]))
    click.echo(covered)
    for note in notes:
        click.echo(note)
    if found.coverage is not None and (uncovered := found.coverage.told("ranking", again)):
        click.echo(uncovered, err=True)
    _print_programs(programs)
    if elsewhere is not None:
        advice, lines = elsewhere
        times = f"{plain(advice.error / ranked[0].error, 2)} times the error"
        if "diffusers" in programs:
            click.echo(f"\nWithout latents to take statistics of, the best is {advice.method}, {times}:")
        else:
            click.echo(f"\nOther programs can't be told to make this run. The best that they can is {advice.method}, {times}:")
        _print_programs({program: lines for program, lines in lines.items() if program != "diffode"})
    elif "diffusers" not in programs:
        click.echo("\nOther programs can't be told to make this run, nor any other of these.")


def _print_programs(programs: Mapping[str, Sequence[str]]) -> None:
    for program, lines in programs.items():
        click.echo(f"\n{program}:\n{textwrap.indent(chr(10).join(lines), '    ')}")


@dataclass(frozen=True)
class _Found:
    """Curves of a suite, their coverage if they are stored, and where they come from if they are not."""

    curves: Sequence[Curve]
    coverage: Coverage | None
    told: str = ""


def _results(chosen: Suite, named: str, file: Any, again: str, *, of_package: bool, path: str | None) -> _Found:
    """Stored results of a suite, or else those that ship; ArgumentError, which says what to run, if there are neither."""
    from diffode.errors import ArgumentError
    from diffode.studies import Store, keyed_cells
    from diffode.studies.failures import nothing_but_failures
    from diffode.studies.ranking import coverage, curves
    from diffode.studies.shipped import shipped_curves

    stored: list[Curve] = []
    covered, failed = None, ""
    if file.is_file():
        with Store(file) as opened:
            # Without a run on the path, the names of those that are stored make the message.
            here = replace(chosen, cells=tuple(c for c in chosen.cells if path in (None, c.path)) or chosen.cells)
            keyed = keyed_cells(here)
            results = opened.get(keyed)
            damaged = len(opened.damaged)
        stored, failed = curves(results), nothing_but_failures(chosen.name, results)
        covered = coverage([cell for _, cell in keyed], results, damaged)
    if not stored or (covered is not None and covered.missing):
        shipped = shipped_curves(named) if of_package else None
        if shipped is not None and any(path in (None, c.path) for c in shipped.curves):
            made = f"{shipped.points} starts a run ({shipped.made_with})"
            return _Found(shipped.curves, None, f"These results ship with diffode, {made}; {again} makes them anew.")
        if shipped is not None and not stored:
            known = ", ".join(dict.fromkeys(c.path for c in shipped.curves))
            # A suite that has no cell on the path would not have one after another run either.
            there = any(c.path == path for c in chosen.cells)
            remedy = f"run {again}, and ask again" if there else "name one of these, or ask with --schedule"
            raise ArgumentError(f"suite {named!r} was not run on path {path!r}, but on {known}: {remedy}")
    if not file.is_file():
        raise ArgumentError(f"there is no result store at {file}; run {again} first, or give --store")
    if failed:
        raise ArgumentError(f"{failed}; what was measured does not fit what it was measured on, or no run succeeds there")
    if not stored:
        where = "" if path is None else f" on path {path!r}"
        raise ArgumentError(
            f"nothing of suite {chosen.name!r}{where} is stored in {file}: run {again} first, or name the suite that was run, "
            "--suite NAME for one that diffode has or --suite FILE.toml for one of your own"
        )
    return _Found(stored, covered)


def _path(schedule: str) -> str:
    from diffode.studies.question import path_of_schedule

    return path_of_schedule(schedule)


def _on_path(chosen: Suite, wanted: str, *, is_schedule: bool) -> tuple[Suite, str]:
    """The suite, or its runs on a schedule that it has not, and the text of the path in its cells."""
    from diffode import paths
    from diffode.studies.question import same_path

    spec = _path(wanted) if is_schedule else paths.registry.canonical(wanted)
    text = next((cell.path for cell in chosen.cells if same_path(cell.path, spec)), None)
    if text is not None or not is_schedule:
        return chosen, text or spec
    return on_named_schedule(chosen, wanted), spec


def _print_ranking(title: str, ranked: Sequence[Advice], top: int) -> None:
    from diffode.studies.answer import counted

    print_table(
        f"{title} ({counted(ranked[0].problems, 'problem')})",
        ["solver", "error", "next problem's, 95 %", "x best", "95 % of resamples", "first", "wins"],
        [
            [
                a.method,
                f"{a.error:.2e}",
                "-" if a.low is None or a.high is None else f"{a.low:.1e} to {a.high:.1e}",
                _ratio(a.ratio),
                f"{_ratio(a.ratio_low)} to {_ratio(a.ratio_high)}",
                f"{a.first:.0%}",
                str(a.wins),
            ]
            for a in ranked[:top]
        ],
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def verdict(ranked: Sequence[Advice], metric: str) -> str:
    """The recommendation in sentences: what to take, how sure that is, the error to expect by the metric, the runner-up."""
    from diffode.studies.answer import best_without, plain
    from diffode.studies.paste import method_parts
    from diffode.studies.ranking import in_units
    from diffode.studies.recommendation import LEAST_PROBLEMS

    best = ranked[0]
    if best.problems < LEAST_PROBLEMS:
        sure = "one or two problems say little: no interval worth the name"
    elif best.first >= 0.95:
        sure = "the choice hardly depends on which of these targets were tried"
    else:
        sure = "the choice depends on which of these targets were tried: the next ones may be as good"
    solver, grid = method_parts(best.method)
    lines = [f"take {solver} on the grid {grid}: first in {best.first:.0%} of resamples of the problems; {sure}"]
    spread = ""
    if best.low is not None and best.high is not None:
        ends = f"{plain(best.low)} to {plain(best.high)}"
        spread = f"; on one more problem of this kind it lies in {ends} with a probability of 95 %"
        spread += " (the spread between problems, Student's t in the logarithm)"
    tried = f"{plain(best.least, 2)} to {plain(best.most, 2)} on those that were tried"
    if metric == "endpoint":
        error = f"an error of {plain(best.error, 2)} of the data's scale, as a distance over all coordinates"
    else:
        error = f"{metric} of {plain(best.error, 2)}{in_units(metric)}"
    lines.append(f"expect {error}: {tried}{spread}")
    if len(ranked) > 1:
        other = ranked[1]
        place = "within the interval of the best" if other.as_good else "outside the interval of the best"
        spec, on = method_parts(other.method)
        lines.append(f"runner-up: {spec} on the grid {on}, {_ratio(other.ratio)} times the error, {place}")
    if (without := best_without(ranked)) is not None:
        spec, on = method_parts(without.method)
        lines.append(
            f"{solver} knows mean and covariance of the data; of those that need not, {spec} on the grid {on} is best, "
            f"{_ratio(without.ratio)} times the error"
        )
    return "\n".join(lines)


def scope(used: Sequence[Curve], *, known: bool, guidance: float | None = None) -> str:
    """A sentence about the scope of the resampling."""
    from diffode.fields.problem_text import guidance_of

    targets, paths = (sorted({getattr(c, key) for c in used}) for key in ("target", "path"))
    what = "exact fields of" if known else "the field"
    named = ", ".join(targets) if len(targets) <= 8 else f"{len(targets)} targets ({', '.join(targets[:6])}, ...)"
    how, others = "without guidance", "data or paths, or of a guided model (--guidance WEIGHT)"
    if any(guidance_of(target) is not None for target in targets):
        weight = "several weights (--guidance takes one)" if guidance is None else f"weight {guidance:g}"
        how, others = f"guided with {weight}", "data, paths or weights"
    return (
        f"This covers {what} {named} on {', '.join(paths)}, {how}. It says nothing of other {others}, where another solver may "
        "be far better: measure yours with diffode bench SUITE --field"
    )
