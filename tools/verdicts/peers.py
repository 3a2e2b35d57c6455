"""Libraries and files that are judged: installed ones, and checkouts that lie in a folder beside this one."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
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
}


@dataclass(frozen=True)
class Peers:
    """The folder that holds checkouts, each in a folder of its name in ``CHECKOUTS``; None if there is none."""

    folder: Path | None = None

    def has(self, name: str) -> bool:
        """Whether a checkout is there."""
        return self.folder is not None and (self.folder / name).is_dir()

    def version(self, name: str) -> str:
        """The version of an installed library, or the commit of a checkout (that of git, or of a file COMMIT)."""
        if name == "torchdyn":
            found = list((self.folder or Path("/nowhere")).glob("torchdyn/torchdyn-*.dist-info"))
            return found[0].name.removeprefix("torchdyn-").removesuffix(".dist-info") if found else ""
        if name not in CHECKOUTS:
            try:
                return installed_version(name)
            except PackageNotFoundError:
                return ""
        if not self.has(name):
            return ""
        place = Path(self.folder or ".") / name
        if (place / "COMMIT").is_file():
            return "commit " + (place / "COMMIT").read_text().split()[0][:10]
        asked = ["git", "-C", str(place), "rev-parse", "HEAD"]
        return "commit " + subprocess.run(asked, capture_output=True, text=True, check=True).stdout[:10]

    def load(self, name: str) -> Any:
        """The module of samplers of a checkout; what it imports besides, and does not use to sample, is left empty."""
        place = Path(self.folder or ".") / name
        if name == "k-diffusion":
            if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
                _empty("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
            package = types.ModuleType("k_diffusion")
            package.__path__ = [str(place / "k_diffusion")]
            sys.modules.setdefault("k_diffusion", package)
            return importlib.import_module("k_diffusion.sampling")
        if name == "torchdyn":
            package = types.ModuleType("torchdyn")
            package.__path__ = [str(place / "torchdyn")]
            sys.modules.setdefault("torchdyn", package)
            # Splines, which no fixed-step method uses.
            empty = types.ModuleType("torchcde")
            vars(empty).update(CubicSpline=None, hermite_cubic_coefficients_with_backward_differences=None)
            sys.modules.setdefault("torchcde", empty)
            return importlib.import_module("torchdyn.numerics.odeint")
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
