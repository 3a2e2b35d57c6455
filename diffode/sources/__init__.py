"""Sources: laws of the noise x_1 in x_t = alpha x_0 + sigma x_1, other than the normal one.

``diffode.exact_field(target, path, source=...)`` takes a source, its spec, or any target. The views velocity, denoised and
noise keep their meaning, E[x_1|x] the last; the score is a quantity of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from diffode import targets
from diffode.errors import ArgumentError, UnknownNameError
from diffode.randomness import Randomness, normal
from diffode.sources.density import Density
from diffode.sources.law import Law, Weights
from diffode.sources.mixture import TargetSource
from diffode.sources.source import Source
from diffode.sources.student import StudentT
from diffode.specs import Registry, parse_spec
from diffode.targets import Target

__all__ = ["Density", "Law", "Normal", "Source", "StudentT", "TargetSource", "Weights", "get", "names", "register", "registry"]


@dataclass(frozen=True)
class Normal(Source):
    """Normal noise N(0, I), as without a source."""

    @property
    @override
    def spec(self) -> str:
        return "normal"

    @property
    @override
    def is_normal(self) -> bool:
        return True

    @override
    def noised(self, target: Target) -> Law:
        raise ArgumentError("a target knows its law with normal noise: leave source out")

    @override
    def sample(self, n: int, dim: int, *, generator: Randomness) -> Tensor:
        return normal((n, dim), generator=generator)

    def content(self) -> str:
        """Its name."""
        return self.spec


def _adopted(found: Any, place: str) -> Callable[..., Source] | None:
    return functools.partial(TargetSource, found, place) if isinstance(found, Target) else None


registry: Registry[Source] = Registry("source", Source, adopted=_adopted)
registry.register("normal", Normal)
registry.register("student", StudentT)
registry.register("poisson", StudentT, summary="The Poisson flow of PFGM: Student-t noise with one degree of freedom.", dof=1)
registry.register("density", Density)


def get(source: str | Source | Target | None) -> Source | None:
    """The source that is meant; None for normal noise, which is what there is without one.

    Args:
        source: a source or a target; a spec such as ``"student:dof=128"``, ``"density:law=logistic"`` or ``"normal"``; a
            target's spec such as ``"ring8"``; or the place of either (``file.py:name``).

    Raises:
        UnknownNameError: for a name that is that of no source and no target.
        ArgumentError: for options that a source does not have.

    >>> get("student:dof=inf") is None, get("ring8")
    (True, TargetSource(ring8))
    """
    found = _found(source)
    return None if found is None or found.is_normal else found


def _found(source: str | Source | Target | None) -> Source | None:
    if source is None or isinstance(source, Source):
        return source
    if isinstance(source, Target):
        return TargetSource(source)
    if not isinstance(source, str):
        raise ArgumentError(
            f"source must be a source, a target or the spec of one, such as 'student:dof=128' or 'ring8'; got {source!r:.80}"
        )
    if registry.is_place(source):
        return registry.make(source)
    name, _ = parse_spec(source)
    if name in registry.names():
        return registry.make(source)
    if name in targets.names():
        return TargetSource(targets.get(source), source)
    raise UnknownNameError("source", name, [*registry.names(), *targets.names()])


def names() -> list[str]:
    """The names of sources; every target is a source too."""
    return registry.names()


register = registry.register
