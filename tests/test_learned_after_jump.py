"""Grids after a jump and in charts of the data's Gaussian: their first level is free, their files run anywhere."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import diffode
from diffode import Field, Statistics, paths, solvers
from diffode.cli import train_command
from diffode.errors import ArgumentError, BudgetError, FileFormatError
from diffode.grid_files import load_grid
from diffode.learned import gits, ld3, load, train, train_grid
from diffode.learned.fitting.problems import problem_for
from diffode.learned.grids.informed import InformedLevels, covering
from diffode.randomness import keyed

EDM = paths.get("edm")
ANGLE = "ab:order=2,chart=gaussian_angle"


@pytest.fixture(scope="module")
def spiral():
    return train_grid("ld3", "spiral", 3, solver="ipndm:order=3", jump="auto", points=128, rounds=25)


def levels_of(solver, steps, target="moons", count=48):
    known, field = Statistics.of_target(target), diffode.exact_field(target, "edm")
    free = InformedLevels(known, field, EDM, steps, solvers.informed(solver, known))
    return free, problem_for(field, EDM, field.dim, count, keyed(1, "levels"))


def test_it_is_better_than_what_it_began_from_on_starts_that_it_has_not_seen(spiral):
    field = diffode.exact_field("spiral", "edm")
    x = field.path.prior((300, 2), generator=11)
    exact = diffode.reference(field, x, 80.0, 0.002).x
    run = diffode.solve(field, x, **spiral.arguments)
    error, asked = (
        float((end - exact).norm(dim=1).mean()) / field.scale
        for end in (run.x, diffode.solve(field, x, solver="ipndm:order=3,jump=auto", nfe=3).x)
    )
    assert run.nfe == spiral.nfe == 3
    assert error < 0.7 * asked
    assert error == pytest.approx(spiral.errors.after, rel=0.3)
    assert spiral.facts.begun_from == "ipndm:jump=auto,order=3 @ karras:rho=3"


def test_the_field_is_first_asked_at_the_level_to_which_the_run_jumps(spiral):
    asked = []
    field = diffode.exact_field("spiral", "edm")

    def noise(x, t):
        asked.append(float(t))
        return field.noise(x, t)

    told = Field.from_noise(noise, "edm", scale=field.statistics)
    table = spiral.solver.tableau(EDM, spiral.grid)
    table.run(told, field.path.prior((3, 2), generator=0))
    assert asked == pytest.approx(spiral.grid[1:-1].tolist(), rel=1e-12)
    assert asked[0] < 10 * field.scale


@pytest.mark.parametrize("solver", ["ddim", "ipndm:order=3", ANGLE, "unipc:order=2,chart=gaussian"])
def test_one_gaussian_is_exact_with_one_evaluation(solver):
    found = train_grid("ld3", "gauss2d", 1, solver=solver, jump="auto", points=32, rounds=2)
    assert len(found.grid) == 3
    field = diffode.exact_field("gauss2d", "edm")
    x = field.prior(20, generator=0)
    run = diffode.solve(field, x, **found.arguments)
    assert run.nfe == 1
    assert found.errors.after < 1e-11
    assert float((run.x - diffode.reference(field, x, 80.0, 0.002, 1e-12).x).abs().max()) < 1e-10


@pytest.mark.parametrize(
    ("solver", "steps", "free"),
    [("ipndm:order=3,jump=2", 3, 3), (f"{ANGLE},jump=2", 2, 2), (ANGLE, 3, 2), ("dpmpp:order=2,jump=1", 1, 1)],
)
def test_the_gradient_of_every_level_is_that_of_differences_of_the_error(solver, steps, free):
    """Of the mean error itself, not of the ends, and with a step ten times as long."""
    levels, problem = levels_of(solver, steps)
    values = levels.own("karras:rho=3")
    assert len(values) == free
    gradient, curvature = levels.equations(values, problem)
    assert bool((torch.linalg.eigvalsh(curvature) > 0).all())
    for k in range(free):
        shift = torch.zeros_like(values)
        shift[k] = 1e-4
        up, down = (levels.error(values + sign * shift, problem) for sign in (1, -1))
        # The shortest errors count as 2 % of the median, which changes the gradient of the mean by less than this.
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-4, rel=2e-3, abs=1e-7)


def test_the_free_numbers_of_a_grid_give_its_table_back():
    levels, _ = levels_of("ipndm:order=2,jump=3", 4)
    table = levels.table(levels.own("karras:rho=3"))
    own = levels.solver.tableau(EDM, "karras:rho=3", 4)
    torch.testing.assert_close(table.output_times, own.output_times, rtol=1e-12, atol=0)
    x = EDM.prior((4, 2), generator=0)
    torch.testing.assert_close(table.run(levels.field, x), own.run(levels.field, x), rtol=1e-11, atol=1e-11)


def test_levels_that_no_run_can_have_are_infinitely_bad():
    levels, problem = levels_of("ipndm:order=2,jump=3", 2)
    assert levels.error(torch.tensor([-800.0, 0.0], dtype=torch.float64), problem) == float("inf")
    assert levels.error(torch.tensor([60.0, 0.0], dtype=torch.float64), problem) == float("inf")


def test_a_written_jump_covers_its_level_and_no_more_than_the_path():
    known = Statistics.of_target("moons")
    for level in (1e-3, 0.33333, 1.0, 7.7, 79.99999):
        jump = covering(level, 80.0, known)
        assert level <= jump * known.largest < 80.0
        assert jump * known.largest < level * 1.01


def test_a_chart_without_a_jump_has_its_inner_levels_trained():
    found = train_grid("ld3", "spiral", 3, solver=ANGLE, points=64, rounds=15)
    assert (found.nfe, len(found.grid), float(found.grid[0])) == (3, 4, 80.0)
    assert found.errors.after < 0.9 * found.errors.before


def test_search_sees_the_grids_to_begin_from_and_gits_lays_the_jump_as_its_first_step():
    searched = train_grid("search", "ring8", 2, solver="ipndm", jump="auto", points=48, stop=_after(60))
    assert searched.errors.after < searched.errors.before
    assert searched.stopped_by == "request"
    laid = gits("ring8", 3, points=32, statistics=Statistics.of_target("ring8"))
    fine = diffode.grids.get("karras:rho=7", EDM, 60)
    assert len(laid) == 5
    assert all(bool(((fine - t).abs() < 1e-9 * fine).any()) for t in laid)
    # The grid as it was asked for, and the best others, are kept where they are better.
    trained = train_grid("gits", "ring8", 3, solver=ANGLE, jump="auto", points=32)
    assert len(trained.grid) == 5
    assert trained.errors.after <= 1.1 * trained.errors.before


def _after(calls):
    """A request to stop at the so-manieth run."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_gits_jumps_over_all_of_a_gaussian_and_its_first_step_is_no_euler_step():
    """Of a Gaussian's own flow the first step to any point costs what Euler's does not: about nothing."""
    known = Statistics.of_target("gauss2d")
    with_jump, without = gits("gauss2d", 2, statistics=known, points=16), gits("gauss2d", 3, points=16)
    assert len(with_jump) == len(without) == 4
    assert float(with_jump[1]) < float(without[1]) / 2


def test_a_file_gives_the_same_run_to_the_last_bit_and_runs_by_its_name(spiral, tmp_path):
    file = tmp_path / "grid.safetensors"
    spiral.save(file)
    field = diffode.exact_field("spiral", "edm")
    x = field.path.prior((20, 2), generator=2)
    expected = diffode.solve(field, x, **spiral.arguments).x
    read = load(file)
    assert (read.nfe, read.errors, read.solver.spec) == (3, spiral.errors, spiral.solver.spec)
    assert read.solver.content() == spiral.solver.content()
    assert torch.equal(diffode.solve(field, x, **read.arguments).x, expected)
    named = {"solver": spiral.solver.spec, "grid": f"trained:file={file}"}
    for how in ({"nfe": 3}, {"steps": 3}):
        assert torch.equal(diffode.solve(field, x, **named, **how).x, expected)
    # A network without statistics of its own takes those of the file.
    alone = Field.from_noise(field.noise, "edm", scale=field.scale)
    assert torch.equal(diffode.solve(alone, x, **read.arguments).x, expected)
    for wrong in ({"nfe": 4}, {"steps": 2}):
        with pytest.raises(BudgetError, match="makes 3 evaluations"):
            diffode.solve(field, x, **named, **wrong)
    with pytest.raises(BudgetError, match="with its solver and its jump"):
        diffode.solve(field, x, solver="ipndm:order=3,jump=0.1", grid=named["grid"], nfe=3)


def test_files_with_wrong_statistics_are_refused(spiral, tmp_path):
    broken = replace(spiral.content, solver="ipndm:order=3")
    broken.save(tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").nfe == 4
    object.__setattr__(broken, "statistics", None)
    broken.save(tmp_path / "b.safetensors")
    assert load_grid(tmp_path / "b.safetensors").statistics is None
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(data.replace(b"statistics_variances", b"statistics_variancez"))
    with pytest.raises(FileFormatError):
        load(tmp_path / "c.safetensors")


def test_wrong_arguments_name_the_fix(spiral):
    unknown = Field.from_denoised(diffode.exact_field("ring8", "edm").denoised, "edm", scale=1.0)
    three = Statistics.of_covariance(torch.zeros(3), torch.eye(3))
    for method, field, steps, options, said in (
        ("dmn", "ring8", 3, {"jump": "auto"}, "dmn lays no grid for"),
        ("gits", "ring8", 3, {"solver": ANGLE}, "gits lays one for a solver that jumps"),
        ("ld3", "ring8", 3, {"statistics": "scale"}, "give jump=auto"),
        ("ld3", "ring8", 3, {"jump": "far"}, "jump must be"),
        ("ld3", "ring8", 3, {"jump": 900.0}, "give a jump in"),
        ("ld3", "ring8", 3, {"jump": "auto", "statistics": three}, "3 coordinates"),
        ("ld3", "ring8", 3, {"jump": "auto", "statistics": "odd"}, "statistics must be one of"),
        ("ld3", "ring8", 3, {"jump": "auto", "statistics": Statistics.of_target("ring8").scaled(9.0)}, "another unit"),
        ("ld3", "ring8", 3, {"jump": "auto", "teacher": 3}, "does not take the option 'teacher'"),
        ("ld3", "ring8", 0, {"jump": "auto"}, "steps must be"),
        ("ld3", "ring8", 1, {"solver": ANGLE}, "nothing to train"),
        ("ld3", "ring8", 3, {"solver": "heun:chart=gaussian", "jump": 1}, "a step for each evaluation"),
        ("ld3", "ring8", 3, {"solver": "universal:chart=gaussian"}, "lays its own levels"),
        ("ld3", unknown, 3, {"jump": "auto", "dim": 2}, "has to know mean and covariance"),
    ):
        with pytest.raises(ArgumentError, match=said):
            train_grid(method, field, steps, **options)
    with pytest.raises(ArgumentError, match="train_grid trains such grids"):
        ld3("ring8", 3, solver="ipndm:jump=auto")
    with pytest.raises(ArgumentError, match="2 coordinates, but rows have 3"):
        diffode.solve(Field.from_denoised(lambda x, t: x, "edm"), torch.ones(1, 3).double(), **spiral.arguments)


def test_by_name_and_from_the_command_line(tmp_path, monkeypatch):
    found = train("ld3:solver=ipndm,jump=auto,statistics=scale", "spiral", 1, points=32, steps=4)
    assert found.content.statistics.kind == "scale"
    monkeypatch.chdir(tmp_path)
    asked = ["ld3:solver='ipndm:order=2,jump=auto'", "--target", "ring8", "--nfe", "2", "--points", "32", "--steps", "4"]
    done = CliRunner().invoke(train_command.command, [*asked, "--output", "g.safetensors", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    assert facts["nfe"] == 2
    assert len(facts["grid"].split()) == 4
    field = diffode.exact_field("ring8", "edm")
    run = diffode.solve(field, field.prior(2, generator=0), solver=facts["solver"], grid=facts["file"], nfe=2)
    assert run.nfe == 2


def test_statistics_of_other_data_do_not_run():
    """A trained grid holds those of its training."""
    found = train_grid("ld3", "ring8", 1, solver="ipndm", jump="auto", points=32, rounds=1)
    moons = diffode.exact_field("moons", "edm")
    x = moons.prior(3, generator=0)
    with pytest.raises(
        ArgumentError, match=r"statistics have the scale 3.5.*, but the field's data 0.7.*: they are of other data"
    ):
        diffode.solve(moons, x, **found.arguments)


def test_two_jumps_are_one_too_many():
    with pytest.raises(ArgumentError, match=r"jump='auto' and solver 'ipndm:jump=0.3' say two things"):
        train_grid("ld3", "ring8", 2, solver="ipndm:jump=0.3", jump="auto")


@pytest.mark.parametrize("options", [{"jump": "auto"}, {}])
def test_no_grid_is_trained_for_a_solver_that_draws_noise(options):
    with pytest.raises(ArgumentError, match="draws noise: a grid is trained for a deterministic one"):
        train_grid("ld3", "ring8", 4, solver="dpmpp_2m_sde", **options)
