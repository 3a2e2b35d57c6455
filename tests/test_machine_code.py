"""The machine code of kernels: compiled once, kept in files that no one else writes, and loaded in any process."""

import os
import stat
import subprocess
import sys

import pytest
import torch

from diffode import native, targets
from diffode.native import objects

pytestmark = pytest.mark.skipif(not native.is_on(), reason="there are no compiled kernels here")


def test_a_forked_process_has_threads_of_its_own():
    """A child of a process whose threads have run kernels finds none of them."""
    code = """
import os, signal, torch
from diffode import targets
from diffode.targets import compiled
torch.set_num_threads(2)
compiled._ROWS_OF_A_THREAD = 10
mixture, x = targets.get("ring8"), torch.randn(100, 2, dtype=torch.float64)
known = mixture.noised_view(x, 1.0, 1.0, 1.0, 0.0)
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if torch.equal(mixture.noised_view(x, 1.0, 1.0, 1.0, 0.0), known) else 1)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_machine_code_is_loaded_without_numba_and_gives_the_same_bits():
    mixture, x = targets.get("bimodal1d"), torch.tensor([[0.3]], dtype=torch.float64)
    known = mixture.noised_log_prob(x, 1.0, 0.5).item()
    code = """
import sys, torch
from diffode import targets
print(targets.get("bimodal1d").noised_log_prob(torch.tensor([[0.3]], dtype=torch.float64), 1.0, 0.5).item().hex())
print("numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [known.hex(), "False"]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two places for machine code, of which the first can be written."""
    found = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setattr(objects, "_files", lambda key: [place / f"{key}.o" for place in found])
    return found


def test_machine_code_is_compiled_once_for_each_key(places, monkeypatch):
    """And again where the file is damaged, or others may have written it."""
    targets.get("bimodal1d").noised_log_prob(torch.zeros(1, 1, dtype=torch.float64), 1.0, 0.5)
    monkeypatch.undo()
    real = objects._read(objects._key(("kernels", 1, False, False)))
    monkeypatch.setattr(objects, "_files", lambda key: [place / f"{key}.o" for place in places])
    compiled = []
    monkeypatch.setattr(objects, "_compiled", lambda kind: compiled.append(kind) or (None, real))

    def kernel(dim=1):
        before = len(compiled)
        objects._kernel(("kernels", dim, False, False))
        return len(compiled) > before

    assert kernel()
    assert not kernel()
    assert kernel(2)
    file, other = (places[0] / f"{objects._key(('kernels', dim, False, False))}.o" for dim in (1, 2))
    kept = file.read_bytes()
    for spoil in (
        lambda: file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1])),
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(other.read_bytes()),
        lambda: file.chmod(0o666),
        file.unlink,
    ):
        spoil()
        assert kernel()
        assert not kernel()
        assert file.read_bytes() == kept


def test_machine_code_goes_where_it_can_be_written(places):
    places[0].write_text("no folder")
    objects._write("key", b"code")
    assert objects._read("key") == b"code"
    assert [file.name for file in places[1].iterdir()] == ["key.o"]
    (places[1] / "key.o").unlink()
    places[1].rmdir()
    places[1].write_text("no folder either")
    objects._write("key", b"code")
    assert objects._read("key") is None


def test_machine_code_of_the_superuser_is_loaded_and_that_of_others_is_not(places, monkeypatch):
    objects._write("key", b"code")
    held = os.stat(places[0] / "key.o")
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    for owner, loaded in ((0, b"code"), (4321, b"code"), (1234, None)):
        parts = [owner if k == stat.ST_UID else part for k, part in enumerate(held)]
        monkeypatch.setattr(os, "fstat", lambda handle, parts=parts: os.stat_result(parts))
        assert objects._read("key") == loaded


def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks():
    """One that held the lock of the kernels when the process was forked."""
    code = """
import os, signal, torch
from diffode import targets
from diffode.native import objects
objects._lock.acquire()
child = os.fork()
if child == 0:
    signal.alarm(30)
    targets.get("ring8").noised_view(torch.zeros(1, 2, dtype=torch.float64), 1.0, 1.0, 1.0, 0.0)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
