"""Files of flow maps: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

import itertools
import math
from pathlib import Path as FilePath
from typing import Any

import torch

from diffode import paths
from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.maps.clock import LARGEST_SCALE, AngleClock
from diffode.maps.flow_map import LearnedMap
from diffode.maps.networks import network
from diffode.maps.parametrisations import PARAMETRISATIONS
from diffode.tensor_files import finite, float64, read_tensors, text, write_tensors
from diffode.training_facts import Facts, read_facts

#: Schema of a file with one flow map.
MAP_SCHEMA = "diffode-map-1"
#: Largest width and depth that a file may give a network: no file fills the memory.
_MOST_WIDTH, _MOST_DEPTH = 4096, 64
#: Largest number of jumps of a stored grid.
_MOST_JUMPS = 1000


def save_map(phi: LearnedMap, file: str | FilePath) -> None:
    """Write a flow map; weights as float32. ArgumentError if the file can't be written."""
    tensors = {f"net.{name}": value.detach().cpu().float().contiguous() for name, value in phi.net.state_dict().items()}
    tensors["mean"] = phi.clock.mean.detach().cpu().to(torch.float64).contiguous()
    if phi.facts is None:
        raise ArgumentError("this map has no facts about its training, without which a file would not say what it is")
    description: dict[str, Any] = {
        **phi.facts.description(), "schema": MAP_SCHEMA, "method": phi.method, "kind": phi.kind, "shape": list(phi.shape),
        "width": phi.width, "depth": phi.depth, "parametrisation": phi.parametrisation, "scale": phi.clock.scale,
        "angles": list(phi.angles), "fixed_end": phi.fixed_end, "one_time": phi.one_time,
        "both_ways": phi.both_ways, "law_only": phi.law_only, "one_jump": phi.one_jump,
        "grids": {str(n): list(grid) for n, grid in phi.grids.items()},
        "held_out": {str(n): value if math.isfinite(value) else None for n, value in phi.held_out.items()},
    }  # fmt: skip
    write_tensors(file, tensors, description)


def load_map(file: str | FilePath, path: paths.Path | str | None = None) -> LearnedMap:
    """Read a flow map that a training wrote, on the path of its training or another.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged, or holds no flow map.
    """
    description, tensors = read_tensors(file, MAP_SCHEMA)
    with believed(file, "a valid flow map", "train it again with diffode train"):
        facts = Facts(**read_facts(description))
        paths.registry.check_registered(facts.path)
        for key, most in (("width", _MOST_WIDTH), ("depth", _MOST_DEPTH)):
            if type(description[key]) is not int or not 0 <= description[key] <= most:
                raise ValueError(f"{key} must be an integer from 0 to {most}")
        # Files of maps that were written before there were generators say nothing of the last two.
        flags = {"law_only": False, "one_jump": False, **description}
        for key in ("fixed_end", "one_time", "both_ways", "law_only", "one_jump"):
            if type(flags[key]) is not bool:
                raise ValueError(f"{key} must be true or false")
        if flags["one_jump"] and not flags["fixed_end"]:
            raise ValueError("a map of one_jump must have fixed_end")
        kind, shape = text(description, "kind"), description["shape"]
        if not isinstance(shape, list) or not shape or not all(type(n) is int and 1 <= n <= 10**4 for n in shape):
            raise ValueError("shape must be a list of sizes")
        if kind == "unet" and (description["width"] < 4 or description["width"] % 4):
            raise ValueError("width of a unet must be a multiple of 4")
        if description["width"] < 1 or math.prod(shape) > 10**6:
            raise ValueError("width must be at least 1, and a row have at most a million numbers")
        name = text(description, "parametrisation")
        if name not in PARAMETRISATIONS:
            raise ValueError(f"parametrisation must be one of {', '.join(PARAMETRISATIONS)}")
        if not 1 / LARGEST_SCALE <= finite(description, "scale") <= LARGEST_SCALE:
            raise ValueError(f"scale must lie in [{1 / LARGEST_SCALE:g}, {LARGEST_SCALE:g}]")
        mean = float64(tensors, "mean", 1)
        if len(mean) != math.prod(shape):
            raise ValueError("mean must have a number for each coordinate of a row")
        angles = _angles(description["angles"], 1)
        if not all(isinstance(description[key], dict) for key in ("grids", "held_out")):
            raise ValueError("grids and held_out must be objects")
        grids = {_jumps(key): _angles(value, _jumps(key)) for key, value in description["grids"].items()}
        if any((grid[0], grid[-1]) != angles for grid in grids.values()):
            raise ValueError("grids must begin and end at the map's own angles")
        held_out = {_jumps(key): math.inf if v is None else float(v) for key, v in description["held_out"].items()}
        if any(math.isnan(value) or value < 0 for value in held_out.values()):
            raise ValueError("held_out must hold errors")
        with torch.device("meta"):
            sizes = {
                f"net.{key}": value.shape
                for key, value in network(kind, tuple(shape), width=description["width"], depth=description["depth"])
                .state_dict()
                .items()
            }
        if {key: value.shape for key, value in tensors.items() if key != "mean"} != sizes:
            raise ValueError("its tensors are not those of such a network")
        for key, value in tensors.items():
            if key != "mean" and (value.dtype != torch.float32 or not bool(torch.isfinite(value).all())):
                raise ValueError(f"{key} must be finite float32")
        net = network(kind, tuple(shape), width=description["width"], depth=description["depth"])
        net.load_state_dict({key.removeprefix("net."): value for key, value in tensors.items() if key != "mean"})
        return LearnedMap(
            net.requires_grad_(False), kind, tuple(shape), description["width"], description["depth"], name,
            AngleClock(mean, float(description["scale"])), (angles[0], angles[1]),
            paths.registry.registered(facts.path) if path is None else paths.get(path),
            description["fixed_end"], description["one_time"], description["both_ways"], flags["law_only"],
            flags["one_jump"], grids, held_out,
            text(description, "method"), facts,
        )  # fmt: skip


def _jumps(key: str) -> int:
    """A number of jumps, as the key of a JSON object writes it."""
    if not key.isascii() or not key.isdigit() or not 1 <= int(key) <= _MOST_JUMPS:
        raise ValueError(f"a number of jumps must lie in 1 to {_MOST_JUMPS}, got {key[:20]!r}")
    return int(key)


def _angles(values: Any, jumps: int) -> tuple[float, ...]:
    """Falling angles in (0, pi/2], one more than there are jumps."""
    if not isinstance(values, list) or len(values) != jumps + 1:
        raise ValueError(f"{jumps} jumps must have {jumps + 1} angles")
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError("angles must be numbers")
    found = tuple(float(v) for v in values)
    if not all(a > b for a, b in itertools.pairwise(found)) or not 0 <= found[-1] < found[0] <= math.pi / 2:
        raise ValueError("angles must fall, from pi/2 at most to 0 at least")
    return found
