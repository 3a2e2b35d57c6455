"""Controllers of adaptive steps against closed forms: where steps rest, how fast they settle, what is remembered."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import Field, solvers
from diffode.errors import ArgumentError
from diffode.numerics.butcher import BOGACKI_SHAMPINE, DORMAND_PRINCE
from diffode.solvers.controller import NAMED, Controller, controller_of

ALL = [*NAMED, "0.9/most=5.0", "0.6/-0.2/safety=0.8"]


def ones(value, *shape):
    return torch.full(shape, float(value), dtype=torch.float64)


@pytest.mark.parametrize("power", [1, 3, 5])
@pytest.mark.parametrize("text", ALL)
def test_steps_settle_where_the_error_ratio_is_the_safety_to_the_power_over_the_sum(text, power):
    """With E = c h^k the ratio tends to s^(k/sum b), and the logarithm of the step's distance falls by the damping."""
    controller = controller_of(text)
    resting = controller.resting(power)
    assert resting == pytest.approx(controller.safety ** (power / sum(controller.coefficients)), rel=1e-14)
    constant, rest = 7.0, (resting / 7.0) ** (1 / power)
    h, past, distances = ones(0.98 * rest, 1), ones(resting, 1, len(controller.coefficients) - 1), []
    for _ in range(40):
        ratio = constant * h**power
        h, past = h * controller.factor(ratio, past, power), controller.remembered(ratio, past)
        distances.append(abs(math.log(float(h) / rest)))
    assert distances[-1] < 1e-3 * distances[0] + 1e-13
    late = [b / a for a, b in itertools.pairwise(distances[4:]) if a > 1e-9]
    assert late or controller.damping < 0.2
    for_one = math.prod(late) ** (1 / len(late)) if late else controller.damping
    assert for_one == pytest.approx(controller.damping, rel=0.15)


def test_damping_is_the_largest_root_of_the_recursion():
    assert Controller((0.9,)).damping == pytest.approx(0.1)
    assert Controller((1.0,)).damping == 0.0
    # z^2 - 0.3 z - 0.4 = (z - 0.8)(z + 0.5).
    assert controller_of("pi").damping == pytest.approx(0.8, rel=1e-14)


@pytest.mark.parametrize("controller", ["i", "pi", "pid", "1.2", "0.6/-0.2/safety=0.8"])
@pytest.mark.parametrize(("pair", "method", "atol"), [("bosh3", BOGACKI_SHAMPINE, 1e-7), ("dopri5", DORMAND_PRINCE, 1e-10)])
def test_accepted_steps_become_constant_where_the_error_has_a_constant_coefficient(pair, method, atol, controller):
    """On x' = t^(k-1) the estimate of a pair is C h^k, C = sum e_i c_i^(k-1): steps tend to (E atol/C)^(1/k)."""
    k, asked = method.order, []

    def velocity(x, t):
        asked.append(float(torch.as_tensor(t).reshape(-1)[0]))
        return torch.full_like(x, asked[-1] ** (k - 1))

    field = Field.from_velocity(velocity, probe=False)
    solver = solvers.get("rk_adaptive", pair=pair, atol=atol, rtol=1e-200, first_step=1e-3, controller=controller)
    x = torch.zeros(1, 1, dtype=torch.float64)
    run = diffode.solve(field, x, solver=solver, grid=[4.0, 0.5])
    assert float(run.x) == pytest.approx((0.5**k - 4.0**k) / k, rel=1e-12)
    nodes = [0.0, *(sum(stage) for stage in method.stages), 1.0]
    coefficient = abs(sum(e * c ** (k - 1) for e, c in zip(method.error_weights, nodes, strict=True)))
    expected = (controller_of(controller).resting(k) * atol / coefficient) ** (1 / k)
    each = len(method.weights)
    # The last evaluation of an attempt is at its end; the last steps but that to the end of the run are at rest.
    steps = [a - b for a, b in itertools.pairwise(asked[-6 * each - 1 : -1 : each])]
    assert steps == pytest.approx([expected] * 5, rel=1e-4)


@pytest.mark.parametrize("order", [3, 5])
def test_the_default_is_the_rule_of_hairer_norsett_wanner(order):
    controller = controller_of("pi")
    ratio = torch.tensor([1e-12, 1e-3, 0.5, 1.0, 2.0, 1e3, math.inf], dtype=torch.float64)
    last = torch.tensor([1.0, 0.2, 1e-4, 0.7, 0.7, 0.7, 0.7], dtype=torch.float64)
    written = (0.9 * ratio.clamp(min=1e-10) ** -(0.7 / order) * last ** (0.4 / order)).clamp(0.2, 10.0)
    written = torch.where(ratio <= 1, written, written.clamp(max=0.9))
    assert torch.equal(controller.factor(ratio, last[:, None], order), written)
    remembered = controller.remembered(ratio, last[:, None])[:, 0]
    assert remembered.tolist() == [1e-4, 1e-3, 0.5, 1.0, 0.7, 0.7, 0.7]


def test_a_rejected_attempt_is_not_remembered_and_an_accepted_one_is_the_latest():
    controller = controller_of("pid")
    past = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    assert controller.remembered(torch.tensor([0.5, 1.5], dtype=torch.float64), past).tolist() == [[0.5, 0.1], [0.3, 0.4]]
    # What is remembered of two good steps makes no step longer after a rejection.
    worse, good = torch.tensor([1.01], dtype=torch.float64), torch.tensor([[1.0, 1e-4]], dtype=torch.float64)
    assert 0.9 * 1.01**-0.58 * 1e-4**-0.1 > 2
    assert float(controller.factor(worse, good, 1)) == 0.9
    assert float(controller_of("pi/again=0.5").factor(worse, good[:, :1], 1)) == 0.5
    # A PID controller's third coefficient weighs the older of the two.
    change = controller.factor(ones(1.0, 2), past, 1)
    written = [0.9 * a**0.21 * b**-0.1 for a, b in past.tolist()]
    assert change.tolist() == pytest.approx(written, rel=1e-14)


@pytest.mark.parametrize(
    "name", ["rk_adaptive", "rk_adaptive:pair=bosh3", "dpm_adaptive", "dpm_adaptive:order=2", "sde_adaptive:eta=0.0"]
)
def test_any_controller_meets_the_tolerance_and_a_row_steps_by_itself(name):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    true = diffode.reference(field, x, 80.0, 0.002).x
    counts = set()
    for controller in NAMED:
        solver = solvers.get(name, rtol=1e-3, atol=1e-3, controller=controller)
        run = diffode.solve(field, x, solver=solver)
        assert run.success
        assert float((run.x - true).norm(dim=1).max()) < 0.1 * field.scale
        alone = diffode.solve(field, x[2:3], solver=solver)
        torch.testing.assert_close(alone.x[0], run.x[2], rtol=1e-9, atol=1e-9)
        assert (alone.accepted[0], alone.rejected[0]) == (run.accepted[2], run.rejected[2])
        counts.add(tuple((run.accepted + run.rejected).tolist()))
    assert len(counts) == len(NAMED)


@pytest.mark.parametrize("target", ["ring8", "spiral", "digits-gmm10"])
def test_proportional_control_makes_dpm_adaptive_better_at_nearly_the_same_cost(target):
    """The table of docs/solvers.md: errors a fifth and less, and rejections are rare where a third was rejected."""
    field = diffode.exact_field(target, "edm")
    x = field.prior(32, generator=0)
    true = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    runs = [diffode.solve(field, x, solver=solvers.get("dpm_adaptive", controller=c)) for c in ("i", "pi")]
    published, better = (float((run.x - true).norm(dim=1).mean()) for run in runs)
    assert better < published / 5
    assert float(runs[1].rejected.sum()) < float(runs[0].rejected.sum()) / 2
    attempts = [float((run.accepted + run.rejected).sum()) for run in runs]
    assert attempts[1] < 1.4 * attempts[0]


@pytest.mark.parametrize("name", ["rk_adaptive", "dpm_adaptive", "sde_adaptive:eta=0.0"])
def test_the_error_ratio_of_the_last_step_counts(name):
    """Were it forgotten, it would stay 1, and a second coefficient would change nothing."""
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    ends = [diffode.solve(field, x, solver=solvers.get(name, controller=c)).x for c in ("0.7", "0.7/-0.4")]
    assert not torch.equal(*ends)


def test_a_controller_is_an_option_with_one_text():
    assert (
        solvers.get("rk_adaptive:controller=pi") == solvers.get("rk_adaptive:controller=0.7/-0.4") == solvers.get("rk_adaptive")
    )
    assert solvers.get("rk_adaptive:controller=0.7/-0.4").spec == "rk_adaptive"
    assert solvers.get("dpm_adaptive", controller=Controller((0.58, -0.21, 0.1))).spec == "dpm_adaptive:controller=pid"
    made = solvers.get("rk_adaptive", controller=Controller((0.6, -0.2), safety=0.8, most=4.0))
    assert made.spec == "rk_adaptive:controller=0.6/-0.2/safety=0.8/most=4.0"
    assert solvers.get(made.spec) == made
    assert solvers.get("rk_adaptive:controller=1").spec == "rk_adaptive:controller=i"
    assert solvers.get("sde_adaptive:controller=0.9/most=5").spec == "sde_adaptive"
    for text in ALL:
        assert controller_of(controller_of(text).text) == controller_of(text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pdi", "controller must be one of i, pi, pid, or coefficients"),
        ("pi/speed=3", "got 'pi/speed=3'"),
        ("pi/safety=high", "got 'pi/safety=high'"),
        ("0.5/0.1/0.1/0.1", "one to three coefficients"),
        (None, "got None"),
        (True, "got True"),
        ("2", "grows by 1 a step"),
        (-0.1, "grows by 1.1 a step"),
        ("0.7/1.5", "must let steps settle"),
        ("pi/safety=0", "0 < safety <= 1"),
        ("pi/most=1", "0 < least < 1 < most"),
        ("pi/again=1", "0 < again < 1"),
        ("nan", "one to three coefficients"),
    ],
)
@pytest.mark.parametrize("solver", ["rk_adaptive", "sde_adaptive"])
def test_a_controller_that_is_none_is_refused_by_name(solver, value, message):
    with pytest.raises(ArgumentError, match=message):
        solvers.get(solver, controller=value)


def test_a_class_derived_from_the_controller_is_refused_since_its_text_would_not_keep_what_it_does():
    class Own(Controller):
        def factor(self, ratio, past, power):
            return ratio

    for solver in ("rk_adaptive", "sde_adaptive"):
        with pytest.raises(ArgumentError, match="not a Own, which has no text"):
            solvers.get(solver, controller=Own((0.7,)))
