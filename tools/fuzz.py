"""Random trials: does diffode answer or refuse, whatever it is given?

``python tools/fuzz.py [--seed S] [--runs N] [--files N] [--commands N] [--jobs N] [--output FILE]`` plays random runs,
damaged files and odd command lines. Each has to end in an exception of diffode's that says what is wrong, or in an answer that
keeps its promises: no silent non-finite value, no raw exception, no hang. Findings are written as JSON lines and summed up by
their cause.
``--case runs:1234`` prints one case as a program and plays it again; seed, kind and number alone decide what it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table
from trials.case import KINDS, Case
from trials.trial import PRELUDE, Finding, Played
from trials.watch import played, watched

#: Seconds between two lines that say how far it is.
_EVERY = 20.0
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def cases(seed: int, counts: dict[str, int], first: int = 0) -> Iterator[Case]:
    """All cases, the kinds in turn, so that an interrupted run has seen some of each."""
    for number in range(first, first + max(counts.values(), default=0)):
        yield from (Case(seed, kind, number) for kind, count in counts.items() if number < first + count)


class Tally:
    """What was found so far: counts by kind, and findings by cause with their cases."""

    def __init__(self, output: Path):
        self.output = output
        self.endings: Counter[tuple[str, str]] = Counter()
        self.causes: dict[tuple[str, str, str], list[tuple[Case, Finding]]] = {}
        self.slowest: list[tuple[float, Case]] = []
        output.write_text("")

    def add(self, case: Case, result: Played, seconds: float) -> None:
        self.endings[case.kind, "finding" if result.findings else result.ending] += 1
        self.slowest = sorted([*self.slowest, (seconds, case)], key=lambda pair: -pair[0])[:5]
        for finding in result.findings:
            self.causes.setdefault(finding.cause, []).append((case, finding))
            entry = {
                "case": str(case), "seed": case.seed, "what": finding.what, "detail": finding.detail, "place": finding.place,
                "last": finding.last, "seconds": round(seconds, 2), "program": case.trial.program,
            }  # fmt: skip
            with self.output.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    @property
    def found(self) -> int:
        return sum(map(len, self.causes.values()))

    def show(self) -> None:
        table = Table(title="cases", box=None, title_justify="left")
        for name in ("kind", "answers", "refusals", "with findings"):
            table.add_column(name, justify="left" if name == "kind" else "right")
        for kind in KINDS:
            row = [self.endings[kind, ending] for ending in ("answer", "refusal", "finding")]
            if any(row):
                table.add_row(kind, *(f"{count:,}" for count in row))
        console.print(table)
        if self.causes:
            table = Table(title="\nfindings by cause", box=None, title_justify="left")
            for name in ("times", "what", "exception or rule", "innermost in diffode", "cases"):
                table.add_column(name, overflow="fold")
            for (what, detail, place), found in sorted(self.causes.items(), key=lambda item: -len(item[1])):
                table.add_row(str(len(found)), what, detail, place, " ".join(str(case) for case, _ in found[:4]))
            console.print(table)
        console.print("\nslowest:", ", ".join(f"{case} {seconds:.1f} s" for seconds, case in self.slowest))


def tried(chosen: Iterable[Case], jobs: int, output: Path) -> Tally:
    """Play cases and sum up what was found."""
    tally, count, said = Tally(output), 0, time.monotonic()
    with _own_folder(), contextlib.suppress(KeyboardInterrupt):
        for case, result, seconds in played(chosen, jobs):
            tally.add(case, result, seconds)
            count += 1
            if time.monotonic() - said > _EVERY:
                said = time.monotonic()
                console.print(f"{count:,} cases, {tally.found} findings of {len(tally.causes)} causes")
    return tally


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """A folder for all temporary files, also of workers that are killed, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="diffode-fuzz-", ignore_cleanup_errors=True) as folder:
        before, known = tempfile.tempdir, {name: os.environ.get(name) for name in ("TMPDIR", "DIFFODE_CACHE")}
        os.environ |= {"TMPDIR": folder, "DIFFODE_CACHE": str(Path(folder) / "cache")}
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
            for name, value in known.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def again(case: Case) -> int:
    """Print a case as a program, play it, and print what came of it."""
    print(f"# {case} of seed {case.seed}\n{PRELUDE}\n{case.trial.program}")
    with _own_folder():
        result = watched(case)
    print(f"# {result.ending}: {result.message}" if result.message else f"# {result.ending}")
    for finding in result.findings:
        print(f"# {finding.what}: {finding.detail}\n#   {finding.place}\n#   {finding.last}")
    return bool(result.findings)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of all streams")
    for kind, count in (("runs", 12_000), ("files", 3_000), ("commands", 300)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"how many {kind}")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first number of each kind")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="worker processes")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="print and play one case alone")
    parser.add_argument("--output", default="fuzz.jsonl", help="file of the findings")
    chosen = parser.parse_args(words)
    if chosen.case:
        kind, _, number = chosen.case.partition(":")
        if kind not in KINDS or not number.isdigit():
            parser.error(f"--case must be one of {', '.join(KINDS)} and a number, such as runs:1234; got {chosen.case!r}")
        return again(Case(chosen.seed, kind, int(number)))
    counts = {kind: getattr(chosen, kind) for kind in KINDS}
    tally = tried(cases(chosen.seed, counts, chosen.first), chosen.jobs, Path(chosen.output))
    tally.show()
    return bool(tally.found)


if __name__ == "__main__":
    sys.exit(main())
