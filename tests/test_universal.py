"""The universal tables that ship: for any field, in units of its scale, within the levels they were trained for."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import diffode
from diffode import Field, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, TrainedElsewhereWarning
from diffode.solvers.trained.bespoke import FILE
from diffode.solvers.trained.checkpoints import load_ranged


def mean_error(field, solver, nfe, grid="karras"):
    x = field.path.prior((128, field.dim), generator=7)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-7).x
    return float((diffode.solve(field, x, solver=solver, nfe=nfe, grid=grid).x - exact).norm(dim=1).mean())


def test_there_is_a_table_for_every_budget_from_3_to_12():
    assert solvers.get("universal").budgets == tuple(range(3, 13))
    for nfe in range(3, 13):
        field = diffode.exact_field("ring8", "edm")
        assert diffode.solve(field, field.prior(2, generator=0), solver="universal", nfe=nfe).nfe == nfe


@pytest.mark.parametrize("nfe", [4, 6, 8, 10])
@pytest.mark.parametrize("target", ["moons", "line16", "pinwheel"])
def test_it_beats_published_solvers_on_their_usual_grid_on_targets_it_has_not_seen(target, nfe):
    field = diffode.exact_field(target, "edm")
    others = [mean_error(field, s, nfe) for s in ("ddim", "dpmpp:order=2", "ipndm:order=3", "unipc:order=2", "deis:order=3")]
    assert mean_error(field, "universal", nfe) < min(others)


def test_rescaling_data_and_noise_together_changes_nothing():
    ends = []
    for unit in (1.0, 7.0):
        target = diffode.GaussianMixture([0.4, 0.6], [[0.0, unit], [2 * unit, 0.0]], [0.1 * unit**2, 0.3 * unit**2])
        path = paths.get(f"edm:sigma_min={0.002 * unit},sigma_max={80 * unit}")
        x = unit * paths.get("edm").prior((4, 2), generator=0)
        ends.append(diffode.solve(diffode.exact_field(target, path), x, solver="universal", nfe=5).x / unit)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["vp", "rectified_flow", "vp_cosine:t_max=0.99"])
def test_it_runs_on_every_path(path):
    field = diffode.exact_field("ring8", path)
    assert mean_error(field, "universal", 8) < 0.3 * mean_error(field, "ddim", 8)


def test_a_field_of_ones_own_gives_scale_and_dimension():
    exact = diffode.exact_field("ring8", "edm")
    own = Field.from_denoised(exact.denoised, exact.path, scale=exact.scale)
    x = exact.prior(3, generator=0)
    bare = Field.from_denoised(exact.denoised, exact.path)
    cases = ((exact, "universal"), (own, "universal"), (bare, f"universal:scale={exact.scale}"))
    runs = [diffode.solve(field, x, solver=solver, nfe=6).x for field, solver in cases]
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(runs[2], runs[0], rtol=1e-9, atol=1e-9)


def test_outside_what_it_was_trained_for_it_says_so():
    stiff = diffode.exact_field("stiff-pair", "edm")
    x = stiff.prior(2, generator=0)
    with pytest.raises(ArgumentError, match=r"first noise level is 0.16 of the data's scale 500; .* trained for 2 to 800"):
        diffode.solve(stiff, x, solver="universal", nfe=6)
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match=r"last noise level is 0\.28"):
        diffode.solve(field, field.prior(2, generator=0), solver="universal", grid=[80.0, 1.0], nfe=6)
    with pytest.warns(TrainedElsewhereWarning, match="not trained for nfe=20; it runs with 12"):
        assert diffode.solve(field, field.prior(2, generator=0), solver="universal", nfe=20).nfe == 12
    wide = diffode.exact_field("gauss1024-lowrank", "edm")
    with pytest.warns(TrainedElsewhereWarning, match="trained in up to 64 dimensions, this field has 1024"):
        diffode.solve(wide, wide.prior(2, generator=0), solver="universal", nfe=6)
    with pytest.raises(BudgetError, match="none fits nfe=2"):
        diffode.solve(field, field.prior(2, generator=0), solver="universal", nfe=2)
    with pytest.raises(ArgumentError, match="needs scale="):
        solvers.get("universal").tableau(paths.get("edm"), "karras", 6)
    for wrong in ("universal:scale=0", "universal:scale=-1", "universal:dim=0", "universal:dim=1.5"):
        with pytest.raises(ArgumentError, match="must be"):
            solvers.get(wrong)


def test_spoilt_files_of_ranged_tables_are_refused(tmp_path):
    with safe_open(FILE, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    assert facts["script"] == "tools/train_universal.py"

    def refused(changed_facts, changed):
        file = tmp_path / "spoilt.safetensors"
        description = json.dumps({**facts, **changed_facts})
        save_file({**tensors, **changed}, str(file), metadata={"diffode": description})
        with pytest.raises(FileFormatError):
            load_ranged(file)

    refused({"schema": "x"}, {})
    refused({"first": [3.0, 1.0]}, {})
    refused({"first": 3.0}, {})
    refused({"last": [0.0, 1.0]}, {})
    refused({"most": 1}, {})
    refused({"most": "64"}, {})
    refused({}, {"nfe_6": tensors["nfe_6"][:8]})
    refused({}, {"nfe_6": tensors["nfe_6"].float()})
    refused({}, {"nfe_6": tensors["nfe_6"] * torch.nan})
    refused({}, {"other": torch.zeros(9, 3, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: solvers.get("universal:scale=1,dim=2").tableau(None, [1.0, 0.5], 4),
            "needs a path",
            id="a universal table without a path",
        ),
        pytest.param(
            lambda: solvers.get("universal:scale=1,dim=2,analytic_first_step=true").tableau(paths.get("edm"), "karras", 4),
            "trained with all its evaluations",
            id="a universal table with an analytic step",
        ),
    ],
)
def test_a_universal_table_needs_a_path_and_all_its_evaluations(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
