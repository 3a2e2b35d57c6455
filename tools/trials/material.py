"""Valid files of every kind that diffode reads, made once a process: trials damage them, commands and solvers read them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from diffode import cache, paths, solvers
from diffode.fields.networks import Denoiser
from diffode.fields.trained import save_trained
from diffode.learned.conditional.amed import LearnedAMED, Predictor, feature_width
from diffode.learned.conditional.conditioned import Conditioned, input_count
from diffode.metrics import Measurement
from diffode.solvers.trained.checkpoints import Checkpoint, save_codebooks, save_ranged
from diffode.solvers.trained.ranged import Ranged
from diffode.studies import Cell, Result, Store
from diffode.tableau.stages import Stages
from diffode.training_facts import Facts

#: The problem that trained files belong to: coordinates of a row, and the times of the two ends on EDM's path.
DIM, FIRST, LAST = 2, 80.0, 0.002
#: Facts of a training that never was.
FACTS = Facts(
    path="edm", target="ring8", begun_from="dpmpp:order=2 @ karras", held_out_error=0.01, start_error=None, seconds=1.0, seed=0
)
CACHE_KEY = "0123456789abcdef"
CELL = Cell("gauss1d", "edm", 0, "karras", "ddim", 4, 4, "float64", ("endpoint",), 1e-6)
SUITE = """name = "small"
summary = "one run"
[defaults]
paths = ["edm"]
grids = ["karras"]
nfe = [4, 6]
seeds = [0]
points = 4
tolerance = 1e-6
metrics = ["endpoint", "moments"]
dtype = "float32"
[[study]]
targets = ["gauss1d"]
solvers = ["ddim", "dpmpp:order=2"]
"""


def material(kind: str) -> str:
    """The name of a valid file of this kind."""
    # A process that was forked must not write into its parent's folder.
    return _made(kind, os.getpid())


@functools.cache
def _folder(process: int) -> Path:
    return Path(tempfile.mkdtemp(prefix="diffode-trials-"))


@functools.cache
def _made(kind: str, process: int) -> str:
    make, ending = KINDS[kind]
    file = _folder(process) / f"{kind.replace(' ', '_')}{ending}"
    make(file)
    return str(file)


@contextlib.contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """While diffode's cache lies in this folder."""
    known, os.environ["DIFFODE_CACHE"] = os.environ.get("DIFFODE_CACHE"), str(folder)
    try:
        yield
    finally:
        if known is None:
            del os.environ["DIFFODE_CACHE"]
        else:
            os.environ["DIFFODE_CACHE"] = known


def _stages() -> Stages:
    return Stages.of(solvers.get("dpmpp:order=2").tableau(paths.get("edm"), "karras", 4))


def _table(file: Path) -> None:
    solvers.get("unipc:order=3").tableau(paths.get("vp"), "log_snr", 6).save(file)


def _noisy_table(file: Path) -> None:
    solvers.get("dpmpp_2m_sde").tableau(paths.get("edm"), "karras", 5).save(file)


def _plain_table(file: Path) -> None:
    solvers.get("rk4").tableau(None, [1.0, 0.5, 0.0]).save(file)


def _checkpoint(file: Path) -> None:
    facts = Facts(
        path="edm",
        target="ring8",
        begun_from="dpmpp:order=2 @ karras",
        held_out_error=0.01,
        start_error=0.02,
        seconds=1.0,
        seed=0,
    )
    Checkpoint(stages=_stages(), scale=1.0, **facts.facts()).save(file)


def _conditioned(file: Path) -> None:
    stages, rng = _stages(), torch.Generator().manual_seed(0)
    inputs, units = input_count(DIM), 4
    layers = tuple(
        (torch.randn(inputs, units, generator=rng, dtype=torch.float64), torch.randn(units, generator=rng, dtype=torch.float64))
        for _ in range(stages.nfe)
    )
    added = tuple(1e-3 * torch.randn(units + 1, i + 2, generator=rng, dtype=torch.float64) for i in range(stages.nfe))
    Conditioned(stages, 1.0, layers, added, FACTS).save(file)


def _amed(file: Path) -> None:
    times = (FIRST, 10.0, 1.0, LAST)
    predictor = Predictor(feature_width(DIM))
    LearnedAMED(predictor=predictor, times=times, levels=(FIRST, LAST), unit=1.0, host="dpm", facts=FACTS).save(file)


def _ranged_of(nfe: int) -> Ranged:
    stages = Stages.of(solvers.get("ddim").tableau(paths.get("edm"), "karras", nfe))
    return Ranged.constant(stages, (1.0, 1e3), (1e-4, 1e-1), 3072)


def _ranged(file: Path) -> None:
    save_ranged({3: _ranged_of(3), 5: _ranged_of(5)}, {"seconds": 1.0}, file)


def _codebooks(file: Path) -> None:
    save_codebooks({3: [_ranged_of(3), _ranged_of(3)]}, {"seconds": 1.0}, file)


def _denoiser(file: Path) -> None:
    facts = {
        "kind": "perceptron",
        "shape": [DIM],
        "scale": 1.0,
        "width": 8,
        "depth": 1,
        "target": "ring8",
        "errors": [[1.0, 0.1]],
    }
    save_trained(Denoiser("perceptron", (DIM,), 1.0, width=8, depth=1), facts, file)


def _array(file: Path) -> None:
    np.save(file, np.random.default_rng(0).normal(size=(20, DIM)))


def _arrays(file: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(file, weights=np.full(3, 1 / 3), means=rng.normal(size=(3, DIM)), variances=np.ones(3))


def _suite(file: Path) -> None:
    file.write_text(SUITE)


def _store(file: Path) -> None:
    with Store(file) as store:
        for nfe in (4, 6):
            measured = (Measurement("endpoint", 0.1, 1e-6), Measurement("moments", 0.2, 0.01, 0.1, 0.3))
            store.put(Result(f"key-{nfe}", CELL, "ok", "", nfe, nfe, 0.1, 1.0, 1, {"python": "3"}, measured))


def _manifest(file: Path) -> None:
    file.write_text(json.dumps({"schema": "diffode-report-1", "files": ["figures/curve.png", "index.html", "results.csv"]}))


def _entry(file: Path) -> None:
    with cache_in(file.parent):
        cache.write(CACHE_KEY, {"x": torch.arange(6, dtype=torch.float64).reshape(3, 2), "errors": torch.zeros(3)})
    (file.parent / f"{CACHE_KEY}.safetensors").replace(file)


def _function(file: Path) -> None:
    file.write_text("def noise(x, t):\n    return x / (1 + t**2) ** 0.5\n\n\ndef broken(x, t):\n    return x[:1]\n")


#: How each kind is made, and how its name ends.
KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "table": (_table, ".safetensors"),
    "noisy table": (_noisy_table, ".safetensors"),
    "plain table": (_plain_table, ".safetensors"),
    "checkpoint": (_checkpoint, ".safetensors"),
    "conditioned": (_conditioned, ".safetensors"),
    "amed": (_amed, ".safetensors"),
    "ranged": (_ranged, ".safetensors"),
    "codebooks": (_codebooks, ".safetensors"),
    "denoiser": (_denoiser, ".safetensors"),
    "array": (_array, ".npy"),
    "arrays": (_arrays, ".npz"),
    "suite": (_suite, ".toml"),
    "store": (_store, ".sqlite"),
    "manifest": (_manifest, ".json"),
    "cache entry": (_entry, ".safetensors"),
    "function": (_function, ".py"),
}
