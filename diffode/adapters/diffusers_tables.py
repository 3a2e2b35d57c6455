"""Tables for loops that own the network: the beginnings of their steps, and starts without signal."""

from __future__ import annotations

from dataclasses import replace

from diffode import solvers
from diffode.fields import conversion
from diffode.paths import Path
from diffode.solvers.runge_kutta import RungeKutta
from diffode.solvers.solver import WritesTable
from diffode.tableau import Row, Tableau

#: Noise level rho above which a state counts as one without signal: x/alpha in float32 has few digits of the data there.
_NO_SIGNAL = 1e3
#: Noise level rho that stands for the infinite one where alpha is 0, as in diffusers' UniPC.
_LARGEST_LEVEL = 1e6


def written(solver: WritesTable, path: Path, times: list[float]) -> Tableau:
    """The table of a solver on given times, whose first may have alpha = 0, as in pipelines of flow matching.

    A solver in native time starts at such a time itself, a solver in sigma/alpha or its logarithm at rho = 1e6. A Runge-Kutta
    method in sigma/alpha can't step from there: its first step is Euler's, which in that chart is exact without signal.
    """
    if path.alpha(times[0]) > 0 or solver.chart_name == "velocity":
        return _sound(solver, path, times)
    return _sound(solver, path, [path.time_from_rho(_LARGEST_LEVEL), *times[1:]])


def _sound(solver: WritesTable, path: Path, times: list[float]) -> Tableau:
    diverges = isinstance(solver, RungeKutta) and solver.chart_name == "noise" and solver.order > 1
    if not diverges or len(times) < 3 or not path.rho(times[0]) > 100 * _NO_SIGNAL:
        return solver.tableau(path, times)
    first = solvers.table_solver("euler", chart="noise").tableau(path, times[:2])
    return _joined(first, solver.tableau(path, times[1:]))


def _joined(first: Tableau, later: Tableau) -> Tableau:
    """Two tables run one after the other."""
    last = len(first.rows) - 1
    moved = [
        Row(
            row.time,
            {j + last: a for j, a in row.states.items()},
            {j + last: b for j, b in row.evaluations.items()},
            row.draws,
        )
        for row in later.rows[1:]
    ]
    outputs = (*first.outputs, *(row + last for row in later.outputs[1:]))
    return replace(later, rows=(*first.rows, *moved), outputs=outputs)


def without_signal(table: Tableau) -> tuple[Tableau, frozenset[int]]:
    """A table that evaluates the denoised point D, not the noise, of states with next to no signal; and the rows of these.

    There x/alpha and sigma/alpha times the noise are huge and almost cancel, which leaves no digits in half and single
    precision. With E = (x - alpha D)/sigma the cancellation happens in the coefficients, in float64.
    """
    path = table.path
    if path is None or table.prediction != "noise":
        return table, frozenset()
    rows = frozenset(j for j in table.evaluated if path.rho(table.rows[j].time) > _NO_SIGNAL)
    if not rows:
        return table, rows
    factors = {j: conversion(path, "denoised", "noise", table.rows[j].time) for j in rows}
    changed: list[Row] = []
    for row in table.rows:
        states, evaluations, mean = dict(row.states), dict(row.evaluations), row.mean
        for j in rows & evaluations.keys():
            of_x, of_denoised = factors[j]
            states[j] = states.get(j, 0.0) + evaluations[j] * of_x
            evaluations[j] = evaluations[j] * of_denoised
        for j in sorted(rows & states.keys() - {0, *table.outputs}, reverse=True):
            # A stage that nearly equals the start would cancel against it, and is replaced by the sum that makes it.
            if changed[j].draws:
                continue
            weight = states.pop(j)
            mean = mean + weight * changed[j].mean
            for kept, own in ((states, changed[j].states), (evaluations, changed[j].evaluations)):
                for k, value in own.items():
                    kept[k] = kept.get(k, 0.0) + weight * value
        changed.append(replace(row, states=states, evaluations=evaluations, mean=mean))
    return replace(table, rows=tuple(changed)), rows


def begins(table: Tableau) -> list[int]:
    """The index of the evaluation with which each step of a table begins; a jump, which makes none, is no such step."""
    evaluated, times = table.evaluated, table.times
    found = []
    for row in stepped(table)[:-1]:
        # A corrected state is not evaluated; the state that was predicted at its time is.
        there = [k for k, other in enumerate(evaluated) if other == row or float(times[other]) == float(times[row])]
        found.append(evaluated.index(row) if row in evaluated else there[-1])
    return found


def stepped(table: Tableau) -> list[int]:
    """The rows at times of the grid between which a table makes evaluations: all, but for the start of a jump."""
    first = table.evaluated[0]
    return [row for row in table.outputs if row >= first or table.times[row] == table.times[first]]
