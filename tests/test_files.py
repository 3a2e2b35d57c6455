"""Files of anyone's: what is no array, table or suite is refused by name, before it costs memory; outputs are tried first."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from diffode import paths, solvers
from diffode.array_files import points_from, read_array, read_arrays, write_array
from diffode.cli import main
from diffode.errors import ArgumentError, DiffodeError, FileFormatError
from diffode.extensions import import_extension
from diffode.output_files import writable, write_whole
from diffode.studies import load_suite, parse_suite
from diffode.tableau import Row, Tableau
from diffode.tensor_files import finite, read_tensors, write_tensors

EDM = paths.get("edm")
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


def table_file(folder):
    file = folder / "table.safetensors"
    solvers.get("ddim:eta=1").tableau(EDM, "karras", 4).save(file)
    return file


# -- arrays --------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("place", ["", "none.npy", "pipe.npy", "loop.npy", "n" * 300, "a\0b", "/dev/zero"])
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, place):
    """A pipe would never end, nor would /dev/zero."""
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    for read in (read_array, read_arrays, Tableau.load):
        with pytest.raises(ArgumentError, match="can't be read"):
            read(tmp_path / place)
    with pytest.raises(ArgumentError, match=r"unknown suite|can't be read"):
        load_suite(str(tmp_path / place) + (".toml" if "/dev" not in place else ""))


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


# -- tensors -------------------------------------------------------------------------------------------------------------


def with_header(content, change):
    length = int.from_bytes(content[:8], "little")
    known = json.loads(content[8 : 8 + length])
    text = change(known)
    made = (json.dumps(known) if text is None else text).encode()
    return len(made).to_bytes(8, "little") + made + content[8 + length :]


def described(known, change):
    inner = json.loads(known["__metadata__"]["diffode"])
    known["__metadata__"]["diffode"] = change(inner)


HEADERS = {
    "twice the same tensor": lambda h: json.dumps(h)[:-1] + ', "times": ' + json.dumps(h["times"]) + "}",
    "twice the same key": lambda h: described(h, lambda inner: json.dumps(inner)[:-1] + ', "solver": "x"}'),
    "a number that is none": lambda h: described(h, lambda inner: json.dumps(inner | {"more": float("nan")})),
    "a number of many digits": lambda h: described(h, lambda inner: json.dumps(inner)[:-1] + ', "more": ' + "9" * 5000 + "}"),
    "deep nesting": lambda h: described(h, lambda inner: "[" * 100_000),
    "a header nested deep": lambda h: '{"a":' * 50_000,
    "tensors that overlap": lambda h: h["states_value"].update(h["times"]),
    "a type that is none": lambda h: h["times"].update(dtype="F128"),
    "a type of 8 bits": lambda h: h["times"].update(dtype="F8_E4M3"),
    "a shape without end": lambda h: h["times"].update(shape=[2**62, 2**62]),
    "a shape that is true": lambda h: h["times"].update(shape=[True, 5]),
    "a list for a tensor": lambda h: h.update(times=[1]),
    "a huge path": lambda h: described(h, lambda inner: json.dumps(inner | {"path": "ddpm:levels=10000000000"})),
    "a list for a solver": lambda h: described(h, lambda inner: json.dumps(inner | {"solver": [1]})),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_are_none_are_refused(tmp_path, what):
    file = table_file(tmp_path)
    file.write_bytes(with_header(file.read_bytes(), HEADERS[what]))
    with pytest.raises(FileFormatError, match=r"table\.safetensors is not"):
        Tableau.load(file)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("draws_index", torch.tensor([[1, 2**20]]), "outside the table"),
    ("draws_index", torch.tensor([[1, -1]]), "outside the table"),
    ("states_index", torch.tensor([[1, 0], [1, 0]]), "states must be|there twice"),
    ("times", torch.linspace(9, 1, 100_001, dtype=torch.float64), "times must be 2 to 100000"),
    ("spans", torch.tensor([[0.5, float("inf")]], dtype=torch.float64), "spans must be"),
    ("spans", torch.tensor([[0, 1]]), "spans must be"),
    ("outputs", torch.zeros(10**6, dtype=torch.int64), "outputs must name"),
    ("outputs", torch.tensor([0, 1, 0]), "times of its outputs must fall, or rise|outputs must name"),
    ("outputs", torch.tensor([1, 1]), "times of its outputs must fall, or rise"),
])  # fmt: skip
def test_tables_ask_for_no_more_than_they_hold(tmp_path, name, value, words):
    file = tmp_path / "table.safetensors"
    Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5}, {0: 0.1})), (0, 1), EDM).save(file)
    description, tensors = read_tensors(file, "diffode-tableau-1")
    write_tensors(file, tensors | {name: value}, description)
    with pytest.raises(FileFormatError, match=words):
        Tableau.load(file)


def test_a_table_that_could_not_be_read_again_is_not_written(tmp_path):
    sparse = Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {}, {2**20: 0.1})), (0, 1), EDM)
    with pytest.raises(ArgumentError, match="1,048,577 draws: number them without gaps"):
        sparse.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_descriptions_hold_finite_numbers(tmp_path):
    for value in (10**400, True, float("nan"), float("inf"), "1", None, [1.0]):
        with pytest.raises(ValueError, match="must be a finite number"):
            finite({"x": value}, "x")
    with pytest.raises(ArgumentError, match="can't be written"):
        write_tensors(tmp_path / "x", {}, {"x": float("nan")})


def damaged(content, rng):
    """A file with flipped bits, cut short, spliced, or with some other bytes."""
    c, n = bytearray(content), len(content)
    what = rng.randrange(5)
    if what == 0:
        for _ in range(rng.randint(1, 20)):
            c[rng.randrange(min(n, 400))] ^= 1 << rng.randrange(8)
    elif what == 1:
        c[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif what == 2:
        c = c[: rng.randrange(n)]
    elif what == 3:
        c[rng.randrange(min(n, 400))] = rng.choice(b"0123456789'\"[]{}(),:O\n\\")
    else:
        i, j = sorted(rng.randrange(n) for _ in range(2))
        c[j:j] = c[i:j]
    return bytes(c)


@pytest.mark.parametrize(
    ("kind", "read"), [("npy", read_array), ("npz", read_arrays), ("table", Tableau.load), ("toml", load_suite)]
)
def test_damaged_files_are_read_or_refused(tmp_path, kind, read):
    """Of each kind 300 files; the seed is fixed, so that a failure can be met again."""
    source = tmp_path / f"source.{kind}"
    if kind == "npz":
        np.savez_compressed(source, a=POINTS, b=POINTS[0])
    content = {
        "npy": lambda: npy(POINTS),
        "npz": lambda: source.read_bytes(),
        "table": lambda: table_file(tmp_path).read_bytes(),
        "toml": lambda: TOML.encode(),
    }[kind]()
    rng, file = random.Random(7), tmp_path / f"x.{kind}"
    said = []
    for _ in range(300):
        file.write_bytes(damaged(content, rng))
        try:
            read(str(file))
        except DiffodeError as error:
            said.append(str(error))
    assert len(said) > 100
    assert all(str(file) in words and len(words) < 2000 for words in said)


# -- suites --------------------------------------------------------------------------------------------------------------

STUDY = {"targets": ["gauss1d"], "paths": ["edm"], "grids": ["karras"], "nfe": [4], "seeds": [0], "solvers": ["ddim"]}
TOML = 'name = "s"\nsummary = "t"\n[defaults]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\npoints = 4\n'
TOML += 'tolerance = 1e-6\nmetrics = ["endpoint"]\ndtype = "float32"\n[[study]]\ntargets = ["gauss1d"]\nsolvers = ["ddim"]\n'
NONE = [
    None,
    3,
    2.5,
    True,
    {},
    {"a": 1},
    [],
    [[]],
    [None],
    [2.5],
    [True],
    [{}],
    "",
    "x",
    [""],
    ["x\0"],
    float("nan"),
    10**400,
    [10**400],
]


@pytest.mark.parametrize("key", [*STUDY, "points", "dtype", "metrics", "tolerance"])
@pytest.mark.parametrize("value", NONE, ids=lambda v: repr(v)[:12])
def test_every_key_of_a_study_has_its_type(key, value):
    if key == "points" and value == 3:
        value = 1
    with pytest.raises(ArgumentError, match=rf"study 1: .*{key}|study 1: unknown|study 1: .*spec") as caught:
        parse_suite({"study": [STUDY | {key: value}]})
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("content", "words"), [
    ({"imports": [None]}, "imports must be a list of texts"), ({"imports": "x"}, "imports must be a list"),
    ({"imports": [""]}, "module must be a text"), ({"summary": 3}, "summary must be a text"),
    ({"name": 3}, "name must be a text"),
    ({"defaults": [1]}, "defaults must be a table"), ({"study": {}}, "at least one"), ({"study": "x"}, "at least one"),
    ({"defaults": {"study": []}}, "unknown key"), ({3: 4}, "unknown key 3"),
    ({"study": [STUDY | {"nfe": [1_000_000_000]}]}, "nfe must be integers >= 1 and <= 100000"),
    ({"study": [STUDY | {"points": 10**9}]}, "points must be an integer"),
])  # fmt: skip
def test_every_key_of_a_suite_has_its_type(content, words):
    with pytest.raises(ArgumentError, match=words):
        parse_suite({"study": [STUDY]} | content)


def test_runs_are_counted_before_they_are_made():
    many = STUDY | {"nfe": list(range(1, 1001)), "seeds": list(range(1_000_000))}
    with pytest.raises(ArgumentError, match=r"ask for 1,000,000,000 runs up to study 1, more than 1,000,000"):
        parse_suite({"study": [many]})
    half = STUDY | {"nfe": list(range(1, 601)), "seeds": list(range(1000))}
    with pytest.raises(ArgumentError, match=r"ask for 1,200,000 runs up to study 2"):
        parse_suite({"study": [half | {"seeds": [0]}, half | {"seeds": list(range(1999))}]})


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1\na = 2", "\xff", "a = {b = {c = 1}", 'a = "\0"']
)
def test_texts_that_are_no_toml_are_refused(tmp_path, text):
    (tmp_path / "x.toml").write_bytes(text.encode("latin1"))
    with pytest.raises(ArgumentError, match=r"x\.toml' is not valid TOML"):
        load_suite(str(tmp_path / "x.toml"))


def test_modules_that_fail_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in (("stops", "raise SystemExit(0)"), ("divides", "1 / 0"), ("broken", "x = (")):
        (tmp_path / f"its_{name}.py").write_text(code)
        for module in (f"its_{name}", str(tmp_path / f"its_{name}.py")):
            with pytest.raises(ArgumentError, match=f"its_{name}.*fails when imported"):
                import_extension(module)
    for module in (None, 3, "", "a\0b", ".relative", "x" * 300 + ".py", str(tmp_path / "absent.py")):
        with pytest.raises(ArgumentError):
            import_extension(module)


# -- outputs -------------------------------------------------------------------------------------------------------------


def test_outputs_are_tried_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    for name, words in (
        ("folder.npy", "folder of this name is in the way"), ("file/x.npy", "a file is where a folder should be"),
        ("n" * 300, "choose a shorter name"), ("no/folder/x", "its folder does not exist"), ("loop", "lead in a circle"),
        ("pipe", "no regular file"), ("a\0b", "can't be written"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            writable(tmp_path / name)
        with pytest.raises(ArgumentError, match=words):
            write_whole(tmp_path / name, b"new")
    writable(tmp_path / "new")
    writable(tmp_path / "new/folder/x", make_folders=True)
    writable(tmp_path / "file")
    with pytest.raises(ArgumentError, match="can't be written"):
        writable("/proc/nowhere/x", make_folders=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    file, link = tmp_path / "x", tmp_path / "link"
    write_whole(file, b"old")
    link.symlink_to(file)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArgumentError, match="can't be written: No space left on device; free some space"):
        write_whole(file, b"newer")
    with pytest.raises(ArgumentError, match="free some space"):
        solvers.get("euler").tableau(EDM, "karras", 3).save(file)
    assert file.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == [link, file]


def run(capsys, *arguments):
    """The command line in this process: its exit code and what it says of errors."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code, capsys.readouterr().err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in; signals stay as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[main.__module__], "_end_in_order", lambda: None)
    return tmp_path


def test_a_command_tries_its_output_before_it_works(here, capsys):
    """Before the target is looked at even, which is misspelt here."""
    (here / "s.png").mkdir()
    for output in ("s.npy", "n" * 300 + ".npy"):
        code, said = run(capsys, "sample", "ring9", "--output", output)
        assert code == 2
        assert "can't be written" in said
    (here / "s.toml").write_text(TOML)
    (here / "diffode-report" / "s").mkdir(parents=True)
    (here / "diffode-report" / "s" / "index.html").write_text("mine")
    code, said = run(capsys, "bench", "s.toml", "--jobs", "1")
    assert code == 2
    assert "in the way of the report" in said
    assert [f.name for f in (here / "diffode-report").iterdir()] == ["s"]


def test_a_limit_on_files_is_called_so(here):
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); from diffode.cli import main; main()"
    (here / "s.toml").write_text(TOML)
    words = [sys.executable, "-c", script, "bench", "s.toml", "--jobs", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "store diffode-report/results.sqlite can't be" in done.stderr
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_end_too_early_are_no_interruption(here, capsys):
    (here / "f.py").write_text("def f(x, t):\n    return x\n")
    (here / "x.npy").write_bytes(b"")
    code, said = run(capsys, "check-field", "f.py:f", "--kind", "noise", "--data", "x.npy")
    assert code == 2
    assert "data 'x.npy' is not a readable .npy file" in said


@pytest.mark.parametrize(("error", "code", "words"), [
    (OSError(28, "No space left", "x.npy"), 2, "file 'x.npy' can't be written or read: No space left; free some space"),
    (PermissionError(13, "Permission denied", "x"), 2, "file 'x' can't be written or read: Permission denied; choose a place"),
    (MemoryError("Unable to allocate 9 TiB"), 2, "not enough memory for this (Unable to allocate 9 TiB)"),
    (RuntimeError("can't allocate memory: you tried to allocate 9 bytes. Error"), 2, "(you tried to allocate 9 bytes)"),
    (EOFError("no data left"), 2, "ends too early: no data left"),
    (KeyboardInterrupt(), 130, "diffode: interrupted\n"),
    (FileFormatError("damaged"), 2, "diffode: damaged"),
])  # fmt: skip
def test_errors_of_the_system_end_in_a_message(here, capsys, monkeypatch, error, code, words):
    def fails(*_):
        raise error

    monkeypatch.setattr("diffode.cli.list_command.print_table", fails)
    found, said = run(capsys, "list", "metrics")
    assert found == code
    assert words in said


def test_tensors_of_other_types_than_are_stored_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(save({"a": torch.zeros(2, dtype=torch.bfloat16)}, metadata={"diffode": '{"schema": "s"}'}))
    with pytest.raises(FileFormatError, match="'BF16'; stored are F64, F32, I64"):
        read_tensors(tmp_path / "x", "s")
