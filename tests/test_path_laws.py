"""The laws of paths: the registry keeps them, and every plug-in that breaks one is caught with the law named."""

import math
from dataclasses import dataclass

import pytest
import torch
from commandline import program

from diffode import paths, testing
from diffode.errors import LawError
from diffode.paths import RectifiedFlow, Tabulated


@pytest.mark.parametrize("spec", [*paths.names(), "vp:beta_min=0.05,beta_max=12", "edm:sigma_min=1e-4,sigma_max=700"])
def test_a_registered_path_keeps_the_laws(spec):
    assert testing.check_path(spec).passed


def test_paths_that_are_given_keep_the_laws():
    kept = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)
    assert testing.check_path(Tabulated(tuple(kept.tolist()))).passed


@dataclass(frozen=True)
class Straight(RectifiedFlow):
    """Rectified flow under a name that is not registered; each class below spoils one function."""

    name = "straight"


class WrongSigmaDerivative(Straight):
    def sigma_derivative(self, t):
        return 1.00001 + 0 * t


class WrongAlphaDerivative(Straight):
    def alpha_derivative(self, t):
        return -1.0001 + 0 * t


class WrongLogSnr(Straight):
    def log_snr(self, t):
        return 2 * super().log_snr(t)


class WrongInverse(Straight):
    def time_from_log_snr(self, log_snr):
        return super().time_from_log_snr(log_snr + 1e-6)


class WrongRho(Straight):
    def rho(self, t):
        return super().rho(t) * (1 + 1e-7)


class Rises(Straight):
    def sigma(self, t):
        return 1 - t

    def alpha(self, t):
        return t + 0.0


class Negative(Straight):
    def sigma(self, t):
        return super().sigma(t) - 0.01


class WrongDrift(Straight):
    def drift(self, t):
        return super().drift(t) * 1.001


class WrongDiffusion(Straight):
    def diffusion(self, t):
        return super().diffusion(t) * 1.001


class WrongRate(Straight):
    def half_variance_rate(self, t):
        return super().half_variance_rate(t) * 1.001


class OtherForTensors(Straight):
    def alpha(self, t):
        return super().alpha(t) + (1e-6 if isinstance(t, torch.Tensor) else 0.0)


class InSingle(Straight):
    def sigma(self, t):
        return super().sigma(t).float() if isinstance(t, torch.Tensor) else super().sigma(t)


class ByItsEnd(Straight):
    def sigma(self, t):
        return super().sigma(t) * self.t_max / 0.999


class NoSpec(Straight):
    name = "vp"


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (WrongSigmaDerivative, "sigma_derivative: residual 1.0e-05"),
        (WrongAlphaDerivative, "alpha_derivative: residual 1.0e-04"),
        (WrongLogSnr, "log_snr = log(alpha/sigma): residual"),
        (WrongInverse, "time_from_log_snr inverts log_snr: residual 1.0e-06"),
        (WrongRho, "rho = sigma/alpha: residual 1.0e-07"), (Rises, "log_snr falls: it does not"),
        (Negative, "alpha and sigma in range: alpha=0.999, sigma=-0.009"),
        (WrongDrift, "drift and diffusion make alpha and sigma"),
        (WrongDiffusion, "drift and diffusion make alpha and sigma: residual"),
        (WrongRate, "drift and diffusion make alpha and sigma: residual"),
        (OtherForTensors, "floats, arrays and tensors agree: residual"), (InSingle, "sigma of a tensor of 48 times"),
        (ByItsEnd, "a part of the path is the path: residual"), (NoSpec, "spec and repr: 'vp' makes VP("),
    ],
)  # fmt: skip
def test_a_broken_path_is_caught_with_the_law_named(cls, law):
    with pytest.raises(LawError) as caught:
        testing.check_path(cls())
    assert law in str(caught.value)


def test_the_same_path_without_the_fault_passes_and_the_place_is_named():
    assert testing.check_path(Straight()).passed
    with pytest.raises(LawError, match=r"at t=0\.\d+: 1.00001 is given, differences say (1|0.9999)") as caught:
        testing.check_path(WrongSigmaDerivative())
    assert not math.isnan(caught.value.report.check("sigma_derivative").value)


def test_laws_need_no_hypothesis_and_strategies_say_that_they_do():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from diffode import testing\n"
        "print(testing.check_path('vp').passed)\n"
        "testing.seeds()\n"
    )
    done = program(code, code=1)
    assert done.stdout == "True\n"
    assert "strategies of diffode.testing need hypothesis" in done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018
