"""The layer: the same memories as runs, with gradients, batches, irregular times and windows that are learned."""

import copy

import numpy as np
import pytest
import torch

from diffode import hippo
from diffode.errors import ArgumentError

SPECS = ["legs", "legt:window=5", "lagt:scale=2", "fout:window=4"]
HOLDS = ["zoh", "foh", "cubic", "trapezoid", "hippo_code"]
IRREGULAR = np.cumsum(np.random.default_rng(3).random(12) + 0.1)


def signals(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("times", [None, IRREGULAR], ids=["regular", "irregular"])
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("spec", SPECS)
def test_the_layer_gives_the_states_of_runs_and_their_gradients(spec, hold, times):
    layer = hippo.Hippo(5, spec, hold)
    u = signals(2, 12, 3).requires_grad_()
    states = layer(u, times)
    assert states.shape == (2, 12, 3, 5)
    own = np.arange(12.0) if times is None else times
    for row in range(2):
        exact = layer.memory.run(u[row].detach().numpy(), own, hold, "all")
        np.testing.assert_allclose(states[row].detach(), exact, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: layer(x, times), u, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("times", [None, IRREGULAR], ids=["regular", "irregular"])
@pytest.mark.parametrize("hold", ["zoh", "cubic", "trapezoid", "euler"])
@pytest.mark.parametrize("spec", SPECS[1:])
def test_a_learned_window_is_a_parameter_with_the_right_gradient(spec, hold, times):
    layer = hippo.Hippo(5, spec, hold, learn_window=True).double()
    fixed = hippo.Hippo(5, spec, hold)
    u = signals(1, 12, 2)
    np.testing.assert_allclose(layer(u, times).detach(), fixed(u, times), atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["window"]

    def of_window(window):
        return torch.func.functional_call(layer, {"window": window}, (u, times))

    window = layer.window.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of_window, window, atol=1e-6, fast_mode=True)


def test_a_window_learns():
    """A delay of 3 steps: a readout of legt for it is fixed, and the window that fits it is found."""
    torch.manual_seed(0)
    layer = hippo.Hippo(9, "legt:window=4.5", "foh", learn_window=True).double()
    u = torch.sin(0.35 * torch.arange(80.0, dtype=torch.float64))[None, :, None]
    delayed = torch.sin(0.35 * (torch.arange(80.0, dtype=torch.float64) - 3))[None, :, None]
    edge = torch.from_numpy((-1.0) ** np.arange(9) * np.sqrt(2 * np.arange(9) + 1))
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (layer(u) @ edge - delayed)[:, 30:].square().mean()
        loss.backward()
        optimiser.step()
    assert layer.window.item() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("spec", SPECS)
def test_float32_and_single_samples(spec):
    layer = hippo.Hippo(9, spec)
    u = signals(2, 40, 1, dtype=torch.float32)
    states = layer(u)
    assert states.dtype == torch.float32
    assert (states - layer(u.double())).abs().max() <= 1e-5
    assert layer(u[:, :1]).shape == (2, 1, 1, 9)
    assert layer(u[:, :2]).shape == (2, 2, 1, 9)


def test_a_layer_is_copied_saved_and_shown():
    layer = hippo.Hippo(4, "legt:window=3", "foh", learn_window=True)
    layer(signals(1, 5, 1))
    assert "legt:window=3.0" in repr(layer)
    twin = hippo.Hippo(4, "legt:window=1", "foh", learn_window=True)
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(copy.deepcopy(layer)(signals(1, 5, 1)), twin(signals(1, 5, 1)))
    assert list(hippo.Hippo(4).state_dict()) == []


def test_it_is_blind_to_autocast_and_default_dtypes():
    layer, u = hippo.Hippo(9, "legt:window=20"), signals(2, 30, 1, dtype=torch.float32)
    exact = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(u), exact)
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(hippo.Hippo(9, "legt:window=20")(u), exact)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hippo.Hippo(0), "order"),
        (lambda: hippo.Hippo(4, "leqs"), "legs"),
        (lambda: hippo.Hippo(4, hold="zo"), "zoh"),
        (lambda: hippo.Hippo(4, step=0.0), "step"),
        (lambda: hippo.Hippo(4, "legs", learn_window=True), "learn_window"),
        (lambda: hippo.Hippo(4, "legt", "hippo_code", learn_window=True), "learn_window"),
        (lambda: hippo.Hippo(4)(torch.ones(3, 4)), "batch, L, channels"),
        (lambda: hippo.Hippo(4)(torch.ones(3, 0, 4)), "shape"),
        (lambda: hippo.Hippo(4)(torch.ones(3, 2, 4, dtype=torch.int64)), "float32"),
        (lambda: hippo.Hippo(4)(np.ones((3, 2, 4))), "float32"),
        (lambda: hippo.Hippo(4)(torch.full((1, 2, 1), torch.nan)), "finite"),
        (lambda: hippo.Hippo(4)(torch.ones(1, 3, 1), [0, 1, 1]), "rise"),
        (lambda: hippo.Hippo(4)(torch.ones(1, 3, 1), torch.tensor([0.0, 1.0])), "times"),
        (lambda: hippo.Hippo(4)(torch.ones(1, 3, 1), [-1, 0, 1]), "negative"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()


def test_a_window_that_left_its_range_is_named():
    layer = hippo.Hippo(4, "legt", learn_window=True)
    with torch.no_grad():
        layer.window.fill_(-1.0)
    with pytest.raises(ArgumentError, match="positive"):
        layer(torch.ones(1, 3, 1))


def test_states_that_overflow_are_an_error():
    with pytest.raises(ArithmeticError, match="shorter step"):
        hippo.Hippo(64, "legt:window=0.01", "euler")(torch.ones(1, 500, 1))
