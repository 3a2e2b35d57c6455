"""Verification of anyone's sampler: its runs on fields whose flow is known, and the verdict on them."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("Sampler", "find_sampler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffode.verify.report import former_name
    from diffode.verify.sampler import subject

    now = "diffode.verify.check_sampler, which takes what find_sampler takes"
    former_name(f"diffode.verify.sampler.{name}", now if name == "find_sampler" else "diffode.verify.sampler.subject.Sampler")
    return getattr(subject, name)
