"""Trials of files: valid files of every kind are damaged and opened through the public doors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffode
from diffode import Field, Solution, Tableau, cache, paths, solvers
from diffode.array_files import read_array, read_arrays
from diffode.fields.trained import load_trained
from diffode.solvers.checkpoints import load_checkpoint, load_codebooks, load_ranged
from diffode.solvers.ranged import Ranged
from diffode.studies import Store, load_suite
from diffode.studies.report_folder import check_folder
from diffode.studies.suite import Suite
from trials.damage import damage
from trials.draw import Draw
from trials.material import CACHE_KEY, CELL, DIM, FIRST, KINDS, LAST, material
from trials.runs import consistent
from trials.trial import Names, Trial

#: Evaluations up to which a table is run after it was read.
_MOST_EVALUATIONS = 2000


def trial(draw: Draw) -> Trial:
    """A damaged file, opened."""
    kind = draw.pick(sorted(OPENED))
    return Trial(f"file = damaged({kind!r}, {draw.seed()})\nanswer = answered({kind!r}, file)\n", look)


def damaged(kind: str, seed: int) -> str:
    """The name of a damaged file of this kind."""
    good = Path(material(kind))
    content, done = damage(good.read_bytes(), good.name, Draw([seed]))
    # The manifest of a report has its own name, in a folder of its own.
    folder = good.parent / "damaged"
    folder.mkdir(exist_ok=True)
    file = folder / ("report.json" if kind == "manifest" else f"{kind.replace(' ', '_')}_damaged{good.suffix}")
    for left in folder.iterdir():
        left.unlink()
    file.write_bytes(content)
    print(f"{kind}: {done}")
    return str(file)


def answered(kind: str, file: str) -> Any:
    """What diffode makes of a file: objects that hold what the file says, and runs with them."""
    return OPENED[kind](file)


def look(names: Names) -> Iterator[str]:
    """An answer keeps its own promises: numbers are finite, runs are consistent."""
    answer = names["answer"]
    for value in answer if isinstance(answer, tuple) else (answer,):
        if isinstance(value, Solution):
            yield from consistent(value, torch.zeros_like(value.x))
        elif isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            yield "a file with numbers that are not finite was believed"


def _field(path: Any = None) -> Field:
    return diffode.exact_field("ring8", "edm" if path is None else path)


def _run(field: Field, solver: Any, times: Sequence[float]) -> Solution:
    x = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = 1.0 if field.path is None else field.path.sigma(times[0])
    return diffode.solve(field, first * x, solver=solver, grid=list(times), on_failure="return", generator=0)


def _table(file: str) -> Any:
    table = Tableau.load(file)
    if table.nfe > _MOST_EVALUATIONS or table.draws > _MOST_EVALUATIONS:
        return table
    field = Field.from_velocity(lambda x, t: -x) if table.path is None else _field(table.path)
    x = torch.ones(3, DIM, dtype=torch.float64)
    return solvers.run_tableau(table, field, x, on_failure="return", generator=0)


def _checkpoint(file: str) -> Any:
    loaded = load_checkpoint(file)
    levels = loaded.stages.levels
    path = paths.get(loaded.path)
    times = [path.time_from_rho(float(levels[i])) for i in (0, -1)]
    return loaded.stages.weights, _run(_field(path), solvers.get("bespoke", file=file), times)


def _conditioned(file: str) -> Any:
    return _run(_field(), solvers.get("conditioned", file=file), [FIRST, LAST])


def _amed(file: str) -> Any:
    return _run(_field(), solvers.get("amed_learned", file=file), [FIRST, LAST])


def _ranged_runs(tables: Sequence[Ranged]) -> tuple[Tensor, ...]:
    return tuple(table.stages(table.first[1], table.last[0], DIM).weights for table in tables)


def _ranged(file: str) -> Any:
    return _ranged_runs(list(load_ranged(file).values()))


def _codebooks(file: str) -> Any:
    return _ranged_runs([table for book in load_codebooks(file).values() for table in book])


def _denoiser(file: str) -> Any:
    field = load_trained(file)
    return field.denoised(torch.ones(3, field.dim or 1, dtype=torch.float64), 1.0)


def _array(file: str) -> Any:
    return torch.from_numpy(read_array(file).astype(float))


def _arrays(file: str) -> Any:
    return tuple(torch.from_numpy(array.astype(float)) for array in read_arrays(file).values())


def _suite(file: str) -> Suite:
    return load_suite(file)


def _store(file: str) -> Any:
    with Store(file, patience=0.2) as store:
        store.done()
        return [value for result in store.get([("key-4", CELL), ("key-6", CELL)]) for value in result.measurements]


def _manifest(file: str) -> None:
    check_folder(Path(file).parent, ["index.html", "results.csv"])


def _entry(file: str) -> Any:
    """A damaged entry of the cache is none, or the one that was written."""
    place = Path(file).with_name(f"{CACHE_KEY}.safetensors")
    place.write_bytes(Path(file).read_bytes())
    known, os.environ["DIFFODE_CACHE"] = os.environ.get("DIFFODE_CACHE"), str(place.parent)
    try:
        found = cache.read(CACHE_KEY)
    finally:
        if known is None:
            del os.environ["DIFFODE_CACHE"]
        else:
            os.environ["DIFFODE_CACHE"] = known
    if found is not None and not torch.equal(found["x"], torch.arange(6, dtype=torch.float64).reshape(3, 2)):
        return torch.tensor(torch.nan)
    return None


OPENED: dict[str, Callable[[str], Any]] = {
    "table": _table,
    "noisy table": _table,
    "plain table": _table,
    "checkpoint": _checkpoint,
    "conditioned": _conditioned,
    "amed": _amed,
    "ranged": _ranged,
    "codebooks": _codebooks,
    "denoiser": _denoiser,
    "array": _array,
    "arrays": _arrays,
    "suite": _suite,
    "store": _store,
    "manifest": _manifest,
    "cache entry": _entry,
}
if not set(OPENED) <= set(KINDS):
    raise LookupError("a kind of file that is opened has no material")
