"""Numbers of the theory of errors and of metrics: bounds, orders, laws, distances, floors and intervals."""

import math
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from recorded import fields_of
from recorded_verdicts import LINE, SKEW, SMALL, TWO, message, numbers, verdict_case

import diffode
from diffode import Field, GaussianMixture, metrics, paths, verify
from diffode.metrics import Outcome, chunked, error_split, gaussian_split, gaussian_w2, guided, measure, sampled, transport
from diffode.metrics.frechet import _floors, frechet_of, shipped
from diffode.numerics import line_transport
from diffode.verify.theory import affine, bounds, consistency, one_step, score_error, score_identity, straightness
from diffode.verify.theory.orders import floor_of

# Theory.


def learned_from(exact, factor=0.9, shift=0.05, bend=0.0):
    """A field whose score is wrong by a factor, a shift, and a bend."""
    return Field.from_score(lambda x, t: factor * exact.score(x, t) + shift + bend * torch.sin(3 * x), exact.path)


@verdict_case
def bounds_of_certificates():
    found = {}
    cases = {
        "affine": (SKEW, "vp", {}, {"coupled": 4, "prior_distance": 0.1}),
        "bent": (LINE, "edm:sigma_max=5", {"bend": 0.2}, {"confidence": 0.9, "lipschitz_points": 3}),
        "given": (TWO, "rectified_flow", {"bend": 0.1}, {"lipschitz": lambda t: 0.3 * t}),
        "drawn": (GaussianMixture([1.0], [[0.2] * 4], [[0.5] * 4]), "vp", {"bend": 0.3}, {"points": 20, "seed": 2}),
    }
    for name, (target, path, error, options) in cases.items():
        exact = diffode.exact_field(target, path)
        known = verify.certificate(exact, learned_from(exact, **error), nodes=9 if name != "given" else 11, **options)
        found[name] = {
            **fields_of(known), "proved": known.proved, "flow": fields_of(known.flow), "sde": fields_of(known.sde),
            "true": known.true and known.true._asdict(),
        }  # fmt: skip
    shared = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.8]], [[0.3, 0.2]] * 2)
    for target in (shared, SKEW):
        field = diffode.exact_field(target, "vp")
        constant = bounds.mixture_lipschitz(field)
        own = verify.certificate(diffode.exact_field(TWO, "vp"), field, nodes=5, points=4)
        found[f"closed {target.count}"] = [constant(0.2), constant(0.7), own.lipschitz_kind, own.lipschitz, own.sde.integral]
    exact = diffode.exact_field(TWO, "vp")
    found["estimate"] = bounds.one_sided_lipschitz(learned_from(exact, bend=0.2), numbers(5, 2), 0.4)
    found["rule"] = [bounds._integral(np.exp(np.linspace(0, 1, n)), np.linspace(0, 3, n)) for n in (5, 7, 9)]
    found["levels"] = bounds._levels(10.0, 0.1, 5)
    options = (
        {"nodes": 4},
        {"points": 1},
        {"lipschitz_points": 0},
        {"prior_distance": -1},
        {"confidence": 0.49},
        {"confidence": 1},
    )
    found["messages"] = [message(verify.certificate, exact, exact, **one) for one in options]
    found["infinite"] = message(verify.certificate, exact, exact, nodes=5, lipschitz=lambda t: math.inf)
    return found


@verdict_case
def errors_of_scores():
    found = {}
    for count, dim in ((1, 2), (2, 1), (1, 4), (1, 17), (2, 2), (2, 3)):
        target = GaussianMixture(
            [1 / count] * count, [[0.3 * k] * dim for k in range(count)], [[0.5 + k] * dim for k in range(count)]
        )
        exact = diffode.exact_field(target, "vp")
        for bend in (0.0, 0.2):
            draws = score_error.draws_at(exact, 0.4, 6, 1, 2)
            known = score_error.score_error(exact, learned_from(exact, bend=bend), 0.4, draws, 0.95)
            found[f"{count} {dim} {bend}"] = [known.value, known.method, draws]
    exact = diffode.exact_field(SKEW, "vp")
    found["slope"] = [score_error.affine_slope(learned_from(exact), 2, 0.3), score_error.affine_slope(exact, 17, 0.3)]
    with mock.patch.object(affine, "_STEPS", 64):
        found["distances"] = affine.gaussian_distances(exact, learned_from(exact), 0.01)
        found["bent"] = affine.gaussian_distances(exact, learned_from(exact, bend=0.1), 0.01)
    return found


@verdict_case
def laws_of_one_step_and_of_consistency():
    levels, found = [80.0, 5.0, 1.0, 0.2, 0.002], {}
    found["ratios"] = [consistency.consistency_ratio(0.4, levels, steps) for steps in ("training", "euler", "heun")]
    found["best"] = [consistency.best_levels(0.4, 80.0, last, 5) for last in (0.002, 0.0)]
    found["modes"] = [consistency.two_mode_error(r, levels, steps) for r in (1.5, 3.0) for steps in ("training", "euler")]
    found["sampling"] = [consistency.sampling_errors(0.7, [80.0, 2.0, 0.5], [0.9, 1.1, 1.05], last) for last in (0.0, 0.1)]
    found["limits"] = [
        consistency.sampling_limit(0.7, level, slope, 0.1) for level, slope in ((0.5, 1.1), (0.5, 1.4), (2.0, 0.9))
    ]
    found["nodes"] = consistency._denser(1.0, 4.0, 7).tolist()
    found["slopes"] = [one_step.one_step_slope(r) for r in (0.5, 2.0, 37.0)]
    found["prices"] = [
        one_step.lipschitz_price(r, k) for r, k in ((2.0, 1.0), (2.0, 3.6), (2.0, 3.7), (4.0, 10.0), (50.0, 3.0))
    ]
    found["noise"] = [
        list(one_step.target_noise(r, s, t)) for r, s, t in ((2.0, 0.9, 0.1), (3.0, 0.999, 0.001), (1.0, 0.5, 0.5))
    ]
    found["bootstrap"] = [one_step.bootstrapped_factor(v, n, k) for v, n, k in ((0.25, 8, 1), (2.0, 4, 4), (0.7, 1, 1))]
    losses = [score_identity.identity_losses(0.3, 0.8, -0.2, 0.5, sigma, alpha) for sigma, alpha in ((0.5, 1.2), (2.0, 0.7))]
    found["losses"] = [one._asdict() for one in losses]
    for alpha, sigmas in ((1.2, ()), (None, ()), (1.0, (0.5, 1.0))):
        path = score_identity.identity_path((2.0, 0.1), alpha, mean=0.3, variance=0.7, sigmas=sigmas, steps=12, rate=0.3)
        found[f"path {alpha}"] = [list(one) for one in path]
    found["messages"] = [
        message(consistency.consistency_ratio, -1.0, levels), message(consistency.best_levels, 1.0, 1.0, 0.1, 1),
        message(consistency.two_mode_error, 0.0, levels), message(consistency.two_mode_error, 1.0, [1.0, 0.0]),
        message(consistency.sampling_errors, 1.0, [1.0, 0.1], [1.0, 1.0], 0.1),
        message(consistency.sampling_errors, 1.0, [1.0], []),
        message(one_step.one_step_slope, 37.1), message(one_step.lipschitz_price, 1001.0, 1.0),
        message(one_step.lipschitz_price, 1.0, 0),
        message(one_step.target_noise, 1.0, 0.1, 0.2), message(one_step.bootstrapped_factor, 1.0, 6),
        message(one_step.bootstrapped_factor, 1.0, 4, 8), message(score_identity.identity_losses, 0, 1, 0, -0.1, 1),
    ]  # fmt: skip
    return found


@verdict_case
def orders_and_growth():
    found = {}
    for solver, options in (
        ("euler", {}),
        ("heun:chart=noise", {"path": "vp", "grid": "log_snr"}),
        ("dpmpp:order=3", {"ramped": True}),
    ):
        found[solver] = fields_of(verify.order(solver, steps=(8, 16, 32, 64), points=4, seed=2, **options))
    found["strong"] = fields_of(verify.strong_order("euler_maruyama", steps=(4, 8, 16), points=8, seed=1))
    found["weak"] = fields_of(verify.weak_order("ddpm", steps=(8, 16, 32), mean=0.3, eigenvalues=(0.2, 3.0)))
    found["growth"] = [
        verify.growth(s, h, [-1.0, 0.0, 0.5, 0.9, 1.4])
        for s, h in (("ddim", 0.5), ("dpmpp:order=2", 1.7), ("heun", 5), ("euler", 3.0))
    ]
    exact = diffode.exact_field(TWO, "edm")
    true = diffode.reference(exact, numbers(4, 2) * 80, 80.0, 0.002)
    found["floors"] = [
        floor_of(replace(true, errors=torch.tensor([1e-3, 2e-3]), method=way), numbers(4, 2)) for way in ("dop853", "other")
    ]
    known = verify.gaussian("ddpm", "vp", "log_snr", [1.0, 0.25], mean=0.5, steps=7)
    found["gaussian"] = [known.w2, known.mean_error, known.covariance_error, known.split._asdict(), list(known.law), known.nfe]
    found["messages"] = [
        message(verify.order, "ddpm"), message(verify.order, "euler", points=0), message(verify.order, "euler", seed=-1),
        message(verify.strong_order, "euler"), message(verify.growth, "euler", 5.1, [0.0]),
        message(verify.growth, "euler", 1, [[0.0]]),
        message(verify.gaussian, "euler", "vp", "log_snr", [[1.0]], steps=3),
        message(verify.weak_order, "ddpm", eigenvalues=["a"]),
    ]  # fmt: skip
    return found


@verdict_case
def guided_laws_and_straight_lines():
    one = diffode.exact_field(GaussianMixture([1.0], [[0.5, -0.2]], [[0.4, 1.2]]), "edm")
    other, found = diffode.exact_field(GaussianMixture([1.0], [[-0.3, 0.1]], [[1.0, 2.0]]), "edm"), {}
    for weight, start in ((3.0, "prior"), (0.5, "conditional"), (7.0, "unconditional")):
        field = diffode.guide(one, other, weight)
        for solver in ("edm_heun", "ddpm"):
            known = verify.guided_law(diffode.solvers.get(solver).tableau(one.path, "karras", 5), field, start)
            found[f"{weight} {solver}"] = [
                list(known.sampled), known.flow, known.conditional, known.tilted, known.distance(known.flow),
                known.distance(known.tilted) if known.tilted else None,
            ]  # fmt: skip
    field = diffode.exact_field(TWO, "rectified_flow")
    found["straight"] = straightness.straightness(field, numbers(6, 2), TWO.sample(6, generator=2), 4)._asdict()
    found["gaussian"] = straightness.gaussian_straightness(1.2, 0.7)._asdict()
    noise, data = (torch.tensor(m, dtype=torch.float64) for m in ([[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 2.0]]))
    matrix = straightness.rectified_map(noise, data, 7)
    found["map"] = [matrix, straightness.coupling_cost(noise, data, matrix)]
    found["messages"] = [
        message(straightness.straightness, field, noise, data[:1]),
        message(straightness.rectified_map, noise, data[:1]),
    ]
    return found


# Metrics.


def outcome(target=TWO, path="edm", solver="dpmpp:order=2", points=40, steps=4, seed=3, **options):
    """A run to be measured."""
    field = diffode.exact_field(target, path)
    x = field.prior(points, generator=1)
    return Outcome(
        field, x, diffode.solve(field, x, solver=solver, grid="karras", steps=steps, keep="all", **options), seed=seed
    )


def measured(spec, run):
    """A measurement, without a floor that is rounding."""
    found = fields_of(measure(spec, run))
    return {**found, "floor": found["floor"] if found["floor"] > SMALL else "small"}


SPECS = (
    "endpoint", "endpoint:reduction=rms", "endpoint:reduction=max", "endpoint:reduction=median", "trajectory:reduction=rms",
    "total",
    "moments", "push_forward_kl", "mode_weights", "lost_modes", "sliced_w2", "sliced_w2:projections=3,resamples=0", "mmd",
    "mmd:resamples=3", "energy_distance", "assigned_w2", "sinkhorn_w2", "sinkhorn_w2:epsilon=0.5", "shrinkage",
    "shrinkage:within=true",
)  # fmt: skip


@verdict_case
def values_of_all_metrics():
    found = {}
    for name, run in (("plane", outcome()), ("ring", outcome("ring8", "vp", "euler", 12, 3, 1))):
        found |= {f"{name} {spec}": measured(spec, run) for spec in SPECS}
    line = outcome(LINE, "vp", "heun", 9)
    found |= {spec: measured(spec, line) for spec in ("w1", "w2", "endpoint", "shrinkage")}
    noisy = outcome(SKEW, "vp", "ddpm", generator=0)
    found |= {
        f"error {part}": measured(f"gaussian_error:part={part}", noisy)
        for part in ("prior", "truncation", "discretisation", "total")
    }
    exact = line.field
    own = Field.from_noise(lambda x, t: 1.05 * exact.noise(x, t), exact.path)
    own.truth = exact
    near = replace(line, field=own)
    found |= {f"near {spec}": measured(spec, near) for spec in ("model", "total", "endpoint", "moments", "w1")}
    found["messages"] = [
        message(measure, spec, run)
        for spec, run in (
            ("moments", outcome(points=1)), ("endpoint:reduction=least", line), ("mmd:resamples=1", line),
            ("gaussian_error", line),
            ("w1", outcome()), ("endpoint", noisy), ("push_forward_kl", outcome("gmm40-50d", points=2)), ("model", line),
            ("sinkhorn_w2:epsilon=0", line), ("frechet", line),
        )
    ]  # fmt: skip
    return found


@verdict_case
def values_of_guided_metrics():
    ring = diffode.targets.get("ring8")
    one, two = diffode.exact_field(ring.given("three"), "edm"), diffode.exact_field(ring, "edm")
    field = diffode.guide(one, two, 2.0)
    x = one.prior(20, generator=1)
    run = Outcome(field, x, diffode.solve(field, x, solver="heun", grid="karras", steps=5), seed=2)
    parts = {part: measured(f"tilted:part={part}", run) for part in ("sliced_w2", "moments", "mode_weights")}
    tilted = guided.tilted_law(field, 0.5)
    return {**parts, "law": [tilted.mean, tilted.covariance, tilted.mode_weights]}


@verdict_case
def values_of_streamed_metrics():
    run, found = outcome(points=50), {}
    with mock.patch.multiple(chunked, _DRAWS=16, _COORDINATES=64):
        for spec in ("moments", "mode_weights", "lost_modes", "endpoint", "endpoint:reduction=rms", "endpoint:reduction=max",
                     "sliced_w2", "sliced_w2:bins=32,projections=3"):  # fmt: skip
            metric = metrics.streamed(spec, run.field, seed=4)
            for rows in (slice(0, 7), slice(7, 7), slice(7, 50)):
                metric.add(run.solution.x[rows], run.start[rows])
            value = fields_of(metric.value())
            found[spec] = [{**value, "floor": value["floor"] if value["floor"] > SMALL else "small"}, metric.count]
    bins = chunked._Bins.of(chunked.Run(diffode.exact_field(TWO, "vp"), (1.0, 0.1), 0, 1e-9), 2, 8)
    found["bins"] = [bins.first, bins.width, bins.many]
    found["part"] = fields_of(metrics.streamed("moments", run.field, between=(10.0, 0.5)).run)["times"]
    lacking = metrics.streamed("moments", run.field)
    lacking.add(run.end[:1])
    found["messages"] = [
        message(lacking.value), message(lacking.add, run.end[:3], run.start[:2]), message(lacking.add, run.end[:, :1]),
        message(metrics.streamed, "sliced_w2:bins=1", run.field),
        message(metrics.streamed, "sliced_w2:bins=1048577", run.field),
    ]  # fmt: skip
    return found


@verdict_case
def distances_between_samples_and_laws():
    x, y, found = numbers(7, 2), numbers(7, 2, 1) + 0.3, {}
    for order in (1, 2):
        known = metrics.assigned(x, y, order)
        found[f"assigned {order}"] = [known.distance, known.partner.tolist(), list(known.potentials)]
        found[f"sinkhorn {order}"] = [metrics.sinkhorn(x, y[:5], epsilon, order) for epsilon in (0.05, 0.5, 5.0)]
        uniform = metrics.LineLaw(lambda z: np.clip(z, 0, 1), 0.0, 1.0)
        laws = (x[:, 0], y[:5, 1], LINE, "bimodal1d", uniform)
        found[f"line {order}"] = [metrics.wasserstein(a, b, order) for k, a in enumerate(laws) for b in laws[:k]]
    found["dual"] = [metrics.wasserstein_dual(a, b) for a, b in ((x[:, 0], y[:, 0]), (LINE, x[:, 0]), ("bimodal1d", LINE))]
    costs = transport._costs(x, y, 2)
    found["costs"] = costs
    covariances = [torch.cov(numbers(9, 3, k).T) for k in range(2)]
    means = [numbers(9, 3, k).mean(0) for k in range(2)]
    found["gaussian"] = [gaussian_w2(means[0], covariances[0], means[1], covariances[1])]
    found["singular"] = gaussian_w2(means[0], torch.diag(torch.tensor([1.0, 0.0, 2.0])).double(), means[1], covariances[1])
    found["pairs"] = sampled.pair_sums(x, y, torch.ones(7, 2).double(), x.abs(), lambda d: d.square())
    found["rectangle"] = line_transport.line_distance(*(transport._on_line(one, "law") for one in (uniform, LINE)), 2)
    found["messages"] = [
        message(metrics.LineLaw, lambda z: np.clip(z, 0, 1), 0.1, 1.0), message(metrics.LineLaw, lambda z: z * 0 + 2, 0.0, 1.0),
        message(metrics.LineLaw, lambda z: np.abs(z - 0.5) * 2, 0.0, 1.0), message(metrics.LineLaw, np.cos, 1.0, 0.0),
        message(metrics.sinkhorn, x, numbers(6, 3), 0.1), message(metrics.assigned, x, y[:6]),
        message(metrics.wasserstein, x, y),
        message(metrics.assigned, x * 1e200, y), message(metrics.sinkhorn, x, y, -0.1),
        message(metrics.wasserstein, x[:, 0], y[:, 0], 3),
    ]  # fmt: skip
    return found


@verdict_case
def parts_of_errors():
    found = {}
    for solver in ("euler", "ddpm", "dpmpp:order=2"):
        table = diffode.solvers.get(solver).tableau(paths.get("vp"), "log_snr", 5)
        found[solver] = gaussian_split(table, torch.tensor([0.3, -0.5]).double(), torch.tensor([0.4, 2.0]).double())._asdict()
    for path in ("vp", "edm"):
        field = diffode.exact_field(TWO, path)
        table = diffode.solvers.get("heun").tableau(field.path, "karras", 4)
        found[path] = error_split(field, table, numbers(3, 2), 1e-8)._asdict()
    return found


@verdict_case(tolerance=1e-5)
def pictures_as_a_classifier_sees_them():
    seen_by = shipped()
    x = torch.tanh(numbers(6, 784))
    floors = [seen_by.floor(n) for n in (2, seen_by.floors[0][0], seen_by.floors[0][0] + 1, seen_by.floors[-1][0], 10**6)]
    wrong = ([], [[2, 0.1], [2, 0.1]], [[2, 0.0]], [[1, 0.1]], [[2]])
    return {
        "features": seen_by.features(x), "distance": seen_by.distance(x), "floors": floors,
        "of": frechet_of(numbers(9, 3), numbers(9, 3, 1).mean(0), torch.cov(numbers(9, 3, 1).T)),
        "messages": [message(_floors, one) for one in wrong] + [message(seen_by.features, x[:, :5])],
    }  # fmt: skip
