"""Flow maps that ship with diffode, made by ``tools/train_maps.py``: a method's map for the target whose field is followed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from torch import Tensor
from typing_extensions import override

from diffode import targets
from diffode.errors import ArgumentError, UnknownNameError
from diffode.fields import ExactField, Field
from diffode.paths import Path
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.solver import check_budget
from diffode.solvers.trained.mapped import MapSolver
from diffode.targets import GaussianMixture

#: The folder of the files, ``TARGET-METHOD.safetensors``.
_FOLDER = FilePath(__file__).parent / "maps"


@dataclass(frozen=True, kw_only=True)
class ShippedMap(DirectSolver):
    """The flow map that ships for a target, trained by a ``method``: takes every number of evaluations.

    It follows the exact field of a target for which there is one; ``shipped_maps`` lists them. Otherwise it is as ``map``.
    """

    method: str = "flow_map"

    needs_path = True
    name = "shipped_map"
    reference = MapSolver.reference
    #: It has no order of convergence: more jumps need not be better.
    order = None

    def __post_init__(self) -> None:
        known = sorted({method for _, method in shipped_maps()})
        if self.method not in known:
            raise UnknownNameError("shipped map's method", str(self.method), known)

    @property
    @override
    def stochastic(self) -> bool:
        return _of(self._targets()[0], self.method).stochastic

    @override
    def draws_noise(self, nfe: int) -> bool:
        return _of(self._targets()[0], self.method).draws_noise(nfe)

    @property
    def takes_steps(self) -> bool:
        """False: a number of evaluations is one of jumps, for which a map lays its own times."""
        return False

    @override
    def content(self) -> str:
        return " ".join(one.digest for one in self.by_target().values())

    def check_nfe(self, nfe: int) -> None:
        """Raise ArgumentError unless ``nfe`` is a number of evaluations that a run can cost."""
        check_budget(nfe)

    def lay(self, field: Field, path: Path, nfe: int) -> list[float]:
        """The times of a run with ``nfe`` evaluations of a field on a path."""
        return self.on(field).lay(field, path, nfe)

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        return self.on(field).follow(field, x, times, generator)

    def on(self, field: Field) -> MapSolver:
        """The map for a field, as a solver; ArgumentError if none ships for it."""
        found = None
        if isinstance(field, ExactField) and field.source is None and isinstance(field.target, GaussianMixture):
            own = field.target.content()
            found = next((name for name in self._targets() if _content(name) == own), None)
        if found is None:
            raise ArgumentError(
                f"{self.spec!r} ships for the exact fields of {', '.join(self._targets())}, not for {field!r}: train a map of "
                f"it with diffode train {self.method}, and run it as map:file=FILE"
            )
        return _of(found, self.method)

    def by_target(self) -> dict[str, MapSolver]:
        """The maps as solvers, by the targets that they ship for."""
        return {target: _of(target, self.method) for target in self._targets()}

    def _targets(self) -> list[str]:
        return [target for target, method in shipped_maps() if method == self.method]


@functools.cache
def shipped_maps() -> tuple[tuple[str, str], ...]:
    """Target and method of all maps that ship.

    >>> ("ring8", "shortcut") in shipped_maps()
    True
    """
    pairs = (file.stem.rpartition("-") for file in sorted(_FOLDER.glob("*.safetensors")))
    return tuple((target, method) for target, _, method in pairs)


@functools.cache
def _of(target: str, method: str) -> MapSolver:
    return MapSolver(file=str(_FOLDER / f"{target}-{method}.safetensors"))


@functools.cache
def _content(target: str) -> str:
    return targets.get(target).content()
