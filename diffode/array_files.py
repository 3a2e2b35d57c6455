"""Arrays in ``.npy`` and ``.npz`` files, whose headers are checked against the sizes of the files. Never pickle."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import numpy as np

from diffode.errors import ArgumentError, FileFormatError
from diffode.input_files import believed, opened, shown

Array = np.ndarray[Any, Any]

#: Largest size of a file, in bytes, and of the unpacked arrays of an archive.
_LARGEST_FILE = 2**31
#: Size of unpacked arrays, in bytes, that every archive may have.
_UNPACKED = 2**26
#: Largest ratio of the size of unpacked arrays to that of the archive, if they are larger than ``_UNPACKED``.
_MOST_UNPACKING = 100
#: Largest number of arrays of an archive.
_MOST_ARRAYS = 100
#: Largest number of axes of an array.
_MOST_AXES = 16
#: Largest size of an array's header, in bytes.
_LONGEST_HEADER = 10_000
#: First bytes of the record that ends an archive and holds the size of the list of its arrays.
_END = b"PK\x05\x06"
#: Size of that record, in bytes.
_END_BYTES = 22
#: Largest size of the list of arrays, in bytes.
_LONGEST_LIST = 2**16
#: First bytes of the record that stands before it where another, larger one holds that size instead.
_LOCATOR = b"PK\x06\x07"
#: Size of that record, in bytes.
_LOCATOR_BYTES = 20


def read_array(file: str | FilePath, what: str | None = None) -> Array:
    """The finite real numbers of a ``.npy`` file, as float64.

    Args:
        file: the file.
        what: its name in messages; by default the file's name.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged or of another kind, or does not hold finite real numbers.
    """
    name = what or f"file {str(file)!r}"
    with opened(file, name, _LARGEST_FILE) as (handle, size), believed(name, "a readable .npy file"):
        found = _array(handle, size)
    values = found.astype(np.float64, copy=False)
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise FileFormatError(
            f"{name} must hold finite numbers; {int(wrong.sum())} of {values.size} are not, "
            f"the first at {first}: {values[first]}"
        )
    return values


def read_arrays(file: str | FilePath, what: str | None = None) -> dict[str, Array]:
    """The real arrays of an ``.npz`` file by their names, in the dtypes in which they are stored.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged or of another kind, holds anything but real arrays, or unpacks into too many bytes.
    """
    name = what or f"file {str(file)!r}"
    with opened(file, name, _LARGEST_FILE) as (handle, size), believed(name, "a readable .npz file"):
        _check_end(handle, size)
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > _MOST_ARRAYS or total > max(_UNPACKED, min(_MOST_UNPACKING * size, _LARGEST_FILE)):
                raise FileFormatError(
                    f"{name} says that it unpacks into {len(members)} arrays of {total:,} bytes; that is too much"
                )
            found: dict[str, Array] = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                if key == member.filename or key in found:
                    raise ValueError(f"{shown(member.filename)} is no array's name, or is there twice")
                with archive.open(member) as stream:
                    found[key] = _array(stream, member.file_size)
    return found


def write_array(handle: BinaryIO, values: Array) -> None:
    """Write an array as ``.npy``. NumPy's own ``save`` hides the reason why a file can't be written."""
    values = np.asarray(values, order="C")
    write_header(handle, values.shape, values.dtype)
    write_numbers(handle, values)


def write_header(handle: BinaryIO, shape: Sequence[int], dtype: Any = np.float64) -> None:
    """Write the beginning of a ``.npy`` file; as many numbers have to follow, see :func:`write_numbers`."""
    told = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(handle, told)


def write_numbers(handle: BinaryIO, values: Array) -> None:
    """Write the numbers of an array, or of some of its rows, row after row."""
    handle.write(np.asarray(values, order="C").reshape(-1).view(np.uint8).data)


def _array(stream: Any, size: int) -> Array:
    """The array in a stream of ``size`` bytes; ValueError unless its header implies this size."""
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"version {version} of the format is not known")
    with warnings.catch_warnings():
        # NumPy warns about headers that Python 2 wrote, and a damaged header may look like one.
        warnings.simplefilter("ignore")
        shape, by_columns, dtype = reader(stream, max_header_size=_LONGEST_HEADER)
    if dtype.kind not in "fiu":
        raise ValueError(f"it must hold real numbers, got {shown(dtype.str)}")
    if len(shape) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape {shown(shape)} is none")
    count = math.prod(shape)
    room = size - stream.tell()
    if count * dtype.itemsize != room:
        raise ValueError(
            f"its header says {shown(shape)} numbers of {dtype.itemsize} bytes, the file has {room:,} bytes for them"
        )
    content = stream.read(room)
    # Reading past the end of a packed array checks its checksum.
    if len(content) != room or stream.read(1):
        raise ValueError("it ends too early or too late")
    # A copy can be written to, unlike the bytes themselves.
    values = np.frombuffer(content, dtype=dtype, count=count).copy()
    return values.reshape(shape, order="F" if by_columns else "C")


def _check_end(handle: BinaryIO, size: int) -> None:
    """Raise ValueError unless an archive's last record gives a short list of arrays, since the list is read at once."""
    length = min(size, _END_BYTES + _LOCATOR_BYTES)
    handle.seek(size - length)
    end = handle.read(length)
    record = end[-_END_BYTES:]
    if len(record) < _END_BYTES or not record.startswith(_END) or end[:-_END_BYTES].startswith(_LOCATOR):
        raise ValueError("it does not end as an archive of arrays does")
    if int.from_bytes(record[12:16], "little") > _LONGEST_LIST:
        raise ValueError("the list of its arrays is too long")
    handle.seek(0)


def points_from(file: str | FilePath, what: str, least: int) -> Array:
    """Data in a ``.npy`` file: finite points (n, *shape) with n at least ``least``; float64.

    Raises:
        ArgumentError: if there is no such file, or its array has another shape.
        FileFormatError: if it is damaged or of another kind.
    """
    found = read_array(file, what)
    if found.ndim < 2 or len(found) < least or found.size == 0:
        raise ArgumentError(f"{what} must hold points (n, *shape) with n >= {least}, got an array of shape {found.shape}")
    return found
