"""Metrics of samples in chunks: those of all points at once, however the points are cut."""

import json
import tracemalloc

import commandline
import numpy as np
import pytest
import torch

import diffode
from diffode import metrics
from diffode.errors import ArgumentError, UnknownNameError
from diffode.randomness import keyed_normal

SPECS = ("moments", "mode_weights", "lost_modes", "endpoint", "endpoint:reduction=rms", "endpoint:reduction=max")
N = 3001


def run(target="moons", path="edm", solver="heun", steps=4):
    field = diffode.exact_field(target, path)
    x = field.prior(N, generator=1)
    solution = diffode.solve(field, x, solver=solver, grid="karras", steps=steps)
    return field, metrics.Outcome(field, x, solution, seed=5)


def in_chunks(spec, field, outcome, sizes):
    metric = metrics.streamed(spec, field, seed=outcome.seed)
    for ends, starts in zip(outcome.solution.x.split(sizes), outcome.start.split(sizes), strict=True):
        metric.add(ends, starts)
    return metric.value()


@pytest.mark.parametrize("sizes", [N, 1, [1, 2000, 0, 1000]], ids=["all", "one by one", "uneven"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_metric_in_chunks_is_that_of_all_points(spec, sizes):
    if sizes == 1 and spec.startswith("endpoint"):
        sizes = 100
    field, outcome = run("gauss2d" if spec.startswith("endpoint") else "moons")
    known = metrics.measure(spec, outcome)
    found = in_chunks(spec, field, outcome, sizes)
    assert found.name == known.name
    assert found.value == pytest.approx(known.value, rel=1e-11)
    assert found.floor == pytest.approx(known.floor, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize(("target", "path"), [("moons", "edm"), pytest.param("gmm40-50d", "vp", marks=pytest.mark.slow)])
def test_the_sliced_distance_in_chunks_has_bounds_that_hold(target, path):
    """The more bins the closer, and the distance of all points always lies between the bounds, for outliers too."""
    field, outcome = run(target, path)
    outcome.solution.x[0] = 1e3
    known = metrics.measure("sliced_w2:projections=32,resamples=0", outcome)
    widths = []
    for bins in (2, 64, 4096, 2**16):
        spec = f"sliced_w2:projections=32,bins={bins}"
        found = in_chunks(spec, field, outcome, [1, 2000, 1000])
        assert found.low <= known.value <= found.high, bins
        widths.append(found.high - found.low)
        again = in_chunks(spec, field, outcome, N)
        assert found.value == pytest.approx(again.value, rel=1e-9)
        if bins == 2**16:
            assert found.value == pytest.approx(known.value, rel=2e-3)
            assert found.floor == pytest.approx(known.floor, rel=2e-2)
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 0.02 * field.scale


def test_the_moments_of_points_far_from_zero_keep_their_digits():
    """Points within one of 1e8: a sum of squares would have no digit of their variance left."""
    far = diffode.GaussianMixture([1.0], [[1e8, 0.0]], [[1.0, 4.0]])
    field = diffode.exact_field(far, "edm")
    x = far.sample(4000, generator=0)
    outcome = metrics.Outcome(field, x, diffode.solve(field, x, solver="ddim", steps=1, grid="karras", between=(0.003, 0.002)))
    known = metrics.measure("moments", outcome).value
    assert in_chunks("moments", field, outcome, 7).value == pytest.approx(known, rel=1e-5)


def test_a_stream_gives_what_metrics_take():
    """Pairs of ends and starts: the same ends as without starts, and starts whose flow the ends follow."""
    field = diffode.exact_field("gauss2d", "edm")
    plain = torch.cat(list(diffode.stream(field, 5000, solver="heun", nfe=30)))
    metric, pairs = metrics.streamed("endpoint", field), []
    for pair in diffode.stream(field, 5000, solver="heun", nfe=30, rows=999, with_starts=True):
        metric.add(*pair)
        pairs.append(pair)
    ends, starts = (torch.cat(part) for part in zip(*pairs, strict=True))
    assert torch.equal(ends, plain)
    assert torch.equal(starts, 80.0 * keyed_normal((5000, 2), seed=0, key="stream"))
    exact = diffode.reference(field, starts, 80.0, 0.002).x
    assert metric.count == 5000
    assert metric.value().value == pytest.approx(float((ends - exact).norm(dim=1).mean()), rel=1e-9)


def test_memory_does_not_grow_with_the_number_of_points():
    field = diffode.exact_field("ring8", "edm")
    metric = metrics.streamed("sliced_w2:projections=8,bins=64", field)
    sizes = set()
    for _ in range(3):
        metric.add(field.marginal(10_000, field.path.t_min, generator=0))
        sizes.add(sum(part.numel() for part in vars(metric._points).values() if isinstance(part, torch.Tensor)))
    assert sizes == {3 * 8 * 64}
    tracemalloc.start()
    metric.value()
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_what_is_wrong_is_named():
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(UnknownNameError, match="mmd"):
        metrics.streamed("mmd", field)
    with pytest.raises(ArgumentError, match="mean, rms or max"):
        metrics.streamed("endpoint:reduction=median", field)
    with pytest.raises(ArgumentError, match="bins must be"):
        metrics.streamed("sliced_w2:bins=1", field)
    with pytest.raises(ArgumentError, match="field must be"):
        metrics.streamed("moments", "ring8")
    with pytest.raises(ArgumentError, match="between"):
        metrics.streamed("moments", field, between=(1.0, 2.0))
    metric = metrics.streamed("moments", field)
    for points, said in (
        (torch.zeros(3, 3), "rows with 2 numbers each"),
        (torch.tensor(1.0), "rows with 2 numbers each"),
        ([[1.0, 2.0]], "got list"),
        (torch.full((3, 2), float("nan")), "not finite"),
    ):
        with pytest.raises(ArgumentError, match=said):
            metric.add(points)
    assert metric.count == 0
    metric.add(torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="moments needs at least 2 points"):
        metric.value()
    with pytest.raises(ArgumentError, match="as many as ends"):
        metric.add(torch.zeros(2, 2), torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="with_starts=True"):
        metrics.streamed("endpoint", field).add(torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="exact law"):
        metrics.streamed("moments", diffode.Field.from_denoised(lambda x, t: x, field.path, probe=False))


def test_the_command_measures_all_points(tmp_path):
    """What it prints is the metric of the points in its file."""
    file = tmp_path / "points.npy"
    words = ["sample", "ring8", "-n", "300", "--nfe", "10", "--output", file, "--metric", "moments", "--metric", "endpoint"]
    found = json.loads(commandline.diffode(*words, "--json").stdout)["metrics"]
    assert list(found) == ["moments", "endpoint"]
    field, points = diffode.exact_field("ring8", "edm"), torch.from_numpy(np.load(file))
    known = metrics.streamed("moments", field)
    known.add(points)
    assert found["moments"]["value"] == pytest.approx(known.value().value, rel=1e-12)
    exact = diffode.reference(field, 80.0 * keyed_normal((300, 2), seed=0, key="ring8"), 80.0, 0.002).x
    assert found["endpoint"]["value"] == pytest.approx(float((points - exact).norm(dim=1).mean()), rel=1e-6)
    assert "moments: " in commandline.diffode(*words).stdout
    assert "draws noise" in commandline.diffode(*words, "--solver", "ddpm", code=2).stderr


def test_a_metric_of_all_points_at_once_is_sent_to_a_suite():
    with pytest.raises(UnknownNameError, match=r'takes all points at once, in a suite with metrics = \["mmd"\]'):
        metrics.streamed("mmd", diffode.exact_field("ring8", "edm"))
