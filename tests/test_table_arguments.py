"""What is no part of a table is refused by its name, whoever asks for a table: rows, common forms and solvers."""

import copy

import numpy as np
import pytest
import torch

from diffode import Field, Tableau, paths, solvers, targets
from diffode.errors import ArgumentError, UnknownNameError
from diffode.statistics import Statistics
from diffode.tableau import Row
from diffode.tableau.gaussian_stages import GaussianStages
from diffode.tableau.stages import Stages

ROWS = (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5}))
TABLE = {"prediction": "noise", "rows": ROWS, "outputs": (0, 1)}
STAGES = {"scales": [1.0, 1.0], "weights": [[0.0, 0.0], [0.0, -1.0]], "levels": [2.0, 1.0, 0.5]}
NONE_OF_THESE = (3, 2.5, object(), torch.tensor(1.0))


def numbers(**changed):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in STAGES.items()} | changed


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("prediction", (None, "x", *NONE_OF_THESE)),
        ("rows", (None, "x", True, *NONE_OF_THESE)),
        ("outputs", (None, "x", True, [0, True], *NONE_OF_THESE)),
        ("path", ("edm", *NONE_OF_THESE)),
        ("solver", (None, *NONE_OF_THESE)),
        (
            "spans",
            (None, "x", [1.0], [(1.0, 2.0, 3.0)], [(2.0, 1.0)], [(0.0, float("inf"))], [("a", "b")], ["01"], *NONE_OF_THESE),
        ),
        ("statistics", ("scale", {}, *NONE_OF_THESE)),
    ],
)
def test_an_argument_of_a_table_that_is_none_is_named(name, wrong):
    for value in wrong:
        with pytest.raises(ArgumentError, match=rf"^{name} must be .*, got |^{name} must be diffode.tableau.Row"):
            Tableau(**(TABLE | {name: value}))


def test_intervals_of_draws_are_kept_as_pairs_whatever_sequences_gave_them():
    table = Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {}, {0: 0.1})), (0, 1), spans=[[0, 1]])
    assert table.spans == ((0.0, 1.0),)
    assert hash(table) == hash(Tableau("noise", table.rows, (0, 1), spans=((0.0, 1.0),)))


@pytest.mark.parametrize("name", ["states", "evaluations", "draws", "time", "mean"])
def test_an_argument_of_a_row_that_is_none_is_named(name):
    for value in (None, "x", [1], object()):
        with pytest.raises(ArgumentError, match=rf"{name}.* must be|must be mappings .*{name}="):
            Row(**({"time": 0.5} | {name: value}))


@pytest.mark.parametrize("name", list(STAGES))
def test_an_argument_of_a_common_form_that_is_none_is_named(name):
    assert Stages(**numbers()).nfe == 2
    for value in (None, "x", 3, 2.5, STAGES[name], torch.ones(2, dtype=torch.int64), torch.ones(2) * 1j):
        with pytest.raises(ArgumentError, match=rf"^{name} must be a real tensor .*, got "):
            Stages(**numbers(**{name: value}))


def test_what_is_asked_of_a_common_form_is_named():
    stages, known = Stages(**numbers()), Statistics.of_target("ring8")
    inside = GaussianStages(stages, known)
    for form in (stages, inside):
        for wrong in (None, "x", 0, -1.0, float("nan"), [1]):
            with pytest.raises(ArgumentError, match=r"^unit must be a number > 0, got"):
                form.scaled(wrong)
        for unit in (np.float32(2), np.int64(2), torch.tensor(2.0)):
            levels = [(one if form is stages else one.stages).levels for one in (form.scaled(unit), form.scaled(2.0))]
            assert torch.equal(*levels)
        for times in ("x", "21", 3, (), (1.0,), (1.0, None)):
            with pytest.raises(ArgumentError, match=r"^times must be .* start and the end, got"):
                form.tableau("edm", times=times)
    for kind in (Stages, GaussianStages):
        for wrong in (None, "ddim", 3):
            with pytest.raises(ArgumentError, match=r"^table must be a diffode.Tableau, .*, got"):
                kind.of(wrong)
    for wrong in (None, "x", 3):
        with pytest.raises(ArgumentError, match=r"^stages must be diffode.tableau.Stages, got"):
            GaussianStages(wrong, known)
        with pytest.raises(ArgumentError, match=r"^statistics must be diffode.Statistics, got"):
            GaussianStages(stages, wrong)


@pytest.mark.parametrize(
    "ask",
    [
        lambda path: Stages(**numbers()).tableau(path),
        lambda path: GaussianStages(Stages(**numbers()), Statistics.of_target("ring8")).tableau(path),
        lambda path: solvers.table_solver("ddim").tableau(path, "karras", 4),
        lambda path: solvers.table_solver("ddim").tableau(path, [2.0, 1.0]),
        lambda path: solvers.table_solver("ddim").within(path, "karras", 4),
        lambda path: solvers.table_solver("universal:scale=1,dim=2").tableau(path, "karras", 4),
        lambda path: solvers.informed("ddim:jump=1", Statistics.of_target("ring8")).tableau(path, "karras", 4),
        lambda path: paths.get(path),
    ],
)
def test_a_path_that_is_none_is_named_with_the_way_to_give_one(ask):
    with pytest.raises(ArgumentError, match=r"\bpath=None|^path must be a text, such as 'edm', or a Path, got None"):
        ask(None)
    for wrong in (3, ["edm"]):
        with pytest.raises(ArgumentError, match=r"^path must be a text, such as 'edm', or a Path, got"):
            ask(wrong)
    with pytest.raises(UnknownNameError, match="unknown path 'x'"):
        ask("x")


@pytest.mark.parametrize("wrong", [None, 3, ["ring8"]])
def test_a_text_that_is_none_is_named_by_what_it_would_name(wrong):
    with pytest.raises(ArgumentError, match=r"^target must be a text, such as '\w+', or a Target, got"):
        targets.get(wrong)
    with pytest.raises(ArgumentError, match=r"solver must be .*, got"):
        solvers.get(wrong)


def test_statistics_take_any_real_unit():
    known = Statistics.of_target("moons")
    for unit in (np.float32(2), np.int64(2), torch.tensor(2.0), np.array(2.0)):
        assert known.scaled(unit) == known.scaled(2.0)
    # Mirrored data have the same covariance.
    assert torch.equal(known.scaled(-1.0).mean, -known.mean)
    for wrong in (None, "2", True, 0.0, float("inf"), torch.ones(2)):
        with pytest.raises(ArgumentError, match=r"^unit must "):
            known.scaled(wrong)


@pytest.mark.parametrize("outputs", [[np.int64(0), np.int64(1)], np.array([0, 1]), range(2), iter([0, 1])])
def test_indices_of_any_integers_are_kept_as_those_of_python(outputs):
    table = Tableau(**(TABLE | {"outputs": outputs}))
    assert table.outputs == (0, 1)
    assert {type(one) for one in table.outputs} == {int}


def each_number_for_a_batch():
    """The time and the coefficients of a row for three rows of a batch, and those of one for two directions."""
    batch = {name: torch.full((3,), 0.5, dtype=torch.float64) for name in ("time", "states", "evaluations", "draws")}
    return [*((name, value) for name, value in batch.items()), ("mean", torch.full((1, 2), 0.5, dtype=torch.float64))]


@pytest.mark.parametrize(("name", "value"), each_number_for_a_batch())
def test_a_row_keeps_its_numbers_whatever_becomes_of_the_tensors_that_gave_them(name, value):
    row, told = Row(**({"time": 0.5} | {name: value if name in ("time", "mean") else {0: value}})), value.clone()
    value.add_(1.0)
    kept = getattr(row, name) if name in ("time", "mean") else getattr(row, name)[0]
    assert torch.equal(kept, told)


def test_gradients_reach_the_tensors_that_gave_a_row_its_numbers():
    factor = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    table = Tableau("velocity", (Row(1.0), Row(0.5, {0: factor}, {0: factor})), (0, 1))
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    end = table.run(Field.from_velocity(lambda x, t: 2 * x), x)
    (slope,) = torch.autograd.grad(end.sum(), factor)
    assert torch.allclose(slope, 3 * x.sum(1))


def test_a_row_with_a_graph_is_copied_deeply_and_one_of_inference_mode_is_differentiated_through():
    factor = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    row = Row(0.5, {0: factor})
    assert copy.deepcopy(row) == row
    ones = torch.ones(3, dtype=torch.float64)
    with torch.inference_mode():
        table = Tableau("velocity", (Row(1.0), Row(0.5, {0: 1.0}, {0: ones})), (0, 1))
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    table.run(Field.from_velocity(lambda x, t: 2 * x), x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))
