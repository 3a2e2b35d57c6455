"""Shared set-up: deterministic hypothesis, one thread a worker, a cache folder of the tests' own."""

from __future__ import annotations

import gc
import os
import sys
import tempfile

# The workers are what runs in parallel. Threads of linear algebra, whose number is read when NumPy is first imported, would
# wait for each other: many small products take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from refusals import FOLDERS, hold
from small_suite import SMALL

import diffode
from diffode.metrics import Measurement
from diffode.studies import Result, Store, keyed_cells, parse_suite

hold()
settings.register_profile("diffode", derandomize=True, deadline=None, max_examples=40, print_blob=False)
settings.load_profile("diffode")
torch.set_num_threads(1)
# Where the environment declines bytecode, every worker would rewrite and compile all tests in every run.
sys.dont_write_bytecode = False
os.environ["DIFFODE_CACHE"] = tempfile.mkdtemp(prefix="diffode-tests-")


def pytest_configure(config):
    if config.option.basetemp:
        FOLDERS.append(str(Path(config.option.basetemp).resolve()))


def pytest_collection_finish():
    """What is imported and collected by now stays to the end: no test need look for garbage in it.

    Nor need there be a look after every 700 objects, as Python does: with that, a twelfth of the time of the tests went there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20240229)


@pytest.fixture
def exact() -> diffode.fields.ExactField:
    """The exact field of two modes on a line."""
    return diffode.exact_field("bimodal1d", "vp")


@pytest.fixture
def filled(tmp_path):
    """A store of two rows that no run was needed for, its suite and its results."""
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["ddim"]}]})
    file = tmp_path / "s.sqlite"
    with Store(file) as store:
        for number, (key, cell) in enumerate(sorted(keyed_cells(suite))):
            measured = (Measurement("endpoint", 0.25 + number, 1e-9),)
            store.put(Result(key, cell, "ok", "", 4, 4, 0.125, 1.0, 1, {"torch": "2"}, measured))
        results = store.get(sorted(keyed_cells(suite)))
    return file, replace(suite, cells=tuple(r.cell for r in results)), results


@pytest.fixture
def read_only_folder():
    """A folder to be filled; once it is closed, nobody (not root either, who is someone else then) can write in it."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o755)

        def close():
            for file in folder.iterdir():
                file.chmod(0o444)
            folder.chmod(0o555)
            if user == 0:
                os.seteuid(65534)

        yield folder, close
        os.seteuid(user)
        folder.chmod(0o755)
