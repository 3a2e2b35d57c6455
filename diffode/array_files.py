"""Arrays in ``.npy`` and ``.npz`` files: headers are checked against the sizes of files before use. Never pickle."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import numpy as np

from diffode.errors import ArgumentError, FileFormatError
from diffode.input_files import believed, opened, shown

Array = np.ndarray[Any, Any]

#: Bytes of a file, and of all arrays of an archive when they are unpacked: up to _UNPACKED, or so many times the archive.
_LARGEST_FILE, _UNPACKED, _MOST_TIMES = 2**31, 2**26, 100
_MOST_ARRAYS, _MOST_AXES, _LONGEST_HEADER = 100, 16, 10_000
#: What ends an archive: its record of 22 bytes, with the number and the bytes of its list of arrays.
_END, _END_OF_ARCHIVE, _MOST_LISTED = b"PK\x05\x06", 22, 2**16
#: What stands before that record if another, larger one holds these numbers instead.
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20


def read_array(file: str | FilePath, what: str | None = None) -> Array:
    """The finite real numbers of a ``.npy`` file, as float64.

    Args:
        file: the file.
        what: what messages call it; by default the file's name.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged or of another kind, or holds something else than finite real numbers.
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
    """The real arrays of an ``.npz`` file by their names, with the types in which they are stored.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if it is damaged or of another kind, holds something else, or would be very large when unpacked.
    """
    name = what or f"file {str(file)!r}"
    with opened(file, name, _LARGEST_FILE) as (handle, size), believed(name, "a readable .npz file"):
        _check_end(handle, size)
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > _MOST_ARRAYS or total > max(_UNPACKED, min(_MOST_TIMES * size, _LARGEST_FILE)):
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
    """Write an array as ``.npy``. NumPy's own ``save`` does not say why a file can't be written."""
    values = np.asarray(values, order="C")
    np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(values))
    handle.write(values.reshape(-1).view(np.uint8).data)


def _array(stream: Any, size: int) -> Array:
    """The array in a stream of so many bytes: its header says how many there must be."""
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"version {version} of the format is not known")
    with warnings.catch_warnings():
        # A header by Python 2 is read, and warned about; a damaged one may look like it.
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
    # The end of a packed array carries its checksum, which is looked at when it is reached.
    if len(content) != room or stream.read(1):
        raise ValueError("it ends too early or too late")
    # A copy, since what lies in the bytes themselves can't be written to.
    values = np.frombuffer(content, dtype=dtype, count=count).copy()
    return values.reshape(shape, order="F" if by_columns else "C")


def _check_end(handle: BinaryIO, size: int) -> None:
    """Look at the record that ends an archive: the list of its arrays is read at once, and is as long as this says."""
    length = min(size, _END_OF_ARCHIVE + _LOCATOR_BYTES)
    handle.seek(size - length)
    end = handle.read(length)
    record = end[-_END_OF_ARCHIVE:]
    if len(record) < _END_OF_ARCHIVE or not record.startswith(_END) or end[:-_END_OF_ARCHIVE].startswith(_LOCATOR):
        raise ValueError("it does not end as an archive of arrays does")
    if int.from_bytes(record[12:16], "little") > _MOST_LISTED:
        raise ValueError("the list of its arrays is too long")
    handle.seek(0)


def points_from(file: str | FilePath, what: str, least: int) -> Array:
    """Data as a ``.npy`` file holds them: finite points (n, *shape), n at least ``least``; float64.

    Raises:
        ArgumentError: if there is no such file, or it holds something else.
        FileFormatError: if it is damaged or of another kind.
    """
    found = read_array(file, what)
    if found.ndim < 2 or len(found) < least or found.size == 0:
        raise ArgumentError(f"{what} must hold points (n, *shape) with n >= {least}, got an array of shape {found.shape}")
    return found
