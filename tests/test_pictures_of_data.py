"""Real pictures: targets made of them, the network that denoises them, and the distance that a classifier sees."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import diffode
from diffode import fields, metrics, targets
from diffode.errors import ArgumentError, FileFormatError
from diffode.fields.networks import Denoiser, PatchUNet
from diffode.fields.own import FieldText
from diffode.metrics.frechet import FEATURES, SCHEMA, SHIPPED, frechet_of, load_seen, shipped
from diffode.studies.cell import Cell
from diffode.studies.problem import content_of, field_of, starts, untold
from diffode.studies.rows import compute
from diffode.targets.catalogue import from_arrays

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@pytest.fixture(scope="module")
def points():
    return targets.get("fashion-points")


@pytest.fixture(scope="module")
def network():
    return fields.trained("fashion-unet")


def outcome_of(field, ends):
    status = torch.zeros(len(ends), dtype=torch.int64)
    solution = type("Ran", (), {"x": ends, "status": status, "times": torch.tensor([80.0, 0.002])})()
    return metrics.Outcome(field, ends, solution)


# -- targets -------------------------------------------------------------------------------------------------------------


def test_points_are_bytes_of_pictures_with_200_of_each_class(points):
    assert points.means.shape == (2000, 784)
    steps = (points.means + 1) * 127.5
    assert float((steps - steps.round()).abs().max()) < 1e-10
    assert float(steps.min()) == 0
    assert float(steps.max()) == 255
    assert points.labels[::200] == CLASSES
    assert points.labels[199::200] == CLASSES
    assert torch.allclose(points.mean, points.means.mean(0), rtol=0, atol=1e-12)
    trousers = points.given("trouser")
    assert torch.equal(trousers.means, points.means[200:400])


def test_the_denoiser_of_points_is_their_weighted_mean(points):
    field = diffode.exact_field("fashion-points", "edm")
    x = field.marginal(3, 1.5, generator=0)
    weights = torch.softmax(-torch.cdist(x, points.means).square() / (2 * 1.5**2), 1)
    torch.testing.assert_close(field.denoised(x, 1.5), weights @ points.means, rtol=0, atol=1e-8)


def test_arrays_in_steps_stand_for_numbers():
    whole = from_arrays(
        weights=[1.0], means=np.array([[0, 255]], np.uint8), means_step=2 / 255, means_first=-1.0, covariances=[1.0]
    )
    assert whole.means.tolist() == [[-1.0, 1.0]]
    factors = np.array([[[127], [-64]]], np.int8)
    law = from_arrays(weights=[1.0], means=[[0.0, 0.0]], factors=factors, factors_step=np.full((1, 1, 1), 0.5), noise=[0.1])
    torch.testing.assert_close(law.covariance, torch.tensor([[63.5**2 + 0.1, -63.5 * 32], [-63.5 * 32, 32**2 + 0.1]]).double())
    with pytest.raises(ArgumentError, match="factors_step goes with an array factors"):
        from_arrays(weights=[1.0], means=[[0.0]], factors_step=1.0, covariances=[1.0])


def test_the_mixture_has_the_mean_of_its_classes_and_samples_like_it():
    mixture = targets.get("fashion-mfa")
    assert mixture.labels == tuple(label for label in CLASSES for _ in range(5))
    weights = torch.tensor([float(mixture.weights[5 * k : 5 * k + 5].sum()) for k in range(10)])
    torch.testing.assert_close(weights, torch.full((10,), 0.1), rtol=0, atol=1e-6)
    mean = sum(0.1 * mixture.given(label).mean for label in CLASSES)
    torch.testing.assert_close(mixture.mean, mean, rtol=0, atol=1e-6)
    # The moments of a mixture against those of draws: five standard errors.
    draws = mixture.sample(4000, generator=0)
    assert float((draws.mean(0) - mixture.mean).abs().max()) < 5 * float(mixture.variance.max().sqrt()) / 4000**0.5
    assert abs(float(draws.var(0).mean() / mixture.variance.mean()) - 1) < 0.03
    # The same pictures are behind the points: their scales differ by what 2,000 of them leave open.
    assert abs(mixture.scale / targets.get("fashion-points").scale - 1) < 0.02


# -- the network ---------------------------------------------------------------------------------------------------------


def test_the_network_is_nearer_to_the_exact_denoiser_than_a_gaussian_is(network):
    exact = network.truth
    for relative, stored in network.facts["errors"][4:9:2]:
        sigma = relative * network.scale
        x = exact.marginal(100, sigma, generator=5)
        found = float((network.denoised(x, sigma) - exact.denoised(x, sigma)).square().mean().sqrt()) / exact.scale
        assert 0.7 * stored < found < 1.4 * stored
        known = exact.statistics
        factor = known.basis.spread(known.variances / (known.variances + sigma**2))
        gaussian = known.mean + known.basis.back(known.basis.into(x - known.mean) * factor)
        assert found < float((gaussian - exact.denoised(x, sigma)).square().mean().sqrt()) / exact.scale


def test_the_network_computes_in_float32_whatever_it_is_given(network):
    x = torch.randn(3, 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    double, single, image = (
        network.denoised(x, 0.7),
        network.denoised(x.float(), 0.7),
        network.denoised(x.reshape(3, 1, 28, 28), 0.7),
    )
    assert double.dtype == torch.float64
    assert single.dtype == torch.float32
    torch.testing.assert_close(double, single.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(image.flatten(1), double, rtol=0, atol=0)
    assert 1e-9 < network.rounding(x, 0.7) < 1e-4
    many = x[:1].expand(130, -1)
    torch.testing.assert_close(network.denoised(many, 0.7)[-1], double[0], rtol=0, atol=1e-5)


def test_without_weights_in_its_last_layer_it_is_the_skip_about_the_mean():
    net = Denoiser("patch_unet", (1, 8, 8), 0.5, width=4, depth=1)
    assert isinstance(net.net, PatchUNet)
    torch.nn.init.zeros_(net.net.leave.weight)
    torch.nn.init.zeros_(net.net.leave.bias)
    net.mean.fill_(0.25)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x, torch.full((2,), 0.5)), 0.25 + (x - 0.25) / 2)


def test_bridges_of_it_are_tuned(network):
    from diffode.fields.skip_tuned import skip_tuned

    x = torch.randn(2, 784, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(skip_tuned(network, 0.5).denoised(x, 0.7), network.denoised(x, 0.7))


# -- what solvers are told of the data ------------------------------------------------------------------------------------


def test_a_network_knows_the_statistics_of_its_data(network, points):
    assert network.statistics.kind == "full"
    torch.testing.assert_close(network.statistics.mean, points.mean)
    x = network.path.prior((2, 784), generator=0)
    assert diffode.solve(network, x, solver="ddim:jump=auto", nfe=1).nfe == 1


def test_a_text_says_what_solvers_are_told():
    told = FieldText.read("trained:ring8,statistics=scale")
    assert str(told) == "trained:ring8,statistics=scale"
    assert told.field("edm").statistics.kind == "scale"
    assert fields.trained("ring8").statistics.kind == "full"
    with pytest.raises(ArgumentError, match=r"statistics must be estimated, one of scale, diagonal, full, or a file"):
        FieldText.read("trained:ring8,statistics=most").field("edm")


def test_statistics_of_a_file_and_of_the_field_itself_are_taken(tmp_path, monkeypatch):
    (tmp_path / "ring.py").write_text(
        "import diffode\nfield = diffode.Field.from_noise(diffode.exact_field('ring8', 'edm').noise, 'edm')\n"
    )
    monkeypatch.chdir(tmp_path)
    diffode.Statistics.of_target("ring8", "diagonal").save("known.safetensors")
    assert FieldText.read("ring.py:field,dim=2,statistics=known.safetensors").field("edm").statistics.kind == "diagonal"
    found = FieldText.read("ring.py:field,dim=2,statistics=estimated").field("edm").statistics
    assert "estimated at" in found.source
    assert abs(found.scale / diffode.targets.get("ring8").scale - 1) < 0.01
    with pytest.raises(ArgumentError, match=r"reduces what is known of the data, and of ring\.py:field nothing is"):
        FieldText.read("ring.py:field,dim=2,statistics=scale").field("edm")


def test_the_key_of_a_cell_holds_what_a_file_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = []
    for unit in (1.0, 1.1):
        diffode.Statistics.of_target("ring8").scaled(unit).save("known.safetensors")
        field_of.cache_clear()
        content_of.cache_clear()
        keys.append(content_of("trained:ring8,statistics=known.safetensors", "edm"))
    assert keys[0] != keys[1]


def test_starts_do_not_depend_on_what_solvers_are_told_and_keys_do():
    plain, scale = "trained:ring8", "trained:ring8,statistics=scale"
    assert untold(scale) == plain
    assert untold("ring8") == "ring8"
    assert torch.equal(starts(plain, "edm", 0, 4, 80.0), starts(scale, "edm", 0, 4, 80.0))
    assert content_of(plain, "edm") != content_of(scale, "edm")


# -- the distance that a classifier sees -----------------------------------------------------------------------------------


def test_features_that_are_the_same_have_no_distance_and_gaussians_the_closed_form():
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 3, generator=source, dtype=torch.float64)
    rows = (rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T))).T
    mean, eye = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    assert frechet_of(rows, mean, eye) < 1e-20
    # Along the axes the deviations are 1, 2, 3, and the means 0.5: 3 * 0.25 + 0 + 1 + 4.
    scaled = rows * torch.tensor([1.0, 2.0, 3.0]) + 0.5
    assert frechet_of(scaled, mean, eye) == pytest.approx(5.75, rel=1e-12)


def test_pictures_that_are_real_are_at_the_floor_and_others_above_it(points):
    field = diffode.exact_field("fashion-points", "edm")
    real = metrics.measure("frechet", outcome_of(field, points.means[::2]))
    # The target's pictures are of the training set, as many of each class.
    assert 0.7 * real.floor < real.value < 1.4 * real.floor
    noised = points.means[::2] + 0.3 * torch.randn(1000, 784, generator=torch.Generator().manual_seed(0))
    assert metrics.measure("frechet", outcome_of(field, noised)).value > 3 * real.floor
    boots = metrics.measure("frechet", outcome_of(field, points.given("boot").means))
    assert boots.value > 10 * boots.floor


def test_the_classifier_tells_the_classes_as_its_facts_say(points):
    seen = shipped()
    told = seen.classifier(points.means.float().reshape(-1, 1, 28, 28)).argmax(1)
    right = float((told == torch.arange(10).repeat_interleave(200)).double().mean())
    # These pictures were trained on.
    assert 0.85 < seen.facts["accuracy"] < right + 0.02
    assert SHIPPED.stat().st_size < 2**20


def test_floors_fall_as_one_over_the_number_of_pictures():
    seen = shipped()
    counts = [50, 100, 150, 1000, 1500, 10_000, 10**6]
    values = [seen.floor(n) for n in counts]
    assert values == sorted(values, reverse=True)
    assert values[-1] == values[-2]
    assert values[0] == 2 * values[1]
    assert values[3] == dict(seen.floors)[1000]
    assert 0 < seen.facts["halves"] < dict(seen.floors)[1000]


def test_rows_that_are_no_pictures_are_refused():
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match=r"28 x 28 = 784 grey values from -1 to 1, got rows of shape \(2,\)"):
        metrics.measure("frechet", outcome_of(field, torch.zeros(3, 2, dtype=torch.float64)))


@pytest.mark.parametrize(
    "damage", ["missing", "nan", "double", "asymmetric", "negative", "floors", "order", "accuracy", "truncated"]
)
def test_damaged_classifiers_are_refused(damage, tmp_path):
    tensors = load_file(SHIPPED)
    header = SHIPPED.read_bytes()
    facts = json.loads(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["diffode"])
    assert facts["schema"] == SCHEMA
    if damage == "missing":
        del tensors["gather.bias"]
    if damage == "nan":
        tensors["gather.bias"][0] = torch.nan
    if damage == "double":
        tensors["gather.bias"] = tensors["gather.bias"].double()
    if damage == "asymmetric":
        tensors["covariance"][0, 1] += 1
    if damage == "negative":
        tensors["covariance"] = -torch.eye(FEATURES, dtype=torch.float64)
    facts |= {
        "floors": {"floors": [[100, -1.0]]},
        "order": {"floors": [[100, 1.0], [50, 2.0]]},
        "accuracy": {"accuracy": 2},
    }.get(damage, {})
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file, metadata={"diffode": json.dumps(facts)})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError):
        load_seen(file)


# -- the suite -----------------------------------------------------------------------------------------------------------


def test_laws_of_a_network_are_measured_without_a_reference(monkeypatch):
    from diffode.studies import computation

    monkeypatch.setattr(computation, "reference", lambda *given: pytest.fail("a reference was computed"))
    cell = Cell("trained:fashion-unet", "edm", 0, "karras:rho=3", "ddim:jump=auto", 2, 16, "float64", ("frechet",), 1e-3)
    result = compute("key", cell)
    assert result.status == "ok"
    assert result.nfe_counted == 2
    assert result.measurements[0].value > result.measurements[0].floor > 0
