"""Trials of calls other than ``solve``: views, references, likelihoods, metrics, grids, specs, propagation, growth, tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffode import grids, metrics, solvers
from trials import runs
from trials.draw import Code, Draw, arguments, made
from trials.trial import Names, Trial

VIEWS = ("velocity", "noise", "denoised", "score", "log_prob", "divergence")


def call(draw: Draw) -> Trial:
    """A program that leaves ``answer``, whose numbers must all be finite."""
    kind = draw.pick((views, views, references, likelihood, metric, grid, spec, propagation, growth, stored))
    return kind(draw)


def views(draw: Draw) -> Trial:
    """A view at random times, one for all rows or one for each."""
    dim, count, rows = runs.sizes(draw, 20_000)
    lines = problem(draw, dim, count)
    dtype = draw.pick(("torch.float64", "torch.float32"))
    share = repr(draw.pick((0.0, 1.0, draw.real(0, 1))))
    t: Code = f"path.t_min + {share} * (path.t_max - path.t_min)"
    lines += [f"t = {t}", f"x = field.marginal({rows}, t, generator={draw.seed()}, dtype={dtype})"]
    if draw.chance(0.1):
        lines.append(f"x = x * {draw.pick(('1e3', '1e12', '0.0') if 'float32' in dtype else ('1e3', '1e12', '1e30', '0.0'))}")
    if draw.chance(0.5):
        lines.append(f"t = torch.full((len(x),), t, dtype={draw.pick(('torch.float64', 'torch.float32'))})")
        if draw.chance(0.1):
            lines.append(f"t = {draw.pick(('t[:-1]', 't * torch.nan', '-t', 't[:, None]', 't.long()', 't * 1e9'))}")
    elif draw.chance(0.1):
        lines.append(f"t = {draw.odd('t', 1.0)}")
    lines.append(f"answer = field.{draw.pick(VIEWS)}(x, t)")
    return Trial("\n".join(lines) + "\n", numbers)


def references(draw: Draw) -> Trial:
    dim, count, rows = runs.sizes(draw, 400)
    lines = [*problem(draw, dim, count), f"x = field.prior({rows}, generator={draw.seed()})"]
    start, stop = draw.odd("path.t_max", 0.1), draw.odd(draw.pick(("path.t_min", "path.t_min", "path.t_max / 2", "0.0")), 0.1)
    tolerance = draw.odd(draw.pick(("1e-4", "1e-6", "1e-9")), 0.1)
    lines.append(f"answer = diffode.reference(field, x, {start}, {stop}, {tolerance}, use_cache={draw.chance(0.3)})")
    return Trial("\n".join(lines) + "\n", numbers)


def likelihood(draw: Draw) -> Trial:
    dim, count, rows = draw.integer(1, 3), draw.integer(1, 4), draw.integer(0, 4)
    lines = [*problem(draw, dim, count), f"x = field.marginal({rows}, path.t_min, generator={draw.seed()})"]
    given: dict[str, Code] = {"tolerance": draw.odd("1e-5", 0.1)}
    if draw.chance(0.4):
        given["t"] = draw.odd(draw.pick(("path.t_min", "path.t_max", "path.t_max / 2", "0.0")), 0.1)
    if draw.chance(0.4):
        given |= {"divergence": "'hutchinson'", "probes": draw.odd("2", 0.1), "generator": draw.odd("0", 0.1)}
    lines.append(f"answer = verify.log_likelihood(field, x, {arguments(given)})")
    return Trial("\n".join(lines) + "\n", numbers)


def metric(draw: Draw) -> Trial:
    dim, count, rows = draw.integer(1, 4), draw.integer(1, 5), draw.integer(0, 40)
    lines = [*problem(draw, dim, count), f"x = field.prior({rows}, generator={draw.seed()})"]
    lines.append("solution = diffode.solve(field, x, solver='ddim', nfe=5)")
    lines.append("outcome = metrics.Outcome(field, x, solution, tolerance=1e-5)")
    while not (code := made(draw, metrics.registry, "metrics.measure")).startswith("'"):
        continue
    lines.append(f"answer = metrics.measure({code}, outcome)")
    return Trial("\n".join(lines) + "\n", numbers)


def grid(draw: Draw) -> Trial:
    code = made(draw, grids.registry, "grids.get", absurd=0.1)
    code = code if code.startswith("'") else "'karras:rho=3.0'"
    given = {"path": "path", "steps": draw.odd(str(draw.integer(1, 200)), 0.1)}
    program = f"path = paths.get({runs.path_code(draw)})\nanswer = grids.get({code}, {arguments(given)})\n"
    return Trial(program, falling)


def spec(draw: Draw) -> Trial:
    """A spec of random pieces through a random registry."""
    pieces = [
        ":",
        ",",
        "=",
        "order",
        "2",
        "-1",
        "nan",
        "1e999",
        "é",
        " ",
        "\\x00",
        "dpmpp",
        "edm",
        "karras",
        "3+3+2",
        "none",
        "'",
        "*",
    ]
    text = "".join(draw.pick(pieces) for _ in range(draw.integer(0, 9)))
    place = draw.pick(("solvers.get", "paths.get", "targets.get", "diffode.grids.spec_of", "diffode.specs.parse_spec"))
    return Trial(f'import diffode.specs\nanswer = {place}("{text}")\n', lambda names: ())


def propagation(draw: Draw) -> Trial:
    solver = made(draw, solvers.registry, "solvers.get", absurd=0.01)
    lines = [f"path = paths.get({runs.path_code(draw)})"]
    lines.append(f"table = solvers.get({solver}).tableau(path, {runs.grid_code(draw)}, {draw.integer(1, 20)})")
    variance = draw.odd(repr([draw.log_real(1e-12, 1e12) for _ in range(draw.integer(1, 4))]), 0.1)
    lines.append(f"answer = table.propagate({draw.odd(repr(draw.real(-9, 9)), 0.1)}, {variance})")
    return Trial("\n".join(lines) + "\n", numbers)


def growth(draw: Draw) -> Trial:
    solver = made(draw, solvers.registry, "solvers.get", absurd=0.01)
    step, kappa = draw.odd(repr(draw.log_real(0.2, 5)), 0.1), draw.odd(repr([0.0, draw.real(0, 1)]), 0.1)
    # An infinite growth factor is an answer.
    return Trial(f"answer = verify.growth({solver}, {step}, {kappa})\n", lambda names: no_nan(names["answer"]))


def stored(draw: Draw) -> Trial:
    """A table that is saved and loaded gives the same run."""
    solver = made(draw, solvers.registry, "solvers.get", absurd=0.01)
    lines = [f"path = paths.get({runs.path_code(draw)})"]
    lines.append(f"table = solvers.get({solver}).tableau(path, {runs.grid_code(draw)}, {draw.integer(1, 12)})")
    lines.append("table.save('stored.safetensors')")
    lines.append("again = diffode.Tableau.load('stored.safetensors')")
    return Trial("\n".join(lines) + "\n", same_table)


def problem(draw: Draw, dim: int, count: int) -> list[Code]:
    """Lines that make a target, a path and the exact field."""
    return [
        f"target = {runs.mixture_code(draw, dim, count)}",
        f"path = paths.get({runs.path_code(draw)})",
        "field = diffode.exact_field(target, path)",
    ]


def numbers(names: Names) -> Iterator[str]:
    """Every number of the answer is finite, if those that were given are."""
    if "x" in names and not bool(torch.isfinite(names["x"]).all()):
        return
    for where, value in parts(names["answer"]):
        if not bool(torch.isfinite(torch.as_tensor(value)).all()):
            yield f"silent non-finite values in {where}: {str(value)[:120]}"


def no_nan(answer: Tensor) -> Iterator[str]:
    if bool(torch.isnan(answer).any()):
        yield f"silent NaN: {answer.tolist()}"


def falling(names: Names) -> Iterator[str]:
    times = names["answer"]
    if times.dtype != torch.float64 or not bool(torch.isfinite(times).all()) or not bool((times.diff() < 0).all()):
        yield f"times: {times}"


def same_table(names: Names) -> Iterator[str]:
    one, other = names["table"], names["again"]
    same = one.rows == other.rows and one.outputs == other.outputs and one.path == other.path and one.solver == other.solver
    if not same or one.prediction != other.prediction or one.spans != other.spans:
        yield "a table is another one after it was stored"


def parts(answer: Any, where: str = "answer") -> Iterator[tuple[str, Any]]:
    """The numbers in an answer, with their names."""
    if isinstance(answer, Tensor | float):
        yield where, answer
    elif dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        for entry in dataclasses.fields(answer):
            yield from parts(getattr(answer, entry.name), f"{where}.{entry.name}")
    elif isinstance(answer, Mapping):
        for key, value in answer.items():
            yield from parts(value, f"{where}[{key!r}]")
    elif isinstance(answer, tuple | list):
        for number, value in enumerate(answer):
            yield from parts(value, f"{where}[{number}]")
    elif isinstance(answer, complex) or (isinstance(answer, int) and not math.isfinite(answer)):
        yield where, math.nan
