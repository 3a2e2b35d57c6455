"""Noise of other laws than the normal one: mixtures, Student-t (Poisson flows), any density."""

import math

import pytest
import torch

import diffode
from diffode import sources
from diffode.errors import ArgumentError, FieldError, UnknownNameError
from diffode.numerics.orders import fit_order
from diffode.paths import FunctionPath
from diffode.sources import StudentT, Weights
from diffode.sources.nodes import NodeLaw, Nodes
from diffode.sources.student import ScaleMixture
from diffode.targets import GaussianMixture, LowRank
from diffode.verify import verify_field
from diffode.verify.field.equations import continuity, fokker_planck, score_is_gradient, typical_points, views
from diffode.verify.field.weak import weak

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(count, dim, seed, kind="full"):
    """A mixture whose covariances share no basis."""
    weights = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.2
    factors = drawn(count, dim, dim, seed=seed + 1)
    whole = factors @ factors.mT + 0.1 * torch.eye(dim, dtype=F64)
    covariances = {"full": whole, "diagonal": whole.diagonal(dim1=1, dim2=2), "isotropic": whole[:, 0, 0]}[kind]
    return GaussianMixture(weights / weights.sum(), 2 * drawn(count, dim, seed=seed), covariances)


def points(count=5, dim=2, seed=3):
    return GaussianMixture.from_points(drawn(count, dim, seed=seed))


def own_density(u):
    """The log-density of a standard normal law, as anyone would write it."""
    return -u.square().sum(-1) / 2 - u.shape[-1] / 2 * math.log(2 * math.pi)


CASES = {
    "isotropic x isotropic": ("ring8", "rectified_flow", mixture(3, 2, 1, "isotropic")),
    "diagonal x isotropic": (mixture(2, 3, 5, "diagonal"), "vp", mixture(3, 3, 1, "isotropic")),
    "full x full": (mixture(3, 3, 1), "trigonometric", mixture(2, 3, 7)),
    "points x full": (points(), "rectified_flow", mixture(2, 2, 4)),
    "full x points": (mixture(2, 2, 4), "rectified_flow", points()),
    "poisson": ("ring8", "edm", "student:dof=1"),
    "student on vp": ("gauss2d", "vp", "student:dof=5.5"),
    "student with many degrees": ("bimodal1d", "edm", "student:dof=3000"),
    "student on points": (points(), "edm", "student:dof=9"),
    "logistic": (points(), "edm", "density:law=logistic"),
    "laplace": (points(), "rectified_flow", "density:law=laplace"),
    "student by coordinates": (points(), "vp", "density:law=student,dof=3"),
    "a density of one's own": (points(), "rectified_flow", sources.Density(own_density)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_law_is_conserved_along_the_flow(case):
    """d_t log p + div v + v . grad log p = 0, with both derivatives of log p by automatic differentiation."""
    field = diffode.exact_field(*CASES[case])
    if "own" in case:
        normal = diffode.exact_field(*CASES[case][:2])
        where = typical_points(normal, 4)
    else:
        where = typical_points(field, 4)
    assert float(continuity(field, where).values.max()) < 1e-12
    assert float(score_is_gradient(field, where).values.max()) < 1e-10
    assert float(views(field, where).values.max()) < 1e-10
    for t, x in zip(where.times, where.points, strict=True):
        exact = diffode.Field.divergence(field, x, t)
        assert float((field.divergence(x, t) - exact).abs().max()) < 1e-10 * float(exact.abs().max())


def test_the_equations_notice_another_source():
    field, wrong = (diffode.exact_field("ring8", "edm", f"student:dof={dof}") for dof in (3, 4))
    where = typical_points(field, 4)
    assert float(continuity(field, where, wrong.log_prob).values.max()) > 1e-3


def test_normal_noise_is_a_source_like_any_other():
    """N(0, I) by pairs, by nodes, by a density of one's own and as it is without a source."""
    target, level = mixture(3, 2, 1), (0.8, 0.6)
    x, own = drawn(6, 2, seed=9), GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    laws = [sources.get(own).noised(target), NodeLaw(target, Nodes(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)))]
    for law in laws:
        assert torch.allclose(law.log_prob(x, *level), target.noised_log_prob(x, *level), atol=1e-13)
        assert torch.allclose(law.view(x, *level, Weights(1.0, 0.0, 0.0)), target.noised_view(x, *level, 1.0, 0.0), atol=1e-13)
        noise = target.noised_view(x, *level, 0.0, -level[1])
        assert torch.allclose(law.view(x, *level, Weights(0.0, 1.0, level[1])), noise, atol=1e-13)
    data = points()
    law = sources.Density(own_density).noised(data)
    assert torch.allclose(law.log_prob(x, *level), data.noised_log_prob(x, *level), atol=1e-13)
    assert torch.allclose(law.score(x, *level), data.noised_view(x, *level, 0.0, 1.0), atol=1e-12)


@pytest.mark.parametrize("name", [None, "normal", "student:dof=inf"])
def test_a_field_without_a_source_asks_its_target(name):
    field = diffode.exact_field("ring8", "edm", name)
    assert field.source is None
    assert field.law is None
    x = field.prior(4, generator=0)
    assert torch.equal(field.velocity(x, 3.0), diffode.exact_field("ring8", "edm").velocity(x, 3.0))


@pytest.mark.parametrize("kind", ["isotropic", "low-rank"])
def test_nodes_and_pairs_are_the_same_law(kind):
    data, noise = mixture(3, 4, 1), mixture(2, 4, 5, "isotropic")
    if kind == "low-rank":
        data = GaussianMixture([0.4, 0.6], drawn(2, 4), LowRank(drawn(2, 4, 2, seed=8), [0.3, 0.2]))
    x, level, weights = drawn(5, 4, seed=2), (0.7, 0.4), Weights(-1.0, 0.8, 0.32)
    nodes = Nodes(noise.weights.log(), noise.components.variance.sqrt(), noise.means)
    pairs, by_noise = sources.get(noise).noised(data), NodeLaw(data, nodes)
    swapped = NodeLaw(data, nodes, swapped=True), sources.get(data).noised(noise)
    for one, other, own, rate in ((pairs, by_noise, level, weights), (*swapped, level[::-1], Weights(0.8, -1.0, -0.7))):
        given = level if one is pairs else own
        assert torch.allclose(one.log_prob(x, *given), other.log_prob(x, *given), atol=1e-12)
        assert torch.allclose(one.score(x, *given), other.score(x, *given), atol=1e-12)
        rate = rate if one is pairs else Weights(0.8, -1.0, -1.0 * given[1])
        assert torch.allclose(one.view(x, *given, rate), other.view(x, *given, rate), atol=1e-12)
        assert torch.allclose(one.divergence(x, *given, rate), other.divergence(x, *given, rate), atol=1e-11)


def closed_form(data, dof, x, sigma):
    """The denoiser of PFGM++ on points (arXiv 2302.04265, equation 4, as a posterior mean)."""
    square = (x[:, None] - data.means).square().sum(-1)
    return (-(dof + data.dim) / 2 * torch.log1p(square / (dof * sigma**2))).softmax(1) @ data.means


@pytest.mark.parametrize("dof", [0.7, 1, 2, 7, 9, 12, 64, 1024, 1e5])
@pytest.mark.parametrize("dim", [1, 2, 9])
def test_the_scale_mixture_is_the_closed_form_on_points(dof, dim):
    data, source = points(4, dim), StudentT(dof)
    law = ScaleMixture(data, dof)
    for sigma in (0.002, 0.05, 0.3, 80.0):
        x = torch.cat(
            [data.sample(6, generator=1) + sigma * source.sample(6, dim, generator=2), data.means[:1], data.means[:1] + 0.7]
        )
        denoised, exact = law.view(x, 1.0, sigma, Weights(1.0, 0.0, 0.0)), closed_form(data, dof, x, sigma)
        assert float((denoised - exact).abs().max()) < 1e-12
        assert float((source.noised(data).view(x, 1.0, sigma, Weights(1.0, 0.0, 0.0)) - exact).abs().max()) < 1e-12
        density = source.noised(data).log_prob(x, 1.0, sigma)
        assert float((law.log_prob(x, 1.0, sigma) - density).abs().max()) < 1e-11 * max(1.0, float(density.abs().max()))


@pytest.mark.parametrize("dof", [1, 2, 5])
def test_lines_of_force_carry_no_flux_between_charges(dof):
    """div E = 0 in N + D dimensions for E = sum_k (x - x_k, r)/(|x - x_k|^2 + r^2)^((N + D)/2), and dx/dr = E_x/E_r."""
    data = points(4, 2)
    field = diffode.exact_field(data, "edm", f"student:dof={dof}")
    x, r = 2 * drawn(6, 2, seed=5), torch.tensor(1.7, dtype=F64)

    def force(place):
        offsets = place[:2] - data.means
        return (
            torch.cat([offsets, place[2:].expand(len(offsets), 1)], 1)
            .div((offsets.square().sum(1) + place[2] ** 2)[:, None] ** ((2 + dof) / 2))
            .sum(0)
        )

    for row in x:
        place = torch.cat([row, r[None]])
        along, strength = torch.func.jacrev(force)(place), force(place)
        # A field that depends on D coordinates by their distance r alone has the flux r^(1-D) d(r^(D-1) E_r)/dr in them.
        flux = along.diagonal().sum() + (dof - 1) * strength[2] / r
        assert abs(float(flux)) < 1e-12 * float(along.diagonal().abs().sum())
        sigma = float(r) / dof**0.5
        slope = field.velocity(row[None], sigma)[0] / dof**0.5
        assert torch.allclose(slope, strength[:2] / strength[2], rtol=1e-12, atol=1e-12)


def test_the_checks_of_fields_hold_with_a_source():
    """Every check that applies passes, and those of the SDE, which is that of normal noise, are left out."""
    report = verify_field(diffode.exact_field("bimodal1d", "rectified_flow", "poisson"))
    assert report.passed, report
    names = {check.name for check in report.checks}
    assert {"continuity equation", "score = grad log p", "weak form, Monte Carlo, flow", "likelihood along the flow"} <= names
    assert not any("Fokker" in name or "reverse" in name for name in names)
    wrong = diffode.exact_field("bimodal1d", "rectified_flow", "poisson")
    wrong.law = sources.get("student:dof=8").noised(wrong.target)
    assert [(check.name, check.passed) for check in weak(wrong)] == [("weak form, Monte Carlo, flow", False)]


def test_the_poisson_flow_has_a_name():
    assert sources.get("poisson").spec == "student:dof=1"


def test_far_out_the_part_without_a_share_is_no_matter_though_it_overflows():
    field = diffode.exact_field(*CASES["poisson"])
    t = 0.9 * field.path.t_min + 0.1 * field.path.t_max
    near, far = (field.divergence(torch.full((1, field.dim), size, dtype=F64), t) for size in (1e100, 1e152))
    torch.testing.assert_close(far, near, rtol=1e-6, atol=0)


def test_many_degrees_of_freedom_are_edm_at_rate_one_over_d():
    edm = diffode.exact_field("ring8", "edm")
    x = edm.marginal(16, 3.0, generator=0)
    scaled = []
    for dof in (64, 1024, 1e5):
        near = diffode.exact_field("ring8", "edm", StudentT(dof))
        scaled.append(dof * float((near.denoised(x, 3.0) - edm.denoised(x, 3.0)).norm(dim=1).mean()))
    assert scaled[1] == pytest.approx(scaled[0], rel=0.05)
    assert scaled[2] == pytest.approx(scaled[1], rel=0.01)


def test_the_flow_between_mixtures_on_a_line_is_the_quantile_map():
    """F_1(flow(x)) = F_0(x), with the distribution functions by hand."""
    data, noise = mixture(3, 1, 1, "isotropic"), mixture(2, 1, 4, "isotropic")
    field = diffode.exact_field(data, "rectified_flow", noise)
    path, x = field.path, torch.linspace(-3, 3, 41, dtype=F64)[:, None]

    def share(y, t):
        a, s = path.alpha(t), path.sigma(t)
        z = [
            w * v * torch.special.ndtr((y[:, 0] - a * m - s * n) / (a**2 * c + s**2 * d) ** 0.5)
            for w, m, c in zip(data.weights, data.means[:, 0], data.components.variance, strict=True)
            for v, n, d in zip(noise.weights, noise.means[:, 0], noise.components.variance, strict=True)
        ]
        return sum(z)

    found = diffode.reference(field, x, 0.999, 0.001)
    assert found.method == "quantile"
    assert float((share(found.x, 0.001) - share(x, 0.999)).abs().max()) < 1e-12
    solution = diffode.solve(field, x, solver="ipndm:order=3", grid="time_uniform", steps=320)
    assert float((solution.x - found.x).abs().max()) < 2e-4
    moved = diffode.flow(field)(x[:4], torch.full((4,), 0.9, dtype=F64), torch.full((4,), 0.2, dtype=F64))
    assert torch.allclose(moved, diffode.reference(field, x[:4], 0.9, 0.2).x, atol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm:order=3", 3), ("rk4", 4)])
def test_solvers_keep_their_order_between_mixtures(solver, order):
    """The slope of the mean error over three numbers of steps, away from the ends of the path, where the noise is a mixture."""
    field = diffode.exact_field(mixture(3, 1, 1, "isotropic"), "rectified_flow", mixture(2, 1, 4, "isotropic"))
    x = torch.linspace(-2, 2, 15, dtype=F64)[:, None]
    exact = diffode.reference(field, x, 0.9, 0.1).x
    steps = (160, 320, 640)
    errors = [
        float((diffode.solve(field, x, solver=solver, grid="time_uniform", steps=n, between=(0.9, 0.1)).x - exact).abs().mean())
        for n in steps
    ]
    assert fit_order(steps, errors, 1e-14).slope == pytest.approx(order, abs=0.1)


def test_the_flow_between_gaussians_is_closed_though_they_share_no_basis():
    field = diffode.exact_field(mixture(1, 3, 1), "rectified_flow", mixture(1, 3, 6))
    x = field.prior(4, generator=0)
    found = diffode.reference(field, x, 0.999, 0.05)
    assert found.method == "closed-form"
    steps = diffode.solve(field, x, solver="rk4", grid="time_uniform", steps=200, between=(0.999, 0.05))
    assert float((steps.x - found.x).abs().max()) < 1e-6
    # Where both are diagonal there is no basis, and each coordinate has a flow of its own.
    sides = [
        GaussianMixture([1.0], [mean], [variances])
        for mean, variances in (([1.0, -2.0, 0.5], [0.3, 1.0, 2.0]), ([2.0, 0.0, -1.0], [1.0, 0.2, 0.7]))
    ]
    diagonal = diffode.exact_field(sides[0], "rectified_flow", sides[1])
    assert diagonal.law.basis is None
    found = diffode.reference(diagonal, x, 0.999, 0.05)
    assert found.method == "closed-form"
    steps = diffode.solve(diagonal, x, solver="rk4", grid="time_uniform", steps=200, between=(0.999, 0.05))
    assert float((steps.x - found.x).abs().max()) < 1e-6
    plain = diffode.exact_field(mixture(2, 3, 1), "rectified_flow", mixture(2, 3, 6))
    ends = diffode.reference(plain, x, 0.999, 0.05, use_cache=False)
    assert ends.method == "dop853"
    assert ends.error_estimate < 1e-6


def test_the_law_of_a_flow_is_that_of_exact_draws():
    field = diffode.exact_field("ring8", "edm", "student:dof=2")
    x = field.marginal(200, 5.0, generator=1)
    there = diffode.reference(field, x, 5.0, 1.0, 1e-8, use_cache=False).x
    # log p along the flow changes by the integral of the divergence.
    _, integral = diffode.verify.field.likelihood.flow_with_divergence(field, x[:8], 5.0, 1.0, 1e-9)
    assert torch.allclose(field.log_prob(x[:8], 5.0) - integral, field.log_prob(there[:8], 1.0), atol=1e-6)


@pytest.mark.parametrize("solver", ["dpmpp_sde", "euler_ancestral", "euler_maruyama", "edm_stochastic", "sde_adaptive"])
def test_solvers_that_draw_normal_noise_refuse(solver):
    field = diffode.exact_field("ring8", "edm", "student:dof=8")
    x = field.prior(2, generator=0)
    with pytest.raises(ArgumentError, match="student:dof=8"):
        diffode.solve(field, x, solver=solver, nfe=9, generator=0)
    with pytest.raises(ArgumentError, match="SDE"):
        fokker_planck(field, typical_points(field, 2))


def test_a_score_is_not_made_of_noise():
    field = diffode.Field.from_noise(lambda x, t: x, "edm")
    field.source = sources.get("student:dof=8")
    with pytest.raises(FieldError, match="no multiple of the noise"):
        field.score(torch.zeros(1, 2, dtype=F64), 1.0)


def test_times_for_each_row_and_single_precision():
    for case in ("full x full", "poisson", "logistic"):
        field = diffode.exact_field(*CASES[case])
        t = field.path.t_min + (field.path.t_max - field.path.t_min) * torch.tensor([0.2, 0.7], dtype=F64)
        x = field.marginal(2, float(t[1]), generator=0)
        each = torch.cat([field.velocity(x[i : i + 1], float(t[i])) for i in range(2)])
        assert torch.allclose(field.velocity(x, t), each, rtol=1e-12, atol=1e-12)
        single = field.velocity(x.float(), float(t[0]))
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), field.velocity(x.float().double(), float(t[0])), rtol=1e-6, atol=1e-6)


def test_a_path_whose_rate_is_infinite_at_the_data():
    """sigma' of vp is infinite at t = 0, where noise with mean 0 still has a velocity."""
    x = torch.tensor([[0.3]], dtype=F64)
    field = diffode.exact_field("bimodal1d", "vp", GaussianMixture([1.0], [[0.0]], [1.0]))
    assert torch.allclose(field.velocity(x, 0.0), diffode.exact_field("bimodal1d", "vp").velocity(x, 0.0), rtol=1e-12)
    shifted = diffode.exact_field("bimodal1d", "vp", GaussianMixture([1.0], [[0.5]], [1.0]))
    with pytest.raises(FieldError, match="not finite at t=0"):
        shifted.velocity(x, 0.0)


def test_curved_trajectories_are_a_path_of_ones_own():
    """The circular and the exponential trajectories are alpha and sigma of another kind, with any noise."""
    circle = FunctionPath(lambda t: torch.cos(t), lambda t: torch.sin(t), t_min=0.01, t_max=1.5)
    field = diffode.exact_field(points(), circle, "density:law=logistic")
    x = field.marginal(4, 0.8, generator=0)
    from diffode.verify.field.equations import Points

    assert float(continuity(field, Points((0.8,), (x,))).values.max()) < 1e-11


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("ring8", "studnt:dof=3", "student"),
        ("ring8", "student", "dof must be"),
        ("ring8", "student:dof=0", "dof must be a positive number"),
        ("ring8", "student:dof=-1", "dof must be a positive number"),
        ("ring8", "student:dof=nan", "dof must be a positive number"),
        ("ring8", "student:df=3", "dof"),
        ("ring8", "gauss1d", "1 coordinates, the target 2"),
        ("ring8", "density:law=logistic", "from_points"),
        ("ring8", "density:law=logistik", "logistic"),
        ("ring8", "density:law=student", "dof goes with"),
        ("ring8", "density:law=laplace,dof=3", "dof goes with"),
        ("ring8", 3, "source must be"),
        (points(), points(), "both of points"),
    ],
)
def test_wrong_sources_are_named(target, source, message):
    with pytest.raises(ArgumentError, match=message):
        diffode.exact_field(target, "edm", source)


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(UnknownNameError, match="ring8"):
        sources.get("ring9")


def test_draws_have_their_law():
    """The mean of cos(u) is the characteristic function at 1: sech-like, rational, or by the density on a fine grid."""
    for spec in ("density:law=logistic", "density:law=laplace", "density:law=student,dof=3", "student:dof=3"):
        source = sources.get(spec)
        u = source.sample(40000, 1, generator=3)
        grid = torch.linspace(-400, 400, 400001, dtype=F64)[:, None]
        density = source.shape(grid)[0].exp() * (grid[1, 0] - grid[0, 0])
        assert float(density.sum()) == pytest.approx(1, abs=1e-5)
        exact = float((density * grid[:, 0].cos()).sum())
        assert abs(float(u.cos().mean()) - exact) < 5 * float(u.cos().std()) / 200
    alone = sources.get("student:dof=3").sample(2, 3, generator=[1, 2])
    assert torch.equal(alone[1], sources.get("student:dof=3").sample(1, 3, generator=2)[0])


def test_a_number_for_the_time_keeps_its_graph():
    """d velocity/dt by autodiff from one time for all rows, against a difference."""
    for source in (None, "student:dof=3"):
        field = diffode.exact_field("bimodal1d", "rectified_flow", source)
        x = field.prior(3, generator=0)
        t = torch.tensor(0.5, dtype=F64, requires_grad=True)
        (rate,) = torch.autograd.grad(field.velocity(x, t).sum(), t)
        difference = (field.velocity(x, 0.5 + 1e-6) - field.velocity(x, 0.5 - 1e-6)).sum() / 2e-6
        assert float(rate) == pytest.approx(float(difference), rel=1e-6)
