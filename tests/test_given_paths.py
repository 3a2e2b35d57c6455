"""Paths from tables and functions, against the published ones and against diffusers' schedules."""

import math

import numpy as np
import pytest
import torch

import diffode
from diffode import paths
from diffode.errors import ArgumentError
from diffode.paths import Tabulated

VIEWS = ("alpha", "sigma", "alpha_derivative", "sigma_derivative", "log_snr", "rho", "drift", "diffusion")


def in_functions(spec):
    """A published path given by its two functions."""
    path = paths.get(spec)
    return path, paths.FunctionPath(path.alpha, path.sigma, t_min=path.t_min, t_max=path.t_max, lower=0.0, upper=None)


@pytest.mark.parametrize("spec", ["vp", "vp_cosine", "rectified_flow", "trigonometric", "sub_vp"])
def test_a_path_from_its_functions_is_the_path(spec):
    path, given = in_functions(spec)
    t = torch.linspace(path.t_min, path.t_max, 101, dtype=torch.float64)
    for name in VIEWS:
        torch.testing.assert_close(getattr(given, name)(t), getattr(path, name)(t), rtol=1e-9, atol=1e-12)
        assert getattr(given, name)(0.3) == pytest.approx(getattr(path, name)(0.3), rel=1e-9)
    levels = path.log_snr(t)
    torch.testing.assert_close(given.time_from_log_snr(levels), t, rtol=1e-10, atol=1e-14)
    assert given.time_from_log_snr(math.inf) == pytest.approx(0, abs=1e-15)
    field, own = (diffode.exact_field("ring8", p) for p in (path, given))
    x = field.prior(6, generator=0)
    ends = [diffode.solve(f, x, solver="unipc:order=3", nfe=9, grid="log_snr").x for f in (field, own)]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_functions_that_do_not_depend_on_t_have_derivative_0():
    given = paths.FunctionPath(torch.ones_like, lambda t: t, t_min=0.002, t_max=80)
    assert given.alpha_derivative(3.0) == 0
    assert given.diffusion(3.0) == pytest.approx(paths.get("edm").diffusion(3.0), rel=1e-14)


def test_functions_in_the_wrong_direction_are_told_how_to_be_turned():
    with pytest.raises(ArgumentError, match="alpha\\(1 - t\\)"):
        paths.FunctionPath(lambda t: t, lambda t: 1 - t)
    with pytest.raises(ArgumentError, match="must be a function of t"):
        paths.FunctionPath(0.5, lambda t: t)


@pytest.mark.parametrize("value", [None, "0.5", b"x", True, (1, 2), torch.ones(2), {}, object(), 10**400])
def test_times_that_are_no_numbers_are_named(value):
    for name in ("t_min", "t_max", "lower", "upper"):
        if value is not None or name in ("t_min", "t_max"):
            with pytest.raises(ArgumentError, match=f"{name} must be a number"):
                paths.FunctionPath(lambda t: 1 - t, lambda t: t, **{name: value})
    with pytest.raises(ArgumentError, match="t_min must be a number"):
        paths.Tabulated([0.9, 0.5, 0.1], t_min=value)
    assert paths.Tabulated([0.9, 0.5, 0.1], t_min=np.float32(1.5), t_max=torch.tensor(2.5)).t_max == 2.5


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("ddpm", {}),
        ("ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012",
         {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("ddpm:schedule=cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)  # fmt: skip
def test_published_schedules_are_those_of_diffusers(spec, options):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(**options)
    path = paths.get(spec)
    t = torch.arange(1, 1001, dtype=torch.float64)
    # They are kept in float32 there.
    torch.testing.assert_close(path.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=3e-4, atol=1e-7)
    torch.testing.assert_close(
        path.log_snr(t), paths.Tabulated(scheduler.alphas_cumprod).log_snr(t), rtol=0, atol=2e-3 if "cos" not in spec else 0.05
    )


def test_arrays_and_tensors_have_the_numbers_of_their_times():
    """Below the first level too, where the log-SNR rises to infinity at t = 0."""
    path = paths.Tabulated(np.linspace(0.99, 0.01, 20))
    times = [0.0, 1e-3, 0.4, 1.0, 1.5, 7.25, 20.0]
    for name in VIEWS[:6]:
        numbers = [getattr(path, name)(t) for t in times[1:]]
        assert getattr(path, name)(np.array(times))[1:].tolist() == pytest.approx(numbers, rel=1e-14), name
        assert getattr(path, name)(torch.tensor(times, dtype=torch.float64))[1:].tolist() == pytest.approx(numbers, rel=1e-14)
    assert path.log_snr(0.4) == pytest.approx(path.log_snr(1.0) - math.log(0.4), rel=1e-14)
    assert path.log_snr(np.array(times))[0] == path.log_snr(0.0) == math.inf


def test_a_table_is_met_at_its_levels_and_linear_in_log_snr_between():
    table = torch.tensor([0.999, 0.9, 0.6, 0.2, 0.01], dtype=torch.float64)
    path = paths.Tabulated(table)
    torch.testing.assert_close(path.alpha(torch.arange(1.0, 6.0, dtype=torch.float64)) ** 2, table, rtol=1e-14, atol=0)
    assert path.log_snr(2.5) == pytest.approx((path.log_snr(2.0) + path.log_snr(3.0)) / 2, rel=1e-14)
    # Below the first level the noise falls linearly to none.
    assert path.rho(0.25) == pytest.approx(path.rho(1.0) / 4, rel=1e-14)
    assert path.sigma(0.0) == 0
    assert path.alpha(0.0) == 1


def test_a_zero_terminal_snr_is_left_out():
    path = paths.Tabulated([0.99, 0.5, 0.1, 0.0])
    assert path.t_max == 3
    assert math.isfinite(path.log_snr(path.t_max))


@pytest.mark.parametrize("table", [[0.5], [0.1, 0.5], [1.0, 0.5], [0.5, -0.1], [0.5, math.nan], [[0.9, 0.5]], [0.0, 0.0]])
def test_tables_that_are_none_are_refused(table):
    with pytest.raises(ArgumentError, match="alphas_cumprod"):
        paths.Tabulated(table)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"schedule": "sigmoid"}, "schedule"), ({"levels": 1}, "levels"),
     ({"beta_start": 0.5}, "beta_start"), ({"t_max": 1001.0}, "t_max")],
)  # fmt: skip
def test_wrong_schedules_are_named(options, word):
    with pytest.raises(ArgumentError, match=word):
        paths.DDPM(**options)


def test_tables_with_other_numbers_are_other_paths():
    one, two = paths.Tabulated([0.9, 0.5, 0.1]), paths.Tabulated([0.9, 0.5, 0.11])
    assert one == paths.Tabulated([0.9, 0.5, 0.1])
    assert len({one, two, paths.Tabulated([0.9, 0.5, 0.1])}) == 2
    assert one.spec != two.spec


def test_a_path_that_no_name_rebuilds_is_not_saved_with_a_solver(tmp_path):
    table = diffode.solvers.get("euler").tableau(paths.Tabulated([0.99, 0.5, 0.1]), [3.0, 2.0, 1.0])
    with pytest.raises(ArgumentError, match="register"):
        table.save(tmp_path / "table.safetensors")


def test_a_table_in_a_list_keeps_its_digits():
    """Lists became float32 on the way: 0.9 was off by 2e-8."""
    table = [0.99, 0.9, 0.1]
    assert paths.Tabulated(table).alpha(2.0) ** 2 == pytest.approx(0.9, rel=1e-15)
    assert paths.Tabulated(table) == paths.Tabulated(torch.tensor(table, dtype=torch.float64))


@pytest.mark.parametrize("ends", [{"lower": 0.5}, {"upper": 0.9}, {"lower": -1.0}, {"upper": math.inf}])
def test_ends_of_a_path_from_functions_hold_its_times(ends):
    with pytest.raises(ArgumentError, match="need 0 <= lower <= t_min and t_max <= upper"):
        paths.FunctionPath(lambda t: 1 - t, lambda t: t, **ends)


def test_times_of_levels_are_found_to_rounding_and_in_few_calls():
    """Of alpha = 1 - t and sigma = t the level rho is at t = rho/(1 + rho); halvings would take a hundred calls."""
    asked = []

    def sigma(t):
        asked.append(t.numel())
        return t

    path = paths.FunctionPath(lambda t: 1 - t, sigma, lower=0.0, upper=1.0)
    rho = torch.logspace(-12, 6, 200, dtype=torch.float64)
    exact = rho / (1 + rho)
    found = path.time_from_log_snr(-rho.log())
    # A time near 1 leaves 1 - t of its own few digits.
    torch.testing.assert_close(found, exact, rtol=1e-14, atol=0)
    for level, time in zip(rho[100::10], found[100::10], strict=True):
        asked.clear()
        assert path.time_from_log_snr(-math.log(level)) == pytest.approx(float(time), rel=2e-15)
        assert len(asked) < 50
    assert torch.equal(path.time_from_log_snr(-rho.log()[50:60]), found[50:60])


@pytest.mark.parametrize(("level", "time"), [(math.inf, 0.0), (-math.inf, 1.0)])
def test_levels_beyond_a_path_from_functions_are_at_its_ends(level, time):
    assert paths.FunctionPath(lambda t: 1 - t, lambda t: t, lower=0.0, upper=1.0).time_from_log_snr(level) == time
    path = paths.FunctionPath(lambda t: 1 - t, lambda t: t, t_min=0.1, t_max=0.8)
    assert path.time_from_log_snr(math.copysign(50.0, level)) == (0.8 if time else 0.1)


@pytest.mark.parametrize("last", [0.0, 2.0**-24])
def test_a_last_level_without_signal_is_an_infinite_one(last):
    """Zero terminal SNR, also where a library writes the smallest number of half precision instead of 0."""
    table = [0.9, 0.5, 0.1, last]
    path = Tabulated(table)
    assert path.t_max < len(table)
    shortened = Tabulated(table[:-1])
    assert path.rho(3.0) == pytest.approx(shortened.rho(3.0))


def test_an_interval_goes_from_0_to_1_unless_it_is_told_otherwise():
    plain = paths.Interval()
    assert (plain.t_min, plain.t_max) == (0.0, 1.0)
    assert plain == paths.Interval(0.0, 1.0) != paths.Interval(0.0, 2.0)
    assert len({plain, paths.Interval(0.0, 1.0)}) == 1
