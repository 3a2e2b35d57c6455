"""Numbers that were recorded once: what changes them changes what users get, and is told in the changelog.

``python tests/recorded.py [NAME ...]`` writes the numbers of these cases, or of all, anew to ``data``, where each module that
holds cases has a file of its name. A case is a function that gives numbers, tensors and words by name; a tensor is kept as its
root mean square and as a sum with signs and weights that no permutation leaves alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "data"
#: Modules beside this one that hold cases.
MODULES = sorted(file.stem for file in Path(__file__).parent.glob("recorded_*.py"))
#: Largest difference in units of the root mean square, where a case does not say its own: rounding differs by processor.
TOLERANCE = 1e-8
#: Differences below this are rounding: numbers that are 0 in mathematics have their size.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Case:
    """A case: what gives its numbers, the largest relative difference from those of other processors, and its module."""

    make: Callable[[], Mapping[str, Any]]
    tolerance: float
    module: str


CASES: dict[str, Case] = {}


def case(make: Callable[[], Mapping[str, Any]] | None = None, *, tolerance: float = TOLERANCE) -> Any:
    """Decorator of a function that gives numbers."""

    def keep(function: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
        if function.__name__ in CASES:
            raise ValueError(f"two cases have the name {function.__name__}: give one of them another")
        CASES[function.__name__] = Case(function, tolerance, function.__module__)
        return function

    return keep if make is None else keep(make)


def told(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().to(torch.float64).flatten()
        weights = torch.cos(1.0 + torch.arange(len(flat), dtype=torch.float64))
        size = float(flat.square().mean().sqrt()) if len(flat) else 0.0
        turned = float((weights * flat).sum()) / math.sqrt(max(1, len(flat)))
        return {"shape": list(value.shape), "size": told(size), "turned": told(turned)}
    if isinstance(value, Mapping):
        return {str(name): told(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [told(one) for one in value]
    if isinstance(value, str):
        # Other tests add names to registries.
        return re.sub(r"known: [^\n]*", "known: ...", value)
    return float(f"{value:.11g}") if isinstance(value, float) else value


def fields_of(value: Any) -> dict[str, Any]:
    """What a value was made of, by name, without what it has computed of itself since."""
    if dataclasses.is_dataclass(value):
        return {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    return dict(vars(value))


def close(found: float, known: float, relative: float, absolute: float) -> bool:
    """Whether numbers are as near as that, both infinite, both none, or both rounding."""
    both_none = math.isnan(found) and math.isnan(known)
    return both_none or math.isclose(found, known, rel_tol=relative, abs_tol=max(absolute, ROUNDING))


def apart(found: Any, known: Any, tolerance: float, place: str = "") -> list[str]:
    """Where two values that were told differ by more than the tolerance."""
    if isinstance(known, dict) and isinstance(found, dict) and known.keys() == found.keys():
        if known.keys() == {"shape", "size", "turned"}:
            floor = tolerance * known["size"] if math.isfinite(known["size"]) else 0.0
            near = found["shape"] == known["shape"] and all(
                close(found[part], known[part], 0.0, floor) for part in ("size", "turned")
            )
            return [] if near else [f"{place}: {found}, recorded {known}"]
        return [line for name in known for line in apart(found[name], known[name], tolerance, f"{place}/{name}")]
    if isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        pairs = enumerate(zip(found, known, strict=True))
        return [line for k, pair in pairs for line in apart(*pair, tolerance, f"{place}/{k}")]
    if isinstance(known, float) and isinstance(found, float):
        near = close(found, known, tolerance, 0.0)
    else:
        near = type(found) is type(known) and found == known
    return [] if near else [f"{place}: {found}, recorded {known}"]


def cases() -> dict[str, Case]:
    """All cases by name."""
    for name in MODULES:
        importlib.import_module(name)
    return CASES


def file_of(module: str) -> Path:
    """The file with the numbers of a module's cases."""
    return FOLDER / f"{module}.json"


def known_numbers() -> dict[str, Any]:
    """What is recorded, by case."""
    files = [file_of(module) for module in MODULES if file_of(module).is_file()]
    return {name: numbers for file in files for name, numbers in json.loads(file.read_text(encoding="utf-8")).items()}


def main(names: list[str]) -> None:
    every = cases()
    if wrong := [name for name in names if name not in every]:
        raise SystemExit(f"no case has the name {wrong[0]}; there are {', '.join(sorted(every))}")
    kept = known_numbers() | {name: told(every[name].make()) for name in names or every}
    for module in {every[name].module for name in names or every}:
        own = {name: kept[name] for name in sorted(every) if every[name].module == module and name in kept}
        # A line for each number or tensor.
        parts = (
            f" {json.dumps(name)}: {{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(one)}" for key, one in numbers.items())
            for name, numbers in own.items()
        )
        file_of(module).write_text("{\n" + "\n },\n".join(parts) + "\n }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    # Modules of cases import this one by its name.
    sys.modules["recorded"] = sys.modules["__main__"]
    torch.set_num_threads(1)
    main(sys.argv[1:])
