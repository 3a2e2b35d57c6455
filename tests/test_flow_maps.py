"""Flow maps: the angle clock, parametrisations, networks as maps, runs, and files."""

import math

import numpy as np
import pytest
import torch
from maps_exact import angles, exact_map, slope

import diffode
from diffode import learned, paths
from diffode.errors import ArgumentError, BudgetError, FieldError, TrainedElsewhereWarning
from diffode.maps import FunctionMap
from diffode.maps.networks import AngleMap, OneTime, features, network
from diffode.maps.parametrisations import PARAMETRISATIONS


@pytest.mark.parametrize(("kind", "shape"), [("perceptron", (3,)), ("unet", (1, 8, 8))])
def test_a_new_network_is_the_gaussian_flow_and_its_rows_are_apart(kind, shape):
    torch.manual_seed(0)
    net = network(kind, shape, width=8, depth=2)
    y, (a, b) = torch.randn(4, math.prod(shape)), (part.float() for part in angles(4))
    assert torch.equal(AngleMap(net, "angle")(y, a, b), y)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    whole = net(y, a, b)
    assert torch.allclose(whole[1:2], net(y[1:2], a[1:2], b[1:2]), atol=1e-5)
    assert not torch.allclose(whole, net(y, a, b * 0.5))
    assert torch.equal(OneTime(net)(y, a, b), OneTime(net)(y, a, b * 0.5))


def test_a_network_of_another_kind_is_told():
    with pytest.raises(ArgumentError, match="perceptron or unet"):
        network("transformer", (2,), width=8)
    for shape in ((2,), (1, 7, 7), (1, 8, 6)):
        with pytest.raises(ArgumentError, match="even size"):
            network("unet", shape, width=8)


def test_features_are_finite_and_smooth_at_the_ends():
    ends = torch.tensor([0.0, 1e-9, math.pi / 2 - 1e-9, math.pi / 2], dtype=torch.float64)
    assert torch.isfinite(features(ends, ends.flip(0))).all()
    # Low levels are resolved: twice the level is another feature by log 2.
    low = features(torch.tensor([1e-4, 2e-4]), torch.zeros(2))
    assert float(low[1, 2] - low[0, 2]) == pytest.approx(math.log(2) / 4, abs=1e-3)


def test_derivatives_of_a_map_are_those_of_differences():
    torch.manual_seed(0)
    net = network("perceptron", (2,), width=16, depth=2).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    phi, h = AngleMap(net, "trig"), 1e-6
    y, (a, b) = torch.randn(5, 2, dtype=torch.float64), angles(5)
    v = torch.randn(5, 2, dtype=torch.float64)
    value, rate = phi.at_end(y, a, b)
    assert torch.allclose(value, phi(y, a, b))
    assert torch.allclose(rate, (phi(y, a, b + h) - phi(y, a, b - h)) / (2 * h), atol=1e-7)
    value, rate = phi.at_start(y, a, b, v)
    assert torch.allclose(rate, (phi(y + h * v, a + h, b) - phi(y - h * v, a - h, b)) / (2 * h), atol=1e-7)
    assert torch.allclose(phi.velocity(y, a), (phi(y, a, a + h) - phi(y, a, a - h)) / (2 * h), atol=1e-7)


@pytest.fixture(scope="module")
def small():
    return learned.train_map("flow_map:width=16,depth=1", "ring8", nfe=(1, 2), points=256, steps=40)


def test_a_map_runs_with_every_budget_and_counts_its_jumps(small):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(7, generator=0)
    for nfe in (1, 2, 3, 8, 11):
        run = diffode.solve(field, x, solver=small.solver, nfe=nfe)
        assert run.nfe == nfe
        assert len(run.times) == nfe + 1
        y = x
        for s, t in zip(run.times[:-1].tolist(), run.times[1:].tolist(), strict=True):
            y = small.map(y, s, t)
        assert torch.equal(run.x, y)
    assert field.nfe == 25


def test_listed_times_are_kept_to(small):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(7, generator=0)
    run = diffode.solve(field, x, solver=small.solver, grid=[80.0, 1.0, 0.1], keep="all")
    assert run.times.tolist() == [80.0, 1.0, 0.1]
    assert torch.equal(run.states[2], small.map(small.map(x, 80.0, 1.0), 1.0, 0.1))


def test_a_map_is_the_same_on_every_path(small):
    """The state in the angle clock decides; the same noise and data on another path have the same ends."""
    edm, flow = (diffode.exact_field("ring8", name) for name in ("edm", "rectified_flow"))
    x = edm.prior(9, generator=0)
    clock = small.map.clock
    s = 40.0
    t = float(clock.time(flow.path, clock.angle(edm.path, s)))
    y = clock.state(x, edm.path, 80.0)
    one = small.map(clock.point(y, edm.path, s), s, 0.5)
    end = float(clock.time(flow.path, clock.angle(edm.path, 0.5)))
    other = small.map.on("rectified_flow")(clock.point(y, flow.path, t), t, end)
    states = clock.state(one, edm.path, 0.5), clock.state(other, flow.path, end)
    assert torch.allclose(*states, atol=1e-5)


def test_a_time_for_every_row_is_that_of_each_row(small):
    x = torch.randn(4, 2, dtype=torch.float64)
    s, t = torch.tensor([80.0, 10.0, 1.0, 0.3]), torch.tensor([0.01, 2.0, 0.5, 0.3])
    whole = small.map(x, s, t)
    for k in range(4):
        alone = small.map(x[k : k + 1], float(s[k]), float(t[k]))
        assert torch.allclose(whole[k], alone[0], atol=1e-6)
    # No way at all is the identity.
    assert torch.allclose(whole[3], x[3], atol=1e-6)


def test_float32_stays_float32(small):
    assert small.map(torch.randn(3, 2), 80.0, 0.1).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "s", "t", "word"),
    [
        (torch.randn(3, 2), 81.0, 0.1, "s=81 is outside"),
        (torch.randn(3, 2), 80.0, 0.0001, "t=0.0001 is outside"),
        (torch.randn(3, 2), 80.0, -1.0, "t must be a finite time"),
        (torch.randn(3, 2), math.nan, 1.0, "s must be a finite time"),
        (torch.randn(3, 2), torch.ones(2), 0.1, "time for each row"),
        (torch.randn(3, 2), "80", 0.1, "s must be a number"),
        (torch.randn(3, 3), 80.0, 0.1, r"rows of 2 numbers, got \(3,\)"),
        (torch.ones(3, 2, dtype=torch.int64), 80.0, 0.1, "float32 or float64"),
        (np.ones((3, 2)), 80.0, 0.1, "float32 or float64"),
    ],
)
def test_wrong_questions_to_a_map_are_told(small, x, s, t, word):
    with pytest.raises(ArgumentError, match=word):
        small.map(x, s, t)


def test_a_map_on_other_data_says_so(small):
    field = diffode.exact_field("spiral", "edm")
    with pytest.warns(TrainedElsewhereWarning, match="trained for data of scale .*; train one on this field$"):
        diffode.solve(field, field.prior(2, generator=0), solver=small.solver, nfe=1)
    other = diffode.exact_field("gauss1d", "edm")
    with pytest.raises(ArgumentError, match="rows of 2"):
        diffode.solve(other, other.prior(2, generator=0), solver=small.solver, nfe=1)


def test_wrong_runs_of_maps_are_told(small, tmp_path):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    with pytest.raises(ArgumentError, match="nfe must be an integer"):
        diffode.solve(field, x, solver=small.solver, nfe=0)
    with pytest.raises(ArgumentError, match="file="):
        diffode.solve(field, x, solver="map", nfe=1)
    with pytest.raises(ArgumentError, match=r"none.safetensors"):
        diffode.solve(field, x, solver=f"map:file={tmp_path / 'none.safetensors'}", nfe=1)
    with pytest.raises(ArgumentError, match="flow map"):
        diffode.solvers.MapSolver(of=lambda x, s, t: x)
    with pytest.raises((ArgumentError, BudgetError)):
        diffode.solve(field, x, solver=small.solver, nfe=1, noise=torch.zeros(1, 2, 2))


def test_a_run_begins_where_its_start_is(small):
    """A path that begins at more noise than the map was trained for is refused; a part of it is run between its ends."""
    field = diffode.exact_field("ring8", "rectified_flow")
    with pytest.raises(ArgumentError, match="outside of the times"):
        diffode.solve(field, field.prior(2, generator=0), solver=small.solver, nfe=1)
    run = diffode.solve(field, torch.randn(2, 2), solver=small.solver, nfe=3, between=(0.9, 0.1))
    assert run.times[0] == 0.9
    assert run.times[-1] == 0.1


def test_anyones_function_is_a_map():
    field = diffode.exact_field("gauss1d", "edm")
    phi = FunctionMap(diffode.flow(field), "edm")
    x = field.prior(5, generator=0)
    run = diffode.solve(field, x, solver=diffode.solvers.MapSolver(of=phi), nfe=3)
    assert run.nfe == 3
    assert torch.allclose(run.x, diffode.reference(field, x, 80.0, 0.002).x, atol=1e-12)
    elsewhere = diffode.exact_field("gauss1d", "vp")
    with pytest.raises(ArgumentError, match="on the path"):
        diffode.solve(elsewhere, elsewhere.prior(2, generator=0), solver=diffode.solvers.MapSolver(of=phi), nfe=1)
    with pytest.raises(FieldError, match="shape of x"):
        FunctionMap(lambda x, s, t: x[:, :0], "edm")(x, 80.0, 1.0)
    for wrong in (3, math.sin, lambda x, s: x, lambda x, s, t, more: x):
        with pytest.raises(ArgumentError, match="function of"):
            FunctionMap(wrong, "edm")
    with pytest.raises(ArgumentError, match="rows of 3 numbers"):
        diffode.solve(field, x, solver=diffode.solvers.MapSolver(of=FunctionMap(phi, "edm", dim=3)), nfe=1)


def consistency(lam):
    """The exact consistency function of a Gaussian on EDM's path, as a map with a fixed end."""
    path = paths.get("edm")

    def jump(x, s, t):
        return x * ((lam + t**2) / (lam + s**2)).sqrt()[:, None]

    return FunctionMap(jump, path, fixed_end=True)


def test_consistency_functions_sample_stochastically_and_keep_the_law():
    """With the exact function of N(0, lam), re-noising keeps the variance lam + eps^2 for any times."""
    field = diffode.exact_field("gauss1d", "edm")
    lam = float(field.target.scale) ** 2
    solver = diffode.solvers.MapSolver(of=consistency(lam))
    assert solver.stochastic
    x = (lam + 80.0**2) ** 0.5 * torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = diffode.solve(field, x, solver=solver, grid=[80.0, 2.5, 0.5, 0.002], generator=1)
    assert run.nfe == 3
    assert float(run.x.var()) == pytest.approx(lam + 0.002**2, rel=0.02)
    # Two seeds differ, but one jump draws nothing.
    other = diffode.solve(field, x, solver=solver, grid=[80.0, 2.5, 0.5, 0.002], generator=2)
    assert not torch.equal(run.x, other.x)
    once = [diffode.solve(field, x, solver=solver, nfe=1, generator=seed).x for seed in (1, 2)]
    assert torch.equal(*once)


def test_noise_of_consistency_functions_is_asked_for():
    """Without a generator further jumps would draw the same noise again and again."""
    field = diffode.exact_field("gauss1d", "edm")
    solver = diffode.solvers.MapSolver(of=consistency(1.0))
    x = field.prior(5, generator=0)
    with pytest.raises(ArgumentError, match="draws noise for 2 further jumps: pass generator="):
        diffode.solve(field, x, solver=solver, nfe=3)
    states = diffode.solve(field, x, solver=solver, nfe=4, generator=0, keep="all").states
    noises = [(states[k] - states[k].mean()) / states[k].std() for k in (1, 2, 3)]
    assert not torch.allclose(noises[0], noises[1], atol=1e-2)
    assert not torch.allclose(noises[1], noises[2], atol=1e-2)


def test_maps_go_towards_data_unless_they_were_trained_both_ways(small, tmp_path):
    x = torch.randn(3, 2)
    with pytest.raises(ArgumentError, match="towards the data only"):
        small.map(x, 0.5, 20.0)
    with pytest.raises(ArgumentError, match="towards the data only"):
        small.map(x, torch.tensor([80.0, 0.5, 80.0]), 20.0)
    both = learned.train_map("direct:width=8,depth=1,batch=8", "ring8", nfe=1, steps=2)
    both.save(tmp_path / "both.safetensors")
    assert torch.isfinite(learned.load(tmp_path / "both.safetensors").map(x, 0.5, 20.0)).all()


def test_points_are_noised_anew_where_alpha_falls_and_the_end_is_noisy():
    """On a variance-preserving path that ends at half of the noise, the exact function keeps the law of its last time."""
    path, lam = paths.get("vp:t_min=0.4"), 4.0

    def size(t):
        return path.alpha(t) ** 2 * lam + path.sigma(t) ** 2

    def jump(x, s, t):
        return x * (size(t) / size(s)).sqrt()[:, None]

    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [lam]), path)
    solver = diffode.solvers.MapSolver(of=FunctionMap(jump, path, fixed_end=True))
    x = field.prior(100_000, generator=3)
    run = diffode.solve(field, x, solver=solver, grid=[path.t_max, 0.7, 0.5, 0.4], generator=1)
    assert float(run.x.var()) == pytest.approx(size(0.4), rel=0.02)


def test_a_learned_consistency_function_goes_to_its_end_only():
    trained = learned.train_map("ct:width=8,depth=1", "gauss1d", nfe=1, steps=3)
    assert trained.map.fixed_end
    assert trained.solver.stochastic
    x = torch.randn(2, 1)
    trained.map(x, 80.0, 0.002)
    with pytest.raises(ArgumentError, match="goes to t=0"):
        trained.map(x, 80.0, 1.0)


def test_the_exact_map_of_a_gaussian_is_one_in_every_form():
    """The helper of other tests is right: the map does not depend on the form, and is the flow."""
    a, b = angles(30)
    y = torch.randn(30, 1, dtype=torch.float64)
    for name in PARAMETRISATIONS:
        assert torch.allclose(exact_map(name, 0.3)(y, a, b), slope(a, b, 0.3)[:, None] * y, rtol=1e-10)


def test_a_file_can_not_name_a_map_that_is_code(tmp_path):
    """Solvers named by foreign files are only looked up: a place in an option would run its code."""
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(ArgumentError, match="may not name code of its own"):
        diffode.solvers.registry.registered(f"map:of={tmp_path / 'own.py'}:phi")


def test_a_map_of_ones_own_runs_by_its_place(tmp_path):
    (tmp_path / "own_map.py").write_text(
        "def phi(x, s, t):\n    return x * ((1 + t**2) / (1 + s**2)).sqrt().reshape(-1, *[1] * (x.ndim - 1))\n"
    )
    field = diffode.exact_field(diffode.targets.get("gauss1d"), "edm")
    x = field.prior(3, generator=0)
    run = diffode.solve(field, x, solver=f"map:of={tmp_path / 'own_map.py'}:phi", nfe=2)
    assert run.nfe == 2
    assert torch.allclose(run.x, x * ((1 + 0.002**2) / (1 + 80.0**2)) ** 0.5)
