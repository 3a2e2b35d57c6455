"""Trials of runs: random mixtures, paths, grids, solvers and options through ``diffode.solve``, and what has to hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import diffode
from diffode import grids, paths, solvers
from diffode.solvers import Solution
from diffode.solvers.direct import DirectSolver
from trials.calls import call
from trials.draw import ABSURD, Code, Draw, arguments, made
from trials.mixtures import KINDS, NASTY
from trials.trial import Names, Trial

#: Most numbers (rows, coordinates and components multiplied) of a run, and of one through another library's integrator, which
#: may solve with matrices of the whole batch.
_MOST_WORK, _MOST_FOREIGN = 20_000, 60
#: What an integrator of another library may ask of a field in a trial.
_MOST_EVALUATIONS = 3000
#: A row alone may differ from the same row in its batch by rounding that the flow makes grow, relative to the row or the scale.
_SAME = {torch.float64: 1e-6, torch.float32: 1e-2}


def trial(draw: Draw) -> Trial:
    """A run, or now and then another call."""
    return call(draw) if draw.chance(0.2) else run(draw)


def run(draw: Draw) -> Trial:
    """A program that calls ``diffode.solve`` with everything at random."""
    solver = bounded(made(draw, solvers.registry, "solvers.get"))
    foreign = any(library in solver for library in ("scipy:", "torchdiffeq:", "torchsde:"))
    dim, count, rows = sizes(draw, _MOST_FOREIGN if foreign else _MOST_WORK)
    lines = [
        f"target = {mixture_code(draw, dim, count)}",
        f"path = paths.get({path_code(draw)})",
        f"field = {field_code(draw)}",
    ]
    dtype = draw.pick(("torch.float64", "torch.float32"))
    lines.append(f"x = {start_code(draw, dim, rows, dtype)}")
    given = {"solver": solver, **time_codes(draw, budgeted(solver)), **noise_codes(draw, rows)}
    for key, choices, share in (
        ("keep", ("'all'", "'last'"), 0.4),
        ("on_failure", ("'return'", "'raise'"), 0.6),
        ("upwards", ("True", "False"), 0.12),
        ("between", ("(path.t_max / 2, path.t_min)", "(path.t_max, path.t_max / 3)", "(0.5, 0.7)"), 0.08),
        ("progress", ("lambda done, total: None",), 0.05),
    ):
        if draw.chance(share):
            given[key] = draw.odd(draw.pick(choices), 0.02)
    lines.append(f"arguments = dict({arguments(given)})")
    if "generator" not in given and draw.chance(0.15):
        lines.append(f"arguments['noise'] = fitting_noise(field, x, arguments, {draw.seed()})")
    lines.append("before = field.nfe")
    lines.append("solution = diffode.solve(field, x, **arguments)")
    return Trial("\n".join(lines) + "\n", look)


def bounded(solver: Code) -> Code:
    """Another library's integrator that ends within the processor time of a trial: ten thousand evaluations are no hang."""
    theirs = any(library in solver for library in ("scipy:", "torchdiffeq:")) and "max_evaluations" not in solver
    if not theirs or solver[-1] not in "')":
        return solver
    comma = ", " if solver[-1] == ")" else ","
    return f"{solver[:-1]}{comma}max_evaluations={_MOST_EVALUATIONS}{solver[-1]}"


def sizes(draw: Draw, most: int) -> tuple[int, int, int]:
    """Coordinates, components and rows whose product is bearable."""
    dim, count, rows = draw.integer(1, 64), draw.integer(1, 20), draw.integer(0, 50)
    while dim * count * rows > most:
        dim, count, rows = (dim + 1) // 2, (count + 1) // 2, (rows + 1) // 2
    return dim, count, rows


def mixture_code(draw: Draw, dim: int, count: int) -> Code:
    given = {
        "scale": repr(draw.pick((1.0, 1.0, 1.0, 1e-9, 1e9, draw.log_real(1e-9, 1e9)))),
        "offset": repr(draw.pick((0.0, 0.0, 1.0, 1e3, 1e6))),
        "spread": repr(draw.pick((0.0, 1.0, 5.0, 5.0, 1e4))),
        "tilt": repr(draw.pick((0.0, 1.0, 20.0))),
    }
    return f"mixture({draw.seed()}, {draw.pick(KINDS)!r}, {dim}, {count}, {arguments(given)})"


def path_code(draw: Draw) -> Code:
    """The argument of ``paths.get``: a spec, or a path that is given by a table or functions."""
    if draw.chance(0.8):
        return made(draw, paths.registry, "paths.get", absurd=0.02)
    if draw.chance(0.5):
        levels = draw.integer(2, 60)
        return f"paths.Tabulated(np.cumprod(np.random.default_rng({draw.seed()}).uniform({draw.real(0.3, 0.99)}, 1, {levels})))"
    functions = draw.pick((
        "lambda t: 1 - t, lambda t: t", "lambda t: torch.cos(t), lambda t: torch.sin(t)", "lambda t: 1 - t**2, lambda t: t**2",
        "lambda t: 1.0, lambda t: t**3", "lambda t: t, lambda t: 1 - t", "lambda t: torch.exp(-t), lambda t: t.expm1()",
    ))  # fmt: skip
    ends = {"t_min": draw.odd(repr(draw.log_real(1e-5, 0.1))), "t_max": draw.odd(repr(draw.real(0.5, 0.999)))}
    return f"paths.FunctionPath({functions}, {arguments(ends)})"


def field_code(draw: Draw) -> Code:
    """The exact field, the same known through one view alone, a plain ODE, or one that breaks its contract."""
    exact = "diffode.exact_field(target, path)"
    if draw.chance(0.75):
        return exact
    if draw.chance(0.7):
        view = draw.pick(("velocity", "noise", "denoised", "score"))
        return f"diffode.Field.from_{view}({exact}.{view}, path=path, scale=target.scale)"
    if draw.chance(0.4):
        return "diffode.Field.from_velocity(lambda x, t: -x)"
    return f"nasty({draw.pick(NASTY)!r}, path)"


def start_code(draw: Draw, dim: int, rows: int, dtype: Code) -> Code:
    if draw.chance(0.03):
        return draw.pick((
            "[[1.0]]", "torch.ones(3)", "torch.ones(2, 2, dtype=torch.int64)", "np.ones((2, 2))", "None",
            "torch.full((2, 2), torch.nan)", "torch.ones(2, 0)", "torch.ones(2, 2, dtype=torch.float16)",
        ))  # fmt: skip
    shape = (rows, dim + (draw.pick((-1, 1)) if draw.chance(0.01) else 0))
    code = f"path.prior({shape}, generator={draw.seed()}, dtype={dtype})"
    if draw.chance(0.4):
        code = f"diffode.exact_field(target, path).prior({rows}, generator={draw.seed()}, dtype={dtype})"
    if draw.chance(0.05):
        code = f"({code}{draw.pick((' * 1e30', ' * 0', ' * 1e-30', ' + 1e6'))})"
    if dim % 2 == 0 and shape[1] == dim and draw.chance(0.1):
        code += f".reshape({rows}, 1, 2, {dim // 2})"
    return code


def budgeted(solver: Code) -> bool:
    """Whether a solver may take a budget: those that follow the field themselves mostly do not."""
    makers = {name: solvers.registry.entry(name).make for name in solvers.names()}
    direct = [name for name, make in makers.items() if isinstance(make, type) and issubclass(make, DirectSolver)]
    return not any(f"'{name}" in solver for name in direct)


def time_codes(draw: Draw, budget_taken: bool) -> dict[str, Code]:
    """grid, steps and nfe: mostly a grid by name with a small budget, sometimes times, sometimes nonsense."""
    budget = draw.odd(str(draw.integer(1, 30)), 0.05)
    chosen = draw.pick(("nfe", "nfe", "named nfe", "named steps", "named steps", "times", "times", "nonsense"))
    if "nfe" in chosen and not budget_taken and draw.chance(0.9):
        chosen = "named steps"
    if chosen == "nfe":
        return {"nfe": budget}
    if chosen.startswith("named"):
        return {"grid": grid_code(draw), chosen[6:]: budget}
    if chosen == "times":
        return {"grid": times_code(draw)}
    return {
        key: draw.pick(ABSURD) if draw.chance(0.6) else code
        for key, code in (("grid", grid_code(draw)), ("steps", budget), ("nfe", budget))
        if draw.chance(0.6)
    }


def grid_code(draw: Draw) -> Code:
    """A grid's spec: grids have no objects that a user makes."""
    while not (code := made(draw, grids.registry, "grids.get", absurd=0.02)).startswith("'"):
        continue
    return code


def times_code(draw: Draw) -> Code:
    """Explicit times: falling ones on the path, and others that are none."""
    count = draw.integer(2, 20)
    falling = draw.pick((
        f"np.linspace(path.t_max, path.t_min, {count})",
        f"np.geomspace(path.t_max, max(path.t_min, 1e-6), {count}).tolist()",
        f"[path.t_max, *np.sort(np.random.default_rng({draw.seed()}).uniform(path.t_min, path.t_max, {count}))[::-1]]",
        "[path.t_max, path.t_min]",
        "[path.t_max, (path.t_min + path.t_max) / 2, path.t_min, 0.0]",
    ))  # fmt: skip
    if draw.chance(0.85):
        return falling
    return draw.pick((
        f"torch.tensor({falling}).flip(0)", "[path.t_max]", "[]", "[path.t_max, path.t_max]", "[math.nan, path.t_min]",
        "[math.inf, path.t_min]", "[2 * path.t_max, path.t_min]", "[path.t_max, -1.0]", "[[path.t_max, path.t_min]]",
        "['a', 'b']", "'times'", "[path.t_max, None]", "[path.t_max, path.t_max * (1 - 1e-16)]", "[path.t_max, 1e-320]",
        "[1e308, path.t_min]", "(t for t in [path.t_max, path.t_min])", "[path.t_max, 1j]", "{path.t_max, path.t_min}",
    ))  # fmt: skip


def noise_codes(draw: Draw, rows: int) -> dict[str, Code]:
    chosen = draw.pick(("seed", "seed", "seed", "none", "generator", "list", "odd"))
    if chosen == "none":
        return {}
    if chosen == "list":
        return {"generator": f"list(range({rows}))" if draw.chance(0.9) else f"list(range({rows + 1}))"}
    code = f"torch.Generator().manual_seed({draw.seed()})" if chosen == "generator" else str(draw.seed())
    return {"generator": draw.odd(code, 0.3 if chosen == "odd" else 0.0)}


def look(names: Names) -> Iterator[str]:
    """What has to hold of a solution."""
    solution, x, given, field = (names[key] for key in ("solution", "x", "arguments", "field"))
    yield from consistent(solution, x)
    if given.get("on_failure", "raise") == "raise" and not names.get("failed") and bool(solution.status.any()):
        yield f"status: {solution.status.tolist()} though failures raise"
    spent = field.nfe - names["before"]
    if not names.get("failed") and solution.nfe != spent:
        yield f"nfe: the solution says {solution.nfe}, the field counted {spent}"
    asked = given.get("nfe")
    if isinstance(asked, int) and solution.nfe > asked:
        yield f"nfe over the budget: {solution.nfe}, asked for {asked}"
    if not names.get("failed"):
        yield from alone(solution, names)


def consistent(solution: Solution, x: Tensor) -> Iterator[str]:
    """Shapes, status, states and times of a solution agree with each other and with the start."""
    if solution.x.shape != x.shape or solution.x.dtype != x.dtype:
        yield f"shape: {solution.x.dtype} {tuple(solution.x.shape)} from {x.dtype} {tuple(x.shape)}"
        return
    status = solution.status
    if status.shape != x.shape[:1] or not set(status.tolist()) <= {0, 1, 2}:
        yield f"status: {status!r} for {len(x)} rows"
        return
    finite = torch.isfinite(solution.x).flatten(1).all(1)
    if bool((~finite & (status != 1)).any()):
        yield f"silent non-finite rows: {torch.nonzero(~finite & (status != 1)).flatten().tolist()}"
    if bool((torch.isfinite(solution.x).flatten(1).any(1) & (status == 1)).any()):
        yield "status: a row is marked as not finite but is not NaN"
    if bool(status.any()) == solution.success or bool(status.any()) != bool(solution.message):
        yield f"message: {solution.message!r} with status {status.tolist()}"
    times = solution.times
    steps = times.diff()
    if times.dtype != torch.float64 or len(times) < 2 or not bool(torch.isfinite(times).all()):
        yield f"times: {times.tolist()}"
    elif not bool((steps < 0).all() or (steps > 0).all()):
        yield f"times not monotone: {times.tolist()}"
    if solution.states is not None:
        if solution.states.shape != (len(times), *x.shape) or solution.states.dtype != x.dtype:
            yield f"states: {solution.states.dtype} {tuple(solution.states.shape)} at {len(times)} times"
        elif not bool(torch.isfinite(solution.states[:, status == 0]).all()):
            yield "states not finite in a good row"
        elif not torch.equal(solution.states[-1][status == 0], solution.x[status == 0]):
            yield "states do not end where the solution does"


def alone(solution: Solution, names: Names) -> Iterator[str]:
    """A row runs alone as in its batch, if it draws no noise, or noise of its own."""
    x, given, field = names["x"], dict(names["arguments"]), names["field"]
    generator = given.get("generator")
    drawn = solution.tableau is None or solution.tableau.draws
    listed = isinstance(generator, list) and len(generator) == len(x)
    own_noise = listed or given.get("noise") is not None
    recipe = solvers.get(given["solver"])
    foreign = (
        ":" in recipe.spec.partition(",")[0]
        and solution.tableau is None
        and recipe.name in ("scipy", "torchdiffeq", "torchsde")
    )
    if len(x) < 2 or foreign or (drawn and recipe.stochastic and not own_noise) or isinstance(generator, torch.Generator):
        return
    row = len(x) // 2
    if listed:
        given["generator"] = [generator[row]]
    if given.get("noise") is not None:
        given["noise"] = given["noise"][:, row : row + 1]
    if solution.tableau is not None and solution.tableau.batch is not None:
        return
    given["on_failure"] = "return"
    single = diffode.solve(field, x[row : row + 1], **given)
    if int(single.status[0]) != int(solution.status[row]):
        yield f"alone: row {row} has status {int(single.status[0])} alone, {int(solution.status[row])} in the batch"
    elif int(single.status[0]) == 0:
        size = max(float(solution.x[row].abs().max()), getattr(field, "scale", 1.0))
        change = float((single.x[0] - solution.x[row]).abs().max()) / size
        if not change <= _SAME[x.dtype]:
            yield f"alone: row {row} differs from itself in the batch by {change:.1e}"
