"""Tableaux: the loop, dead states, exact propagation; and how runs fail."""

import re
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from solver_list import FAMILIES

import diffode
from diffode import Field, Tableau, paths, solvers, testing
from diffode.errors import ArgumentError, FieldError, NumericalError
from diffode.tableau import Row

EDM = paths.get("edm")


def dense_run(table, field, x):
    """The defining sums, with dense matrices and no dropping: an independent implementation of the loop."""
    a, b, _ = table.dense()
    states, evaluations = [x], []
    for i in range(1, len(table.rows)):
        j = i - 1
        used = bool((b[:, j] != 0).any())
        evaluations.append(getattr(field, table.prediction)(states[j], table.rows[j].time) if used else torch.zeros_like(x))
        states.append(sum(a[i, k] * states[k] for k in range(i)) + sum(b[i, k] * evaluations[k] for k in range(i)))
    return states[-1]


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("spec", FAMILIES)
def test_the_loop_computes_the_defining_sums(spec, path):
    field = diffode.exact_field("pinwheel", path)
    x = field.prior(8, generator=0)
    table = solvers.get(spec).tableau(field.path, "karras", 7)
    assert torch.allclose(table.run(field, x), dense_run(table, field, x), rtol=1e-11, atol=1e-12)


def test_states_are_dropped_when_no_row_needs_them():
    """Of Euler's forty states at most the current one, its successor and the evaluation are alive at once."""
    alive = weakref.WeakSet()

    def velocity(x, t):
        alive.add(x)
        assert len(alive) <= 2
        return -x

    field = Field.from_velocity(velocity, probe=False)
    grid = torch.linspace(1, 0, 41, dtype=torch.float64)
    diffode.solve(field, torch.ones(4, 2), solver="euler", grid=grid)


def test_the_start_is_never_written_to():
    field = diffode.exact_field("ring8", "vp")
    x = field.prior(4, generator=0)
    before = x.clone()
    for spec in FAMILIES:
        diffode.solve(field, x, solver=spec, grid="karras", steps=5)
    assert torch.equal(x, before)


def test_dtype_is_kept():
    field = diffode.exact_field("ring8", "vp")
    x = field.prior(4, generator=0, dtype=torch.float32)
    assert diffode.solve(field, x, solver="unipc", grid="karras", steps=5).x.dtype == torch.float32


def test_runs_are_differentiable():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0).requires_grad_(True)
    table = solvers.get("dpmpp:order=2").tableau(field.path, "karras", 6)
    assert torch.autograd.gradcheck(lambda y: table.run(field, y / 80), (x.detach().requires_grad_(True),), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("spec", FAMILIES)
def test_propagation_is_what_running_does_to_a_gaussian(spec, path):
    """A run on N(m, diag) is affine in each direction: its gain and offset are read off two starts."""
    eigenvalues = torch.tensor([4.0, 1.0, 0.01], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    field = diffode.exact_field(diffode.GaussianMixture([1.0], mean[None], eigenvalues[None]), path)
    table = solvers.get(spec).tableau(field.path, "karras", 8)
    zero, one = table.run(field, torch.stack([torch.zeros(3), torch.ones(3)]).to(torch.float64))
    gain = one - zero
    t = table.rows[0].time
    alpha, sigma = field.path.alpha(t), field.path.sigma(t)
    exact = table.propagate(mean, eigenvalues)
    assert torch.allclose(exact.gain, gain, rtol=1e-9)
    assert torch.allclose(exact.mean, zero + gain * alpha * mean, rtol=1e-9, atol=1e-11)
    assert torch.allclose(exact.variance, gain**2 * (alpha**2 * eigenvalues + sigma**2), rtol=1e-9)
    prior = table.propagate(mean, eigenvalues, start="prior")
    assert torch.allclose(prior.mean, zero, rtol=1e-9, atol=1e-11)
    assert torch.allclose(prior.variance, gain**2 * sigma**2, rtol=1e-9)


def test_propagation_counts_each_noise_draw_once():
    """x_1 = x_0/2 + xi, x_2 = x_1 + x_0 + 2 xi: the same draw twice, correlated with the state it made."""
    rows = (Row(1.0), Row(0.5, {0: 0.5}, {}, {0: 1.0}), Row(0.1, {1: 1.0, 0: 1.0}, {}, {0: 2.0}))
    table = Tableau("noise", rows, (0, 1, 2), paths.get("edm"))
    result = table.propagate(0.0, [3.0])
    assert float(result.variance) == pytest.approx(1.5**2 * 4.0 + 3.0**2)


def test_a_draw_may_have_a_factor_for_every_row():
    factors = torch.tensor([0.5, 2.0], dtype=torch.float64)
    rows = (Row(1.0), Row(0.5, {0: 1.0}, {}, {0: factors, 1: 3.0}), Row(0.1, {1: 1.0}, {}, {2: factors}))
    x, noise = torch.ones(2, 3, dtype=torch.float64), torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    field = Field.from_noise(lambda y, t: y, paths.get("edm"))
    noise = noise.double()
    end = Tableau("noise", rows, (0, 1, 2), paths.get("edm")).run(field, x, noise=noise)
    torch.testing.assert_close(end, x + factors[:, None] * (noise[0] + noise[2]) + 3 * noise[1])


def test_noise_of_a_wrong_shape_is_refused():
    table = Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {}, {0: 1.0})), (0, 1), paths.get("edm"))
    x = torch.zeros(2, 3)
    field = Field.from_noise(lambda y, t: y, paths.get("edm"))
    assert torch.equal(table.run(field, x, noise=torch.ones(1, 2, 3)), torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="noise must have shape"):
        table.run(field, x, noise=torch.ones(2, 3))


def test_propagation_at_a_hundred_thousand_eigenvalues_in_one_go():
    table = solvers.get("unipc:order=3").tableau(paths.get("vp"), "karras", 10)
    eigenvalues = torch.arange(1, 100001, dtype=torch.float64) ** -2
    result = table.propagate(0.0, eigenvalues)
    few = table.propagate(0.0, eigenvalues[:3])
    assert torch.equal(result.variance[:3], few.variance)


def test_a_table_must_be_lower_triangular_and_finite():
    with pytest.raises(ArgumentError, match="strictly lower triangular"):
        Tableau("noise", (Row(1.0), Row(0.5, {1: 1.0})), (0, 1))
    with pytest.raises(ArgumentError, match="non-finite coefficient"):
        Tableau("noise", (Row(1.0), Row(0.5, {0: float("inf")})), (0, 1))


def failing_field(row=1, after=0.4):
    """A velocity that becomes NaN in one row once t has fallen below a value."""

    def velocity(x, t):
        v = -x
        if t < after and len(x) > row:
            v = v.clone()
            v[row] = torch.nan
        return v

    return Field.from_velocity(velocity)


GRID = [1.0, 0.8, 0.6, 0.3, 0.1, 0.0]


def test_a_failed_row_is_named_and_the_others_are_untouched():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    solution = diffode.solve(failing_field(), x, solver="euler", grid=GRID, on_failure="return", keep="all")
    good = diffode.solve(Field.from_velocity(lambda x, t: -x), x, solver="euler", grid=GRID, keep="all")
    assert solution.status.tolist() == [0, 1, 0]
    assert not solution.success
    assert "row 1" in solution.message
    assert "t=0.3" in solution.message
    assert torch.isnan(solution.x[1]).all()
    assert torch.equal(solution.x[[0, 2]], good.x[[0, 2]])
    assert torch.equal(solution.states[:4], good.states[:4])
    assert solution.nfe == 5


def test_failure_raises_by_default_and_carries_the_solution():
    with pytest.raises(NumericalError, match="1 of 3 rows became non-finite") as caught:
        diffode.solve(failing_field(), torch.ones(3, 2), solver="ab:order=3", grid=GRID)
    assert caught.value.solution.status.tolist() == [0, 1, 0]


def test_overflow_is_not_success():
    field = Field.from_velocity(lambda x, t: -1e200 * x)
    with pytest.raises(NumericalError):
        diffode.solve(field, torch.ones(2, 2, dtype=torch.float64), solver="euler", grid=GRID)


def test_keep_all_gives_the_states_at_the_grid_times():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    solution = diffode.solve(field, x, solver="edm_heun", grid="karras", steps=4, keep="all")
    assert solution.states.shape == (5, 3, 2)
    assert torch.equal(solution.states[0], x)
    assert torch.equal(solution.states[-1], solution.x)


def test_progress_is_told_each_step():
    seen = []
    field = Field.from_velocity(lambda x, t: -x)
    diffode.solve(field, torch.ones(1, 1), solver="rk4", grid=GRID, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_an_empty_batch_is_an_empty_answer():
    field = diffode.exact_field("ring8", "edm")
    solution = diffode.solve(field, torch.zeros(0, 2), solver="dpmpp", nfe=5)
    assert solution.x.shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field": lambda x, t: x}, "wrap a callable"),
        ({"x": [[1.0]]}, "float32 or float64 tensor"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, "float32 or float64"),
        ({"x": torch.ones(2)}, "use x"),
        ({"x": torch.tensor([[1.0, float("nan")]])}, "non-finite values in row 0"),
        ({"grid": None}, "give grid="),
        ({"nfe": 1, "grid": [1.0, 0.5, 0.1]}, "costs 2 evaluations, more than nfe=1"),
        ({"steps": 5, "nfe": 5}, "not both"),
        ({"keep": "some"}, "keep must be"),
        ({"on_failure": "ignore"}, "on_failure must be"),
        ({"solver": 3}, "must be a text, such as"),
        ({"nfe": 0, "grid": None}, "nfe must be an integer >= 1"),
        ({"nfe": 100_001, "grid": None}, "nfe must be an integer >= 1 and <= 100000, got 100001"),
        ({"nfe": 10**30, "grid": None}, "nfe must be an integer >= 1 and <= 100000"),
        ({"nfe": 10**30, "grid": None, "solver": "dpm_fast"}, "nfe must be an integer >= 1 and <= 100000"),
    ],
)
def test_wrong_arguments_of_solve_are_named(arguments, message):
    given = {
        "field": diffode.exact_field("ring8", "edm"),
        "x": torch.ones(2, 2),
        "solver": "euler",
        "grid": [1.0, 0.5],
        **arguments,
    }
    field, x = given.pop("field"), given.pop("x")
    with pytest.raises(ArgumentError, match=message):
        diffode.solve(field, x, **given)


def test_the_row_that_fails_first_is_the_one_named():
    def velocity(x, t):
        v = (-x).clone()
        if t < 0.7 and len(x) > 2:
            v[2] = torch.nan
        if t < 0.4 and len(x) > 2:
            v[0] = torch.nan
        return v

    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    solution = diffode.solve(Field.from_velocity(velocity), x, solver="euler", grid=GRID, on_failure="return")
    assert solution.status.tolist() == [1, 0, 1]
    assert "row 2 first, in the step from t=0.6" in solution.message


def test_an_answer_of_another_dtype_is_noticed_in_every_run():
    field = Field.from_velocity(lambda x, t: -x.double())
    diffode.solve(field, torch.tensor([[1.0], [2.0]], dtype=torch.float64), solver="euler", grid=GRID)
    with pytest.raises(FieldError, match="shape and dtype of its x"):
        diffode.solve(field, torch.tensor([[1.0], [2.0]]), solver="euler", grid=GRID)


@given(testing.solvers(), testing.fields(max_dim=3, max_modes=3), testing.seeds(), st.integers(2, 4))
def test_any_run_is_the_defining_sums(solver, field, seed, steps):
    table = solver.tableau(field.path, testing.random_times(seed, field.path, steps))
    x = field.prior(3, generator=seed % 2**31)
    expected = dense_run(table, field, x)
    size = float(x.abs().max()) + float(expected.abs().max())
    torch.testing.assert_close(table.run(field, x) / size, expected / size, rtol=0, atol=1e-11)


@given(testing.solvers(), testing.fields(max_dim=3, max_modes=3), testing.seeds(), st.integers(2, 4))
def test_a_table_that_is_driven_from_outside_makes_the_same_run(solver, field, seed, steps):
    """Who evaluates is another's affair: the table asks for one evaluation after the other, and returns the end."""
    table = solver.tableau(field.path, testing.random_times(seed, field.path, steps))
    x = field.prior(3, generator=seed % 2**31)
    run = table.driven(x)
    asked, (row, state), end = [], next(run), None
    while end is None:
        asked.append(row)
        try:
            row, state = run.send(field.predict(table.prediction, state, table.rows[row].time))
        except StopIteration as finished:
            end = finished.value
    assert asked == list(table.evaluated)
    assert torch.equal(end, table.run(field, x))


def test_a_table_in_scores_carries_a_gaussian_as_one_in_noises_does():
    times = [80.0, 5.0, 1.0, 0.1]
    noise = solvers.get("ddim").tableau(EDM, times)
    # eps = -sigma s.
    rows = [
        Row(r.time, r.states, {j: -b * EDM.sigma(noise.rows[j].time) for j, b in r.evaluations.items()}) for r in noise.rows
    ]
    score = Tableau("score", tuple(rows), noise.outputs, EDM)
    mean, variance = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.2, 2.0]).double()
    one, two = (t.propagate(mean, variance) for t in (noise, score))
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.variance, two.variance, rtol=1e-12, atol=1e-12)


def test_a_row_that_uses_a_later_row_is_refused():
    from diffode.tableau import Row, Tableau

    rows = (Row(1.0), Row(0.5, {0: 1.0, 2: 1.0}), Row(0.1, {0: 1.0}))
    with pytest.raises(diffode.errors.ArgumentError, match="row 1 uses row 2"):
        Tableau("noise", rows, (0, 2))


def two_rows(**options):
    rows = (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5}))
    return Tableau(**({"prediction": "noise", "rows": rows, "outputs": (0, 1), "path": EDM} | options))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: two_rows().propagate("x", torch.ones(2)), "mean must be a number", id="moments that are no numbers"
        ),
        pytest.param(
            lambda: two_rows().propagate(0.0, object()), "eigenvalues must be numbers", id="variances that are no numbers"
        ),
        pytest.param(lambda: two_rows().propagate(0.0, [-1.0]), "they are variances, got [-1.0]", id="variances below zero"),
        pytest.param(
            lambda: two_rows().propagate(torch.zeros(3), torch.ones(2)), "shape of eigenvalues", id="moments that do not fit"
        ),
        pytest.param(
            lambda: two_rows().propagate(float("nan"), torch.ones(2)), "mean must be finite", id="moments that are not finite"
        ),
        pytest.param(
            lambda: (
                solvers.get("ddim:eta=1")
                .tableau(EDM, [80.0, 2.0, 1.0])
                .run(diffode.exact_field("ring8", "edm"), torch.zeros(2, 2, dtype=torch.float64))
            ),
            "noise draws; pass noise=",
            id="noise that is not given",
        ),
        pytest.param(
            lambda: two_rows(path=None).analytic_first_step(),
            "analytic_first_step needs a path",
            id="an analytic step without a path",
        ),
    ],
)
def test_moments_noise_and_steps_that_do_not_fit_a_table_are_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: diffode.solve(
                diffode.exact_field("ring8", "edm"),
                diffode.exact_field("ring8", "edm").prior(2, generator=0),
                solver="ddim",
                nfe=4,
                progress=3,
            ),
            "progress must be a function",
            id="progress that is no function",
        ),
    ],
)
def test_progress_is_a_function(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
