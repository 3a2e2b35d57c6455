"""Trained networks that ship: their errors are as stored, their files are looked at before they are believed."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffode
from diffode import fields
from diffode.errors import FileFormatError, UnknownNameError
from diffode.fields.networks import Denoiser
from diffode.fields.trained import SCHEMA, load_trained, save_trained
from diffode.studies import load_suite
from diffode.studies.rows import compute


@pytest.mark.parametrize("name", [name for name in fields.trained_names() if name != "fashion-unet"])
def test_stored_errors_are_the_distance_to_the_exact_denoiser(name):
    field = fields.trained(name)
    exact = diffode.exact_field(name, "edm")
    assert field.truth.target.content() == exact.target.content()
    for relative, error in field.facts["errors"][3:10:3]:
        sigma = relative * exact.scale
        x = exact.marginal(4000 if exact.dim == 2 else 400, sigma, generator=11)
        found = float((field.denoised(x, sigma) - exact.denoised(x, sigma)).square().mean()) ** 0.5 / exact.scale
        # Both are averages over draws of their own, ruled by few points between the modes; images have more numbers a draw.
        assert error / 2 < found < 2 * error
        # It predicts noise far better than a constant does.
        assert float((field.noise(x, sigma) - exact.noise(x, sigma)).square().mean()) < 0.1


@pytest.mark.parametrize("path", ["vp", "rectified_flow", "ddpm"])
def test_on_any_path_it_is_the_same_denoiser(path):
    edm, other = fields.trained("ring8"), fields.trained("ring8", path)
    t = other.path.time_from_rho(1.7)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(other.denoised(other.path.alpha(t) * x, t), edm.denoised(x, 1.7), rtol=1e-11, atol=1e-11)
    times = torch.full((5,), t, dtype=torch.float64)
    torch.testing.assert_close(other.denoised(x, times), other.denoised(x, t), rtol=1e-12, atol=1e-12)


def test_it_is_smooth_in_float64_and_rounds_in_float32():
    field = fields.trained("moons")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert field.rounding(x, 1.0) < 1e-9
    single = diffode.Field.from_denoised(lambda y, t: field.denoised(y.float(), t).double(), field.path)
    assert 1e-9 < single.rounding(x, 1.0) < 1e-5
    assert field.denoised(x.float(), 1.0).dtype == torch.float32


def test_images_have_their_own_shape_or_are_flat():
    field = fields.trained("digits-gmm10")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat, image = field.denoised(x, 0.5), field.denoised(x.reshape(3, 1, 8, 8), 0.5)
    torch.testing.assert_close(image.flatten(1), flat, rtol=0, atol=0)


def test_errors_add_up_as_a_triangle():
    suite = load_suite("networks")
    cell = next(c for c in suite.cells if c.target == "trained:ring8" and c.solver == "unipc:order=3" and c.nfe == 10)
    result = compute("key", cell)
    assert result.status == "ok", result.reason
    solver, model, total = (result.value(name) for name in ("endpoint", "model", "total"))
    assert abs(solver - model) <= total <= solver + model
    assert 0 < model < 0.05 * result.scale


def test_an_unknown_network_offers_the_known():
    with pytest.raises(UnknownNameError, match="ring8"):
        fields.trained("ring9")


@pytest.fixture
def shipped(tmp_path):
    source = fields.trained("ring8")
    file = tmp_path / "net.safetensors"
    save_trained(source.denoiser, {k: v for k, v in source.facts.items() if k != "schema"}, file)
    return file, load_file(file), {**source.facts, "schema": SCHEMA}


def test_saved_and_read_it_is_the_same(shipped):
    x = torch.ones(2, 2, dtype=torch.float64)
    assert torch.equal(load_trained(shipped[0]).denoised(x, 1.0), fields.trained("ring8").denoised(x, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 60}, {"width": -4}, {"width": 10**9}, {"width": "64"}, {"depth": 2}, {"depth": True}, {"kind": "transformer"},
        {"kind": "unet"}, {"shape": [3]}, {"shape": []}, {"shape": [2.0]}, {"shape": "2"}, {"scale": 0.0}, {"scale": math.inf},
        {"scale": 1e200},
        {"scale": "1"}, {"target": "ring9"}, {"target": "gmm40-50d"}, {"target": 3}, {"schema": "other"}, {"width": None},
    ],
)  # fmt: skip
def test_files_with_wrong_facts_are_refused(change, shipped, tmp_path):
    _, tensors, facts = shipped
    wrong = {key: value for key, value in {**facts, **change}.items() if value is not None}
    file = tmp_path / "wrong.safetensors"
    save_file(tensors, file, metadata={"diffode": json.dumps(wrong)})
    with pytest.raises(FileFormatError):
        load_trained(file)


@pytest.mark.parametrize("damage", ["missing", "extra", "nan", "double", "shape", "truncated"])
def test_damaged_files_are_refused(damage, shipped, tmp_path):
    file, tensors, facts = shipped
    name = next(iter(tensors))
    if damage == "missing":
        del tensors[name]
    if damage == "extra":
        tensors["more"] = torch.zeros(2)
    if damage == "nan":
        tensors[name][...] = math.nan
    if damage == "double":
        tensors[name] = tensors[name].double()
    if damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad, metadata={"diffode": json.dumps(facts)})
    if damage == "truncated":
        bad.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError):
        load_trained(bad)


def test_kinds_are_named():
    with pytest.raises(diffode.errors.ArgumentError, match="perceptron, unet or patch_unet"):
        Denoiser("transformer", (2,), 1.0, width=8)
