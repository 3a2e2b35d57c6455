"""Files of anyone's: what is no file is refused before it is opened, damaged ones by name; outputs are tried first."""

import os
import random
import sys

import numpy as np
import pytest
from commandline import program
from small_suite import TOML
from test_array_files import POINTS, npy
from test_tableau_files import table_file

from diffode import learned, paths, solvers
from diffode.array_files import read_array, read_arrays
from diffode.cli import main
from diffode.errors import ArgumentError, DiffodeError, FileFormatError, StoreError
from diffode.output_files import writable, write_whole
from diffode.solvers.trained.checkpoints import load_codebooks, load_ranged
from diffode.studies import Store, load_suite
from diffode.tableau import Tableau

EDM = paths.get("edm")


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


class Odd(os.PathLike):
    """A path that says it is called by bytes."""

    def __fspath__(self):
        return b"x"


@pytest.mark.parametrize("name", [None, 3, True, b"x", ["x"], Odd()])
def test_what_can_not_name_a_file_is_refused_by_the_name_of_the_argument(name):
    readers = (
        read_array, read_arrays, Tableau.load, learned.load, learned.load_amed, learned.load_checkpoint,
        learned.load_conditioned, learned.load_grid, load_codebooks, load_ranged,
    )  # fmt: skip
    table = solvers.get("ddim").tableau(EDM, "karras", 2)
    for call in (*readers, table.save, lambda file: write_whole(file, b"")):
        with pytest.raises(ArgumentError, match=r"^file must be a file's name, a text or a path, got "):
            call(name)
        with pytest.raises(ArgumentError, match=r"^file must be a file's name, got an empty text$"):
            call("")
    with pytest.raises(ArgumentError, match=r"^output must be a file's name, a text or a path, got "):
        writable(name)
    # An option of a spec is no text where it reads as a number.
    for solver in ("conditioned", "amed_learned"):
        with pytest.raises(ArgumentError, match=r"^file must be "):
            solvers.get(solver, file=name)


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
    monkeypatch.setattr(sys.modules[main.__module__], "end_in_order", lambda: None)
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


@pytest.mark.parametrize(
    ("made", "arguments"),
    [
        ("sample/s.npy", ("sample", "gauss1d", "--nfe", "2", "-n", "4", "--output", "sample/s.npy")),
        ("memory/m.png", ("memory", "sine", "--measures", "legs", "--order", "4", "--output", "memory/m.png")),
        ("train/deep/t.safetensors", ("train", "gits", "--target", "gauss1d", "--nfe", "2", "--points", "8",
                                      "--output", "train/deep/t.safetensors")),
        ("table/t.py", ("export", "euler", "--as", "python", "--nfe", "2", "--file", "table/t.py")),
        ("verify/v.png", ("verify", "gauss1d", "--picture", "verify/v.png")),
    ],
)  # fmt: skip
def test_every_command_makes_the_folders_of_what_it_writes(here, capsys, made, arguments):
    code, said = run(capsys, *arguments)
    assert code == 0, said
    assert (here / made).is_file()


def test_a_file_in_the_way_of_a_folder_is_said_before_any_work(here, capsys):
    (here / "taken").write_text("a file")
    for command in ("sample ring9 --output taken/s.npy", "train gits --target ring9 --nfe 2 --output taken/t.safetensors",
                    "memory sine --output taken/m.png", "verify ring9 --picture taken/v.png"):  # fmt: skip
        code, said = run(capsys, *command.split())
        assert code == 2
        assert "a file is where a folder should be: move it away" in said


def test_a_limit_on_files_is_called_so(here):
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); from diffode.cli import main; main()"
    (here / "s.toml").write_text(TOML)
    done = program(script, "bench", "s.toml", "--jobs", "1", code=2)
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


@pytest.mark.parametrize("file", [None, 3, b"x", "", "a\0b"])
def test_what_names_no_file_names_no_store(file):
    with pytest.raises((ArgumentError, StoreError), match="store"):
        Store(file)
