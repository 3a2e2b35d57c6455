"""The published methods that train a flow map, as rows of one table: form, times, residual, teacher, target, weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffode.learned.maps import derivatives, identity, moments, on_policy, residuals
from diffode.learned.maps.identity import Generate
from diffode.learned.maps.residuals import Residual

#: Options that every method has, with their defaults; a row may have others.
COMMON: dict[str, Any] = {
    "parametrisation": "angle",
    "law": "uniform",
    "ends": 0.5,
    "teacher": "exact",
    "target": "online",
    "norm": "squared",
    "width": 128,
    "depth": 3,
    "kind": "perceptron",
    "batch": 1024,
    "rate": 5e-3,
    "average": 0.999,
    "optimiser": "muon",
    "fixed_end": False,
    "one_time": False,
}


@dataclass(frozen=True)
class MapMethod:
    """A way to train a flow map.

    Attributes:
        name: its name.
        objective: what is made small, as a formula.
        residual: the function that computes it.
        source: its paper.
        cost: what a step costs, in calls of the network and of the teacher.
        teachers: the teachers that it can learn from: ``exact`` (the field that is given, exact or a network), ``none`` (data),
            ``own`` (the map itself).
        departures: what differs from the paper.
        trajectories: whether it learns from exact trajectories, of which there is a number.
        both_ways: whether its map goes to more noise as well as to less.
        law_only: whether its map is to have the law of the data, whatever noise it couples with which point.
        one_jump: whether its map is a generator, which goes from the first time to the last alone.
        generate: how its map makes the points whose law a second network learns, the fake; None for methods without one.
        options: its own options, and defaults that differ from ``COMMON``.
    """

    name: str
    objective: str
    residual: Residual
    source: str
    cost: str
    teachers: tuple[str, ...] = ("exact",)
    departures: str = ""
    trajectories: bool = False
    both_ways: bool = False
    law_only: bool = False
    one_jump: bool = False
    generate: Generate | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """All its options with their defaults."""
        return {**COMMON, "teacher": self.teachers[0], **self.options}


#: What all presets share, said once.
SHARED = (
    "All methods run in the angle clock with one network, one optimiser, an average of the weights as the answer, a cosine for "
    "the rate, and the map's own present weights in targets; a share of the times lies at the two ends, where it is judged."
)
_FIXED = {
    "optimiser": "adam",
    "rate": 2e-3,
    "fixed_end": True,
    "parametrisation": "edm",
    "levels": 80,
    "grid": "karras",
    "step": "euler",
    "ends": 0.0,
}
_ADAM = {"optimiser": "adam", "rate": 2e-3}
_SELF = {"teacher": "none", "same": 0.5}
_MEAN_FLOW = {
    **_ADAM,
    "parametrisation": "average",
    "law": "logit_normal",
    "norm": "adaptive",
    "power": 1.0,
    "ends": 0.25,
}

#: The methods by name.
MAP_METHODS = {
    row.name: row
    for row in (
        MapMethod(
            "flow_map",
            "|Phi(x_s, s->t) - x_t|^2 on exact trajectories",
            residuals.pairs,
            "regression on pairs; the recommended one where an exact or fine teacher is at hand",
            "1 call of the network; the trajectories once",
            trajectories=True,
        ),
        MapMethod(
            "distillation",
            "|Phi(x_T, T->0) - x_0|^2 on the two ends of trajectories",
            residuals.ends,
            "Luhman and Luhman, arXiv 2101.02388 (knowledge distillation)",
            "1 call of the network; the trajectories once",
            departures="the squared distance in place of a perceptual one; the map is right for one jump alone",
            trajectories=True,
        ),
        MapMethod(
            "reflow",
            "|F(x_t, t) - (x_T - x_0)/(T - 0)|^2 on straight lines between the ends of trajectories",
            residuals.straight,
            "Liu, Gong, Liu, arXiv 2209.03003, algorithm 1, rounds after the first",
            "1 call of the network; the trajectories once a round",
            departures="the first round, flow matching, is the field that is given; further ones couple by the network before",
            trajectories=True,
            options={"parametrisation": "average", "one_time": True, "rounds": 1},
        ),
        MapMethod(
            "flow_matching",
            "|F(x_s, s) - v_c|^2, the conditional velocity of data and noise",
            residuals.diagonal,
            "Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003",
            "1 call of the network",
            ("none", "exact"),
            departures="a velocity alone: its map is an Euler step",
            options={"parametrisation": "average", "one_time": True, "law": "uniform"},
        ),
        MapMethod(
            "progressive",
            "|Phi(x_s, s->t) - Phi'(Phi'(x_s, s->r), r->t)|^2 with the map Phi' of the round before, r the middle",
            residuals.progressive,
            "Salimans and Ho, arXiv 2202.00512, algorithm 2",
            "1 call of the network with and 2 without a gradient; 4 of the teacher in the first round",
            departures="one network for all rounds, which begins where the last one ended; steps are equal in the angle",
            options={**_ADAM, "parametrisation": "ddim", "rounds": 6, "grid": "angle", "ends": 0.0},
        ),
        MapMethod(
            "cd",
            "|f(x_r') - sg f(x_r)|^2, x_r a step of the teacher from x_r'",
            residuals.consistency,
            "Song et al., arXiv 2303.01469, algorithm 2 (consistency distillation)",
            "2 calls of the network, 2 of the teacher",
            departures="the target has the present weights (their average costs most of all); the squared distance",
            options={**_FIXED, "step": "heun"},
        ),
        MapMethod(
            "ct",
            "|f(x_r') - sg f(x_r)|^2, both of the same data and noise",
            residuals.consistency,
            "Song et al., arXiv 2303.01469, algorithm 3 (consistency training)",
            "2 calls of the network",
            ("none",),
            departures="as cd; the number of levels is constant",
            options=_FIXED,
        ),
        MapMethod(
            "ict",
            "as ct, over the gap of levels, in the pseudo-Huber distance, levels doubling from 10 to 1280",
            residuals.consistency,
            "Song and Dhariwal, arXiv 2310.14189",
            "2 calls of the network",
            ("none",),
            departures="noise levels as theirs, in units of data of scale 1/2",
            options={**_FIXED, "levels": 1280, "fewest": 10, "law": "lognormal", "norm": "huber", "weight": "gap"},
        ),
        MapMethod(
            "ect",
            "|f(x_t) - sg f(x_r)|^2/(t - r), r/t rising to 1 in stages",
            residuals.easy_consistency,
            "Geng et al., arXiv 2406.14548",
            "2 calls of the network",
            ("none",),
            departures="it begins from nothing, not from a diffusion network",
            options={**_FIXED, "law": "lognormal", "norm": "huber", "weight": "gap", "stages": 8, "ends": 0.1},
        ),
        MapMethod(
            "tcm",
            "ect first; then above the border alone, with the frozen first stage below it",
            residuals.truncated,
            "Lee et al., arXiv 2410.14895",
            "2 to 3 calls of the network",
            ("none",),
            departures="the border is the noise level of the data; lognormal in place of log-Student times",
            options={
                **_FIXED,
                "law": "lognormal",
                "norm": "huber",
                "weight": "gap",
                "stages": 8,
                "ends": 0.1,
                "border": 1.0,
                "edge": 0.25,
                "edge_weight": 0.1,
                "freeze": 2,
            },
        ),
        MapMethod(
            "scd",
            "<f, sg g>, g = cos(t) D_t f over its norm, along the teacher's velocity",
            derivatives.tangent,
            "Lu and Song, arXiv 2410.11081, algorithm 1 (sCD)",
            "1 call of the network with a forward derivative, 1 with a gradient, 1 of the teacher",
            departures="no learned weight; the warm-up lasts a quarter of the training",
            options={**_ADAM, "fixed_end": True, "parametrisation": "trig", "law": "scm", "ends": 0.1, "warm_up": 0.25},
        ),
        MapMethod(
            "sct",
            "<f, sg g>, g = cos(t) D_t f over its norm, along the velocity of data and noise",
            derivatives.tangent,
            "Lu and Song, arXiv 2410.11081, algorithm 1 (sCT)",
            "1 call of the network with a forward derivative, 1 with a gradient",
            ("none",),
            departures="as scd",
            options={**_ADAM, "fixed_end": True, "parametrisation": "trig", "law": "scm", "ends": 0.1, "warm_up": 0.25},
        ),
        MapMethod(
            "multistep_cd",
            "|Phi(x_s, s->t_k) - sg Phi(step(x_s), r->t_k)|^2 to the lower end t_k of the segment of s",
            residuals.consistency,
            "Heek et al., arXiv 2403.06807",
            "2 calls of the network, 2 of the teacher",
            ("exact", "none"),
            departures="a step of Heun in place of aDDIM; segments are equal in the angle, so that runs of K jumps are its own",
            options={**_FIXED, "fixed_end": False, "parametrisation": "ddim", "segments": 4, "step": "heun"},
        ),
        MapMethod(
            "ctm",
            "|G(G(x_s, s->t), t->0) - G(G(step(x_s, s->r), r->t), t->0)|^2 + |g(x_s, s, s) - x_0|^2",
            residuals.trajectory,
            "Kim et al., arXiv 2310.02279, equations 9 and 11",
            "4 to 5 calls of the network, 8 of the teacher",
            departures="no adversarial term; four steps of Heun, a quarter of them all the way; a constant weight of denoising",
            options={**_ADAM, "parametrisation": "ddim", "step": "heun", "denoising": 0.5, "steps": 4, "whole": 0.25},
        ),
        MapMethod(
            "shortcut",
            "|u(x, t, 2d) - sg [u(x, t, d) + u(x', t + d, d)]/2|^2 at dyadic d, and flow matching",
            residuals.halves,
            "Frans et al., arXiv 2410.12557, algorithm 1",
            "3 calls of the network",
            ("none", "exact"),
            departures="steps of the angle, not of rectified flow; the target has the present weights; half is flow matching",
            options={"law": "dyadic", "same": 0.5, "middle": "half", "weight": "slope"},
        ),
        MapMethod(
            "psd",
            "|Phi(x, s->t) - sg Phi(Phi(x, s->r), r->t)|^2 at the middle r, and flow matching",
            residuals.halves,
            "Boffi et al., arXiv 2505.18825 (progressive self-distillation)",
            "3 calls of the network",
            ("none", "exact"),
            departures="no learned weight unless norm=learned",
            options={**_SELF, "middle": "half", "weight": "slope"},
        ),
        MapMethod(
            "split_mean_flow",
            "as psd, at any r",
            residuals.halves,
            "Guo et al., arXiv 2507.16884 (SplitMeanFlow)",
            "3 calls of the network",
            ("none", "exact"),
            options={**_SELF, "middle": "any", "weight": "slope"},
        ),
        MapMethod(
            "lmd",
            "|d_t Phi(x_s, s->t) - v(sg Phi, t)|^2",
            derivatives.lagrangian,
            "Boffi et al., arXiv 2406.07507, equation 12; AYF-LMD, arXiv 2506.14603",
            "1 call of the network with a forward derivative, 1 of the teacher",
            departures="no gradient through the teacher (as AYF); weighted by the noise of the level where it arrives",
            options={"same": 0.25, "weight": "level"},
        ),
        MapMethod(
            "emd",
            "|D_s Phi(x_s, s->t)|^2 along the teacher's velocity",
            derivatives.eulerian,
            "Boffi et al., arXiv 2406.07507, equation 14",
            "1 call of the network with a forward derivative, 1 of the teacher",
            departures="a share is flow matching to the teacher",
            options={"same": 0.25},
        ),
        MapMethod(
            "ayf_emd",
            "<Phi, sg D_s Phi> over its norm, along the teacher's velocity",
            derivatives.tangent,
            "Sabour, Fidler, Kreis, arXiv 2506.14603, equation 8",
            "1 call of the network with a forward derivative, 1 with a gradient, 1 of the teacher",
            departures="no guided teacher and no adversarial stage; the warm-up lasts a quarter of the training",
            options={**_ADAM, "warm_up": 0.25},
        ),
        MapMethod(
            "lsd",
            "|d_t Phi - sg u(Phi, t, t)|^2, and flow matching",
            derivatives.lagrangian,
            "Boffi et al., arXiv 2505.18825 (Lagrangian self-distillation)",
            "2 calls of the network, one with a forward derivative",
            ("own",),
            departures="weighted by the noise of the level where it arrives; no learned weight unless norm=learned",
            options={"same": 0.5, "weight": "level"},
        ),
        MapMethod(
            "esd",
            "|d_s Phi + grad Phi . u(x, s, s)|^2, and flow matching",
            derivatives.eulerian,
            "Boffi et al., arXiv 2505.18825 (Eulerian self-distillation)",
            "2 calls of the network, one with a forward derivative",
            ("own",),
            departures="no learned weight unless norm=learned",
            options={"same": 0.5},
        ),
        MapMethod(
            "meanflow",
            "|u - sg [v_c + (t - s) D_s u]|^2 along the velocity of data and noise",
            derivatives.mean_flow,
            "Geng et al., arXiv 2505.13447, algorithm 1",
            "1 call of the network with a forward derivative",
            ("none", "exact"),
            departures="no guidance inside the target",
            options={**_MEAN_FLOW, "same": 0.75, "improved": False},
        ),
        MapMethod(
            "improved_meanflow",
            "|V - v_c|^2 with V = u + (s - t) sg [d_s u + grad u . u(x, s, s)], and |u(x, s, s) - v_c|^2",
            derivatives.mean_flow,
            "Geng et al., arXiv 2512.02012",
            "2 calls of the network, one with a forward derivative",
            ("none", "exact"),
            departures="the map's own diagonal in place of an auxiliary head; no guidance",
            options={**_MEAN_FLOW, "same": 0.5, "improved": True},
        ),
        MapMethod(
            "direct",
            "|d_t Phi(Phi(x_t, t->s), s->t) - v_c|^2 + |Phi(Phi(x_t, t->s), s->t) - x_t|^2, both directions",
            derivatives.direct,
            "Boffi et al., arXiv 2406.07507, equation 16 (flow map matching without a teacher)",
            "2 calls of the network, one with a forward derivative",
            ("none",),
            both_ways=True,
        ),
        MapMethod(
            "anyflow",
            "|Phi(x_s, s->t) - x_t|^2 on exact trajectories, later <y, D' - D> too: ends y of the map's own ways, their D'",
            on_policy.any_step,
            "Gu et al., arXiv 2605.13724 (AnyFlow, on-policy flow map distillation)",
            "4 calls of the network and 2 of the fake with gradients, 1 of the teacher; the trajectories once",
            departures=(
                "pairs of exact trajectories in place of its own forward stage, for half of the training alone, and beside the "
                "law after that; no guided teacher; the law's weight is a tenth of that of the pairs"
            ),
            trajectories=True,
            generate=on_policy.own_ways,
            options={"first": 0.5, "matching": 0.1, "reach": 0.8, "fake_rate": 1e-2, "fake_steps": 2},
        ),
        MapMethod(
            "imm",
            "MMD^2 of groups of Phi(x_s, s->t) and sg Phi(x_r, r->t), both of the same data and noise; Laplace kernel",
            moments.moment_matching,
            "Zhou, Ermon, Song, arXiv 2503.07565, algorithm 1 (inductive moment matching)",
            "2 calls of the network",
            ("none",),
            departures="uniform angles; gaps of a 2^-8th of the levels, which reach less far; the loss is told as a gradient",
            law_only=True,
            options={**_ADAM, "parametrisation": "trig", "group": 4, "pairs": "all", "halvings": 8, "bias": 5.0, "power": 1.0},
        ),
        MapMethod(
            "sid",
            "L2 - alpha L1 = <D - D', D - y - alpha (D - D')> of the teacher's D and the D' of what it generates, y, noised",
            identity.score_identity,
            "Zhou et al., arXiv 2404.04057, algorithm 1 (score identity distillation)",
            "4 calls of the network, 2 of them of the fake with gradients; 1 of the teacher with a gradient",
            departures=(
                "it begins from the Gaussian flow, not from the teacher; alpha is 1, not 1.2, with which small networks from "
                "that start run away; the loss is told as a gradient"
            ),
            law_only=True,
            one_jump=True,
            generate=identity.generated,
            options={"fixed_end": True, "law": "edm", "alpha": 1.0, "reach": 0.8, "fake_rate": 1e-2, "fake_steps": 2},
        ),
    )
}
