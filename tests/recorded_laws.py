"""Recorded numbers of laws, fields and flows."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from recorded import case, fields_of
from recorded_runs import PATHS, answer

import diffode
from diffode import Field, fields, flows, targets
from diffode.fields.field import conversion
from diffode.randomness import keyed, keyed_normals
from diffode.targets import GaussianMixture, TiltedLaw

F64 = torch.float64
#: Names before any test has added its own.
TARGETS = tuple(targets.names())
VIEWS = ("velocity", "noise", "denoised", "score")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def kinds(dim: int = 3, count: int = 3) -> dict[str, GaussianMixture]:
    """A mixture of each kind of covariance, and one of points."""
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)[:count] / 1.0
    means, root = 2 * drawn(count, dim, seed=1), drawn(count, dim, dim, seed=2)
    whole = root @ root.mT + 0.2 * torch.eye(dim, dtype=F64)
    basis, diagonal = drawn(count, dim, 1, seed=3), whole.diagonal(dim1=1, dim2=2)
    found = {"isotropic": diagonal[:, 0], "shared": torch.full((count,), 0.3, dtype=F64), "diagonal": diagonal, "full": whole,
             "alike": whole[:1].expand(count, dim, dim).clone()}  # fmt: skip
    mixtures = {name: GaussianMixture(weights, means, covariances) for name, covariances in found.items()}
    low_rank = diffode.LowRank(basis, torch.full((count,), 0.1, dtype=F64))
    made = answer(lambda: GaussianMixture(weights, means, low_rank))
    points = GaussianMixture.from_points(means, weights)
    return mixtures | ({} if isinstance(made, str) else {"low rank": made}) | {"points": points}


def moments(law: Any) -> dict[str, Any]:
    return {
        name: answer(lambda name=name: getattr(law, name)) for name in ("mean", "variance", "scale", "modes", "is_gaussian")
    }


@case
def laws_of_every_target():
    told = {}
    for name in TARGETS:
        law = targets.get(name)
        x = law.sample(3, generator=0)
        shift = law.scale * drawn(3, law.dim, seed=5)
        told[name] = {**moments(law), "sample": x, "log_prob": answer(lambda law=law, x=x, d=shift: law.log_prob(x + d))}
    return told


@case
def laws_of_each_kind_of_component():
    told: dict[str, Any] = {}
    x = 2 * drawn(5, 3, seed=4)
    alpha, sigma = torch.linspace(0.4, 1.0, 5, dtype=F64)[:, None], torch.linspace(0.1, 2.0, 5, dtype=F64)[:, None]
    for name, law in kinds().items():
        levels = {"number": (0.7, 0.6), "far": (1.0, 40.0), "near": (1.0, 1e-3), "rows": (alpha, sigma)}
        told[name] = {"moments": moments(law), "covariance": law.covariance, "sample": law.sample(4, generator=1)}
        for level, (a, s) in levels.items():
            told[name][level] = [
                law.noised_log_prob(x, a, s), law.noised_view(x, a, s, 0.3, -0.7), law.noised_score_divergence(x, a, s),
                law.responsibilities(x, a, s),
            ]  # fmt: skip
        told[name]["blurred"] = answer(lambda law=law: law.blurred(0.5).log_prob(x))
        told[name]["single"] = law.noised_view(x.float(), 0.7, 0.6, 1.0, 0.5)
    return told


@case
def laws_that_are_tilted():
    told = {}
    plane, line = targets.get("ring8"), targets.get("bimodal1d")
    for weight in (0.5, 2.0):
        for whole, part in ((plane, plane.given(plane.labels[0]) if plane.labels else plane), (line, line)):
            for sigma in (0.3, 1.0):
                law = answer(lambda p=part, w=whole, s=sigma, weight=weight: TiltedLaw(p, w, weight, 0.9, s))
                parts = law if isinstance(law, str) else [law.log_mass, law.mean, law.covariance, law.log_prob(law.mean[None])]
                told[f"{weight} {whole.dim} {sigma}"] = parts
    law = TiltedLaw(plane, plane, 1.5, 1.0, 0.5)
    return told | {"sample": law.sample(4, generator=2), "modes": law.mode_weights}


@case
def fields_at_many_levels():
    told = {}
    for target, path in itertools.product(("ring8", "digits-gmm10", "line16", "gauss64-powerlaw", "stiff-pair"), PATHS):
        field = diffode.exact_field(target, path)
        low, high = field.path.t_min, field.path.t_max
        for share in (0.0, 0.03, 0.4, 0.9, 1.0):
            t = low + (high - low) * share
            x = field.marginal(2, t, generator=3)
            answers = [answer(lambda v=view, x=x, t=t, field=field: field.predict(v, x, t)) for view in VIEWS]
            more = [
                answer(lambda x=x, t=t, field=field: field.log_prob(x, t)),
                answer(lambda x=x, t=t, field=field: field.divergence(x, t)),
            ]
            told[f"{target} {path} {share}"] = [x, *answers, *more]
    return told


@case
def fields_made_of_one_view():
    told = {}
    exact = diffode.exact_field("moons", "trigonometric")
    x, t = exact.marginal(3, 0.6, generator=0), torch.tensor([0.2, 0.6, 0.95], dtype=F64)
    for known in VIEWS:

        def function(points, time, known=known):
            return exact.predict(known, points, time)

        make = getattr(Field, f"from_{known}")
        for wanted in VIEWS:
            for when, time in (("number", 0.6), ("rows", t)):
                told[f"{known} {wanted} {when}"] = answer(
                    lambda m=make, f=function, w=wanted, time=time: m(f, exact.path).predict(w, x, time)
                )
            told[f"{known} {wanted}"] = [float(v) for v in conversion("vp", known, wanted, 0.4)]
    return told


@case(tolerance=3e-5)
def networks_that_are_fields():
    """Networks answer in single precision."""
    told = {}
    for name in fields.trained_names():
        field = fields.trained(name)
        rows = answer(lambda f=field: f.path.prior((2, *f.shape), generator=1))
        for level in (0.05, 1.0, 20.0):
            told[f"{name} {level}"] = rows if isinstance(rows, str) else answer(
                lambda f=field, rows=rows, level=level: f.denoised(rows * level / 80, level)
            )  # fmt: skip
    return told


@case
def fields_of_other_makes():
    told = {}
    x = diffode.exact_field("ring8", "edm").marginal(3, 1.5, generator=0)
    turned = diffode.exact_field("ring8", "edm").rotated(torch.tensor([[0.0, 0.4], [-0.4, 0.0]], dtype=F64))
    told["turned"] = [turned.velocity(x, 1.5), turned.score(x, 1.5), turned.log_prob(x, 1.5), turned.divergence(x, 1.5)]
    tuned = fields.skip_tuned(diffode.exact_field("moons", "edm"), 1.2)
    told["skip"] = [tuned.denoised(x, level) for level in (0.05, 1.0, 20.0)]
    told["factors"] = [fields.skip_factors(count, 0.6, 1.1) for count in (1, 2, 5)]
    return told


@case(tolerance=1e-7)
def statistics_of_models():
    field = diffode.exact_field("moons", "edm")
    data = targets.get("moons").sample(40, generator=0)
    told = answer(lambda: fields.estimate_model_statistics(field, levels=6, samples=data, generator=1))
    return {
        "told": told
        if isinstance(told, str)
        else {n: v for n, v in fields_of(told).items() if isinstance(v, torch.Tensor | float)}
    }


@case(tolerance=1e-7)
def flows_of_every_kind():
    told = {}
    for target in ("gauss2d", "bimodal1d", "line16", "ring8", "moons", "scales"):
        for path in ("edm", "vp", "rectified_flow", "sub_vp", "ddpm", "vp_cosine"):
            field = diffode.exact_field(target, path)
            start, stop = field.path.t_max, field.path.time_from_log_snr(2.0)
            x = field.prior(3, generator=0)
            found = answer(lambda f=field, x=x, a=start, b=stop: diffode.reference(f, x, a, b, 1e-8, use_cache=False))
            back = answer(
                lambda f=field, a=start, b=stop, r=found: diffode.reference(f, r.x, b, 0.5 * (a + b), 1e-8, use_cache=False).x
            )
            told[f"{target} {path}"] = [found if isinstance(found, str) else found.x, back]
    return told


@case(tolerance=0.02)
def errors_that_flows_say_of_themselves():
    """Errors are far above rounding, where they are worth a digit."""
    told = {}
    for target, path in (("ring8", "edm"), ("moons", "vp"), ("spiral", "rectified_flow"), ("grid25", "edm")):
        field = diffode.exact_field(target, path)
        for tolerance in (1e-4, 1e-6):
            for stop in (field.path.time_from_log_snr(-1.0), field.path.time_from_log_snr(4.0)):
                x = field.prior(6, generator=0)
                found = diffode.reference(field, x, field.path.t_max, stop, tolerance, use_cache=False)
                told[f"{target} {path} {tolerance} {stop:.3g}"] = [found.errors, found.error_estimate, found.method]
    return told


@case(tolerance=1e-7)
def flows_with_derivatives():
    told = {}
    for target, path in (("ring8", "edm"), ("gauss2d", "vp"), ("line16", "rectified_flow"), ("bimodal1d", "trigonometric")):
        field = diffode.exact_field(target, path)
        flow = diffode.flow(field, 1e-8)
        low, high = field.path.t_min, field.path.t_max
        s = torch.tensor([0.9, 0.5, 0.3], dtype=F64) * (high - low) + low
        t = torch.tensor([0.1, 0.4, 0.3], dtype=F64) * (high - low) + low
        x = field.marginal(3, float(s[0]), generator=1).requires_grad_()
        end = flow(x, s, t)
        (gradient,) = torch.autograd.grad(torch.cos(end).sum(), x)
        told[f"{target} {path}"] = [end, gradient, answer(lambda fl=flow, x=x, s=s, t=t: fl.average_velocity(x.detach(), s, t))]
        times = [high, 0.6 * high + 0.4 * low, 0.2 * high + 0.8 * low]
        told[f"{target} {path} states"] = flows.flow_states(field, field.prior(2, generator=2), times, 1e-8)
    return told


@case(tolerance=1e-7)
def flows_of_average_velocity():
    told = {}
    for path in PATHS:
        field = diffode.exact_field("gauss2d", path)
        flow, low, high = diffode.flow(field, 1e-8), field.path.t_min, field.path.t_max
        x = field.prior(4, generator=0)
        s, t = (low + (high - low) * torch.tensor(v, dtype=F64) for v in ([0.9, 0.5, 0.501, 0.3], [0.1, 0.499, 0.5, 0.3]))
        told[path] = answer(lambda fl=flow, x=x, s=s, t=t: fl.average_velocity(x, s, t))
    return told


@case
def draws_of_keys():
    pieces = list(keyed_normals((3,), (2, 5, 1), seed=4, key="rows"))
    rows = torch.cat([piece.to(F64) for piece in pieces])
    own = torch.rand(4, generator=keyed(3, "name"), dtype=F64)
    return {"pieces": [list(piece.shape) for piece in pieces], "rows": rows, "keyed": own}
