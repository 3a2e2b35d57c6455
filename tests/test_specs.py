"""Specs round-trip, and registries take users' things."""

import functools
import re
from typing import NamedTuple

import pytest
from commandline import diffode as command
from hypothesis import given
from hypothesis import strategies as st

import diffode
from diffode import specs
from diffode.cli.list_command import options_of_maker
from diffode.errors import ArgumentError, PluginWarning, UnknownNameError
from diffode.extensions import load_attribute
from diffode.makers import option_names
from diffode.specs import Registry, format_spec, parse_spec

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
#: Texts of any characters, and of those that specs are made of.
texts = st.one_of(
    st.text(max_size=8), st.text(alphabet="'\",=:+ 1etrunofas", max_size=12), st.sampled_from(["true", "None", "1e5"])
)
values = st.one_of(
    st.booleans(), st.none(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False),
    texts, st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple),
)  # fmt: skip


@given(names, st.dictionaries(names, values, max_size=4))
def test_a_formatted_spec_parses_back(name, options):
    assert parse_spec(format_spec(name, options)) == (name, options)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("a:b='x,y=1:2'", "x,y=1:2"), ("a: b = 'x' ", "x"), ("a:b=' x '", " x "), ("a:b=''", ""), ("a:b='3'", "3"),
        ("a:b='it''s'", "it's"), ("a:b=it's", "it's"), ("a:b='", "'"), ("a:b='x'y'", "'x'y'"), ("a:b=\"x\"", '"x"'),
    ],
)  # fmt: skip
def test_a_text_in_quotes_holds_anything_and_quotes_elsewhere_are_its_own(spec, text):
    assert parse_spec(spec) == ("a", {"b": text})
    assert parse_spec(f"{spec},c=2") == ("a", {"b": text, "c": 2})


def test_only_texts_that_would_be_misread_are_written_in_quotes():
    given = {"a": "x y", "b": "it's", "c": "a=b", "d": "a,b", "e": "3+4", "f": ""}
    assert format_spec("n", given) == "n:a=x y,b=it's,c=a=b,d='a,b',e='3+4',f=''"


@pytest.mark.parametrize(
    "spec", ["", ":", "a:", "a:b=", "a:=1", "a:1=2", "a b", "a:b=1,b=2", "../a", "a:b=1,", "a:,b=1", "a:b='x,y"]
)
def test_malformed_specs_are_refused(spec):
    with pytest.raises(ArgumentError):
        parse_spec(spec)


def test_a_registry_refuses_a_name_that_something_else_has():
    registry = Registry("thing")
    registry.register("one", dict)
    for other, preset in ((list, {}), (dict, {"a": 1}), (lambda: {1: 2}, {})):
        with pytest.raises(ArgumentError, match="registered already"):
            registry.register("one", other, **preset)
    with pytest.raises(ArgumentError, match="must be letters"):
        registry.register("no spaces", dict)


def test_a_registry_refuses_a_class_that_lacks_methods_and_names_them():
    class Half(diffode.solvers.DirectSolver):
        def follow(self, field, x, times, generator):
            return None

    with pytest.raises(ArgumentError, match=r"'half' can't be made: its class Half has no order$"):
        diffode.solvers.register("half", Half)
    assert "half" not in diffode.solvers.names()


def with_one_option(one):
    return one


def test_options_without_a_default_that_are_missing_are_named_as_they_are_written():
    def pair(first, second, *, third=None):
        return first, second, third

    registry = Registry("thing")
    registry.register("pair", pair)
    assert registry.make("pair:first=1,second=2") == (1, 2, None)
    with pytest.raises(
        ArgumentError, match=r"^thing 'pair' needs its options first=, second=; write pair:first=\.\.\.,second=\.\.\.$"
    ):
        registry.make("pair")
    with pytest.raises(
        ArgumentError, match=r"^thing 'pair' needs its option second=; write pair:first=1,third=3,second=\.\.\.$"
    ):
        registry.make("pair:first=1,third=3")
    place = f"{__name__}:with_one_option"
    with pytest.raises(ArgumentError, match=rf"^thing '{place}' needs its option one=; write {place},one=\.\.\.$"):
        registry.make(place)
    assert registry.make(f"{place},one=1") == 1
    # What a wrapper gives need not be given.
    registry.register("wrapped", functools.wraps(pair)(lambda **options: pair(1, 2, **options)))
    assert registry.make("wrapped:third=3") == (1, 2, 3)
    with pytest.raises(ArgumentError, match=r"^solver 'amed_learned' needs its option file=; write amed_learned:file=\.\.\.$"):
        diffode.solvers.get("amed_learned")


def test_show_names_the_option_that_a_place_lacks(tmp_path):
    (tmp_path / "mine.py").write_text("import diffode\n\n\ndef mine(a):\n    return diffode.solvers.get('ddim')\n")
    assert "needs its option a=; write mine.py:mine,a=..." in command("show", "mine.py:mine", cwd=tmp_path, code=2).stderr
    assert "ddim" in command("show", "mine.py:mine,a=1", cwd=tmp_path).stdout


def test_a_maker_without_a_signature_takes_what_it_takes():
    registry = Registry("thing")
    registry.register("own", dict)
    assert option_names(dict) is None
    assert options_of_maker(dict) == {}
    assert registry.make("own:a=1") == {"a": 1}


def test_what_is_done_to_the_options_of_a_text_is_not_seen_by_who_reads_it_next():
    name, options = parse_spec("dpm:order=3,step_orders=3+2")
    options["order"] = 7
    assert parse_spec("dpm:order=3,step_orders=3+2") == (name, {"order": 3, "step_orders": (3, 2)})


def test_a_plug_in_is_listed_by_its_name_and_loaded_when_it_is_asked_for(monkeypatch):
    """So that a plug-in that is slow or broken costs those alone who use it."""
    loaded = []

    class Point:
        def __init__(self, name):
            self.name, self.value = name, f"mine:{name}"

        def load(self):
            loaded.append(self.name)
            if self.name == "broken":
                raise ImportError("no such library")
            return dict

    points = [Point("whole"), Point("broken")]
    monkeypatch.setattr(specs.importlib.metadata, "entry_points", lambda group: points if group == "diffode.things" else [])
    registry = Registry("thing")
    registry.register("own", dict)
    assert registry.names() == ["own", "whole", "broken"]
    with pytest.raises(UnknownNameError, match="known: broken, own, whole"):
        registry.make("other")
    assert loaded == []
    assert registry.make("whole:a=1") == registry.make("whole:a=1") == {"a": 1}
    assert loaded == ["whole"]
    with pytest.raises(
        ArgumentError, match=r"'broken' can't be loaded from 'mine:broken', .*: ImportError: no such library; mend"
    ):
        registry.make("broken")


def test_a_plug_in_named_as_something_else_is_left_out_with_a_warning(monkeypatch):
    class Point(NamedTuple):
        name: str
        value: str

        def load(self):
            raise AssertionError("it is not asked for")

    points = [Point("own", "mine:dict"), Point("same", f"{dict.__module__}.part:dict"), Point("other", "mine:dict")]
    points.append(Point("foreign", "mine:dict"))
    monkeypatch.setattr(specs.importlib.metadata, "entry_points", lambda group: points)
    registry = Registry("thing", aliases={"foreign": "own"})
    registry.register("own", dict)
    registry.register("same", dict)
    with pytest.warns(PluginWarning) as told:
        assert registry.names() == ["own", "same", "other"]
    assert registry.make("own") == {}
    said = sorted(str(one.message) for one in told)
    assert len(said) == 2
    assert "'foreign' of an installed package, 'mine:dict', is not used, since diffode has one" in said[0]
    assert "'own' of an installed package, 'mine:dict', is not used, since builtins has one" in said[1]


def test_the_same_definition_run_again_replaces_what_it_registered():
    registry = Registry("thing")
    source = "class Mine:\n    pass\n\n\nregister('mine', Mine)\nregister('by_rule', lambda: 3)\n"
    made = []
    for _ in range(2):
        names = {"register": registry.register, "__name__": "__main__"}
        exec(compile(source, "a notebook's cell", "exec"), names)
        made.append(names["Mine"])
    assert made[0] is not made[1]
    assert type(registry.make("mine")) is made[1]
    assert registry.make("by_rule") == 3
    names = {"register": registry.register, "__name__": "elsewhere"}
    with pytest.raises(ArgumentError, match="registered already"):
        exec(source, names)


PLACES = """
import diffode
from diffode.solvers.runge_kutta import Heun

class Steps(Heun):
    pass

blob = diffode.GaussianMixture([1.0], [[0.0, 1.0]], [0.3])
narrow = diffode.paths.get("edm:sigma_max=10")
levels = [9.0, 1.0, 0.01]

def far(distance=4.0):
    return diffode.GaussianMixture([1.0], [[distance, 0.0]], [0.3])

def error(outcome, factor=1.0):
    return diffode.metrics.Measurement("error", factor * float(outcome.end.abs().mean()))
"""


@pytest.fixture(params=["file", "module"])
def place(request, tmp_path, monkeypatch):
    name = f"places_{request.param}"
    (tmp_path / f"{name}.py").write_text(PLACES)
    monkeypatch.chdir(tmp_path)
    return f"{tmp_path / name}.py" if request.param == "file" else name


def test_what_a_file_or_module_holds_goes_wherever_a_name_does(place):
    assert diffode.targets.get(f"{place}:blob").dim == 2
    assert float(diffode.targets.get(f"{place}:far,distance=7").mean[0]) == 7
    assert diffode.paths.get(f"{place}:narrow").t_max == 10
    assert diffode.solvers.get(f"{place}:Steps,chart=noise").chart_name == "noise"
    assert diffode.grids.get(f"{place}:levels", "edm").tolist() == [9, 1, 0.01]
    field = diffode.exact_field(f"{place}:blob", f"{place}:narrow")
    run = diffode.solve(field, field.prior(3, generator=0), solver=f"{place}:Steps", grid=f"{place}:levels")
    assert run.nfe == 4
    outcome = diffode.metrics.Outcome(field, run.x, run, 1e-6, 0)
    once, twice = (diffode.metrics.measure(f"{place}:error{text}", outcome).value for text in ("", ",factor=2"))
    assert twice == 2 * once


def test_a_place_that_holds_something_else_says_what(place):
    with pytest.raises(ArgumentError, match="is a GaussianMixture, not a solver"):
        diffode.solvers.get(f"{place}:blob")
    with pytest.raises(ArgumentError, match="makes a GaussianMixture, not a path"):
        diffode.paths.get(f"{place}:far")
    with pytest.raises(ArgumentError, match="has no attribute 'blub'; did you mean 'blob'"):
        diffode.targets.get(f"{place}:blub")
    with pytest.raises(ArgumentError, match="has no option 'distanse'; did you mean 'distance'"):
        diffode.targets.get(f"{place}:far,distanse=2")


def test_a_misspelt_spec_imports_nothing_and_files_of_others_import_nothing(place):
    with pytest.raises(ArgumentError, match="unknown path"):
        diffode.paths.get("os:abort")
    with pytest.raises(ArgumentError, match="unknown target"):
        diffode.targets.get("rign8:dim")
    with pytest.raises(ArgumentError, match="unknown path"):
        diffode.paths.registry.registered(f"{place}:narrow")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(lambda: load_attribute("math.pi"), "not of the form module:attribute", id="a place without a colon"),
    ],
)
def test_a_place_has_a_colon(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


def test_only_what_can_be_called_is_registered_under_a_text():
    registry = Registry("thing")
    for make in (None, 3, "x"):
        with pytest.raises(ArgumentError, match="make must be a class or a function that makes a thing"):
            registry.register("one", make)
    with pytest.raises(ArgumentError, match="thing name None must be letters"):
        registry.register(None, dict)


def test_a_list_that_no_spec_can_hold_is_refused():
    for wrong in ((1.5, -2.5), (1.5, 1e-7)):
        with pytest.raises(ArgumentError, match=re.escape(f"none below 1e-4, got {wrong}")):
            format_spec("x", {"a": wrong})
    assert format_spec("x", {"a": (1.5, 2.0)}) == "x:a=1.5+2"
    assert parse_spec("x:a=1.5+2")[1] == {"a": (1.5, 2.0)}
    assert format_spec("x", {"a": (3.0, 2)}) == "x:a=3+2"
