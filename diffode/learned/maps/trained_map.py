"""The result of training a flow map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

from diffode.errors import ArgumentError
from diffode.learned.trained import Trained
from diffode.maps import LearnedMap, save_map


@dataclass(frozen=True)
class SavedMap:
    """A trained flow map as it is saved."""

    map: LearnedMap

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors; ArgumentError if the file can't be written."""
        save_map(self.map, file)


@dataclass(frozen=True, repr=False)
class TrainedMap(Trained):
    """A trained flow map: a :class:`Trained` with the map itself, and an error for each number of jumps."""

    @property
    def map(self) -> LearnedMap:
        """The map: ``trained.map(x, s, t)``."""
        content = self.content
        if not isinstance(content, SavedMap):
            raise ArgumentError(f"a trained map must hold a map, got {type(content).__name__}")
        return content.map

    @property
    def held_out(self) -> dict[int, float]:
        """Mean end-point error on starts outside of training, in units of the scale, by number of jumps."""
        return dict(self.map.held_out)

    def __repr__(self) -> str:
        errors = ", ".join(f"{n}: {value:.3g}" for n, value in self.held_out.items())
        return f"TrainedMap({self.map.method!r}, target={self.facts.target!r}, errors by jumps={{{errors}}})"
