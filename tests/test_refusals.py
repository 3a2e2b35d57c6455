"""Arguments that make no sense are refused where they are given, by an error that names them."""

import re

import pytest
import torch

import diffode
from diffode import Field, GaussianMixture, fields, metrics, paths, solvers, targets, verify
from diffode.errors import ArgumentError
from diffode.extensions import load_attribute
from diffode.flows import reference
from diffode.learned import condition, gits, ld3, search, train_amed, train_gaussian, train_table
from diffode.learned.conditioned import Conditioned
from diffode.learned.live import LiveWriter
from diffode.metrics import Outcome, coupled
from diffode.metrics.gaussian import gaussian_split
from diffode.studies import load_suite, run_suite
from diffode.tableau import Row, Tableau
from diffode.tableau.stages import Stages
from diffode.verify import equations, evolution, weak

EDM = paths.get("edm")


def ring():
    return diffode.exact_field("ring8", "edm")


def wild():
    """A field that knows nothing but its path."""
    return Field.from_denoised(lambda x, t: 0 * x, EDM)


def outcome(field, solver="ddim", **options):
    x = field.prior(4, generator=0) if isinstance(field, fields.ExactField) else field.path.prior((4, 2), generator=0)
    return Outcome(field, x, diffode.solve(field, x, solver=solver, **({"nfe": 4} | options)))


def two_rows(**options):
    rows = (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5}))
    return Tableau(**({"prediction": "noise", "rows": rows, "outputs": (0, 1), "path": EDM} | options))


REFUSED = {
    "a view that is none": (lambda: Field(lambda x, t: x, prediction="noize"), "prediction must be one of"),
    "a field that is no function": (lambda: Field.from_noise(3, EDM), "function must be callable"),
    "a reference of a function": (
        lambda: reference(lambda x, t: x, torch.zeros(1, 2), 1.0, 0.5),
        "field must be a diffode field",
    ),
    "options beside a target": (lambda: targets.get(targets.get("ring8"), radius=2.0), "options radius go with a spec"),
    "a negative number of samples": (
        lambda: targets.get("ring8").sample(-1, generator=torch.Generator()),
        "n must be a number of samples",
    ),
    "complex means": (
        lambda: GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.complex128), [1.0]),
        "means must be real",
    ),
    "a path beyond its end": (lambda: paths.get("trigonometric:t_max=1.5"), "t_max <= 1"),
    "a reduction that is none": (lambda: coupled.reduce(torch.ones(3), "sum"), "reduction must be mean, rms, max or median"),
    "KL of an adaptive run": (
        lambda: metrics.measure("push_forward_kl", outcome(ring(), "rk_adaptive", nfe=None, grid=[80.0, 0.002])),
        "needs a solver with a tableau",
    ),
    "modes of what has none": (
        lambda: metrics.measure("lost_modes", outcome(wild())),
        "needs the exact law of the data",
    ),
    "a Gaussian's error on a mixture": (lambda: metrics.measure("gaussian_error", outcome(ring())), "a target of one Gaussian"),
    "a Gaussian's error of an adaptive run": (
        lambda: metrics.measure(
            "gaussian_error", outcome(diffode.exact_field("gauss2d", "edm"), "rk_adaptive", nfe=None, grid=[80.0, 0.002])
        ),
        "a solver that writes a table",
    ),
    "a part that is none": (
        lambda: metrics.measure("gaussian_error:part=all", outcome(diffode.exact_field("gauss2d", "edm"))),
        "part must be one of prior, truncation",
    ),
    "a split without a path": (lambda: gaussian_split(two_rows(path=None), 0.0, torch.ones(2)), "written for a path"),
    "no workers": (lambda: run_suite(load_suite("quick"), "unused.sqlite", jobs=0), "jobs must be >= 1"),
    "a common form that starts late": (
        lambda: Stages.of(solvers.get("ddim:analytic_first_step=true").tableau(EDM, [80.0, 2.0, 1.0])),
        "does not evaluate the field at its start",
    ),
    "a universal table without a path": (
        lambda: solvers.get("universal:scale=1,dim=2").tableau(None, [1.0, 0.5], 4),
        "needs a path",
    ),
    "a universal table with an analytic step": (
        lambda: solvers.get("universal:scale=1,dim=2,analytic_first_step=true").tableau(EDM, "karras", 4),
        "trained with all its evaluations",
    ),
    "moments that are no numbers": (lambda: two_rows().propagate("x", torch.ones(2)), "mean must be a number"),
    "variances that are no numbers": (lambda: two_rows().propagate(0.0, object()), "eigenvalues must be numbers"),
    "variances below zero": (lambda: two_rows().propagate(0.0, [-1.0]), "they are variances, got [-1.0]"),
    "moments that do not fit": (lambda: two_rows().propagate(torch.zeros(3), torch.ones(2)), "shape of eigenvalues"),
    "moments that are not finite": (lambda: two_rows().propagate(float("nan"), torch.ones(2)), "mean must be finite"),
    "noise that is not given": (
        lambda: solvers.get("ddim:eta=1").tableau(EDM, [80.0, 2.0, 1.0]).run(ring(), torch.zeros(2, 2, dtype=torch.float64)),
        "noise draws; pass noise=",
    ),
    "an analytic step without a path": (
        lambda: two_rows(path=None).analytic_first_step(),
        "analytic_first_step needs a path",
    ),
    "progress that is no function": (
        lambda: diffode.solve(ring(), ring().prior(2, generator=0), solver="ddim", nfe=4, progress=3),
        "progress must be a function",
    ),
    "a place without a colon": (lambda: load_attribute("math.pi"), "not of the form module:attribute"),
    "probes that are none": (
        lambda: verify.log_likelihood(
            ring(), torch.zeros(2, 2), divergence="hutchinson", probes=0, generator=torch.Generator()
        ),
        "probes must be an integer >= 1",
    ),
    "an order on a field of one's own": (
        lambda: verify.order("ddim", field=wild(), grid="karras"),
        "field must be an exact field",
    ),
    "noise levels outside a path": (lambda: equations.typical_points(ring(), levels=[1e5]), "lies within path"),
    "evolution in three dimensions": (
        lambda: evolution.evolve(diffode.exact_field("gauss64-powerlaw", "edm"), 0.1, 0.2, 8),
        "one or two dimensions",
    ),
    "evolution towards the data": (lambda: evolution.evolve(ring(), 0.2, 0.1, 8), "towards noise"),
    "quadrature in many dimensions": (
        lambda: weak.polynomial_check(diffode.exact_field("line16", "edm"), 1.0),
        "at most three dimensions",
    ),
    "compact functions in many dimensions": (
        lambda: weak.compact_check(diffode.exact_field("line16", "edm"), 1.0),
        "in one and two dimensions",
    ),
    "an analytic step of denoised points": (
        lambda: LiveWriter(ring(), "denoised", torch.zeros(1, 2), 1.0, analytic=True),
        "written for the noise prediction",
    ),
    "a conditioned table without layers": (
        lambda: Conditioned(Stages.of(two_rows()), 1.0, (), ()),
        "a layer and weights for each of its 1 rows",
    ),
    "seconds that are no number": (lambda: train_gaussian([1.0], 4, seconds="x"), "seconds must be a positive number"),
    "no seconds": (lambda: search(ring(), 4, seconds=0), "seconds must be a positive number"),
    "AMED without an end": (lambda: train_amed(ring(), 2, seconds=None), "seconds must be a positive number"),
    "a seed that is no number": (lambda: train_gaussian([1.0], 4, seed="a"), "seed must be an integer"),
    "a name in place of a field": (lambda: gits("ring8", 4), "such as diffode.exact_field('ring8', 'edm'), got str"),
    "a name to lay levels for": (lambda: ld3("ring8", 4), "field must be a diffode field"),
    "a name to train AMED on": (lambda: train_amed("ring8", 4), "field must be a diffode field"),
    "nothing to condition": (lambda: condition(None, ring()), "trained must be what train_table gave"),
    "a Gaussian from a path's infinite end": (
        lambda: train_gaussian([1.0], 4, path="rectified_flow:t_max=1"),
        "t_max and t_min",
    ),
    "training from a path's infinite end": (
        lambda: train_table("ring8", 4, path="rectified_flow:t_max=1"),
        "choose t_max and t_min inside",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_by_name(what):
    ask, words = REFUSED[what]
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
