"""Suites: what ships, what a file may ask for, and what is wrong with one that can't be read."""

import pytest
from small_suite import STUDY, small

from diffode import paths
from diffode.errors import ArgumentError, UnknownNameError
from diffode.extensions import import_extension
from diffode.studies import load_suite, parse_suite, suite_names


def test_the_shipped_suites_are_what_they_promise():
    assert {"quick", "full"} <= set(suite_names())
    quick = load_suite("quick")
    cells = quick.cells
    assert len({c.target for c in cells}) >= 10
    assert {"digits-gmm10", "digits-empirical"} <= {c.target for c in cells}
    assert {"edm", "vp", "rectified_flow"} <= {c.path for c in cells}
    assert len({c.solver for c in cells}) >= 14
    assert (min(c.nfe for c in cells), max(c.nfe for c in cells)) == (4, 50)
    assert len({c.seed for c in cells}) == 2
    full = load_suite("full")
    assert len({c.target for c in full.cells}) >= 23
    assert {c.path for c in full.cells} == set(paths.names())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": []}, "at least one"),
        ({"studies": []}, "unknown key 'studies'; did you mean 'study'"),
        ({"study": [{"targets": ["ring9"], "solvers": ["ddim"]}]}, "did you mean 'ring8'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["dimm"]}]}, "did you mean 'ddim'"),
        ({"study": [{"targets": ["ring8"], "solvers": "ddim"}]}, "solvers must be a list"),
        ({"study": [{"targets": ["ring8"]}]}, "solvers is missing"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "nfe": [0]}]}, "nfe must be integers >= 1"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "points": 1}]}, "points must be"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "dtype": "half"}]}, "dtype must be"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "tolerance": 1.0}]}, "tolerance must lie"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "metrics": ["endpiont"]}]}, "did you mean 'endpoint'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "grids": ["karas"]}]}, "did you mean 'karras'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "metrics": ["endpoint:foo=1"]}]}, "no option 'foo'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "metrics": ["endpoint", "endpoint"]}]}, "twice"),
        ({"study": [3]}, "at least one"),
        ({"defaults": 3}, "defaults must be a table"),
        ({"imports": ["no_such_module_anywhere"]}, "can't be imported"),
        ({"imports": ["/nowhere/mine.py"]}, "does not exist"),
    ],
)
def test_wrong_suites_say_what_is_wrong(change, message):
    with pytest.raises(ArgumentError, match=message):
        small(**change)


def test_unreadable_suites_say_so(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(ArgumentError, match="can't be read"):
        load_suite(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ArgumentError, match="not valid TOML"):
        load_suite(str(tmp_path / "bad.toml"))


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


def test_a_solver_in_two_spellings_is_run_once_under_the_first():
    study = {"targets": ["gauss1d"], "paths": ["edm"], "grids": ["karras"], "nfe": [4], "seeds": [0]}
    solvers = ["ipndm:order=3,jump=auto", "ddim", "ipndm:jump=auto,order=3", "dpmpp", "dpmpp:order=2"]
    cells = parse_suite({"study": [{**study, "solvers": solvers}]}).cells
    assert [c.solver for c in cells] == ["ipndm:order=3,jump=auto", "ddim", "dpmpp"]


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
