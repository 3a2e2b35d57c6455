"""Cached references: what is read is what was written, and a key covers the code and the parameters as they were given."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import diffode
from diffode import GaussianMixture, LowRank, cache, targets
from diffode.targets.catalogue import from_arrays


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path))
    return tmp_path


def test_no_flipped_bit_of_an_entry_is_read_as_numbers(folder):
    """A bit in every byte: what is read is what was written, or nothing."""
    arrays = {"x": torch.linspace(0, 1, 24, dtype=torch.float64).reshape(8, 3), "errors": torch.full((8,), 1e-12)}
    cache.write("key", arrays)
    place = folder / "key.safetensors"
    content, draw, read = place.read_bytes(), random.Random(5), 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << draw.randrange(8)
        place.write_bytes(damaged)
        read += cache.read("key") is not None
    assert read == 0
    place.write_bytes(content)
    found = cache.read("key")
    assert found is not None
    assert all(torch.equal(found[name], arrays[name]) for name in arrays)
    for length in range(0, len(content), 7):
        place.write_bytes(content[:length])
        assert cache.read("key") is None


def test_an_entry_under_another_key_is_not_read(folder):
    cache.write("one", {"x": torch.ones(2)})
    (folder / "one.safetensors").rename(folder / "two.safetensors")
    assert cache.read("two") is None


def test_a_damaged_reference_is_computed_again(folder):
    field = diffode.exact_field("ring8", "edm")
    x = field.marginal(4, 5.0, generator=1)
    first = diffode.reference(field, x, 5.0, 0.1, 1e-6)
    (place,) = folder.iterdir()
    whole = place.read_bytes()
    damaged = bytearray(whole)
    damaged[-20] ^= 64
    place.write_bytes(damaged)
    again = diffode.reference(field, x, 5.0, 0.1, 1e-6)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.errors, again.errors)
    assert place.read_bytes() == whole


def test_the_code_behind_a_reference_is_part_of_its_key(folder, monkeypatch):
    field = diffode.exact_field("ring8", "edm")
    x = field.marginal(2, 5.0, generator=1)
    diffode.reference(field, x, 5.0, 1.0, 1e-4)
    monkeypatch.setattr("diffode.flows.integrated.version_of", lambda *roots: "other code")
    diffode.reference(field, x, 5.0, 1.0, 1e-4)
    assert len(list(folder.iterdir())) == 2


CONTENTS = """
import torch, diffode
torch.set_num_threads(2)
full = torch.linspace(-1, 1, 96 * 96, dtype=torch.float64).reshape(96, 96).sin()
own = diffode.GaussianMixture([1.0], [[0.0] * 96], (full @ full.T + torch.eye(96, dtype=torch.float64))[None].round(decimals=6))
print(*(diffode.targets.get(name).content() for name in ("digits-gmm10", "gauss1024-lowrank", "ring8")), own.content())
"""


def test_targets_have_the_same_content_on_one_thread_and_on_two():
    """The eigenvectors of digits-gmm10, computed on two threads, differ in their last bits."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CONTENTS]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    full = torch.linspace(-1, 1, 96 * 96, dtype=torch.float64).reshape(96, 96).sin()
    covariance = (full @ full.T + torch.eye(96, dtype=torch.float64))[None].round(decimals=6)
    own = GaussianMixture([1.0], [[0.0] * 96], covariance).content()
    assert other == [*(targets.get(n).content() for n in ("digits-gmm10", "gauss1024-lowrank", "ring8")), own]


@pytest.mark.parametrize("name", ["digits-gmm10", "gauss1024-lowrank"])
def test_what_is_computed_from_the_parameters_is_no_part_of_the_content(name, monkeypatch):
    with np.load(targets.catalogue.DATA / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    one = from_arrays(**arrays)
    # The same eigenspaces by other vectors: as another library, or another number of threads, would give them.
    eigh, svd = torch.linalg.eigh, torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    monkeypatch.setattr(torch.linalg, "svd", lambda matrix, **options: (-(parts := svd(matrix, **options))[0], *parts[1:]))
    two = from_arrays(**arrays)
    assert torch.equal(two.components.basis, -one.components.basis)
    assert one.content() == two.content() == targets.get(name).content()


MEANS = [[0.0, 1.0], [2.0, -1.0]]
GIVEN = {
    "isotropic": lambda: GaussianMixture([0.5, 0.5], MEANS, [1.0, 1.0]),
    "diagonal": lambda: GaussianMixture([0.5, 0.5], MEANS, [[1.0, 1.0], [1.0, 2.0]]),
    "full": lambda: GaussianMixture([0.5, 0.5], MEANS, [np.eye(2), 2 * np.eye(2)]),
    "low rank": lambda: GaussianMixture([0.5, 0.5], MEANS, LowRank(np.ones((2, 2, 1)), [1.0, 1.0])),
    "other noise": lambda: GaussianMixture([0.5, 0.5], MEANS, LowRank(np.ones((2, 2, 1)), [1.0, 2.0])),
    "other factors": lambda: GaussianMixture([0.5, 0.5], MEANS, LowRank(2 * np.ones((2, 2, 1)), [1.0, 1.0])),
    "points": lambda: GaussianMixture.from_points(MEANS),
    "weighted points": lambda: GaussianMixture.from_points(MEANS, [0.25, 0.75]),
    "other weights": lambda: GaussianMixture([0.25, 0.75], MEANS, [1.0, 1.0]),
    "other means": lambda: GaussianMixture([0.5, 0.5], [[0.0, 1.0], [2.0, -1.5]], [1.0, 1.0]),
}


def test_equal_parameters_have_equal_contents_and_others_have_others():
    contents = {name: make().content() for name, make in GIVEN.items()}
    assert contents == {name: make().content() for name, make in GIVEN.items()}
    assert len(set(contents.values())) == len(GIVEN)
    as_tensors = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-0.0, 1.0], [2.0, -1.0]]), torch.ones(2))
    assert as_tensors.content() == contents["isotropic"]


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path / "own"))
    assert cache.folder() == tmp_path / "own"
    monkeypatch.delenv("DIFFODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "diffode"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "diffode"


def test_an_entry_that_can_not_be_put_in_its_place_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path))
    (tmp_path / "key.safetensors").mkdir()
    cache.write("key", {"x": torch.ones(2)})
    assert [f.name for f in tmp_path.iterdir()] == ["key.safetensors"]
    assert cache.read("key") is None
