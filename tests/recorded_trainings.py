"""Recorded numbers of trainings: of tables, codebooks, grids, AMED and conditioned tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from published_members import like, random_members
from recorded import case
from torch import Tensor

import diffode
from diffode import Field, Statistics, learned, paths, solvers
from diffode.learned import train_amed, train_compensation, train_gaussian, train_grid, train_table, tune_universal
from diffode.learned.fitting.chart import in_chart
from diffode.learned.fitting.differences import equations_by_differences
from diffode.learned.fitting.gauss_newton import Problem, descend, fit, loss_of, normal_equations, output_directions
from diffode.learned.fitting.parameters import Table
from diffode.learned.fitting.problems import problem_for
from diffode.learned.fitting.sensitivities import Recording
from diffode.learned.grids import levels
from diffode.learned.grids.simplex import simplex
from diffode.learned.limit import Limit
from diffode.learned.request import Request
from diffode.learned.tables import in_chart as beginnings
from diffode.learned.tables.tuning_in_chart import best_tables
from diffode.learned.trained import Trained
from diffode.learned.universal import choice, codebook, family
from diffode.learned.universal.batches import Batch, Setting, batches
from diffode.solvers.trained.bespoke import shipped_members
from diffode.tableau.stages import Stages, to_vector

EDM = paths.get("edm")
NUMBERS = torch.arange(1.0, 2000.0, dtype=torch.float64)


def numbers(*shape: int) -> Tensor:
    """Numbers between -1 and 1 that no draw is needed for."""
    return torch.sin(NUMBERS[: math.prod(shape)] ** 1.5).reshape(shape)


def parts(stages: Stages) -> dict[str, Tensor]:
    return {"scales": stages.scales, "weights": stages.weights, "levels": stages.levels}


def result(trained: Trained) -> dict[str, Any]:
    """What was trained, in numbers."""
    facts, content = trained.facts, trained.content
    found = {
        "errors": list(trained.errors), "history": list(trained.history), "begun": facts.begun_from, "nfe": trained.nfe,
        "end": facts.stopped_by, "target": facts.target, "path": facts.path, "spec": trained.solver.spec,
    }  # fmt: skip
    if isinstance(getattr(content, "stages", None), Stages):
        found |= parts(content.stages)
    if trained.origin is not None:
        found["origin"] = to_vector(trained.origin)
    if trained.grid is not None:
        found["times"] = trained.grid
    if trained.statistics is not None:
        found["kind"] = trained.statistics.kind
    return found


def stop_after(count: int) -> Callable[[], bool]:
    """A request to stop that comes with its call of that number."""
    calls = itertools.count(1)
    return lambda: next(calls) >= count


def published_stages(solver: str, nfe: int, grid: str = "karras:rho=3", unit: float = 1.0) -> Stages:
    return Stages.of(solvers.get(solver).tableau(EDM, grid, nfe)).scaled(1 / unit)


def problem_of(target: str, count: int, seed: int = 3, trajectory: float = 0.0) -> tuple[Field, Problem]:
    field = diffode.exact_field(target, EDM)
    return field, problem_for(field, EDM, field.dim, count, seed, trajectory)


def curved(z: Tensor, rho: float | Tensor) -> Tensor:
    """A noise prediction that is no mixture's, which numbers hardly amplify."""
    return torch.sin(z) / (1 + rho) + 0.3 * z.roll(1, -1)


def curved_problem(count: int = 7, dim: int = 3, **others: Any) -> Problem:
    return Problem(curved, 9 * numbers(count, dim), numbers(count, dim) * 2, 1.7, 10.0, 0.01, **others)


def small_batches(seeds: Sequence[int], nfe: int = 3) -> list[Batch]:
    settings = [Setting(family.wide_mixture(s), 80.0 / (1 + s % 5), 0.002, s) for s in seeds]
    return batches([one for one in settings if one.parts.means.shape[1] <= 3], lambda dim: 4 + dim, like(nfe))


@case(tolerance=1e-6)
def training_equations_of_steps():
    found: dict[str, Any] = {}
    free = Table(published_stages("dpmpp:order=2", 3).scaled(0.1))
    few, many = curved_problem(), curved_problem(9, 7)
    field, flow = problem_of("ring8", 8, trajectory=0.7)
    landed = in_chart(flow, field, Statistics.of_target("ring8"))
    for name, problem, loss in (
        ("few", few, "mean"), ("log", few, "log"), ("many", many, "mean"), ("flow", flow, "mean"), ("log flow", flow, "log"),
        ("landed", landed, "mean"),
    ):  # fmt: skip
        stages = free.stages(free.start, problem.first, problem.last)
        both = [problem, replace(problem, start=problem.start * 0.9)]
        equations = normal_equations(free, free.start, both, loss, 0.01, 4, torch.Generator().manual_seed(1))
        found |= {f"{name} gradient": equations[0], f"{name} curvature": equations[1], f"{name} error": problem.error(stages)}
        found[f"{name} loss"] = loss_of(free, free.start, both, loss, 0.01)
        found[f"{name} wanted"] = [
            [one.weight, one.exact, one.weight_rate] for one in problem.wanted(stages.scaled(problem.unit))
        ]
    stages = free.stages(free.start, 10.0, 0.01).scaled(1.7)
    recording = Recording(curved, few.start, stages)
    every = torch.eye(3).double().expand(7, 3, 3)
    found |= {f"row {row}": recording.gradients(every, row) for row in range(3)}
    for step in (1e-6, 1e-3):
        gradient, curvature = equations_by_differences(free, free.start, few, step)
        # Differences of a short step keep half of the digits.
        found |= {f"differences {step:g}": [round(float(one), 3) for one in (gradient.norm(), curvature.norm())]}
    found["differences"] = equations_by_differences(free, free.start, many, 0.01)
    for dim in (4, 5):
        error = numbers(6, dim)
        along, share, slope = output_directions(error, error.norm(dim=1), 4, torch.Generator().manual_seed(2))
        found[f"directions {dim}"] = [torch.einsum("bsd,bse->bde", along, along), share, slope, along[:, 0]]
    return found


@case(tolerance=1e-6)
def training_fits_of_a_table():
    found: dict[str, Any] = {}
    free, problem = Table(published_stages("dpmpp:order=2", 3).scaled(0.1)), curved_problem()
    others = replace(problem, start=problem.start * 1.1)
    for name, given in {
        "mean": {}, "log": {"loss": "log", "floor": 0.1}, "short": {"steps": 2}, "impatient": {"patience": 0},
        "stopped": {"limit": Limit(stop=stop_after(2))},
    }.items():  # fmt: skip
        heard: list[Any] = []
        fitted = fit(free, [problem], [others], progress=heard.append, **{"steps": 4, **given})
        found[name] = [fitted.values, fitted.training, fitted.held_out, fitted.stopped_by, [list(one) for one in heard]]

    def valley(values: Tensor) -> float:
        return float(1 + (values[0] - 1) ** 2 + 10 * (values[1] - values[0] ** 2) ** 2)

    def slopes(values: Tensor) -> tuple[Tensor, Tensor]:
        a, b = values.tolist()
        row = torch.tensor([[1.0, 0.0], [-20 * a / 10**0.5, 10**0.5]]).double()
        return row.T @ torch.tensor([a - 1, 10**0.5 * (b - a * a)]).double(), row.T @ row

    for name, given in {
        "valley": {}, "damped": {"damping": 0.3, "least": 0.1}, "logarithmic": {"logarithmic": True},
        "confined": {"confined": lambda values: values.clamp(max=0.7)}, "wandering": {"held": lambda values: float(values[1])},
        "wrong": {"equations": lambda values: tuple(-one for one in slopes(values))},
        "rough": {"equations": lambda values: (slopes(values)[0] * 40, slopes(values)[1])},
    }.items():  # fmt: skip
        held, asked = given.pop("held", valley), {"equations": slopes, "steps": 40, "patience": 2, **given}
        fitted = descend(torch.tensor([-1.2, 1.0]).double(), valley, held, limit=None, stage="valley", progress=None, **asked)
        found[name] = [fitted.values, len(fitted.training), list(fitted.training[:9]), list(fitted.held_out[:9])]
    return found


@case(tolerance=1e-5)
def training_tables_of_published_samplers():
    heard: list[Any] = []
    return {
        "best": result(train_table("bimodal1d", 2, points=24, steps=2, progress=heard.append)),
        "heard": [list(one) for one in heard],
        "groups": result(train_table("ring8", 3, points=24, steps=2, begin_from="ipndm:order=2", groups=(1, 2))),
        "consistent": result(
            train_table("ring8", 3, points=24, steps=2, begin_from="dpmpp:order=2 @ log_snr", consistent=True, trajectory=0.4)
        ),
        "vp": result(train_table("bimodal1d", 3, path="vp", points=300, steps=1, start="universal", seed=2)),
        "stopped": result(train_table("bimodal1d", 2, points=16, steps=3, stop=stop_after(9))),
        "gaussian": result(train_gaussian([1.0, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003], 2, steps=2)),
        "gaussian from": result(
            train_gaussian([2.0, 1.0, 0.5, 0.2, 0.1, 0.02], 2, path="edm", begin_from="lms:order=3 @ karras", steps=2)
        ),
    }


@case(tolerance=1e-5)
def training_tables_in_the_chart():
    first = train_table("moons", 1, chart="gaussian", points=24, steps=2)
    return {
        "one": result(first),
        "two": result(train_table("moons", 2, chart="gaussian", points=24, steps=1, smaller=first, statistics="full")),
        "from": result(
            train_table("ring8", 2, chart="gaussian", points=24, steps=2, begin_from="ab:order=2,chart=gaussian_angle,jump=1")
        ),
        "scale": result(train_table("gmm40", 1, chart="gaussian", points=24, steps=1, statistics="scale", trajectory=0.5)),
    }


@case(tolerance=1e-5)
def training_beginnings_in_the_chart():
    found: dict[str, Any] = {}
    field, problem = problem_of("spiral", 70)
    known = Statistics.of_target("spiral")
    inside = in_chart(problem, field, known)
    for nfe in (1, 3):
        told: list[float] = []
        some = beginnings.adams(inside, known, EDM, nfe, lambda error, told=told: bool(told.append(error)))
        found[f"adams {nfe}"] = [[one.error, one.name] for one in some]
        found[f"told {nfe}"] = [len(told), [error for error in told if math.isfinite(error)]]
    stages = some[0].stages
    larger = [*beginnings.grown(stages)]
    found["grown"] = [to_vector(one) for one in larger]
    low = Stages(
        stages.scales, stages.weights, torch.cat([stages.levels[:1], stages.levels[:1] * 0.9999999, stages.levels[2:]])
    )
    twice = Stages(stages.scales, stages.weights, torch.cat([stages.levels[:3], stages.levels[2:3], stages.levels[4:]]))
    high = Stages(stages.scales, stages.weights, torch.cat([stages.levels[1:2] * 9, stages.levels[1:]]))
    found["grown aside"] = [[to_vector(made) for made in beginnings.grown(one)] for one in (low, twice, high)]
    grown = beginnings._grown(beginnings.few_starts(inside, 20), beginnings.adams(inside, known, EDM, 1)[0].stages, 3, Limit())
    found["after steps"] = [[one.error, one.name, to_vector(one.stages)] for one in grown]
    wide = [Statistics.of_target(name) for name in ("ring8", "gmm40", "spiral", "digits-gmm10", "gauss2d", "bimodal1d")]
    found["charts"] = [[beginnings.chart_named(told) for told in beginnings.gaussians(one)] for one in wide]
    request = Request.of("tune_universal", field)
    found["best"] = [[one.error, one.name] for one in best_tables(inside, known, request, 2)]
    early = Request.of("tune_universal", field, stop=stop_after(5))
    found["early"] = [[one.error, one.name] for one in best_tables(inside, known, early, 2)]
    return found


@case(tolerance=1e-4)
def training_tuned_tables():
    heard: list[Any] = []
    found = {
        "noise": result(tune_universal("moons", 3, points=60, progress=heard.append)),
        "vp": result(tune_universal("bimodal1d", 3, path="vp", points=8, seed=4)),
        "early": result(tune_universal("moons", 3, points=8, stop=stop_after(20))),
        "chart": result(tune_universal("spiral", 2, chart="gaussian", points=60, steps=2)),
        "one": result(tune_universal("stiff-pair", 1, chart="gaussian", points=20, statistics="full", stop=stop_after(60))),
    }
    _, problem = problem_of("moons", 8)
    book = shipped_members()[3]
    every = choice.choices(book, problem, (1, 2))
    ranked = choice.ranked(book, problem, every[::40])
    return found | {
        "heard": [len(heard), [list(one) for one in heard[::150]]], "choices": [len(every), list(every[7]), list(every[-1])],
        "ranked": [[error, *one] for error, one in ranked], "table": to_vector(choice.table_of(book, problem, every[30])),
    }  # fmt: skip


@case
def training_mixtures_of_the_families():
    def kept(one: Any) -> Tensor:
        spread = one.variances if hasattr(one, "variances") else one.covariances
        return torch.cat([torch.as_tensor(part).reshape(-1) for part in (one.weights, one.means, spread)])

    found = {
        f"{make.__name__} {seed}": kept(make(seed)) for make in (family.wide_mixture, family.spectral_mixture)
        for seed in range(40)
    }  # fmt: skip
    found |= {f"random {seed}": kept(family.random_mixture(seed)) for seed in range(24)}
    found |= {f"rotated {seed}": kept(family.rotated_mixture(seed)) for seed in range(8)}
    for seed in range(16):
        found[f"means {seed}"] = torch.from_numpy(family.random_means(np.random.default_rng(seed), 9, 2 + seed % 3))
    return found


@case(tolerance=1e-4)
def training_codebooks():
    problems, origins = small_batches(range(16)), codebook.published(3, like(3))
    found: dict[str, Any] = {"published": [len(codebook.published(nfe, like(nfe))) for nfe in (1, 2, 5)]}
    recipe = codebook.Recipe(members=6, begin=3, grow=2, every=2, rounds=3, share=2, directions=2, floor=1e-3)
    training = codebook.Training(problems, origins[::9], recipe, 1)
    chosen = training.best()
    found |= {
        "members": training.members, "known": training.known.clamp(max=99), "best": list(chosen),
        "second": list(training.best(1)),
    }  # fmt: skip
    members = random_members(3)
    training.members = members.clone()
    at = codebook.Assignment(torch.arange(training.count) % 3, torch.arange(training.count) % 4 + 1)
    found["errors"] = codebook.log_errors(members, at, problems, 1e-3)
    found["tuned"] = codebook.tuned(members[:1], problems[:2], 3e-5)
    found["equations"] = training.equations(at)
    system = codebook.system_of(*training.equations(at), at.member == 1)
    found["system"] = [system.gradient, system.curvature, system.size]
    found["overflow"] = codebook.log_errors(members * 1e200, at, problems, 0.0)
    found["step"] = [training.step(at), training.members, training.damping]
    found["covering"] = codebook.covering(numbers(7, 9), 5)
    heard: list[Any] = []
    trained = codebook.train_codebook(problems, origins[::9], recipe, seed=2, progress=heard.append)
    found["trained"] = [len(trained), torch.stack([one.coefficients for one in trained])]
    found["heard"] = [list(one) for one in heard]
    growing = codebook.Training(problems, origins[::9], recipe, 1)
    growing.grow(growing.best(), 3)
    growing.look_again()
    found["grown"] = [growing.members, growing.damping, growing.known.clamp(max=99)]
    return found


@case(tolerance=1e-5)
def training_grids_of_few_levels():
    cost = torch.where(torch.arange(9)[:, None] < torch.arange(9), numbers(9, 9) + 1, torch.inf)
    at, write = levels._writer(paths.get("vp"), "dpmpp:order=2", "log_snr", 3, 1.0)
    field = diffode.exact_field("moons", "edm")
    return {
        "cheapest": [levels.cheapest(cost, steps, discount) for steps in (1, 2, 4, 8) for discount in (0.5, 1.0, 1.6)],
        "gits": [
            levels.gits("ring8", 4, points=20, teacher=15), levels.gits(field, 2, points=9, teacher=9, discount=2.0, seed=1),
        ],
        "jumped": levels.gits(field, 3, points=9, teacher=15, statistics=Statistics.of_target("moons")),
        "dmn": [levels.dmn(EDM, 3), levels.dmn("vp", 2, solver="dpmpp:order=2", power=0.5), levels.dmn("vp", 1)],
        "denoised": levels.denoised_weights(published_stages("dpmpp:order=3", 4)),
        "written": [at, to_vector(write(at * torch.tensor([1, 0.9, 1.1, 1]).double()))],
        "ld3": levels.ld3("ring8", 3, points=20, rounds=2),
        "ld3 from": levels.ld3(field, 2, points=20, rounds=2, solver="ipndm:order=2", grid="karras", seed=1),
        "apart": parts(learned.ld3_decoupled("ring8", 3, points=20, rounds=2)),
        "search": levels.search(field, 2, points=12, seconds=Limit(stop=stop_after(50))),
        "search to the end": levels.search("gauss1d", 2, points=4),
        "simplex": torch.from_numpy(simplex(lambda x: float(((x - [1.0, 2.0]) ** 2 * [1, 9]).sum() + x[0] * x[1]), np.zeros(2)))
    }  # fmt: skip


@case(tolerance=1e-5)
def training_grids_with_errors():
    heard: list[Any] = []
    given = {"points": 16}
    return {
        "gits": result(train_grid("gits", "ring8", 3, teacher=12, **given)), "dmn": result(train_grid("dmn", "moons", 2)),
        "ld3": result(train_grid("ld3", "moons", 3, rounds=2, grid="karras", progress=heard.append, **given)),
        "heard": [list(one) for one in heard],
        "search": result(train_grid("search", "bimodal1d", 2, path="vp", stop=stop_after(30), **given)),
        "jumped": result(train_grid("ld3", "ring8", 2, solver="ipndm:order=2", jump="auto", rounds=2, **given)),
        "jumped gits": result(train_grid("gits", "moons", 2, jump=1.0, teacher=12, statistics="scale", **given)),
        "chart": result(train_grid("ld3", "moons", 3, solver="ab:order=2,chart=gaussian_angle", rounds=1, **given)),
        "jumped search": result(train_grid("search", "moons", 1, solver="ddim:jump=2", stop=stop_after(20), **given)),
        "apart": result(learned.train_decoupled("ring8", 3, points=16, rounds=1)),
    }  # fmt: skip


@case(tolerance=3e-4)
def training_ratios():
    text = "ring8 guided label=three,weight=1"
    heard: list[Any] = []
    several = train_compensation(text, (3, 5), weights=(1, 2.5), points=3, progress=heard.append)
    one = train_compensation("bimodal1d", 5, points=4, order=4, variant="bh1", chart="noise_log_snr", grid="karras", path="vp")
    early = train_compensation("ring8", 6, points=3, stop=stop_after(3))
    return {
        "heard": [list(told) for told in heard], "trained": [list(key) for key in several.content.trained],
        "ratios": [list(ratios) for ratios in several.content.trained.values()],
        "strengths": [list(strengths) for strengths in several.content.strengths.values()],
        "errors": [list(several.errors), list(one.errors), list(early.errors)], "ends": list(several.content.ends),
        "one": list(one.solver.ratios), "times": one.grid, "early": [list(early.solver.ratios), early.stopped_by],
    }  # fmt: skip


@case(tolerance=3e-4)
def training_amed():
    field = diffode.exact_field("moons", "edm")
    heard: list[Any] = []
    short = {"points": 24, "batch": 9, "rounds": 4}
    found = {}
    for name, given in {
        "plain": {"progress": heard.append},
        "teacher": {"teacher": 2, "host": "ipndm", "direction_range": 0.1, "time_range": 0.1},
        "end": {
            "per_step": False, "host": "dpm", "analytic_first_step": False, "rate": 0.05, "grid": [40.0, 2.0, 0.01], "seed": 1,
        },
        "hook": {"hook": lambda x, t: x / (1 + t), "host": "euler", "start": 80 * numbers(8, 2)},
        "stopped": {"stop": stop_after(2), "host": "dpmpp", "analytic_first_step": False, "order": 1},
    }.items():  # fmt: skip
        trained = train_amed(field, 2, **{**short, **given})
        found[name] = [result(trained), list(trained.solver.predictor.state_dict().values()), trained.solver.times]
    for name, given in {
        "chart": {"chart": "gaussian"}, "jump": {"jump": 1.5, "host": "euler", "grid": "karras", "analytic_first_step": False},
    }.items():  # fmt: skip
        trained = train_amed(field, 1, **{**short, "points": 64, "batch": 4, "rounds": 2, **given})
        found[name] = [result(trained), trained.solver.predictor.heads.bias, list(trained.solver.times)]
    found["heard"] = [list(one) for one in heard]
    return found


@case(tolerance=1e-4)
def training_conditions():
    found: dict[str, Any] = {}
    heard: list[Any] = []
    table = train_table("moons", 2, points=16, steps=1, begin_from="ipndm:order=2")
    inside = train_table("moons", 2, points=16, steps=1, chart="gaussian", begin_from="ab:order=2,chart=gaussian_angle,jump=1")
    for name, begin, given in (
        ("noise", table, {"progress": heard.append}), ("chart", inside, {"units": 3}),
        ("seed", table, {"seed": 1, "patience": 0}),
    ):  # fmt: skip
        trained = learned.condition(begin, "moons", **{"units": 5, "points": 80, "steps": 3, **given})
        found[name] = [result(trained), trained.content.weights, trained.content.layers[0], list(trained.content.ends)]
    found["heard"] = [list(one) for one in heard]
    return found
