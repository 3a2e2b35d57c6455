"""Specs and objects at every public door, and what the commands share."""

import inspect
from pathlib import Path

import pytest
import torch

import diffode
from diffode import adapters, charts, fields, grids, learned, metrics, paths, solvers, studies, targets, verify
from diffode.fields import ExactField, Field
from diffode.learned import levels

SHIPPED = Path(fields.__file__).parent / "weights/ring8.safetensors"
EDM, RING = paths.get("edm"), targets.get("ring8")
WORDS = {
    "path": ("edm", EDM),
    "target": ("ring8", RING),
    "solver": ("dpmpp:order=2", solvers.get("dpmpp:order=2")),
    "grid": ("karras:rho=5", grids.karras(5.0)),
}


def exact():
    return diffode.exact_field("gauss1d", "edm")


def start(n=3):
    return exact().prior(n, generator=0)


def denoise(x, t):
    return 0 * x


#: What every public function with such a parameter is called with, the parameter itself apart.
DOORS = {
    "adapters.as_azula_sampler": lambda **k: adapters.as_azula_sampler(**({"solver": "ddim"} | k)).__name__,
    "adapters.as_k_diffusion_sampler": lambda solver: adapters.as_k_diffusion_sampler(solver)(
        adapters.as_k_diffusion(exact()), start(), [80.0, 2.0, 0.0]
    ),
    "adapters.as_diffusers_scheduler": lambda solver: solvers.get(adapters.as_diffusers_scheduler(solver).config["solver"]),
    "adapters.from_edm": lambda path: adapters.from_edm(denoise, path).path.spec,
    "adapters.from_k_diffusion": lambda path: adapters.from_k_diffusion(denoise, path).path.spec,
    "adapters.from_flow_matching": lambda path: adapters.from_flow_matching(denoise, path).path.spec,
    "adapters.from_torchdiffeq": lambda path: adapters.from_torchdiffeq(lambda t, x: -x, path).path.spec,
    "charts.get": lambda path: charts.get("data", path).path.spec,
    "charts.DataChart": lambda path: charts.DataChart(path).path.spec,
    "charts.StochasticDataChart": lambda path: charts.StochasticDataChart(path, 1.0).path.spec,
    "fields.ExactField": lambda **k: ExactField(**({"target": "ring8", "path": "edm"} | k)).velocity(torch.ones(1, 2), 2.0),
    "fields.exact_field": lambda **k: diffode.exact_field(**({"target": "ring8", "path": "edm"} | k)).velocity(
        torch.ones(1, 2), 2.0
    ),
    "fields.Field": lambda path: Field(denoise, "denoised", path).noise(torch.ones(1, 2), 2.0),
    "fields.Field.from_velocity": lambda path: Field.from_velocity(denoise, path).noise(torch.ones(1, 2), 2.0),
    "fields.Field.from_noise": lambda path: Field.from_noise(denoise, path).velocity(torch.ones(1, 2), 2.0),
    "fields.Field.from_denoised": lambda path: Field.from_denoised(denoise, path).noise(torch.ones(1, 2), 2.0),
    "fields.Field.from_score": lambda path: Field.from_score(denoise, path).noise(torch.ones(1, 2), 2.0),
    "fields.conversion": lambda path: fields.conversion(path, "denoised", "noise", 2.0),
    "fields.load_trained": lambda path: fields.load_trained(SHIPPED, path).path.spec,
    "fields.trained": lambda path: fields.trained("ring8", path).path.spec,
    "grids.get": lambda path: grids.get("karras", path, 4),
    "grids.explicit": lambda path: grids.explicit([2.0, 1.0], path),
    "grids.check": grids.check,
    "grids.is_named": grids.is_named,
    "learned.dmn": lambda **k: learned.dmn(**({"path": "edm", "steps": 2, "solver": "ddim"} | k)),
    "learned.ld3": lambda **k: learned.ld3(exact(), 2, points=8, seconds=0.5, **({"solver": "ddim"} | k)).shape,
    "learned.ld3_decoupled": lambda **k: levels.ld3_decoupled(
        exact(), 2, points=8, seconds=0.5, **({"solver": "ddim"} | k)
    ).nfe,
    "learned.search": lambda solver: learned.search(exact(), 1, solver=solver, points=8).shape,
    "solvers.Solver.chart_on": lambda path: solvers.get("dpmpp").chart_on(path).path.spec,
    "solvers.Solver.order_on": lambda grid: [solvers.get(s).order_on(grid) for s in ("ipndm_v", "dpmpp")],
    "solvers.Solver.tableau": lambda **k: solvers.get("dpmpp").tableau(**({"path": "edm", "grid": "karras", "steps": 4} | k)),
    "solvers.Solver.within": lambda **k: solvers.get("dpm").within(**({"path": "edm", "grid": "karras", "nfe": 5} | k)),
    "solvers.solve": lambda **k: diffode.solve(exact(), start(), **({"solver": "dpmpp", "grid": "karras", "nfe": 4} | k)).x,
    "targets.tags": targets.tags,
    "verify.gaussian": lambda **k: verify.gaussian(
        **({"solver": "ddim", "eigenvalues": [0.6], "path": "edm", "grid": "karras", "steps": 4} | k)
    ).split,
    "verify.growth": lambda solver: verify.growth(solver, 0.5, [0.3]),
    "verify.order": lambda **k: verify.order(
        **({"solver": "ddim", "target": "gauss1d", "path": "edm", "steps": (2, 4, 8), "points": 2} | k)
    ).slope,
    "verify.strong_order": lambda **k: verify.strong_order(
        **({"solver": "euler_maruyama", "target": "gauss1d", "path": "edm", "steps": (2, 4, 8), "points": 2} | k)
    ).slope,
    "verify.weak_order": lambda **k: verify.weak_order(
        **({"solver": "euler_maruyama", "path": "edm", "steps": (2, 4, 8)} | k)
    ).slope,
}  # fmt: skip

#: Doors that take an object of their own making, or texts alone because what they make is stored as text.
OWN = {
    "adapters.DiffodeScheduler": "a configuration saved as JSON; as_diffusers_scheduler takes objects",
    "adapters.from_torchsde": "has the same line as from_torchdiffeq; needs torchsde",
    "grids.spec_of": "a Grid object has no text",
    "learned.LearnedAMED": "a solver", "learned.TrainedAMED": "a result", "learned.TrainedConditioned": "a result",
    "learned.TunedUniversal": "a result", "learned.save_amed": "saves what train_amed makes",
    "learned.train_amed": "minutes of training; its path is the field's", "learned.train_table": "the line of tune_universal",
    "learned.train_gaussian": "the line of tune_universal", "learned.tune_universal": "seconds of training",
    "references.target_line": "numbers of one mixture", "studies.Cell": "stored as text", "studies.Result": "stored as text",
    "tableau.Tableau": "what a solver writes", "tableau.Writer": "what a solver writes with",
    "charts.Chart": "abstract",
    "grids.check_registered": "for texts out of files", "fields.TrainedField": "made by load_trained",
}  # fmt: skip


def doors():
    """Every public function of the rooms, and method of their classes, with a parameter of these names."""
    seen = set()
    for room in (adapters, charts, fields, grids, learned, metrics, solvers, studies, targets, verify,
                 diffode.references, diffode.tableau):  # fmt: skip
        for name in getattr(room, "__all__", [n for n in vars(room) if not n.startswith("_")]):
            found = getattr(room, name)
            if not callable(found) or found in seen or not str(getattr(found, "__module__", "")).startswith("diffode"):
                continue
            seen.add(found)
            label = f"{room.__name__.removeprefix('diffode.')}.{name}"
            inside = (
                [(f"{label}.{n}", f) for n, f in vars(found).items() if not n.startswith("_")] if inspect.isclass(found) else []
            )
            for place, function in [(label, found), *inside]:
                function = getattr(function, "__func__", function)
                if callable(function) and not (inspect.isclass(function) and issubclass(function, BaseException)):
                    yield from ((place, word) for word in inspect.signature(function).parameters if word in WORDS)


def test_every_public_door_is_tried():
    untried = {
        place for place, _ in doors()
        if place not in DOORS and place not in OWN and place.rpartition(".")[0] not in OWN
        and not place.startswith(("charts.", "fields.ExactField.", "fields.TrainedField."))
    }  # fmt: skip
    assert not untried


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("place", "word"), [(place, word) for place, word in doors() if place in DOORS])
def test_a_spec_and_its_object_are_taken_alike(place, word):
    text, thing = WORDS[word]
    if place == "adapters.from_flow_matching":
        text, thing = "rectified_flow", paths.get("rectified_flow")
    if word == "solver" and place in ("verify.strong_order", "verify.weak_order"):
        text, thing = "euler_maruyama", solvers.get("euler_maruyama")
    if word == "solver" and place.startswith("learned."):
        text, thing = "ddim", solvers.get("ddim")
    assert_same(DOORS[place](**{word: text}), DOORS[place](**{word: thing}))


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif hasattr(one, "rows"):
        assert one.rows == other.rows
    else:
        assert one == other
