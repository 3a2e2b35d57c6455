"""Write docs/diffusers_schedulers.md: the verdict on every scheduler class of the installed diffusers."""

from __future__ import annotations

import argparse
import warnings
from importlib.metadata import version
from pathlib import Path

from diffode.verify import Report, check_sampler
from diffode.verify.sampler.scheduler_loops import classes

_HEAD = """# The schedulers of diffusers, judged

Made by `python tools/make_scheduler_table.py` with diffusers {version}. Each class is called as its own pipelines call it, with
its default options (`clip_sample` off), on a mixture in one dimension whose flow and law are known. Errors are root mean square
against the exact flow between the class's own levels. What is not judged has no verdict: it is neither right nor wrong.

| class | verdict | order measured | error at 10, 50, 200 steps, or the law |
|---|---|---|---|
"""


def row(name: str, verdict: Report) -> str:
    """One line of the table."""
    if not verdict.judged:
        reason = verdict.checks[0].detail.removeprefix("can't be judged: ")
        return f"| `{name}` | not judged | | {reason} |"
    said = "nothing wrong" if verdict.passed else "**wrong**: " + ", ".join(f.name for f in verdict.failed)
    order = verdict.facts["order"]
    if order is None:
        return f"| `{name}` | {said} | draws noise | {verdict.check('limit').detail} |"
    errors = dict(zip(order.steps, order.errors, strict=True))
    return f"| `{name}` | {said} | {order.slope:.2f} | {', '.join(f'{errors[n]:.1e}' for n in (10, 50, 200))} |"


def main() -> None:
    """Judge them all; takes some minutes."""
    warnings.simplefilter("ignore")
    rows = [row(name, check_sampler(f"diffusers:{name}")) for name in classes()]
    page = _HEAD.format(version=version("diffusers")) + "\n".join(rows) + "\n"
    (Path(__file__).parent.parent / "docs" / "diffusers_schedulers.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
