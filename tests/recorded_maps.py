"""Cases of flow maps, heads and jump tables: their parts, a few steps of trainings, and what they refuse."""

import dataclasses
import math
import tempfile
from pathlib import Path
from unittest import mock

import torch
from recorded import case
from torch import nn

import diffode
from diffode import maps, paths
from diffode.errors import DiffodeError
from diffode.learned import train_head, train_jump, train_map, train_nodes
from diffode.learned.heads import features, head_training, jump_fit, jump_training, networks
from diffode.learned.heads.pairs import pairs_of
from diffode.learned.heads.soap import SOAP
from diffode.learned.limit import Limit
from diffode.learned.maps import identity, laws, losses, moments, optimisers
from diffode.learned.maps.law_run import LawRun
from diffode.learned.maps.options import options_of
from diffode.learned.maps.residuals import Context, Term
from diffode.learned.maps.run import Run
from diffode.learned.maps.sources import Sources
from diffode.learned.maps.table import COMMON, MAP_METHODS
from diffode.learned.maps.training import _budgets
from diffode.learned.request import Request
from diffode.maps import AngleClock, AngleMap, FunctionMap, LearnedMap
from diffode.maps.flow_map import uniform
from diffode.maps.networks import OneTime, multiply_adds, network
from diffode.maps.networks import features as of_angles
from diffode.maps.parametrisations import PARAMETRISATIONS
from diffode.targets import GaussianMixture
from diffode.tensor_files import read_tensors, write_tensors

EDM, DOUBLE = paths.get("edm"), torch.float64
#: One Gaussian that is not round, whose flow is closed, and two that are narrow, whose flow divides.
OVAL = GaussianMixture([1.0], [[1.0, -0.5]], [[2.0, 0.3]])
TWO = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.5, 0.25]], [[0.05, 0.2], [0.1, 0.02]])
FULL = GaussianMixture([0.4, 0.6], [[0.5, -1.0], [2.0, 0.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.2]]])
VIEWS = ("velocity", "denoised", "noise", "score")


def waves(*shape, seed=0, size=1.0):
    """Numbers that no symmetry holds for."""
    return size * torch.sin(1.7 * torch.arange(math.prod(shape), dtype=DOUBLE) + 0.9 * seed + 0.4).reshape(shape)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(net, seed=0, size=0.5):
    """A network in double precision whose weights are waves."""
    with torch.no_grad():
        for k, part in enumerate(net.double().parameters()):
            part.copy_(waves(*part.shape, seed=seed + k, size=size))
    return net


def perceptron(dim=2, seed=0, width=4, depth=1):
    return filled(network("perceptron", (dim,), width=width, depth=depth), seed)


def sources_of(target, path="edm"):
    request = Request.of("test", target, path=path)
    return Sources(request, 12, dtype=DOUBLE), request


def said(*calls):
    """What functions with arguments refuse with, or "nothing" where they go through."""
    found = []
    for function, *given in calls:
        try:
            function(*given)
            found.append("nothing")
        except DiffodeError as error:
            found.append(str(error))
    return found


@case
def maps_in_the_angle_clock():
    clock, y = AngleClock(torch.tensor([0.5, -0.25], dtype=DOUBLE), 2.0), waves(4, 2)
    found = {}
    for spec in ("edm", "vp", "rectified_flow"):
        path = paths.get(spec)
        rows = torch.linspace(path.t_min, path.t_max, 5, dtype=DOUBLE)[1:]
        field, angle = diffode.exact_field(TWO, path), clock.angle(path, rows)
        found[spec] = {
            "angles": [angle, clock.angle(path, float(rows[1])), clock.time(path, angle), clock.time(path, 0.7)],
            "states": [clock.state(y, path, rows), clock.state(y, path, float(rows[2]))],
            "points": [clock.point(y, path, rows), clock.point(y, path, float(rows[2]))],
            "velocity": clock.velocity(field, y, torch.full((4,), 0.9, dtype=DOUBLE)),
            "denoised": clock.denoised(field, y, torch.linspace(0.2, 1.5, 4, dtype=DOUBLE), (2,)),
        }
    own = diffode.Field.from_denoised(lambda x, t: x / (1 + t) + 0.5, EDM, scale=1.5)
    guessed, exact, one = AngleClock.of(own, 3), AngleClock.of(diffode.exact_field(TWO, "edm")), torch.ones(1, dtype=DOUBLE)
    return found | {
        "levels": [clock.cosine(3.0), clock.inward(y, 3.0), clock.outward(y, 0.3), clock.asked(torch.mul, y, 2.0)],
        "guessed": [guessed.mean, guessed.scale, exact.mean, exact.scale, exact.dim],
        "refused": said(*((AngleClock, one, scale) for scale in (1e15, 1.01e15, 1e-15, 0.9e-15)), (AngleClock, one[None], 1.0)),
    }  # fmt: skip


@case
def maps_of_all_parametrisations():
    a, b, y = torch.linspace(0.3, 1.5, 4, dtype=DOUBLE), torch.linspace(0.1, 0.9, 4, dtype=DOUBLE), waves(4, 2)
    found = {}
    for name, one in PARAMETRISATIONS.items():
        phi = AngleMap(perceptron(seed=2), name)
        found[name] = [
            one.meaning, *one.coefficients(a, b), *one.rates(a, b)[0], *one.rates(a, b)[1], phi(y, a, b), phi.velocity(y, a),
            *phi.at_end(y, a, b), *phi.at_start(y, a, b, waves(4, 2, seed=1)), *phi.network_at_start(y, a, b, waves(4, 2)),
        ]  # fmt: skip
    return found


@case
def maps_of_all_networks():
    a, b = torch.tensor([0.0, 0.4, 1.2, math.pi / 2], dtype=DOUBLE), torch.tensor([0.0, 0.1, 0.9, 1.0], dtype=DOUBLE)
    deep, images = perceptron(3, width=5, depth=3), filled(network("unet", (2, 4, 4), width=8), size=0.2)
    fresh = [network("perceptron", (2,), width=3, depth=2), network("unet", (1, 2, 2), width=4)]
    return {
        "features": of_angles(a, b),
        "answers": [deep(waves(4, 3), a, b), OneTime(deep)(waves(4, 3), a, b), images(waves(4, 32), a, b)],
        "fresh": [net(torch.ones(2, 2 * k + 2), *torch.ones(2, 2)) for k, net in enumerate(fresh)],
        "counts": [[sum(p.numel() for p in net.parameters()) for net in (deep, images, *fresh)], multiply_adds(fresh[0], 2)],
        "products": [multiply_adds(network("unet", (2, 4, 4), width=8), 32)],
        "refused": said(*((lambda shape: network("unet", shape, width=4), n) for n in ((1, 3, 3), (1, 4, 2), (4, 4)))),
    }  # fmt: skip


def learned(**changed):
    clock = AngleClock(torch.tensor([0.5, -0.25], dtype=DOUBLE), 2.0)
    ends = tuple(float(clock.angle(EDM, t)) for t in (EDM.t_max, EDM.t_min))
    given = {"angles": ends, "path": EDM, "grids": {2: (ends[0], 0.8, ends[1])}} | changed
    return LearnedMap(perceptron().float(), "perceptron", (2,), 4, 1, "trig", clock, **given)


@case
def maps_and_the_times_they_take():
    phi, x = learned(), waves(3, 2, size=10.0)
    inner = learned(angles=(1.2, 0.1), grids={})
    near = [inner.clock.time(EDM, angle) for angle in (1.2, 1.2 + 9e-7, 1.2 + 2e-6, 0.1 - 9e-7, 0.1 - 2e-6)]
    vp, plain = paths.get("vp"), FunctionMap(lambda x, s, t: x * (1 + s - t)[:, None], "vp", 2)
    rows = torch.tensor([1.0, 0.5, 0.25], dtype=DOUBLE)
    return {
        "answers": [phi(x, 80.0, 0.002), phi(x, rows * 80, rows), phi.on("vp")(x, 0.9, 0.5), plain(x, 1.0, rows)],
        "times": [phi.times(2), phi.times(3), phi.on("vp").times(3), inner.times(3), plain.times(3), learned(path=vp).times(2)],
        "of_paths": [FunctionMap(lambda x, s, t: x, spec).times(3) for spec in ("rectified_flow", "edm")],
        "ends": [phi.ends, inner.ends, phi.on("rectified_flow").ends, phi.multiply_adds, phi.name, phi.dim, phi.cost],
        "uniform": [uniform((1.5, 0.1), 1), uniform((1.5, 0.1), 4)],
        "refused": said(
            *((inner, x, t, 0.5) for t in near), *((inner, x, 1.0, t) for t in near), (phi, x, 1.0, 1.1),
            (phi, x[:, :1], 1.0, 0.1),
            (phi, x, 1.0, 1.0 + 1e-7), (learned(both_ways=True), x, 1.0, 1.1), (learned(fixed_end=True), x, 1.0, 0.01),
            (learned(one_jump=True, fixed_end=True), x, 79.0, 0.002), (learned(one_jump=True).times, 2),
            (phi, x, rows[:2], 0.1),
            (plain.on, "edm"), (FunctionMap, lambda x, s: x), (FunctionMap(lambda x, s, t: x[:1]), x, 1.0, 0.5),
            (phi, x[0], 1, 0.1),
        ),
    }  # fmt: skip


@case
def maps_their_angles_and_states():
    found = {}
    for name, target, path in (("ring", "ring8", "edm"), ("oval", OVAL, "rectified_flow"), ("line", "bimodal1d", "vp")):
        own, _ = sources_of(target, path)
        a = laws.one(own, 5, "uniform")
        noised, y = own.noised(a), own.prior(5)
        found[name] = {
            "laws": [laws.one(own, 16, law) for law in laws.LAWS] + [laws.karras(own, 16, reach) for reach in (0.3, 1.0)],
            "two": [*laws.two(own, 24, "edm", same=0.4, ends=0.3), *laws.two(own, 6, "scm")],
            "levels": [laws.levels(own, 5, grid) for grid in ("angle", "karras", "time_uniform")],
            "dyadic": laws.dyadic(own, 24),
            "states": [noised.y, noised.velocity(a), noised.at(a / 2), y, own.normal(3, 2), own.angles, own.dim],
            "teacher": [own.velocity(y, a), own.denoised(y, a), *(own.step(y, a, a / 2, kind) for kind in ("euler", "heun"))],
            "picked": [own.rows(9), *own.levels(24, 0.3)], "ways": [*own.trajectories],
        }  # fmt: skip
    return found


@case(tolerance=1e-5)
def maps_in_damaged_files():
    trained = train_map("flow_map:width=4,depth=1,batch=8", OVAL, nfe=(1,), points=8, steps=1)
    changes = [
        {"width": 4097}, {"width": 0}, {"width": -1}, {"depth": 65}, {"depth": 64}, {"fixed_end": 1}, {"one_jump": True},
        {"depth": 2},
        {"shape": [10**4 + 1]}, {"shape": [10**4, 101]}, {"shape": [3]}, {"kind": "unet"}, {"kind": "unet", "width": 6},
        {"scale": 1e16}, {"angles": [0.5, 0.7]}, {"angles": [1.6, 0.1]}, {"angles": [1.5, -0.1]}, {"angles": [1.5]},
        {"grids": {"0": [1.5]}}, {"grids": {"1001": [1.5]}}, {"grids": {"1": [1.5, 0.1]}}, {"grids": {"2": [1.5, 0.1]}},
        {"held_out": {"1": -1.0}}, {"held_out": {"1": None}}, {"held_out": {"1000": 0.0}}, {"shape": []}, {"grids": []},
    ]  # fmt: skip
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "map.safetensors"
        trained.save(file)
        description, tensors = read_tensors(file, "diffode-map-1")
        for change in changes:
            write_tensors(file, tensors, {**description, **change})
            lines += [line.replace(str(file), "FILE") for line in said((maps.load_map, file))]
        trained.save(file)
        back = maps.load_map(file, "vp")
    return {"lines": lines, "answers": back(waves(3, 2), 0.5, 0.1), "held_out": trained.held_out, "named": sorted(description)}


@case
def maps_along_a_table_of_the_teacher():
    own, _ = sources_of("digits-gmm10")
    with mock.patch("diffode.learned.maps.sources._CHUNK", 5):
        known = own.trajectories
    return {"angles": known.angles, "origin": known.origin, "ends": known.states[-1], "states": known.states[:, 1]}


#: Methods with options, each with the share of a training that is done.
ASKED = [
    *((name, 0.6) for name in MAP_METHODS), *((name, 0.1) for name in ("tcm", "scd", "sct", "ayf_emd", "ict", "ect")),
    ("progressive", 0.1), ("ict", 0.99), ("progressive", 0.99), ("anyflow", 0.2), ("meanflow:teacher=exact,same=0.5", 0.6),
    ("lmd:weight=none,same=0", 0.6), ("shortcut:weight=none", 0.6), ("shortcut:law=uniform,middle=half", 0.6),
    ("cd:law=edm", 0.6),
    ("imm:pairs=distinct,group=3,halvings=2,power=2", 0.6), ("sid:alpha=1.2,reach=0.5", 0.6),
    ("multistep_cd:teacher=none", 0.6), ("multistep_cd:grid=angle,levels=8", 0.6),
    ("esd:same=0.25,norm=learned", 0.6), ("flow_map:norm=distance,ends=0.1", 0.6), ("flow_matching:teacher=exact", 0.6),
    ("ctm:whole=0.9,steps=2,step=euler", 0.6),
]  # fmt: skip


def of_method(spec, share, own, request, n=16):
    row, options = options_of(spec)
    own.generator = request.stream("batches")
    phi, other = (AngleMap(perceptron(own.dim, seed), options["parametrisation"]) for seed in (1, 5))
    frozen = {} if share < 0.5 else {k: AngleMap(perceptron(own.dim, 9 + k), options["parametrisation"]) for k in range(6)}
    fake = AngleMap(perceptron(own.dim, 7), "trig") if row.generate is not None else None
    context = Context(phi, other, own, options, share, frozen, fake=fake)
    terms = row.residual(context, n)
    loss = losses.loss_of(terms, options["norm"], options.get("power", 1.0), filled(losses.weigher(), size=0.2))
    loss.backward()
    gradient = [part.grad for part in phi.parameters()]
    shown = [[term.residual, term.weight, *(term.span or ())] for term in terms]
    if fake is not None:
        shown += [[term.residual, term.weight] for term in identity.fake_score(context, n, row.generate)]
    return {"terms": shown, "loss": float(loss.detach()), "gradient": gradient}


@case(tolerance=5e-7)
def maps_residuals_of_all_methods():
    own, request = sources_of(TWO)
    return {f"{spec} at {share}": of_method(spec, share, own, request) for spec, share in ASKED}


def running(spec, target, budgets, total):
    """A training in double precision."""
    row, options = options_of(spec)
    own, request = sources_of(target)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    try:
        return (LawRun if row.law_only else Run)(row, options, request, own, budgets, total, None, "asked")
    finally:
        torch.set_default_dtype(before)


@case(tolerance=3e-6)
def maps_trained_for_a_few_steps():
    found = {}
    for spec, total, budgets in (
        ("flow_map:width=6,depth=2,batch=16", 38, (2, 3)), ("tcm:width=6,depth=1,batch=16,optimiser=muon", 8, (1,)),
        ("reflow:width=6,depth=1,batch=16,rounds=2", 6, (2,)), ("progressive:width=6,depth=1,batch=16", 40, (1, 2)),
        ("lsd:width=6,depth=1,batch=16,norm=learned", 5, (4,)), ("sid:width=6,depth=1,batch=16", 6, (1,)),
        ("anyflow:width=6,depth=1,batch=16", 12, (1,)),
        ("meanflow:width=6,depth=1,batch=16,target=average,average=0.5", 5, (2,)),
    ):  # fmt: skip
        one = running(spec, OVAL, budgets, total)
        trained = one.trained()
        phi, facts = trained.map, trained.facts
        found[spec] = {
            "history": [*trained.history], "grids": phi.grids, "held_out": trained.held_out, "method": phi.method,
            "weights": [*phi.net.parameters()], "frozen": sorted(one.frozen),
            "errors": [facts.start_error, facts.held_out_error], "rates": [one._rate(k) for k in range(1, total + 1)],
            "said": [repr(trained), one.asked.split(", begun")[0], facts.begun_from],
        }  # fmt: skip
    return found


@case
def maps_of_optimisers_and_losses():
    found = {}
    for kind in optimisers.OPTIMISERS:
        net = perceptron(3, width=5)
        steps = optimisers.Optimisers([*net.parameters()], kind, 0.03, [nn.Parameter(waves(2))])
        for k in range(3):
            steps.step(net(waves(6, 3, seed=k), waves(6) ** 2, waves(6, seed=1) ** 2).square().sum(), 1.0 - k / 4, 0.5)
        found[kind] = [len(steps.all), *net.parameters()]
    known = Term(waves(5, 3), waves(5, seed=1) ** 2, (waves(5) ** 2, waves(5, seed=2) ** 2)), Term(waves(3, 3, size=1e-3))
    weigher = filled(losses.weigher(), size=4.0)
    own = [waves(3, 3, seed=k).requires_grad_() for k in range(2)] + [waves(3).requires_grad_()]
    soap = SOAP(own, [0.1, 1.0, 0.5], first=0.9, second=0.8, every=4)
    for k in range(9):
        value = sum((part + waves(*part.shape, seed=k)).square().square().sum() for part in own)
        soap.step(torch.autograd.grad(value, own), 0.05 / (k + 1))
    x, y, width = waves(2, 4, 3), waves(2, 4, 3, seed=1), torch.tensor([0.5, 2.0], dtype=DOUBLE)
    angles = torch.tensor([0.1, 0.9, 1.5], dtype=DOUBLE)
    return found | {
        "soap": own, "orthogonal": [optimisers.orthogonal(waves(3, 5)), optimisers.orthogonal(waves(5, 3))],
        "losses": [losses.loss_of(known, norm, power, weigher) for norm in losses.NORMS for power in (0.5, 1.0)],
        "moments": [moments.squared_discrepancy(x, y, width, k) for k in moments.PAIRS],
        "gradients": [moments.discrepancy_gradient(x, y, width, k) for k in moments.PAIRS],
        "imm": [moments.weight(angles, 5.0, 2.0), moments.lower(angles, (1.5, 0.1), 3), moments.toward(x[0], y[0])],
        "options": [COMMON, {name: row.defaults for name, row in MAP_METHODS.items()}],
        "refused": said(*((options_of, spec) for spec in (
            "imm:group=1,pairs=distinct", "imm:group=5,batch=4", "imm:group=4,batch=4", "multistep_cd:levels=81", "cd:ends=1.1",
            "sid:reach=0", "sid:reach=1.0", "tcm:border=0", "cd:rate=0", "tcm:edge=1.1", "cd:levels=0", "sid:norm=huber",
            "cd:levls=3",
        ))),
        "budgets": [_budgets(None, "cd", True, False), _budgets(None, "lsd", False, False), _budgets(3, "lsd", False, False)],
    }  # fmt: skip


@case(tolerance=1e-6)
def heads_and_jump_tables():
    request = Request.of("test", TWO)
    own = pairs_of(request, AngleClock.of(request.field, 2), 24, "training")
    numbers = jump_fit.ddim_numbers(own, torch.tensor([5.0, 0.6], dtype=DOUBLE))
    inputs = head_training._inputs(numbers, own)
    layers = tuple(features.drawn_layer(one, 5, (0.5, 5.0), draw(k)) for k, one in enumerate(inputs))
    featured = features.Featured(numbers, layers, (waves(6, 2, size=0.1), waves(6, 2, seed=1, size=0.1)))
    begun = networks.begun(numbers, 2, 2, 2, draw(3))
    double = begun.of([part.double() for part in begun.tensors()])
    few, plain = own.part(slice(8)), Limit()
    last, told = networks.train_last(double, own, few, networks.Descent(45, 8, 0.05), draw(1), plain, None)
    both, more = networks.train_together(double, own, few, networks.Descent(6, 8, 0.02), draw(2), plain, None)
    hard = [own.hardest(own.distance(jump_fit.run(numbers, own)), count, draw(5)) for count in (9, 20)]
    beyond = dataclasses.replace(own, weight=own.weight * math.inf)
    return {
        "pairs": [own.levels, own.start, own.end, own.made, own.error, own.weight, beyond.mean_distance(own.start)],
        "hard": [[one.start, one.weight] for one in hard],
        "confined": [numbers.confined(*ends).levels for ends in ((4.0, 0.5), (8.0, 0.7))],
        "numbers": [numbers.vector(), jump_fit.run(numbers, own), jump_fit.error_of(numbers, own)],
        "equations": [*jump_fit.normal_equations(numbers, own, 4, draw())],
        "featured": [*layers[0], *layers[1], featured.error(own), *features.normal_equations(featured, own, 4, draw())],
        "ladders": [torch.stack([*jump_training._ladders(own, n)]) for n in (1, 3)],
        "points": [jump_training.jump_points(request, n) for n in (1, 4)],
        "begun": [*begun.tensors()], "last": [*last.tensors(), told],
        "both": [*both.tensors(), more, networks.error_of(both, own)],
    }  # fmt: skip


@case(tolerance=3e-5)
def heads_trained_for_a_few_steps():
    seen = []
    trained = [
        train_jump(TWO, 2, points=12, steps=2, progress=seen.append), train_head(TWO, 1, points=16, steps=1, units=4),
        train_head(TWO, 1, kind="network", points=16, steps=2, units=2, layers=1),
    ]  # fmt: skip
    line, plane = (train_nodes(of, 1, points=16, count=n, span=4.0) for of, n in (("bimodal1d", 17), (OVAL, 5)))
    other = train_nodes("bimodal1d", 1, points=16, count=9, kind="linear", path="vp")
    return {
        "tables": [[one.content.levels, one.content.kept, one.content.weights, one.content.training_error] for one in trained],
        "seen": [[one.stage, one.number, one.total] for one in seen], "histories": [[*one.history] for one in trained],
        "errors": [[one.facts.start_error, one.facts.held_out_error, one.facts.begun_from] for one in trained],
        "nodes": [[one.content.ends, one.content.kind, one.facts.start_error, *one.history] for one in (line, plane, other)],
        "refused": said((train_nodes, "ring8", 2), (train_nodes, "digits-gmm10", 1), (train_jump, TWO, 0)),
    }  # fmt: skip
