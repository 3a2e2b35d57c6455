"""Trials of files: valid files of every kind are damaged and opened through the public doors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffode
from diffode import Field, Solution, Tableau, cache, paths, solvers
from diffode.array_files import read_array, read_arrays
from diffode.fields.trained import load_trained
from diffode.solvers.trained.checkpoints import load_codebooks, load_ranged
from diffode.studies import Result, Store, load_suite
from diffode.studies.report_folder import check_folder
from trials.damage import damage
from trials.draw import Draw
from trials.material import CACHE_KEY, CELL, DIM, FIRST, LAST, cache_in, material
from trials.runs import consistent
from trials.trial import Names, Trial

#: Evaluations up to which a table is run after it was read.
_MOST_EVALUATIONS = 2000


def trial(draw: Draw) -> Trial:
    """A damaged file, opened."""
    kind = draw.pick(sorted(DOORS))
    lines = (
        f"file = damaged({kind!r}, {draw.seed()})",
        f"loaded = loaded_from({kind!r}, file)",
        f"answer = used({kind!r}, loaded)",
    )
    return Trial("\n".join(lines) + "\n", look)


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


def look(names: Names) -> Iterator[str]:
    """An answer keeps its own promises: numbers are finite, runs are consistent."""
    answer = names["answer"]
    for value in answer if isinstance(answer, tuple) else (answer,):
        if isinstance(value, Solution):
            yield from consistent(value, torch.zeros_like(value.x))
        elif isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            yield "a file with numbers that are not finite was believed"


def loaded_from(kind: str, file: str) -> Any:
    """What diffode reads from a file."""
    return DOORS[kind][0](file)


def used(kind: str, loaded: Any) -> Any:
    """Runs and numbers that come from what was read; an error is an answer here too."""
    return DOORS[kind][1](loaded)


def _field(path: Any = None) -> Field:
    return diffode.exact_field("ring8", "edm" if path is None else path)


def _run(solver: Any, times: Sequence[float], path: Any = None) -> Solution:
    field = _field(path)
    x = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return diffode.solve(field, field.path.sigma(times[0]) * x, solver=solver, grid=list(times), on_failure="return")


def _run_table(table: Tableau) -> Any:
    if table.nfe > _MOST_EVALUATIONS or table.draws > _MOST_EVALUATIONS:
        return None
    field = Field.from_velocity(lambda x, t: -x) if table.path is None else _field(table.path)
    x = torch.ones(3, DIM, dtype=torch.float64)
    return solvers.run_tableau(table, field, x, on_failure="return", generator=0)


def _run_bespoke(solver: Any) -> Any:
    path, levels = paths.get(solver.checkpoint.path), solver.checkpoint.stages.levels
    return _run(solver, [path.time_from_rho(float(levels[i])) for i in (0, -1)], path)


def _run_between(solver: Any) -> Solution:
    return _run(solver, [FIRST, LAST])


def _weights(tables: dict[int, Any]) -> tuple[Tensor, ...]:
    books = [book if isinstance(book, tuple) else (book,) for book in tables.values()]
    return tuple(table.stages(table.first[1], table.last[0], DIM).weights for book in books for table in book)


def _denoised(field: Field) -> Tensor:
    return field.denoised(torch.ones(3, field.dim or 1, dtype=torch.float64), 1.0)


def _tensors(arrays: Any) -> tuple[Tensor, ...]:
    values = arrays.values() if isinstance(arrays, dict) else (arrays,)
    return tuple(torch.from_numpy(array.astype(float)) for array in values)


def _results(file: str) -> list[Result]:
    with Store(file, patience=0.2) as store:
        store.done()
        return store.get([("key-4", CELL), ("key-6", CELL)])


def _measured(results: Sequence[Result]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([measured.value, measured.floor]) for result in results for measured in result.measurements)


def _report(file: str) -> None:
    check_folder(Path(file).parent, ["index.html", "results.csv"])


def _cached(file: str) -> Any:
    place = Path(file).with_name(f"{CACHE_KEY}.safetensors")
    place.write_bytes(Path(file).read_bytes())
    with cache_in(place.parent):
        return cache.read(CACHE_KEY)


def _as_written(found: Any) -> Tensor | None:
    """A damaged entry of the cache is none, or the one that was written."""
    same = found is None or torch.equal(found["x"], torch.arange(6, dtype=torch.float64).reshape(3, 2))
    return None if same else torch.tensor(torch.nan)


def _nothing(loaded: Any) -> None:
    """Reading it checks all that it says."""


#: How each kind is read, and how what was read is used.
DOORS: dict[str, tuple[Callable[[str], Any], Callable[[Any], Any]]] = {
    "table": (Tableau.load, _run_table),
    "noisy table": (Tableau.load, _run_table),
    "plain table": (Tableau.load, _run_table),
    "checkpoint": (lambda file: solvers.get("bespoke", file=file), _run_bespoke),
    "conditioned": (lambda file: solvers.get("conditioned", file=file), _run_between),
    "amed": (lambda file: solvers.get("amed_learned", file=file), _run_between),
    "ranged": (load_ranged, _weights),
    "codebooks": (load_codebooks, _weights),
    "denoiser": (load_trained, _denoised),
    "array": (read_array, _tensors),
    "arrays": (read_arrays, _tensors),
    "suite": (load_suite, _nothing),
    "store": (_results, _measured),
    "manifest": (_report, _nothing),
    "cache entry": (_cached, _as_written),
}
