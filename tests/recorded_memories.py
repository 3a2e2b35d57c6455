"""Recorded numbers of memories, and of the numerics below everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recorded import case, fields_of
from recorded_runs import answer

from diffode import hippo
from diffode.hippo import cauchy_kernel, s4d, s4d_transfer, study
from diffode.numerics import butcher, collocation, entropic_transport, exponential, exponential_butcher, orders

SPECS = ("legs", "legt:window=0.7", "lagt", "lagt:alpha=0.5,beta=0.3,scale=0.4", "lagt:alpha=-0.5,beta=1", "fout:window=0.7")
HOLDS = (
    "zoh",
    "foh",
    "cubic",
    "poly:degree=2",
    "euler",
    "backward",
    "trapezoid",
    "gbt:theta=0.3",
    "bilinear_held",
    "hippo_code",
    "scipy_foh",
)
RANDOM = np.random.default_rng(7).standard_normal(64)


def plain(values: Any) -> Any:
    """Arrays, complex ones in two parts, as tensors."""
    if isinstance(values, str | float | int):
        return values
    array = np.asarray(values)
    if np.iscomplexobj(array):
        return [torch.tensor(array.real.astype(np.float64)), torch.tensor(array.imag.astype(np.float64))]
    return torch.tensor(array.astype(np.float64))


def asked(ask: Any) -> Any:
    return plain(answer(ask))


@case
def memories_and_their_kernels():
    told = {}
    lags, steps = np.array([0.0, 1e-3, 0.05, 0.3, 0.6, 2.5]), (1e-3, 0.1, 0.8)
    for spec in SPECS:
        for order in (1, 3, 7):
            memory = hippo.get(spec, order)
            spectrum = memory.spectrum()
            told[f"{spec} {order}"] = {
                "A": plain(memory.A), "B": plain(memory.B), "kernel": asked(lambda m=memory: m.kernel(lags)),
                "projection": asked(lambda m=memory: m.projection_kernel(lags)), "dual": asked(lambda m=memory: m.dual(lags)),
                "propagators": [asked(lambda m=memory, h=h: m.propagator(h)) for h in steps],
                "transfer": asked(lambda m=memory: m.transfer(np.array([0.3, 1.0 + 2.0j, 40.0j]))),
                "gradient": asked(lambda m=memory: m.gradient(np.array([0.1, 0.5, 0.9]), 1.0)),
                "power": [asked(lambda m=memory, p=p: m.power(p, 1.3)) for p in (0, 1, 3)],
                "exponential": [asked(lambda m=memory, u=u: m.exponential(u, 0.9)) for u in (-2.0, 0.0, 1.5)],
                "sine": asked(lambda m=memory: m.sine(3.0, 1.1, phase=0.4)), "abscissa": float(spectrum.abscissa),
                "diagonalisable": bool(spectrum.diagonalisable), "dplr": asked(lambda m=memory: m.dplr().matrix()),
            }  # fmt: skip
    return told


@case
def memories_of_signals():
    told = {}
    even, uneven = np.linspace(0.2, 1.2, 64), 0.2 + np.cumsum(np.linspace(0.01, 0.03, 64))
    starts = np.linspace(-1, 1, 5)
    for spec in SPECS:
        memory = hippo.get(spec, 5)
        for hold in HOLDS:
            for grid, times in (("even", even), ("uneven", uneven)):
                told[f"{spec} {hold} {grid}"] = [
                    asked(lambda m=memory, t=times, h=hold: m.run(RANDOM, t, h, "all")),
                    asked(lambda m=memory, t=times, h=hold: m.run(RANDOM, t, h, 7, start=starts)),
                    asked(lambda m=memory, t=times, h=hold: m.readout(RANDOM, t, np.arange(5.0), h)),
                ]  # fmt: skip
        told[f"{spec} response"] = asked(lambda m=memory: m.response(np.arange(1.0, 6.0), 0.1, 12))
        told[f"{spec} cauchy"] = asked(lambda m=memory: cauchy_kernel(m, np.arange(1.0, 6.0), 0.1, 12))
        states = memory.run(RANDOM, even, "foh")
        told[f"{spec} back"] = asked(lambda m=memory, c=states: m.reconstruct(c, np.linspace(0.6, 1.2, 5), 1.2))
        told[f"{spec} projected"] = asked(lambda m=memory: m.project(np.sin, 1.2))
        told[f"{spec} solved"] = asked(lambda m=memory: m.solution(np.sin, 1.2))
    return told


@case(tolerance=1e-7)
def memories_and_their_errors():
    told = {}
    for spec in ("legs", "legt:window=0.5", "lagt:scale=0.2", "fout:window=0.5"):
        for name in ("sine", "white:band=5,seed=2", "step:at=0.6", "ecg:beats=3"):
            found = answer(lambda s=spec, n=name: study.of_known(hippo.get(s, 7), hippo.signals.get(n), 50, "foh"))
            told[f"{spec} {name}"] = found if isinstance(found, str) else {
                part: float(value) for part, value in fields_of(found.errors).items() if isinstance(value, float)
            }  # fmt: skip
        own = answer(lambda s=spec: study.of_samples(hippo.get(s, 7), RANDOM, np.linspace(0.0, 1.0, 64), "zoh"))
        told[f"{spec} samples"] = own if isinstance(own, str) else {
            part: float(value) for part, value in fields_of(own.errors).items() if isinstance(value, float)
        }  # fmt: skip
    times = np.linspace(0, 1, 9)
    for name in ("sine:frequency=2", "white:band=8,seed=1", "step", "mackey_glass:span=50", "ecg:beats=4"):
        told[name] = plain(hippo.signals.get(name)(times))
    return told


@case
def memories_with_a_diagonal():
    told = {}
    for kind in ("lin", "inv", "legs", "real", "lin2"):
        told[kind] = asked(lambda k=kind: s4d(k, 6))
    told["transfer"] = asked(lambda: s4d_transfer(np.array([0.3, 1.0 + 2.0j]), 6))
    told["all pass"] = asked(lambda: hippo.all_pass(np.array([0.3, 1.0 + 2.0j]), 4))
    return told


@case
def layers_of_memories():
    told = {}
    rows = torch.from_numpy(RANDOM.reshape(2, 32, 1)).double()
    for spec in ("legs", "legt:window=4.5", "lagt:scale=3", "fout:window=6"):
        for hold in ("zoh", "foh", "trapezoid"):
            layer = hippo.Hippo(5, spec, hold).double()
            told[f"{spec} {hold}"] = answer(lambda layer=layer: layer(rows))
    layer = hippo.Hippo(4, "legt:window=4.5", "foh", learn_window=True).double()
    u = rows.clone().requires_grad_()
    out = layer(u)
    gradients = torch.autograd.grad(torch.cos(out).sum(), [u, *layer.parameters()])
    return told | {"learned": out, "gradients": list(gradients)}


@case
def methods_and_their_coefficients():
    told: dict[str, Any] = {}
    for name in ("EULER", "HEUN", "KUTTA", "KUTTA_3", "MIDPOINT", "RALSTON"):
        method = getattr(butcher, name)
        told[name] = [method.order, method.step(lambda y, t: -y * t + 1, 0.7, 0.2, 0.5), list(method.nodes)]
    told["trees"] = [
        [(str(tree), butcher.nodes_of(tree), butcher.density(tree)) for tree in butcher.trees(n)] for n in range(1, 6)
    ]
    for stages in (1, 2, 3, 4):
        for kind in (collocation.gauss, collocation.radau):
            found = kind(stages)
            numbers = [found.nodes, found.stages, found.weights]
            told[f"{kind.__name__} {stages}"] = [plain(value) for value in numbers]
    for name in ("etd2", "etd3", "etd4", "krogstad", "strehmel_weiner", "hochbruck_ostermann_3", "hochbruck_ostermann_4",
                 "lawson_2", "lawson_4"):  # fmt: skip
        for nodes in ((), (0.4,), (0.3, 0.6)):
            method = answer(lambda name=name, nodes=nodes: exponential_butcher.get(name, nodes))
            told[f"{name} {nodes}"] = method if isinstance(method, str) else [
                method.order,
                [[exponential_butcher.evaluated(terms, z) for terms in row] for row in method.stages for z in (-0.7, 1e-9)],
                [exponential_butcher.evaluated(terms, z) for terms in method.weights for z in (-0.7, 1e-9)],
            ]  # fmt: skip
    told["phi"] = [[exponential.phi(k, z) for z in (-30.0, -1.0, -1e-3, 0.0, 1e-9, 0.2, 0.9, 1.1, 5.0)] for k in range(5)]
    told["phi of rows"] = [exponential.phi(k, torch.tensor([-30.0, -1.0, -1e-3, 0.0, 0.2, 0.9, 1.1])) for k in range(5)]
    steps = [8, 16, 32, 64]
    for floor in (0.0, 1e-6, 1e-4):
        found = answer(lambda floor=floor: orders.fit_order(steps, [3.0 * n**-2.1 + floor for n in steps], floor))
        told[f"order {floor}"] = found if isinstance(found, str) else [
            value for value in fields_of(found).values() if isinstance(value, float | int | str)
        ]  # fmt: skip
    costs = torch.cdist(torch.linspace(0, 1, 12)[:, None].double(), torch.linspace(0.2, 2, 12)[:, None].double()).square()
    told["entropic"] = [entropic_transport.entropic_value(costs, epsilon) for epsilon in (1.0, 0.1, 0.02)]
    return told
