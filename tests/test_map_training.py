"""Training of flow maps: every method learns, numbers repeat, trainings go on, wrong requests are told."""

import math

import pytest
import torch

import diffode
from diffode import learned
from diffode.errors import ArgumentError, NumericalError, UnknownNameError
from diffode.learned import MAP_METHODS, train, train_map
from diffode.learned.maps import laws
from diffode.learned.maps.losses import NORMS, loss_of, weigher
from diffode.learned.maps.optimisers import OPTIMISERS, Optimisers, orthogonal
from diffode.learned.maps.options import options_of
from diffode.learned.maps.residuals import Term
from diffode.learned.maps.sources import Sources
from diffode.learned.request import Request
from diffode.metrics.coupled import reduce
from diffode.randomness import keyed
from diffode.specs import format_spec

SMALL = "width=32,depth=2,batch=256"
#: The number of jumps for which each method is judged here: its own where that is more than one.
JUMPS = {"flow_matching": 8, "multistep_cd": 4, "ctm": 2}
#: Methods for which some hundred steps of a small network are not enough to be better than the Gaussian flow, and which are
#: tried for longer.
LONG = {
    "progressive": 1200, "ct": 900, "ctm": 700, "meanflow": 900, "improved_meanflow": 600, "scd": 900, "sct": 900, "cd": 600,
    "tcm": 600, "ect": 600, "ayf_emd": 900,
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in MAP_METHODS])
def test_every_method_is_better_than_the_gaussian_flow_after_some_seconds(name):
    jumps = JUMPS.get(name, 1)
    found = train_map(f"{name}:{SMALL}", "bimodal1d", nfe=jumps, steps=LONG.get(name, 350), seed=1)
    assert found.held_out[1 if found.map.fixed_end else jumps] < found.errors.before
    assert found.errors.before == pytest.approx(0.38, abs=0.03)
    assert found.stopped_by == "counts"
    assert found.history.steps == len(found.history.error)


def test_the_errors_of_a_result_are_those_of_its_runs_on_other_starts():
    found = train_map(f"flow_map:{SMALL}", "bimodal1d", nfe=(1, 2, 4), steps=300)
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.path.prior((4000, 1), generator=keyed(5, "fresh"))
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-7).x
    for nfe, error in found.held_out.items():
        distances = (diffode.solve(field, x, solver=found.solver, nfe=nfe).x - exact).norm(dim=1) / field.scale
        assert error == pytest.approx(reduce(distances, "mean"), abs=5 * float(distances.std()) / 256**0.5)


def test_the_gaussian_flow_is_what_errors_are_compared_with():
    """Before training the map is the identity in the angle clock, whose error is that of a Gaussian's flow."""
    found = train_map("flow_map:width=8,depth=1,batch=8", "bimodal1d", nfe=1, steps=1)
    field = diffode.exact_field("bimodal1d", "edm")
    x = field.path.prior((256, 1), generator=keyed(0, "train_map", "test"))
    m, c = field.target.mean, field.scale
    y = m + (x - m) * math.sqrt((c**2 + 0.002**2) / (c**2 + 80.0**2))
    error = (y - diffode.reference(field, x, 80.0, 0.002, 1e-7).x).norm(dim=1).mean() / field.scale
    assert found.errors.before == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize(
    "method", ["flow_map", "shortcut", "meanflow", "tcm", "reflow:rounds=2", "progressive", "lsd:norm=learned"]
)
@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_an_interrupted_training_goes_on_to_the_same_numbers(method, optimiser, tmp_path):
    name, _, own = method.partition(":")
    spec = f"{name}:width=8,depth=1,batch=16,optimiser={optimiser}" + (f",{own}" if own else "")
    request = {"points": 64} if MAP_METHODS[name].trajectories else {}
    whole = train_map(spec, "gauss2d", nfe=(1, 2), steps=60, **request)
    asked, file = [], tmp_path / "resume.safetensors"

    def stop():
        asked.append(None)
        return len(asked) == 37

    part = train_map(spec, "gauss2d", nfe=(1, 2), steps=60, resume_file=file, stop=stop, **request)
    assert part.stopped_by == "request"
    assert part.history.steps == 37
    assert file.exists()
    rest = train_map(spec, "gauss2d", nfe=(1, 2), steps=60, resume_file=file, **request)
    assert not file.exists()
    assert rest.history == whole.history
    assert rest.held_out == whole.held_out
    assert rest.solver.content() == whole.solver.content()


def test_an_interrupted_training_is_not_another_one(tmp_path):
    file = tmp_path / "resume.safetensors"
    train_map("flow_map:width=8,depth=1", "gauss1d", nfe=1, points=32, steps=9, resume_file=file, stop=lambda: True)
    for changed in ({"seed": 1}, {"steps": 10}, {"nfe": 2}, {"points": 33}):
        request = {"nfe": 1, "points": 32, "steps": 9, **changed}
        with pytest.raises(ArgumentError, match="another training"):
            train_map("flow_map:width=8,depth=1", "gauss1d", resume_file=file, **request)


def test_a_seed_gives_the_same_map_and_another_one_another():
    runs = [train_map("shortcut:width=8,depth=1,batch=32", "ring8", nfe=1, steps=9, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].solver.content() == runs[1].solver.content() != runs[2].solver.content()
    # The random state of the program is left alone.
    torch.manual_seed(0)
    one = torch.rand(1)
    torch.manual_seed(0)
    train_map("shortcut:width=8,depth=1,batch=32", "ring8", nfe=1, steps=2)
    assert torch.equal(torch.rand(1), one)


def test_a_training_begins_from_a_map(tmp_path):
    first = train_map("flow_map:width=16,depth=1", "bimodal1d", nfe=1, points=500, steps=150)
    first.save(tmp_path / "first.safetensors")
    for given in (first.map, tmp_path / "first.safetensors"):
        second = train_map("lmd:width=16,depth=1,rate=1e-4", "bimodal1d", nfe=1, steps=3, begin_from=given)
        assert second.held_out[1] == pytest.approx(first.held_out[1], rel=0.05)
        assert second.facts.begun_from == first.map.method
    with pytest.raises(ArgumentError, match="width 16 and depth 2"):
        train_map("lmd:width=16,depth=2", "bimodal1d", nfe=1, steps=3, begin_from=first.map)
    with pytest.raises(ArgumentError, match="parametrisation 'average'"):
        train_map("meanflow:width=16,depth=1", "bimodal1d", nfe=1, steps=3, begin_from=first.map)


def test_a_limit_of_seconds_ends_a_training_and_says_so():
    found = train_map("shortcut:width=8,depth=1", "ring8", nfe=1, steps=10**6, seconds=1.0)
    assert found.stopped_by == "seconds"
    assert 1 <= found.history.steps < 10**6


def test_steps_are_told():
    told = []
    train_map("flow_map:width=8,depth=1,batch=8", "gauss1d", nfe=1, points=32, steps=40, progress=told.append)
    assert [step.number for step in told] == list(range(1, 41))
    assert {step.total for step in told} == {40}
    assert told[0].held_out is None
    assert told[-1].held_out is not None


def test_training_by_name_is_the_same_training():
    one = train("shortcut:width=8,depth=1", "ring8", (1, 2), steps=5)
    other = train_map("shortcut:width=8,depth=1", "ring8", (1, 2), steps=5)
    assert one.solver.content() == other.solver.content()
    assert options_of(one.map.method)[1] == options_of("shortcut:width=8,depth=1")[1]


@pytest.mark.parametrize(
    ("method", "request_", "word"),
    [
        ("flow_map:widht=8", {}, "did you mean 'width'"),
        ("flow_map:width=0", {}, "width"),
        ("flow_map:width=1.5", {}, "width"),
        ("flow_map:norm=cubic", {}, "norm must be one of"),
        ("flow_map:rate=0", {}, "rate"),
        ("flow_map:rate=nan", {}, "rate"),
        ("flow_map:ends=2", {}, "ends"),
        ("flow_map:kind=unet", {}, "channels, size, size"),
        ("flow_map:fixed_end=true", {}, "fixed_end is part of"),
        ("flow_map:teacher=none", {}, "learns from exact"),
        ("ct:teacher=exact", {}, "learns from none"),
        ("lsd:teacher=exact", {}, "learns from own"),
        ("ctm:parametrisation=edm", {}, "parametrisation=ddim"),
        ("reflow:parametrisation=angle", {}, "parametrisation=average"),
        ("multistep_cd:segments=3", {}, "multiple of segments"),
        ("meanflow", {"points": 100}, "leave points out"),
        ("flow_map", {"points": 1}, "points"),
        ("flow_map", {"steps": 0}, "steps"),
        ("flow_map", {"nfe": 0}, "nfe must be an integer"),
        ("flow_map", {"nfe": ()}, "one or more different numbers"),
        ("flow_map", {"nfe": (1, 1)}, "one or more different numbers"),
        ("flow_map", {"nfe": "1,2"}, "nfe"),
        ("flow_map", {"seed": -1}, "seed"),
        ("flow_map", {"seconds": 0}, "seconds"),
        ("flow_map", {"path": "no_path"}, "path"),
    ],
)
def test_wrong_requests_are_told(method, request_, word):
    with pytest.raises(ArgumentError, match=word):
        train_map(method, "gauss1d", **{"nfe": 1, "steps": 2, **request_})


def test_unknown_methods_are_told():
    with pytest.raises(UnknownNameError, match="did you mean 'meanflow'"):
        train_map("meanflw", "gauss1d")
    with pytest.raises(ArgumentError, match="one number of evaluations for bespoke"):
        train("bespoke", "gauss1d", (1, 2))
    with pytest.raises(ArgumentError, match="leave resume_file out"):
        train("dmn", "ring8", 4, resume_file="x.safetensors")


def test_methods_that_learn_from_data_need_data():
    field = diffode.Field.from_velocity(lambda x, t: 0 * x, path="edm")
    for method in ("ct", "cd", "lmd"):
        with pytest.raises(ArgumentError, match="such as flow_map"):
            train_map(f"{method}:width=8,depth=1", field, nfe=1, dim=1, steps=2)


def test_a_network_is_a_teacher():
    """A field without known data teaches methods that need a teacher's trajectories alone."""
    exact = diffode.exact_field("gauss1d", "edm")
    field = diffode.Field.from_velocity(lambda x, t: exact.velocity(x, t), path="edm", scale=exact.scale)
    found = train_map("flow_map:width=16,depth=1", field, nfe=1, dim=1, points=300, steps=60)
    assert math.isfinite(found.held_out[1])


def test_divergence_is_told():
    with pytest.raises(NumericalError, match=r"diverged at step .* lower rate="):
        train_map("ctm:rate=1e30,optimiser=adam,width=8,depth=1", "bimodal1d", nfe=1, steps=50)


@pytest.fixture(scope="module")
def sources():
    return Sources(Request.of("test", "bimodal1d"), 64)


@pytest.mark.parametrize("law", laws.LAWS)
def test_laws_lie_between_the_ends(sources, law):
    first, last = sources.angles
    a = laws.one(sources, 5000, law).double()
    assert float(a.max()) <= first
    assert float(a.min()) >= last - 1e-9
    if law == "uniform":
        assert float(a.mean()) == pytest.approx((first + last) / 2, abs=0.03)
    else:
        # MeanFlow's logit-normal times; lognormal levels of iCT and sCM, in units of data of scale 1/2 there. The middle of a
        # normal law is hardly touched by cutting it at the ends.
        mean, deviation = {"logit_normal": (-0.4, 1.0), "lognormal": (-0.4069, 2.0), "scm": (-0.3069, 1.4)}[law]
        assert float(a.tan().log().median()) == pytest.approx(mean, abs=0.1 * deviation)
        inside = ((a.tan().log() - mean).abs() < deviation).double().mean()
        assert float(inside) == pytest.approx(0.683, abs=0.04)


def test_two_angles_fall_and_shares_are_kept(sources):
    first, last = sources.angles
    a, b = laws.two(sources, 20_000, "uniform", same=0.3, ends=0.25)
    assert bool((a >= b).all())
    assert float((a == b).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((a == torch.tensor(first, dtype=a.dtype)).double().mean()) == pytest.approx(0.25, abs=0.02)
    apart = a != b
    assert float((b[apart] == torch.tensor(last, dtype=b.dtype)).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_dyadic_steps_are_halves_of_the_path(sources):
    first, last = sources.angles
    a, r, b = (angle.double() for angle in laws.dyadic(sources, 3000))
    steps = (first - last) / (a - b)
    assert torch.allclose(steps, 2 ** steps.log2().round(), rtol=1e-3)
    assert set(steps.log2().round().int().tolist()) == set(range(7))
    assert torch.allclose(r, (a + b) / 2, atol=1e-5)
    places = (first - a) / (a - b)
    assert torch.allclose(places, places.round(), atol=2e-3)


def test_noised_data_have_the_law_of_the_field(sources):
    a = torch.full((40_000,), 0.7)
    noised = sources.noised(a)
    assert torch.allclose(noised.at(a), noised.y)
    assert float(noised.y.double().var()) == pytest.approx(1.0, abs=0.03)
    # The mean of the conditional velocity given y is the field's: their difference is uncorrelated with any function of y.
    difference = (noised.velocity(a) - sources.velocity(noised.y, a)).double()
    for function in (torch.ones_like, torch.sin, torch.tanh, lambda y: y):
        probe = function(noised.y.double())
        assert abs(float((difference * probe).mean())) < 5 * float((difference * probe).std()) / 200


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_steps_of_the_teacher_have_their_order(kind, order):
    sources = Sources(Request.of("test", "bimodal1d"), 16, torch.float64)
    known = sources.trajectories
    errors = []
    for count in (32, 64):
        angles, y = torch.linspace(1.2, 0.6, count + 1, dtype=torch.float64), None
        begin = int((known.angles - 1.2).abs().argmin())
        y = known.states[begin].clone()
        levels = torch.linspace(float(known.angles[begin]), float(known.angles[begin + 6]), count + 1, dtype=torch.float64)
        for k in range(count):
            y = sources.step(y, levels[k].expand(16), levels[k + 1].expand(16), kind)
        errors.append(float((y - known.states[begin + 6]).abs().mean()))
        assert len(angles) == count + 1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("norm", NORMS)
def test_losses_are_small_for_small_residuals_and_have_gradients(norm):
    weights = weigher()
    span = torch.full((8,), 1.0), torch.full((8,), 0.5)
    values = []
    for size in (1.0, 0.1):
        residual = (size * torch.ones(8, 3)).requires_grad_(True)
        loss = loss_of([Term(residual, 1.0, span)], norm, 0.5, weights)
        loss.backward()
        assert torch.isfinite(residual.grad).all()
        values.append(float(loss.detach()))
    assert values[1] < values[0]


def test_losses_by_hand():
    residual = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(loss_of([Term(residual)], "squared", 1.0, weigher())) == pytest.approx(25 / 2 / 2)
    assert float(loss_of([Term(residual, torch.tensor([2.0, 1.0]))], "squared", 1.0, weigher())) == pytest.approx(12.5)
    assert float(loss_of([Term(residual)], "distance", 1.0, weigher())) == pytest.approx(12.5**0.5 / 2, rel=1e-5)
    assert float(loss_of([Term(residual)], "adaptive", 1.0, weigher())) == pytest.approx(12.5 / 12.51 / 2, rel=1e-6)
    # Two terms are weighed by their rows.
    both = loss_of([Term(residual), Term(torch.ones(6, 2))], "squared", 1.0, weigher())
    assert float(both) == pytest.approx((12.5 + 6) / 8)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_optimisers_go_down_a_badly_scaled_bowl(kind):
    torch.manual_seed(0)
    scales = torch.logspace(0, 3, 6)[:, None] * torch.logspace(0, 1, 4)
    matrix, vector = torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(5))
    optimisers = Optimisers([matrix, vector], kind, 2e-2)

    def bowl():
        return (scales * matrix.square()).mean() + vector.square().mean()

    before = float(bowl().detach())
    for step in range(500):
        optimisers.step(bowl(), 1 - step / 500, 1e9)
    assert float(bowl().detach()) < 1e-2 * before


def test_orthogonal_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 9), (9, 4)):
        matrix = torch.randn(*shape)
        found = orthogonal(matrix)
        assert torch.linalg.svdvals(found).max() < 1.3
        assert torch.linalg.svdvals(found).min() > 0.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert float((found * (u @ v)).sum() / found.norm() / (u @ v).norm()) > 0.97


@pytest.mark.parametrize("name", MAP_METHODS)
def test_specs_of_methods_are_read_back(name):
    row, options = options_of(name)
    assert options == row.defaults
    assert options_of(format_spec(name, options))[1] == options
    assert row.source
    assert row.objective
    assert row.cost


def test_a_saved_map_says_what_it_was_trained_for(tmp_path):
    found = train_map("cd:width=8,depth=1,levels=9", "ring8", nfe=1, path="vp", steps=3, seed=11)
    found.save(tmp_path / "cd.safetensors")
    back = learned.load(tmp_path / "cd.safetensors")
    assert back.map.method == found.map.method
    assert options_of(back.map.method)[1]["levels"] == 9
    assert (back.facts.target, back.facts.path, back.facts.seed) == ("ring8", "vp", 11)
    assert back.map.fixed_end
    assert repr(back).startswith("TrainedMap('cd:")
