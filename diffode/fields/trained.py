"""Trained networks that ship with diffode: fields whose distance to the exact one is known."""

from __future__ import annotations

import functools
import math
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import UnknownNameError
from diffode.fields.exact import ExactField, exact_field
from diffode.fields.field import Field, columns
from diffode.fields.networks import Denoiser
from diffode.input_files import believed
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.statistics import Statistics
from diffode.targets import get as get_target
from diffode.tensor_files import finite, read_tensors, text, write_tensors

#: Schema of a file with one denoiser.
SCHEMA = "diffode-denoiser-1"
_FOLDER = FilePath(__file__).parent / "weights"
#: Largest scale of data in a file, and its inverse the smallest: their squares are numbers of float32 too.
_LARGEST_SCALE = 1e15
#: Largest width, in units or channels, that a file may give a network: no file fills the memory.
_MOST_WIDTH = 4096
#: Largest number of residual layers that a file may give a network.
_MOST_DEPTH = 64

#: Rows that a network takes at once: what many rows of images need in between leaves the processor's caches.
_ROWS = 128


class TrainedField(Field):
    """The field of a trained denoiser.

    Its ``statistics`` are those of ``truth`` unless others are set.

    Attributes:
        truth: the exact field of what it was trained on, or of a part of that.
        facts: how it was trained. ``facts["errors"]`` lists pairs (sigma/scale, root mean square distance per coordinate of
            denoised points from the exact ones, in units of the scale). With ``facts["arithmetic"]`` it computes in that dtype,
            whatever the states are in; in theirs otherwise.
    """

    path: Path
    truth: ExactField

    def __init__(self, denoiser: Denoiser, facts: dict[str, Any], path: Path):
        self.denoiser, self.facts = denoiser, facts
        self._by_dtype: dict[torch.dtype, Denoiser] = {}
        super().__init__(self._denoised, "denoised", path, scale=denoiser.scale, probe=False)
        self.path = path
        self.truth = exact_field(str(facts["target"]), path)
        self.dim, self.shape = self.truth.dim, self.truth.shape
        self.arithmetic = getattr(torch, facts["arithmetic"]) if "arithmetic" in facts else None

    @property
    @override
    def statistics(self) -> Statistics | None:
        return self.truth.statistics if self._statistics is None else self._statistics

    @statistics.setter
    def statistics(self, known: Statistics | None) -> None:
        Field.statistics.fset(self, known)  # type: ignore[attr-defined]

    def _denoised(self, x: Tensor, t: Any) -> Tensor:
        rho = torch.as_tensor(self.path.rho(t), dtype=torch.float64, device=x.device)
        clean = (x / columns(self.path.alpha(t), x)).to(self.arithmetic or x.dtype)
        network, levels = self._in(clean), rho.expand(len(x))
        if len(x) <= _ROWS:
            found: Tensor = network(clean, levels)
        else:
            pieces = zip(torch.split(clean, _ROWS), torch.split(levels, _ROWS), strict=True)
            found = torch.cat([network(*piece) for piece in pieces])
        return found.to(x)

    def _in(self, x: Tensor) -> Denoiser:
        """The network in x's dtype and on its device."""
        known = self._by_dtype.get(x.dtype)
        if known is None or next(known.parameters()).device != x.device:
            known = build(self.facts)
            known.load_state_dict(self.denoiser.state_dict())
            self._by_dtype[x.dtype] = known.to(device=x.device, dtype=x.dtype).requires_grad_(False)
        return self._by_dtype[x.dtype]


def build(facts: dict[str, Any]) -> Denoiser:
    """A denoiser of the kind and size that the facts give, with weights yet to be loaded."""
    return Denoiser(
        str(facts["kind"]), tuple(facts["shape"]), float(facts["scale"]), width=int(facts["width"]), depth=int(facts["depth"])
    )


def trained(name: str, path: Path | str = "edm") -> TrainedField:
    """The field along a path of the network that ships under a name; UnknownNameError if none does.

    It was trained on EDM's noise levels, 0.002 to 80: on draws of the target of its name, or on the pictures of Fashion-MNIST.

    >>> field = trained("ring8")
    >>> field.facts["kind"]
    'perceptron'
    """
    if name not in trained_names():
        raise UnknownNameError("trained network", name, trained_names())
    return _shipped(name, get_path(path))


@functools.cache
def _shipped(name: str, path: Path) -> TrainedField:
    return load_trained(_FOLDER / f"{name}.safetensors", path)


def trained_names() -> list[str]:
    """The names of the networks that ship: those of their targets, and ``fashion-unet``."""
    return sorted(file.stem for file in _FOLDER.glob("*.safetensors"))


def save_trained(denoiser: Denoiser, facts: dict[str, Any], file: str | FilePath) -> None:
    """Write a denoiser with its facts; weights as float32."""
    tensors = {name: value.detach().to(torch.float32).contiguous() for name, value in denoiser.state_dict().items()}
    write_tensors(file, tensors, {"schema": SCHEMA, **facts})


def load_trained(file: str | FilePath, path: Path | str = "edm") -> TrainedField:
    """Read a denoiser that :func:`save_trained` wrote; FileFormatError for any other file."""
    facts, tensors = read_tensors(file, SCHEMA)
    with believed(file, "a valid denoiser", "make it with tools/train_networks.py or tools/train_images.py"):
        for key, most in (("width", _MOST_WIDTH), ("depth", _MOST_DEPTH)):
            if type(facts[key]) is not int or not 0 <= facts[key] <= most:
                raise ValueError(f"{key} must be an integer from 0 to {most}")
        shape = facts["shape"]
        if not isinstance(shape, list) or not shape or not all(type(n) is int and 1 <= n <= 10**4 for n in shape):
            raise ValueError("shape must be a list of sizes")
        if not 1 / _LARGEST_SCALE <= finite(facts, "scale") <= _LARGEST_SCALE:
            raise ValueError(f"scale must lie in [{1 / _LARGEST_SCALE:g}, {_LARGEST_SCALE:g}]")
        if facts["width"] < 4 or facts["width"] % 4:
            raise ValueError("width must be a multiple of 4")
        if len(shape) != (1 if facts["kind"] == "perceptron" else 3):
            raise ValueError("shape must have one size, or channels, height and width for a unet")
        if facts["kind"] == "patch_unet" and (shape[1] != shape[2] or shape[1] % 4 or not facts["depth"]):
            raise ValueError("a patch_unet needs square images whose side is a multiple of 4, and a depth >= 1")
        if facts.get("arithmetic", "float32") != "float32":
            raise ValueError("arithmetic must be float32, or left out")
        if get_target(text(facts, "target")).dim != math.prod(shape):
            raise ValueError(f"shape {shape} is not that of target {facts['target']}")
        with torch.device("meta"):
            sizes = {name: value.shape for name, value in build(facts).state_dict().items()}
        if {name: value.shape for name, value in tensors.items()} != sizes:
            raise ValueError("its tensors are not those of such a network")
        for name, value in tensors.items():
            if value.dtype != torch.float32 or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite float32")
        denoiser = build(facts)
        denoiser.load_state_dict(tensors)
        return TrainedField(denoiser.requires_grad_(False), facts, get_path(path))
