"""Files of trained samplers: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch

from diffode import paths
from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.solvers.trained.ranged import Ranged
from diffode.statistics import Statistics
from diffode.statistics.enclosed import disclosed, enclosed
from diffode.tableau.gaussian_stages import GaussianStages
from diffode.tableau.stages import Stages, count_of
from diffode.tensor_files import finite, float64, read_tensors, write_tensors
from diffode.training_facts import Facts, read_facts

#: Schema of a file with one sampler.
CHECKPOINT_SCHEMA = "diffode-sampler-1"
#: Schema of a file with one ranged sampler for each number of evaluations.
_RANGED_SCHEMA = "diffode-ranged-samplers-1"
#: Schema of a file with several ranged samplers for each number of evaluations.
_CODEBOOK_SCHEMA = "diffode-codebooks-1"
#: Largest number of evaluations of a sampler in a file.
_MOST_EVALUATIONS = 1000
#: Largest level and largest scale in a file; the smallest scale is its inverse.
_LARGEST_LEVEL = 1e30


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Facts):
    """A trained sampler and its origin, with the attributes of :class:`Facts` and these.

    Attributes:
        stages: the table, in units of the data's scale; with statistics it is one in the Gaussian's chart, which has one
            evaluation more than are made.
        scale: root mean variance of the data that it was trained on.
        statistics: mean and covariance of these data, in their own unit, for a table in the Gaussian's chart; else None.
    """

    stages: Stages
    scale: float
    statistics: Statistics | None = None

    @property
    def nfe(self) -> int:
        """Number of evaluations."""
        return self.stages.nfe - (self.statistics is not None)

    def table(self, scale: float | None = None) -> Stages | GaussianStages:
        """The table in the unit of the data, or for data of another ``scale``."""
        own = self.stages.scaled(scale or self.scale)
        if self.statistics is None:
            return own
        return GaussianStages(own, self.statistics.scaled((scale or self.scale) / self.scale))

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors; raises ArgumentError if the file can't be written."""
        stages = self.stages
        parts, told = enclosed(self.statistics)
        tensors = {"scales": stages.scales, "weights": stages.weights, "levels": stages.levels, **parts}
        description = {"schema": CHECKPOINT_SCHEMA, "scale": self.scale, **self.description(), **told}
        write_tensors(file, {k: v.contiguous() for k, v in tensors.items()}, description)


def load_checkpoint(file: str | FilePath) -> Checkpoint:
    """Read a trained sampler; FileFormatError for a file that holds none, ArgumentError if there is no file.

    Files of versions that trained by the clock read as ``stopped_by="seconds"``.
    """
    description, tensors = read_tensors(file, CHECKPOINT_SCHEMA)
    with believed(file, "a valid trained sampler", "train it again with diffode train"):
        stages = Stages(*(float64(tensors, name, ndim) for name, ndim in (("scales", 1), ("weights", 2), ("levels", 1))))
        statistics, others = disclosed(description, tensors)
        if set(others) != {"scales", "weights", "levels"} or not 1 <= stages.nfe <= _MOST_EVALUATIONS:
            raise ValueError("it must hold scales, weights and levels of 1 to 1000 evaluations, and nothing else")
        if bool((stages.levels > _LARGEST_LEVEL).any()):
            raise ValueError(f"levels must not exceed {_LARGEST_LEVEL:g}")
        if not stages.levels[-1] < stages.levels[0]:
            raise ValueError("the last level must be below the first")
        scale = finite(description, "scale")
        if not 1 / _LARGEST_LEVEL <= scale <= _LARGEST_LEVEL:
            raise ValueError(f"scale must lie in [{1 / _LARGEST_LEVEL:g}, {_LARGEST_LEVEL:g}], got {scale}")
        # Older files call the origin "start" and have no "stopped_by", since the clock always ended the training.
        older = {"stopped_by": "seconds", **({"begun_from": description["start"]} if "start" in description else {})}
        facts = read_facts({**older, **description})
        # The path is neither built nor imported: a file may ask for more than the memory holds, or for foreign code.
        paths.registry.check_registered(facts["path"])
        found = Checkpoint(stages=stages, scale=scale, statistics=statistics, **facts)
        # The form of a table in a chart is refused where it is made.
        found.table()
        return found


def save_ranged(tables: Mapping[int, Ranged], facts: Mapping[str, Any], file: str | FilePath) -> None:
    """Write ranged samplers by number of evaluations; ``facts`` say how they were trained."""
    _write_ranged(_RANGED_SCHEMA, {nfe: [table] for nfe, table in tables.items()}, facts, file)


def load_ranged(file: str | FilePath) -> dict[int, Ranged]:
    """Read ranged samplers by number of evaluations; FileFormatError for any other file."""
    return {nfe: tables[0] for nfe, tables in _read_ranged(_RANGED_SCHEMA, file).items()}


def save_codebooks(books: Mapping[int, Sequence[Ranged]], facts: Mapping[str, Any], file: str | FilePath) -> None:
    """Write several ranged samplers for each number of evaluations; ``facts`` say how they were trained."""
    _write_ranged(_CODEBOOK_SCHEMA, books, facts, file)


def load_codebooks(file: str | FilePath) -> dict[int, tuple[Ranged, ...]]:
    """Read codebooks that :func:`save_codebooks` wrote; FileFormatError for any other file."""
    return _read_ranged(_CODEBOOK_SCHEMA, file)


def _write_ranged(schema: str, books: Mapping[int, Sequence[Ranged]], facts: Mapping[str, Any], file: str | FilePath) -> None:
    tables = [table for book in books.values() for table in book]
    if not tables or not all(books.values()):
        raise ArgumentError("there is no table to write for one of the numbers of evaluations, or for any")
    one = tables[0]
    if any((table.first, table.last, table.most) != (one.first, one.last, one.most) for table in tables):
        raise ArgumentError("tables of one file must be trained for the same ranges of levels and dimensions")
    description = {**facts, "schema": schema, "first": one.first, "last": one.last, "most": one.most}
    tensors = {f"nfe_{nfe}": torch.stack([table.coefficients for table in book]) for nfe, book in books.items()}
    if schema == _RANGED_SCHEMA:
        tensors = {name: tensor[0].contiguous() for name, tensor in tensors.items()}
    else:
        # Codebooks are many tables, and rounding to float32 is far below their errors.
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    write_tensors(file, tensors, description)


def _read_ranged(schema: str, file: str | FilePath) -> dict[int, tuple[Ranged, ...]]:
    description, tensors = read_tensors(file, schema)
    single = schema == _RANGED_SCHEMA
    with believed(file, "a file of ranged samplers"):
        spans = []
        for key in ("first", "last"):
            low, high = description[key]
            if isinstance(low, bool) or isinstance(high, bool):
                raise ValueError(f"{key} must be a range of numbers")
            if not 0 < low < high < math.inf:
                raise ValueError(f"{key} must be a range of positive numbers")
            spans.append((float(low), float(high)))
        if type(description["most"]) is not int or not 2 <= description["most"] <= 10**9:
            raise ValueError("most must be an integer from 2 to 1e9")
        books = {}
        for name in tensors:
            if not re.fullmatch(r"nfe_[1-9][0-9]{0,3}", name):
                raise ValueError(f"unknown tensor {name[:60]!r}; they are called nfe_3, nfe_4, ...")
            nfe = int(name.removeprefix("nfe_"))
            found = float64(tensors, name, 2)[None] if single else float64(tensors, name, 3, torch.float32)
            if not 1 <= nfe <= _MOST_EVALUATIONS or not len(found) or found.shape[1:] != (9, count_of(nfe)):
                raise ValueError(
                    f"{name} must be {'' if single else 'some '}(9, {count_of(nfe)}), got {tuple(tensors[name].shape)}"
                )
            books[nfe] = tuple(Ranged(nfe, spans[0], spans[1], description["most"], one) for one in found)
        if not books:
            raise ValueError("it holds no table")
        return books
