"""One row of the table: a sampler with its options, what it claims, and what was measured."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffode.numerics.orders import OrderEstimate
from diffode.verify import Report, check_sampler
from diffode.verify.sampler.subject import Sampler

#: Width of an order's interval beyond which the levels are not in its asymptotic range.
_WIDE = 0.6


@dataclass(frozen=True)
class Claim:
    """A sampler that is to be judged.

    Attributes:
        origin: the library's or checkout's name.
        sampler: its name there.
        subject: what ``check_sampler`` takes, or None if it can't be judged.
        options: its options, as it has them; values that are no plain data get a text in ``shown``.
        order: the order that its authors claim, or None.
        source: where they claim it.
        chart: in which quantity it integrates, or what its network predicts.
        finding: name of the page that says what is wrong with it.
        remark: what a reader has to know of the trial, or why there is none.
        weak: measures the weak order of a sampler that draws noise.
    """

    origin: str
    sampler: str
    subject: str | Sampler | Callable[..., Any] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    order: int | None = None
    source: str = ""
    chart: str = ""
    finding: str = ""
    remark: str = ""
    shown: str = ""
    weak: Callable[[], OrderEstimate] | None = None

    def label(self) -> str:
        """Its options as a text."""
        return self.shown or ", ".join(f"{key}={value}" for key, value in self.options.items())


@dataclass(frozen=True)
class Row:
    """What was found of a claim. Checks that were not made are None; ``interval`` is that of 95 %, errors have three digits."""

    origin: str
    sampler: str
    options: str
    chart: str
    claimed: int | None
    source: str
    verdict: str
    wrong: tuple[str, ...] = ()
    order: float | None = None
    interval: tuple[float, float] | None = None
    steps: tuple[int, ...] = ()
    errors: tuple[float, ...] = ()
    asymptotic: bool | None = None
    limit: str = ""
    moments: str = ""
    last_step: str = ""
    noise: str = ""
    repeatable: bool | None = None
    batches: bool | None = None
    evaluations: str = ""
    wasted: str = ""
    finding: str = ""
    remark: str = ""

    def json(self) -> dict[str, Any]:
        """The attributes."""
        plain = dataclasses.asdict(self)
        plain["order"] = None if self.order is None else round(self.order, 2)
        plain["interval"] = None if self.interval is None else [round(end, 2) for end in self.interval]
        return plain


def judge(claim: Claim) -> Row:
    """The row of a claim: ``check_sampler`` on it. Its libraries' warnings and logs are silenced."""
    facts = {
        "origin": claim.origin, "sampler": claim.sampler, "options": claim.label(), "chart": claim.chart,
        "claimed": claim.order, "source": claim.source, "finding": claim.finding, "remark": claim.remark,
    }  # fmt: skip
    if claim.subject is None:
        return Row(**facts, verdict="not judged")
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if isinstance(claim.subject, Sampler):
                report = check_sampler(dataclasses.replace(claim.subject, claimed=claim.order))
            else:
                report = check_sampler(claim.subject, order=claim.order, options=claim.options)
    finally:
        logging.disable(logging.NOTSET)
    row = _read(report, facts)
    if claim.weak is None or not report.judged:
        return row
    # The page shows the law with many draws; a weak order's errors stand for themselves.
    return dataclasses.replace(row, **{**_measured(claim.weak()), "errors": (), "steps": ()})


def _measured(estimate: OrderEstimate) -> dict[str, Any]:
    return {
        "order": estimate.slope, "interval": (estimate.low, estimate.high), "steps": estimate.steps,
        "errors": tuple(float(f"{error:.3g}") for error in estimate.errors),
        "asymptotic": estimate.high - estimate.low <= _WIDE,
    }  # fmt: skip


def _read(report: Report, facts: dict[str, Any]) -> Row:
    found = {check.name: check for check in report.checks}
    if not report.judged:
        reason = report.checks[0].detail.removeprefix("can't be judged: ")
        return Row(**{**facts, "remark": facts["remark"] or reason}, verdict="not judged")

    def passed(name: str) -> bool | None:
        return found[name].passed if name in found else None

    def detail(name: str) -> str:
        return found[name].detail if name in found else ""

    estimate = report.facts["order"]
    measured = {} if estimate is None else _measured(estimate)
    return Row(
        **facts,
        **measured,
        verdict="wrong" if report.failed else "open" if passed("order") is None and facts["claimed"] else "right",
        wrong=tuple(check.name for check in report.failed),
        limit=detail("limit"),
        moments=detail("moments"),
        last_step=detail("sigma = 0"),
        noise=detail("noise"),
        repeatable=passed("repeatable"),
        batches=passed("batches"),
        evaluations=detail("evaluations"),
        wasted=detail("wasted evaluations") if passed("wasted evaluations") is False else "",
    )
