"""AMED learned: exact on Gaussians, below its host, honest about where it was trained."""

import math
import re

import pytest
import torch

import diffode
from diffode import Field, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FieldError, FileFormatError
from diffode.learned import load_amed, train_amed
from diffode.learned.conditional.live import LiveWriter

GRID = [80.0, 20.0, 5.0, 1.0, 0.2]


def gaussian(variances, sigma_max=80.0, sigma_min=0.2):
    target = diffode.GaussianMixture([1.0], torch.zeros(1, len(variances)), torch.tensor([variances], dtype=torch.float64))
    return diffode.exact_field(target, paths.get(f"edm:sigma_max={sigma_max},sigma_min={sigma_min}"))


def test_on_an_isotropic_gaussian_training_recovers_the_exact_inner_times():
    """One r a step makes AMED exact there; the four values solve a scalar equation each, which DPM-2 (r = 1/2) misses."""
    field = gaussian([1.0])
    options = {"analytic_first_step": False, "direction_range": 0.0, "rounds": 200, "points": 512, "rate": 0.02}
    solver = train_amed(field, 4, grid=GRID, **options).solver
    for k, exact in enumerate((0.433006, 0.431498, 0.401651, 0.326420)):
        z = torch.full((1, 1), math.sqrt(1 + GRID[k] ** 2), dtype=torch.float64)
        features = solver.features(LiveWriter(field, "noise", z, GRID[k]), 0, GRID[k])
        assert float(solver.predictor(features, (GRID[k], GRID[k + 1]))[0]) == pytest.approx(exact, abs=1e-3)


def test_two_variances_are_fitted_exactly_by_r_and_c():
    """(r, c) = (.377599, .996399) is the only pair exact for variances 1/4 and 2 from rho = 5 to 1."""
    field = gaussian([0.25, 2.0], 5.0, 1.0)
    # The pair has to serve every start, so the network is not to tell the starts apart.
    trained = train_amed(
        field, 1, grid=[5.0, 1.0], analytic_first_step=False, rounds=400, points=64, rate=3e-2,
        hook=lambda x, t: torch.ones(len(x), 1, dtype=torch.float64),
    )  # fmt: skip
    r, c, a = trained.solver.predictor(torch.ones(1, 1, dtype=torch.float64), (5.0 / field.scale, 1.0 / field.scale))
    assert float(r) == pytest.approx(0.377599, abs=1e-3)
    assert float(c) == pytest.approx(0.996399, abs=1e-3)
    assert float(a) == 1
    assert trained.history.error[-1] < 1e-6


@pytest.mark.parametrize(
    ("host", "base"),
    [
        pytest.param(None, "dpm:order=2", marks=pytest.mark.slow),
        pytest.param("euler", "ddim", marks=pytest.mark.slow),
        ("ipndm", "ipndm:order=3"),
    ],
)
def test_learned_amed_is_below_its_host_on_starts_it_has_not_seen(host, base):
    field = diffode.exact_field("ring8", "edm")
    x = field.path.prior((256, 2), generator=77)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-7).x
    solver = train_amed(field, 3, host=host, order=3 if host == "ipndm" else 2, rounds=80, points=512, rate=0.02).solver
    run = diffode.solve(field, x, solver=solver, grid=list(solver.times))
    assert run.nfe == solver.nfe == 5
    own = solvers.get(base, analytic_first_step=True).within(field.path, "karras", 5)
    errors = [float((end - exact).norm(dim=1).mean()) for end in (run.x, own.run(field, x))]
    assert errors[0] < 0.8 * errors[1]


def test_without_learning_it_is_its_host():
    """The predictor starts at r = 1/2 and c = a = 1."""
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    for host, order in ((None, 2), ("dpm", 2), ("euler", 2), ("ipndm", 3), ("dpmpp", 2)):
        trained = train_amed(field, 3, host=host, order=order, rounds=1, rate=0.0, points=8, analytic_first_step=False)
        expected = diffode.solve(field, x, solver=solvers.get("amed", host=host, order=order), grid="karras", steps=3).x
        torch.testing.assert_close(trained.solver.run(field, x)[-1], expected, rtol=1e-10, atol=1e-10)
        if host != "dpmpp":
            free = train_amed(field, 3, host=host, order=order, rounds=1, rate=0.0, points=8).solver
            own = solvers.get("amed", host=host, order=order, analytic_first_step=True).tableau(field.path, "karras", 3)
            torch.testing.assert_close(free.run(field, x)[-1], own.run(field, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("teacher", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_teacher_and_end_to_end_training(teacher):
    field = diffode.exact_field("bimodal1d", "vp")
    for per_step in (True, False):
        found = train_amed(field, 3, teacher=teacher, per_step=per_step, rounds=60, points=128, time_range=0.1)
        assert found.history.error[-1] < 0.7 * found.history.error[0]


def test_a_saved_amed_gives_the_same_run_and_spoilt_files_are_refused(tmp_path):
    field = diffode.exact_field("ring8", "edm")
    solver = train_amed(field, 2, rounds=5, points=32).solver
    file = tmp_path / "amed.safetensors"
    solver.save(file)
    x = field.prior(5, generator=0)
    expected = solver.run(field, x)[-1]
    torch.testing.assert_close(load_amed(file).run(field, x)[-1], expected, rtol=0, atol=0)
    named = solvers.get(f"amed_learned:file={file}")
    for how in ({}, {"nfe": 3}, {"grid": [80.0, 0.002]}, {"grid": "karras", "steps": 2}):
        torch.testing.assert_close(diffode.solve(field, x, solver=named, **how).x, expected, rtol=0, atol=0)
    with pytest.raises(BudgetError, match="trained for nfe=3 alone"):
        diffode.solve(field, x, solver=named, nfe=4)
    for cut in (0, 50, len(file.read_bytes()) - 3):
        (tmp_path / "cut").write_bytes(file.read_bytes()[:cut])
        with pytest.raises(FileFormatError):
            load_amed(tmp_path / "cut")
    state = dict(solver.predictor.state_dict())
    for name, spoilt in (("heads.bias", torch.full((3,), math.nan, dtype=torch.float64)), ("heads.weight", torch.zeros(3, 3))):
        broken = train_amed(field, 2, rounds=1, points=8).solver
        broken.predictor.load_state_dict(state)
        broken.predictor._modules["heads"]._parameters[name.split(".")[1]] = torch.nn.Parameter(spoilt, requires_grad=False)
        broken.save(tmp_path / "spoilt")
        with pytest.raises(FileFormatError):
            load_amed(tmp_path / "spoilt")


def test_it_says_what_it_can_not_do():
    field = diffode.exact_field("ring8", "edm")
    solver = train_amed(field, 2, rounds=1, points=8).solver
    with pytest.raises(ArgumentError, match="trained on the grid"):
        diffode.solve(field, field.prior(2, generator=0), solver=solver, grid="karras", steps=3)
    with pytest.raises(ArgumentError, match="host=dpmpp does not use"):
        train_amed(field, 2, host="dpmpp", rounds=1, points=8)
    with pytest.raises(ArgumentError, match="teacher must be"):
        train_amed(field, 2, teacher=0, rounds=1, points=8)
    for wrong in ({"rounds": 0}, {"rate": "fast"}, {"hook": 3}, {"seed": -1}, {"time_range": 1.0}, {"dim": 5}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
            train_amed(field, 2, **wrong)
    with pytest.raises(FieldError, match="no path"):
        train_amed(Field.from_velocity(lambda x, t: -x), 2, dim=1)
    with pytest.raises(ArgumentError, match="can't be saved"):
        train_amed(field, 2, rounds=1, points=8, hook=lambda x, t: x).save("x")


def test_it_refuses_another_path_and_another_dimension():
    field = diffode.exact_field("bimodal1d", "vp")
    solver = train_amed(field, 2, grid=[1.0, 0.3, 0.001], rounds=1, points=8).solver
    other = diffode.exact_field("bimodal1d", "vp:beta_max=5")
    with pytest.raises(ArgumentError, match="trained from noise level 152"):
        diffode.solve(other, other.prior(2, generator=0), solver=solver, grid=[1.0, 0.3, 0.001])
    plane = diffode.exact_field("ring8", "vp")
    with pytest.raises(ArgumentError, match="another number of dimensions"):
        diffode.solve(plane, plane.prior(2, generator=0), solver=solver, grid=[1.0, 0.3, 0.001])
    with pytest.raises(ArgumentError, match="sigma > 0 at the last"):
        train_amed(diffode.exact_field("bimodal1d", "edm"), 2, grid=[80.0, 1.0, 0.0], rounds=1, points=8)


def test_training_ends_with_its_seconds():
    field = diffode.exact_field("bimodal1d", "edm")
    short = train_amed(field, 2, points=64, batch=16, rounds=100_000, seconds=0.5)
    assert 1 <= len(short.history.error) < 100_000


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: LiveWriter(diffode.exact_field("ring8", "edm"), "denoised", torch.zeros(1, 2), 1.0, analytic=True),
            "written for the noise prediction",
            id="an analytic step of denoised points",
        ),
        pytest.param(
            lambda: train_amed(diffode.exact_field("ring8", "edm"), 2, seconds=None),
            "seconds must be a positive number",
            id="AMED without an end",
        ),
        pytest.param(lambda: train_amed(3, 4), "field must be a diffode field", id="a number to train AMED on"),
    ],
)
def test_what_amed_can_not_be_trained_on_is_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


def test_the_best_predictor_is_returned_and_not_the_last():
    """Steps so long that the loss grows tenfold: what is returned errs no more than the predictor before its training."""
    trained = train_amed("ring8", 2, points=64, batch=8, rounds=10, rate=0.5)
    assert trained.errors.after <= trained.errors.before
    assert trained.history.error[-1] > 10 * trained.history.error[0]
