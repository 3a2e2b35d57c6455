"""Direct calls of a mixture's laws: numbers and rows of numbers may be mixed, and what is neither is refused by name."""

import itertools

import numpy as np
import pytest
import torch
from test_mixture import KINDS, random_mixture

from diffode import GaussianMixture, native
from diffode.errors import ArgumentError

ROWS = 7
LAWS = {
    "noised_log_prob": lambda mixture, x, *level: mixture.noised_log_prob(x, *level),
    "noised_score_divergence": lambda mixture, x, *level: mixture.noised_score_divergence(x, *level),
    "responsibilities": lambda mixture, x, *level: mixture.responsibilities(x, *level),
    "noised_view": lambda mixture, x, *level: mixture.noised_view(x, *level, 0.4, -0.7),
}


@pytest.fixture(params=["compiled", "torch"])
def arithmetic(request, monkeypatch):
    """With compiled kernels, where there are any, and without."""
    if request.param == "torch":
        monkeypatch.setattr(native, "is_on", lambda: False)


def points(dim, rows=ROWS):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def forms(value, rows=ROWS):
    """The same number for all rows, in each form that a law takes."""
    whole = torch.full((rows,), value, dtype=torch.float64)
    return [value, np.float64(value), whole, whole[:, None], whole.float()[:, None], torch.tensor(value, dtype=torch.float64)]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("kind", "dim"), [(kind, dim) for kind in KINDS for dim in (1, 2, 5) if dim > 1 or kind not in ("full", "low_rank")]
)
def test_numbers_and_rows_of_numbers_may_be_mixed(kind, dim):
    """Every form of alpha and sigma, and of both weights of a view, gives what floats give."""
    mixture, x = GaussianMixture(*random_mixture(kind, dim=dim)), points(dim)
    # These numbers are exact in float32.
    alpha, sigma, weights = 0.75, 0.5, (0.375, -0.625)
    for name, law in LAWS.items():
        expected = law(mixture, x, alpha, sigma)
        for pair in itertools.product(forms(alpha), forms(sigma)):
            torch.testing.assert_close(law(mixture, x, *pair), expected, rtol=1e-10, atol=1e-11, msg=name)
    expected = mixture.noised_view(x, alpha, sigma, *weights)
    for level in ((alpha, sigma), (forms(alpha)[3], forms(sigma)[3])):
        for pair in itertools.product(*map(forms, weights)):
            torch.testing.assert_close(mixture.noised_view(x, *level, *pair), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_its_own_numbers_whatever_the_other_arguments_are(kind, dim):
    """Weights and sigma that differ from row to row, at one alpha: each row is that of a call with floats."""
    mixture, x = GaussianMixture(*random_mixture(kind, dim=dim)), points(dim)
    rows = torch.linspace(0.2, 2.0, ROWS, dtype=torch.float64)
    for given in ((0.75, rows, 1.0, 0.0), (0.75, 0.5, 0.25, rows[:, None]), (0.75, 0.5, rows, 1.0), (rows, 0.5, 0.0, rows)):
        found = mixture.noised_view(x, *given)
        for k in range(ROWS):
            own = [float(value.reshape(-1)[k]) if isinstance(value, torch.Tensor) else value for value in given]
            torch.testing.assert_close(found[k : k + 1], mixture.noised_view(x[k : k + 1], *own), rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("name", LAWS)
def test_what_is_no_argument_of_a_law_is_refused_by_name(name, dim):
    mixture, x, law = GaussianMixture(*random_mixture("diagonal", dim=dim)), points(dim), LAWS[name]
    for wrong, words in (
        (x.tolist(), "got list: make it one with torch.as_tensor"), ("x", "got str"), (None, "got NoneType"),
        (x.numpy(), "got ndarray"), (x.to_sparse(), "use x.to_dense()"), (x.long(), r"got torch.int64: use x.double\(\)"),
        (x + 0j, "got torch.complex128"), (x[0], r"got \(\d,\)"), (x[:, :1], r"got \(7, 1\)"), (x[None], r"got \(1, 7, "),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=f"^x must be .*{words}"):
            law(mixture, wrong, 1.0, 1.0)
    rows = torch.ones(3, dtype=torch.float64)
    every = torch.ones(ROWS, 1)
    for wrong in (
        rows, rows[:, None], every.T, every.expand(ROWS, dim), every[..., None], every + 0j, every.to_sparse(), every.numpy(),
        "a", None, [1.0] * ROWS, 1j, True, 10**400,
    ):  # fmt: skip
        for place, argument in ((0, "alpha"), (1, "sigma")):
            level = [1.0, 1.0]
            level[place] = wrong
            with pytest.raises(ArgumentError, match=rf"^{argument} must be a number, or "):
                law(mixture, x, *level)
        for place, argument in ((0, "denoised_weight"), (1, "score_weight")):
            weights = [1.0, 1.0]
            weights[place] = wrong
            with pytest.raises(ArgumentError, match=rf"^{argument} must be a number, or "):
                mixture.noised_view(x, 1.0, 1.0, *weights)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("name", LAWS)
def test_a_level_at_which_nothing_is_left_is_refused(name, dim):
    mixture, x, law = GaussianMixture(*random_mixture("full", dim=dim)), points(dim), LAWS[name]
    zeros = torch.zeros(ROWS, dtype=torch.float64)
    some = torch.ones(ROWS, dtype=torch.float64)
    some[3] = 0.0
    for level in (
        (0.0, 0.0),
        (1e-200, 0.0),
        (zeros, zeros),
        (some, 0.0),
        (float("nan"), 1.0),
        (1.0, some / some),
        (float("inf"), 1.0),
    ):
        with pytest.raises(ArgumentError, match="alpha and sigma must be finite numbers whose squares are not both 0"):
            law(mixture, x, *level)


def test_samples_are_counted_by_an_integer_and_have_a_floating_point_dtype():
    mixture = GaussianMixture(*random_mixture("full"))
    for count in (True, "a", 2.0):
        with pytest.raises(ArgumentError, match="n must be a number of samples"):
            mixture.sample(count, generator=0)
    for dtype in ("float32", torch.int64, torch.complex64, float):
        with pytest.raises(ArgumentError, match="dtype must be a floating-point dtype"):
            mixture.sample(2, generator=0, dtype=dtype)


def test_levels_on_the_meta_device_hold_no_numbers():
    mixture = GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    x = torch.zeros(3, 2, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(ArgumentError, match="sigma must be numbers, got a tensor on the meta device"):
            mixture.noised_log_prob(x, 1.0, torch.ones(3, 1, dtype=dtype, device="meta"))


def test_the_divergence_of_point_masses_with_next_to_no_noise_is_that_of_the_nearest():
    """-dim/sigma^2 at the points and beside them, where the squares of the others overflow; by kernels and by torch."""
    masses = GaussianMixture.from_points([[0.0, 0.0], [1.0, 2.0]])
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    for function in (masses.noised_score_divergence, masses._by_torch.score_divergence):
        assert function(x, 1.0, 1e-100).tolist() == pytest.approx([-2e200, -2e200], rel=1e-12)
