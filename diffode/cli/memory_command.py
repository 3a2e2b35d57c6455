"""``diffode memory``: what memories keep of a signal, as a table of errors and a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from diffode.cli.output import json_option, print_json, print_table, writable

if TYPE_CHECKING:
    from diffode.hippo import Memory

#: Help of --measures.
_MEASURES = "Measures, separated by commas: legs (all the past), legt:window=W, lagt:scale=S, fout:window=W."


@click.command("memory")
@click.argument("signal")
@click.option("--measures", default="legs,legt", show_default=True, help=_MEASURES)
@click.option("--order", "orders", default="16,64,256", show_default=True, help="Orders N, separated by commas.")
@click.option(
    "--holds", default="foh", show_default=True, help="Rules for steps: euler, backward, trapezoid, zoh, foh, cubic, ..."
)
@click.option("--step", type=float, default=None, help="Time between samples; by default all of the signal takes time 1.")
@click.option(
    "--span", type=float, default=None, help="Last part of the signal that is compared, in time. [default: the window]"
)
@click.option("--output", default="memory.png", show_default=True, help="File of the picture.")
@json_option
def command(
    signal: str,
    measures: str,
    orders: str,
    holds: str,
    step: float | None,
    span: float | None,
    output: str,
    as_json: bool,
) -> None:
    """Run memories along SIGNAL and tell how well they hold it at its end.

    SIGNAL is a .npy array or a .csv table: samples, or times and samples in two columns; or the name of a signal that is known
    (sine, white, step, mackey_glass, ecg), which is sampled in 4096 steps. Errors are root mean squares, relative to the
    signal's, over the window of a measure (the last quarter for lagt), in three parts: projection, closure, discretisation.
    A Fourier memory takes the odd order below an even one.

    \b
    Example:  diffode memory signal.npy --measures legs,legt:window=0.25 --order 16,64
              diffode memory ecg --measures legs --holds zoh,foh,cubic --json
    """
    from matplotlib.figure import Figure

    from diffode import hippo, plot
    from diffode.errors import ArgumentError
    from diffode.hippo import study
    from diffode.hippo.arguments import number_of
    from diffode.hippo.signal_files import read_signal
    from diffode.output_files import make_folder

    file = FilePath(output)
    if file.suffix != ".png":
        raise ArgumentError(f"--output must end in .png, got {output!r}")
    memories = [memory_of(spec, order) for spec in specs_in(measures, "--measures") for order in orders_in(orders)]
    rules = [hippo.hold_of(spec) for spec in specs_in(holds, "--holds")]
    if span is not None:
        number_of(span, "--span", 0.0)
    known = None
    if signal.partition(":")[0] in hippo.signals.registry.names() and not FilePath(signal).exists():
        known = hippo.signals.get(signal)
        if step is not None:
            raise ArgumentError(f"--step goes with a file; signal {signal!r} is known on [0, 1]")
    else:
        samples, times = read_signal(signal)
        if len(samples) < 2:
            raise ArgumentError(f"signal {signal!r} must hold two samples or more, got {len(samples)}")
        if times is not None and step is not None:
            raise ArgumentError(f"--step goes with samples alone; signal {signal!r} has times of its own")
        grid: Any = (1 / (len(samples) - 1) if step is None else number_of(step, "--step", 0.0)) if times is None else times
    writable(file, "picture")
    lines, rows = [], []
    for memory in dict.fromkeys(memories):
        for rule in rules:
            if known is not None:
                found = study.of_known(memory, known, 4096, rule, span=span)
            else:
                found = study.of_samples(memory, samples, grid, rule, span=span)
            name = memory.measure.spec + (f" {rule.spec}" if len(rules) > 1 else "")
            lines.append((name, memory.order, found))
            facts = {"measure": memory.measure.spec, "order": memory.order, "hold": rule.spec}
            rows.append({**facts, **asdict(found.errors), "from": float(found.times[0]), "to": float(found.times[-1])})
    make_folder(file, "picture")
    plot.save(plot.memories(lines, signal, figure=Figure(figsize=(11, 7.5), layout="constrained")), file, dpi=110)
    notes = list(dict.fromkeys(found.note for _, _, found in lines if found.note))
    if as_json:
        print_json({"signal": signal, "errors": rows, "notes": notes, "picture": str(file)})
        return
    header = ["measure", "order", "hold", "error", "projection", "closure", "discretisation", "from", "to"]
    shown = [[f"{v:.4g}" if k in ("from", "to") else f"{v:.2e}" if isinstance(v, float) else str(v) for k, v in r.items()]
             for r in rows]  # fmt: skip
    print_table(f"{signal}: relative errors at its end", header, shown)
    for note in notes:
        click.echo(f"note: {note}")
    click.echo(f"picture: {file}")


def specs_in(text: str, option: str) -> list[str]:
    """Specs separated by commas, whose options are separated by commas too.

    >>> specs_in("legs,lagt:alpha=0.5,beta=1,fout", "--measures")
    ['legs', 'lagt:alpha=0.5,beta=1', 'fout']
    """
    found: list[str] = []
    for part in text.split(","):
        # An option of the spec before has no colon in front of its sign of equality.
        if found and "=" in part and ":" not in part.partition("=")[0]:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    if not all(found):
        raise click.UsageError(f"{option} must be names separated by commas, got {text!r}")
    return list(dict.fromkeys(found))


def orders_in(text: str) -> list[int]:
    """Orders separated by commas."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise click.UsageError(f"--order must be whole numbers separated by commas, got {text!r}") from None


def memory_of(spec: str, order: int) -> Memory:
    """A memory; a Fourier memory of the odd order below an even one."""
    from diffode import hippo

    measure = hippo.registry.make(spec)
    if isinstance(measure, hippo.FouT) and order > 0 and order % 2 == 0:
        order -= 1
    return hippo.get(measure, order)
