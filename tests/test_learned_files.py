"""Files of everything learned: read back as they were, usable as solvers and grids, refused by name when they are damaged."""

import contextlib
import json
import random
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import diffode
from diffode import grids, paths
from diffode.errors import ArgumentError, BudgetError, DiffodeError, FileFormatError, TrainedElsewhereWarning
from diffode.grid_files import TrainedGrid
from diffode.learned import (
    condition,
    load_amed,
    load_checkpoint,
    load_conditioned,
    load_grid,
    train_amed,
    train_compensation,
    train_decoupled,
    train_grid,
    train_head,
    train_jump,
    train_nodes,
    train_table,
)
from diffode.solvers.trained.jumps import load_jumps
from diffode.solvers.trained.nodes import load_nodes
from diffode.solvers.trained.ratios import load_ratios
from diffode.studies.cell_keys import cell_key
from diffode.studies.rows import compute
from diffode.studies.suite import Cell

EDM = paths.get("edm")
#: Facts of a training that never was.
FACTS = {
    "path": "edm", "target": "ring8", "begun_from": "ddim @ karras", "held_out_error": 0.1, "start_error": 0.2, "seconds": 1.0,
    "seed": 0,
}  # fmt: skip
LOADERS = {
    "bespoke": load_checkpoint, "conditioned": load_conditioned, "amed": load_amed, "grid": load_grid, "jump": load_jumps,
    "head": load_jumps, "nodes": load_nodes, "dc_regressed": load_ratios,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    field = diffode.exact_field("ring8", "edm")
    trained = train_table("ring8", 3, points=16, begin_from="ddim", stop=lambda: True)
    trained.save(folder / "bespoke")
    condition(trained, field, points=16, steps=1, units=3).save(folder / "conditioned")
    train_amed(field, 2, points=8, rounds=1).save(folder / "amed")
    train_grid("ld3", "ring8", 3, points=16).save(folder / "grid")
    train_jump("ring8", 3, points=16, steps=1).save(folder / "jump")
    train_head("ring8", 3, points=16, steps=1, units=4).save(folder / "head")
    train_nodes("ring8", 1, count=5, points=16).save(folder / "nodes")
    train_compensation("ring8", (3, 4), points=4, stop=iter([False] * 3 + [True]).__next__).save(folder / "dc_regressed")
    return folder


def parts(file):
    with safe_open(file, framework="pt") as content:
        description = json.loads(content.metadata()["diffode"])
        return description, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118


def refused_or_good(load, file):
    """Read it: a FileFormatError that names the file in a short message, or something that runs or is refused by name."""
    try:
        load(file)
    except FileFormatError as error:
        said = str(error)
    else:
        return False
    assert str(file) in said
    assert len(said) < 2000
    return True


@pytest.mark.parametrize("kind", LOADERS)
def test_flipped_bits_and_cut_ends_are_refused_by_name_or_harmless(kind, files, tmp_path):
    """Four of five flips hit the header, where lengths, shapes and the description stand."""
    raw, drawn = (files / kind).read_bytes(), random.Random(kind)
    header = 8 + int.from_bytes(raw[:8], "little")
    refused = 0
    for _ in range(150):
        spoilt = bytearray(raw)
        for _ in range(drawn.choice((1, 1, 3))):
            spoilt[drawn.randrange(header if drawn.random() < 0.8 else len(raw))] ^= 1 << drawn.randrange(8)
        if drawn.random() < 0.1:
            del spoilt[drawn.randrange(len(spoilt)) :]
        (tmp_path / "spoilt").write_bytes(spoilt)
        refused += refused_or_good(LOADERS[kind], tmp_path / "spoilt")
    assert refused > 75


HOSTILE = (
    None, True, -1, 2**20, 2**70, 10**400, 1e308, 5e-324, float("nan"), float("inf"), "", "none", "a" * 20_000, [], [1], [2, 1],
    [None, None], ["a", "b"], {"a": 1}, [[]] * 1000, "ddpm:levels=10000000000", "edm:sigma_max=1e200",
    "vp_cosine:s=0.2445,t_max=1.0",
)  # fmt: skip


@pytest.mark.parametrize("kind", LOADERS)
def test_hostile_descriptions_are_refused_by_name_or_harmless(kind, files, tmp_path):
    """What is read can be run, or says by name why not; nothing large is made of a short text."""
    description, tensors = parts(files / kind)
    field, file = diffode.exact_field("ring8", "edm"), tmp_path / "spoilt"
    x = field.prior(2, generator=0)
    for key in description:
        for value in HOSTILE:
            save_file(tensors, str(file), metadata={"diffode": json.dumps({**description, key: value})})
            if refused_or_good(LOADERS[kind], file):
                continue
            how = {"grid": ("ddim", f"trained:file={file}"), "amed": (f"amed_learned:file={file}", "karras")}
            solver, grid = how.get(kind, (f"{kind}:file={file}", "karras"))
            with contextlib.suppress(DiffodeError), warnings.catch_warnings():
                warnings.simplefilter("ignore", TrainedElsewhereWarning)
                assert diffode.solve(field, x, solver=solver, grid=grid, nfe=1 if kind == "nodes" else 3).success
    for deep in ("[" * 50_000 + "]" * 50_000, json.dumps({**description, "x": 0})[:-2] + "[" * 50_000 + "]" * 50_000 + "}"):
        save_file(tensors, str(file), metadata={"diffode": deep})
        assert refused_or_good(LOADERS[kind], file)


@pytest.mark.parametrize("kind", LOADERS)
def test_tensors_of_other_shapes_and_kinds_are_refused_by_name(kind, files, tmp_path):
    description, tensors = parts(files / kind)
    file = tmp_path / "spoilt"
    for name, good in tensors.items():
        others = (
            torch.tensor(1.0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), torch.zeros(1, 9, dtype=torch.float64),
            good.half(), good.bool(), torch.zeros(2, 2, dtype=torch.complex64), good[None], torch.cat([good, good]),
            torch.ones(1, 100_000, dtype=torch.float64),
        )  # fmt: skip
        for other in others:
            save_file({**tensors, name: other.contiguous()}, str(file), metadata={"diffode": json.dumps(description)})
            assert refused_or_good(LOADERS[kind], file), (name, other.shape, other.dtype)


def test_a_long_row_in_a_file_makes_no_large_network(files, tmp_path, monkeypatch):
    """A predictor of 4 million inputs has 4 GB of weights; the file holds one row of them."""
    from diffode.learned.conditional import amed

    description, tensors = parts(files / "amed")
    tensors["inner.0.weight"] = torch.zeros(1, 4_000_000, dtype=torch.float64)
    save_file(tensors, str(tmp_path / "x"), metadata={"diffode": json.dumps(description)})
    monkeypatch.setattr(amed, "Predictor", lambda *size: pytest.fail(f"a network of {size} is made"))
    with pytest.raises(FileFormatError, match=r"inner\.0\.weight must have 128 rows"):
        load_amed(tmp_path / "x")


def test_checkpoints_of_older_versions_are_read(files, tmp_path):
    """They call what training began from "start", and were ended by the clock."""
    description, tensors = parts(files / "bespoke")
    older = {key: value for key, value in description.items() if key not in ("begun_from", "stopped_by")}
    save_file(tensors, str(tmp_path / "old"), metadata={"diffode": json.dumps({**older, "start": description["begun_from"]})})
    found = load_checkpoint(tmp_path / "old")
    assert found.begun_from == "ddim @ karras"
    assert found.stopped_by == "seconds"
    assert load_checkpoint(files / "bespoke").stopped_by == "request"
    save_file(tensors, str(tmp_path / "x"), metadata={"diffode": json.dumps({**description, "stopped_by": "luck"})})
    with pytest.raises(FileFormatError, match="stopped_by must be one of"):
        load_checkpoint(tmp_path / "x")


def test_a_trained_grid_is_read_back_and_runs_wherever_a_grid_does(files):
    field, file = diffode.exact_field("ring8", "edm"), files / "grid"
    stored = load_grid(file)
    assert (stored.steps, stored.method, stored.target, stored.stopped_by) == (3, "ld3", "ring8", "counts")
    x = field.prior(5, generator=0)
    expected = diffode.solve(field, x, solver=stored.solver, grid=stored.times).x
    for given in (f"trained:file={file}", grids.get(f"trained:file={file}", EDM, 3), grids.spec_of(stored.times)):
        how = {"nfe": 3} if str(given).startswith("trained") else {}
        torch.testing.assert_close(diffode.solve(field, x, solver=stored.solver, grid=given, **how).x, expected, rtol=0, atol=0)
    # On another path with the same levels it is the same grid in rho.
    vp = paths.get("vp")
    vp = paths.get("vp", t_max=vp.time_from_rho(80.0), t_min=vp.time_from_rho(0.002))
    rho = torch.tensor([vp.rho(t) for t in grids.get(f"trained:file={file}", vp, 3).tolist()], dtype=torch.float64)
    torch.testing.assert_close(rho, stored.levels, rtol=1e-9, atol=0)
    with pytest.raises(BudgetError, match="trained for 3 steps, not for 5"):
        diffode.solve(field, x, solver="ddim", grid=f"trained:file={file}", nfe=5)
    with pytest.raises(ArgumentError, match=r"first noise level 80, path 'vp' has 152"):
        grids.get(f"trained:file={file}", paths.get("vp"), 3)
    with pytest.raises(ArgumentError, match="needs file="):
        grids.get("trained", EDM, 3)
    with pytest.raises(ArgumentError, match="no such file"):
        grids.get("trained:file=nowhere", EDM, 3)
    with pytest.raises(ArgumentError, match="can't be written"):
        stored.save(files / "no" / "where")


def test_its_error_is_that_of_its_solver_on_starts_not_trained_on(files):
    stored, field = load_grid(files / "grid"), diffode.exact_field("ring8", "edm")
    x = EDM.prior((2000, 2), generator=5)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    error = (diffode.solve(field, x, solver=stored.solver, grid=stored.times).x - exact).norm(dim=1).mean() / field.scale
    assert stored.held_out_error == pytest.approx(float(error), rel=0.15)


def test_levels_that_are_no_grid_are_refused():
    good = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    for wrong, match in (
        (good.float(), "float64"), ([3.0, 1.0], "float64"), (good[:1], "1 to 10000 steps"), (good[None], "float64"),
        (good.flip(0), "decrease"), (good - 1, "must lie in"), (good * torch.nan, "must lie in"), (good * 1e30, "must lie in"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            TrainedGrid(levels=wrong, method="ld3", solver="ddim", **FACTS)


def test_a_study_runs_a_trained_grid_and_runs_it_anew_when_its_file_changes(files, tmp_path):
    file = tmp_path / "own.safetensors"
    cell = Cell("ring8", "edm", 0, f"trained:file={file}", "ddim", 3, 16, "float64", ("endpoint",), 1e-6)
    seen = []
    good = load_grid(files / "grid")
    moved = torch.cat([good.levels[:1], good.levels[1:-1] * 1.2, good.levels[-1:]])
    for levels in (good.levels, moved):
        TrainedGrid(levels=levels, method="ld3", solver="ddim", **FACTS).save(file)
        result = compute("k", cell)
        assert result.status == "ok", result.reason
        seen.append((cell_key(cell), result.measurements[0].value))
    assert len({key for key, _ in seen}) == len({value for _, value in seen}) == 2


def test_decoupled_levels_are_stored_as_every_trained_table_is(tmp_path):
    found = train_decoupled("ring8", 3, points=32)
    found.save(tmp_path / "table")
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    run = diffode.solve(field, x, solver=f"bespoke:file={tmp_path / 'table'}", nfe=3).x
    expected = diffode.learned.ld3_decoupled(field, 3, points=32).tableau(EDM, times=(80.0, 0.002)).run(field, x)
    torch.testing.assert_close(run, expected, rtol=1e-9, atol=1e-9)
    assert found.errors.after < found.errors.before
    assert found.facts.begun_from == "dpmpp:order=2 @ log_snr"


def test_times_written_as_a_text_are_read_back_to_the_last_digit():
    times = grids.get("karras", EDM, 7)
    assert torch.equal(grids.get(grids.spec_of(times), EDM, 7), times)
    assert grids.spec_of(grids.spec_of(times)) == grids.spec_of(times)
    for wrong in ("times", "times ", "times 80 x", "times 1", "times 1 2", "times nan 1"):
        with pytest.raises(ArgumentError):
            grids.get(wrong, EDM, 3)


def test_every_loader_stands_where_its_maker_does():
    for name in ("load_amed", "load_checkpoint", "load_conditioned", "load_grid", "load"):
        assert name in diffode.learned.__all__
