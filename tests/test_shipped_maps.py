"""The flow maps that ship: their files, the solver that runs them, what they cost, and a study and report that have them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_suite import report_page, small

import diffode
from diffode import solvers
from diffode.errors import ArgumentError, UnknownNameError
from diffode.flows import flow_states
from diffode.learned import load
from diffode.learned.costs import OwnCost, own_cost
from diffode.maps import FunctionMap
from diffode.maps.networks import FEATURES, multiply_adds, network
from diffode.metrics import Measurement
from diffode.solvers import MapSolver, ShippedMap, shipped_maps
from diffode.studies import Cell, Result, run_suite
from diffode.studies.further import further, own_costs
from diffode.studies.ranking import curves
from diffode.studies.runner import reason_against

FOLDER = Path(solvers.__file__).parent / "trained" / "maps"
MOST_BYTES = 6e6


def test_every_main_method_ships_for_every_target():
    targets = {target for target, _ in shipped_maps()}
    methods = {method for _, method in shipped_maps()}
    assert targets == {"bimodal1d", "ring8", "spiral", "digits-gmm10"}
    assert methods >= {"flow_map", "reflow", "shortcut", "meanflow", "lmd", "cd", "ect", "ctm"}
    # CTM's training went astray on the digits.
    missing = {(target, method) for target in targets for method in methods} - set(shipped_maps())
    assert missing == {("digits-gmm10", "ctm")}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MOST_BYTES


@pytest.mark.parametrize(("target", "method"), shipped_maps())
def test_a_shipped_file_says_what_it_is(target, method):
    found = load(FOLDER / f"{target}-{method}.safetensors")
    assert found.facts.target == target
    assert found.facts.path == "edm"
    assert found.stopped_by == "counts"
    assert found.map.method.partition(":")[0] == method
    # Each beats the Gaussian map with some number of jumps.
    assert min(found.held_out.values()) < found.facts.start_error


@pytest.mark.parametrize("method", ["flow_map", "shortcut", "cd"])
def test_the_stored_errors_are_those_of_other_starts_too(method):
    """1,024 starts that no training has seen: the mean error is that which the file tells of as many, within sampling."""
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.path.prior((1024, 1), generator=31)
    exact = flow_states(field, x, (field.path.t_max, field.path.t_min))[-1]
    run = diffode.solve(field, x, solver=f"shipped_map:method={method}", nfe=1)
    distances = (run.x - exact).norm(dim=1) / field.scale
    told = load(FOLDER / f"bimodal1d-{method}.safetensors").held_out[1]
    assert abs(float(distances.mean()) - told) < 5 * float(distances.std()) * (2 / len(x)) ** 0.5
    assert run.nfe == 1
    assert run.times.tolist() == [80.0, 0.002]


def test_a_shipped_map_is_that_of_its_file():
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.prior(16, generator=0)
    for nfe in (1, 2, 4):
        ours = diffode.solve(field, x, solver=ShippedMap(method="shortcut"), nfe=nfe).x
        of_file = diffode.solve(field, x, solver=f"map:file={FOLDER / 'bimodal1d-shortcut.safetensors'}", nfe=nfe).x
        assert torch.equal(ours, of_file)


def test_a_field_without_a_map_is_refused_with_the_command_that_trains_one():
    for field in (diffode.exact_field("gauss1d", "edm"), diffode.Field(lambda x, t: x, "denoised", "edm", probe=False)):
        with pytest.raises(ArgumentError, match=r"ships for the exact fields of .*bimodal1d.*diffode train shortcut"):
            diffode.solve(field, torch.zeros(2, 1), solver="shipped_map:method=shortcut", nfe=1)
    # Each target once, and those alone that have a map by the method.
    solver, files = ShippedMap(method="shortcut"), [file.stem for file in FOLDER.glob("*-shortcut.safetensors")]
    with pytest.raises(
        ArgumentError, match=f"fields of {', '.join(sorted(name.removesuffix('-shortcut') for name in files))}, not"
    ):
        solver.on(diffode.exact_field("gauss1d", "edm"))
    sourced = diffode.exact_field("bimodal1d", "edm", source="gauss1d")
    with pytest.raises(ArgumentError, match="ships for"):
        ShippedMap(method="shortcut").on(sourced)
    with pytest.raises(UnknownNameError, match="did you mean 'shortcut'"):
        solvers.get("shipped_map:method=shortcuts")


def test_a_target_is_known_by_its_content():
    """A mixture of the same numbers is the same target, whatever made it; one of others is not."""
    numbers = [0.2, 0.8], [[-2.0], [1.0]], [0.09, 0.25]
    solver = ShippedMap(method="flow_map")
    same = diffode.targets.GaussianMixture(*numbers)
    assert solver.on(diffode.exact_field(same, "edm")) == solver.on(diffode.exact_field("bimodal1d", "edm"))
    numbers[1][0][0] += 1e-9
    with pytest.raises(ArgumentError, match="ships for"):
        solver.on(diffode.exact_field(diffode.targets.GaussianMixture(*numbers), "edm"))


def test_a_consistency_function_draws_noise_beyond_its_first_jump():
    solver = ShippedMap(method="cd")
    assert solver.stochastic
    assert not solver.draws_noise(1)
    assert solver.draws_noise(2)
    assert not ShippedMap(method="flow_map").draws_noise(8)
    assert solvers.get("ddpm").draws_noise(1)
    cell = Cell("bimodal1d", "edm", 0, "karras", "shipped_map:method=cd", 1, 8, "float64", ("endpoint",), 1e-6)
    assert reason_against(cell) is None
    assert "draws noise" in reason_against(replace(cell, nfe=2))
    assert reason_against(replace(cell, nfe=2, metrics=("moments",))) is None


@pytest.mark.parametrize(("dim", "width", "depth"), [(1, 8, 0), (3, 16, 2)])
def test_products_of_a_perceptron_are_those_of_its_matrices(dim, width, depth):
    net = network("perceptron", (dim,), width=width, depth=depth)
    assert multiply_adds(net, dim) == (dim + FEATURES) * width + depth * width**2 + width * dim


def test_products_of_a_unet_are_those_of_its_convolutions():
    net = network("unet", (1, 8, 8), width=4)
    counted = 0

    def add(module, inputs, output):
        nonlocal counted
        per_output = module.weight[0].numel()
        counted += per_output * output[0].numel()

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(add)
    net(torch.zeros(1, 64), torch.ones(1), torch.ones(1))
    by_layers = counted
    assert multiply_adds(net, 64) == by_layers > 0


def test_costs_of_solvers():
    field = diffode.exact_field("bimodal1d", "edm")
    assert own_cost(solvers.get("heun"), field) == OwnCost()
    one = own_cost(ShippedMap(method="shortcut"), field)
    assert one.instead
    assert one.multiply_adds == (1 + FEATURES) * 64 + 3 * 64**2 + 64
    assert one.training > 0
    function = solvers.MapSolver(of=FunctionMap(lambda x, s, t: x, "edm"))
    assert own_cost(function, field) == OwnCost(None, None, instead=True)


def result(solver, nfe, metrics, values, target="ring8", seed=0):
    cell = Cell(target, "edm", seed, "karras", solver, nfe, 8, "float64", tuple(metrics), 1e-6)
    measured = tuple(Measurement(name, value, 0.5) for name, value in zip(metrics, values, strict=True))
    return Result("k", cell, "ok", nfe_counted=nfe, scale=2.0, measurements=measured)


def test_metrics_that_do_not_rank_are_told_by_problem_and_budget():
    results = [
        result("a", 1, ["endpoint", "moments"], [4.0, 1.0]),
        result("a", 1, ["endpoint", "moments"], [2.0, 3.0], seed=1),
        result("a", 2, ["endpoint", "moments"], [1.0, 0.5]),
        result("b", 2, ["moments"], [0.25]),
    ]
    # A study whose first metric is another has no part in the ranking.
    assert [(c.solver, c.nfe, c.error) for c in curves(results)] == [("a", (1, 2), (1.5, 0.5))]
    (only,) = further(results)
    assert (only.metric, only.target, only.nfe, only.floor) == ("moments", "ring8", (1, 2), 0.5)
    assert only.rows == (("b", (None, 0.25)), ("a", (2.0, 0.5)))
    assert further([]) == [] == curves([])
    assert own_costs(results) == []


def test_a_study_and_its_report_have_maps_beside_solvers(tmp_path):
    suite = small(
        defaults={
            "paths": ["edm"],
            "grids": ["karras"],
            "seeds": [0],
            "points": 8,
            "tolerance": 1e-6,
            "targets": ["bimodal1d"],
        },
        study=[
            {"solvers": ["shipped_map:method=flow_map", "ddim"], "nfe": [1, 2], "metrics": ["endpoint", "moments"]},
            {"solvers": ["shipped_map:method=cd"], "nfe": [2], "metrics": ["moments"]},
        ],
    )
    summary = run_suite(suite, tmp_path / "s.sqlite", jobs=1)
    assert (summary.computed, summary.failed, summary.senseless) == (5, 0, ())
    page = report_page(suite, tmp_path)
    assert "What trained solvers cost" in page
    assert "its own network" in page
    assert "moments on bimodal1d, edm" in page
    assert "shipped_map:method=cd" in page


@pytest.mark.parametrize("solver", ["shipped_map:method=flow_map", "map:of=exact"])
def test_a_map_s_run_has_the_derivative_of_its_jumps(solver):
    """By central differences; a run that built no graph would have a gradient of zeros through its start alone."""
    field = diffode.exact_field("bimodal1d", "edm")
    if solver == "map:of=exact":
        solver = MapSolver(of=FunctionMap(diffode.flow(field), "edm"))
    x = field.prior(4, generator=0).requires_grad_()
    (gradient,) = torch.autograd.grad(diffode.solve(field, x, solver=solver, nfe=3).x.sum(), x)
    with torch.no_grad():
        h = 1e-3
        up, down = (diffode.solve(field, x + s * h, solver=solver, nfe=3).x for s in (1, -1))
    assert torch.allclose(gradient, (up - down) / (2 * h), rtol=1e-4, atol=1e-9)
    assert not diffode.solve(field, x.detach(), solver=solver, nfe=3).x.requires_grad


def test_what_a_shipped_map_is_made_of_is_told_by_its_numbers():
    contents = {method: ShippedMap(method=method).content() for method in ("reflow", "shortcut", "flow_map")}
    assert len(set(contents.values())) == 3
    assert all(len(content) > 30 for content in contents.values())
