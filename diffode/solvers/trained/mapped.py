r"""A flow map as a solver: ``map:file=FILE`` jumps from time to time, one evaluation of the map's network a jump.

A consistency function goes to its last time only. Beyond one jump it samples as its authors do: jump to the end, add noise,
jump again (Song et al., arXiv 2303.01469, algorithm 1), so that such runs draw noise and have the law of the data at best, not
the ends of the flow.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError, TrainedElsewhereWarning
from diffode.extensions import is_place, load_attribute
from diffode.fields import ExactField, Field
from diffode.maps import FlowMap, FunctionMap, LearnedMap, load_map
from diffode.paths import Path
from diffode.randomness import normal
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.solver import check_budget
from diffode.solvers.trained.given_file import named
from diffode.specs import format_spec
from diffode.tensor_files import content_of

#: Dimensions in which a map of any dimension is asked for its content.
_DIMENSIONS = (1, 2, 3, 8, 10, 16, 64)
#: Relative difference of the data's scale from that of the training above which a map warns.
_SAME_SCALE = 0.01


@dataclass(frozen=True, kw_only=True)
class MapSolver(DirectSolver):
    """A flow map that was trained, from a ``file``, or any map as ``of``: takes every number of evaluations.

    ``of`` is a map in memory, or ``file.py:attribute`` or ``module:attribute`` of a map or of a function (x, s, t), which takes
    the times of the field's path.
    ``diffode train`` and ``.save(file)`` of a trained map write such files. It lays its own times for a number of evaluations,
    between the ends of its training, and keeps to listed times. The field is not called: what is counted are the map's own
    evaluations. It warns with TrainedElsewhereWarning if the field's data have another scale than those of the training.
    """

    file: str = ""
    of: FlowMap | str | None = field(default=None, repr=False, compare=False)
    phi: FlowMap = field(init=False, repr=False, compare=False)
    #: The content of the map, by which two solvers without a file are told apart.
    digest: str = field(init=False, repr=False)

    needs_path = True
    name = "map"
    reference = "Boffi, Albergo, Vanden-Eijnden, arXiv 2406.07507 (flow maps); Song et al., arXiv 2303.01469 (consistency)"
    #: It has no order of convergence: more jumps need not be better.
    order = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", named(self.file))
        if (self.of is None) == (not self.file):
            raise ArgumentError(
                "map needs file=, a flow map that `diffode train` wrote, or of=, a map in memory or the place of your own"
            )
        placed = isinstance(self.of, str) and is_place(self.of)
        if self.of is not None and not placed and not isinstance(self.of, FlowMap):
            raise ArgumentError(
                f"of must be a flow map, such as diffode.maps.FunctionMap(phi, path), or the place of one, such as "
                f"my_map.py:phi; got {self.of if isinstance(self.of, str) else type(self.of).__name__}"
            )
        object.__setattr__(self, "phi", load_map(self.file) if self.of is None else as_flow_map(self.of))
        object.__setattr__(self, "digest", self.content())

    @property
    def spec(self) -> str:
        """The solver's spec, with the file or the place that it was read from, if any."""
        return format_spec(self.name, {"file": self.file} if self.file else {"of": self.of} if isinstance(self.of, str) else {})

    @override
    def content(self) -> str:
        if isinstance(self.phi, LearnedMap):
            return content_of([self.phi.clock.mean, *self.phi.net.state_dict().values()])
        if self.phi.weights:
            return f"{type(self.phi).__name__} {self.phi.name} {content_of(self.phi.weights)}"
        # The code of a map is in a result's key; what it read from elsewhere shows in what it answers.
        return f"{type(self.phi).__name__} {self.phi.name} {_answers(self.phi)}"

    @property
    @override
    def stochastic(self) -> bool:
        return self.phi.fixed_end

    @override
    def draws_noise(self, nfe: int) -> bool:
        return self.phi.fixed_end and nfe > self.phi.cost

    @property
    def takes_steps(self) -> bool:
        """False: a number of evaluations is one of jumps, for which it lays its own times."""
        return False

    def check_nfe(self, nfe: int) -> None:
        """Raise ArgumentError unless ``nfe`` is a number of evaluations that a run can cost."""
        check_budget(nfe)
        if self.phi.one_jump and nfe != self.phi.cost:
            raise ArgumentError(
                f"{self.spec!r} is a generator, which makes its points in one jump: nfe must be {self.phi.cost}, got {nfe}"
            )
        if nfe % self.phi.cost:
            raise ArgumentError(
                f"one jump of {self.spec!r} costs {self.phi.cost} evaluations, of which nfe={nfe} is no multiple"
            )

    def lay(self, field: Field, path: Path, nfe: int) -> list[float]:
        """The times of a run with ``nfe`` evaluations of a field on a path, whatever the field."""
        return self.phi.on(path).times(nfe // self.phi.cost)

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        phi = self.phi.on(field.require_path("a flow map"))
        if phi.dim is not None and phi.dim != math.prod(x.shape[1:]):
            raise ArgumentError(f"this map takes rows of {phi.dim} numbers, got {tuple(x.shape[1:])}")
        if phi.one_jump and len(times) > 2:
            raise ArgumentError(
                f"{self.spec!r} is a generator, which makes its points in one jump: a grid must have its ends alone, got "
                f"{len(times)} times"
            )
        if phi.fixed_end and len(times) > 2 and generator is None:
            raise ArgumentError(
                f"{self.spec!r} goes to its end only, and draws noise for {len(times) - 2} further jumps: pass generator= "
                "(a seed or torch.Generator)"
            )
        self._say_elsewhere(field, phi)
        states = [x]
        # Numbers of maps do not train here: without a start that asks for a gradient no graph is built.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            for number, (s, t) in enumerate(itertools.pairwise(times)):
                if not phi.fixed_end:
                    states.append(phi(states[-1], s, t))
                else:
                    end = phi(states[-1], s, phi.ends[1])
                    # Without a generator there is one jump, after which nothing is noised.
                    if generator is not None and number < len(times) - 2:
                        end = self._noised(end, phi, t, generator)
                    states.append(end)
                field.spend(phi.cost)
        return Journey(torch.stack(states))

    def _noised(self, end: Tensor, phi: FlowMap, t: float, generator: torch.Generator) -> Tensor:
        """Points at the map's last time with the noise of an earlier time added."""
        ratio = phi.path.alpha(t) / phi.path.alpha(phi.ends[1])
        spread = max(phi.path.sigma(t) ** 2 - (ratio * phi.path.sigma(phi.ends[1])) ** 2, 0.0) ** 0.5
        noise = normal(end.shape, generator=generator).to(end)
        found: Tensor = ratio * end + spread * noise
        return found

    def _say_elsewhere(self, field: Field, phi: FlowMap) -> None:
        if not isinstance(phi, LearnedMap):
            return
        trained = phi.clock
        apart = abs(field.scale - trained.scale) > _SAME_SCALE * trained.scale
        if isinstance(field, ExactField) and field.dim == trained.dim:
            apart |= bool((field.target.mean.cpu() - trained.mean).norm() > _SAME_SCALE * trained.scale * trained.dim**0.5)
        if apart:
            known = "" if phi.facts is None else f" ({phi.facts.target})"
            warnings.warn(
                f"{self.spec!r} was trained for data of scale {trained.scale:.6g}{known}, not for this field's, of scale "
                f"{field.scale:.6g}: it gives the data of its training; train one on this field",
                TrainedElsewhereWarning,
                stacklevel=2,
            )


def _answers(phi: FlowMap) -> str:
    """A hash of what a map answers at some points, in its dimension or in all that it takes out of some usual ones."""
    first, last = phi.ends
    found = []
    for dim in _DIMENSIONS if phi.dim is None else (phi.dim,):
        # Anyone's map may raise anything for points of a kind that it does not take.
        with contextlib.suppress(Exception), torch.no_grad():
            found.append(phi(phi.path.sigma(first) * normal((4, dim), generator=0), first, last).detach().cpu())
    return content_of(found)


def as_flow_map(given: object, path: Path | str | None = None) -> FlowMap:
    """A flow map of what is given, in the times of a path if one is given.

    Args:
        given: a map; a file that a training wrote; a function (x, s, t), which takes the times of whatever path it is on; or
            ``module:attribute`` or ``file.py:attribute`` of a map or a function.
        path: a path or its spec; a function is on EDM's without one.

    Raises:
        ArgumentError: if it is none of these, or a map of another path.
    """
    found = load_attribute(given) if isinstance(given, str) and is_place(given) else given
    if isinstance(found, FlowMap):
        made = found
    elif isinstance(found, str) and found.endswith(".py"):
        raise ArgumentError(f"name the function or the map in {found!r} too, as {found}:phi")
    elif isinstance(found, str) and not os.path.lexists(found):
        raise ArgumentError(
            f"there is no file {found!r:.200}: a flow map is a file that diffode train wrote, or a place such as my_map.py:phi"
        )
    elif isinstance(found, str | os.PathLike):
        made = load_map(os.fspath(found))
    elif callable(found) and not inspect.isclass(found):
        made = FunctionMap(found, "edm" if path is None else path, any_path=True)
    else:
        raise ArgumentError(
            f"a flow map is a file, a function (x, s, t), or a diffode.maps.FlowMap, got {type(found).__name__}"
        )
    return made if path is None else made.on(path)
