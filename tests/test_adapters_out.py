"""Our fields and solvers inside other libraries' loops: the same numbers."""

import itertools
import math

import pytest
import torch
from commandline import program

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, FieldError

torchdiffeq = pytest.importorskip("torchdiffeq")
torchsde = pytest.importorskip("torchsde")

SPECS = ("euler", "midpoint", "heun", "rk4", "ab:order=2", "ab:order=3")
DETERMINISTIC = (
    "ddim", "edm_heun", "dpm:order=2", "dpm:order=3", "dpmpp:order=2", "dpmpp:order=3", "unipc:order=3", "deis:order=3",
    "lms:order=4", "ipndm:order=3", "rk4:chart=data",
)  # fmt: skip


def exact(path="edm", target="ring8"):
    return diffode.exact_field(target, path)


def start(field, n=5, dtype=torch.float64):
    return field.prior(n, generator=0, dtype=dtype)


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_torchdiffeq_on_our_field_makes_our_numbers(method):
    field = exact("rectified_flow")
    times = diffode.grids.get("shift:s=3", field.path, 12)
    theirs = torchdiffeq.odeint(adapters.as_torchdiffeq(field), start(field), times, method=method)
    ours = diffode.solve(field, start(field), solver=method, grid=times, keep="all").states
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["euler", "midpoint"])
@pytest.mark.parametrize("times", [[0.0, 0.4, 1.0], [1.0, 0.3, -2.0], [-1.0, 0.5], [3.0, 2.0]])
@pytest.mark.parametrize("step", [None, 0.17])
def test_odeint_is_torchdiffeqs(method, times, step):
    def f(t, y):
        return torch.sin(t) * y + y.flip(1) * t**2

    y0 = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    t = torch.tensor(times, dtype=torch.float64)
    options = None if step is None else {"step_size": step}
    pieces = [y0]
    for one, two in itertools.pairwise(t):
        pieces.append(torchdiffeq.odeint(f, pieces[-1], torch.stack([one, two]), method=method, options=options)[-1])
    found = adapters.odeint(f, y0, t, method=method, options=options)
    if step is None:
        torch.testing.assert_close(found, torch.stack(pieces), rtol=1e-12, atol=1e-12)
    else:
        # Theirs ends with a shorter step, ours are alike: both are near the solution.
        end = torchdiffeq.odeint(f, y0, t, rtol=1e-10, atol=1e-12)
        order = {"euler": 1, "midpoint": 2}[method]
        finer = adapters.odeint(f, y0, t, method=method, options={"step_size": step / 2})
        ratio = float((found[-1] - end[-1]).norm() / (finer[-1] - end[-1]).norm())
        assert 2**order * 0.6 < ratio < 2**order * 1.7


@pytest.mark.parametrize("method", SPECS)
def test_odeint_has_the_order_of_its_method(method):
    y0 = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for step in (0.05, 0.025):
        end = adapters.odeint(lambda t, y: -t * y, y0, [0.0, 2.0], method=method, options={"step_size": step})[-1]
        errors.append(abs(float(end) - math.exp(-2)))
    # Adams-Bashforth 3 starts with a step of Euler, whose local error is second order.
    order = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab:order=2": 2, "ab:order=3": 2}[method]
    assert 2**order * 0.75 < errors[0] / errors[1] < 2**order * 1.35


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"t": [0.0]}, "t must be"),
        ({"t": [0.0, 1.0, 0.5]}, "rise or fall"),
        ({"t": [0.0, float("nan")]}, "finite"),
        ({"options": {"rtol": 1e-3}}, "rtol"),
        ({"options": {"step_size": -1}}, "step_size"),
        ({"method": "dpmpp:order=2"}, "path"),
    ],
)
def test_wrong_arguments_of_odeint_are_named(arguments, word):
    with pytest.raises(ArgumentError, match=word):
        adapters.odeint(**{"function": lambda t, y: -y, "y0": torch.ones(1, 1), "t": [0.0, 1.0], **arguments})


def test_torchsde_without_noise_is_euler_on_our_field():
    field = exact("vp")
    times = diffode.grids.get("time_uniform", field.path, 20)
    sde = adapters.as_torchsde(field, eta=0.0)
    y = start(field)
    for one, two in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        span = torch.tensor([sde.start - one, sde.start - two], dtype=torch.float64)
        y = torchsde.sdeint(sde, y, span, method="euler", dt=float(span[1] - span[0]))[-1]
    ours = diffode.solve(field, start(field), solver="euler", grid=times).x
    torch.testing.assert_close(y, ours, rtol=1e-9, atol=1e-9)


def test_torchsde_with_noise_ends_in_the_right_law():
    """A Gaussian's reverse SDE ends with its mean and variance, up to sampling and first-order error."""
    target = diffode.GaussianMixture([1.0], [[1.0, -2.0]], [[0.5, 2.0]])
    field = diffode.exact_field(target, "vp")
    sde = adapters.as_torchsde(field, eta=1.0)
    span = torch.tensor([0.0, sde.start - sde.stop], dtype=torch.float64)
    torch.manual_seed(0)
    end = torchsde.sdeint(sde, field.prior(4000, generator=0), span, method="euler", dt=1 / 200)[-1]
    assert (end.mean(0) - torch.tensor([1.0, -2.0])).abs().max() < 0.1
    torch.testing.assert_close(end.var(0), torch.tensor([0.5, 2.0], dtype=torch.float64), rtol=0.08, atol=0)
    with pytest.raises(ArgumentError, match="eta"):
        adapters.as_torchsde(field, -1.0)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_a_k_diffusion_function_makes_our_numbers(solver):
    field = exact()
    sigmas = diffode.grids.get("karras", field.path, 8)
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    sample = adapters.as_k_diffusion_sampler(solver)
    found = sample(adapters.as_k_diffusion(field), start(field), sigmas, disable=True)
    ours = diffode.solve(field, start(field), solver=solver, grid=sigmas.tolist()).x
    torch.testing.assert_close(found, ours, rtol=1e-9, atol=1e-9)
    single = sample(adapters.as_k_diffusion(field), start(field, dtype=torch.float32), sigmas)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), ours, rtol=1e-5, atol=1e-4)


def test_a_k_diffusion_function_calls_back_and_passes_extra_arguments():
    field, seen, extra = exact(), [], []
    denoiser = adapters.as_k_diffusion(field)

    def model(x, sigma, label):
        extra.append(label)
        return denoiser(x, sigma)

    sample = adapters.as_k_diffusion_sampler("dpmpp:order=2")
    sample(model, start(field), [80.0, 3.0, 0.2, 0.0], extra_args={"label": 7}, callback=seen.append)
    assert [(one["i"], round(float(one["sigma"]), 6)) for one in seen] == [(0, 80.0), (1, 3.0), (2, 0.2)]
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    assert set(extra) == {7}
    torch.testing.assert_close(seen[1]["denoised"], field.denoised(seen[1]["x"], 3.0))


def test_a_k_diffusion_function_with_noise_draws_it_from_the_generator():
    field = exact()
    sample = adapters.as_k_diffusion_sampler("euler_ancestral")
    runs = [
        sample(adapters.as_k_diffusion(field), start(field), [80.0, 3.0, 0.2, 0.0], generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [1.0, -1.0], [2.0, 2.0, 0.0]])
def test_noise_levels_that_do_not_fall_are_refused(sigmas):
    with pytest.raises(ArgumentError, match="sigmas"):
        adapters.as_k_diffusion_sampler("ddim")(lambda x, s: x, torch.ones(2, 2), sigmas)


def test_solvers_without_a_table_are_refused():
    for make in (adapters.as_k_diffusion_sampler, adapters.as_azula_sampler, adapters.as_diffusers_scheduler):
        with pytest.raises(ArgumentError, match="writes no table"):
            make("rk_adaptive")


def test_the_k_diffusion_form_takes_a_level_for_every_row_on_any_path():
    field = exact("vp")
    levels = torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.cat([exact("edm").denoised(row[None], float(level)) for row, level in zip(x, levels, strict=True)])
    torch.testing.assert_close(adapters.as_k_diffusion(field)(x, levels), expected, rtol=1e-9, atol=1e-9)


def test_flow_matchings_own_solver_on_our_field():
    solver = pytest.importorskip("flow_matching.solver")
    field = exact("rectified_flow")
    times = diffode.grids.get("time_uniform", field.path, 10)
    model = adapters.as_flow_matching(field)
    theirs = solver.ODESolver(model).sample(start(field), step_size=None, method="midpoint", time_grid=1 - times)
    ours = diffode.solve(field, start(field), solver="midpoint", grid=times).x
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)
    with pytest.raises(ArgumentError, match=r"\[0, 1\]"):
        adapters.as_flow_matching(exact("edm"))


def azula_denoiser(field, schedule):
    denoise = pytest.importorskip("azula.denoise")

    class Exact(denoise.Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t, t, **_):
            return denoise.DiracPosterior(field.denoised(x_t, float(t)))

    return Exact()


def test_azulas_sampler_is_ours_on_its_times():
    noise, sample = pytest.importorskip("azula.noise"), pytest.importorskip("azula.sample")
    schedule = noise.VPSchedule()
    field = diffode.exact_field("ring8", adapters.azula_path(schedule))
    denoiser, x = azula_denoiser(field, schedule), start(field)
    options = {"steps": 12, "silent": True, "dtype": torch.float64}
    theirs = sample.DDIMSampler(denoiser, **options)(x)
    ours = adapters.as_azula_sampler("ddim")(denoiser, **options)(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    times = torch.linspace(1, 0, 13, dtype=torch.float64)
    for solver in ("dpmpp:order=2", "unipc:order=3"):
        found = adapters.as_azula_sampler(solver)(denoiser, **options)(x)
        torch.testing.assert_close(found, diffode.solve(field, x, solver=solver, grid=times).x, rtol=1e-9, atol=1e-9)
    named = adapters.as_azula_sampler("dpmpp:order=2", grid="log_snr")(denoiser, **options)(x)
    ours = diffode.solve(field, x, solver="dpmpp:order=2", grid="log_snr", steps=12).x
    torch.testing.assert_close(named, ours, rtol=1e-9, atol=1e-9)
    laid = adapters.as_azula_sampler("universal:scale=2")(denoiser, **options)(x)
    ours = diffode.solve(field, x, solver="universal:scale=2", nfe=12).x
    torch.testing.assert_close(laid, ours, rtol=1e-9, atol=1e-9)
    ancestral = adapters.as_azula_sampler("euler_ancestral")(denoiser, **options)
    one, two = (ancestral(x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_an_azula_denoiser_is_checked_in_its_first_run_alone():
    """Twelve calls are the run, four look at the convention, three at the rows, of which a batch of one row allows one."""
    schedule = pytest.importorskip("azula.noise").VPSchedule()
    field = diffode.exact_field("ring8", adapters.azula_path(schedule))
    calls = []

    def counting():
        denoiser = azula_denoiser(field, schedule)
        forward = denoiser.forward
        denoiser.forward = lambda *given, **named: calls.append(1) or forward(*given, **named)
        return denoiser

    def cost(sampler, rows=5):
        calls.clear()
        sampler(start(field, rows))
        return len(calls)

    kind, options = adapters.as_azula_sampler("dpmpp:order=2"), {"steps": 12, "silent": True, "dtype": torch.float64}
    one, other = counting(), counting()
    sampler = kind(one, **options)
    assert [cost(sampler) for _ in range(3)] == [19, 12, 12]
    assert cost(adapters.as_azula_sampler("ddim")(one, **options)) == 12
    assert [cost(kind(other, **options), rows) for rows in (1, 1, 5, 5)] == [17, 13, 15, 12]


def test_an_azula_denoiser_is_checked_again_after_a_run_that_failed():
    schedule = pytest.importorskip("azula.noise").VPSchedule()
    field = diffode.exact_field("ring8", adapters.azula_path(schedule))
    denoiser = azula_denoiser(field, schedule)
    forward = denoiser.forward
    sampler = adapters.as_azula_sampler("ddim")(denoiser, steps=4, silent=True, dtype=torch.float64)
    denoiser.forward = lambda x, t, **_: forward(x.roll(1, 0), t)
    for _ in range(2):
        with pytest.raises(FieldError, match="row"):
            sampler(start(field))
    denoiser.forward = forward
    assert sampler(start(field)).isfinite().all()


@pytest.mark.parametrize("library", ["diffusers", "azula"])
def test_a_missing_library_gives_the_install_command(library):
    code = f"""
import sys
sys.modules["{library}"] = None
from diffode import adapters
try:
    adapters.as_diffusers_scheduler("ddim") if "{library}" == "diffusers" else adapters.as_azula_sampler("ddim")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = program(code)
    assert "ArgumentError" in done.stdout
    assert "pip install" in done.stdout
    assert library in done.stdout


def test_odeint_takes_any_shape_and_torchdiffeqs_adaptive_methods():
    def f(t, y):
        assert t.dtype == y.dtype
        return -y * t

    for y0 in (torch.tensor(2.0), torch.ones(3), torch.ones(2, 3, 4, dtype=torch.float64)):
        found = adapters.odeint(f, y0, [0.0, 1.0, 2.0], method="dopri5", rtol=1e-6, atol=1e-8)
        assert found.shape == (3, *y0.shape)
        assert found.dtype == y0.dtype
        torch.testing.assert_close(found[2], y0 * math.exp(-2.0), rtol=1e-5, atol=0)
        backwards = adapters.odeint(f, found[2], [2.0, 0.0], method="bosh3", rtol=1e-6)
        torch.testing.assert_close(backwards[1], y0, rtol=1e-4, atol=0)
    net = torch.nn.Linear(3, 2)
    end = adapters.odeint(lambda t, y: net(torch.cat([y, t.expand(len(y), 1)], 1)), torch.ones(4, 2), [0.0, 1.0])
    assert end.shape == (2, 4, 2)
    with pytest.raises(FieldError, match="must match"):
        adapters.odeint(lambda t, y: y[:1], torch.ones(4, 2), [0.0, 1.0])
    for arguments, word in (
        ({"method": "rk4", "rtol": 1e-3}, "fixed steps"),
        ({"function": 3}, "callable"),
        ({"y0": 1.0}, "y0"),
    ):
        with pytest.raises(ArgumentError, match=word):
            adapters.odeint(**{"function": f, "y0": torch.ones(1), "t": [0.0, 1.0], **arguments})


@pytest.mark.parametrize(("method", "tight"), [
    ("dopri8", 1e-11), ("adaptive_heun", 1e-6), ("fehlberg2", 1e-6), ("scipy:DOP853", 1e-11), ("torchdiffeq:dopri5", 1e-9),
    ("rk_adaptive", 1e-9),
])  # fmt: skip
def test_odeint_hands_tolerances_to_every_adaptive_method(method, tight):
    y0 = torch.ones(3, 1, dtype=torch.float64)
    true = y0 * math.exp(1 - math.cos(2.0))
    asked, errors = [0, 0], []
    for k, tolerance in enumerate((1e-3, tight)):

        def slope(t, y, k=k):
            asked[k] += 1
            return torch.sin(t) * y

        end = adapters.odeint(slope, y0, [0.0, 2.0], method=method, rtol=tolerance, atol=tolerance)[-1]
        errors.append(float((end - true).abs().max()))
    # Fehlberg's pair of order 2(1) is off by some hundred tolerances.
    assert errors[1] < 1000 * tight
    assert asked[1] > 1.3 * asked[0]


@pytest.mark.parametrize("method", ["heun2", "heun3", "explicit_adams", "implicit_adams", "fixed_adams"])
def test_odeint_knows_torchdiffeqs_names(method):
    y0 = torch.ones(1, 1, dtype=torch.float64)
    found = adapters.odeint(lambda t, y: -y, y0, [0.0, 1.0], method=method, options={"step_size": 0.02})[-1]
    theirs = torchdiffeq.odeint(
        lambda t, y: -y, y0, torch.tensor([0.0, 1.0]).double(), method=method, options={"step_size": 0.02}
    )[-1]
    torch.testing.assert_close(found, theirs, rtol=1e-9, atol=1e-9)
    if method != "implicit_adams" and method != "fixed_adams":
        with pytest.raises(ArgumentError, match="fixed steps"):
            adapters.odeint(lambda t, y: -y, y0, [0.0, 1.0], method=method, rtol=1e-6)


@pytest.mark.parametrize("path", ["rectified_flow", "vp", "trigonometric"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
def test_adaptive_methods_that_step_past_the_path_end_at_the_exact_flow(path, method):
    field = exact(path, "bimodal1d")
    ends = torch.tensor([field.path.t_max, field.path.t_min], dtype=torch.float64)
    x = start(field)
    found = torchdiffeq.odeint(adapters.as_torchdiffeq(field), x, ends, method=method, rtol=1e-8, atol=1e-8)[-1]
    true = diffode.reference(field, x, *ends.tolist()).x
    # An adaptive run's error is some hundred tolerances here, as it is where it may not step past the end.
    torch.testing.assert_close(found, true, rtol=0, atol=2e-5)
    back = torchdiffeq.odeint(adapters.as_torchdiffeq(field), true, ends.flip(0), method=method, rtol=1e-9, atol=1e-9)[-1]
    torch.testing.assert_close(back, x, rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
def test_adaptive_methods_of_flow_matching_step_past_its_times(method):
    field = exact("rectified_flow", "bimodal1d")
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    model = adapters.as_flow_matching(field)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = torchdiffeq.odeint(lambda t, y: model(y, t), x, times, method=method, rtol=1e-8, atol=1e-8)[-1]
    own = adapters.odeint(lambda t, y: model(y, t), x, times, method="rk4", options={"step_size": 1 / 200})[-1]
    torch.testing.assert_close(found, own, rtol=0, atol=2e-5)


def test_an_integrator_outside_torch_says_that_no_gradient_comes_back():
    field = exact("edm", "bimodal1d")
    with pytest.raises(ArgumentError, match="rk_adaptive"):
        diffode.solve(field, start(field).requires_grad_(), solver="scipy:RK45")
