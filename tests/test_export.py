"""Exported tables: what other programs read is what the store holds, to the last digit."""

import csv
import json
import sys
from dataclasses import replace

import pytest
from commandline import diffode
from small_suite import small

from diffode.errors import ArgumentError
from diffode.metrics import Measurement
from diffode.studies import Result, Store, export, keyed_cells
from diffode.studies.exported import COLUMNS, MEASURED, STORED


@pytest.fixture
def results():
    """Eight results, of which one has two measurements and one failed."""
    measured = (Measurement("endpoint", 1 / 3, 1e-9), Measurement("moments", 0.1, 0.01, 0.05, 0.2))
    made = [
        Result(key, cell, "ok", "", cell.nfe, 4, 0.125, 1.5, 1, {"torch": "2"}, measured[: 1 + (number == 0)])
        for number, (key, cell) in enumerate(keyed_cells(small()))
    ]
    return [*made[:7], replace(made[7], status="failed", reason='a "reason",\nof two lines', measurements=(), nfe_counted=None)]


def read_csv(file):
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_line_for_each_measurement(results, tmp_path):
    assert export(results, tmp_path / "a.csv") == 9
    lines = read_csv(tmp_path / "a.csv")
    assert list(lines[0]) == [*COLUMNS, *MEASURED, *STORED]
    assert [line["metric"] for line in lines[:3]] == ["endpoint", "moments", "endpoint"]
    assert float(lines[0]["value"]) == 1 / 3
    assert (lines[1]["low"], lines[0]["low"]) == ("0.05", "")
    assert lines[-1]["reason"] == 'a "reason",\nof two lines'
    assert (lines[-1]["metric"], lines[-1]["nfe"]) == ("", "")
    assert json.loads(lines[0]["environment"]) == {"torch": "2"}
    assert [line["key"] for line in lines[1:]] == [r.key for r in results]


def test_a_line_for_each_cell(results, tmp_path):
    assert export(results, tmp_path / "a.csv", line="cell") == 8
    lines = read_csv(tmp_path / "a.csv")
    assert list(lines[0]) == [*COLUMNS, "endpoint", "endpoint.floor", "moments", "moments.floor", *STORED]
    assert [(line["endpoint"], line["moments"]) for line in (lines[0], lines[1], lines[7])] == [
        (repr(1 / 3), "0.1"), (repr(1 / 3), ""), ("", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["measurement", "cell"])
def test_parquet_holds_the_same_lines(results, tmp_path, line):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra, diffode[parquet]")
    export(results, tmp_path / "a.csv", line=line)
    export(results, tmp_path / "a.parquet", line=line)
    found = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    told = [{name: "" if value is None else str(value) for name, value in row.items()} for row in found]
    assert told == read_csv(tmp_path / "a.csv")
    assert found[0]["points"] == 16


def test_without_pyarrow_the_extra_is_named_and_csv_is_written(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ArgumentError, match=r"pip install 'diffode\[parquet\]'"):
        export(results, tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())
    export(results, tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"line": "row"}, "line must be one of measurement, cell, got 'row'"),
        ({"form": "xls"}, "form must be one of csv, parquet"),
    ],
)
def test_wrong_arguments_of_an_export_are_named(results, tmp_path, options, words):
    with pytest.raises(ArgumentError, match=words):
        export(results, tmp_path / "a.csv", **options)


def test_the_command_writes_a_suite_or_all_that_is_stored(results, tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put_all(results)
        store.put(replace(results[0], key="f" * 32))
    file = tmp_path / "suite.toml"
    file.write_text(
        'name = "small"\n[defaults]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4, 8]\nseeds = [0]\npoints = 16\n'
        "tolerance = 1e-6\n"
        '[[study]]\ntargets = ["ring8", "gauss1d"]\nsolvers = ["ddim", "heun"]\n'
    )
    done = diffode("export", file, "--csv", "part.csv", "--store", "s.sqlite", cwd=tmp_path)
    assert "9 lines: part.csv" in done.stdout
    diffode("export", "--csv", "all.csv", "--parquet", "all.parquet", "--store", "s.sqlite", cwd=tmp_path)
    assert len(read_csv(tmp_path / "all.csv")) == 11
    assert "give --csv FILE" in diffode("export", "--store", "s.sqlite", cwd=tmp_path, code=2).stderr
    assert "no result store at" in diffode("export", "--csv", "a.csv", cwd=tmp_path, code=2).stderr
    taken = diffode("export", "--csv", "part.csv/a.csv", "--store", "s.sqlite", cwd=tmp_path, code=2)
    assert "can't be written" in taken.stderr


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_an_export_replaces_neither_its_store_nor_its_other_file(results, tmp_path, suffix):
    """By whatever name they are called."""
    with Store(tmp_path / "s.sqlite") as store:
        store.put_all(results)
    kept = (tmp_path / "s.sqlite").read_bytes()
    (tmp_path / "link").symlink_to(f"s.sqlite{suffix}")
    for file in (f"s.sqlite{suffix}", f"../{tmp_path.name}/s.sqlite{suffix}", "link"):
        for form in ("--csv", "--parquet"):
            run = diffode("export", "--store", "s.sqlite", form, file, cwd=tmp_path, code=2)
            assert "would replace the store" in run.stderr
    run = diffode("export", "--store", "s.sqlite", "--csv", "both", "--parquet", "./both", cwd=tmp_path, code=2)
    assert "would replace the other file" in run.stderr
    assert (tmp_path / "s.sqlite").read_bytes() == kept
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("names", [("seconds",), ("key",), ("x", "x.floor")])
def test_a_metric_with_the_name_of_a_column_is_refused(results, tmp_path, names):
    measured = tuple(Measurement(name, 1.0, 0.0) for name in names)
    with pytest.raises(ArgumentError, match="two columns would be called"):
        export([replace(results[0], measurements=measured)], tmp_path / "a.csv", line="cell")
    assert not (tmp_path / "a.csv").exists()
    assert export([replace(results[0], measurements=measured)], tmp_path / "a.csv") == len(names)


def test_what_parquet_can_not_hold_is_written_as_in_csv_or_refused_by_name(results, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra, diffode[parquet]")
    odd = [replace(results[0], reason="half \ud800 a pair"), *results[1:]]
    export(odd, tmp_path / "a.csv")
    export(odd, tmp_path / "b.PARQUET")
    assert parquet.read_table(tmp_path / "b.PARQUET").to_pylist()[0]["reason"] == "half \\ud800 a pair"
    assert read_csv(tmp_path / "a.csv")[0]["reason"] == "half \\ud800 a pair"
    large = [replace(results[0], cell=replace(results[0].cell, seed=2**64))]
    with pytest.raises(ArgumentError, match=f"seed {2**64} does not fit the 64 bits of a Parquet column"):
        export(large, tmp_path / "c.parquet")
    assert export(large, tmp_path / "c.csv") == 2
    assert not (tmp_path / "c.parquet").exists()
