"""Numbers of the verification of right and wrong fields and maps: diagnoses, residuals, likelihoods, identities and laws."""

import math
from dataclasses import replace

import numpy as np
import planted_maps
import torch
from recorded import fields_of
from recorded_verdicts import LINE, SKEW, SMALL, TWO, Wrong, WrongPath, message, numbers, seen, steady, verdict_case

import diffode
from diffode import Field, GaussianMixture, paths, verify
from diffode.fields import ExactField
from diffode.maps import FunctionMap
from diffode.verify.field import contract, diagnosis, equations, evolution, likelihood, picture, symbolic, verification, weak
from diffode.verify.maps import identities, impostors, law, pairs
from diffode.verify.maps.trial import MapTrial


def mistaken(exact, kind):
    """Functions that are a view of an exact field but for one mistake."""
    view, path, unit = getattr(exact, kind), exact.path, exact.scale

    def inside(t):
        return min(max(float(t), 1e-4), 1 - 1e-4)

    return {
        "right": view,
        "sign": lambda x, t: -view(x, t),
        "reversed": lambda x, t: view(x, inside(1 - float(t))),
        "timesteps": lambda x, t: view(x, inside(float(t) / 999)),
        "level": lambda x, t: view(x, path.time_from_rho(max(float(t), 1e-3))),
        "noise label": lambda x, t: view(x, path.time_from_rho(math.exp(4 * float(t)))),
        "data at 1": lambda x, t: -exact.velocity(x, inside(1 - float(t))),
        "scaled": lambda x, t: view(x * math.hypot(path.sigma(t), path.alpha(t) * unit), t),
        "denoised": exact.denoised,
        "untrained": lambda x, t: 0.3 * torch.sin(5 * x),
        "single": lambda x, t: view(x.double(), t).float(),
        "broken": lambda x, t: x[:, :1].expand(-1, 3),
        "raising": lambda x, t: x @ torch.ones(7, 7, dtype=torch.float64),
    }


@verdict_case
def diagnoses_of_fields_by_their_own_samples():
    found = {}
    exact = diffode.exact_field(TWO, "vp")
    for name in ("right", "sign", "level", "scaled", "denoised", "untrained", "single", "broken", "raising"):
        report = verify.check_field(mistaken(exact, "noise")[name], "noise", exact.path, 2, scale=exact.scale, seed=1)
        best = report.facts["best_reading"]
        facts = {**report.facts, "best_reading": fields_of(best) if best else None}
        found[name] = [seen(report.checks), facts, steady(" ".join(report.advice))]
    wide = diffode.exact_field(GaussianMixture([1.0], [[0.0, 0.0]], [[9.0, 9.0]]), "vp")
    report = verify.check_field(wide.noise, "noise", wide.path, 2)
    return {**found, "unknown scale": [seen(report.checks), report.facts["loss"], report.advice]}


@verdict_case
def diagnoses_of_fields_by_data():
    found = {}
    for path, kind in (("rectified_flow", "velocity"), ("vp", "score"), ("edm", "denoised")):
        exact = diffode.exact_field(TWO, path)
        data, source = exact.target.sample(80, generator=1), numbers(50, 2, 1)
        names = ("right", "reversed", "timesteps", "noise label", "data at 1", "level")[: 6 if path == "rectified_flow" else 1]
        for name in names:
            function = mistaken(exact, kind)[name]
            report = verify.check_field(function, kind, path, 2, data=data, source=source if name == "level" else None)
            best, loss = report.facts["best_reading"], report.facts["loss"]
            found[f"{name} {path}"] = [loss, best and fields_of(best), report.facts["best_loss"], report.advice]
        trial = diagnosis._Trial(exact.noise, exact.path, (2,), 0.5, None, 3)
        readings = [diagnosis.Reading("noise", 1, "t", put) for put in diagnosis.INPUTS]
        readings += [diagnosis.Reading(view, sign) for view in diagnosis._KINDS for sign in (1, -1)]
        found[path] = [[trial.loss(one) for one in readings], [trial.spread(one) for one in readings[:2]], trial._times]
        found[path + " share"] = diagnosis.unpredicted(exact.noise, "noise", exact.path, (2,), data=data, source=source, seed=2)
    left = [
        diagnosis.Reading("velocity", -1, "1 - t").differences(diagnosis.Reading(*of)) for of in (("velocity",), ("noise", -1))
    ]
    cleared = [[diagnosis.clearly_less(a, 0.5, on) for a in (0.41, 0.42, 0.46, 0.47)] for on in (True, False)]
    return {**found, "differences": left, "cleared": cleared, "stream": diagnosis._stream(3, "noise")}


@verdict_case
def contracts_of_fields():
    exact, found = diffode.exact_field(TWO, "vp"), {}
    x = exact.marginal(3, 0.5, generator=1)

    def overwriting(x, t):
        answer = exact.noise(x.clone(), t)
        x.mul_(1.01)
        return answer

    calls = iter(range(10**6))
    for name, function in {
        "right": exact.noise, "infinite": lambda x, t: x / (x[:, :1] > 0).double().where(x[:, :1] > 0, x.new_tensor(0.0)),
        "overwriting": overwriting, "changing": lambda x, t: exact.noise(x, t) + 1e-3 * (next(calls) % 7),
        "batched": lambda x, t: exact.noise(x, t) - 0.01 * x.mean(0),
        "one time": lambda x, t: exact.noise(x, float(torch.as_tensor(t).reshape(-1)[0])),
    }.items():  # fmt: skip
        found[name] = seen(contract.contract(Field(function, "noise", exact.path, probe=False), x, 0.5))
    return found


@verdict_case
def residuals_of_wrong_fields():
    found = {}
    for name, field in (
        ("vp", Wrong(TWO, paths.get("vp"))), ("edm", Wrong(LINE, paths.get("edm"))), ("path", ExactField(TWO, WrongPath())),
    ):  # fmt: skip
        where = equations.typical_points(field, 5, levels=(10.0, 1.0, 0.3), seed=2)
        found[name + " points"] = [list(where.times), *where.points]
        for test in (equations.continuity, equations.fokker_planck, equations.score_is_gradient):
            found[f"{name} {test.__name__}"] = test(field, where).values
        if name != "path":
            found[name + " views"] = equations.views(field, where).values
        found[name + " jacobian"] = [r.values for r in equations.jacobian(field, where)][name != "vp" :]
        found[name + " all"] = seen(equations.pointwise(field, where))
    exact = diffode.exact_field(TWO, "rectified_flow")
    own = Field.from_velocity(lambda x, t: 1.05 * exact.velocity(x, t) + 0.1 * x.flip(1), exact.path)
    where = equations.typical_points(own, 4, dim=2, levels=(5.0, 0.5), seed=3)
    found["own"] = [list(where.times), *where.points, seen(equations.pointwise(own, where, exact.log_prob))]

    def plain(x, t):
        if isinstance(t, torch.Tensor):
            raise TypeError("one time for all rows")
        return exact.log_prob(x, t)

    found["differenced"] = equations.continuity(own, where, plain).values
    found["between"] = equations._between(exact, 0.9, 0.2, 5)
    found["bridge"] = list(equations.typical_points(diffode.bridges.get("two_gaussians"), 2).times)
    return found


@verdict_case
def reports_of_wrong_fields():
    found = {}
    exact = diffode.exact_field(LINE, "vp")
    for name, field in (("wrong", Wrong(LINE, paths.get("vp"))), ("path", ExactField(LINE, WrongPath()))):
        found[name] = seen(verify.verify_field(field).checks)
    own = Field.from_noise(lambda x, t: exact.noise(x, t) + 0.05 * torch.sin(x), exact.path)
    found["own"] = seen(verify.verify_field(own, truth=exact, dim=1).checks)
    found["sampled"] = seen(verify.verify_field(own, data=LINE.sample(500, generator=2), dim=1).checks)
    report = verify.verify_field(own, density=lambda x, t: exact.log_prob(x, t), dim=1)
    found["density"] = [seen(report.checks), report.facts["residuals"].values]
    found["failing"] = seen(
        verify.verify_field(Field.from_noise(lambda x, t: x[:, :5] @ x, exact.path, probe=False), dim=2).checks
    )
    many = Field.from_noise(lambda x, t: x * t + 0.1 * x.roll(1, -1), exact.path)
    found["wide"] = [
        float(verification._residuals(many, equations.typical_points(many, 2, dim=dim, levels=(1.0,)), None) is None)
        for dim in (64, 65)
    ]
    return found


@verdict_case
def densities_that_are_evolved():
    found = {}
    for name, field, cells in (("line", diffode.exact_field(LINE, "vp"), 24), ("plane", diffode.exact_field(TWO, "edm"), 10),
                               ("wrong", ExactField(LINE, WrongPath()), 24),
                               ("wide", Wrong(SKEW, paths.get("vp")), 8)):  # fmt: skip
        times = evolution._times(field)
        for equation in ("fokker_planck", "continuity"):
            run = verify.evolve(field, *times, cells, equation)
            found[f"{name} {equation}"] = [times, run.error, run.density, run.exact, run.axes]
            size = run.axes[:, 1] - run.axes[:, 0]
            box = evolution._box(field, times)
            found[f"{name} {equation} steps"] = [
                evolution._steps(field, *times, size * share, *box, equation) for share in (1, 0.3)
            ]
        found[name + " box"] = [box, evolution._spread_and_distance(field)]
        found[name + " mass"] = seen([evolution.mass_check(field, 12)])
        if name != "plane":
            found[name + " checks"] = seen(evolution.evolution_checks(field, 12))
    found["message"] = message(verify.evolve, field, 0.3, 0.2, 8)
    far = GaussianMixture([0.4, 0.6], [[-6.0], [7.0]], [[0.04], [0.09]])
    found["far"] = evolution._times(diffode.exact_field(far, "vp"))
    return found


@verdict_case
def weak_forms_of_wrong_fields():
    found = {}
    for name, field in (
        ("views", Wrong(LINE, paths.get("vp"))), ("plane", Wrong(TWO, paths.get("edm"))),
        ("path", ExactField(TWO, WrongPath())),
    ):  # fmt: skip
        t, draws = field.path.time_from_rho(0.9), field.target.sample(60, generator=1)
        found[name] = [
            seen([weak.polynomial_check(field, t, 3), weak.stein_check(field, t, 12), weak.fourier_check(field, t, 3)]),
            seen([weak.reverse_check(field, t, eta, 12) for eta in (0.0, 0.7)]),
            seen([weak.compact_check(field, t, eta, 24) for eta in (None, 0.0, 0.5)]),
            seen([weak.sampled_check(field, draws, t, eta=eta, functions=3) for eta in (None, 0.0, 0.6)]),
            seen([weak.sourced_check(field, t, 200)]),
            list(weak.gauss_hermite(field, t, 3)),
        ]
        found[name + " all"] = seen(weak.weak(field))
    x = numbers(6, 2)
    for phi in (weak.monomial((3, 1), 1.3), weak.monomial((0, 2)), weak.wave(torch.tensor([0.3, 0.5]).double()),
                weak.bump(torch.tensor([0.1, 0.2]).double(), 1.5)):  # fmt: skip
        found[phi.name + str(len(found))] = list(phi.at(x))
    return found


@verdict_case
def closed_forms_of_a_mixture():
    parameters = [(0.3, -1.0, 0.2), (0.7, 0.8, 0.5)]
    level = (0.4, 0.8, 0.6, -0.7, 0.9)
    with symbolic.mpmath.workdps(30):
        every = [symbolic.mpmath.mpf(v) for v in (*level, *(v for p in parameters for v in p))]
        closed = symbolic._closed_forms([tuple(every[5 + 3 * k : 8 + 3 * k]) for k in range(2)], *every[:5])
        forms = {name: float(form(*every)) for name, form in symbolic._symbolic_forms(2).items()}
    checks = [[c.name, c.passed, c.tolerance, c.detail] for c in symbolic.closed_form_checks(2, 1)]
    return {"closed": {name: float(value) for name, value in closed.items()}, "symbolic": forms, "checks": checks}


@verdict_case(tolerance=1e-7)
def likelihoods_along_flows():
    found = {}
    for path in ("vp", "rectified_flow"):
        exact = diffode.exact_field(TWO, path)
        own = Field.from_noise(lambda x, t, exact=exact: 1.05 * exact.noise(x, t) + 0.02 * torch.sin(x.roll(1, 1)), exact.path)
        for name, field in (("exact", exact), ("own", own), ("wrong", Wrong(TWO, exact.path))):
            x = exact.marginal(3, exact.path.t_min, generator=1)
            found[f"{name} {path}"] = [
                verify.log_likelihood(field, x, tolerance=1e-6),
                verify.log_likelihood(
                    field, x, 0.2, divergence="hutchinson", probes=3, generator=4, base_time=0.7, tolerance=1e-5
                ),
                verify.log_likelihood(
                    field, x, 0.1, base=lambda y: -y.square().sum(1), differentiable=name == "own", tolerance=1e-3
                ),
                *verify.sample_with_likelihood(field, numbers(2, 2), 0.3, base_time=0.6, tolerance=1e-5),
            ]
        found[path + " checks"] = seen(likelihood.likelihood_checks(Wrong(TWO, exact.path)))
        few, signs = numbers(2, 2), torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, 1.0]]).double()[:, None].expand(-1, 2, -1)
        found[path + " estimate"] = likelihood.hutchinson(own, few, 0.3, signs)
    clean = diffode.exact_field(TWO, "edm:sigma_min=0")
    for name, field in (
        ("clean", clean),
        ("clean own", Field.from_denoised(lambda x, t: 0.95 * clean.denoised(x, t), clean.path)),
    ):
        found[name] = verify.log_likelihood(field, numbers(3, 2), 0.0, tolerance=1e-6)
    free = Field.from_velocity(lambda x, t: torch.sin(x) * (1 + t))
    found["free"] = verify.log_likelihood(free, numbers(3, 2), 0.1, base=lambda y: -y.square().sum(1) / 2, base_time=0.9)
    found["messages"] = [
        message(verify.log_likelihood, clean, numbers(1, 2), **options)
        for options in (
            {"tolerance": 2e-3}, {"tolerance": 1e-14}, {"t": 81.0}, {"t": -0.5}, {"t": 0.1, "base_time": 0.0}, {"probes": 0},
            {"divergence": "hutchinson"}, {"divergence": "hutchinson", "probes": 0, "generator": 0},
        )
    ]  # fmt: skip
    found["messages"] += [
        message(verify.sample_with_likelihood, clean, numbers(1, 2)),
        message(verify.log_likelihood, free, numbers(1, 2)),
    ]
    return found


@verdict_case
def pictures_of_residuals():
    found = {}
    for name, target in (
        ("line", LINE),
        ("plane", TWO),
        ("space", GaussianMixture([1.0], [[0.1, 0.2, 0.3]], [[1.0, 2.0, 3.0]])),
    ):
        field = Wrong(target, paths.get("vp"))
        residuals = equations.continuity(field, equations.typical_points(field, 4, levels=(5.0, 0.5)))
        axes = picture.draw_residuals(residuals, field.path, name, 1e-3).axes
        lines = [np.asarray(line.get_xydata(), dtype=float).tolist() for line in axes[0].get_lines()]
        found[name] = [lines, [np.asarray(c.get_offsets()).tolist() for axis in axes[1:2] for c in axis.collections], len(axes)]
    return found


MAPS = (
    "exact", "ddim", "euler", "gaussian", "swapped", "scaled", "doubled", "average", "displacement", "identity", "denoiser",
    "end_only", "end_right_only", "one_jump_only", "mirrored", "other_path", "leaks", "overwrites", "one_time", "explodes",
    "raises",
)  # fmt: skip


def mapping(function, field, dim=None, fixed_end=False, **marks):
    """A function as a map that is marked."""
    phi = FunctionMap(function, field.path, dim, fixed_end=fixed_end)
    for name, value in marks.items():
        setattr(phi, name, value)
    return phi


def untied(checks):
    """Checks without the words for one of two that are equal: places of a semigroup's errors, and modes of two."""
    return seen(replace(c, detail=c.detail.split("; the mode")[0] if c.name != "semigroup" else "") for c in checks)


def judged(phi, field, **options):
    """A verdict's checks, facts and advice."""
    report = verify.check_map(phi, field, **{"points": 32, "draws": 300, **options})
    facts = {name: value for name, value in report.facts.items() if name != "pairs"}
    facts["error"] = facts["error"] if facts["error"] > SMALL else "small"
    return [untied(report.checks), {name: steady(v) if isinstance(v, str) else v for name, v in facts.items()}, report.advice]


@verdict_case
def verdicts_on_maps_of_a_gaussian():
    field, found = diffode.exact_field("gauss1d", "edm"), {}
    for name in MAPS:
        found[name] = judged(getattr(planted_maps, name)(field), field, points=16)
    found["straightened"] = judged(planted_maps.straightened(field), field)
    return found


@verdict_case
def verdicts_on_maps_of_mixtures():
    found = {}
    for path, target in (("vp", planted_maps.EVEN), ("rectified_flow", LINE)):
        field = diffode.exact_field(target, path)
        for name in ("exact", "ddim", "scaled", "denoiser"):
            found[f"{name} {path}"] = judged(getattr(planted_maps, name)(field), field, tolerance=0.02)
    field = diffode.exact_field(planted_maps.RARE, "edm")
    found["lost"] = judged(planted_maps.drops_a_mode(field), field, draws=12_500)
    own = Field.from_denoised(lambda x, t: 0.9 * field.denoised(x, t), field.path)
    found["own"] = judged(mapping(planted_maps.ddim(field), field, 1), own)
    return found


@verdict_case
def verdicts_on_maps_with_one_end():
    field, found = diffode.exact_field(LINE, "edm"), {}
    for name, options in (("ends", {"fixed_end": True}), ("generator", {"one_jump": True}), ("law", {"law_only": True})):
        for made in ("exact", "ddim", "mirrored"):
            phi = mapping(getattr(planted_maps, made)(field), field, **options)
            found[f"{name} {made}"] = judged(phi, field)
    return found


def trial(made, field, **options):
    """The trial of a map with a defect."""
    phi = mapping(getattr(planted_maps, made)(field), field, **options)
    return MapTrial.of(phi, field, 20, 0.05, 3)


@verdict_case
def errors_and_identities_of_maps():
    found = {}
    for target, path in ((SKEW, "edm"), (planted_maps.EVEN, "vp")):
        field = diffode.exact_field(target, path)
        found["factor " + path] = impostors.proportional(trial("doubled", field))
        for made in ("ddim", "euler"):
            one = trial(made, field)
            check, errors = pairs.pairs(one)
            found[f"{made} {path}"] = [
                one.times, one.states, one.pairs, one.allowed, [one.angle_rate(t) for t in one.times], seen([check]),
                [fields_of(pair) for pair in errors], pairs.two_jumps(one), seen([pairs.slope(one, 0.1)]),
                pairs.least_error(one), seen(identities.identities(one)), impostors.proportional(one),
                untied(law.law(one, 60)),
            ]  # fmt: skip
            s, t = one.times[1:3]
            x = one.states[1, :4]
            found[f"{made} {path} slopes"] = [
                identities.at_end(one, x, s, t)[1], identities.at_start(one, x, s, t), identities._moved(one, x, s, 0.1 * s),
            ]  # fmt: skip
            found[f"{made} {path} impostors"] = [
                [known.what, known.fix, [known.ends(one.states[j, :3], j, k) for j, k in ((0, 1), (1, one.last))]]
                for known in impostors._known(one)
            ]
    found["modes"] = law.law(trial("ddim", diffode.exact_field(planted_maps.RARE, "edm")), 60)[1].detail
    gentle = trial("exact", diffode.exact_field(planted_maps.EVEN, "vp"))
    flat = replace(gentle, phi=mapping(lambda x, s, t: 0.5 * x, gentle))
    found["price"] = [pairs.least_error(flat), seen([pairs.slope(flat, 0.3)])]

    def coarse(x, s, t):
        return (x.float() * (1 + t - s)[:, None].float()).to(x)

    single = replace(gentle, phi=mapping(coarse, gentle))
    x = single.states[1, :4]
    found["single"] = [identities.at_end(single, x, 0.5, 0.2)[1], identities.at_start(single, x, 0.5, 0.2)]
    return found


@verdict_case
def messages_of_maps():
    field, phi = diffode.exact_field("gauss1d", "edm"), diffode.flow(diffode.exact_field("gauss1d", "edm"))
    options = (
        {"points": 15},
        {"points": 100_001},
        {"draws": 15},
        {"draws": 10**7 + 1},
        {"seed": -1},
        {"tolerance": 0},
        {"path": "vp"},
    )
    wide = mapping(lambda x, s, t: x, field, 3)
    return {
        "options": [message(verify.check_map, phi, field, **one) for one in options],
        "dim": message(verify.check_map, wide, field),
    }
