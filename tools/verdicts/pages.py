"""The pages in docs/verdicts: an index, a table for each library, and one page for each finding, executed."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from verdicts.peers import Peers
from verdicts.row import Row

FINDINGS = Path(__file__).parent / "findings"
_BLOCK = re.compile(r"^```(py|few)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_MARKS = {"right": "right", "wrong": "**wrong**", "open": "not settled", "not judged": "not judged"}

_TABLE_HEAD = """# {library}

{version}. Made by `make verdicts`; [what the columns mean](index.md).

| sampler | options | chart | order claimed | measured | limit and law | NFE | verdict |
|---|---|---|---|---|---|---|---|
"""


def finding_page(name: str, peers: Peers) -> str:
    """The page of a finding: its blocks are run, and what they print stands below them."""
    text = (FINDINGS / f"{name}.md").read_text(encoding="utf-8")

    def shown(found: re.Match[str]) -> str:
        kind, code = found.groups()
        printed = _printed(code, f"{name}.md", peers)
        return printed if kind == "few" else f"```py\n{code}```\n\nprints\n\n```text\n{printed}```\n"

    return _BLOCK.sub(shown, text)


def _printed(code: str, name: str, peers: Peers) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, name, "exec"), {"__name__": "__main__", "PEERS": peers})
    return out.getvalue()


def page_of_library(library: str, version: str, rows: Sequence[Row]) -> str:
    """The table of a library."""
    return _TABLE_HEAD.format(library=library, version=version) + "\n".join(map(_line, rows)) + "\n"


def _line(row: Row) -> str:
    claimed = "" if row.claimed is None else f"{row.claimed} ({row.source})"
    measured = ""
    if row.order is not None:
        measured = f"{row.order:.2f}" + (", weak" if not row.errors else "")
        measured += "" if row.asymptotic else " (not in its asymptotic range)"
    mark = _MARKS[row.verdict]
    if row.verdict == "wrong":
        mark += ": " + ", ".join(row.wrong)
    if row.finding and row.verdict != "right":
        mark = f"[{mark}]({row.finding}.md)"
    if row.remark:
        mark += f"; {row.remark}"
    cells = (f"`{row.sampler}`", row.options, row.chart, claimed, measured, _limit(row), _nfe(row.evaluations), mark)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _limit(row: Row) -> str:
    if row.errors:
        return f"flow, {row.errors[0]:.1e} at {row.steps[0]} steps, {row.errors[-1]:.1e} at {row.steps[-1]}"
    law = re.search(r"(?:distance|off by).*", row.limit)
    return ("law, " + law[0].split(" (")[0].split(": ")[-1].replace("of its scale", "scales") if law else row.limit) or ""


def _nfe(text: str) -> str:
    made = re.search(r"(\d+) for 10 steps", text)
    return f"{made[1]} for 10" if made else text.split(" (")[0]


def title(name: str) -> str:
    """The title of a finding's page."""
    return (FINDINGS / f"{name}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def index_page(rows: Sequence[Row], versions: dict[str, str], pages: dict[str, str], findings: Sequence[str]) -> str:
    """The first page."""
    counts = [
        "| library | version | rows | right | wrong | not settled | not judged |", "|---|---|---|---|---|---|---|"
    ]  # fmt: skip
    for library, page in pages.items():
        own = [row for row in rows if row.origin == library]
        numbers = [sum(row.verdict == verdict for row in own) for verdict in ("right", "wrong", "open", "not judged")]
        cells = [f"[{library}]({page}.md)", versions[library], str(len(own)), *map(str, numbers)]
        counts.append(f"| {' | '.join(cells)} |")
    listed = "\n".join(f"* [{title(name)}]({name}.md)" for name in findings)
    names = "\n".join([*pages.values(), *findings])
    return (FINDINGS / "index.txt").read_text(encoding="utf-8").format(
        counts="\n".join(counts), findings=listed, names=names
    )  # fmt: skip
