"""Trained samplers: Gauss-Newton, what training promises, and what it refuses."""

import math
import re

import pytest
import torch

import diffode
from diffode import Field, learned, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FieldError, NumericalError
from diffode.learned import MAP_METHODS, limit, train_gaussian, train_table
from diffode.learned.fitting.gauss_newton import Problem, fit
from diffode.learned.fitting.parameters import Levels, Table, to_shares
from diffode.learned.fitting.problems import problem_for
from diffode.learned.limit import Limit
from diffode.learned.methods import METHODS
from diffode.learned.tables import published, training
from diffode.randomness import keyed
from diffode.tableau.stages import Stages

EDM = paths.get("edm")


def gaussian_problem(variance=0.7, dim=1):
    """A Gaussian without sampling: one start of one standard deviation, followed exactly."""

    def noise(z, rho):
        return z * rho / (variance + rho**2)

    start = torch.full((1, dim), math.sqrt(variance + 25.0), dtype=torch.float64)
    end = torch.full((1, dim), math.sqrt(variance + 0.01), dtype=torch.float64)
    return Problem(noise, start, end, 1.0, 5.0, 0.1)


def test_a_gaussian_is_learned_exactly():
    """The affine flow of one Gaussian is in the family: training reaches rounding."""
    problem = gaussian_problem()
    edm = paths.get("edm:sigma_max=5,sigma_min=0.1")
    origin = Stages.of(solvers.get("ddim").tableau(edm, "karras", 2))
    found = fit(Table(origin), [problem], [problem])
    assert found.training[0] > 1e-2
    assert min(found.held_out) < 1e-13


def test_two_gaussian_directions_by_levels_alone_match_a_direct_search():
    """One inner level is free: its optimum is found by golden-section search on the same loss."""
    from scipy.optimize import minimize_scalar

    problems = [gaussian_problem(v) for v in (0.05, 1.0)]

    def write(levels):
        return Stages.of(solvers.get("ddim").tableau(EDM, levels))

    levels = Levels(torch.tensor([5.0, 1.0, 0.1], dtype=torch.float64), write)
    found = fit(levels, problems, problems)

    def loss(log_level):
        own = to_shares(torch.tensor([5.0, math.exp(log_level), 0.1], dtype=torch.float64))
        return sum(p.error(levels.stages(own, 5.0, 0.1)) for p in problems) / 2

    direct = minimize_scalar(loss, bounds=(math.log(0.15), math.log(4.5)), method="bounded", options={"xatol": 1e-10})
    assert min(found.held_out) == pytest.approx(direct.fun, rel=1e-6)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: (x, None), "must return a tensor, got tuple$"),
        (lambda x: x.numpy(force=True), "must return a tensor, got ndarray$"),
        (lambda x: x[:, :1], r"returned shape \(2, 1\) for x of shape \(2, 2\)"),
        (lambda x: x.detach(), "can't be differentiated"),
    ],
)  # fmt: skip
def test_a_field_that_answers_wrongly_is_told_what_it_returned(answer, words):
    field = Field.from_noise(lambda x, t: answer(x), EDM, probe=False)
    with pytest.raises(FieldError, match=words):
        train_table(field, 3, dim=2, points=16)


def test_training_stops_when_held_out_starts_no_longer_gain():
    """Held out is a Gaussian of quite another variance, for which every step is a step away."""
    problem, other = gaussian_problem(0.01, 1), gaussian_problem(40.0, 1)
    origin = Table(Stages.of(solvers.get("ddim").tableau(EDM, [5.0, 2.0, 1.0, 0.5, 0.1])))
    found = fit(origin, [gaussian_problem(0.02), problem, gaussian_problem(0.3)], [other], patience=3)
    after = len(found.held_out) - 1 - found.held_out.index(min(found.held_out))
    assert after <= 4


def test_training_does_not_begin_a_step_that_the_time_is_too_short_for(monkeypatch):
    """A clock that stands still but for the steps, which take 1 second, then 3, then 1."""
    now = [0.0]
    monkeypatch.setattr(limit.time, "perf_counter", lambda: now[0])
    table = Table(Stages.of(solvers.get("ddim").tableau(EDM, [5.0, 2.0, 1.0, 0.5, 0.1])))
    problems = [gaussian_problem(0.02)]

    def pass_time(step):
        now[0] += {2: 3.0}.get(step.number, 1.0)

    # After the third step 5 seconds are gone, and another may take 3.
    found = fit(table, problems, problems, steps=7, limit=Limit(7.5), progress=pass_time)
    assert len(found.training) == 1 + 3
    assert found.stopped_by == "seconds"
    whole = fit(table, problems, problems, steps=3, limit=Limit(7.5))
    assert (len(whole.training), whole.stopped_by) == (1 + 3, "counts")


def test_training_beats_every_published_start_on_starts_it_has_not_seen():
    trained = train_table("ring8", 6, points=1024, seed=3)
    checkpoint = trained.content
    # 3.8 times smaller: it begins from the member of the codebook that is best on these starts.
    assert checkpoint.held_out_error < checkpoint.start_error / 3
    field = diffode.exact_field("ring8", "edm")
    x = EDM.prior((300, 2), generator=99)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    table = checkpoint.stages.scaled(checkpoint.scale).tableau(EDM)
    error = float((table.run(field, x) - exact).norm(dim=1).mean()) / field.scale
    assert error == pytest.approx(checkpoint.held_out_error, rel=0.5)
    # The history is that of mean errors of the end on either side; it ends at, or passes, what is returned.
    assert min(trained.history.held_out) == pytest.approx(checkpoint.held_out_error, rel=0.2)
    # 1,024 starts are few for 32 numbers: on themselves the error is 0.6 times that on others.
    assert min(trained.history.error) == trained.history.error[-1] < checkpoint.held_out_error


def test_a_history_counts_ends_alone_and_candidates_that_overflow_are_passed_over(monkeypatch):
    """The first of three candidates can't be trained from; the others are."""
    original, called = training.fit, []

    def failing(table, problems, held_out, **options):
        called.append(options["start"])
        if len(called) in (1, 4):
            raise NumericalError("training can't begin")
        return original(table, problems, held_out, **options)

    monkeypatch.setattr(training, "fit", failing)
    monkeypatch.setattr(published, "ATTEMPTS", 3)
    trained = train_table("ring8", 4, points=256)
    assert len(called) == 5
    stages = trained.content.stages
    field = diffode.exact_field("ring8", "edm")
    problem = problem_for(field, EDM, (2,), 256, keyed(0, "train_table", "training"))
    assert min(trained.history.error) <= problem.error(stages) < trained.history.error[0]
    assert trained.history.error[0] < trained.content.start_error
    monkeypatch.setattr(training, "fit", lambda *a, **k: failing_always())
    with pytest.raises(NumericalError, match="every published sampler overflows on ring8"):
        train_table("ring8", 4, points=64)


def failing_always():
    raise NumericalError("training can't begin")


def test_a_table_trained_on_a_spectrum_has_the_error_that_propagation_finds():
    """Eight directions and five evaluations: no table is exact, and a published one is far off."""
    spectrum = torch.arange(1, 9, dtype=torch.float64) ** -2
    trained = train_gaussian(spectrum, 5, path="vp", start="ddim @ log_snr")
    checkpoint = trained.content
    assert checkpoint.held_out_error < checkpoint.start_error / 1000
    law = checkpoint.stages.scaled(checkpoint.scale).tableau(paths.get("vp")).propagate(0.0, spectrum)
    path = paths.get("vp")
    deviation = [(path.alpha(t) ** 2 * spectrum + path.sigma(t) ** 2).sqrt() for t in (path.t_max, path.t_min)]
    found = float((law.gain.abs() * deviation[0] - deviation[1]).abs().mean())
    assert found / path.alpha(path.t_min) / checkpoint.scale == pytest.approx(checkpoint.held_out_error, rel=1e-6)
    for wrong in ([], [-1.0], [[1.0]], "abc"):
        with pytest.raises(ArgumentError, match="eigenvalues must be"):
            train_gaussian(wrong, 4)


def test_training_on_another_path_and_an_own_field():
    exact = diffode.exact_field("bimodal1d", "rectified_flow")
    field = Field.from_velocity(exact.velocity, exact.path, scale=exact.scale)
    trained = train_table(field, 4, dim=1, points=64, start="ddim @ log_snr")
    assert trained.content.held_out_error < trained.content.start_error / 2
    with pytest.raises(ArgumentError, match="dim is needed"):
        train_table(field, 4)


def test_what_can_not_be_trained_is_said():
    blind = Field.from_noise(lambda x, t: torch.from_numpy(x.detach().numpy() * 0.1), EDM)
    with pytest.raises(FieldError, match="can't be differentiated"):
        train_table(blind, 3, dim=1, points=8)
    with pytest.raises(ArgumentError, match="points must be"):
        train_table("ring8", 3, points=2)
    with pytest.raises(ArgumentError, match="seconds must be"):
        train_table("ring8", 3, seconds=0)
    with pytest.raises(ArgumentError, match="nfe must be"):
        train_table("ring8", 0)
    with pytest.raises(BudgetError, match="no run of exactly 3"):
        train_table("ring8", 3, start="edm_heun @ karras", points=8)
    with pytest.raises(NumericalError, match="can't begin"):
        fit(Table(Stages.of(solvers.get("ddim").tableau(EDM, "karras", 2))), [explosive()], [explosive()])


def explosive():
    return Problem(lambda z, rho: z * 1e300, torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1), 1.0, 80.0, 0.002)


@pytest.mark.parametrize("view", ["denoised", "noise", "score"])
def test_a_field_without_gradients_is_refused_whatever_view_it_gives(view):
    exact = diffode.exact_field("bimodal1d", "edm")
    blind = getattr(Field, f"from_{view}")(torch.no_grad()(getattr(exact, view)), EDM, scale=exact.scale)
    with pytest.raises(FieldError, match="can't be differentiated"):
        train_table(blind, 3, dim=1, points=8)
    with pytest.raises(FieldError, match="can't be differentiated"):
        diffode.learned.train_amed(blind, 2, dim=1, points=8, rounds=1)


def test_a_start_without_a_grid_is_taken_on_karras():
    trained = train_table("bimodal1d", 3, start="ddim", points=64, seconds=1)
    assert trained.content.begun_from == "ddim @ karras"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: train_gaussian([1.0], 4, seconds="x"), "seconds must be a positive number", id="seconds that are no number"
        ),
        pytest.param(lambda: train_gaussian([1.0], 4, seed="a"), "seed must be an integer", id="a seed that is no number"),
        pytest.param(
            lambda: train_gaussian([1.0], 4, path="rectified_flow:t_max=1"),
            "t_max and t_min",
            id="a Gaussian from a path's infinite end",
        ),
        pytest.param(
            lambda: train_table("ring8", 4, path="rectified_flow:t_max=1"),
            "choose t_max and t_min inside",
            id="training from a path's infinite end",
        ),
    ],
)
def test_training_within_no_time_or_from_no_finite_level_is_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_users_function_does_wrong_is_named_by_every_training(method):
    """Weights of float32, and an answer of another shape."""
    network = torch.nn.Linear(2, 2)
    row = MAP_METHODS.get(method)
    nfe = 1 if method == "nodes" or (row and (row.one_jump or row.defaults["fixed_end"])) else 4
    for function, words in ((lambda x, t: network(x), "wrap a float32 network as"), (lambda x, t: x[:, :1], "they must match")):
        with pytest.raises(FieldError, match=words):
            learned.train(method, Field.from_noise(function, EDM), nfe, dim=2, seconds=1)


@pytest.mark.parametrize(("method", "nfe"), [("amed", 4), ("sid", 1)])
def test_a_training_with_a_time_for_every_row_asks_whether_the_field_takes_them(method, nfe):
    with pytest.raises(FieldError, match="a time for every row"):
        learned.train(method, Field.from_noise(lambda x, t: x * t / (1 + t * t), EDM), nfe, dim=2)
