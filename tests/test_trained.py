"""What a training gives: one result, one request, one file and one account of steps, whatever is trained."""

import math

import pytest
import torch

import diffode
from diffode import learned, solvers
from diffode.errors import ArgumentError, FileFormatError, UnknownNameError
from diffode.flows import flow_states
from diffode.learned import MAP_METHODS, Trained, load, methods, request, train
from diffode.learned.grids.grid_training import train_grid
from diffode.learned.methods import METHODS
from diffode.learned.tables import published
from diffode.learned.universal.batches import UNITS
from diffode.randomness import keyed
from diffode.specs import format_spec
from diffode.tableau.stages import Stages
from diffode.tensor_files import read_tensors, write_tensors

#: Each method with a request that takes a second or less.
ASKED = {
    "bespoke": {"points": 32, "steps": 4},
    "conditioned": {"points": 256, "steps": 4},
    "universal": {"points": 8},
    "amed": {"points": 32, "steps": 5},
    "jump": {"points": 128, "steps": 4},
    "head": {"points": 1024, "steps": 3},
    "nodes": {"points": 512},
    "gits": {"points": 16},
    "dmn": {},
    "ld3": {"points": 32, "steps": 3},
    "ld3_decoupled": {"points": 32, "steps": 3},
    "dc": {"points": 16},
    "search": {"points": 16},
}
#: The number of evaluations of a training that has no other.
NFE = {"nodes": 1}
#: The options of a training that would take long without.
OPTIONS = {"head": "head:units=64"}


@pytest.fixture(scope="module")
def trainings():
    """Every training of ring8 on variance-preserving noise, with the steps that were told."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "ATTEMPTS", 2)
        for name, request in ASKED.items():
            told = []
            found[name] = (
                train(OPTIONS.get(name, name), "ring8", NFE.get(name, 3), path="vp", seed=5, progress=told.append, **request),
                told,
            )
    return found


def test_every_method_is_tried():
    # Flow maps have tests of their own, test_map_training.py.
    assert set(ASKED) == set(METHODS) - set(MAP_METHODS)


@pytest.mark.parametrize("name", ASKED)
def test_the_error_of_a_result_is_that_of_its_run_on_other_starts(name, trainings):
    """Mean end-point error in units of the scale, on 2,000 starts of our own: within five standard errors."""
    trained, _ = trainings[name]
    field = diffode.exact_field("ring8", "vp")
    x = field.path.prior((2000, 2), generator=keyed(77, "fresh"))
    exact = flow_states(field, x, (field.path.t_max, field.path.t_min))[-1]
    run = diffode.solve(field, x, **trained.arguments)
    assert run.nfe == trained.nfe == NFE.get(name, 3)
    lengths = (run.x - exact).norm(dim=1) / field.path.alpha(field.path.t_min) / field.scale
    # Held-out errors come from as few as 8 starts.
    fewest = {"universal": 8, "bespoke": 32, "conditioned": 64, "amed": 32, "jump": 128, "head": 128}.get(name, 512)
    spread = float(lengths.std()) * (1 / fewest + 1 / 2000) ** 0.5
    assert abs(float(lengths.mean()) - trained.errors.after) < 5 * spread


@pytest.mark.parametrize("name", ASKED)
def test_a_result_is_read_back_from_its_file_and_runs_the_same(name, trainings, tmp_path):
    trained, _ = trainings[name]
    field = diffode.exact_field("ring8", "vp")
    x = field.path.prior((5, 2), generator=0)
    file = tmp_path / "a, b's=c.safetensors"
    trained.save(file)
    for name in (None, 3, b"x"):
        with pytest.raises(ArgumentError, match=r"^file must be a file's name, a text or a path, got "):
            trained.save(name)
    read = load(file)
    assert isinstance(read, Trained)
    assert (read.nfe, read.facts.facts(), read.errors) == (trained.nfe, trained.facts.facts(), trained.errors)
    runs = [diffode.solve(field, x, **one.arguments).x for one in (trained, read)]
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-12, atol=1e-12)
    assert diffode.solvers.get(read.solver.spec).content() == read.solver.content()
    # Its spec, and for a grid that of the grid, run it anywhere.
    how = {"grid": format_spec("trained", {"file": str(file)})} if trained.grid is not None else {}
    again = diffode.solve(field, x, solver=read.solver.spec, nfe=trained.nfe, **how).x
    torch.testing.assert_close(again, runs[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ASKED)
def test_facts_say_what_was_asked_and_steps_are_told(name, trainings):
    trained, told = trainings[name]
    facts = trained.facts
    assert (facts.target, facts.seed, facts.stopped_by) == ("ring8", 5, "counts")
    assert facts.path.startswith("vp")
    assert facts.seconds > 0
    assert facts.begun_from
    assert all(step.number >= 1 and math.isfinite(step.decisive) and step.stage for step in told)
    assert all(step.total is None or step.number <= step.total for step in told)
    assert bool(told) == (name not in ("gits", "dmn"))
    if name not in ("gits", "dmn", "universal"):
        assert trained.history.steps <= len(told)
        assert trained.history.error[-1] == pytest.approx(told[-1].error, rel=1) or name in ("bespoke", "conditioned", "jump")
    if name in ("bespoke", "conditioned", "jump", "head", "nodes", "amed", "ld3", "ld3_decoupled", "universal", "search"):
        assert trained.errors.after < trained.errors.before


def test_steps_and_points_bound_the_work(trainings):
    for name, (trained, _) in trainings.items():
        if "steps" in ASKED[name] and name != "ld3_decoupled":
            assert trained.history.steps <= ASKED[name]["steps"]
    assert max(step.number for step in trainings["ld3_decoupled"][1]) <= 3
    assert {step.stage for step in trainings["ld3_decoupled"][1]} == {"train the levels together", "train the levels apart"}


def test_a_choice_in_the_codebook_ends_with_its_seconds_and_keeps_the_best_so_far():
    heard = []
    whole = learned.tune_universal("ring8", 3, points=8, progress=heard.append)
    cut = learned.tune_universal("ring8", 3, points=8, stop=lambda: len(heard) > 0)
    assert (whole.stopped_by, cut.stopped_by) == ("counts", "request")
    assert cut.history.steps == 1
    assert math.isfinite(cut.errors.after)


@pytest.fixture
def problems(monkeypatch):
    """The problems that trainings make, each in its turn: first that of the starts to train on."""
    made, original = [], request.problem_for

    def noting(*arguments, **options):
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(request, "problem_for", noting)
    return made


def test_a_choice_in_the_codebook_is_never_worse_than_the_single_table(problems):
    """On the starts to choose on, of any number of tables that were tried: the first one is a bad one."""
    field = diffode.exact_field("bimodal1d", "edm")
    of_plain = solvers.get("universal", scale=field.scale, dim=1)
    first = solvers.get("universal", member=0, scale=UNITS[0] * field.scale, dim=1)
    for count in (1, 2, 40):
        heard = []
        found = learned.tune_universal(field, 4, points=64, progress=heard.append, stop=lambda n=count, h=heard: len(h) >= n)
        problem, *_ = problems[-2:]
        start, own = (
            problem.error(Stages.of(solver.tableau(field.path, "karras", 4)).scaled(1 / field.scale))
            for solver in (of_plain, found.solver)
        )
        assert own <= start
        if count == 1:
            assert problem.error(Stages.of(first.tableau(field.path, "karras", 4)).scaled(1 / field.scale)) > 2 * start
            assert found.solver.member is None
            assert found.errors.after == found.errors.before
        assert found.facts.begun_from == "universal"


def test_a_choice_that_ends_among_the_last_is_the_best_of_those_before():
    """The last comparison is on all starts, and the first table in it is the best on few."""
    heard = []
    learned.tune_universal("bimodal1d", 4, points=64, progress=heard.append)
    before = sum(step.total != heard[-1].total for step in heard)
    assert 0 < before < len(heard)
    chosen = []
    for count in (before, before + 1):
        told = []
        found = learned.tune_universal(
            "bimodal1d", 4, points=64, progress=told.append, stop=lambda n=count, t=told: len(t) >= n
        )
        assert found.history.steps == count
        chosen.append(found.solver)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("spec", "steps", "better"), [("ddim", 3, "karras"), ("dpmpp", 4, "log_snr")])
def test_a_grid_is_held_against_the_better_of_two_named_ones(spec, steps, better, problems):
    """On the test starts, whose errors differ by more than rounding; a grid that ld3 begins from is its own measure."""
    named = {grid: Stages.of(solvers.get(spec).tableau("edm", grid, steps)) for grid in ("log_snr", "karras")}
    for method, options in (("dmn", {}), ("gits", {"points": 8}), ("search", {"points": 8, "stop": lambda: True})):
        found = train_grid(method, "ring8", steps, solver=spec, **options)
        test = next(one for one in problems if len(one.start) == 512)
        errors = {grid: test.error(table.scaled(1 / test.unit)) for grid, table in named.items()}
        other = next(grid for grid in errors if grid != better)
        assert errors[better] < 0.9 * errors[other]
        assert found.errors.before == pytest.approx(errors[better], rel=1e-12)
        assert found.facts.begun_from == f"{spec} @ {better}"
    found = train_grid("ld3", "ring8", steps, solver=spec, grid=other, points=16, rounds=1)
    assert found.errors.before == pytest.approx(errors[other], rel=1e-12)


def test_levels_that_the_universal_table_does_not_know_have_no_error_before():
    """From 300 to 1e-5 of the scale there are members, but no table for all data."""
    path = "edm:sigma_max=1000,sigma_min=1e-5"
    found = learned.tune_universal("gauss1d", 3, points=8, path=path)
    assert found.errors.before is None
    with pytest.warns(DeprecationWarning, match=r"errors\.before"):
        assert found.untuned_error == math.inf


def test_former_names_of_results_and_functions_still_work(trainings, tmp_path):
    trained = trainings["bespoke"][0]
    for name, now in (
        ("checkpoint", trained.content), ("training", trained.history.error), ("held_out", trained.history.held_out),
        ("held_out_error", trained.errors.after), ("start_error", trained.errors.before), ("seed", 5), ("target", "ring8"),
    ):  # fmt: skip
        with pytest.warns(DeprecationWarning, match=rf"^\.{name} of a result"):
            assert getattr(trained, name) is now or getattr(trained, name) == now
    grid = trainings["gits"][0]
    with pytest.warns(DeprecationWarning, match=r"\.times of a result of training is \.grid now"):
        assert grid.times is grid.grid
    with pytest.warns(DeprecationWarning, match=r"is \.content\.levels now"):
        assert torch.equal(grid.levels, grid.content.levels)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = trained.nothing
    for name in ("TrainedAMED", "TrainedConditioned", "TunedUniversal"):
        with pytest.warns(DeprecationWarning, match="Trained now"):
            assert getattr(learned, name) is Trained
    with pytest.warns(DeprecationWarning, match="save_amed"):
        learned.save_amed(trainings["amed"][0].solver, tmp_path / "amed")
    assert load(tmp_path / "amed").nfe == 3
    with pytest.raises(AttributeError):
        _ = learned.nothing


def test_files_that_hold_nothing_trained_are_refused_by_name(trainings, tmp_path):
    table = diffode.solvers.get("ddim").tableau("edm", "karras", 3)
    table.save(tmp_path / "plain")
    with pytest.raises(FileFormatError, match="is of no result of training"):
        load(tmp_path / "plain")
    (tmp_path / "text").write_text("no file of ours")
    with pytest.raises(FileFormatError):
        load(tmp_path / "text")
    with pytest.raises(ArgumentError, match="no such file"):
        load(tmp_path / "none")
    for name, schema in (("conditioned", "diffode-conditioned-1"), ("amed", "diffode-amed-1")):
        trainings[name][0].save(tmp_path / name)
        description, tensors = read_tensors(tmp_path / name, schema)
        older = {key: value for key, value in description.items() if key not in trainings[name][0].facts.facts()}
        write_tensors(tmp_path / "old", tensors, older)
        with pytest.raises(FileFormatError, match=r"told no errors; it runs as the solver '\w+:file="):
            load(tmp_path / "old")
    trainings["gits"][0].save(tmp_path / "grid")
    description, tensors = read_tensors(tmp_path / "grid", "diffode-grid-1")
    for key, foreign in (("solver", "os:system"), ("path", "os:path"), ("solver", "nothing")):
        write_tensors(tmp_path / "foreign", tensors, {**description, key: foreign})
        with pytest.raises(FileFormatError):
            load(tmp_path / "foreign")


def test_tables_in_memory_are_solvers_like_those_in_files(trainings, tmp_path):
    solver = trainings["bespoke"][0].solver
    other = trainings["ld3_decoupled"][0].solver
    assert solver != other
    assert repr(trainings["gits"][0]).startswith("Trained('ddim', nfe=3, target='ring8', errors=")
    assert solver == diffode.solvers.trained.bespoke.Bespoke(table=solver.checkpoint)
    with pytest.raises(ArgumentError, match="takes the place of file="):
        diffode.solvers.trained.bespoke.Bespoke(table=solver.checkpoint, file="x")
    with pytest.raises(ArgumentError, match="table must be what training gave"):
        diffode.solvers.get("bespoke:table=x")
    field = diffode.exact_field("gauss2d", "vp")
    with pytest.warns(
        diffode.errors.TrainedElsewhereWarning, match="this table, trained on ring8, was trained on data of scale"
    ):
        diffode.solve(field, field.prior(2, generator=0), solver=solver, nfe=3)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("bespok", {}, "did you mean 'bespoke'"),
        ("bespoke:trajectry=1", {}, "did you mean 'trajectory'"),
        ("universal:member=1", {}, "universal does not take the option 'member'"),
        ("universal", {"steps": 3}, "statistics and steps go with chart=.gaussian."),
        ("gits", {"steps": 3}, "gits has no number of steps to choose: leave steps out"),
        ("dmn", {"points": 64}, "dmn has no number of points"),
        ("bespoke", {"steps": 0}, "steps must be an integer >= 1"),
        ("ld3", {"points": 2.5}, "points must be an integer"),
        ("ld3", {"steps": 0}, "steps must be an integer >= 1"),
        *(
            (name, {"points": few}, "points must be an integer >= 8, got")
            for name in ("bespoke", "conditioned")
            for few in (0, 1)
        ),
        ("amed:rate=fast", {}, "rate must be a number"),
        ("bespoke:begin_from=5", {}, "begin_from must be"),
        ("bespoke:groups=2", {}, r"groups must be integers >= 1 that sum to nfe=3, such as \(1, 2\).*got 2"),
        ("bespoke:groups=ab", {}, "groups must be integers >= 1.*got 'ab'"),
        ("bespoke:consistent=yes", {}, "consistent must be one of True, False, got 'yes'"),
        ("bespoke:trajectory=1e400", {}, "trajectory must be a number >= 0, got inf"),
        ("conditioned:patience=none", {"steps": 1}, "patience must be an integer >= 0, got None"),
        ("amed:per_step=2", {}, "per_step must be one of True, False, got 2"),
        ("amed:time_range=1", {}, r"time_range must be a number in \[0, 1\), got 1"),
        ("gits:discount=none", {}, r"discount must be a number in \[0\.001, 1000\), got None"),
        ("gits:discount=0", {}, r"discount must be a number in \[0\.001, 1000\), got 0"),
        ("gits:solver=0", {}, "solver must be a text, such as .euler., or a Solver, got 0"),
        ("dmn:power=fast", {}, "power must be a number, got 'fast'"),
        ("dmn:power=nan", {}, "power must be a number, got nan"),
        ("bespoke", {"seed": -1}, "seed must be an integer"),
        ("bespoke", {"progress": 3}, "progress must be a function"),
        ("bespoke", {"stop": 3}, "stop must be a function"),
        ("bespoke", {"path": "nowhere"}, "unknown path"),
        ("bespoke", {"dim": 7}, "dim must be .*, got 7; a row of this field has 2 coordinates"),
    ],
)
def test_wrong_requests_are_named(method, options, words):
    with pytest.raises((ArgumentError, UnknownNameError), match=words):
        train(method, "ring8", 3, **{"points": 16, **options} if "points" not in options and "dmn" not in method else options)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *((name, torch.no_grad) for name in ("conditioned:begin_from=ddim", "head:units=20", "ld3_decoupled")),
        *((name, torch.inference_mode) for name in ("jump", "amed")),
    ],
)
def test_a_training_takes_its_gradients_where_they_are_switched_off(name, setting):
    request = {"points": 32, "steps": 2}
    with setting():
        found = train(name, "bimodal1d", 3, **request)
    assert found.errors == train(name, "bimodal1d", 3, **request).errors
    field = diffode.exact_field("bimodal1d", "edm")
    assert not diffode.solve(field, field.prior(2, generator=0), **found.arguments).x.requires_grad


class Blunder(TypeError, ValueError, AttributeError, OverflowError):
    """An error of a user's own function, of every type that a wrong option may raise."""


#: Each method that calls a user's functions, with an option.
WITH_OPTIONS = {
    "bespoke": "begin_from=ddim", "conditioned": "begin_from=ddim", "head": "units=20", "amed": "order=2", "ld3": "solver=ddim",
    "ld3_decoupled": "solver=ddim", "search": "solver=ddim",
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_OPTIONS)
@pytest.mark.parametrize("which", ["progress", "stop"])
def test_an_error_of_a_users_own_function_comes_through_as_it_is(name, which):
    """No option is blamed for it, and it has no other cause."""
    raised = Blunder("mine")

    def own(*_):
        raise raised

    with pytest.raises(Blunder) as caught:
        train(f"{name}:{WITH_OPTIONS[name]}", "ring8", 3, **ASKED[name], **{which: own})
    assert caught.value is raised
    assert raised.__cause__ is None


def test_a_conditioned_table_shares_its_seconds_between_its_two_trainings(monkeypatch):
    """The table's own training has half of them, and a request to stop ends both."""
    given, original = [], methods.train_table

    def noting(*arguments, seconds, **options):
        given.append(seconds.seconds)
        return original(*arguments, seconds=seconds, **options)

    monkeypatch.setattr(published, "ATTEMPTS", 1)
    monkeypatch.setattr(methods, "train_table", noting)
    found = train("conditioned", "ring8", 3, points=32, seconds=1000.0, stop=lambda: True)
    assert given == [500.0]
    assert found.stopped_by == "request"
    assert found.history.steps == 1
