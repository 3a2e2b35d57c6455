"""The usual mistakes in a user's field are found and the fix is named."""

import json
import math

import numpy as np
import pytest
import torch
from commandline import diffode as command

import diffode
from diffode.errors import ArgumentError
from diffode.fields.own import own_field
from diffode.verify import check_field
from diffode.verify.field.verification import verify_field


def inside(t):
    return min(max(float(t), 1e-4), 1 - 1e-4)


def mistakes(exact, kind):
    """Each mistake made with a right field, and a piece of the advice that has to come."""
    view, path = getattr(exact, kind), exact.path
    unit = exact.scale
    found = {
        "sign": (lambda x, t: -view(x, t), "its sign is wrong"),
        "reversed": (lambda x, t: view(x, inside(1 - float(t))), "call f(x, 1 - t)"),
        "timesteps": (lambda x, t: view(x, inside(float(t) / 999)), "timesteps 0 to 999"),
        "noise level": (lambda x, t: view(x, path.time_from_rho(max(float(t), 1e-3))), "call f(x, path.rho(t))"),
        "data at t=1": (lambda x, t: -exact.velocity(x, inside(1 - float(t))), "with data at t = 1"),
        "scaled input": (lambda x, t: view(x * math.hypot(path.sigma(t), path.alpha(t) * unit), t), "wants its input scaled"),
    }
    for other in ("noise", "velocity", "denoised", "score"):
        if other != kind:
            found[f"is {other}"] = (getattr(exact, other), f"it gives the {other}, not the {kind}")
    return found


CASES = [("ring8", "vp", "noise"), ("gmm40", "rectified_flow", "velocity"), ("digits-gmm10", "vp", "noise")]


@pytest.mark.parametrize(("name", "path", "kind"), CASES)
def test_right_fields_are_left_alone(name, path, kind):
    exact = diffode.exact_field(name, path)
    for data in (None, exact.target.sample(256, generator=1)):
        found = check_field(getattr(exact, kind), kind, exact.path, exact.dim, scale=exact.scale, data=data)
        assert found.passed, found.advice


@pytest.mark.parametrize("mistake", mistakes(diffode.exact_field("ring8", "vp"), "noise"))
@pytest.mark.parametrize(("name", "path"), [("ring8", "vp"), ("gmm40", "vp"), ("digits-gmm10", "vp")])
def test_mistakes_are_named_with_data(name, path, mistake):
    exact = diffode.exact_field(name, path)
    function, advice = mistakes(exact, "noise")[mistake]
    found = check_field(function, "noise", exact.path, exact.dim, scale=exact.scale, data=exact.target.sample(256, generator=1))
    assert any(advice in sentence for sentence in found.advice), found.advice
    assert not found.passed


@pytest.mark.parametrize("mistake", ["sign", "reversed", "is velocity", "is denoised", "noise level", "data at t=1"])
def test_most_are_named_without_data_too(mistake):
    exact = diffode.exact_field("ring8", "vp")
    function, advice = mistakes(exact, "noise")[mistake]
    found = check_field(function, "noise", exact.path, 2, scale=exact.scale)
    assert any(advice in sentence for sentence in found.advice), found.advice


def test_flow_matching_models_on_rectified_flow():
    exact = diffode.exact_field("ring8", "rectified_flow")
    function, advice = mistakes(exact, "velocity")["data at t=1"]
    found = check_field(function, "velocity", exact.path, 2, scale=exact.scale, data=exact.target.sample(256, generator=1))
    assert found.advice == ("its time runs from noise to data, with data at t = 1: use lambda x, t: -f(x, 1 - t)",)
    assert advice in found.advice[0]


def test_breaches_of_the_contract_are_reported_beside():
    exact = diffode.exact_field("ring8", "vp")
    options = {"scale": exact.scale, "data": exact.target.sample(256, generator=1)}
    network = torch.nn.Linear(2, 2)

    found = check_field(lambda x, t: 0 * network(x).detach() + exact.noise(x, t), "noise", exact.path, 2, **options)
    assert "it works in float32 only" in found.advice[0]
    leak = check_field(lambda x, t: exact.noise(x, t) + 0.01 * x.mean(0), "noise", exact.path, 2, **options)
    assert "rows independent of their batch" in [c.name for c in leak.checks if not c.passed]
    assert leak.advice == ()
    broken = check_field(lambda x, t: x[:, :1], "noise", exact.path, 2, **options)
    assert "shape" in broken.advice[0]
    assert broken.facts["best_reading"] is None


def test_an_untrained_network_is_told_so():
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 2).double()
    found = check_field(
        lambda x, t: 0.1 * network(x).detach(), "noise", diffode.paths.get("edm"), 2, data=torch.randn(64, 2).double()
    )
    assert "no reading of it predicts noise" in found.advice[0]


def test_wrong_arguments_are_named():
    path = diffode.paths.get("vp")
    with pytest.raises(ArgumentError, match="kind must be"):
        check_field(lambda x, t: x, "eps", path, 2)
    with pytest.raises(ArgumentError, match="data must be"):
        check_field(lambda x, t: x, "noise", path, 2, data=torch.zeros(40, 3))
    with pytest.raises(ArgumentError, match="give scale="):
        check_field(lambda x, t: x, "noise", path, 2, scale=1e9)


def test_the_command_names_the_fix(tmp_path):
    (tmp_path / "own.py").write_text(
        "import diffode\nexact = diffode.exact_field('ring8', 'vp')\n"
        "def right(x, t):\n    return exact.noise(x, t)\n"
        "def wrong(x, t):\n    return -exact.noise(x, t)\nnumber = 3\n"
    )
    np.save(tmp_path / "data.npy", diffode.targets.get("ring8").sample(300, generator=0).numpy())

    vp = ("--kind", "noise", "--path", "vp")
    assert "nothing wrong" in command("check-field", "own.py:right", *vp, "--target", "ring8", cwd=tmp_path, code=0).stdout
    assert "nothing wrong" in command("check-field", "own.py:right", *vp, "--data", "data.npy", cwd=tmp_path, code=0).stdout
    facts = json.loads(command("check-field", "own.py:wrong", *vp, "--data", "data.npy", "--json", cwd=tmp_path, code=1).stdout)
    assert facts["advice"] == ["its sign is wrong: return -f(x, t)"]
    assert (
        "to be surer"
        in command("check-field", "own.py:wrong", *vp, "--dim", "2", "--scale", "3.5", cwd=tmp_path, code=1).stdout
    )
    assert "dim is needed" in command("check-field", "own.py:right", *vp, cwd=tmp_path, code=2).stderr
    assert "not a function" in command("check-field", "own.py:number", *vp, cwd=tmp_path, code=2).stderr
    assert (
        "is not a readable .npy file"
        in command("check-field", "own.py:right", *vp, "--data", "own.py", cwd=tmp_path, code=2).stderr
    )
    assert "kind must be" in command("check-field", "own.py:right", "--kind", "eps", cwd=tmp_path, code=2).stderr


KINDS = ("noise", "score", "velocity", "denoised")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("ring8", "bimodal1d") for kind in KINDS),
        # Of 40 modes it takes twice as long as of 8, and every kind is among those.
        *(pytest.param("gmm40", kind, marks=() if kind == "velocity" else pytest.mark.slow) for kind in KINDS),
    ],
)
def test_without_a_scale_a_right_field_is_told_its_own(name, kind):
    exact = diffode.exact_field(name, "vp")
    found = check_field(lambda x, t: exact.predict(kind, x, t), kind, exact.path, exact.target.dim)
    # Data of a scale near 1 may be passed as they are.
    assert found.passed is (len(found.advice) == 0)
    assert not found.passed or exact.scale < 2
    for sentence in found.advice:
        assert f"as {kind} it is right for data of scale" in sentence
        told = float(sentence.split("data of scale ")[1].split()[0])
        assert told == pytest.approx(exact.scale, rel=0.05)
    again = check_field(lambda x, t: exact.predict(kind, x, t), kind, exact.path, exact.target.dim, scale=exact.scale)
    assert again.passed, again.advice


def test_without_a_scale_a_wrong_field_is_not_passed():
    """Another view of ring8's field may agree with itself on other data: then these data's scale is what is said."""
    exact = diffode.exact_field("ring8", "vp")
    for kind, other in (("noise", "velocity"), ("score", "noise"), ("denoised", "score"), ("velocity", "denoised")):
        found = check_field(lambda x, t, kind=kind: exact.predict(kind, x, t), other, exact.path, 2)
        assert not found.passed
        told = [s for s in found.advice if "it is right for data of scale" in s]
        assert all(abs(float(s.split("data of scale ")[1].split()[0]) / exact.scale - 1) > 0.3 for s in told)


class InSingle(torch.nn.Module):
    """The exact noise of ring8, for x of single precision alone, as a network has it."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(sign))
        self.exact = diffode.exact_field("ring8", "vp")

    def forward(self, x, t):
        if x.dtype != torch.float32:
            raise RuntimeError("mat1 and mat2 must have the same dtype")
        return self.gain * self.exact.noise(x, t)


def test_a_network_in_single_precision_is_read_in_its_own_dtype():
    """As sample and bench take it: nothing is wrong with it, and what is wrong is named as for any function."""
    exact = diffode.exact_field("ring8", "vp")
    data = exact.target.sample(256, generator=1)
    found = check_field(InSingle().eval(), "noise", exact.path, 2, scale=exact.scale, data=data)
    assert found.passed, (found.advice, found.checks)
    turned = check_field(InSingle(-1.0).eval(), "noise", exact.path, 2, scale=exact.scale, data=data)
    assert turned.advice == ("its sign is wrong: return -f(x, t)",)


def test_a_right_network_in_single_precision_is_verified_and_a_slightly_wrong_one_is_not():
    """Its residuals may be a hundred times its rounding, 1e-5; one in a thousand too much is no rounding."""
    exact = diffode.exact_field("ring8", "vp")
    for gain, right in ((1.0, True), (1.001, False)):
        field = own_field(InSingle(gain).eval(), "noise", exact.path, exact.scale)
        report = verify_field(field, truth=exact)
        assert report.passed is right, [check for check in report.checks if not check.passed]
