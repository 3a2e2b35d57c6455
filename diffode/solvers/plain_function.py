"""A plain function as a solver: ``fn(field, x, times)`` or ``fn(field, x, times, generator)``, which returns end points."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.solvers.direct import DirectSolver, Journey


@dataclass(frozen=True, kw_only=True)
class FunctionSolver(DirectSolver):
    """A function that follows a field from x (B, *shape) at ``times[0]`` to ``times[-1]`` and returns the end points.

    Args:
        function: ``(field, x, times)``; a function that draws noise also takes a ``generator``, by that name or as fourth
            argument.
        claimed: the order of convergence that its author claims: 1 unless given, that it converges; None claims none.
        spec_text: its name in stores and messages; the function's own name unless given.

    >>> import itertools, diffode
    >>> def euler(field, x, times):
    ...     for s, t in itertools.pairwise(times):
    ...         x = x + (t - s) * field.velocity(x, s)
    ...     return x
    >>> field = diffode.exact_field("ring8", "edm")
    >>> diffode.solve(field, field.prior(4, generator=0), solver=euler, nfe=10).nfe
    10
    """

    function: Callable[..., Any]
    claimed: int | None = 1
    spec_text: str = ""

    name = "function"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ArgumentError(f"function must be callable as function(field, x, times), got {self.function!r:.80}")
        if self.claimed is not None and (type(self.claimed) is not int or self.claimed < 1):
            raise ArgumentError(f"claimed must be an integer >= 1, or None, got {self.claimed!r}")
        required(self.function)

    @property
    @override
    def spec(self) -> str:
        return self.spec_text or str(getattr(self.function, "__qualname__", "function"))

    @property
    @override
    def order(self) -> int | None:
        return self.claimed

    @property
    @override
    def stochastic(self) -> bool:
        return bool(required(self.function))

    def content(self) -> str:
        """A hash of the module that defines the function, or of its name where there is no source."""
        try:
            text = inspect.getsource(inspect.getmodule(self.function) or self.function)
        except (OSError, TypeError):
            text = self.spec
        return hashlib.sha256(text.encode()).hexdigest()

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        way = required(self.function)
        if way and generator is None:
            raise ArgumentError(f"solver {self.spec!r} draws its own noise: pass generator= (a seed or torch.Generator)")
        if way == "name":
            end = self.function(field, x.clone(), list(times), generator=generator)
        else:
            end = self.function(field, x.clone(), list(times), *([generator] if way else []))
        if not isinstance(end, Tensor):
            raise ArgumentError(f"solver {self.spec!r} returned {type(end).__name__}, not the end points (a tensor)")
        if end.shape != x.shape:
            raise ArgumentError(f"solver {self.spec!r} returned shape {tuple(end.shape)} from x of shape {tuple(x.shape)}")
        # A function gives its end only; the states between are unknown.
        between = torch.full((len(times) - 2, *x.shape), torch.nan, dtype=end.dtype, device=end.device)
        return Journey(torch.cat([x[None].to(end), between, end[None]]))


def required(function: Callable[..., Any]) -> str:
    """How a function takes its generator: ``name``, ``fourth`` or an empty text; ArgumentError if it can't be called so."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ""
    takes = parameters.get("generator")
    way = "name" if takes is not None and takes.kind is not takes.POSITIONAL_ONLY else ""
    needed = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "generator"
    ]
    if not way and len(needed) == 4:
        way = "fourth"
    try:
        inspect.signature(function).bind(*range(4 if way == "fourth" else 3), **({"generator": None} if way == "name" else {}))
    except TypeError as error:
        raise ArgumentError(
            f"{getattr(function, '__qualname__', function)!s} can't be called as (field, x, times) or (field, x, times, "
            f"generator): {error}"
        ) from None
    return way


def samples(found: object) -> bool:
    """Whether an object is a function that samples: it is no class, and has at least three arguments that must be given.

    >>> samples(lambda field, x, times: x), samples(lambda order=2: None)
    (True, False)
    """
    if not callable(found) or inspect.isclass(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
