"""Files of flow maps: what is written comes back, and a file that is wrong in any way is refused."""

import json
import math

import pytest
import torch

import diffode
from diffode import learned, maps
from diffode.errors import ArgumentError, FileFormatError
from diffode.maps import LearnedMap
from diffode.tensor_files import read_tensors, write_tensors


@pytest.fixture(scope="module")
def small():
    return learned.train_map("flow_map:width=16,depth=1", "ring8", nfe=(1, 2), points=256, steps=40)


@pytest.fixture
def file(small, tmp_path):
    small.save(tmp_path / "ring.safetensors")
    return tmp_path / "ring.safetensors"


def test_files_bring_back_the_map(small, file):
    back = learned.load(file)
    x = torch.randn(6, 2, dtype=torch.float64)
    assert torch.equal(back.map(x, 80.0, 0.1), small.map(x, 80.0, 0.1))
    assert back.held_out == small.held_out
    assert back.facts == small.facts
    assert back.map.grids == small.map.grids
    assert back.solver.spec == f"map:file={file}"
    assert back.solver.content() == small.solver.content()
    field = diffode.exact_field("ring8", "edm")
    run = diffode.solve(field, field.prior(3, generator=0), solver=f"map:file={file}", nfe=2)
    assert torch.equal(run.x, diffode.solve(field, field.prior(3, generator=0), solver=small.solver, nfe=2).x)


def test_a_map_without_facts_is_not_saved(small, tmp_path):
    bare = LearnedMap(
        small.map.net, "perceptron", (2,), 16, 1, "angle", small.map.clock, small.map.angles, small.map.path
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="facts"):
        maps.save_map(bare, tmp_path / "bare.safetensors")


WRONG = {
    "width": [0, -1, 5000, 17, 1.5, "16", None, True],
    "depth": [-1, 65, 2, "1", None, 0],
    "kind": ["unet", "transformer", 3, None],
    "shape": [[], [3], [2, 2], "2", [0], [10**9], [1.0], None],
    "parametrisation": ["", "average velocity", None, 7],
    "scale": [0, -1, 1e300, "1", None, True],
    "angles": [[1.5], [0.1, 1.5], [2.0, 0.1], [1.5, -0.1], "1.5", [1.5, None], None, [1.5, 1.5]],
    "fixed_end": [0, "false", None],
    "one_time": [1, None],
    "grids": [{"0": [1.5]}, {"2": [1.5, 0.1]}, {"x": [1.5, 0.1]}, {"2": [1.5, 1.6, 0.1]}, [], None, {"1": [1.4, 0.2]}],
    "held_out": [{"1": -1.0}, {"1": "small"}, {"-1": 0.1}, None],
    "method": [None, 3],
    "schema": ["diffode-map-2", None],
    "seed": ["0", None, -1, 10**29],
    "path": ["nowhere", 3, "file.py:path"],
    "stopped_by": ["nothing", None],
    "held_out_error": ["0.1", -1],
    "start_error": [-1],
    "seconds": [-1],
    "both_ways": [0, None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_files_are_refused(file, tmp_path, key, value):
    description, tensors = read_tensors(file, "diffode-map-1")
    write_tensors(tmp_path / "wrong.safetensors", tensors, {**description, key: value})
    with pytest.raises(FileFormatError):
        maps.load_map(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: {k: v for k, v in t.items() if k != "mean"},
        lambda t: {**t, "mean": torch.zeros(3, dtype=torch.float64)},
        lambda t: {**t, "mean": torch.full((2,), math.nan, dtype=torch.float64)},
        lambda t: {**t, "net.enter.weight": t["net.enter.weight"][:, :-1].contiguous()},
        lambda t: {**t, "net.enter.weight": t["net.enter.weight"].double()},
        lambda t: {**t, "net.leave.bias": torch.full((2,), math.inf)},
        lambda t: {k: v for k, v in t.items() if k != "net.leave.bias"},
        lambda t: {**t, "net.more": torch.zeros(2)},
    ],
)
def test_files_with_wrong_tensors_are_refused(file, tmp_path, damage):
    description, tensors = read_tensors(file, "diffode-map-1")
    write_tensors(tmp_path / "wrong.safetensors", damage(tensors), description)
    with pytest.raises(FileFormatError):
        maps.load_map(tmp_path / "wrong.safetensors")


def test_files_lack_no_key(file, tmp_path):
    description, tensors = read_tensors(file, "diffode-map-1")
    for key in json.loads(json.dumps(description)):
        if key in ("law_only", "one_jump"):
            # Files of maps that have the coupling were written before these.
            continue
        without = {k: v for k, v in description.items() if k != key}
        write_tensors(tmp_path / "wrong.safetensors", tensors, without)
        with pytest.raises(FileFormatError):
            maps.load_map(tmp_path / "wrong.safetensors")


def test_a_map_of_an_unknown_method_runs_and_is_no_result_of_training(file, tmp_path):
    description, tensors = read_tensors(file, "diffode-map-1")
    other = tmp_path / "other.safetensors"
    write_tensors(other, tensors, {**description, "method": "x"})
    assert maps.load_map(other).method == "x"
    with pytest.raises(FileFormatError, match=r"of the method 'x', which is none of .*; it runs as the solver"):
        learned.load(other)
