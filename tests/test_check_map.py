"""The verdict on flow maps: the exact one passes on every path, and every planted defect is called by its name."""

import json
import math

import planted_maps as planted
import pytest
import torch
from commandline import diffode as command

import diffode
from diffode.errors import ArgumentError
from diffode.maps import FunctionMap
from diffode.verify import check_map

SMALL = {"points": 64, "draws": 2000}


def field_of(name="bimodal1d", path="rectified_flow"):
    return diffode.exact_field(name, path)


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow", "trigonometric"])
@pytest.mark.parametrize("name", ["gauss2d", "bimodal1d", "line16"])
def test_the_exact_flow_is_the_flow_map(name, path):
    field = field_of(name, path)
    report = check_map(diffode.flow(field), field, **SMALL)
    assert report.passed, str(report)
    assert report.facts["verdict"].startswith("is the flow map of this field to ")
    assert report.facts["error"] < 1e-13
    for equation in ("boundary", "semigroup", "diagonal", "Lagrangian equation", "Eulerian equation"):
        assert report.check(equation).value < 1e-6


def test_an_integrated_flow_passes_too():
    field = field_of("ring8", "edm")
    report = check_map(diffode.flow(field, tolerance=1e-5), field, points=16, draws=100)
    assert report.passed, str(report)
    assert report.check("Eulerian equation").value < 1e-3


#: Each defect, with words of the verdict and the checks that fail.
DEFECTS = [
    (planted.ddim, "a denoiser, whose map is a DDIM step|a velocity, whose map is an Euler step", {"pairs", "semigroup"}),
    (planted.euler, "is a velocity, whose map is an Euler step", {"pairs", "semigroup"}),
    (planted.gaussian, "flow of a Gaussian of the data's mean and scale", {"pairs", "diagonal", "sliced W2"}),
    (planted.swapped, "times swapped", {"pairs"}),
    (planted.doubled, "is the flow map times 2", {"pairs", "boundary"}),
    (planted.average, "an average velocity, not the points", {"pairs"}),
    (planted.displacement, "the displacement of a point", {"pairs", "boundary"}),
    (planted.identity, "is the identity", {"pairs", "diagonal"}),
    (planted.denoiser, "is the denoiser", {"pairs", "boundary"}),
    (planted.end_only, r"is a consistency function only, which goes to t=0.001", {"pairs", "boundary"}),
    (planted.end_right_only, r"is right to t=0.001 only", {"pairs", "semigroup"}),
    (
        planted.one_jump_only,
        "is right in one jump from t=1 to t=0.001|is right in one jump from t=0.999",
        {"pairs", "semigroup"},
    ),
    (planted.other_path, "is the flow on another path, trigonometric", {"pairs"}),
    (planted.leaks, "not rows independent", {"rows independent of their batch"}),
    (planted.noisy, "not deterministic", {"deterministic"}),
    (planted.overwrites, "not leaving x alone", {"leaves its x alone"}),
    (planted.one_time, "not takes times for every row|not time", {"takes times for every row"}),
    (planted.explodes, "not finite", {"finite"}),
    (planted.raises, "raised RuntimeError", {"answers with the shape and dtype of x"}),
]


@pytest.mark.parametrize(("make", "words", "failed"), DEFECTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_defect_is_called_by_its_name(make, words, failed):
    field = field_of()
    report = check_map(make(field), field, **SMALL)
    assert not report.passed
    assert any(word in report.facts["verdict"] for word in words.split("|")), report.facts["verdict"]
    assert failed <= {check.name for check in report.failed}, str(report)


def test_a_ddim_step_is_told_from_an_euler_step_where_they_differ():
    field = field_of("bimodal1d", "vp")
    assert "DDIM step" in check_map(planted.ddim(field), field, **SMALL).facts["verdict"]
    assert "Euler step" in check_map(planted.euler(field), field, **SMALL).facts["verdict"]


def test_a_hundredth_too_large_fails_at_the_boundary_and_passes_for_its_ends_alone():
    field = field_of()
    report = check_map(planted.scaled(field), field, **SMALL)
    assert {check.name for check in report.failed} == {"boundary", "verdict"}
    strict = check_map(planted.scaled(field), field, tolerance=1e-3, **SMALL)
    assert "is the flow map times 1.01" in strict.facts["verdict"]
    assert any("divide its answer by 1.01" in fix for fix in strict.advice)


def test_a_map_that_takes_other_ways_to_the_right_end_is_told_from_one_that_has_one_jump():
    field = field_of("gauss1d")
    report = check_map(planted.straightened(field), field, **SMALL)
    assert {"pairs", "diagonal", "verdict"} <= {check.name for check in report.failed}
    assert "in one jump and in two, but over other states than the flow's" in report.facts["verdict"]


def generator_of(field, function, **kind):
    """A generator on a field's path: a function of starts, which goes nowhere else."""

    def phi(x, s, t):
        assert bool((s == field.path.t_max).all() & (t == field.path.t_min).all())
        return function(x)

    made = FunctionMap(phi, field.path, fixed_end=True)
    made.one_jump = True
    made.law_only = kind.get("law_only", False)
    return made


def test_a_generator_is_asked_for_its_one_jump_alone():
    field = diffode.exact_field(planted.EVEN, "edm")
    flow, ends = diffode.flow(field), (field.path.t_max, field.path.t_min)
    report = check_map(generator_of(field, lambda x: flow(x, *ends)), field, **SMALL)
    assert report.passed, str(report)
    assert "from t=80 to t=0.002, the only jump that it makes" in report.facts["verdict"]
    assert report.check("boundary").passed is None
    assert not check_map(generator_of(field, lambda x: flow(-x, *ends)), field, **SMALL).passed


def test_a_consistency_function_is_held_to_its_end_only():
    field = field_of("bimodal1d", "edm")
    flow, last = diffode.flow(field), field.path.t_min

    def consistency(x, s, t):
        return flow(x, s, torch.full_like(t, last))

    report = check_map(FunctionMap(consistency, "edm", fixed_end=True), field, **SMALL)
    assert report.passed
    assert "is a consistency function of this field" in report.facts["verdict"]
    assert "it goes to t=0.002 only" in report.facts["verdict"]
    assert report.check("semigroup").passed is None
    assert report.check("Eulerian equation").value < 1e-6


def test_derivatives_are_right_where_a_map_leaves_the_graph_or_is_single():
    """A step of t on the way out of PyTorch, or float32 inside, may not cost an exact map its verdict."""
    field = field_of("gauss2d", "vp")
    flow = diffode.flow(field)

    def leaves(x, s, t):
        return flow(x, float(s[0]), float(t[0])) if bool((s == s[0]).all() & (t == t[0]).all()) else flow(x, s, t)

    def single(x, s, t):
        return flow(x.float(), s, t).to(x.dtype)

    def both(x, s, t):
        # Forward derivatives lose the part of the time of the start alone, and raise nothing.
        return flow(x.float(), float(s[0]), t).to(x.dtype) if bool((s == s[0]).all()) else single(x, s, t)

    for phi, most in ((leaves, 1e-8), (single, 1e-6), (both, 0.05)):
        report = check_map(phi, field, **SMALL)
        assert report.passed, str(report)
        assert report.check("Lagrangian equation").value < most
        assert report.check("Eulerian equation").value < most


def test_the_pairs_tell_quantiles_of_errors():
    field = field_of()
    flow = diffode.flow(field)

    def off(x, s, t):
        # One row in seven is off by a tenth of the scale.
        return flow(x, s, t) + 0.1 * field.scale * (x > 1.1) * (s != t)[:, None]

    report = check_map(off, field, points=512, draws=500)
    pair = next(p for p in report.facts["pairs"] if p["t"] == field.path.t_min and p["s"] == field.path.t_max)
    share = float((field.marginal(512, field.path.t_max, generator=3) > 1.1).double().mean())
    assert pair["mean"] == pytest.approx(0.1 * share, rel=0.3)
    assert pair["median"] < 1e-12
    assert pair["ninety"] == pytest.approx(0.1, rel=2e-3)
    assert pair["most"] == pytest.approx(0.1, rel=2e-3)


@pytest.mark.parametrize("factor", [1.0, -3.0, 0.25])
def test_the_slope_of_a_map_is_told_in_sizes_of_a_state_at_both_ends(factor):
    """The flow of a Gaussian keeps every point's distance from the mean in deviations: its slope is 1."""
    field = field_of("gauss2d", "vp")
    flow = diffode.flow(field)
    check = check_map(lambda x, s, t: factor * flow(x, s, t), field, points=16, draws=200).check("slope")
    # The scale is the root of the mean variance, of which the two directions have their own.
    widest = math.sqrt(2 * float(torch.linalg.eigvalsh(field.target.covariance)[-1]) / float(field.target.covariance.trace()))
    assert abs(factor) * 0.9 * widest < check.value < abs(factor) * 1.0001 * widest
    assert ", of the exact flow " in check.detail


@pytest.mark.parametrize(("r", "steep", "known"), [(3, 5, 1.0e-2), (3, 10, 1.8e-3), (4, 10, 8.4e-3), (6, 2, 1.3e-1)])
def test_no_map_of_a_slope_errs_less_than_the_bound_and_a_clipped_one_attains_it(r, steep, known):
    """Two modes of half distance 1 and width 1/r: the mean error of the K-Lipschitz map next to the flow, by quadrature."""
    from diffode.targets import GaussianMixture
    from diffode.verify.maps.pairs import least_error
    from diffode.verify.maps.trial import MapTrial

    field = diffode.exact_field(GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[r**-2.0], [r**-2.0]]), "edm")
    flow, size = diffode.flow(field), 80.0

    def clipped(x, s, t):
        end, line = flow(x, s, t), steep * x / size
        return torch.where(end.abs() < line.abs(), end, line)

    trial = MapTrial.of(FunctionMap(clipped, "edm"), field, 4096, 0.05, 0)
    bound = least_error(trial)
    assert bound == pytest.approx(known, rel=0.06)
    error = trial.errors(trial.call(trial.states[0], 80.0, 0.002), trial.states[-1], 0.002)
    assert float(error.mean()) == pytest.approx(bound, abs=5 * float(error.std()) / 64)
    # A steeper map may err less, and the exact one has no bound above 0.
    assert least_error(MapTrial.of(FunctionMap(flow, "edm"), field, 16, 0.05, 0)) < 1e-9
    report = check_map(clipped, field, **SMALL)
    assert f"errs by {bound:.1e} at least" in report.check("slope").detail


def test_an_asymmetric_law_and_a_plane_have_no_such_bound():
    for name in ("bimodal1d", "gauss2d"):
        field = field_of(name, "edm")
        assert "at least" not in check_map(diffode.flow(field), field, **SMALL).check("slope").detail


def test_a_field_of_ones_own_is_judged_without_its_law():
    field = diffode.Field.from_denoised(lambda x, t: x / (1 + torch.as_tensor(t).reshape(-1, 1) ** 2), "edm", probe=False)

    def phi(x, s, t):
        return x * ((1 + t**2) / (1 + s**2)).sqrt()[:, None]

    report = check_map(FunctionMap(phi, "edm", dim=3), field, **SMALL)
    assert report.passed, str(report)
    assert report.check("sliced W2").passed is None
    with pytest.raises(ArgumentError, match="number of coordinates"):
        check_map(phi, field)


WRONG = [
    ({"field": 3}, "field must be a diffode field"),
    ({"points": 3}, "points must be an integer from 16"),
    ({"draws": 3}, "draws must be an integer from 16"),
    ({"tolerance": 0.0}, "tolerance must be a positive number"),
    ({"seed": -1}, "seed must be"),
    ({"path": "vp"}, "path goes with the spec of a target"),
    ({"phi": 7}, "a flow map is a file"),
    ({"phi": FunctionMap(lambda x, s, t: x, "vp")}, "on the path 'vp"),
    ({"phi": FunctionMap(lambda x, s, t: x, "edm", dim=3)}, "rows of 3 numbers"),
]


@pytest.mark.parametrize(("changed", "words"), WRONG)
def test_wrong_arguments_are_named(changed, words):
    arguments = {"phi": lambda x, s, t: x, "field": field_of("gauss1d", "edm"), **changed}
    with pytest.raises(ArgumentError, match=words):
        check_map(**arguments)


def test_a_target_by_name_is_on_the_map_s_path():
    phi = FunctionMap(diffode.flow(field_of("gauss1d", "vp")), "vp")
    assert check_map(phi, "gauss1d", **SMALL).passed
    assert not check_map(lambda x, s, t: x, "gauss1d", "vp", **SMALL).passed


SOURCE = """
import diffode

flow = diffode.flow(diffode.exact_field("gauss1d", "edm"))


def phi(x, s, t):
    print("a user's print")
    return flow(x, s, t)


def wrong(x, s, t):
    return x.clone()
"""


def test_the_command_judges_a_function_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    small = ("--target", "gauss1d", "--points", "64", "--draws", "500")
    found = json.loads(command("check-map", "mine.py:phi", *small, "--json", cwd=tmp_path).stdout)
    assert found["passed"]
    assert found["verdict"].startswith("is the flow map of this field")
    assert math.isfinite(found["error"])
    assert "is the identity" in command("check-map", "mine.py:wrong", *small, cwd=tmp_path, code=1).stdout
    assert "none.safetensors" in command("check-map", "none.safetensors", *small, cwd=tmp_path, code=2).stderr


def test_errors_are_in_sizes_of_a_state_and_allowed_for_each_coordinate():
    from diffode.verify.maps.trial import MapTrial

    field = diffode.exact_field("gauss2d", "rectified_flow")
    trial = MapTrial.of(FunctionMap(diffode.flow(field), field.path), field, 16, 0.05, 0)
    assert trial.allowed == pytest.approx(0.05 * math.sqrt(2))
    for t in (0.9, 0.5, 0.1):
        x = field.marginal(20_000, t, generator=0)
        deviation = (x - field.path.alpha(t) * field.target.mean).square().mean().sqrt()
        assert trial.size(t) == pytest.approx(float(deviation), rel=0.02)


def test_pairs_of_times_are_compared_once_each_the_ends_first():
    from diffode.verify.maps.trial import MapTrial

    field = field_of()
    pairs = MapTrial.of(FunctionMap(diffode.flow(field), field.path), field, 4, 0.05, 0).pairs
    last = max(k for _, k in pairs)
    assert last >= 3
    assert pairs[0] == (0, last)
    assert sorted(pairs) == sorted({(0, last), *((0, k) for k in range(1, last)), *((k, last) for k in range(1, last)),
                                    *((k, k + 1) for k in range(1, last))})  # fmt: skip


def test_a_map_that_is_wrong_from_the_start_to_times_between_is_found():
    field = field_of()
    flow, path = diffode.flow(field), field.path

    def phi(x, s, t):
        wrong = ((s >= path.t_max) & (t > path.t_min) & (t < s))[:, None]
        return flow(x, s, t) + 0.3 * wrong

    report = check_map(phi, field, **SMALL)
    assert report.check("pairs").passed is False
    assert min(p["mean"] for p in report.facts["pairs"]) < 1e-12


def test_the_flow_of_other_data_is_not_called_a_multiple_of_this_one():
    """Data six times as large: from the noise to the end their flow is six times this one, and nowhere else."""
    field = diffode.exact_field(planted.EVEN, "edm")
    large = diffode.GaussianMixture([0.5, 0.5], [[-6.0], [6.0]], [[3.24], [3.24]])
    report = check_map(diffode.flow(diffode.exact_field(large, "edm")), field, **SMALL)
    assert "is the flow map times" not in report.facts["verdict"]


def test_a_file_of_functions_is_asked_for_a_name():
    with pytest.raises(ArgumentError, match=r"name the function or the map in 'my_map\.py' too, as my_map\.py:phi"):
        check_map("my_map.py", field_of())


def test_a_map_that_ships_is_judged_by_its_name():
    report = check_map("shipped_map:method=flow_map", "bimodal1d", points=64, draws=2000)
    assert report.facts["verdict"].startswith("is the flow map of this field to ")
    with pytest.raises(ArgumentError, match="ships for the exact fields of bimodal1d"):
        check_map("shipped_map:method=flow_map", "gauss1d")
    with pytest.raises(ArgumentError, match="there is no file 'ring8': a flow map is a file that diffode train wrote, or"):
        check_map("ring8", "ring8")
