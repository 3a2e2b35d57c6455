"""Paths: how data become noise, x_t = alpha(t) x_0 + sigma(t) eps; the published ones by name, and those given by a user."""

from __future__ import annotations

from typing import Any

from diffode.errors import ArgumentError
from diffode.paths.given import DDPM, FunctionPath, Tabulated
from diffode.paths.interval import Interval
from diffode.paths.path import Path, Time
from diffode.paths.published import PUBLISHED, Published, spelled
from diffode.paths.standard import EDM, VP, RectifiedFlow, SubVP, Trigonometric, VPCosine
from diffode.specs import Registry

__all__ = [
    "DDPM", "EDM", "PUBLISHED", "VP", "FunctionPath", "Interval", "Path", "Published", "RectifiedFlow", "SubVP", "Tabulated",
    "Time", "Trigonometric", "VPCosine", "get", "names", "register", "registry",
]  # fmt: skip

registry: Registry[Path] = Registry(
    "path", Path, spelled=spelled, aliases={name: known.path for name, known in PUBLISHED.items()}
)
for _path in (EDM, VP, VPCosine, SubVP, RectifiedFlow, Trigonometric, DDPM):
    registry.register(_path.name, _path)


def get(spec: str | Path, **options: Any) -> Path:
    """The path that a spec describes, such as ``"vp:beta_max=12"``; UnknownNameError or ArgumentError if it describes none.

    >>> get("vp:beta_max=12").beta_max
    12
    >>> get("sdxl").spec
    'ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012'
    """
    if isinstance(spec, Path):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a spec; this path has its own already")
        return spec
    return registry.make(spec, **options)


def names() -> list[str]:
    """All registered path names."""
    return registry.names()


register = registry.register
