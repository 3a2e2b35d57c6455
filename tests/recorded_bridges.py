"""Cases of bridges, sources, guidance and statistics: their laws and fields, boundaries, and what they refuse."""

import math

import torch
from mixed_bridges import coupled, covariances, mixture, skew, turning
from recorded import case
from recorded_maps import DOUBLE, FULL, OVAL, TWO, VIEWS, draw, said, waves

import diffode
from diffode import bridges, paths, sources
from diffode.errors import DiffodeError
from diffode.fields.guidance import GridWeight, Guidance, Projected, Rescaled, Weight, guide
from diffode.fields.guidance.guided import blurred
from diffode.sources import student
from diffode.statistics import Statistics
from diffode.statistics.of_model import ModelStatistics
from diffode.targets import GaussianMixture

#: Names before any test has added its own.
BRIDGES = tuple(bridges.names())


@case
def bridges_between_mixtures():
    x, t = waves(4, 3, size=2.0), torch.tensor([0.1, 0.45, 0.8, 0.95], dtype=DOUBLE)
    ends = {"data": mixture(2, 3, 1), "source": mixture(3, 3, 5)}
    one, two = (mixture(1, 3, k) for k in (21, 31))
    plan = ends["data"].weights[:, None] * ends["source"].weights
    of = {
        "turning": bridges.Bridge(coupled(), turning("interpolant", skew(3, 7))), "plain": bridges.Bridge(coupled(), turning()),
        "trig": bridges.Bridge("independent", "trig:sigma=0.4", **ends), "optimal": bridges.Bridge("optimal", **ends),
        "schroedinger": bridges.Bridge("schroedinger:sigma=0.7", data=one, source=two),
        "planned": bridges.Bridge(bridges.planned(*ends.values(), plan), "foellmer"),
        "blurring": bridges.Bridge("independent", bridges.Blurring(3.0, 0.1), **ends),
    }  # fmt: skip
    found = {}
    for name, b in of.items():
        found[name] = [
            b.velocity(x, t), b.score(x, 0.3), b.score(x, t), b.log_prob(x, t), b.log_prob(x * 1e3, 0.6), b.divergence(x, t),
            b.coupling.energy, b.coupling.weights, b.coupling.cross, b.scale, b.law(0.4).covariance, b.law(0.4).mean, repr(b),
            b.marginal(5, 0.4, generator=1), b.prior(3, generator=[draw(k) for k in range(3)]), b.coefficients.spec,
        ]  # fmt: skip
    b, g = of["turning"], waves(3, 3)
    ways = [b.sde(s).simulate(x, k, generator=3) for s in (0.7, lambda t: g * t) for k in ([0.9, 0.5, 0.45], [0.1, 0.4])]
    lifted = bridges.Langevin(3.0, 0.5, 2.0)
    phase = bridges.Bridge("independent", lifted, data=bridges.phase_space(TWO, 0.02))
    image = bridges.Blurring(5.0, 0.01, "2x3")
    named = [bridges.get(name) for name in BRIDGES]
    return found | {
        "ways": ways, "drift": [b.sde(g).drift(x, 0.3), b.sde(g).drift(x, 0.3, upwards=False)],
        "named": [[one.velocity(waves(2, one.dim), 0.4), one.log_prob(waves(2, one.dim), 0.4), one.scale] for one in named],
        "langevin": [*lifted.at(t, 4), lifted.drift, lifted.diffusion, phase.score(waves(3, 4), 1.5)],
        "image": [*image.at(t, 6), *image.basis(6)], "rotated": b.rotated(skew(3, 2)).velocity(x, 0.4),
        "own": [*turning().at(t, 3)],
        "refused": said(
            (b.velocity, x, 1.0 + 1e-9), (b.velocity, x, t[:2]), (b.predict, "noise", x, 0.5),
            (bridges.schroedinger, one, two, 1e7),
            *((bridges.planned, *ends.values(), plan * share) for share in (1 + 2e-6, 1 + 1e-6, -1)), (image.at, t, 5),
            (bridges.explicit, [1.0], [[0.0]], [[1.0]], [[[1.0]]], [[[1.0]]], [[[1.01]]]), (bridges.Blurring, 1.0, 1.01),
            (bridges.explicit, [1.0], [[0.0]], [[1.0]], [[[-0.5]]], [[[1.0]]]), (bridges.Blurring, 1.0, 1.0),
            (b.sde, waves(2, 2)),
            *((bridges.independent, mixture(n, 1, 1), mixture(64, 1, 1)) for n in (64, 65)),
        ),
    }  # fmt: skip


@case
def sources_of_all_kinds():
    x, points = waves(5, 2, size=2.0), GaussianMixture.from_points([[0.5, -1.0], [1.5, 0.3], [-2.0, 0.1]])
    wide, own = mixture(2, 2, 9), sources.Density(lambda u: -(u**4).sum(-1), draw=lambda g, n, d: g.uniform(-1, 1, (n, d)))
    pairs = [
        (TWO, "student:dof=3"), (TWO, "student:dof=0.5"), (points, "student:dof=5"), (points, "poisson"), (points, "density"),
        (points, "density:law=laplace"), (points, "density:law=student,dof=2.5"), (points, own), (TWO, OVAL), (FULL, wide),
        (FULL, points), (points, FULL), (TWO, points), ("ring8", "checkerboard"), ("moons", "ring8"), (points, OVAL),
    ]  # fmt: skip
    found = {}
    for k, (data, source) in enumerate(pairs):
        for path, t in (("rectified_flow", 0.35), ("edm", 1.5)):
            field = diffode.exact_field(data, path, source=source)
            rows = t * torch.linspace(0.5, 1.5, len(x), dtype=DOUBLE)
            views = [getattr(field, view)(x, when) for view in VIEWS for when in (t, rows)]
            try:
                views += [field.log_prob(x, t), field.log_prob(x, rows), field.divergence(x, t), field.divergence(x, rows)]
            except DiffodeError as error:
                views.append(str(error))
            found[f"{k} on {path}"] = [*views, field.prior(3, generator=1)]
    nodes = [student.nodes_between(dof, 2, -3.0, 1.0) for dof in (0.5, 4.0, 300.0)]
    return found | {
        "nodes": [[len(one.widths), *one[:2]] for one in nodes], "depths": [student._depth(k) for k in (0.3, 2.0, 500.0)],
        "drawn": [sources.get(s).sample(3, 2, generator=[draw(k) for k in range(3)]) for s in ("student:dof=2", "density")],
        "keyed": [*sources.get("density:law=laplace").keyed_draws(2, [100, 300, 5], seed=1, key="k")],
        "refused": said(*((sources.get, f"student:dof={k}") for k in (0, 0.0009, 0.001, 1e12, 2e12)), (sources.get, "studnt")),
    }  # fmt: skip


@case
def guidance_of_all_kinds():
    x, t, grid = waves(5, 2, size=3.0), torch.linspace(0.1, 0.9, 5, dtype=DOUBLE), [0.9, 0.5, 0.2, 0.05]
    one, other = (diffode.exact_field(of, "vp") for of in (TWO, FULL))
    fields = {
        "cfg": guide(one, other, 2.5), "table": guide(one, other, {0.1: 1.5, 1.0: 3.0, 8.0: 0.5}, interval=(0.3, 5.0)),
        "function": guide(one, other, lambda level: 1 + level), "rescaled": guide(one, other, 3.0, kind="rescaled", phi=0.6),
        "usual": guide(one, other, 3.0, kind="rescaled", view="denoised"), "auto": guide(one, None, 2.0, kind="auto"),
        "projected": guide(one, other, 3.0, kind="projected", eta=0.3, norm=0.8),
        "none": guide(one, other, 0.0), "alone": guide(one, other, 1.0), "negative": guide(one, other, 0.0, kind="projected"),
    }  # fmt: skip
    found = {}
    for name, field in fields.items():
        views = [getattr(field, view)(x, when) for view in VIEWS for when in (0.3, t)]
        found[name] = [*views, field.calls, field.nfe, [[a, b] for _, a, b in field.pieces(0.95, 0.01)]]
    plus = guide(one, other, 0.6, kind="cfg++", grid=grid)
    table = Weight({0.1: 1.5, 1.0: 3.0, 8.0: 0.5}, 0.3, 5.0)
    asked = [0.0, 0.05, 0.29, 0.3, 0.7, 1.0, 5.0, 5.01, 80.0]
    return found | {
        "plus": [plus.weight.rising, diffode.solve(plus, x, solver="ddim", grid=grid).x],
        "weights": [[table.at(k) for k in asked], table.at(torch.tensor(asked, dtype=DOUBLE))],
        "levels": [table.levels, Weight(2.0, 0.3).levels],
        "low": [Weight({0.1: 1.5, 1.0: 3.0}).at(k) for k in (0.0, 1e-320, 0.1, 0.5, 1.0, 7.0)],
        "between": [repr(Weight(2.0, 0.3, 5.0).between(*ends)) for ends in ((math.inf, 5), (5, 0.3), (0.3, 0), (math.inf, 0))],
        "blurred": [blurred(one, 0.3).scale, blurred(one, 0.3).score(x, 0.4)],
        "rules": [rule.mixed(x, waves(5, 2), 3.0) for rule in (Rescaled(), Projected(0.5), Projected(norm=1.0))],
        "texts": [Guidance.read(k).text for k in ("label=three,weight=7", "weight=2,kind=auto,blur=0.3")],
        "refused": said(
            (Weight, 1.1e6), (Weight, 1e6), (Weight, {1.0: 2.0}), (Weight, 2.0, 3.0, 3.0), (Weight, 2.0, -0.1), (Rescaled, 1.1),
            (GridWeight.on, [1.0, 1.0], 0.5), (plus.velocity, x, 0.4), (plus.velocity, x, 0.5), (Projected, 0.0, 0),
            (Projected, 1.1),
            (blurred, one, 1e-7), (blurred, one, 1e-6),
            *((Guidance.read, k) for k in ("weight=1", "label=a", "label=a,wait=2")),
        ),
    }  # fmt: skip


@case
def statistics_of_all_kinds():
    rows, vp = waves(7, 6) + 0.3 * waves(7, 6, seed=3) ** 2, paths.get("vp")
    whole, centre = covariances(1, 6, 4)[0], waves(6, seed=2)
    shapes = {"low_rank": {"rank": 2}, "cosine": {"shape": (2, 3)}, "fourier": {"shape": (1, 2, 3)}}
    full, off = Statistics.of_covariance(centre, whole), 1e-9 * torch.eye(6, dtype=DOUBLE).roll(1, 0)
    found = {}
    for kind in ("scale", "diagonal", "low_rank", "full", "cosine", "fourier"):
        of = shapes.get(kind, {})
        for k, one in enumerate((Statistics.of_samples(rows, kind, **of), full.reduced(kind, **of))):
            scaled = one.scaled(-1.5)
            found[f"{kind} {k}"] = [
                one.variances, one.covariance, one.mean, one.scale, one.largest, one.spectral_mean(0.5),
                one.deviations(vp, 0.3),
                one.mean_along(one.basis.count).abs(), one.flow(rows, vp, 0.9, 0.2), one.noise(rows, vp, 0.4), repr(one),
                one.basis.multiplicity, one.basis.mean_square(rows), one.basis.width, scaled.mean, scaled.variances,
                one.gaussian,
                [one.alike(one.scaled(1 + share)) for share in (4e-10, 6e-10, 2e-9)],
            ]  # fmt: skip
    level, l = waves(4).cumsum(0).abs().cumsum(0), waves(4, 2)
    return found | {
        "of_model": [
            repr(ModelStatistics(level, l, l, l)), repr(ModelStatistics(level, *(k * l[:, :1] for k in (1, 1, 0)), True)),
        ],
        "given": [repr(one) for one in (Statistics.of_covariance(centre, 2.0), Statistics.of_target("moons", "scale"))],
        "refused": said(
            (Statistics.of_covariance, centre, whole - torch.eye(6)), (full.reduced, "cosine"), (full.mean_along, 5),
            (full.check_dim, 5),
            *((Statistics.of_covariance, centre, whole + k * off) for k in (3.0, 0.1)),
            (Statistics.of_covariance, centre * 2e15, whole),
            *((Statistics.of_covariance, centre, torch.tensor(k, dtype=DOUBLE)) for k in (1.1e30, 1e30)),
            (ModelStatistics, l[0], l, l, l),
            *((ModelStatistics, level[:n], l[:n], l[:n], l[:n]) for n in (3, 4)), (Statistics.of_samples, rows[:1]),
            (full.scaled, 0.0),
            (ModelStatistics, level, l, l[:3], l), (ModelStatistics, level, l, l, l, True),
        ),
    }  # fmt: skip
