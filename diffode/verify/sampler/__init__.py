"""Of anyone's sampler: how it is run on a field whose flow is known, and the verdict on what it does there."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("Sampler", "find_sampler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffode.verify.report import former_name
    from diffode.verify.sampler import subject

    now = "diffode.verify.check_sampler, which takes what find_sampler takes"
    former_name(f"diffode.verify.sampler.{name}", now if name == "find_sampler" else "diffode.verify.sampler.subject.Sampler")
    return getattr(subject, name)
