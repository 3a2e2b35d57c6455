"""Files of tables: a table is the same after one, and what is no table is refused by name before it costs memory."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from solver_list import FAMILIES

import diffode
from diffode import paths, solvers, testing
from diffode.errors import ArgumentError, FileFormatError
from diffode.tableau import Row, Tableau
from diffode.tensor_files import finite, read_tensors, write_tensors

EDM = paths.get("edm")


@pytest.mark.parametrize(("name", "value", "words"), [
    ("times", torch.tensor([-1.0, 0.5], dtype=torch.float64), "times must be"),
    ("times", torch.tensor([1.0, 0.5]), "times must be"),
    ("outputs", torch.tensor([0, 7]), "outputs must name"),
    ("outputs", torch.tensor([0]), "outputs must name"),
    ("states_index", torch.tensor([[1, 0, 0]]), "states must be"),
    ("evaluations_index", torch.tensor([[5, 0]]), r"evaluations index \(5, 0\) is outside"),
    ("spans", torch.tensor([[1.0, 0.5]], dtype=torch.float64), "spans must be"),
])  # fmt: skip
def test_spoilt_tables_are_refused_by_what_is_wrong(tmp_path, name, value, words):
    file = tmp_path / "table.safetensors"
    Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5})), (0, 1), EDM).save(file)
    description, tensors = read_tensors(file, "diffode-tableau-1")
    write_tensors(file, tensors | {name: value}, description)
    with pytest.raises(FileFormatError, match=words):
        Tableau.load(file)


def test_a_table_that_draws_noise_is_the_same_after_a_file(tmp_path):
    table = solvers.get("ddim:eta=1").tableau(EDM, [80.0, 2.0, 0.5])
    table.save(tmp_path / "table.safetensors")
    again = Tableau.load(tmp_path / "table.safetensors")
    assert again.spans == table.spans
    assert len(again.spans) == table.draws == 2
    assert all(a.draws == b.draws for a, b in zip(again.rows, table.rows, strict=True))


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_saved_table_runs_to_the_same_bits(spec, tmp_path):
    field = diffode.exact_field("ring8", "vp:beta_max=15")
    table = solvers.get(spec).tableau(field.path, "karras", 5)
    table.save(tmp_path / "table.safetensors")
    loaded = Tableau.load(tmp_path / "table.safetensors")
    assert loaded == table
    x = field.prior(3, generator=0)
    assert torch.equal(loaded.run(field, x), table.run(field, x))


def corrupted(content: bytes):
    """Damaged copies of a table file: truncated, garbled, with a header that lies."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])

    def with_header(change):
        altered = json.loads(json.dumps(header))
        change(altered)
        text = json.dumps(altered).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    def description(key, value):
        def change(h):
            inner = json.loads(h["__metadata__"]["diffode"])
            inner[key] = value
            h["__metadata__"]["diffode"] = json.dumps(inner)

        return change

    yield "empty", b""
    for cut in (4, 8, 40, size, len(content) - 1):
        yield f"cut at {cut}", content[:cut]
    yield "not a table", b"hello" * 100
    yield "pickle", b"\x80\x04\x95" + content
    yield "huge header", struct.pack("<Q", 2**40) + content[8:]
    yield "no metadata", with_header(lambda h: h.pop("__metadata__"))
    yield "metadata not JSON", with_header(lambda h: h["__metadata__"].update(diffode="{"))
    yield "schema", with_header(description("schema", "diffode-tableau-99"))
    yield "prediction", with_header(description("prediction", "__import__('os')"))
    yield "path", with_header(description("path", "nowhere"))
    yield "path type", with_header(description("path", 3))
    yield "missing tensor", with_header(lambda h: h.pop("times"))
    values = bytearray(content)
    values[-8:] = struct.pack("<d", float("nan"))
    yield "non-finite", bytes(values)


def test_a_table_in_an_unwritable_place_says_so(tmp_path):
    table = solvers.get("euler").tableau(None, [1.0, 0.5])
    with pytest.raises(ArgumentError, match="writable folder"):
        table.save(tmp_path / "nowhere" / "table.safetensors")


def test_damaged_files_are_rejected(tmp_path):
    file = tmp_path / "table.safetensors"
    solvers.get("euler").tableau(paths.get("edm"), "karras", 3).save(file)
    content = file.read_bytes()
    for label, damaged in corrupted(content):
        file.write_bytes(damaged)
        with pytest.raises((FileFormatError, ArgumentError)):
            print(label, Tableau.load(file))
    with pytest.raises(ArgumentError, match="no such file"):
        Tableau.load(tmp_path / "missing.safetensors")


@given(testing.solvers(stochastic=None), testing.paths(), testing.seeds(), st.integers(2, 6))
def test_any_table_is_the_same_after_a_file(tmp_path_factory, solver, path, seed, steps):
    table = solver.tableau(path, testing.random_times(seed, path, steps))
    file = tmp_path_factory.mktemp("tables") / "table.safetensors"
    table.save(file)
    again = Tableau.load(file)
    assert again.rows == table.rows
    assert (again.outputs, again.prediction, again.solver, again.path) == (
        table.outputs, table.prediction, table.solver, table.path,
    )  # fmt: skip


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


def test_tensors_of_other_types_than_are_stored_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(save({"a": torch.zeros(2, dtype=torch.bfloat16)}, metadata={"diffode": '{"schema": "s"}'}))
    with pytest.raises(FileFormatError, match="'BF16'; stored are F64, F32, I64"):
        read_tensors(tmp_path / "x", "s")


def table_file(folder):
    file = folder / "table.safetensors"
    solvers.get("ddim:eta=1").tableau(EDM, "karras", 4).save(file)
    return file
