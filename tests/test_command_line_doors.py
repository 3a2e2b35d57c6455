"""Specs and objects at every public door, and what the commands share."""

import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import diffode
from diffode import adapters, charts, fields, grids, learned, metrics, paths, solvers, studies, targets, verify
from diffode.cli.main import command
from diffode.cli.plain_text import plain_text
from diffode.errors import BudgetError
from diffode.fields import ExactField, Field
from diffode.learned.grids import levels

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
    "adapters.as_comfyui_sampler": lambda solver: adapters.as_comfyui_sampler(solver)(
        adapters.as_k_diffusion(exact()), start(), [80.0, 2.0, 0.0]
    ),
    "adapters.as_diffusers_scheduler": lambda solver: solvers.get(adapters.as_diffusers_scheduler(solver).config["solver"]),
    "adapters.from_edm": lambda path: adapters.from_edm(denoise, path).path.spec,
    "adapters.from_k_diffusion": lambda path: adapters.from_k_diffusion(denoise, path).path.spec,
    "adapters.from_meanflow": lambda path: adapters.from_meanflow(lambda x, t, r: x, "t,r", path=path).path.spec,
    "adapters.from_shortcut": lambda path: adapters.from_shortcut(lambda x, t, d: x, path=path).path.spec,
    "adapters.from_flow_matching": lambda path: adapters.from_flow_matching(denoise, path).path.spec,
    "adapters.from_torchdiffeq": lambda path: adapters.from_torchdiffeq(lambda t, x: -x, path).path.spec,
    "charts.get": lambda path: charts.get("data", path).path.spec,
    "charts.DataChart": lambda path: charts.DataChart(path).path.spec,
    "charts.StochasticDataChart": lambda path: charts.StochasticDataChart(path, 1.0).path.spec,
    "fields.ExactField": lambda **k: ExactField(**({"target": "ring8", "path": "edm"} | k)).velocity(torch.ones(1, 2), 2.0),
    "fields.exact_field": lambda **k: diffode.exact_field(**({"target": "ring8", "path": "edm"} | k)).velocity(
        torch.ones(1, 2), 2.0
    ),
    "fields.Guidance.laws": lambda target: fields.Guidance.read("label=three,weight=2").laws(target)[0].content(),
    "fields.Guidance.field": lambda **k: (
        fields.Guidance.read("label=three,weight=2").field(**({"target": "ring8", "path": "edm"} | k)).velocity(
            torch.ones(1, 2), 2.0
        )
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
    "solvers.informed": lambda solver: solvers.informed(solver, diffode.Statistics.of_target("gauss1d")).spec,
    "solvers.for_run": lambda solver: solvers.for_run(solver, exact(), 2).spec,
    "solvers.TableSolver.chart_on": lambda path: solvers.get("dpmpp").chart_on(path).path.spec,
    "solvers.Solver.order_on": lambda grid: [solvers.get(s).order_on(grid) for s in ("ipndm_v", "dpmpp")],
    "solvers.TableSolver.tableau": lambda **k: solvers.get("dpmpp").tableau(
        **({"path": "edm", "grid": "karras", "steps": 4} | k)
    ),
    "solvers.TableSolver.within": lambda **k: solvers.get("dpm").within(**({"path": "edm", "grid": "karras", "nfe": 5} | k)),
    "solvers.solve": lambda **k: diffode.solve(exact(), start(), **({"solver": "dpmpp", "grid": "karras", "nfe": 4} | k)).x,
    "solvers.stream": lambda **k: next(diffode.stream(exact(), 3, **({"solver": "dpmpp", "grid": "karras", "nfe": 4} | k))),
    "targets.tags": targets.tags,
    "verify.check_field": lambda path: verify.check_field(exact().noise, "noise", path, 1, scale=exact().scale).facts["loss"],
    "verify.check_map": lambda path: verify.check_map(lambda x, s, t: x, "gauss1d", path, points=16, draws=16).facts["error"],
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
    "grids.spec_of": "a Grid object has no text", "grids.is_rule": "of a text",
    "learned.LearnedAMED": "a solver", "learned.Trained": "a result", "learned.Facts": "stored as text",
    "learned.condition": "the line of tune_universal", "learned.train": "the line of tune_universal",
    "fields.guide": "its grid is the times of one run",
    "learned.TrainedMap": "a result", "learned.train_map": "the line of tune_universal",
    "learned.train_head": "the line of tune_universal", "learned.train_jump": "the line of tune_universal",
    "learned.train_nodes": "the line of tune_universal", "learned.train_compensation": "the line of tune_universal",
    "solvers.MapSolver.lay": "what a run asks for its times, with the path that it has made",
    "solvers.ShippedMap.lay": "likewise",
    "learned.train_amed": "minutes of training; its path is the field's", "learned.train_table": "the line of tune_universal",
    "learned.train_gaussian": "the line of tune_universal", "learned.tune_universal": "seconds of training",
    "studies.Cell": "stored as text", "studies.Result": "stored as text",
    "tableau.Tableau": "what a solver writes", "tableau.Writer": "what a solver writes with",
    "tableau.Stages.tableau": "a table's common form, as a table again",
    "charts.Chart": "abstract",
    "grids.content": "of a text in a store",
    "learned.Checkpoint": "stored as text", "learned.TrainedGrid": "stored as text",
    "learned.train_decoupled": "the line of tune_universal", "learned.train_grid": "the line of tune_universal",
    "grids.check_registered": "for texts out of files", "fields.TrainedField": "made by load_trained",
    "solvers.DirectSolver": "followed by solve, which has a line; writes no table",
    "solvers.TableSolver.times_on": "what tableau asks for its times",
    "targets.Target.exact_flow": "an answer of a target to the flow, which has its path made",
    "verify.check_sampler": "its grid is a family of grids, which only a text names",
}  # fmt: skip


def doors():
    """Every public function of the rooms, and method of their classes, with a parameter of these names."""
    seen = set()
    for room in (adapters, charts, fields, grids, learned, metrics, solvers, studies, targets, verify,
                 diffode.flows, diffode.tableau):  # fmt: skip
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


def own_of_a_solver(place):
    """Whether it is a solver's own form of a method that every solver has, and that is tried with one."""
    room, _, rest = place.partition(".")
    found, _, method = rest.partition(".")
    if room != "solvers" or found == "TableSolver":
        return False
    known = vars(solvers.Solver) | vars(solvers.WritesTable) | vars(solvers.TableSolver)
    return method in known and issubclass(getattr(solvers, found), solvers.Solver)


def test_every_public_door_is_tried():
    untried = {
        place for place, _ in doors()
        if place not in DOORS and place not in OWN and place.rpartition(".")[0] not in OWN
        and not place.startswith(("charts.", "fields.ExactField.", "fields.TrainedField.")) and not own_of_a_solver(place)
    }  # fmt: skip
    assert not untried


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("place", "word"), [(place, word) for place, word in doors() if place in DOORS])
def test_a_spec_and_its_object_are_taken_alike(place, word):
    text, thing = WORDS[word]
    if place in ("adapters.from_flow_matching", "adapters.from_meanflow", "adapters.from_shortcut"):
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


MINE = """
import diffode
from diffode.solvers.runge_kutta import Heun

class Steps(Heun):
    pass

blob = diffode.GaussianMixture([1.0], [[0.0, 1.0]], [0.3])
diffode.solvers.register("mine", Heun, chart="noise")
"""

COMMANDS = ("bench", "report", "list", "show", "recommend", "verify", "check", "check-field", "check-map", "train", "sample")


def run(*arguments):
    return CliRunner().invoke(command, arguments, catch_exceptions=True, standalone_mode=False)


def said(*arguments):
    """What a command prints; its exception, if it raises one."""
    done = run(*arguments)
    return str(done.exception) if done.exception else done.stdout


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_imports_what_it_is_told_to(name):
    assert "--import" in said(name, "--help")


def test_an_imported_name_is_known_to_commands_that_had_no_such_option(here):
    assert "unknown" in said("show", "mine_by_import")
    (here / "other.py").write_text(MINE.replace('"mine"', '"mine_by_import"'))
    assert "heun:chart=noise" in said("show", "mine_by_import", "--import", "other.py")
    assert "does not exist" in said("list", "--import", "nothing.py")


def test_a_target_and_a_solver_in_a_file_are_sampled_by_their_place(here):
    facts = json.loads(said("sample", "mine.py:blob", "-n", "20", "--nfe", "6", "--solver", "mine.py:Steps", "--json"))
    assert facts["scale"] == pytest.approx(math.sqrt(0.3))
    assert facts["nfe"] == 6
    listed = json.loads(said("sample", "ring8", "-n", "5", "--grid", "80,10,1,0.002", "--solver", "euler", "--json"))
    assert listed["nfe"] == 3


def test_show_knows_whatever_has_a_name():
    assert "rho=7.0, to_zero=false" in said("show", "karras")
    assert "0.002" in said("show", "karras")
    vp = json.loads(said("show", "vp", "--json"))
    assert vp["times"][0]["rho"] == pytest.approx(paths.get("vp").rho(1.0))
    both = said("show", "ddpm")
    assert "path:ddpm or solver:ddpm" in both
    assert "posterior" not in said("show", "path:ddpm")
    assert "posterior" in said("show", "solver:ddpm")
    assert "reduction=mean" in said("show", "endpoint")
    assert json.loads(said("show", "levels 9 1 0", "--json"))["times"][1]["t"] == pytest.approx(1)
    assert "did you mean 'karras'" in said("show", "karas")
    assert "take solver 'dpmpp:order=2,lower_order_final=never' and grid 'karras'" in said("show", "dpmpp_2m_karras")
    assert "has no option 'charrt'; did you mean 'chart'" in said("show", "euler:charrt=data")


def test_lists_show_values_and_defaults_in_plain_text():
    rows = {row["name"]: row for row in json.loads(said("list", "solvers", "--json"))["solvers"]}
    assert "form=midpoint (or heun)" in rows["dpmpp_2m_sde"]["options"]
    assert "eta=1.0" in rows["euler_ancestral"]["options"]
    assert "order=3" in rows["unipc"]["options"]
    assert "dpmpp_2m" in rows["dpmpp"]["also called"]
    for kind in ("solvers", "grids", "paths", "metrics"):
        text = said("list", kind, "--json")
        assert not re.search(r"``|:math:|:class:|:func:|`", text)
        assert "\\\\" not in text.replace("\\n", "")


@pytest.mark.parametrize(("marked", "plain"), [
    (r"of :math:`dx = [v - (\eta^2 g^2/2) s]\,dt`", "of dx = [v - (eta^2 g^2/2) s] dt"),
    ("see :func:`~diffode.metrics.moments` and ``a=b``", "see moments and a=b"), (r":math:`\frac{a}{b}`", "(a)/(b)"),
])  # fmt: skip
def test_markup_becomes_plain_text(marked, plain):
    assert plain_text(marked) == plain


def test_a_budget_is_told_in_network_calls_and_in_evaluations():
    field = exact()
    guided = diffode.Field(field.denoised, "denoised", "edm", calls=2)
    with pytest.raises(BudgetError) as raised:
        diffode.solve(guided, start(), solver="dpm:order=3,step_orders=3", nfe=4)
    assert "nfe=4 network calls buy 2 evaluations" in str(raised.value)
    assert "nfe=2" not in str(raised.value)
    assert "guided" in said("sample", "--help")


SUITE = """
name = "tiny"
[[study]]
targets = ["gauss1d"]
paths = ["edm"]
grids = ["log_snr", [80.0, 10.0, 1.0, 0.1, 0.01]]
nfe = [4]
seeds = [0]
points = 8
tolerance = 1e-6
solvers = ["euler", "DPM++ 2M"]
"""


def test_advice_is_the_line_to_paste_and_says_what_it_covers(here):
    (here / "tiny.toml").write_text(SUITE)
    assert run("bench", "tiny.toml", "--no-report", "--jobs", "1").exception is None
    facts = json.loads(said("recommend", "--suite", "tiny.toml", "--nfe", "4", "--json"))
    solver, _, grid = facts["ranking"][0]["method"].partition(" @ ")
    assert facts["paste"][0] == f'diffode.solve(field, x, solver="{solver}", grid="{grid}", nfe=4)'
    assert diffode.solve(exact(), start(), solver=solver, grid=grid, nfe=4).nfe == 4
    text = said("recommend", "--suite", "tiny.toml", "--nfe", "4")
    assert f'solver="{solver}", grid="{grid}", nfe=4' in text
    for word in ("gauss1d", "edm", "without guidance", "guided model"):
        assert word in text


def test_recommend_reads_what_bench_stored_of_ones_own_field(here):
    (here / "tiny.toml").write_text(SUITE.replace("80.0", "0.9").replace("10.0, 1.0, 0.1, 0.01", "0.5, 0.01"))
    (here / "own.py").write_text("def velocity(x, t):\n    return -x\n")
    own = ("--suite", "tiny.toml", "--field", "own.py:velocity", "--kind", "velocity", "--path", "vp", "--dim", "2")
    assert run("bench", "tiny.toml", "--no-report", "--jobs", "1", *own[2:]).exception is None
    facts = json.loads(said("recommend", "--nfe", "4", *own, "--json"))
    assert "own.py:velocity" in facts["covers"]
    assert facts["ranking"]
    assert "--kind" in said("recommend", "--nfe", "4", "--kind", "velocity")


def test_a_function_around_a_float32_network_is_named_by_bench(here):
    (here / "net.py").write_text("import torch\nnet = torch.nn.Linear(2, 2)\ndef velocity(x, t):\n    return net(x)\n")
    (here / "tiny.toml").write_text(SUITE)
    own = ("--field", "net.py:velocity", "--kind", "velocity", "--path", "vp", "--dim", "2")
    assert "wrap a float32 network" in said("bench", "tiny.toml", "--no-report", "--jobs", "1", *own)
