"""The laws of a flow map, for the tests of those who write or train one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffode.fields import Field
from diffode.maps import FlowMap
from diffode.testing.laws import kept
from diffode.verify import Report
from diffode.verify import check_map as judged


def check_map(phi: FlowMap | str | Callable[..., Any], field: Field | str, **options: Any) -> Report:
    """Hold a flow map to the exact flow of a field, as :func:`diffode.verify.check_map` does, in a test.

    Args:
        phi: a flow map, the file of one, or a function (x, s, t).
        field: a field with a path, or the spec of a target.
        options: further arguments of ``verify.check_map``: ``points``, ``draws``, ``tolerance``, ``seed``.

    Returns:
        The report of all checks.

    Raises:
        LawError: if a check fails; the message names it, with the verdict on what the map is.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "edm")
    >>> check_map(diffode.flow(field), field, points=32, draws=200).passed
    True
    """
    report = judged(phi, field, **options)
    return kept(f"map {report.subject}", report.checks)
