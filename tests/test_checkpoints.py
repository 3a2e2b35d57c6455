"""Files of trained samplers: solvers like any other, honest about where they were trained, refused when they are not valid."""

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import save_file

import diffode
from diffode import Field, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, TrainedElsewhereWarning
from diffode.learned import train_table
from diffode.solvers.trained.checkpoints import load_checkpoint
from diffode.tableau.stages import Stages

EDM = paths.get("edm")


@pytest.fixture(scope="module")
def trained_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("trained") / "bimodal.safetensors"
    train_table("bimodal1d", 4, points=192).save(file)
    return file


def test_a_saved_sampler_is_a_solver_like_any_other(trained_file):
    field = diffode.exact_field("bimodal1d", "edm")
    x = EDM.prior((50, 1), generator=5)
    spec = f"bespoke:file={trained_file}"
    run = diffode.solve(field, x, solver=spec, nfe=4)
    checkpoint = load_checkpoint(trained_file)
    table = checkpoint.stages.scaled(checkpoint.scale).tableau(EDM)
    torch.testing.assert_close(run.x, table.run(field, x), rtol=1e-12, atol=1e-12)
    assert run.nfe == 4
    assert solvers.get(solvers.get(spec).spec).checkpoint.target == "bimodal1d"


def test_a_trained_sampler_says_when_it_runs_elsewhere(trained_file):
    field = diffode.exact_field("bimodal1d", "edm")
    x, spec = EDM.prior((5, 1), generator=5), f"bespoke:file={trained_file}"
    with pytest.warns(TrainedElsewhereWarning, match="not trained for nfe=6; it runs with 4"):
        diffode.solve(field, x, solver=spec, nfe=6)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        diffode.solve(diffode.exact_field("bimodal1d", "vp"), x, solver=spec, nfe=4)
    assert any("trained for first noise level 80" in str(w.message) for w in said)
    assert any("trained for last noise level 0.002" in str(w.message) for w in said)
    with pytest.raises(BudgetError, match="trained for nfe 4; none fits nfe=3"):
        diffode.solve(field, x, solver=spec, nfe=3)
    with pytest.raises(ArgumentError, match=r"give grid=\[start, end\]"):
        diffode.solve(field, x, solver=spec, grid=[80.0, 1.0, 0.002])
    with pytest.raises(ArgumentError, match="needs file="):
        solvers.get("bespoke")


def crafted(folder, good):
    """Sixty files that are not trained samplers, each spoilt in one way."""
    from safetensors import safe_open

    with safe_open(good, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    raw = good.read_bytes()
    made = []

    def add(name, data):
        file = folder / f"{name}.safetensors"
        file.write_bytes(data)
        made.append(file)

    def build(name, changed_facts=None, **changed):
        file = folder / f"{name}.safetensors"
        parts = {key: value for key, value in {**tensors, **changed}.items() if value is not None}
        save_file(
            {k: v.contiguous() for k, v in parts.items()},
            str(file),
            metadata={"diffode": json.dumps(facts if changed_facts is None else changed_facts)},
        )
        made.append(file)

    for cut in (0, 1, 7, 8, 20, len(raw) // 2, len(raw) - 1):
        add(f"cut{cut}", raw[:cut])
    add("longer", raw + b"\0" * 8)
    add("text", b"not a checkpoint at all")
    add("pickle", b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR.")
    add("zip", b"PK\x03\x04" + b"\0" * 64)
    add("npz", b"\x93NUMPY" + b"\0" * 64)
    add("huge-header", (2**62).to_bytes(8, "little") + b"{}")
    add("deep-json", (200_000).to_bytes(8, "little") + b"[" * 200_000)
    for name in tensors:
        build(f"no-{name}", **{name: None})
        for label, bad in (("nan", math.nan), ("inf", math.inf), ("minus-inf", -math.inf)):
            spoilt = tensors[name].clone()
            spoilt.reshape(-1)[0] = bad
            build(f"{label}-{name}", **{name: spoilt})
        build(f"float32-{name}", **{name: tensors[name].float()})
        build(f"int-{name}", **{name: tensors[name].long()})
        build(f"empty-{name}", **{name: tensors[name][:0]})
        build(f"short-{name}", **{name: tensors[name][:-1]})
        build(f"deep-{name}", **{name: tensors[name][None]})
    build("extra", other=torch.zeros(3))
    build("upper", weights=tensors["weights"] + torch.ones(4, 4, dtype=torch.float64).triu(1))
    build("negative-level", levels=tensors["levels"] * torch.tensor([1, -1, 1, 1, 1.0]))
    build("zero-level", levels=tensors["levels"] * torch.tensor([1, 0, 1, 1, 1.0]))
    build("wide", weights=torch.zeros(4, 5, dtype=torch.float64))
    # What older files do not say is taken as what it was then.
    for key in facts.keys() - {"stopped_by"}:
        build(f"without-{key}", {k: v for k, v in facts.items() if k != key})
    wrong = [
        ("schema", "diffode-tableau-1"), ("schema", 3), ("scale", 0), ("scale", -1.0), ("scale", "large"), ("scale", None),
        ("scale", True), ("path", "nowhere"), ("path", 3), ("path", "__import__('os')"), ("target", ["x"]), ("seed", 1.5),
        ("seconds", "long"), ("held_out_error", math.inf), ("start_error", math.nan), ("begun_from", "x" * 20_000),
        ("stopped_by", "luck"),
    ]  # fmt: skip
    for key, value in wrong:
        build(f"wrong-{key}-{len(made)}", {**facts, key: value})
    build("list", [1, 2, 3])
    build("no-json", None)
    save_file(tensors, str(made[-1]), metadata={"diffode": "{"})
    build("no-metadata", None)
    save_file(tensors, str(made[-1]))
    return made


def test_files_that_are_no_trained_samplers_are_refused_before_use(trained_file, tmp_path):
    files = crafted(tmp_path, trained_file)
    assert len(files) >= 60
    for file in files:
        with pytest.raises(FileFormatError):
            solvers.get(f"bespoke:file={file}")
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(ArgumentError, match=r"no such file|is a folder"):
            solvers.get(f"bespoke:file={absent}")
    with pytest.raises(ArgumentError, match="can't be written"):
        load_checkpoint(trained_file).save(tmp_path / "no" / "where.safetensors")


def test_a_changed_file_is_run_anew_by_a_study(trained_file, tmp_path):
    from dataclasses import replace

    from diffode.studies.cell_keys import cell_key
    from diffode.studies.rows import compute
    from diffode.studies.suite import Cell

    file, good = tmp_path / "own.safetensors", load_checkpoint(trained_file)
    cell = Cell("bimodal1d", "edm", 0, "karras", f"bespoke:file={file}", 4, 16, "float64", ("endpoint",), 1e-6)
    seen = []
    worse = replace(good, stages=Stages(good.stages.scales * 1.5, good.stages.weights, good.stages.levels))
    for checkpoint in (good, worse, replace(good, scale=good.scale * 1.005)):
        checkpoint.save(file)
        seen.append((cell_key(cell), compute("k", cell).measurements[0].value))
    assert len({key for key, _ in seen}) == len({value for _, value in seen}) == 3


def test_a_bespoke_table_says_when_data_have_another_scale_and_what_it_can_not_do(trained_file):
    exact, spec = diffode.exact_field("bimodal1d", "edm"), f"bespoke:file={trained_file}"
    large = Field.from_denoised(lambda x, t: 10 * exact.denoised(x / 10, t / 10), EDM, scale=10 * exact.scale)
    x = EDM.prior((3, 1), generator=0)
    with pytest.warns(TrainedElsewhereWarning, match="trained on data of scale 1.288, this field has 12.88"):
        diffode.solve(large, x, solver=spec, nfe=4)
    with pytest.raises(ArgumentError, match="trained with all its evaluations"):
        diffode.solve(exact, x, solver=spec + ",analytic_first_step=true", nfe=4)
    for grid in ([80.0, 0.0],):
        with pytest.raises(ArgumentError, match="sigma > 0 at its end"):
            diffode.solve(exact, x, solver=spec, grid=grid, nfe=4)
    with pytest.raises(ArgumentError, match="does not read as a number"):
        solvers.get("bespoke:file=7")


def test_enormous_numbers_in_a_file_are_refused(trained_file, tmp_path):
    from safetensors import safe_open

    with safe_open(trained_file, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    for changed in ({"scale": 10**400}, {"seconds": 10**400}):
        save_file(tensors, str(tmp_path / "x"), metadata={"diffode": json.dumps({**facts, **changed})})
        with pytest.raises(FileFormatError):
            load_checkpoint(tmp_path / "x")
    levels = tensors["levels"].clone()
    levels[1] = 1e200
    save_file({**tensors, "levels": levels}, str(tmp_path / "x"), metadata={"diffode": json.dumps(facts)})
    with pytest.raises(FileFormatError, match="levels must not exceed"):
        load_checkpoint(tmp_path / "x")
