"""Requests for trainings that know the data: what is told of the chart, pairs of arguments, and data with no width."""

import pytest
import torch

import diffode
from diffode import Field, paths
from diffode.errors import ArgumentError
from diffode.learned import Limit, load, train, train_table
from diffode.statistics import Statistics


def test_what_is_told_while_two_charts_are_tried_and_in_the_end_says_which(tmp_path):
    """Methods of both charts have the same names, so that the chart is in the names of stages, and in the result."""
    steps = []
    found = train_table("spiral", 1, chart="gaussian", points=48, steps=1, progress=steps.append)
    stages = {step.stage for step in steps}
    for chart in ("the covariance", "the scale alone"):
        told = [stage for stage in stages if stage.endswith(f", in the chart of {chart}")]
        assert {stage.split(" ab:")[0] for stage in told} == {"look ahead from", "train from"}
    assert all(stage.endswith(("the covariance", "the scale alone")) for stage in stages)
    assert found.statistics is found.content.statistics
    assert f"statistics={found.statistics.kind!r}" in repr(found)
    assert repr(found.statistics) in found._repr_html_()
    found.save(tmp_path / "it.safetensors")
    assert load(tmp_path / "it.safetensors").statistics.kind == found.statistics.kind
    # What it began from is a method that a training may begin from again, in the same chart.
    again = train_table(
        "spiral", 1, chart="gaussian", points=48, steps=1, statistics=found.statistics, begin_from=found.facts.begun_from
    )
    assert again.facts.begun_from == found.facts.begun_from
    plain = train_table("bimodal1d", 1, points=16, steps=1, begin_from="ddim", progress=steps.append)
    assert plain.statistics is None
    assert "statistics" not in repr(plain)
    assert steps[-1].stage == "train from ddim @ karras"


def test_arguments_of_which_one_would_do_nothing_are_refused_by_both_names():
    smaller = train_table(
        "spiral", 1, chart="gaussian", points=16, steps=1, begin_from="ab:order=1,chart=gaussian_angle,jump=1"
    )
    field = diffode.exact_field("ring8", "vp")
    method = "ab:order=1,chart=gaussian_angle,jump=1"
    for options, said in (
        ({"chart": "gaussian", "smaller": smaller, "begin_from": method}, "begin_from='ab.*smaller=: leave one of the two out"),
        ({"chart": "gaussian", "begin_from": "universal"}, "begin_from='universal' is no beginning in the chart"),
        ({"seconds": Limit(9.0), "stop": lambda: True}, r"stop can't be given beside a Limit.*Limit\(seconds, stop\)"),
    ):
        with pytest.raises(ArgumentError, match=said):
            train_table("spiral", 4, points=16, **options)
    for train_it in (
        lambda: train_table(field, 3, path="rectified_flow"),
        lambda: diffode.learned.train_grid("dmn", field, 3, path="vp:beta_max=10"),
        lambda: diffode.learned.tune_universal(field, 4, path=paths.get("vp_cosine")),
    ):
        with pytest.raises(ArgumentError, match=r"path=.* goes with a target: this field has its own, 'vp'; leave path out"):
            train_it()
    assert diffode.learned.train_grid("dmn", field, 3, path="vp").facts.path == "vp"


POINTS = diffode.targets.GaussianMixture.from_points
NARROW = {
    "one point": (POINTS([[1.0, 2.0]]), "the data are one point, of covariance 0"),
    "the same point twice": (POINTS([[1.0, 2.0]] * 2), "the data are one point, of covariance 0"),
    "narrower than the last level": (
        diffode.targets.GaussianMixture([0.5, 0.5], [[1.0, 2.0], [1.0001, 2.0]], [1e-8, 1e-8]),
        "largest deviation of 0.0001.., so small beside the path's last noise level of 0.002",
    ),
}


@pytest.mark.parametrize("name", NARROW)
def test_data_to_which_a_jump_goes_at_once_are_solved_by_it_and_no_training_begins(name):
    target, said = NARROW[name]
    field = diffode.exact_field(target, "edm")
    x = field.prior(6, generator=0)
    exact = diffode.reference(field, x, 80.0, 0.002).x
    for solver in ("ddim:jump=auto", "ab:order=2,chart=gaussian_angle,jump=auto", "universal:chart=gaussian"):
        run = diffode.solve(field, x, solver=solver, nfe=4)
        assert float((run.x - exact).abs().max()) < 1e-9
        assert run.nfe == (4 if solver.startswith("universal") else 0)
    for train_it in (
        lambda: train_table(target, 2, chart="gaussian", points=16),
        lambda: train_table(target, 2, chart="gaussian", points=16, statistics="scale"),
        lambda: train_table(target, 1, chart="gaussian", points=16, begin_from="ab:order=1,chart=gaussian_angle,jump=1"),
        *(
            lambda method=method: diffode.learned.train_grid(method, target, 2, jump="auto")
            for method in ("ld3", "search", "gits")
        ),
        lambda: diffode.learned.train_amed(target, 1, jump="auto"),
        lambda: diffode.learned.train_amed(target, 1, chart="gaussian", host="ipndm"),
        lambda: train("conditioned:chart=gaussian", target, 2),
    ):
        with pytest.raises(ArgumentError, match=f"has nothing to train: .*{said}.* any solver with jump=auto"):
            train_it()


def test_a_level_in_deviations_of_data_that_have_none_is_refused_without_a_range():
    samples = Statistics.of_samples(torch.ones(5, 2))
    field = Field.from_denoised(lambda x, t: torch.ones_like(x), "edm", scale=samples)
    x = field.first_noise((3, 2), generator=0)
    with pytest.raises(ArgumentError, match="one point, of covariance 0: jump=auto goes there at once"):
        diffode.solve(field, x, solver="ddim:jump=2", nfe=2)
    # A point flows straight: x = 1 + (x_0 - 1) rho/rho_0.
    expected = 1 + (x - 1) * (0.002 / 80)
    torch.testing.assert_close(diffode.solve(field, x, solver="ddim:jump=auto", nfe=2).x, expected, rtol=0, atol=1e-12)
    with pytest.raises(ArgumentError, match="has nothing to train"):
        train_table(field, 2, dim=2, chart="gaussian")
