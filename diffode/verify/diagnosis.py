"""The former place of ``diagnose``, which is :func:`diffode.verify.check_field`."""

from typing import Any

from diffode.verify.field.diagnosis import check_field
from diffode.verify.report import Report, former_name

#: Former names with the present ones.
_NOW = {"diagnose": ("check_field", check_field), "Diagnosis": ("Report", Report)}


def __getattr__(name: str) -> Any:
    if name not in _NOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public, found = _NOW[name]
    former_name(f"diffode.verify.diagnosis.{name}", f"diffode.verify.{public}")
    return found
