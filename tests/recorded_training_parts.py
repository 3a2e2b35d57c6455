"""Recorded numbers of the parts of trainings: free numbers, problems, first candidates, runs of learned solvers, refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from recorded import case
from recorded_trainings import (
    EDM,
    curved,
    numbers,
    problem_of,
    published_stages,
    small_batches,
)

import diffode
from diffode import Field, Statistics, learned, paths, solvers
from diffode.errors import DiffodeError
from diffode.learned import train_compensation, train_grid, train_table, tune_universal
from diffode.learned.conditional import conditioned, conditioning
from diffode.learned.conditional.amed import LearnedAMED, Predictor, feature_width
from diffode.learned.conditional.amed_levels import AmedLevels
from diffode.learned.conditional.amed_training import _teacher
from diffode.learned.conditional.live import LiveWriter
from diffode.learned.fitting.chart import ChartTable, in_chart
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.parameters import Decoupled, Levels, Table
from diffode.learned.fitting.problems import problem_for, starts_for
from diffode.learned.fitting.trajectory import exact_trajectory
from diffode.learned.grids import levels
from diffode.learned.grids.free_levels import begun
from diffode.learned.grids.informed import InformedLevels, covering
from diffode.learned.request import Request
from diffode.learned.tables import in_chart as beginnings
from diffode.learned.tables import published
from diffode.learned.tables.training import output_weights
from diffode.tableau.stages import to_vector


def words_of(ask: Callable[[], Any]) -> str:
    """The words of the error that something is refused with."""
    try:
        ask()
    except DiffodeError as error:
        return str(error)
    return "taken"


@case(tolerance=1e-6)
def training_tables_and_their_derivatives():
    found: dict[str, Any] = {}
    origin = published_stages("ipndm:order=3", 4)
    for name, table in {
        "all": Table(origin), "weights": Table(origin, levels=False, scales=False),
        "consistent": Table(origin, consistent=True), "groups": Table(origin, groups=(1, 2, 1)),
        "both": Table(origin, consistent=True, groups=(1, 1, 2)), "first": Table(origin, groups=(2, 2)),
        "chart": ChartTable(origin),
    }.items():  # fmt: skip
        moved = table.start + 0.1 * numbers(len(table.start))
        far = table.start.clone()
        far[-3:] = torch.tensor([9.0, 2.0, -11.0]).double()
        found |= {
            f"{name} start": table.start, f"{name} stages": to_vector(table.stages(moved, 80.0, 0.002)),
            f"{name} jacobian": table.jacobian(moved, 80.0, 0.002), f"{name} confined": table.confined(far, 80.0, 0.002),
            f"{name} to zero": table.confined(far, 80.0, 0.0),
        }  # fmt: skip
    at, write = levels._writer(EDM, "dpmpp:order=2", "karras", 4, 1.5)
    for kind in (Levels, Decoupled):
        free = kind(at, write)
        moved = free.start + 0.1 * numbers(len(free.start))
        found |= {
            f"{kind.__name__} stages": to_vector(free.stages(moved, 80 / 1.5, 0.002 / 1.5)),
            f"{kind.__name__} start": free.start, f"{kind.__name__} jacobian": free.jacobian(moved, 80 / 1.5, 0.002 / 1.5),
            f"{kind.__name__} confined": free.confined(moved * 20, 80 / 1.5, 0.002 / 1.5),
        }  # fmt: skip
    return found


@case(tolerance=1e-5)
def training_problems_and_trajectories():
    found: dict[str, Any] = {}
    field, problem = problem_of("bimodal1d", 5, trajectory=0.3)
    for path in (EDM, paths.get("vp")):
        field = diffode.exact_field("bimodal1d", path)
        one = problem_for(field, path, 1, 4, 7, 0.3)
        flow = one.trajectory
        found[path.spec] = [one.start, one.end, one.unit, one.first, one.last, flow.levels, flow.states, flow.rates]
        ends = math.exp(float(flow.levels[0])), math.exp(float(flow.levels[-1]))
        found[f"{path.spec} between"] = [flow.at(level) for level in (2 * ends[0], ends[0], 7.3, 0.11, ends[1], ends[1] / 2)]
    known = Statistics.of_target("bimodal1d")
    landed = in_chart(problem, diffode.exact_field("bimodal1d", EDM), known)
    found["landed"] = [landed.start, landed.end, landed.trajectory.states, landed.trajectory.rates]
    found["starts"] = [
        starts_for(diffode.exact_field(name, EDM), dim, nfe, longer)
        for name, dim, nfe, longer in (
            ("ring8", 2, 6, 1.0), ("ring8", 2, 40, 1.0), ("ring8", 2, 40, 0.5), ("gmm40", 2, 8, 1.0), ("bimodal1d", 1, 99, 1.0),
            ("digits-empirical", 64, 6, 30.0), ("digits-gmm10", 64, 3, 2.0),
        )
    ]  # fmt: skip
    plain = Field.from_noise(curved, EDM, scale=1.0)
    found["starts of a function"] = [starts_for(plain, dim, 4, 3) for dim in (1, 3, 5, 6)]
    flow = exact_trajectory(diffode.exact_field("gauss1d", EDM), EDM, curved, numbers(2, 1))
    found["rates"] = flow.rates
    return found


@case(tolerance=1e-5)
def training_batches_of_mixtures():
    found: dict[str, Any] = {}
    for k, one in enumerate(small_batches(range(14))):
        found[str(k)] = [
            one.log_weights.exp(), one.means, one.variances, one.first, one.last, one.features.nan_to_num(9.0), one.start,
            one.end, one.noise(one.start, one.first[:, None] / 3),
        ]  # fmt: skip
    return found


@case(tolerance=1e-5)
def training_candidates_for_tables():
    found: dict[str, Any] = {}
    for target, nfe in (("ring8", 3), ("bimodal1d", 8), ("digits-gmm10", 4)):
        _, problem = problem_of(target, 70)
        some = published.candidates(problem, EDM, nfe, None)
        found[f"{target} {nfe}"] = [[one.error, one.name, to_vector(one.stages)] for one in some]
    for name in ("universal", "deis:order=3", "dpmpp:order=2@kl_optimal", "lms:order=3 @ karras:rho=5"):
        (one,) = published.candidates(problem_of("bimodal1d", 70)[1], EDM, 3, name)
        found[name] = [one.error, one.name]
    stages = published_stages("ipndm:order=3", 4)
    found["output"] = [output_weights(stages), output_weights(stages, in_chart=True)]
    return found


@case(tolerance=1e-5)
def training_free_levels():
    found: dict[str, Any] = {}
    field, problem = problem_of("ring8", 70)
    known = Statistics.of_target("ring8")
    for spec in ("ipndm:order=2,jump=1", "ab:order=2,chart=gaussian_angle"):
        asked = solvers.table_solver(solvers.informed(spec, known))
        for told in (known, known.scaled(30.0)):
            free = InformedLevels(told, field, EDM, 2, asked)
            found[f"{spec} others {told.scale:.2g}"] = [*free.others()]
        free = InformedLevels(known, field, EDM, 2, asked)
        own = free.own("karras:rho=3")
        found[spec] = [
            own, free.times(own), free.error(own, problem), free.end(own, problem), free.runner(own).spec, *free.ends,
        ]  # fmt: skip
        found[f"{spec} equations"] = free.equations(own, problem)
        found[f"{spec} begun"] = begun(free, problem, "karras:rho=5")
    gaussian = Statistics.of_target("gauss2d")
    free = InformedLevels(
        gaussian, diffode.exact_field("gauss2d", EDM), EDM, 1, solvers.table_solver(solvers.informed("ddim:jump=1", gaussian))
    )
    found["gaussian"] = [len([*free.others()]), next(free.others())]
    found["covering"] = [covering(level, 80.0, known) for level in (0.0123456, 1.0, 12.345678, 79.99999, 79.9)]
    amed = AmedLevels(known, field, EDM, 1, untrained((80.0, 3.0, 0.002), known, "euler"), 2.0)
    own = amed.own("karras:rho=3")
    found["amed"] = [own, amed.times(own[:-1]), amed.error(own, problem), len([*amed.others()]), next(amed.others())]
    found["amed equations"] = amed.equations(own, problem)
    found["amed far"] = [
        words_of(lambda jump=jump: AmedLevels(known, field, EDM, 1, amed.untrained, jump).own("karras")) for jump in (1e-9, 30)
    ]
    return found


def set_in_order(predictor: Predictor) -> Predictor:
    """A predictor with weights that no draw is needed for."""
    with torch.no_grad():
        for number, part in enumerate(predictor.parameters()):
            part.copy_(0.3 * torch.cos(torch.arange(part.numel()).double() * (number + 1.3)).reshape(part.shape))
    return predictor


def untrained(times: tuple[float, ...], known: Statistics | None, host: str | None, **others: Any) -> LearnedAMED:
    given = {"in_chart": known is not None, "analytic_first_step": False, **others}
    predictor = set_in_order(Predictor(feature_width(2), 0.2, 0.1))
    return LearnedAMED(
        predictor=predictor, times=times, levels=(times[0], times[-1]), unit=1.3, host=host, statistics=known, **given
    )


@case(tolerance=1e-6)
def training_runs_of_amed():
    found: dict[str, Any] = {"widths": [feature_width(dim) for dim in (1, 8, 9)]}
    predictor = set_in_order(Predictor(5, 0.3, 0.2))
    found["predictor"] = list(predictor(numbers(4, 5), (3.0, 0.2)))
    field, known = diffode.exact_field("moons", "edm"), Statistics.of_target("moons")
    x = 80 * numbers(5, 2)
    for host, analytic in itertools.product((None, "euler", "dpm", "ipndm", "dpmpp"), (False, True)):
        if analytic and host == "dpmpp":
            continue
        plain = untrained((80.0, 9.0, 0.5, 0.002), None, host, analytic_first_step=analytic)
        after = untrained((80.0, 3.0, 0.5, 0.002), known, host, analytic_first_step=analytic, in_chart=False)
        found[f"{host} {analytic}"] = [plain.run(field, x), after.run(field, x), plain.nfe, after.nfe]
        if host != "dpmpp":
            found[f"{host} {analytic} chart"] = untrained(
                (80.0, 3.0, 0.5, 0.002), known, host, analytic_first_step=analytic
            ).run(field, x)
    vp = diffode.exact_field("moons", "vp")
    solver = untrained((1.0, 0.4, 0.001), None, "ipndm")
    inside = untrained((1.0, 0.4, 0.2, 0.01), known, "euler")
    found["vp"] = [solver.run(vp, numbers(5, 2)), inside.run(vp, numbers(5, 2))]
    for told in ("noise", "denoised"):
        found[f"features {told}"] = solver.features(LiveWriter(vp, told, numbers(5, 2), 0.6), 0, 0.6)
    gradient = torch.autograd.grad(solver.run(vp, numbers(5, 2), cut=True)[-1].square().sum(), solver.predictor.heads.weight)[0]
    found["gradients"] = [gradient, LiveWriter(vp, "noise", numbers(5, 2), 1.0, analytic=True).evaluation(0)]
    found["teachers"] = _teacher(field, x[:2], [80.0, 5.0, 0.002], 2)
    return found


@case(tolerance=1e-6)
def training_runs_of_conditioned_tables():
    found: dict[str, Any] = {"widths": [conditioned.input_count(dim) for dim in (1, 8, 9)]}
    stages, known = published_stages("ipndm:order=2", 3), Statistics.of_target("moons")
    for dim in (2, 9):
        inputs = conditioned.input_count(dim)
        layers = tuple((numbers(inputs, 4) * (row + 1) / 3, numbers(4)) for row in range(3))
        weights = tuple(numbers(5, row + 2) / 4 for row in range(3))
        table = conditioned.Conditioned(stages, 1.4, layers, weights)
        problem = Problem(curved, 80 * numbers(6, dim), numbers(6, dim), 1.4, 80 / 1.4, 0.002 / 1.4)
        tables = [table] if dim > 2 else [table, replace(table, statistics=known, jumps_from=90.0)]
        for k, one in enumerate(tables):
            end, units = one.run(curved, problem.start)
            shifted = one.run(curved, problem.start, [numbers(row + 2, 6) for row in range(3)])[0]
            equations = conditioning.normal_equations(one, problem, 4, torch.Generator().manual_seed(4))
            found[f"{dim} {k}"] = [end, units, shifted, one.error(problem), list(one.ends), *equations]
    found["features"] = conditioned.features(numbers(2, 5), [numbers(2, 5) ** 2, numbers(2, 5) - 0.3], 0.7, 1.1)
    return found


@case
def training_refusals():
    origin, vp = published_stages("ipndm:order=3", 4), diffode.exact_field("moons", "vp")
    field, x, known = diffode.exact_field("moons", "edm"), numbers(4, 2), Statistics.of_target("moons")
    solver = untrained((1.0, 0.4, 0.001), None, "ipndm")
    cost = torch.where(torch.arange(9)[:, None] < torch.arange(9), numbers(9, 9) + 1, torch.inf)
    first = train_table("moons", 1, chart="gaussian", points=8, steps=1)
    text = "ring8 guided label=three,weight=1"
    asks = [
        lambda: Table(origin, groups=(1, 2)), lambda: Table(origin, groups=(0, 4)),
        lambda: Table(origin, groups=(2, 2), consistent=True),
        lambda: published.candidates(problem_of("bimodal1d", 6)[1], EDM, 77, "universal"),
        lambda: train_table("ring8", 3, points=7), lambda: train_table("moons", 1, chart="gaussian", points=8, smaller=first),
        lambda: train_table("ring8", 2, chart="gaussian", points=8, smaller=first),
        lambda: train_table("moons", 2, chart="gaussian", points=8, begin_from="universal"),
        lambda: beginnings.known_to(Request.of("x", vp), known.scaled(1e-5)),
        lambda: beginnings.known_to(Request.of("x", Field.from_noise(curved, EDM, scale=1.0), dim=2), known.scaled(1e-4)),
        lambda: tune_universal("moons", 99), lambda: tune_universal("moons", 99, chart="gaussian"),
        lambda: tune_universal("moons", 3, points=7), lambda: tune_universal("moons", 3, points=10**6 + 1),
        lambda: tune_universal("moons", 3, steps=2), lambda: levels.cheapest(cost, 9, 1.1),
        lambda: levels.gits(field, 4, teacher=3), lambda: levels.gits(field, 4, discount=1e3),
        lambda: levels.gits(field, 4, discount=1e-3, points=2, teacher=5),
        lambda: levels.ld3(field, 3, solver="edm_heun", points=4), lambda: levels.search(field, 101),
        lambda: train_grid("gits", "ring8", 3, solver="edm_heun"), lambda: train_grid("dmn", "ring8", 3, jump=1),
        lambda: train_grid("ld3", "ring8", 101, jump=1), lambda: train_grid("ld3", "ring8", 2, jump=1, teacher=3),
        lambda: train_grid("ld3", "ring8", 2, jump=1, solver="ddim:jump=2"), lambda: train_compensation("ring8", (4, 2)),
        lambda: train_compensation("ring8", (4, 4)), lambda: train_compensation(text, 3, weights=(1, 1)),
        lambda: train_compensation("ring8", 5, grid="karras:to_zero=true"),
        lambda: train_compensation("ring8", (4, 5), grid="80, 3, 1, 0.5, 0.002"),
        lambda: solver.follow(vp, x, [1.0, 0.3, 0.001], None), lambda: solver.follow(vp, x[:, :1], [1.0, 0.001], None),
        lambda: replace(solver, times=(1.0, 0.4, 0.01)).follow(vp, x, [1.0, 0.01], None),
        lambda: learned.condition(first, diffode.exact_field("moons", "edm:t_max=79.1"), steps=1, points=4),
        lambda: learned.condition(first, diffode.exact_field("moons", "edm:t_max=79.3"), steps=1, points=4),
        lambda: learned.condition(first, "moons", directions=1),
    ]  # fmt: skip
    return {"words": [words_of(ask) for ask in asks]}
