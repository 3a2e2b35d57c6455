"""The jump of a run along the data's Gaussian: exact on Gaussians, its error elsewhere, its level, its table in other loops."""

import itertools
import math

import pytest
import torch
from solver_list import DIRECT, FAMILIES, STOCHASTIC

import diffode
from diffode import Field, Statistics, Tableau, fields, solvers
from diffode.errors import ArgumentError, BudgetError, CapabilityError, FieldError
from diffode.solvers import informed
from diffode.solvers.jumped import automatic
from diffode.tableau import Row

#: Arguments of each kind of statistics for the rows of digits-gmm10.
KINDS = {
    "scale": {},
    "diagonal": {},
    "low_rank": {"rank": 5},
    "full": {},
    "cosine": {"shape": (8, 8)},
    "fourier": {"shape": (8, 8)},
}


def with_jump(spec, jump):
    return f"{spec}{',' if ':' in spec else ':'}jump={jump}"


def dense_run(table, field, x):
    """The defining sums of a table with statistics, by dense matrices f(C): an independent implementation of the loop."""
    known = table.statistics
    unit = torch.eye(known.dim, dtype=torch.float64)

    def applied(coefficient, vector):
        if not isinstance(coefficient, torch.Tensor):
            return coefficient * vector
        return vector @ known.basis.back(known.basis.into(unit) * known.basis.spread(coefficient))

    states, evaluations = [x], {}
    for row in table.rows[1:]:
        for j in row.evaluations:
            if j not in evaluations:
                evaluations[j] = field.predict(table.prediction, states[j], table.rows[j].time)
        total = applied(row.mean, known.mean.expand_as(x))
        total = total + sum(applied(a, states[j]) for j, a in row.states.items())
        states.append(total + sum(applied(b, evaluations[j]) for j, b in row.evaluations.items()))
    return states[-1]


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow", "rectified_flow:t_max=1"])
@pytest.mark.parametrize("target", ["gauss1d", "gauss2d", "gauss64-powerlaw"])
def test_a_gaussian_is_exact_at_every_budget(target, path):
    field = diffode.exact_field(target, path)
    x = field.prior(5, generator=0)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min).x
    for nfe in (1, 2, 7):
        run = diffode.solve(field, x, solver="ipndm:order=3,jump=auto", nfe=nfe)
        assert float((run.x - exact).abs().max()) < 1e-13 * max(1.0, float(x.abs().max()))
        assert run.nfe <= nfe


@pytest.mark.parametrize("path", ["edm", "vp"])
def test_the_jump_alone_is_the_gaussians_flow_and_costs_nothing(path):
    field = diffode.exact_field("gauss2d", path)
    x = field.prior(5, generator=0)
    run = diffode.solve(field, x, solver="heun:chart=noise,jump=2", nfe=4, keep="all", grid="karras:rho=3")
    level = field.path.time_from_rho(2 * field.statistics.largest)
    assert float(run.times[1]) == pytest.approx(level)
    exact = diffode.reference(field, x, field.path.t_max, level).x
    assert torch.allclose(run.states[1], exact, rtol=0, atol=1e-13 * float(x.abs().max()))
    assert run.nfe == 4
    assert len(run.times) == 4
    # From there on it is the solver's own run.
    after = diffode.solve(field, run.states[1], solver="heun:chart=noise", nfe=4, grid="karras:rho=3",
                          between=(float(run.times[1]), field.path.t_min))  # fmt: skip
    assert torch.equal(run.x, after.x)


@pytest.mark.parametrize(("target", "power"), [("ring8", 4), ("moons", 4), ("bimodal1d", 3)])
def test_the_error_of_the_jump_falls_with_the_least_cumulant_that_is_there(target, power):
    """The third of asymmetric data, the fourth of others, in the deviation over the level."""
    field = diffode.exact_field(target, "edm")
    x = field.path.prior((16, field.dim), generator=1)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-10).x
    errors = []
    for level in (4, 8):
        s = level * field.statistics.largest
        end = diffode.reference(field, field.statistics.flow(x, field.path, 80.0, s), s, 0.002, 1e-10).x
        errors.append(float((end - exact).norm(dim=1).mean()))
    # At 40 and more it would be exact; the start at rho = 80 is part of the same Gaussian.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(power, abs=0.25)


@pytest.mark.parametrize("spec", [*FAMILIES, *STOCHASTIC])
def test_every_table_can_begin_with_a_jump(spec):
    """After it the rows are the solver's own, between the level and the end, for the same number of evaluations."""
    field = diffode.exact_field("pinwheel", "vp")
    solver = informed(with_jump(spec, 3), field.statistics)
    try:
        table = solver.within(field.path, "karras:rho=3", 6)
    except BudgetError:
        pytest.skip("no run with six evaluations")
    own = solvers.get(spec).within(field.path.between(table.rows[1].time, field.path.t_min), "karras:rho=3", 6)
    assert table.nfe == own.nfe
    assert table.spans == own.spans
    assert [row.time for row in table.rows[1:]] == [row.time for row in own.rows]
    assert solver.spec == with_jump(spec, 3) or solvers.get(solver.spec).jump == 3
    x = field.prior(4, generator=0)
    noise = torch.randn(table.draws, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    landed = field.statistics.flow(x, field.path, field.path.t_max, table.rows[1].time)
    assert torch.allclose(table.run(field, x, noise=noise), own.run(field, landed, noise=noise), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_computes_the_defining_sums_in_every_basis(kind):
    field = diffode.exact_field("digits-gmm10", "vp")
    known = Statistics.of_target("digits-gmm10", kind, **KINDS[kind])
    table = informed("dpmpp:order=2,jump=2", known).tableau("vp", "karras:rho=3", 3)
    x = field.prior(4, generator=0)
    assert torch.allclose(table.run(field, x), dense_run(table, field, x), rtol=0, atol=1e-11)
    assert table.run(field, x.float()).dtype == torch.float32
    assert torch.allclose(table.run(field, x.float()).double(), table.run(field, x), atol=1e-3)
    # A row of several coordinates, as of pictures.
    square = Field.from_denoised(lambda y, t: field.denoised(y.flatten(1), t).reshape(y.shape), "vp", scale=known)
    run = diffode.solve(square, x.reshape(4, 8, 8), solver="dpmpp:order=2,jump=2", steps=3, grid="karras:rho=3")
    assert torch.equal(run.x.flatten(1), table.run(field, x))


@pytest.mark.parametrize("kind", ["scale", "diagonal", "low_rank", "full"])
def test_gaussians_go_through_exactly_direction_by_direction(kind):
    """The law of a table's output on a Gaussian that has the directions of the statistics but other variances and mean."""
    known = Statistics.of_target("digits-gmm10", kind, **KINDS[kind])
    table = informed("ipndm:order=2,jump=1.5", known).tableau("vp", "karras:rho=3", 4)
    other = Statistics(known.mean, 0.5 * known.variances + 0.1, known.basis)
    target = diffode.GaussianMixture([1.0], (2 * known.mean)[None], other.covariance[None])
    field = diffode.exact_field(target, "vp")
    count = 64 if kind == "scale" else known.basis.count
    found = table.propagate(2 * known.mean_along(count), other.variances.expand(count))
    x = field.path.alpha(1.0) * target.mean[None]
    assert torch.allclose(known.mean_along(count) * 0 + found.mean, _lengths(known, table.run(field, x)[0], count), atol=1e-12)
    # A start one unit along a direction moves the end by the gain along it.
    q = known.basis.back(torch.eye(64, dtype=torch.float64)[:1]) if kind != "low_rank" else known.basis.matrix[:, :1].T
    moved = table.run(field, x + q) - table.run(field, x)
    assert torch.allclose(moved, found.gain[0] * q, atol=1e-12)


def _lengths(known, end, count):
    coordinates = known.basis.into(end[None])[0]
    return coordinates if count == len(coordinates) else known.basis.of_directions(coordinates)


def test_after_a_jump_an_exact_gaussian_is_left():
    known = Statistics.of_target("gauss2d")
    table = informed("ddim:jump=auto", known).tableau("vp", "karras", 3)
    law = table.propagate(known.mean_along(2), known.variances)
    end = table.output_times[-1].item()
    assert table.nfe == 0
    assert torch.allclose(law.variance, known.deviations(table.path, end).square(), rtol=1e-13, atol=0)
    assert torch.allclose(law.mean, table.path.alpha(end) * known.mean_along(2), rtol=1e-13, atol=0)


def test_the_level_is_where_the_two_errors_of_the_derivation_are_least():
    """a K^-p + b (K^(1/r)/N)^q by a search over K, for the k that a and b give; the levels only scale with the deviation."""
    known = Statistics.of_target("ring8")
    p, r = 1.25, 3
    grid = torch.logspace(-2, 2, 40_001, dtype=torch.float64)
    for n, q in itertools.product((2, 5, 10), (1, 2)):
        a = 0.25 ** (p + q / r) * q / (p * r)
        best = float(grid[(a * grid**-p + (grid ** (1 / r) / n) ** q).argmin()])
        assert automatic(known, n, q) / known.largest == pytest.approx(best, rel=1e-3)
    wide = Statistics.of_covariance(known.mean, 100 * known.covariance)
    assert automatic(wide, 5, 2) == pytest.approx(10 * automatic(known, 5, 2))
    assert automatic(Statistics.of_target("gauss2d"), 5, 2) == 0.0
    assert automatic(known, 5, 3) == automatic(known, 5, 2) > automatic(known, 5, None) == automatic(known, 5, 1)


@pytest.mark.parametrize("solver", ["ipndm:order=3", "dpmpp:order=2", "ddim"])
@pytest.mark.parametrize("target", ["spiral", "moons", "digits-gmm10"])
def test_the_automatic_jump_gains(target, solver):
    """In the geometric mean over budgets, against the same solver without it, each on the grid that a budget alone gives.

    The level was fitted without spiral and digits-gmm10.
    """
    field = diffode.exact_field(target, "edm")
    x = field.path.prior((48, field.dim), generator=3)
    exact = diffode.reference(field, x, 80.0, 0.002).x

    def error(spec, nfe):
        return float((diffode.solve(field, x, solver=spec, nfe=nfe).x - exact).norm(dim=1).mean())

    ratios = [error(solver, nfe) / error(with_jump(solver, "auto"), nfe) for nfe in (2, 4, 6)]
    assert math.prod(ratios) ** (1 / 3) > 1.8, ratios


@pytest.mark.parametrize("spec", [spec for spec in DIRECT if spec.startswith(("rk_adaptive", "scipy:RK45"))])
def test_solvers_that_follow_the_field_jump_too(spec):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    plain, jumped = (diffode.solve(field, x, solver=s, keep="all") for s in (spec, with_jump(spec, 6)))
    assert jumped.nfe < plain.nfe
    assert jumped.times[0] == plain.times[0]
    assert torch.equal(jumped.states[0], x)
    assert float(jumped.times[1]) == pytest.approx(6 * field.statistics.largest)
    assert len(jumped.states) == len(jumped.times)
    assert float((jumped.x - plain.x).abs().max()) < 0.2
    gauss = diffode.exact_field("gauss2d", "edm")
    whole = diffode.solve(gauss, x, solver=with_jump(spec, "auto"), keep="all")
    assert whole.nfe == 0
    assert torch.allclose(whole.x, diffode.reference(gauss, x, 80.0, 0.002).x, rtol=0, atol=1e-12)


def test_a_list_of_times_keeps_those_at_and_below_the_level():
    known = Statistics.of_covariance([0.0, 0.0], [1.0, 1.0])
    table = informed("ddim:jump=5", known).tableau("edm", [80.0, 10.0, 5.0, 1.0, 0.1])
    assert table.output_times.tolist() == [80.0, 5.0, 1.0, 0.1]
    assert informed("ddim:jump=4.9", known).tableau("edm", [80.0, 10.0, 5.0, 1.0]).output_times.tolist() == [80.0, 1.0]
    assert table.nfe == 2
    with pytest.raises(BudgetError, match="costs 2 evaluations, more than nfe=1"):
        informed("ddim:jump=5", known).within("edm", [80.0, 10.0, 5.0, 1.0, 0.1], 1)
    # A level above the list's first time leaves nothing to jump.
    field = diffode.exact_field("ring8", "edm")
    auto = diffode.solve(field, field.marginal(2, 0.3, generator=0), solver="ddim:jump=auto", grid=[0.3, 0.2])
    assert auto.times.tolist() == [0.3, 0.2]


def test_published_levels_keep_their_own_first_one():
    """The grids of AYS begin where they were published, and the jump goes there, if its own level is above."""
    known = Statistics.of_covariance([0.0], [1.0])
    table = informed("ddim:jump=30", known).tableau("edm", "ays_sd15", 10)
    assert table.output_times[:3].tolist() == pytest.approx([80.0, 14.615, 6.475])


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_with_a_jump_comes_back_from_its_file(kind, tmp_path):
    field = diffode.exact_field("digits-gmm10", "vp")
    known = Statistics.of_target("digits-gmm10", kind, **KINDS[kind])
    table = informed("dpmpp_2m_sde:jump=auto", known).tableau("vp", "karras:rho=3", 4)
    table.save(tmp_path / "table.safetensors")
    found = Tableau.load(tmp_path / "table.safetensors")
    x = field.prior(3, generator=0)
    noise = torch.randn(table.draws, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.run(field, x, noise=noise), table.run(field, x, noise=noise))
    assert (found.solver, found.spans, found.outputs) == (table.solver, table.spans, table.outputs)
    assert found.statistics.content == known.content


def test_a_loop_that_owns_the_network_jumps_too():
    field = diffode.exact_field("ring8", "edm")
    table = informed("ipndm:order=3,jump=2", field.statistics).tableau("edm", "karras:rho=3", 4)
    x = field.prior(3, generator=0)
    run = table.driven(x)
    row, state = next(run)
    for time in table.times[table.evaluated[1:]].tolist():
        row, state = run.send(field.predict(table.prediction, state, float(table.rows[row].time)))
        assert float(table.rows[row].time) == time
    with pytest.raises(StopIteration) as end:
        run.send(field.predict(table.prediction, state, float(table.rows[row].time)))
    assert torch.equal(end.value.value, table.run(field, x))


def test_k_diffusion_and_streams_and_studies_run_it():
    field = diffode.exact_field("ring8", "edm")
    chunks = list(diffode.stream(field, 300, solver="ipndm:order=3,jump=auto", grid="karras:rho=3", nfe=4))
    assert sum(map(len, chunks)) == 300
    known = field.statistics
    sample = diffode.adapters.as_k_diffusion_sampler(informed("ddim:jump=2", known))

    class Model(torch.nn.Module):
        def forward(self, x, sigma, **extra):
            return field.denoised(x, sigma)

    x = field.prior(3, generator=0)
    levels = torch.tensor([80.0, 20.0, 7.0, 1.0, 0.1], dtype=torch.float64)
    table = informed("ddim:jump=2", known).tableau("edm", levels.tolist())
    assert torch.allclose(sample(Model(), x, levels), table.run(field, x), rtol=0, atol=1e-12)


def test_a_jump_is_differentiable_in_the_start():
    known = Statistics.of_target("gauss2d")
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    run = diffode.solve(diffode.exact_field("gauss2d", "edm"), x, solver="ddim:jump=auto", nfe=1)
    (slope,) = torch.autograd.grad(run.x[0, 0], x)
    edm = diffode.paths.get("edm")
    factor = known.deviations(edm, 0.002) / known.deviations(edm, 80.0)
    q = known.basis.matrix
    assert torch.allclose(slope[0], (q * factor) @ q[0], rtol=1e-12, atol=0)


NETWORK = Field.from_velocity(lambda x, t: x, "edm", probe=False)
RING = diffode.exact_field("ring8", "edm")
X = RING.prior(2, generator=0)


def known(dim, factor=1.0):
    return Statistics.of_covariance(torch.zeros(dim), factor * torch.eye(dim))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffode.solve(NETWORK, X, solver="ddim:jump=auto", nfe=2), r"fields\.estimate_statistics\(field\)"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=auto", nfe=2, statistics=known(3)), "3 coordinates, but rows have 2"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=auto", nfe=2, statistics=known(2, 100.0)), "in another unit"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=auto", nfe=2, statistics=3.0), "statistics must be"),
        (lambda: diffode.solve(RING, X, solver="ddim", nfe=2, statistics=known(2)), "statistics go with a solver that asks"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=100", nfe=2), r"give a jump in \[0\.000563, 22\.5\), or jump=auto"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=1e-9", nfe=2), "give a jump in"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=-1", nfe=2), "jump must be auto, or a level > 0"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=true", nfe=2), "jump must be auto"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=some", nfe=2), "jump must be auto"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=auto", nfe=2, upwards=True), "it can't run upwards"),
        (lambda: diffode.solve(RING, X, solver="ddim:jump=2,analytic_first_step=true", nfe=2), "leave one of the two out"),
        (lambda: solvers.get("ddim:jump=2").tableau("edm", "karras", 2), r"solvers\.informed\(solver, statistics\)"),
        (lambda: informed("ddim:jump=2", known(2)).tableau(None, [1.0, 0.5]), "the jump of .* needs a path, .*path=None"),
        (lambda: informed("ddim:jump=2", None), "statistics must be diffode.Statistics"),
        (lambda: informed("rk_adaptive:jump=2", known(2)), "has no tableau"),
        (lambda: diffode.solve(RING, X, solver="rk_adaptive:jump=2", grid=[80.0, 1.0]), "leave grid out"),
        (lambda: informed("ddim:jump=2", RING.statistics).tableau("edm", "karras", 2).dense(), "table of plain numbers"),
        (lambda: informed("ddim:jump=2", RING.statistics).tableau("edm", "karras", 2).run(RING, X[:, :1]), "rows have 1"),
        (lambda: informed("ddim:jump=2", known(2)).tableau("edm", "karras", 2).propagate(0.0, [1.0] * 3), "got 3"),
        (lambda: Tableau("noise", (Row(1.0), Row(0.5, {0: torch.ones(1, 2)})), (0, 1)), "give statistics="),
        (lambda: Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, mean=1.0)), (0, 1)), "give statistics="),
        (
            lambda: Tableau("noise", (Row(1.0), Row(0.5, {0: torch.ones(1, 3)})), (0, 1), statistics=known(2)),
            r"for 2 directions they must be \(1, 2\)",
        ),
    ],
)  # fmt: skip
def test_what_can_not_jump_is_refused_with_what_to_do(make, message):
    with pytest.raises((ArgumentError, CapabilityError, FieldError), match=message):
        make()


def test_a_field_that_was_asked_for_its_statistics_jumps():
    exact = diffode.exact_field("digits-gmm10", "vp")
    field = Field.from_noise(exact.noise, "vp")
    x = exact.prior(4, generator=0)
    field.statistics = fields.estimate_statistics(field, shape=(64,))
    found, known = (diffode.solve(f, x, solver="ipndm:order=3,jump=auto", nfe=6).x for f in (field, exact))
    assert float((found - known).norm(dim=1).mean()) < 0.01


@pytest.mark.parametrize(
    "solver", ["ddim:jump=auto", "ab:order=2,chart=gaussian", "universal:chart=gaussian", "picard:jump=auto"]
)
def test_an_empty_batch_stays_one(solver):
    field = diffode.exact_field("ring8", "edm")
    assert diffode.solve(field, field.prior(4, generator=0)[:0], solver=solver, grid="karras", nfe=4).x.shape == (0, 2)
