"""Training of flow maps: every method learns, numbers repeat, trainings go on, wrong requests are told."""

import itertools
import math
import time

import pytest
import torch

import diffode
from diffode import learned
from diffode.errors import ArgumentError, FileFormatError, NumericalError, UnknownNameError
from diffode.learned import MAP_METHODS, train, train_map
from diffode.learned.maps.optimisers import Optimisers
from diffode.learned.maps.options import options_of
from diffode.metrics.coupled import reduce
from diffode.randomness import keyed
from diffode.specs import format_spec
from diffode.tensor_files import read_tensors, write_tensors

SMALL = "width=32,depth=2,batch=256"
#: Enough for most methods to halve the error that they begin with.
QUICK = "width=24,depth=2,batch=64"
#: The number of jumps for which each method is judged here: its own where that is more than one.
JUMPS = {"flow_matching": 8, "multistep_cd": 4, "ctm": 2}
#: Methods for which some hundred steps of a small network are not enough to be better than the Gaussian flow, and which are
#: tried for longer.
LONG = {
    "progressive": 1200, "ct": 900, "ctm": 700, "meanflow": 900, "improved_meanflow": 600, "scd": 900, "sct": 900, "cd": 600,
    "tcm": 600, "ect": 600, "ayf_emd": 900,
}  # fmt: skip


#: Methods whose steps cost most, and whose like (the other slope along the flow, or pairs) is tried at once.
COSTLY = {"emd", "direct", "esd", "lsd", "anyflow"}
#: Those that learn a law alone are in test_map_laws.py.
COUPLED = [name for name, row in MAP_METHODS.items() if not row.law_only]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in COSTLY | LONG.keys() else []) for name in COUPLED]
)
def test_every_method_is_better_than_the_gaussian_flow_after_some_seconds(name):
    jumps = JUMPS.get(name, 1)
    size = SMALL if name in COSTLY | LONG.keys() else QUICK
    found = train_map(f"{name}:{size}", "bimodal1d", nfe=jumps, steps=LONG.get(name, 350 if size == SMALL else 250), seed=1)
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
    ("method", "optimiser"),
    [
        *((m, "adam") for m in ("flow_map", "shortcut", "meanflow", "tcm", "reflow:rounds=2", "progressive", "anyflow")),
        ("shortcut", "muon"),
        ("lsd:norm=learned", "muon"),
    ],
)
def test_an_interrupted_training_goes_on_to_the_same_numbers(method, optimiser, tmp_path):
    name, _, own = method.partition(":")
    spec = f"{name}:width=8,depth=1,batch=16,optimiser={optimiser}" + (f",{own}" if own else "")
    request = {"points": 64} if MAP_METHODS[name].trajectories else {}
    request["nfe"] = 1 if MAP_METHODS[name].defaults["fixed_end"] else (1, 2)
    began = time.perf_counter()
    whole = train_map(spec, "gauss2d", steps=60, **request)
    assert 0 < whole.seconds <= time.perf_counter() - began
    asked, file = [], tmp_path / "resume.safetensors"

    def stop():
        asked.append(None)
        return len(asked) == 37

    part = train_map(spec, "gauss2d", steps=60, resume_file=file, stop=stop, **request)
    assert part.stopped_by == "request"
    assert part.history.steps == 37
    assert file.exists()
    rest = train_map(spec, "gauss2d", steps=60, resume_file=file, **request)
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


def test_an_interrupted_training_is_that_of_its_field_and_of_what_it_began_from(tmp_path):
    """Two fields of one class, and two maps to begin from, are told apart."""
    file, spec = tmp_path / "resume.safetensors", "shortcut:width=8,depth=1,batch=8"
    fields = [diffode.exact_field(name, "edm") for name in ("ring8", "moons")]
    train_map(spec, fields[0], nfe=1, steps=9, resume_file=file, stop=lambda: True)
    first = train_map(spec, "ring8", nfe=1, steps=2).map
    for field, begin in ((fields[1], None), (fields[0], first)):
        with pytest.raises(ArgumentError, match="another training"):
            train_map(spec, field, nfe=1, steps=9, resume_file=file, begin_from=begin)
    assert train_map(spec, fields[0], nfe=1, steps=9, resume_file=file).history.steps == 9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("number", 9),
        ("number", 0),
        ("number", 10**9),
        ("best", -1.0),
        ("seconds", -1.0),
        ("net", math.nan),
        ("best.", math.inf),
    ],
)
def test_changed_files_of_interrupted_trainings_are_refused(tmp_path, key, value):
    file, spec = tmp_path / "resume.safetensors", "shortcut:width=8,depth=1,batch=8"
    train_map(spec, "ring8", nfe=1, steps=9, resume_file=file, stop=lambda: True)
    description, tensors = read_tensors(file, "diffode-map-training-1")
    if key in description:
        description[key] = value
    else:
        name = next(name for name in tensors if name.startswith(key))
        tensors[name] = torch.full_like(tensors[name], value)
    write_tensors(file, tensors, description)
    with pytest.raises(FileFormatError):
        train_map(spec, "ring8", nfe=1, steps=9, resume_file=file)


def test_what_is_kept_is_the_best_average_on_held_out_starts():
    """The least of the errors that were told is that of the result, on a path whose last angle is not small."""
    spec, request = "shortcut:width=16,depth=1,batch=64,rate=0.02", {"nfe": 1, "path": "vp:t_min=0.4", "steps": 80}
    found = train_map(spec, "bimodal1d", **request)
    field = diffode.exact_field("bimodal1d", "vp:t_min=0.4")
    x = field.path.prior((256, 1), generator=keyed(0, "train_map", "held_out"))
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-7).x
    distances = (diffode.solve(field, x, solver=found.solver, nfe=1).x - exact).norm(dim=1)
    error = float(distances.mean()) / field.path.alpha(0.4) / field.scale
    assert error == pytest.approx(min(found.history.held_out), rel=1e-4)
    assert min(found.history.held_out) < max(found.history.held_out)
    # An average over no time at all is the network itself, another map.
    last = train_map(f"{spec},average=0", "bimodal1d", **request)
    assert last.solver.content() != found.solver.content()


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


def test_the_rate_is_kept_for_a_while_and_falls_to_nothing_as_a_cosine_does(monkeypatch):
    """Whole for three tenths of the steps; then as much below a half as it was above, at equal distances from the middle."""
    shares, step = [], Optimisers.step

    def noting(self, loss, share, largest):
        shares.append(share)
        return step(self, loss, share, largest)

    monkeypatch.setattr(Optimisers, "step", noting)
    train_map("flow_map:width=8,depth=1,batch=8", "gauss1d", nfe=1, points=32, steps=40)
    assert shares[:13] == [1.0] * 13
    assert all(after < before for before, after in itertools.pairwise(shares[12:]))
    # The middle of the fall, 0.65 of the whole, is that of steps 26 and 27 of those that count from 0.
    for k in range(13):
        assert shares[26 + k] + shares[26 - k] == pytest.approx(1.0, abs=1e-12)
    assert 0 < shares[-1] < 0.01


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
        ("cd", {"nfe": (1, 2)}, "judged for one jump"),
        ("cd", {"nfe": 2}, "judged for one jump"),
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
