"""The former place of ``check_sampler``, which is public in :mod:`diffode.verify`."""

from typing import Any

from diffode.verify.report import Report, former_name
from diffode.verify.sampler import verdict as _judgement

#: Former names with the present ones.
_NOW = {"check_sampler": ("check_sampler", _judgement.check_sampler), "Verdict": ("Report", Report)}


def __getattr__(name: str) -> Any:
    if name not in _NOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public, found = _NOW[name]
    former_name(f"diffode.verify.verdict.{name}", f"diffode.verify.{public}")
    return found
