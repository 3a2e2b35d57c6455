"""Ratios of DC-Solver for numbers of evaluations and weights between those trained for: the polynomial, the solver, files."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffode
from diffode import learned, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, TrainedElsewhereWarning
from diffode.learned import train_compensation
from diffode.learned.request import Request
from diffode.solvers.trained.ratios import RATIOS_SCHEMA, Ratios, RegressedDC, load_ratios, powers
from diffode.tensor_files import read_tensors, write_tensors

RECORDED = json.loads((Path(__file__).parent / "data" / "dc_solver.json").read_text())["regression"]
FACTS = {
    "path": "edm", "target": "ring8", "begun_from": "unipc:order=3 @ log_snr", "held_out_error": 0.1, "start_error": 0.2,
    "seconds": 1.0, "seed": 0,
}  # fmt: skip


def ratios_of(function, budgets, weights=(1.0,), **more):
    """Ratios whose trainings follow a function of the step, the number of steps and the weight."""
    trained = {
        (nfe, weight): tuple(function(i, nfe, weight) for i in range(3, nfe + 1))
        for nfe, weight in itertools.product(budgets, weights)
    }
    return Ratios(trained=trained, solver="dc", grid="log_snr", ends=(80.0, 0.002), **FACTS, **more)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['nfe']}, {case['weight']}")
def test_the_polynomial_is_that_of_the_authors_code(case):
    """Their coefficients go by the power of the step, then by falling powers of the weight and of the number of steps."""
    theirs = np.array(RECORDED["coefficients"]).reshape(4, 3, 3)
    ours = theirs[:, ::-1, ::-1].transpose(0, 2, 1)
    n, w = case["nfe"], case["weight"]
    found = [float((ours * powers(i / n, n, w, ours.shape)).sum()) for i in range(3, n + 1)]
    assert case["ratios"][:2] == [1, 1]
    assert found == pytest.approx(case["ratios"][2:], rel=1e-12)


def test_ratios_that_follow_a_polynomial_are_found_where_none_were_trained():
    def law(i, n, w):
        return 0.9 + 0.3 * (i / n) ** 3 - 0.02 * n + 1e-3 * n**2 * (i / n) + 0.03 * w - 1e-4 * w**2 * n * (i / n)

    known = ratios_of(law, (5, 6, 8, 10), (1.0, 4.0, 8.0))
    assert known.coefficients.shape == (4, 3, 3)
    for n, w in ((7, 4.0), (9, 2.5), (6, 7.0)):
        # They are told to four digits.
        assert known.at(n, w) == pytest.approx([law(i, n, w) for i in range(3, n + 1)], abs=6e-5)


def test_fewer_trainings_determine_fewer_powers():
    """Two numbers of steps a line in N; three ratios at most a parabola in the step; one training no power of N."""
    shapes = {budgets: ratios_of(lambda i, n, w: 1 + 0.1 * i / n, budgets).coefficients.shape for budgets in (
        (5,), (5, 9), (8, 9), (3, 4), (5, 6, 8, 10))}  # fmt: skip
    assert shapes == {(5,): (3, 1, 1), (5, 9): (3, 2, 1), (8, 9): (4, 2, 1), (3, 4): (1, 2, 1), (5, 6, 8, 10): (4, 3, 1)}
    assert ratios_of(lambda i, n, w: 1 + 0.1 * i / n, (5, 9)).at(7) == pytest.approx(
        [1 + 0.1 * i / 7 for i in range(3, 8)], abs=6e-5
    )


def test_trained_ratios_stay_as_they_are_and_others_within_the_range_of_training():
    known = ratios_of(lambda i, n, w: (0.0, 2.0)[i % 2], (5, 6, 8))
    assert known.at(6) == (2.0, 0.0, 2.0, 0.0)
    assert all(0 <= ratio <= 2 for ratio in known.at(7))
    rising = ratios_of(lambda i, n, w: min(2.0, 0.4 * i), (4, 5, 7))
    assert max(rising.at(6)) == 2.0, "the polynomial passes 2 there"


def test_ratios_count_by_their_strength():
    """A ratio that moves nothing may lie anywhere: the polynomial is that of the others."""
    clean = ratios_of(lambda i, n, w: 1.2 - 0.5 * i / n, (5, 6, 8, 10))
    spoilt = {key: (*own[:-1], 2.0) for key, own in clean.trained.items()}
    strengths = {key: (*[0.7] * (len(own) - 1), 0.0) for key, own in clean.trained.items()}
    found = dataclasses.replace(clean, trained=spoilt, strengths=strengths)
    assert found.at(7) == pytest.approx(clean.at(7), abs=1e-4)
    assert dataclasses.replace(clean, trained=spoilt).at(7)[0] != pytest.approx(clean.at(7)[0], abs=0.01)
    with pytest.raises(ArgumentError, match="strengths must be numbers >= 0, one for each ratio"):
        dataclasses.replace(clean, strengths={(5, 1.0): (1.0, 1.0, 1.0)})


def test_a_strength_is_how_far_a_ratio_moves_the_states_of_its_step(trained):
    """From runs of the solver with ratios a little aside, in units of the deviation of the noised data."""
    field = diffode.exact_field("ring8", "edm")
    start = field.first_noise((10, 2), generator=Request.of("train_compensation", field, seed=1).stream("training"))
    ratios, times = trained.content.at(6), diffode.grids.get("log_snr", "edm", 6)
    for k in (0, 2):
        ends = [
            diffode.solve(
                field, start, solver=solvers.get("dc", ratios=(*ratios[:k], ratio, *[1.0] * (3 - k))), grid=times, keep="all"
            )
            for ratio in (ratios[k] - 0.05, ratios[k] + 0.05)
        ]
        moved = (ends[1].states[k + 3] - ends[0].states[k + 3]).square().sum(1).mean().sqrt() / 0.1
        spread = (float(times[k + 3]) ** 2 + field.scale**2) ** 0.5
        assert trained.content.strengths[6, 1.0][k] == pytest.approx(float(moved) / spread, rel=1e-3)


def test_a_run_is_that_of_dc_with_its_ratios_on_the_trained_grid():
    known = ratios_of(lambda i, n, w: 1.1 - 0.3 * i / n, (5, 6, 8))
    solver = RegressedDC(ratios=known)
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(6, generator=0)
    for nfe in (5, 7):
        own = diffode.solve(field, x, solver=solver, nfe=nfe)
        other = diffode.solve(field, x, solver=solvers.get("dc", ratios=known.at(nfe)), grid="log_snr", nfe=nfe)
        assert own.nfe == nfe
        torch.testing.assert_close(own.x, other.x, rtol=1e-10, atol=1e-10)
    vp = diffode.exact_field("ring8", "vp")
    with pytest.warns(TrainedElsewhereWarning) as told:
        diffode.solve(vp, vp.prior(2, generator=0), solver=solver, nfe=5)
    assert "for first noise level 80, this" in str(told[0].message)
    assert "for last noise level 0.002, this" in str(told[1].message)


@pytest.fixture(scope="module")
def trained():
    return train_compensation("ring8", (5, 6, 8, 10), seed=1)


def test_trained_at_some_numbers_it_gains_at_another_on_unseen_starts(trained):
    """Measured for 7 are 0.147, with ratios trained for it 0.085, of UniPC 0.225; for 9 0.046, 0.056 and 0.159."""
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(1000, generator=41)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    for nfe in (7, 9):
        ends = (
            diffode.solve(field, x, solver=trained.solver, nfe=nfe).x,
            diffode.solve(field, x, solver="unipc", grid="log_snr", nfe=nfe).x,
        )
        own, plain = (float((end - exact).norm(dim=1).mean()) for end in ends)
        assert own < 0.85 * plain


def test_each_training_is_that_for_its_number_alone(trained):
    assert trained.content.at(6) == train_compensation("ring8", 6, seed=1).solver.ratios
    assert trained.nfe == 5
    assert trained.errors.after < trained.errors.before
    assert trained.history.steps == 3 + 4 + 6 + 8


def test_weights_of_guidance_are_trained_one_by_one():
    text = "ring8 guided label=three,weight=1"
    found = learned.train("dc:weights=1+3", text, (4, 5), points=4)
    assert found.content.weights == (1.0, 3.0)
    alone = train_compensation("ring8 guided label=three,weight=3", 5, points=4)
    assert found.content.at(5, 3) == alone.solver.ratios
    assert len(found.content.at(5, 2.2)) == 3
    field = diffode.fields.problem_text.field_of_text("ring8 guided label=three,weight=2.2", "edm")
    run = diffode.solve(field, field.prior(4, generator=0), solver=RegressedDC(ratios=found.content, weight=2.2), nfe=8)
    assert run.nfe == 8, "four steps of two calls"


def test_a_file_gives_the_same_solver_and_says_what_it_was_trained_for(trained, tmp_path):
    file = tmp_path / "dc.safetensors"
    trained.save(file)
    again = learned.load(file)
    assert again.content.trained == trained.content.trained
    assert (again.errors, again.nfe) == (trained.errors, trained.nfe)
    assert again.solver == solvers.get(f"dc_regressed:file={file}")
    assert again.solver.content() == trained.solver.content()
    with pytest.raises(BudgetError, match="trained for nfe 5, 6, 7, 8, 9, 10; it has no table for 11"):
        again.solver.tableau("edm", "karras", 11)


def test_a_limit_leaves_out_trainings_that_it_cut():
    answers = iter([False] * 4 + [True] * 100)
    found = train_compensation("bimodal1d", (4, 5, 6), points=4, stop=lambda: next(answers))
    assert found.stopped_by == "request"
    assert found.content.budgets == (4,)
    assert len(found.history.error) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [({"trainings": torch.tensor([[5.5, 1.0], [6.0, 1.0]], dtype=torch.float64)}, "must be integers"),
     ({"trainings": torch.tensor([[5.0, 1.0], [5.0, 1.0]], dtype=torch.float64)}, "each with a weight once"),
     ({"ratios": torch.full((2, 4), 7.0, dtype=torch.float64)}, "between 0 and 2"),
     ({"ratios": torch.ones(3, 4, dtype=torch.float64)}, "as many trainings as ratios and strengths"),
     ({"solver": "heun"}, "solver must be dc"), ({"solver": "dc:order=9"}, "order must be one of"),
     ({"grid": "0.1,0.2"}, "must name a grid"), ({"path": "code.py:path"}, "unknown path")],
)  # fmt: skip
def test_damaged_files_are_refused(change, words, tmp_path):
    file = tmp_path / "r.safetensors"
    ratios_of(lambda i, n, w: 1.0, (5, 6)).save(file)
    description, tensors = read_tensors(file, RATIOS_SCHEMA)
    for key, value in change.items():
        (tensors if isinstance(value, torch.Tensor) else description)[key] = value
    write_tensors(file, tensors, description)
    with pytest.raises(FileFormatError, match=words):
        load_ratios(file)


def test_wrong_arguments_are_named():
    known = ratios_of(lambda i, n, w: 1.0, (5, 8), (1.0, 4.0))
    with pytest.raises(ArgumentError, match="weight must be a number from 1 to 4, as the ratios were trained, got None"):
        RegressedDC(ratios=known)
    with pytest.raises(ArgumentError, match="got 9"):
        known.at(5, 9)
    with pytest.raises(ArgumentError, match="nfe must be an integer from 5 to 8"):
        known.at(9, 2.0)
    with pytest.raises(ArgumentError, match="weight must be a number 1, or left out"):
        ratios_of(lambda i, n, w: 1.0, (5, 8)).at(6, 2.0)
    with pytest.raises(ArgumentError, match="dc_regressed needs file="):
        solvers.get("dc_regressed")
    with pytest.raises(ArgumentError, match="weights are those of a guided field"):
        train_compensation("bimodal1d", (5, 6), weights=(1, 2))
    with pytest.raises(ArgumentError, match="different ones"):
        train_compensation("bimodal1d", (5, 5))
    with pytest.raises(ArgumentError, match="nfe must be at least 3, got 2"):
        train_compensation("bimodal1d", (5, 2))
    with pytest.raises(ArgumentError, match="grid must be a rule"):
        train_compensation("bimodal1d", (5, 6), grid="80,10,1,0.1,0.01,0.002")
    with pytest.raises(ArgumentError, match="5 evaluations have 3 ratios between 0 and 2"):
        Ratios(trained={(5, 1.0): (1.0,)}, solver="dc", grid="log_snr", ends=(80.0, 0.002), **FACTS)


@pytest.mark.parametrize("weights", ["a+2", (1.0, None), True, [2, "3"]])
def test_weights_that_are_no_numbers_are_named(weights):
    with pytest.raises(ArgumentError, match=r"^weights must be numbers, those of guidance, as 1\+2\+4 in a spec, got "):
        train_compensation("ring8 guided label=three,weight=1", (4, 5), weights=weights)
