"""Time grids: definitions, ends, published tables, explicit times."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffode import grids, paths, solvers, testing
from diffode.errors import ArgumentError, BudgetError, UnknownNameError
from diffode.grid_menus import MENUS

EDM = paths.get("edm")
#: Grids that run over a whole path unless they are sent on to sigma = 0; those of menus end there (test_menu_grids.py).
OVER_THE_PATH = [name for name in grids.names() if not name.startswith(("ays", "trained")) and name not in MENUS]


@pytest.mark.parametrize("path_name", paths.names())
@pytest.mark.parametrize("name", OVER_THE_PATH)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_grids_run_from_t_max_to_t_min(name, path_name, steps):
    path = paths.get(path_name)
    times = grids.get(name, path, steps)
    assert times.dtype == torch.float64
    assert len(times) == steps + 1
    assert (times.diff() < 0).all()
    assert (float(times[0]), float(times[-1])) == (path.t_max, path.t_min)


@pytest.mark.parametrize("name", OVER_THE_PATH)
def test_the_last_step_may_go_to_zero(name):
    times = grids.get(name, EDM, 5, to_zero=True)
    assert len(times) == 6
    assert float(times[-1]) == 0
    assert float(times[-2]) == pytest.approx(0.002)


def test_definitions():
    """Karras, log-SNR, time, quadratic and KL-optimal spacings at the middle of two steps, written out."""
    middle = {
        name: float(grids.get(name, EDM, 2)[1])
        for name in ("karras:rho=7", "log_snr", "time_uniform", "time_quadratic", "kl_optimal")
    }
    assert middle["karras:rho=7"] == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, rel=1e-14)
    assert middle["log_snr"] == pytest.approx(math.sqrt(80 * 0.002), rel=1e-14)
    assert middle["time_uniform"] == pytest.approx((80 + 0.002) / 2, rel=1e-14)
    assert middle["time_quadratic"] == pytest.approx(((80**0.5 + 0.002**0.5) / 2) ** 2, rel=1e-14)
    assert middle["kl_optimal"] == pytest.approx(math.tan((math.atan(80) + math.atan(0.002)) / 2), rel=1e-14)


def test_shift_of_one_is_uniform_in_flow_time():
    path = paths.get("rectified_flow")
    assert torch.allclose(grids.get("shift:s=1", path, 7), grids.get("time_uniform", path, 7), rtol=1e-13)
    assert (grids.get("shift:s=3", path, 7)[1:-1] > grids.get("time_uniform", path, 7)[1:-1]).all()


def test_polyexponential_of_one_is_log_snr():
    assert torch.allclose(grids.get("polyexponential", EDM, 9), grids.get("log_snr", EDM, 9), rtol=1e-13)


def test_published_tables_are_reproduced_at_their_own_length():
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0]
    assert torch.allclose(grids.get("ays_sd15", EDM, 10), torch.tensor(published, dtype=torch.float64), rtol=1e-12)
    assert len(grids.get("ays_svd", EDM, 25)) == 26
    fitted = grids.get("ays_sd15:fit=true", EDM, 10)
    assert (float(fitted[0]), float(fitted[-1]), len(fitted)) == (80.0, 0.002, 11)


def test_a_grid_in_rho_is_the_same_noise_levels_on_every_path():
    edm = paths.get("edm", t_min=0.01, t_max=50.0)
    for name in ("vp", "rectified_flow", "trigonometric"):
        base = paths.get(name)
        path = paths.get(name, t_min=base.time_from_rho(0.01), t_max=base.time_from_rho(50.0))
        assert torch.allclose(path.rho(grids.get("karras", path, 9)), grids.get("karras", edm, 9), rtol=1e-10)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.1, 0.5, 1.0], "reverse it"),
        ([1.0, 0.5, 0.5], "strictly decreasing"),
        ([1.0], "at least two"),
        ([[1.0, 0.5]], "one axis"),
        ([1.0, float("nan")], "non-finite"),
        (["a", "b"], "sequence of times"),
        ([1.0, -0.5], "below t = 0"),
    ],
)
def test_bad_times_say_what_is_wrong(times, message):
    with pytest.raises(ArgumentError, match=message):
        grids.get(times, EDM)


@pytest.mark.parametrize(
    ("spec", "path", "steps", "message"),
    [
        ("karras", None, 5, "needs a path"),
        ("karras", EDM, None, "needs steps"),
        ("karras", EDM, 0, "steps must be an integer >= 1"),
        ("karras", EDM, 100_001, "steps must be an integer >= 1 and <= 100000, got 100001"),
        ("kl_optimal:to_zero=true", EDM, 2**63, "steps must be an integer >= 1 and <= 100000"),
        ("karras:rho=-1", EDM, 5, "rho must be positive"),
        ("karras:roh=3", EDM, 5, "did you mean 'rho'"),
        ("karras", paths.get("rectified_flow:t_max=1"), 5, "choose t_max"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec, path, steps, message):
    with pytest.raises(ArgumentError, match=message):
        grids.get(spec, path, steps)


def test_an_unknown_grid_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'karras'"):
        grids.get("karas", EDM, 3)


@given(testing.grid_specs(), testing.paths(), st.integers(1, 40))
def test_grids_fall_from_end_to_end_and_are_their_own_explicit_times(spec, path, steps):
    times = grids.get(spec, path, steps)
    assert len(times) == steps + 1
    assert bool((times.diff() < 0).all())
    assert (float(times[0]), float(times[-1])) == (path.t_max, path.t_min)
    assert torch.equal(grids.explicit(times.tolist(), path), times)


@given(testing.seeds(), testing.paths(), st.integers(1, 12))
def test_uneven_grids_are_taken_as_they_are(seed, path, steps):
    times = testing.random_times(seed, path, steps)
    assert grids.explicit(times, path).tolist() == times
    levels = [path.log_snr(t) for t in times]
    shares = [b - a for a, b in itertools.pairwise(levels)]
    assert max(shares) < 3.1 * min(shares)


LISTS = {
    "80,10,1,0.002": [80.0, 10.0, 1.0, 0.002], "times 80 10 1 0.002": [80.0, 10.0, 1.0, 0.002],
    " 80, 10 ,1e0, .002 ": [80.0, 10.0, 1.0, 0.002], "levels 14.615 0.5 0": [14.615, 0.5, 0.0],
}  # fmt: skip


@pytest.mark.parametrize("text", LISTS)
def test_a_text_that_lists_numbers_is_the_list(text):
    # Levels become times through a logarithm.
    exactly = LISTS[text] if "levels" not in text else pytest.approx(LISTS[text], rel=1e-14)
    assert grids.get(text, EDM).tolist() == exactly
    assert grids.get(text, EDM, len(LISTS[text]) - 1).tolist() == exactly
    with pytest.raises(ArgumentError, match="make"):
        grids.get(text, EDM, 7)


def test_levels_are_noise_levels_on_every_path_and_times_are_its_times():
    for name in ("vp", "rectified_flow", "ddpm"):
        path = paths.get(name)
        levels = path.rho(grids.get("levels 9 1 0.1", path))
        assert levels.tolist() == pytest.approx([9, 1, 0.1], rel=1e-9)
    assert grids.get("times 0.9 0.5 0.1", "vp").tolist() == [0.9, 0.5, 0.1]


@given(testing.seeds(), testing.paths(), st.integers(1, 12))
def test_what_a_study_writes_of_a_grid_is_read_back_to_the_last_digit(seed, path, steps):
    times = testing.random_times(seed, path, steps)
    text = grids.spec_of(times)
    assert grids.get(text, path).tolist() == times
    assert grids.spec_of(text) == text
    assert grids.registry.make(text)(path, steps).tolist() == times


def test_lists_of_equal_numbers_have_one_text():
    texts = {grids.spec_of(g) for g in ("80,10,.5", "times 80 10 0.5", [80, 10, 0.5], torch.tensor([80, 10, 0.5]))}
    assert texts == {"times 80 10 0.5"}
    assert grids.spec_of("exponential") == "log_snr"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80,x,1", "must list numbers"), ("times", "at least two"), ("5", "at least two"), ("levels 1 2", "decreasing"),
        ("levels 2 -1", "noise levels >= 0"), ("80,80", "strictly decreasing"), ("1,nan", "must list numbers|non-finite"),
    ],
)  # fmt: skip
def test_bad_lists_say_what_is_wrong_before_anything_runs(text, message):
    with pytest.raises(ArgumentError, match=message):
        grids.check(text)


def test_a_rule_made_in_python_goes_where_its_spec_does():
    assert torch.equal(grids.get(grids.karras(5.0), "vp", 6), grids.get("karras:rho=5", "vp", 6))
    with pytest.raises(ArgumentError, match="has no text"):
        grids.spec_of(grids.karras(5.0))


def test_lists_run_within_a_budget_and_in_suites():
    from diffode.studies.suite import parse_suite

    table = solvers.get("heun").within("edm", "80,10,0", 3)
    assert table.nfe == 3
    with pytest.raises(BudgetError, match="costs 3 evaluations, more than nfe=2"):
        solvers.get("heun").within("edm", [80.0, 10.0, 0.0], 2)
    lists = {"targets": ["gauss1d"], "paths": ["edm"], "solvers": ["DPM++ 2M"], "nfe": [4], "seeds": [0]}
    cells = parse_suite({"study": [lists | {"grids": [[80.0, 10.0, 1.0], "80,10,1", "karras", "exponential"]}]}).cells
    assert [cell.grid for cell in cells] == ["times 80 10 1", "karras", "log_snr"]
    assert {cell.solver for cell in cells} == {"dpmpp:order=2,lower_order_final=never"}
    with pytest.raises(ArgumentError, match="study 1: grids: grid must be strictly decreasing"):
        parse_suite({"study": [lists | {"grids": [[1.0, 10.0]]}]})


def test_a_text_out_of_a_file_imports_nothing(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    for place in (f"{tmp_path}/evil.py:grid", "this_module:grid"):
        with pytest.raises(ArgumentError, match="unknown grid"):
            grids.check_registered(place)
    grids.check_registered("karras:rho=5")
    grids.check_registered("80,10,1")


@pytest.mark.parametrize("spec", ["karras:to_zero=no", "log_snr:to_zero=maybe", "simple:to_zero=1", "ays_sdxl:fit=yes"])
def test_a_choice_of_two_takes_no_other_text(spec):
    """A text that is not empty would count as true."""
    with pytest.raises(ArgumentError, match="must be true or false"):
        grids.get(spec, paths.get("edm"), 4)
    with pytest.raises(ArgumentError, match="to_zero must be true or false"):
        grids.karras(to_zero="no")
