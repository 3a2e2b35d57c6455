"""The pictures of Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence).

What ships is made of them, by scripts that read them where Debian's package ``dataset-fashion-mnist`` puts them. Nothing of
diffode needs them when it runs.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28
#: The classes by their numbers, as the data's authors name them.
CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def _read(name: str, magic: int, ndim: int) -> NDArray[np.uint8]:
    file = FOLDER / name
    if not file.is_file():
        sys.exit(f"{file} is missing: install the pictures with `apt-get install dataset-fashion-mnist`")
    content = gzip.decompress(file.read_bytes())
    found, *shape = struct.unpack(f">{ndim + 1}I", content[: 4 * (ndim + 1)])
    if found != magic:
        sys.exit(f"{file} is no IDX file of the expected kind: its first number is {found}, not {magic}")
    return np.frombuffer(content, np.uint8, offset=4 * (ndim + 1)).reshape(shape)


def bytes_of(part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures (n, 784) and classes (n,) of the ``train`` (60,000) or the ``t10k`` part (10,000), in their order."""
    pictures = _read(f"{part}-images-idx3-ubyte.gz", 2051, 3)
    return pictures.reshape(len(pictures), SIDE**2), _read(f"{part}-labels-idx1-ubyte.gz", 2049, 1)


def pictures(part: str) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The same with grey values from -1, black, to 1."""
    values, classes = bytes_of(part)
    return values / 127.5 - 1, classes
