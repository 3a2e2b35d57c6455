"""Libraries and files that are judged: installed ones, and checkouts that lie in a folder beside this one."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

#: Checkouts by the name of their folder, with the addresses they come from.
CHECKOUTS = {
    "k-diffusion": "https://github.com/crowsonkb/k-diffusion",
    "ComfyUI": "https://github.com/comfyanonymous/ComfyUI",
    "dpm-solver": "https://github.com/LuChengTHU/dpm-solver",
    "UniPC": "https://github.com/wl-zhao/UniPC",
    "deis": "https://github.com/qsh-zh/deis",
    "RES4LYF": "https://github.com/ClownsharkBatwing/RES4LYF",
}
#: Packages that lie in a folder of their name, as ``pip install --no-deps --target FOLDER/NAME NAME`` puts them there.
PLACED = ("torchdyn", "torchode", "torchcfm")


@dataclass(frozen=True)
class Peers:
    """The folder that holds checkouts, each in a folder of its name in ``CHECKOUTS``; None if there is none."""

    folder: Path | None = None

    def has(self, name: str) -> bool:
        """Whether a checkout is there."""
        return self.folder is not None and (self.folder / name).is_dir()

    def version(self, name: str) -> str:
        """The version of an installed library, or the commit of a checkout (that of git, or of a file COMMIT)."""
        if name in PLACED:
            found = list((self.folder or Path("/nowhere")).glob(f"{name}/{name}-*.dist-info"))
            return found[0].name.removeprefix(f"{name}-").removesuffix(".dist-info") if found else ""
        if name not in CHECKOUTS:
            try:
                return installed_version(name)
            except PackageNotFoundError:
                return ""
        if not self.has(name) or (name == "deis" and not self._jax()) or (name == "RES4LYF" and not self.has("ComfyUI")):
            return ""
        place = Path(self.folder or ".") / name
        if (place / "COMMIT").is_file():
            return "commit " + (place / "COMMIT").read_text().split()[0][:10]
        asked = ["git", "-C", str(place), "rev-parse", "HEAD"]
        return "commit " + subprocess.run(asked, capture_output=True, text=True, check=True).stdout[:10]

    def _jax(self) -> bool:
        """Whether jax is there, with which deis makes its weights: installed, or placed in the folder ``jax``."""
        place = str((self.folder or Path(".")) / "jax")
        if self.has("jax") and place not in sys.path:
            sys.path.append(place)
        return importlib.util.find_spec("jax") is not None

    def load(self, name: str) -> Any:
        """The module of samplers of a checkout; what it imports besides, and does not use to sample, is left empty."""
        place = Path(self.folder or ".") / name
        if name == "k-diffusion":
            if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
                _empty("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
            _package("k_diffusion", place / "k_diffusion")
            return importlib.import_module("k_diffusion.sampling")
        if name in PLACED:
            return _placed(place, name)
        if name == "deis" and self._jax():
            return _deis(place)
        if name == "RES4LYF":
            return _res4lyf(place)
        if name == "ComfyUI":
            return importlib.import_module("comfy.k_diffusion.sampling", comfyui(place))
        file = {"dpm-solver": "dpm_solver_pytorch", "UniPC": "uni_pc"}[name]
        spec = importlib.util.spec_from_file_location(file, place / f"{file}.py")
        if spec is None or spec.loader is None:
            raise SystemExit(f"{place / file}.py can't be read")
        if file not in sys.modules:
            sys.modules[file] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[file])
        return sys.modules[file]


def _package(name: str, place: Path) -> None:
    """A package of some files, without what its ``__init__`` imports besides."""
    made = types.ModuleType(name)
    made.__path__ = [str(place)]
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules.setdefault(name, made)


def _placed(place: Path, name: str) -> Any:
    """The module of torchdyn, torchode or torchcfm; what they import besides, and no trial uses, is left empty."""
    if name == "torchdyn":
        _package("torchdyn", place / "torchdyn")
        # Splines, which no fixed-step method uses.
        empty = types.ModuleType("torchcde")
        vars(empty).update(CubicSpline=None, hermite_cubic_coefficients_with_backward_differences=None)
        sys.modules.setdefault("torchcde", empty)
        return importlib.import_module("torchdyn.numerics.odeint")
    if name == "torchode" and "torchtyping" not in sys.modules and importlib.util.find_spec("torchtyping") is None:
        # Annotations of shapes.
        annotations = types.ModuleType("torchtyping")
        vars(annotations).update(TensorType=defaultdict(lambda: Any), is_float=None)
        sys.modules.setdefault("torchtyping", annotations)
    if name == "torchcfm" and importlib.util.find_spec("ot") is None:
        # Couplings of minibatches.
        _empty("ot")
    if str(place) not in sys.path:
        sys.path.append(str(place))
    return importlib.import_module(name)


def _deis(place: Path) -> Any:
    """The package th_deis, whose weights jax makes, in float64."""
    importlib.import_module("jax").config.update("jax_enable_x64", True)
    numpy = importlib.import_module("jax._src.numpy.lax_numpy")
    # A name of jax's inside, by which a schedule of discrete times interpolates; newer versions have it elsewhere.
    vars(numpy).setdefault("_promote_dtypes_inexact", None)
    if str(place) not in sys.path:
        sys.path.append(str(place))
    return importlib.import_module("th_deis")


def _res4lyf(place: Path) -> Any:
    """The module of the sampler function, without nodes; ComfyUI's text encoders and pywt, a kind of noise, are empty."""
    comfyui(place.parent / "ComfyUI")
    _empty("comfy.supported_models", *(["pywt"] if importlib.util.find_spec("pywt") is None else []))
    _package("RES4LYF", place)
    _package("RES4LYF.beta", place / "beta")
    said = types.ModuleType("RES4LYF.res4lyf")
    vars(said).update(
        RESplain=lambda *_, **__: None, is_debug_logging_enabled=bool, get_display_sampler_category=bool
    )  # fmt: skip
    sys.modules.setdefault("RES4LYF.res4lyf", said)
    return importlib.import_module("RES4LYF.beta.rk_sampler_beta")


def comfyui(place: Path) -> str:
    """Make ComfyUI's package ``comfy`` importable, on the CPU, and return its name. torchvision is left empty if absent."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        _empty("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    if str(place) not in sys.path:
        sys.path.append(str(place))
    given, sys.argv = sys.argv, sys.argv[:1]
    try:
        importlib.import_module("comfy.cli_args").args.cpu = True
        importlib.import_module("comfy.samplers")
    finally:
        sys.argv = given
    return "comfy"


def _empty(*names: str) -> None:
    for name in names:
        if name in sys.modules:
            continue
        made = types.ModuleType(name)
        made.__path__ = []
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = made
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, made)
