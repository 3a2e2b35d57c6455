"""What is asked of a run: each value is refused by name where it is wrong, and noise can be asked for again."""

import pytest
import torch

import diffode
from diffode import solvers
from diffode.errors import ArgumentError
from diffode.solvers.run import table_for
from diffode.solvers.run_options import Extent, RunOptions

X = torch.zeros(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "some"}, "keep must be 'last' or 'all', got 'some'"),
        ({"progress": 3}, "progress must be a function of"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'return', got 'ignore'"),
    ],
)
@pytest.mark.parametrize("solver", ["ddim", "rk_adaptive"])
def test_wrong_options_of_a_run_are_refused_alike_with_and_without_a_table(solver, options, message):
    with pytest.raises(ArgumentError, match=message):
        RunOptions(**options)
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match=message):
        diffode.solve(field, field.prior(3, generator=0), solver=solver, grid=[80.0, 1.0], **options)


def test_the_noise_of_a_run_is_the_same_when_asked_again_and_only_where_there_is_a_draw():
    noisy, plain = (solvers.get(spec).tableau("edm", "karras", 4) for spec in ("ddim:eta=1", "ddim"))
    draw = RunOptions(generator=5).draws(noisy, X)
    assert torch.equal(draw(2), draw(2))
    assert not torch.equal(draw(1), draw(2))
    given = torch.arange(noisy.draws * 6, dtype=torch.float64).reshape(noisy.draws, 3, 2)
    assert torch.equal(RunOptions(noise=given).draws(noisy, X)(1), given[1])
    assert RunOptions(generator=5).draws(plain, X) is None
    for options, message in (
        ({}, "uses 4 noise draws; pass generator="),
        ({"noise": given, "generator": 5}, "not both"),
        ({"noise": given[:, :2]}, "noise must have shape"),
        ({"noise": given.long()}, "noise must be real"),
        ({"noise": given / 0}, "noise has non-finite values"),
    ):
        with pytest.raises(ArgumentError, match=message):
            RunOptions(**options).draws(noisy, X)
    with pytest.raises(ArgumentError, match="draws no noise; leave noise= out"):
        RunOptions(noise=given).draws(plain, X)


def test_an_extent_names_steps_once():
    field, ddim = diffode.exact_field("ring8", "edm"), solvers.get("ddim")
    assert table_for(field, ddim, Extent(field.path, nfe=5)).nfe == 5
    assert table_for(field, ddim, Extent(field.path.between(9.0, 1.0), "log_snr", 3)).ends == (9.0, 1.0)
    for extent, message in (
        (Extent(field.path, "karras", 3, 5), "give steps or nfe, not both"),
        (Extent(field.path, [3.0, 1.0], 3), "explicit times have their own number of steps"),
        (Extent(field.path), "give grid="),
    ):
        with pytest.raises(ArgumentError, match=message):
            table_for(field, ddim, extent)
