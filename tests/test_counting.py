"""Evaluations are counted for each run, whoever else uses the field at the same time."""

import copy
import math
import threading
import time

import pytest
import torch

import diffode
from diffode import paths
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.fields.model import Model, single_time


def slow_field(scale=1.0):
    """The velocity of standard normal data on EDM, which lets other threads in at every call."""

    def denoised(x, t):
        time.sleep(0.001)
        return x / (1 + t**2)

    return Field.from_denoised(denoised, diffode.paths.get("edm"), scale=scale, probe=False)


def in_threads(work, count):
    """What ``work(i)`` gives in threads that begin together."""
    barrier, answers = threading.Barrier(count), [None] * count

    def one(i):
        barrier.wait()
        answers[i] = work(i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("solver", ["dpmpp:order=2", "heun", "dpmpp_2m_sde", "torchdiffeq:euler"])
def test_threads_that_share_a_field_count_their_own_runs(solver):
    field = slow_field()
    budgets = [4, 8, 12, 16, 20, 24]
    grids = [diffode.grids.get("karras", field.path, n) for n in budgets]
    x = field.path.prior((2, 3), generator=0)
    alone = [diffode.solve(field, x, solver=solver, grid=grid, generator=0).nfe for grid in grids]
    before = field.nfe
    assert before == sum(alone)
    together = in_threads(lambda i: diffode.solve(field, x, solver=solver, grid=grids[i], generator=0).nfe, len(grids))
    assert together == alone
    assert field.nfe == 2 * before


def test_an_adaptive_run_counts_its_own_calls_beside_another_thread():
    field = slow_field()
    x = field.path.prior((1, 2), generator=0)
    alone = diffode.solve(field, x, solver="rk_adaptive:rtol=1e-2,atol=1e-2").nfe
    together = in_threads(lambda i: diffode.solve(field, x, solver="rk_adaptive:rtol=1e-2,atol=1e-2").nfe, 4)
    assert together == [alone] * 4


def test_a_reference_in_one_thread_hides_nothing_of_a_run_in_another():
    field = slow_field()
    x = field.path.prior((1, 2), generator=0)

    def work(i):
        if i:
            return diffode.reference(field, x, 80.0, 0.002, 1e-3).method
        return diffode.solve(field, x, solver="euler", grid="karras", steps=30).nfe

    assert in_threads(work, 2) == [30, "dop853"]
    assert field.nfe == 30


def test_what_is_uncounted_stays_so_when_it_fails():
    field = diffode.exact_field("ring8", "edm")
    x = torch.zeros(1, 2, dtype=torch.float64)
    with field.counted() as outer:
        field.noise(x, 1.0)
        with pytest.raises(ArgumentError), field.uncounted():
            field.noise(x, -1.0)
        field.noise(x, 1.0)
    field.noise(x, 1.0)
    assert (outer.calls, field.nfe) == (2, 3)


def test_a_count_inside_what_is_uncounted_is_right_and_enters_nothing():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    with field.uncounted():
        run = diffode.solve(field, x, solver="euler", grid="karras", steps=5)
    assert (run.nfe, field.nfe) == (5, 0)


def test_two_fields_count_apart_and_a_guided_one_counts_both_networks():
    one, two = (diffode.exact_field(name, "vp") for name in ("ring8", "moons"))
    guided = diffode.adapters.guided(one, two, 2.0)
    x = one.prior(2, generator=0)
    assert diffode.solve(guided, x, solver="dpmpp:order=2", nfe=12).nfe == 12
    assert (guided.nfe, one.nfe, two.nfe) == (12, 6, 6)


def test_the_retrace_of_a_failed_run_is_not_counted():
    def denoised(x, t):
        return torch.where(torch.tensor(t < 1.0), torch.full_like(x, torch.nan), x * 0)

    field = Field.from_denoised(denoised, diffode.paths.get("edm"), probe=False)
    with pytest.raises(NumericalError) as caught:
        diffode.solve(field, field.path.prior((2, 2), generator=0), solver="euler", grid="karras", steps=10)
    assert caught.value.solution.nfe == field.nfe == 10


def test_a_copy_of_a_field_counts_for_itself():
    field = diffode.exact_field("ring8", "edm")
    x = torch.zeros(1, 2, dtype=torch.float64)
    field.noise(x, 1.0)
    other = copy.deepcopy(field)
    other.noise(x, 1.0)
    assert (field.nfe, other.nfe) == (1, 2)


def test_a_total_read_within_runs_is_up_to_date_and_can_be_set():
    field = diffode.exact_field("ring8", "edm")
    x = torch.zeros(1, 2, dtype=torch.float64)
    with field.counted() as outer:
        field.noise(x, 1.0)
        with field.counted() as inner:
            field.noise(x, 1.0)
            assert (inner.calls, outer.calls, field.nfe) == (1, 1, 2)
            with field.uncounted():
                field.noise(x, 1.0)
                assert field.nfe == 2
        assert (outer.calls, field.nfe) == (2, 2)
        field.nfe = 10
        field.noise(x, 1.0)
        assert field.nfe == 11
    assert (outer.calls, field.nfe) == (3, 11)


def test_a_field_counts_over_runs():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    for nfe in (4, 6):
        diffode.solve(field, x, solver="ddim", nfe=nfe)
    diffode.solve(field, x, solver="rk_adaptive", grid=[80.0, 70.0])
    assert field.nfe > 10
    adaptive = field.nfe - 10
    field.nfe = 5
    assert diffode.solve(field, x, solver="rk_adaptive", grid=[80.0, 70.0]).nfe == adaptive
    assert field.nfe == 5 + adaptive


def test_looking_for_what_failed_is_not_counted():
    path = paths.get("edm")
    field = Field.from_noise(lambda x, t: torch.where((x[:, :1] < 0) & torch.tensor(t < 20), math.nan, x / (1 + t)), path)
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    field.nfe = 3
    with pytest.raises(diffode.errors.NumericalError) as caught:
        diffode.solve(field, x, solver="ddim", nfe=6)
    assert caught.value.solution.status.tolist() == [0, 1]
    assert field.nfe == 3 + caught.value.solution.nfe == 9


def test_a_tally_counts_anew_each_time_and_is_open_once():
    field = diffode.exact_field("ring8", "edm")
    x = torch.zeros(1, 2, dtype=torch.float64)
    tally = field.counted()
    for _ in range(2):
        with tally:
            field.noise(x, 1.0)
            with pytest.raises(ArgumentError, match="open already"), tally:
                pass
        assert tally.calls == 1
    assert field.nfe == 2
    for wrong in ("a", -3, True):
        with pytest.raises(ArgumentError, match="nfe must be an integer >= 0"):
            field.nfe = wrong


def test_blocks_that_end_in_another_order_leave_a_right_total():
    field = diffode.exact_field("ring8", "edm")
    x = torch.zeros(1, 2, dtype=torch.float64)
    one, two = field.counted(), field.counted()
    one.__enter__()
    two.__enter__()
    field.noise(x, 1.0)
    one.__exit__()
    field.noise(x, 1.0)
    two.__exit__()
    field.noise(x, 1.0)
    assert field.nfe == 3


def test_a_network_of_one_time_a_call_is_called_once_for_rows_of_one_time():
    calls = []
    model = Model(lambda x, t: x, "model")
    ask = single_time(model, lambda x, t: calls.append((len(x), t)) or x * t)
    x = torch.arange(3.0)[:, None]
    assert torch.equal(ask(x, torch.full((3,), 2.0)), 2 * x)
    assert calls == [(3, 2.0)]
    assert torch.equal(ask(x, torch.tensor([2.0, 3.0, 2.0])), x * torch.tensor([[2.0], [3.0], [2.0]]))
    assert calls[1:] == [(1, 2.0), (1, 3.0), (1, 2.0)]
    assert ask(x[:0], torch.zeros(0)).shape == (0, 1)
