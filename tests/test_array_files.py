"""Arrays in files: what numpy writes is read, and what is no array is refused by name before it costs memory."""

import io
import struct
import zipfile

import numpy as np
import pytest

from diffode.array_files import points_from, read_array, read_arrays, write_array
from diffode.errors import ArgumentError, FileFormatError

POINTS = np.random.default_rng(0).normal(size=(20, 2))


def npy(values, **options):
    made = io.BytesIO()
    np.lib.format.write_array(made, np.asarray(values), **options)
    return made.getvalue()


def headed(header, body=b"\0" * 64):
    """A .npy file with a header of one's own."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def header(shape="(2, 4)", descr="'<f8'", order="False"):
    return headed(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}")


@pytest.mark.parametrize("values", [
    POINTS, POINTS.astype("f4"), POINTS.astype(">f8"), np.asfortranarray(POINTS), (9 * POINTS).astype("i2"),
    POINTS[:, :1].astype("f2"), np.zeros((16, 0)), np.float64(2.5), POINTS.astype("g"),
])  # fmt: skip
def test_arrays_are_what_numpy_reads(tmp_path, values):
    file = tmp_path / "x.npy"
    np.save(file, values)
    found = read_array(file)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.load(file).astype(np.float64))
    np.savez_compressed(tmp_path / "x.npz", a=values, b=[1, 2])
    for name, array in read_arrays(tmp_path / "x.npz").items():
        with np.load(tmp_path / "x.npz") as archive:
            assert array.dtype == archive[name].dtype
            np.testing.assert_array_equal(array, archive[name])


@pytest.mark.parametrize("values", [POINTS, POINTS[::2], np.asfortranarray(POINTS), np.zeros((0, 3)), np.float32(1)])
def test_numpy_reads_the_arrays_that_are_written(tmp_path, values):
    with (tmp_path / "x.npy").open("wb") as handle:
        write_array(handle, values)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), values)


HOSTILE = {
    "nothing": (b"", "reading magic string"),
    "text": (b"1.0 2.0\n" * 40, "magic string is not correct"),
    "half of it": (npy(POINTS)[:200], "the file has 72 bytes"),
    "more than it says": (npy(POINTS) + b"\0", "the file has 321 bytes"),
    "a terabyte": (header("(1000000, 1000000)"), r"says \(1000000, 1000000\) numbers"),
    "more than a computer can count": (header(f"({2**62}, {2**62})"), "numbers of 8 bytes"),
    "a negative size": (header("(-2, 4)"), "its shape"),
    "a size that is true": (header("(True, 8)"), "its shape|valid"),
    "a hundred axes": (header(f"({'1, ' * 99})"), "its shape"),
    "objects": (npy(np.array([{}, None], dtype=object), allow_pickle=True), "real numbers"),
    "complex numbers": (npy(POINTS + 1j), "real numbers"),
    "texts": (npy(np.array(["a", "b"])), "real numbers"),
    "times": (npy(np.array(["2020-01-01"], dtype="M8[D]")), "real numbers"),
    "records": (npy(np.zeros(4, dtype=[("a", "f8"), ("b", "i4")])), "real numbers"),
    "truths": (npy(np.array([True, False])), "real numbers"),
    "a type that is none": (header(descr="'<q99'"), "descr"),
    "no header": (headed(""), "header"),
    "a header that is code": (headed("__import__('os').system('true')"), "malformed"),
    "a header nested deep": (headed("(" * 5000), "is not a readable .npy file"),
    "a long header": (headed("{" + " " * 20_000), "Header|header"),
    "another version": (b"\x93NUMPY\x07\x00" + npy(POINTS)[8:], "version"),
    "no number": (npy([[np.nan, 1.0]] * 16), r"16 of 32 are not, the first at \(0, 0\): nan"),
    "too large a number": (npy([[np.inf, 1.0]] * 16), "finite"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_arrays_that_are_none_are_refused_by_the_name_of_their_file(tmp_path, what):
    content, words = HOSTILE[what]
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(FileFormatError, match=words) as caught:
        read_array(tmp_path / "x.npy")
    assert str(tmp_path / "x.npy") in str(caught.value)
    assert " at 0x" not in str(caught.value)


def zipped(members, **options):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def encrypted():
    content = bytearray(zipped([("a.npy", npy(POINTS))]))
    for start in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[start] |= 1
    return bytes(content)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "does not end as an archive"),
    (zipped([("a.npy", npy(POINTS))])[:-30], "does not end as an archive"),
    (zipped([("a.npy", npy(np.zeros(10_000_000)))]), "that is too much"),
    (zipped([(f"{i}.npy", npy([1.0])) for i in range(200)]), "that is too much"),
    (zipped([("a.npy", headed("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000,)}"))]), "numbers of 8 bytes"),
    (zipped([("a.txt", b"text")]), "no array's name"),
    (zipped([("a.npy", npy(np.array([None]), allow_pickle=True))]), "real numbers"),
    (encrypted(), "encrypted"),
    (zipped([("a.npy", npy(POINTS))]).replace(npy(POINTS)[:6], b"xxxxxx"), "is not a readable .npz file|magic"),
], ids=[
    "empty", "cut off", "zeros without end", "more arrays than is sensible", "a header that promises more", "a name of text",
    "objects", "encrypted", "no magic",
])  # fmt: skip
def test_archives_that_are_none_or_unpack_into_too_much_are_refused(tmp_path, content, words):
    if content.startswith(b"PK") and words.startswith("is not"):
        content = content[:60] + bytes([content[60] ^ 255]) + content[61:]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(FileFormatError, match=words):
        read_arrays(tmp_path / "x.npz")


def test_an_archive_whose_list_is_described_by_a_second_record_is_refused(tmp_path):
    """zip64's record may say another length of the list than the record that was looked at; small archives have none."""
    plain = zipped([("a.npy", npy(POINTS))])
    body, end = plain[:-22], plain[-22:]
    entries, length, place = struct.unpack("<HII", end[10:20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, length, place)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(body), 1)
    (tmp_path / "x.npz").write_bytes(body + record + locator + end)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.namelist() == ["a.npy"]
    with pytest.raises(FileFormatError, match="does not end as an archive of arrays"):
        read_arrays(tmp_path / "x.npz")


def test_data_have_a_row_for_each_point(tmp_path):
    for shape in ((20,), (15, 2), (16, 0)):
        np.save(tmp_path / "x.npy", np.zeros(shape))
        with pytest.raises(ArgumentError, match=r"points \(n, \*shape\) with n >= 16"):
            points_from(tmp_path / "x.npy", "data", 16)
