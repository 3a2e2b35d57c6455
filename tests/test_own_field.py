"""A field of the user's own, by module and attribute: bench and sample on the command line."""

import json
import re
import textwrap

import numpy as np
import pytest
import torch
from commandline import diffode

from diffode.errors import ArgumentError, FieldError
from diffode.fields.model import Model
from diffode.fields.own import FieldText

SOURCE = """
    import torch
    import diffode
    from diffode import adapters

    exact = diffode.exact_field("moons", "vp")

    def noise(x, t):
        return exact.noise(x, t)

    def single(x, t):
        return exact.noise(x.float(), t).to(x.dtype)

    def image(x, t):
        return 0.9 * x

    net = torch.nn.Linear(2, 2)
    net.forward = lambda x, t, inner=net.forward: inner(x)

    def broken():
        raise KeyError("weights")

    def nothing(x, t):
        return x / 0

    def raises(x, t):
        raise ValueError("no weights")

    def make():
        flow = diffode.exact_field("moons", "rectified_flow")
        return adapters.from_flow_matching(lambda x, t: -flow.velocity(x, 1 - t.double()), scale=0.7)
"""
SUITE = """
    name = "small"
    [defaults]
    targets = ["ring8"]
    paths = ["edm"]
    grids = ["log_snr"]
    solvers = ["ddim", "unipc:order=2"]
    nfe = [5, 10]
    seeds = [0]
    points = 32
    tolerance = 1e-8
    [[study]]
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "small.toml").write_text(textwrap.dedent(SUITE))
    return tmp_path


def bench(place, *options, jobs=1, code=0):
    done = diffode("bench", "small.toml", "--jobs", jobs, "--json", *options, cwd=place, code=code)
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_a_function_is_ranked_like_its_target(place):
    words = ("--field", "mine.py:noise", "--kind", "noise", "--path", "vp", "--dim", "2", "--scale", "0.711377")
    own = bench(place, *words, jobs=2)
    assert own["failures"] == []
    assert own["splits"] == []
    standing = {s["solver"]: s["error"] for s in own["standings"]["10"]}
    assert standing["unipc:order=2 @ log_snr"] < standing["ddim @ log_snr"] < 1
    assert (place / "diffode-report" / "small-noise" / "index.html").is_file()
    # New weights are new results, the same ones are found again.
    again = diffode("bench", "small.toml", "--jobs", "1", *words, "--no-report", cwd=place)
    assert "0 computed" in again.stderr
    (place / "mine.py").write_text(
        textwrap.dedent(SOURCE).replace("return exact.noise(x, t)", "return 0.9 * exact.noise(x, t)")
    )
    changed = diffode("bench", "small.toml", "--jobs", "1", *words, "--no-report", cwd=place)
    assert "4 computed" in changed.stderr


def test_a_float32_network_with_a_target_has_its_own_error_apart(place):
    found = bench(place, "--field", "mine.py:single", "--kind", "noise", "--path", "vp", "--target", "moons", "--no-report")
    assert found["failures"] == []
    for split in found["splits"]:
        # It is the exact field but for rounding.
        assert split["model"] < 1e-4 < split["solver"]


def test_a_field_that_is_made_keeps_its_own_path(place):
    found = bench(place, "--field", "mine.py:make", "--dim", "2", "--no-report")
    assert found["failures"] == []
    assert found["standings"]["10"]


def test_a_trained_network_by_name(place):
    found = bench(place, "--field", "trained:ring8", "--no-report")
    assert {s["target"] for s in found["splits"]} == {"trained:ring8"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--field", "ring8"), "not a field of your own"),
        (("--path", "vp"), "go with --field"),
        (("--field", "mine.py:noise", "--path", "vp", "--dim", "2"), "kind"),
        (("--field", "mine.py:noise", "--kind", "noise", "--dim", "2"), "--path edm"),
        (("--field", "mine.py:make", "--path", "vp"), "is on path rectified_flow"),
        (("--field", "mine.py:broken", "--path", "vp"), "raised KeyError: 'weights'"),
        (("--field", "mine.py:noise", "--kind", "noise", "--path", "vp"), "dim"),
        (("--field", "mine.py:noise", "--kind", "noise", "--dim", "2x"), "shape such as"),
        (("--field", "mine.py:nois", "--kind", "noise", "--dim", "2"), "did you mean"),
        (("--field", "other.py:noise", "--kind", "noise", "--dim", "2"), "does not exist"),
        (("--field", "trained:ring9"), "ring8"),
    ],
)
def test_what_is_missing_is_named(options, word, place):
    assert word in bench(place, *options, code=2)


def test_sample_writes_images_of_an_own_field(place):
    done = diffode("sample", "mine.py:image", "--kind", "noise", "--path", "vp", "--dim", "1x8x8", "-n", "9", "--nfe", "5",
                   "--output", "own.npy", "--json", cwd=place)  # fmt: skip
    facts = json.loads(done.stdout)
    assert np.load(place / "own.npy").shape == (9, 1, 8, 8)
    assert facts["nfe"] == 5
    assert (place / "own.png").stat().st_size > 2000
    assert "go with a field of your own" in diffode("sample", "ring8", "--kind", "noise", cwd=place, code=2).stderr


def test_a_network_in_float32_is_called_in_float32(place):
    done = diffode("sample", "mine.py:net", "--kind", "velocity", "--path", "rectified_flow", "--dim", "2", "-n", "9",
                   "--nfe", "5", "--json", cwd=place)  # fmt: skip
    assert json.loads(done.stdout)["mean_endpoint_error"] > 0


def test_a_field_that_raises_is_named_without_a_traceback(place):
    done = diffode("sample", "mine.py:raises", "--kind", "noise", "--path", "vp", "--dim", "2", cwd=place, code=2)
    assert "can't be called with x of torch.float64" in done.stderr
    assert "ValueError: no weights" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_benchmark_without_one_number_fails(place):
    options = ("--kind", "noise", "--path", "vp", "--dim", "2")
    done = diffode("bench", "small.toml", "--jobs", "1", "--field", "mine.py:nothing", *options, cwd=place, code=3)
    assert "failures" in done.stdout


def test_verify_takes_trained_networks(place):
    done = diffode("verify", "trained:ring8", "--json", cwd=place, code=1)
    assert {"deterministic", "finite"} <= {check["name"] for check in json.loads(done.stdout)["checks"]}


def test_texts_are_read_back_as_they_are_written():
    text = "a.b:c,kind=noise,dim=3x8x8,scale=0.5,target=moons"
    assert str(FieldText.read(text)) == text
    assert FieldText.names(text)
    assert FieldText.names("trained:ring8")
    for target in ("ring8", "ring8:modes=9", "gauss1d:"):
        assert not FieldText.names(target)
    for wrong in ("a:b,kind", "a:b,size=2", "a:b,dim=0", "a:b,scale=-1", "a:b,scale=x", "a:b,kind=noise,kind=noise"):
        with pytest.raises(ArgumentError):
            FieldText.read(wrong)


def test_a_model_answers_as_many_numbers_as_it_is_given():
    x = torch.ones(3, 2, dtype=torch.float64)
    assert Model(lambda points: points.reshape(-1), "own")(x, x).shape == (6,)
    for shape in ((3, 1), (3, 3), (3,), (9,)):
        with pytest.raises(FieldError, match=re.escape(f"own returned shape {shape} for x of shape (3, 2)")):
            Model(lambda points, shape=shape: torch.zeros(shape), "own")(x, x)
