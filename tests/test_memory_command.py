"""``diffode memory``: a table of errors in their parts, a picture, and refusals by name."""

import json

import numpy as np
import pytest
from commandline import diffode
from scipy.optimize import least_squares

from diffode import hippo
from diffode.errors import DiffodeError
from diffode.hippo import study
from diffode.hippo.signal_files import read_signal

TIMES = np.linspace(0, 1, 400)


@pytest.fixture
def here(tmp_path):
    np.save(tmp_path / "sine.npy", np.sin(9 * TIMES))
    lines = [f"{t:.17g}, {np.sin(9 * t):.17g}" for t in 10 + 4 * TIMES**1.2]
    (tmp_path / "times.csv").write_text("time, value\n" + "\n".join(lines))
    return tmp_path


def test_a_table_and_a_picture_of_a_file(here):
    shown = diffode("memory", "sine.npy", "--order", "8,16", cwd=here).stdout
    assert "legs" in shown
    assert "projection" in shown
    assert (here / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_same_errors_as_python(here):
    words = ["memory", "times.csv", "--measures", "legs,lagt:alpha=0,beta=0.5,scale=0.2,fout:window=2", "--order", "8"]
    answer = json.loads(diffode(*words, "--holds", "zoh,cubic", "--json", "--output", "out/a.png", cwd=here).stdout)
    assert answer["picture"] == "out/a.png"
    assert (here / "out/a.png").is_file()
    rows = {(row["measure"], row["order"], row["hold"]): row for row in answer["errors"]}
    assert len(rows) == 6
    assert ("fout:window=2.0", 7, "zoh") in rows
    u, times = read_signal(here / "times.csv")
    own = study.of_samples(hippo.get("legs", 8), u, times, "zoh").errors
    row = rows["legs", 8, "zoh"]
    assert row["total"] == pytest.approx(own.total)
    assert row["discretisation"] == pytest.approx(own.discretisation)
    # A cubic hold is what the samples are taken for.
    assert rows["legs", 8, "cubic"]["discretisation"] == 0
    assert rows["legs", 8, "cubic"]["total"] == rows["legs", 8, "cubic"]["projection"]


def test_a_known_signal_by_name(here):
    answer = json.loads(diffode("memory", "step:at=0.5", "--measures", "legs", "--order", "32", "--json", cwd=here).stdout)
    assert answer["errors"][0]["projection"] == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize(
    ("measures", "span", "note"),
    [
        ("legt:window=2", (), "the window 2 of legt:window=2.0 is longer than the signal: the last 1 is compared"),
        ("legs", ("--span", "3"), "the span 3 is longer than the signal: the last 1 is compared"),
        ("legt:window=0.25", ("--span", "0.5"),
         "the span 0.5 is longer than the window of legt:window=0.25: the last 0.25 is compared"),
        ("legs,legt,lagt:scale=0.2", (), None), ("legt:window=0.25", ("--span", "0.25"), None), ("legs", ("--span", "1"), None),
    ],
)  # fmt: skip
def test_what_is_longer_than_the_signal_is_said(here, measures, span, note):
    words = ["memory", "sine.npy", "--measures", measures, "--order", "4", *span]
    assert json.loads(diffode(*words, "--json", cwd=here).stdout)["notes"] == ([note] if note else [])
    if note:
        assert f"note: {note}" in diffode(*words, cwd=here).stdout


def test_measures_and_holds_are_listed_and_shown():
    listed = json.loads(diffode("list", "measures", "--json").stdout)["measures"]
    assert [row["name"] for row in listed] == ["legs", "legt", "lagt", "fout"]
    rows = {row["name"]: row for row in json.loads(diffode("list", "holds", "--json").stdout)["holds"]}
    # What a name fixes is no option of it.
    assert rows["euler"]["options"] == rows["cubic"]["options"] == ""
    assert rows["poly"]["options"] == "degree=3"
    assert "all the past" in diffode("show", "legs").stdout
    assert json.loads(diffode("show", "legt:window=0.25", "--json").stdout)["window"] == 0.25
    assert json.loads(diffode("show", "zoh", "--json").stdout)["order"] == 1
    assert json.loads(diffode("show", "hold:euler", "--json").stdout)["hold"] == "euler"
    assert "tableau" in json.loads(diffode("show", "euler", "--json").stdout)
    assert "did you mean 'legs'" in diffode("show", "leqs", code=2).stderr


FILES = {
    "words.csv": "1\ntwo\n3\n",
    "ragged.csv": "1,2\n3\n",
    "nan.csv": "1\nnan\n2\n",
    "empty.csv": "",
    "header.csv": "a,b\n",
    "typo.csv": "0,1x\n1,2\n2,3\n",
    "trailing.csv": "0,1,\n1,2,\n",
    "single.csv": "3\n",
    "falling.csv": "0,1\n2,1\n1,1\n",
    "wide.csv": "1,2,3\n4,5,6\n",
    "binary.csv": b"\xff\xfe\x00",
    "no.npy": "not an array",
    "signal.wav": "RIFF",
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["words.csv"], "line 2"),
        (["ragged.csv"], "line 2"),
        (["nan.csv"], "line 2"),
        (["empty.csv"], "empty"),
        (["header.csv"], "empty"),
        (["typo.csv"], "line 1"),
        (["trailing.csv"], "line 1"),
        (["single.csv"], "two samples"),
        (["falling.csv"], "rise"),
        (["wide.csv"], "(2, 3)"),
        (["binary.csv"], "UTF-8"),
        (["no.npy"], ".npy"),
        (["signal.wav"], ".wav"),
        (["missing.npy"], "no such file"),
        (["folder.npy"], "folder"),
        (["folder"], "ending"),
        (["complex.npy"], "real numbers"),
        (["nan.npy"], "finite"),
        (["empty.npy"], "empty"),
        (["cube.npy"], "(2, 2, 2)"),
        (["sine.npy", "--measures", "leqs"], "did you mean 'legs'"),
        (["sine.npy", "--measures", ","], "--measures"),
        (["sine.npy", "--measures", "legt:window=0"], "window"),
        (["sine.npy", "--holds", "cubik"], "did you mean 'cubic'"),
        (["sine.npy", "--order", "0"], "order"),
        (["sine.npy", "--order", "1.5"], "--order"),
        (["sine.npy", "--order", ""], "--order"),
        (["sine.npy", "--step", "0"], "--step"),
        (["sine.npy", "--span", "-1"], "--span"),
        (["times.csv", "--step", "1"], "--step"),
        (["sine", "--step", "1"], "--step"),
        (["sine.npy", "--output", "a.pdf"], ".png"),
        (["sine.npy", "--output", "folder/x/../../folder.png/x.png"], "can't be written"),
        (["sinus"], "ending"),
    ],
    ids=" ".join,
)
def test_wrong_input_is_named(here, words, expected):
    for name, content in FILES.items():
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (here / "folder.npy").mkdir()
    (here / "folder").mkdir()
    (here / "folder.png").write_text("a file")
    np.save(here / "complex.npy", np.ones(4) * 1j)
    np.save(here / "nan.npy", np.array([1.0, np.nan]))
    np.save(here / "empty.npy", np.empty(0))
    np.save(here / "cube.npy", np.ones((2, 2, 2)))
    done = diffode("memory", *words, cwd=here, code=2)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["1 2\n3 4", "1;2\n3;4", "1\t2\n3\t4", "# note\nt,u\n1,2\n\n3,4\n", "\ufefft,u\n1,2\n3,4"])
def test_tables_come_in_many_forms(tmp_path, text):
    file = tmp_path / "a.csv"
    file.write_text(text, encoding="utf-8")
    samples, times = read_signal(file)
    assert samples.tolist() == [2, 4]
    assert times.tolist() == [1, 3]


@pytest.mark.parametrize("spec", ["legs", "legt:window=0.3", "lagt:scale=0.05", "fout:window=0.3"])
def test_parts_of_an_error_add_up_and_are_what_they_say(spec):
    """The error is the sum of its parts as functions, so that none exceeds the sum of the others."""
    memory, signal = hippo.get(spec, 9), hippo.signals.get("sine:frequency=2")
    found = study.of_known(memory, signal, 200, "zoh")
    errors = found.errors
    parts = (errors.projection, errors.closure, errors.discretisation)
    assert errors.total <= sum(parts) * (1 + 1e-12)
    assert max(parts) <= errors.total + sum(parts) - max(parts) + 1e-12
    assert (errors.closure == 0) == memory.measure.closed
    exact = memory.reconstruct(memory.project(signal, 1.0, since=0.0), found.times, 1.0)
    size = np.sqrt(np.mean(found.signal**2))
    assert errors.projection * size == pytest.approx(np.sqrt(np.mean((exact - found.signal) ** 2)), rel=0.01, abs=1e-12)
    again = np.sqrt(np.mean((memory.reconstruct(found.coefficients, found.times, 1.0) - found.signal) ** 2))
    assert errors.total * size == pytest.approx(again, rel=0.01)


@pytest.mark.parametrize("spec", ["legs", "legt:window=0.3", "fout:window=0.3", "lagt:scale=0.05"])
def test_a_sampled_signal_has_nearly_the_errors_of_the_known_one(spec):
    memory, signal = hippo.get(spec, 9), hippo.signals.get("ecg:beats=2")
    known = study.of_known(memory, signal, 2000, "foh").errors
    times = np.linspace(0, 1, 2001)
    sampled = study.of_samples(memory, signal(times), 5 + times, "foh").errors
    assert sampled.total == pytest.approx(known.total, rel=0.01)
    assert sampled.projection == pytest.approx(known.projection, rel=0.01)
    assert sampled.closure == pytest.approx(known.closure, rel=0.01, abs=1e-12)
    assert sampled.discretisation == pytest.approx(known.discretisation, rel=0.02)


@pytest.mark.parametrize("name", ["sine", "white", "step", "mackey_glass", "ecg"])
def test_signals_are_of_this_world(name):
    signal = hippo.signals.get(name)
    values = signal(np.linspace(0, 1, 5001))
    assert np.isfinite(values).all()
    assert 0.1 <= values.std() <= 1.5
    assert hippo.signals.get(signal.spec)(0.3) == signal(0.3)
    for wrong in (
        "sine:frequency=0",
        "white:band=-1",
        "white:seed=1.5",
        "ecg:beats=none",
        "mackey_glass:span=1e9",
        "step:at=x",
    ):
        with pytest.raises(DiffodeError):
            hippo.signals.get(wrong)


def test_the_mackey_glass_signal_solves_its_equation():
    """x' = 0.2 y/(1 + y^10) - x/10 with the delay 17 of 600: the mean and the spread are taken off by two derivatives."""
    signal, span = hippo.signals.get("mackey_glass"), 600.0
    t, h = np.linspace(0.1, 0.9, 400), 1e-5
    slope = (signal(t + h) - signal(t - h)) / (2 * h * span)

    # signal = (x - m)/s: fit m and s, for which the equation holds at all times.
    def gap(p):
        x, y = p[0] + p[1] * signal(t), p[0] + p[1] * signal(t - 17 / span)
        return p[1] * slope - (0.2 * y / (1 + y**10) - 0.1 * x)

    assert np.abs(least_squares(gap, [0.9, 0.25], xtol=1e-15, ftol=1e-15, gtol=1e-15).fun).max() <= 1e-5


def test_errors_are_relative_whatever_the_size_of_the_signal():
    """Squares of numbers of 1e-300 are 0, but their errors are not."""
    u = np.sin(np.arange(200) / 7) + (np.arange(200) > 90)
    found = [study.of_samples(hippo.get("legs", 8), size * u, 0.01, "foh").errors for size in (1.0, 1e-300, 1e120)]
    for one in found[1:]:
        assert one.total == pytest.approx(found[0].total, rel=1e-9)
        assert one.discretisation == pytest.approx(found[0].discretisation, rel=1e-9)


def test_one_column_holds_samples_and_two_hold_times_and_samples(tmp_path):
    file, columns = tmp_path / "signal.npy", np.stack([TIMES, np.sin(9 * TIMES)], axis=1)
    for stored, samples, times in (
        (columns[:, 1], columns[:, 1], None), (columns[:, 1:], columns[:, 1], None), (columns, columns[:, 1], TIMES),
    ):  # fmt: skip
        np.save(file, stored)
        found, given = read_signal(file)
        np.testing.assert_array_equal(found, samples)
        assert (given is None) is (times is None)
        assert times is None or np.array_equal(given, times)
    np.save(file, columns[:, :, None])
    with pytest.raises(DiffodeError, match=r"got shape \(400, 2, 1\)"):
        read_signal(file)
