"""Tables as text for other programs: a Python function without diffode, plain JSON, a scheduler class for diffusers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.tableau.rows import Row

if TYPE_CHECKING:
    from diffode.tableau.table import Tableau

Form = Literal["python", "json", "diffusers"]
#: The name of the form of :func:`as_json`, which changes if its keys do.
_SCHEMA = "diffode-plain-table-1"

_FUNCTION = '''"""{title}

Written by diffode; needs nothing. sample(predict, x) starts from x at time {first!r} and ends at time {last!r};
predict(x, t) gives the {prediction} of x at time t{levels}.{noise}
"""

# A row is (time, {{row: factor of its state}}, {{row: factor of its prediction}}, {{draw: factor of its noise}}).
ROWS = [
{rows}
]


def sample(predict, x{argument}):
    states, answers, noise = {{0: x}}, {{}}, {{}}
    for i, (_, of_states, of_answers, of_noise) in enumerate(ROWS[1:], start=1):
        for j in sorted(of_answers.keys() - answers.keys()):
            answers[j] = predict(states[j], ROWS[j][0])
        for k in sorted(of_noise.keys() - noise.keys()):
            noise[k] = draw(k)
        terms = [(of_states, states), (of_answers, answers), (of_noise, noise)]
        states[i] = sum(factor * values[j] for factors, values in terms for j, factor in factors.items())
    return states[{end}]
'''

_SCHEDULER = '''"""{title}

Written by diffode as a scheduler of diffusers: pipeline.scheduler = Table(), then num_inference_steps={nfe}, one call each.
The levels are the table's own: sigmas, timesteps and mu of a pipeline have no effect, and the first two must be as many.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

# A row is (timestep, alpha, sigma, {{row: factor of its state}}, {{row: of its {prediction}}}, {{draw: of its noise}}).
ROWS = [
{rows}
]
#: The rows at which the network is called, and the last row.
CALLED, END = {called}, {end}


class Table(SchedulerMixin, ConfigMixin):
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, prediction_type={view!r}, num_train_timesteps=1000):
        self.set_timesteps()

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None, **_):
        # A pipeline's sigmas, timesteps and mu lay other schedulers' levels; a table has its own, and their number is checked.
        given = [("sigmas", sigmas), ("timesteps", timesteps)]
        counts = [("num_inference_steps", num_inference_steps), *((name, len(v)) for name, v in given if v is not None)]
        for name, count in counts:
            if count not in (None, len(CALLED)):
                what = f"{{name}}={{count}}" if name == "num_inference_steps" else f"{{count}} {{name}}"
                raise ValueError(f"this table has {{len(CALLED)}} calls: num_inference_steps={{len(CALLED)}}, not {{what}}")
        self.num_inference_steps, self._begin_index = len(CALLED), None
        self.timesteps = torch.tensor([ROWS[j][0] for j in CALLED], device=device)
        self.sigmas = torch.tensor([ROWS[j][2]{level} for j in (*CALLED, END)], device=device)
        self.called, self.states, self.answers, self.noise = 0, {{}}, {{}}, {{}}

    @property
    def begin_index(self):
        return self._begin_index

    def set_begin_index(self, begin_index=0):
        if begin_index != 0:
            raise ValueError(f"this table starts at its first level alone: begin_index=0 (strength=1), not {{begin_index}}")
        self._begin_index = begin_index

    def scale_model_input(self, sample, timestep=None):
        return sample

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **_):
        row = CALLED[self.called]
        if self.called == 0:
            self.states, self.answers, self.noise = {{}}, {{}}, {{}}
        self.called += 1
        _, alpha, sigma, *_ = ROWS[row]
        x, answer = sample.to(torch.promote_types(sample.dtype, torch.float32)), model_output.to(sample.dtype)
        kind = self.config.prediction_type
        if kind == "epsilon":
            denoised, eps = (x - sigma * answer) / alpha, answer
        elif kind == "sample":
            denoised, eps = answer, (x - alpha * answer) / sigma
        elif kind == "v_prediction":
            denoised, eps = alpha * x - sigma * answer, sigma * x + alpha * answer
        elif kind == "flow_prediction":
            denoised, eps = x - sigma * answer, x + alpha * answer
        else:
            raise ValueError("prediction_type must be epsilon, sample, v_prediction or flow_prediction")
        self.states[row], self.answers[row] = x, {answer}
        stop = CALLED[self.called] if self.called < len(CALLED) else END
        for i in range(row + 1, stop + 1):
            *_, of_states, of_answers, of_noise = ROWS[i]
            for k in sorted(of_noise.keys() - self.noise.keys()):
                device = generator.device if generator else x.device
                self.noise[k] = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
            terms = [(of_states, self.states), (of_answers, self.answers), (of_noise, self.noise)]
            self.states[i] = sum(factor * values[j] for factors, values in terms for j, factor in factors.items())
        result = self.states[stop].to(sample.dtype)
        if self.called == len(CALLED):
            self.called = 0
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def add_noise(self, original_samples, noise, timesteps):
        raise NotImplementedError("this table starts at its first level alone: it can't start from a noised image")

    scale_noise = add_noise

    def __len__(self):
        return self.config.num_train_timesteps
'''


def written(table: Tableau, form: Form, *, solver: str = "", grid: str = "") -> str:
    """The text of a table in a form.

    Args:
        table: a table of plain numbers, the same for all rows of a batch.
        form: ``python``, a function ``sample(predict, x)`` that needs nothing; ``json``, the rows as plain data; ``diffusers``,
            a scheduler class that needs diffusers alone, of tables on a path of discrete levels (``ddpm``) or
            ``rectified_flow``.
        solver: the solver's spec as the title of the text names it; the table's own unless given, without usual options.
        grid: the grid's spec for that title, which a table does not know.

    Raises:
        ArgumentError: for another form, or a table that has no such form.

    >>> import diffode
    >>> table = diffode.solvers.table_solver("heun").tableau("edm", "karras", 1)
    >>> json.loads(written(table, "json"))["nfe"]
    2
    """
    table.one_for_all("a text")
    if table.directed:
        raise no_text_of(table.solver)
    title = _title(table, solver or table.solver, grid)
    if form == "json":
        return as_json(table)
    forms = {"python": as_python, "diffusers": as_diffusers}
    if form not in forms:
        raise ArgumentError(f"form must be one of python, json, diffusers, got {form!r:.40}")
    return forms[form](table, title)


def no_text_of(solver: str) -> ArgumentError:
    """The error for a solver whose table has coefficients for directions of the data, with what to do instead."""
    return ArgumentError(
        f"the table of solver {solver!r} can't be written as text: its coefficients differ between the directions of the "
        "data's covariance, for which texts have no place; write that of a solver that knows nothing of the data (no jump, no "
        "chart=gaussian), or, in Python, keep diffode.solvers.informed(solver, statistics).tableau(path, grid) with "
        ".save(file) and run it with diffode"
    )


def as_json(table: Tableau) -> str:
    """Rows as plain data, with alpha and sigma at each, and what is needed to run them."""
    rows = []
    for row in _used(table):
        time = _number(row.time)
        of_path = (
            {} if table.path is None else {"alpha": _number(table.path.alpha(time)), "sigma": _number(table.path.sigma(time))}
        )
        terms = {
            "states": [[j, _number(v)] for j, v in row.states.items()],
            "predictions": [[j, _number(v)] for j, v in row.evaluations.items()],
            "noise": [[k, _number(v)] for k, v in row.draws.items()],
        }
        rows.append({"time": time, **of_path, **terms})
    whole = {
        "schema": _SCHEMA,
        "meaning": "x_i = sum states x_j + sum predictions m_j + sum noise xi_k; m_j is the prediction at (x_j, time_j)",
        "solver": table.solver,
        "path": table.path.spec if table.path else None,
        "prediction": table.prediction,
        "nfe": table.nfe,
        "outputs": list(table.outputs),
        "rows": rows,
    }
    return json.dumps(whole, indent=1) + "\n"


def as_python(table: Tableau, title: str) -> str:
    """A function of ten lines for numbers, arrays and tensors."""
    rows = _used(table)
    levels = "" if table.path is None else f" of path {table.path.spec}"
    return _FUNCTION.format(
        title=title,
        first=_number(rows[0].time),
        last=_number(rows[-1].time),
        prediction=table.prediction,
        levels=levels,
        noise="\ndraw(k) gives the k-th standard normal noise, of the shape of x." if table.draws else "",
        argument=", draw" if table.draws else "",
        rows="\n".join(f"    ({_number(row.time)!r}, {_terms(row)})," for row in rows),
        end=len(rows) - 1,
    )


def as_diffusers(table: Tableau, title: str) -> str:
    """A class whose ``step`` makes the rows up to the next call of the network."""
    path = table.path
    if path is None or path.name not in ("ddpm", "rectified_flow") or table.prediction not in ("noise", "denoised"):
        raise ArgumentError(
            "the form diffusers needs a table of noise or denoised predictions (a solver in the noise or data chart) on a path "
            f"of diffusers' models, such as ddpm:schedule=scaled_linear or rectified_flow; this one is of {table.prediction} "
            f"on {'no path' if path is None else path.spec}"
        )
    rows = _used(table)
    if any(0 in (path.alpha(rows[j].time), path.sigma(rows[j].time)) for j in table.evaluated):
        raise ArgumentError("the form diffusers needs calls between alpha = 0 and sigma = 0: end the path inside of these")
    lines = []
    for row in rows:
        at = (_timestep(path, row), _number(path.alpha(row.time)), _number(path.sigma(row.time)))
        lines.append(f"    ({', '.join(map(repr, at))}, {_terms(row)}),")
    return _SCHEDULER.format(
        title=title,
        nfe=table.nfe,
        rows="\n".join(lines),
        prediction=table.prediction,
        called=table.evaluated,
        end=len(rows) - 1,
        view="epsilon" if path.name == "ddpm" else "flow_prediction",
        level=" / ROWS[j][1]" if path.name == "ddpm" else "",
        answer="eps" if table.prediction == "noise" else "denoised",
    )


def counted(nfe: int) -> str:
    """A number of evaluations in words."""
    return "1 evaluation" if nfe == 1 else f"{nfe} evaluations"


def _used(table: Tableau) -> tuple[Row, ...]:
    """The rows up to the last output; rows after it are those of no answer."""
    return table.rows[: table.outputs[-1] + 1]


def _title(table: Tableau, solver: str, grid: str) -> str:
    """What a text is, for the docstring at its head, whose quotes and backslashes are no longer Python's."""
    path = "" if table.path is None else f" on path {table.path.spec}"
    named = f"{solver or 'A table'}{path}{f', grid {grid}' if grid else ''}: {counted(table.nfe)}."
    return named.replace("\\", "\\\\").replace('"', '\\"')


def _number(value: Any) -> float:
    return float(value)


def _terms(row: Row) -> str:
    parts = ({j: _number(v) for j, v in terms.items()} for terms in (row.states, row.evaluations, row.draws))
    return ", ".join(map(repr, parts))


def _timestep(path: Path, row: Row) -> float:
    """What diffusers' networks of a path are called with: the level counted from 0, or a thousand times the flow time."""
    return _number(row.time) - 1 if path.name == "ddpm" else 1000 * _number(row.time)
