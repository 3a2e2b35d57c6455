"""Tables as text for other programs: each form, run without diffode, makes the run of the table."""

import ast
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import diffode as command

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError
from diffode.fields import conversion

SPECS = [
    "dpmpp:order=2", "exponential_rk:method=hochbruck_ostermann_4", "unipc:order=3", "lms:order=4", "euler_ancestral",
    "dpmpp_sde", "heun", "restart:low=0.5,high=5",
]  # fmt: skip
FIELD = diffode.exact_field("ring8", "edm")
DISCRETE = "ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012"


def loaded(text):
    """The names that a text of Python defines."""
    names = {}
    exec(compile(text, "written", "exec"), names)
    return names


def table_of(spec, path="edm", nfe=16):
    return solvers.table_solver(spec).within(path, "karras", nfe)


def noise_for(table, x):
    return torch.randn(max(table.draws, 1), *x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)


@pytest.mark.parametrize("spec", SPECS)
def test_the_python_function_makes_the_run_of_the_table(spec):
    """To 1e-12 of the states' size."""
    table, x = table_of(spec), FIELD.prior(5, generator=0)
    noise = noise_for(table, x)
    sample = loaded(table.written("python"))["sample"]
    calls = []

    def predict(state, t):
        calls.append(t)
        return FIELD.predict(table.prediction, state, t)

    found = sample(predict, x, *([noise.__getitem__] if table.draws else []))
    torch.testing.assert_close(found, table.run(FIELD, x, noise=noise if table.draws else None), rtol=1e-12, atol=1e-12)
    assert calls == [float(table.rows[j].time) for j in table.evaluated]


def test_the_python_function_takes_numbers_and_has_ten_lines():
    text = table_of("dpmpp:order=2").written("python")
    sample = loaded(text)["sample"]
    # The denoiser of N(0, 1), whose flow is x/sqrt(1 + sigma^2) times a constant.
    end = sample(lambda x, t: x / (1 + t**2), 80.0)
    assert end == pytest.approx(80 * math.sqrt((1 + 0.002**2) / (1 + 80**2)), rel=0.2)
    assert len(text.partition("def sample")[2].strip().splitlines()) == 10
    assert "import" not in text


def test_the_python_function_runs_where_diffode_is_not(tmp_path):
    (tmp_path / "sampler.py").write_text(table_of("heun").written("python"))
    program = (
        "import sys; sys.path.insert(0, '.'); import sampler; print(sampler.sample(lambda x, t: x / t, 2.0)); "
        "assert not {'diffode', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, text=True, capture_output=True, check=True)
    # The velocity x/t has the flow x(t) proportional to t.
    assert float(done.stdout) == pytest.approx(2 * 0.002 / 80, rel=1e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_the_json_says_all_that_a_run_needs(spec):
    table, x = table_of(spec, "vp"), diffode.exact_field("ring8", "vp").prior(5, generator=0)
    field, noise = diffode.exact_field("ring8", "vp"), noise_for(table, x)
    said = json.loads(table.written("json"))
    assert (said["schema"], said["solver"], said["path"], said["nfe"]) == (
        "diffode-plain-table-1", table.solver, paths.get("vp").spec, table.nfe,
    )  # fmt: skip
    states, answers = [x], {}
    for row in said["rows"][1:]:
        for j, _ in row["predictions"]:
            if j not in answers:
                # Denoised points by the row's own alpha and sigma, turned into the prediction that the table asks for.
                at = said["rows"][j]
                of_x, of_d = conversion(field.path, "denoised", said["prediction"], at["time"])
                assert at["alpha"] ** 2 + at["sigma"] ** 2 == pytest.approx(1, rel=1e-12)
                answers[j] = of_x * states[j] + of_d * field.denoised(states[j], at["time"])
        total = sum(v * states[j] for j, v in row["states"]) + sum(v * answers[j] for j, v in row["predictions"])
        states.append(total + sum(v * noise[k] for k, v in row["noise"]))
    found, expected = states[said["outputs"][-1]], table.run(field, x, noise=noise if table.draws else None)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spec", ["dpmpp:order=2", "unipc:order=3", "lms:order=4", "euler_ancestral", "exponential_rk"])
def test_the_scheduler_makes_the_run_of_the_table_in_diffusers_loop(spec, kind):
    pytest.importorskip("diffusers")
    field = diffode.exact_field("ring8", DISCRETE)
    table, x = table_of(spec, DISCRETE, 8), field.prior(5, generator=0)
    names = loaded(table.written("diffusers"))
    scheduler = names["Table"](prediction_type=kind)
    scheduler.set_timesteps(table.nfe)
    # Timesteps are tensors in float32; the labels are what they round.
    labels = [names["ROWS"][j][0] for j in names["CALLED"]]
    assert scheduler.timesteps.tolist() == pytest.approx(labels, rel=1e-6)
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    noise = torch.stack([torch.randn(x.shape, generator=draws[0], dtype=x.dtype) for _ in range(max(table.draws, 1))])
    for _ in range(2):
        state, generator = x * scheduler.init_noise_sigma, torch.Generator().manual_seed(7)
        for label, timestep in zip(labels, scheduler.timesteps, strict=True):
            t = label + 1
            alpha, sigma = field.path.alpha(t), field.path.sigma(t)
            denoised, eps = field.denoised(state, t), field.noise(state, t)
            answer = {"epsilon": eps, "sample": denoised, "v_prediction": alpha * eps - sigma * denoised}[kind]
            state = scheduler.step(
                answer, timestep, scheduler.scale_model_input(state, timestep), generator=generator
            ).prev_sample
        expected = table.run(field, x, noise=noise if table.draws else None)
        torch.testing.assert_close(state, expected, rtol=1e-11, atol=1e-12)


def test_the_scheduler_of_a_flow_matching_model_and_its_refusals():
    pytest.importorskip("diffusers")
    path = "rectified_flow:t_max=0.99"
    field = diffode.exact_field("ring8", path)
    table, x = table_of("dpmpp:order=2", path, 8), field.prior(5, generator=0)
    scheduler = loaded(table.written("diffusers"))["Table"]()
    state = x
    for timestep in scheduler.timesteps:
        state = scheduler.step(field.velocity(state, float(timestep) / 1000), timestep, state, return_dict=False)[0]
    torch.testing.assert_close(state, table.run(field, x), rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="this table has 8 calls: num_inference_steps=8"):
        scheduler.set_timesteps(20)
    with pytest.raises(ArgumentError, match="the form diffusers needs a table of noise or denoised predictions"):
        table_of("heun", path).written("diffusers")
    with pytest.raises(ArgumentError, match="on vp"):
        table_of("dpmpp:order=2", "vp").written("diffusers")
    with pytest.raises(ArgumentError, match="form must be one of python, json, diffusers, got 'yaml'"):
        table.written("yaml")


def retrieve_timesteps():
    """The function of that name of diffusers' Flux pipeline, whose module needs transformers, which the function does not."""
    file = Path(pytest.importorskip("diffusers").__file__).parent / "pipelines/flux/pipeline_flux.py"
    parts = [part for part in ast.parse(file.read_text()).body if getattr(part, "name", "") == "retrieve_timesteps"]
    names = {"inspect": inspect, "torch": torch}
    exec(compile(ast.Module(parts, []), "pipeline_flux", "exec"), names)
    return names["retrieve_timesteps"]


@pytest.mark.parametrize(
    ("path", "keywords"),
    [
        ("rectified_flow", {"sigmas": np.linspace(1, 1 / 8, 8), "mu": 1.1}),
        ("rectified_flow", {"sigmas": np.linspace(1, 1 / 8, 8).tolist()}),
        ("rectified_flow", {"num_inference_steps": 8, "mu": 0.7}),
        ("rectified_flow", {"timesteps": torch.linspace(1000, 125, 8)}),
        (DISCRETE, {"timesteps": list(range(999, 0, -125))}),
        (DISCRETE, {"num_inference_steps": 8}),
    ],
)
def test_the_scheduler_takes_what_pipelines_give_and_keeps_its_own_levels(path, keywords):
    """Flux, Qwen and Wan ask with sigmas and mu, and set the first index to 0."""
    retrieve = retrieve_timesteps()
    table = table_of("ipndm:order=3" if path == "rectified_flow" else "dpmpp:order=2", path, 8)
    scheduler = loaded(table.written("diffusers"))["Table"]()
    own = scheduler.timesteps.clone()
    assert scheduler.begin_index is None
    found, count = retrieve(scheduler, device="cpu", **keywords)
    scheduler.set_begin_index(0)
    assert (count, scheduler.begin_index) == (8, 0)
    assert torch.equal(found, own)
    # Levels as diffusers' schedulers have them: the flow time, or the noise level, at each call and at the end.
    times = [float(table.rows[j].time) for j in (*table.evaluated, table.outputs[-1])]
    levels = [t if path == "rectified_flow" else table.path.rho(t) for t in times]
    assert scheduler.sigmas.tolist() == pytest.approx(levels, rel=1e-6)


def test_the_scheduler_refuses_another_number_of_levels_and_a_later_start():
    pytest.importorskip("diffusers")
    scheduler = loaded(table_of("ipndm:order=3", "rectified_flow", 8).written("diffusers"))["Table"]()
    for keywords, said in [
        ({"sigmas": np.linspace(1, 0.05, 20)}, "20 sigmas"),
        ({"timesteps": [999, 500]}, "2 timesteps"),
        ({"num_inference_steps": 4}, "num_inference_steps=4"),
        ({"num_inference_steps": 8, "sigmas": [1.0, 0.5]}, "2 sigmas"),
    ]:
        with pytest.raises(ValueError, match=f"^this table has 8 calls: num_inference_steps=8, not {said}$"):
            scheduler.set_timesteps(**keywords)
    with pytest.raises(ValueError, match="starts at its first level alone: begin_index=0"):
        scheduler.set_begin_index(3)
    for start in (scheduler.add_noise, scheduler.scale_noise):
        with pytest.raises(NotImplementedError, match="starts at its first level alone"):
            start(torch.zeros(1, 2), torch.zeros(1, 2), scheduler.timesteps[:1])


def test_the_command_writes_a_file_or_the_terminal(tmp_path):
    done = command("export", "dpmpp:order=2", "--as", "python", "--nfe", 6, "--file", "sampler.py", cwd=tmp_path)
    assert done.stdout == "6 evaluations: sampler.py\n"
    text = table_of("dpmpp:order=2", nfe=6).written("python", solver="dpmpp:order=2", grid="karras")
    assert (tmp_path / "sampler.py").read_text() == text
    assert command("export", "dpmpp:order=2", "--as", "python", "--nfe", 6, cwd=tmp_path).stdout == text
    listed = command("export", "euler", "--as", "json", "--grid", "80,1,0.1", cwd=tmp_path)
    assert json.loads(listed.stdout)["nfe"] == 2
    assert "go with --as" in command("export", "--nfe", 5, cwd=tmp_path, code=2).stderr
    assert "write stored results" in command("export", "euler", "--as", "json", "--csv", "a", cwd=tmp_path, code=2).stderr
    assert "diffode export SPEC --as python" in command("export", "--as", "json", cwd=tmp_path, code=2).stderr
    assert "has no tableau" in command("export", "rk_adaptive", "--as", "json", cwd=tmp_path, code=2).stderr
    given = ("export", "unipc:order=3", "--as", "python", "--grid", "80,5,.002")
    refused = command(*given, "--nfe", 8, cwd=tmp_path, code=2).stderr
    for part in ("--nfe 8 goes with a named grid", "--grid 80,5,.002 lists its own times", "makes 2 evaluations"):
        assert part in refused
    assert command(*given, "--nfe", 2, cwd=tmp_path).stdout == command(*given, cwd=tmp_path).stdout


@pytest.mark.parametrize("form", ["python", "diffusers"])
def test_the_title_names_solver_path_and_grid(form):
    path = "rectified_flow:t_max=0.99"
    table = solvers.table_solver("unipc:order=3").within(path, "karras", 1)
    first = "{solver} on path rectified_flow:t_max=0.99{grid}: 1 evaluation."
    for named in ({"solver": "unipc:order=3", "grid": "karras"}, {"grid": "0.9,0.1"}, {}):
        title = table.written(form, **named).splitlines()[0].removeprefix('"""')
        grid = f", grid {named['grid']}" if "grid" in named else ""
        assert title == first.format(solver=named.get("solver", table.solver), grid=grid)
    # A title is within quotes of Python, and a file's name may hold any of its signs.
    odd = 'trained:file="C:\\new\\x"""'
    text = table.written("python", solver=odd)
    assert ast.get_docstring(ast.parse(text)).startswith(f"{odd} on path")


@pytest.mark.parametrize("spec", ["universal:chart=gaussian", "heun:jump=3,chart=noise"])
def test_a_table_with_directions_says_what_to_do_instead(spec, tmp_path):
    said = r"can't be written as text.*no jump, no chart=gaussian.*\.informed\(solver, statistics\).*\.save\(file\)"
    table = solvers.informed(spec, diffode.Statistics.of_target("gauss2d")).within("edm", "karras", 8)
    for form in ("python", "json", "diffusers"):
        with pytest.raises(ArgumentError, match=said):
            table.written(form)
    refused = command("export", spec, "--as", "json", cwd=tmp_path, code=2).stderr
    assert re.search(said, refused)
    assert "statistics=)" not in refused
    # What is advised works.
    table.save(tmp_path / "kept.safetensors")
    field = diffode.exact_field("gauss2d", "edm")
    x = field.prior(3, generator=0)
    assert torch.equal(diffode.tableau.Tableau.load(tmp_path / "kept.safetensors").run(field, x), table.run(field, x))
