"""Tables of facts as HTML: what results look like in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

_CELL = "text-align:left;vertical-align:top;padding:.15em 1em .15em 0"


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """A table with a line for each fact; everything is escaped.

    >>> facts_table("Run", {"nfe": 5}).count("<tr>")
    1
    """
    return rows_table(title, (), facts.items())


def rows_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a title, a header unless that is empty, and rows, of which the first cell names the rest."""
    lines = [f'<table style="border-collapse:collapse"><caption style="text-align:left"><b>{_text(title)}</b></caption>']
    if header:
        lines.append("<tr>" + "".join(f'<th style="{_CELL}">{_text(cell)}</th>' for cell in header) + "</tr>")
    for name, *cells in rows:
        first = f'<th scope="row" style="{_CELL}">{_text(name)}</th>'
        lines.append(f"<tr>{first}" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in cells) + "</tr>")
    return "".join([*lines, "</table>"])


def _text(value: object) -> str:
    return html.escape(str(value)).replace("\n", "<br>")
