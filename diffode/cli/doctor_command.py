"""``diffode doctor``: what this installation has, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import click

from diffode.cli.output import OUTPUT, json_option, print_json, store_option

#: What diffode is computed and drawn with.
_NEEDED = ("numpy", "scipy", "torch", "safetensors", "matplotlib", "click", "rich", "joblib")
#: What some parts need: the distribution, its module, and what for.
_OPTIONAL = (
    ("numba", "numba", "compiled kernels of mixtures"),
    ("diffusers", "diffusers", "schedulers and models of diffusers"),
    ("flow_matching", "flow_matching", "models of flow_matching"),
    ("distributed", "distributed", "clusters, --engine dask"),
    ("pyarrow", "pyarrow", "Parquet files"),
    ("hypothesis", "hypothesis", "strategies of diffode.testing"),
)
#: Largest relative error of the small run.
_SMALL = 1e-10


@click.command("doctor")
@store_option
@click.option("--output", default=OUTPUT, show_default=True, help="Folder of the reports and the store.")
@json_option
def command(store: str | None, output: str, as_json: bool) -> int:
    """Look at this installation: versions, compiled kernels, threads, devices, the cache, the store, and a small run.

    Ends with 1 if something is wrong, and says what mends it.

    \b
    Example:  diffode doctor
    """
    looks: dict[str, Callable[[], tuple[str, str]]] = {
        "versions": _versions, "optional": _optional, "kernels": _kernels, "threads": _threads, "devices": _devices,
        "cache": _cache, "store": lambda: _store(FilePath(store) if store else FilePath(output) / "results.sqlite"),
        "a small run": _small_run,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for name, look in looks.items():
        try:
            told, wrong = look()
        except Exception as error:  # A broken installation may raise anything.
            told, wrong = "", f"{type(error).__name__}: {error}; install diffode anew"
        found.append({"part": name, "found": told, "wrong": wrong})
    bad = [one for one in found if one["wrong"]]
    if as_json:
        print_json({"parts": found, "well": not bad})
    else:
        for one in found:
            click.echo(f"{one['part']:<12} {one['found']}")
            if one["wrong"]:
                click.echo(f"{'':<12} WRONG: {one['wrong']}")
        click.echo("\nall is well" if not bad else f"\nwrong: {', '.join(one['part'] for one in bad)}")
    return 1 if bad else 0


def _versions() -> tuple[str, str]:
    from diffode import __version__

    told = f"diffode {__version__}, Python {platform.python_version()}, "
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    told += ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _NEEDED if name not in missing)
    return told, f"{', '.join(missing)} can't be imported: pip install --force-reinstall diffode" if missing else ""


def _optional() -> tuple[str, str]:
    lines = []
    for distribution, module, use in _OPTIONAL:
        there = importlib.util.find_spec(module) is not None
        lines.append(f"{distribution} {importlib.metadata.version(distribution)}" if there else f"no {distribution} ({use})")
    return ", ".join(lines), ""


def _kernels() -> tuple[str, str]:
    from diffode import native, targets

    if not native.is_on():
        why = "DIFFODE_NATIVE=0" if os.environ.get("DIFFODE_NATIVE") == "0" else "no Numba: pip install numba"
        return f"off ({why}); torch computes, several times slower in few dimensions", ""
    arithmetic = targets.get("ring8").arithmetic
    return f"{native.version()}, ring8 is computed by {arithmetic}", ""


def _threads() -> tuple[str, str]:
    import torch

    set_by = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    told = f"{os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads"
    return f"{told}{' (' + ', '.join(set_by) + ')' if set_by else ''}; a study runs one process of one thread a core", ""


def _devices() -> tuple[str, str]:
    import torch

    if not torch.cuda.is_available():
        return "cpu", ""
    return "cpu, " + ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())), ""


def _cache() -> tuple[str, str]:
    from diffode import cache_folder
    from diffode.errors import ArgumentError
    from diffode.output_files import writable

    place = cache_folder.folder()
    sizes = [file.stat().st_size for file in place.rglob("*") if file.is_file()] if place.is_dir() else []
    told = f"{place}: {len(sizes):,} files, {sum(sizes) / 1e6:.0f} MB, which may be deleted at any time"
    try:
        writable(place / "doctor", make_folders=True)
    except ArgumentError as error:
        return told, f"{error}; or set DIFFODE_CACHE to a folder that can be written"
    return told, ""


def _store(file: FilePath) -> tuple[str, str]:
    from diffode.errors import DiffodeError
    from diffode.studies import Store

    if not file.is_file():
        return f"none at {file} yet: diffode bench quick makes it", ""
    try:
        with Store(file) as opened:
            return f"{file}: {len(opened.all()):,} results, {file.stat().st_size / 1e6:.1f} MB", ""
    except DiffodeError as error:
        return str(file), str(error)


def _small_run() -> tuple[str, str]:
    import diffode

    field = diffode.exact_field("gauss1d", "edm")
    x = field.prior(16, generator=0)
    run = diffode.solve(field, x, solver="dpmpp:order=2", nfe=8)
    there = diffode.flow(field)(x, field.path.t_max, field.path.t_min)
    integrated = diffode.solve(field, x, solver="rk_adaptive:rtol=1e-12,atol=1e-12").x
    apart = float((integrated - there).abs().max()) / field.scale
    error = float((run.x - there).norm(dim=1).mean()) / field.scale
    told = f"dpmpp:order=2 errs by {error:.2e} at 8 evaluations; a fine integration agrees with the exact flow to {apart:.0e}"
    return (
        told,
        "" if apart < _SMALL and error < 1 else "numbers are not what they should be: reinstall NumPy, SciPy and PyTorch",
    )
