"""Models of other libraries as fields: the same numbers, and every mistake of convention named."""

import warnings

import pytest
import torch
from foreign_models import NAMES, Answer, ForeignModel, Scheduler
from torch import nn

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, BudgetError, ConventionWarning, FieldError


@pytest.fixture(params=NAMES)
def foreign(request):
    return ForeignModel(request.param)


def levels(path):
    return [path.time_from_rho(rho) for rho in (5.0, 1.0, 0.1)]


def test_the_field_is_the_exact_one(foreign):
    field = foreign.field()
    assert field.path.spec.split("-")[0] == foreign.path.spec.split("-")[0]
    for t in levels(foreign.path):
        x = foreign.exact.marginal(5, t, generator=1)
        for view in ("velocity", "noise", "denoised", "score"):
            torch.testing.assert_close(field.predict(view, x, t), foreign.exact.predict(view, x, t), rtol=1e-9, atol=1e-9)


def test_a_run_is_the_exact_one_and_counts(foreign):
    field, x = foreign.field(), foreign.exact.prior(6, generator=2)
    runs = [diffode.solve(f, x, solver="unipc:order=2", nfe=8, grid="log_snr") for f in (field, foreign.exact)]
    torch.testing.assert_close(runs[0].x, runs[1].x, rtol=1e-8, atol=1e-8)
    assert runs[0].nfe == 8


def test_a_time_for_every_row(foreign):
    field = foreign.field()
    t = torch.tensor(levels(foreign.path), dtype=torch.float64)
    x = foreign.exact.marginal(3, float(t[1]), generator=1)
    torch.testing.assert_close(field.denoised(x, t), foreign.exact.denoised(x, t), rtol=1e-8, atol=1e-8)


def test_float32_states_stay_float32(foreign):
    field = foreign.field()
    t = levels(foreign.path)[1]
    x = foreign.exact.marginal(4, t, generator=1)
    found = field.noise(x.float(), t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), foreign.exact.noise(x, t), rtol=1e-4, atol=1e-4)


def test_a_right_model_is_not_warned_of(foreign):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = foreign.field(data=foreign.data)
        diffode.solve(field, foreign.exact.prior(4, generator=0), solver="euler:chart=noise", nfe=4, grid="log_snr")
        again = foreign.field()
        diffode.solve(again, foreign.exact.prior(4, generator=0), solver="euler:chart=noise", nfe=4, grid="log_snr")


def test_a_wrong_sign_is_named(foreign):
    with pytest.warns(ConventionWarning, match="sign is wrong|sign of its drift|it gives v_prediction, not epsilon"):
        foreign.field(lambda x, t: -foreign.answer(x, t), data=foreign.data)


def test_a_wrong_sign_is_noticed_without_data(foreign):
    field = foreign.field(lambda x, t: -foreign.answer(x, t))
    x = foreign.path.prior((4, 2), generator=0)
    with pytest.warns(ConventionWarning, match="noise end|moves by"):
        diffode.solve(field, x, solver="euler:chart=noise", nfe=4, grid="log_snr")


def test_another_view_is_named(foreign):
    """The noise where a denoised point or a velocity is asked, or the denoised point where noise is."""
    wrong = "noise" if foreign.field().prediction in ("denoised", "velocity") else "denoised"
    if foreign.name in ("diffusers_edm", "torchsde", "diffusers_v", "score_sde", "score_sde_sub_vp"):
        pytest.skip("its answer is none of the views; what is said of it is tested below")

    def answer(x, t):
        return foreign.exact.predict(wrong, x, time_of(foreign, t))

    named = {"noise": "noise|epsilon", "denoised": "denoised|sample"}[wrong]
    with pytest.warns(ConventionWarning, match=f"it gives (the )?({named})"):
        foreign.field(answer, data=foreign.data)


def time_of(foreign, t):
    """diffode's time for what the library's model is passed."""
    t = t.double()
    if foreign.name in ("flow_matching", "torchcfm"):
        return 1 - t
    if foreign.name == "diffusers_flow":
        return t / 1000
    return t + 1 if foreign.name.startswith("diffusers") else (float(t) if t.ndim == 0 else t)


@pytest.mark.parametrize("name", ["diffusers_edm", "diffusers_v", "score_sde", "score_sde_sub_vp"])
def test_an_answer_of_another_type_is_noticed(name):
    foreign = ForeignModel(name)
    with pytest.warns(ConventionWarning, match="does not behave"):
        foreign.field(lambda x, t: torch.zeros_like(x) + 0.1 * x, data=foreign.data)


@pytest.mark.parametrize("name", ["flow_matching", "torchcfm", "torchdiffeq"])
def test_time_in_the_other_direction_is_named(name):
    foreign = ForeignModel(name)
    with pytest.warns(ConventionWarning, match="data lie at t = [01]"):
        foreign.field(lambda x, t: -foreign.answer(x, 1 - t), data=foreign.data)


@pytest.mark.parametrize("name", ["score_sde", "score_sde_sub_vp"])
def test_labels_from_0_to_1_for_a_network_trained_on_them_are_noticed(name):
    """A network that wants t itself is given 999 t."""
    foreign = ForeignModel(name)
    with pytest.warns(ConventionWarning, match="does not behave"):
        foreign.field(lambda x, t: foreign.exact.noise(x, t.double().clamp(0, 1)), data=foreign.data)


def test_timesteps_from_0_to_999_asked_with_0_to_1_are_named():
    """A network that wants timesteps, in an adapter that passes times."""
    path = diffode.paths.get("vp")
    exact = diffode.exact_field("ring8", path)

    def network(x, labels):
        return exact.noise(x, (labels.double() / 999).clamp(1e-3, 1))

    with pytest.warns(ConventionWarning, match="timesteps 0 to"):
        adapters.from_score_sde(
            lambda x, t: -network(x, t) / path.sigma(t.double() / 999 if float(t[0]) > 1 else t.double())[:, None],
            "vp", score=True, data=exact.target.sample(512, generator=0),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["k_diffusion", "edm", "azula"])
def test_a_network_without_its_preconditioning_is_named(name):
    """It wants its input scaled, x/sqrt(sigma^2 + scale^2)."""
    foreign = ForeignModel(name)
    unit = foreign.exact.scale

    def answer(x, t):
        sigma = torch.as_tensor(foreign.path.sigma(time_of(foreign, t))).reshape(-1, 1)
        return foreign.answer(x * (sigma**2 + unit**2).sqrt(), t)

    with pytest.warns(ConventionWarning, match="input scaled"):
        foreign.field(answer, data=foreign.data)


def test_coupled_rows_are_an_error(foreign):
    field = foreign.field(lambda x, t: foreign.answer(x, t) + x.mean(0))
    x = foreign.exact.prior(4, generator=0)
    with pytest.raises(FieldError, match="depends on the other rows"):
        diffode.solve(field, x, solver="euler:chart=noise", nfe=3, grid="log_snr")


def test_a_wrong_shape_is_an_error(foreign):
    field = foreign.field(lambda x, t: foreign.answer(x, t)[:, :1])
    with pytest.raises((FieldError, ArgumentError, RuntimeError), match="shape"):
        diffode.solve(field, foreign.exact.prior(4, generator=0), solver="euler:chart=noise", nfe=3, grid="log_snr")


class Net(nn.Module):
    """A small network of (x, t), t with a value for every row."""

    def __init__(self, dim=2, **parts):
        super().__init__()
        self.line = nn.Linear(dim + 1, dim)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, t):
        return self.line(torch.cat([x, t[:, None]], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_network_of_another_dtype_is_called_in_its_own(dtype):
    torch.manual_seed(0)
    net = Net().to(dtype).eval()
    field = adapters.from_flow_matching(net)
    x = torch.ones(3, 2, dtype=torch.float64)
    found = field.velocity(x, 0.25)
    assert found.dtype == torch.float64
    expected = -net(x.to(dtype), torch.full((3,), 0.75, dtype=dtype)).double()
    assert torch.equal(found, expected)


def test_no_graph_is_built_while_sampling_and_one_is_where_x_asks_for_it():
    field = adapters.from_flow_matching(Net())
    x = torch.ones(3, 2)
    assert not field.velocity(x, 0.5).requires_grad
    assert field.velocity(x.requires_grad_(), 0.5).requires_grad


def test_a_network_without_weights_says_why():
    with torch.device("meta"):
        net = Net()
    with pytest.raises(ArgumentError, match="meta device"):
        adapters.from_flow_matching(net)


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(2)])
def test_a_network_in_training_mode_is_told_to_evaluate(part):
    with pytest.raises(ArgumentError, match="eval"):
        adapters.from_flow_matching(Net(part=part))
    assert adapters.from_flow_matching(Net(part=part).eval()).path.spec == "rectified_flow"


def test_images_and_a_learned_variance():
    """The first half of twice the channels is the prediction."""
    exact = diffode.exact_field("digits-gmm10", "ddpm")
    scheduler = Scheduler(exact.path.alpha(torch.arange(1.0, 1001.0, dtype=torch.float64)) ** 2, prediction_type="epsilon")

    def model(sample, timestep):
        noise = exact.noise(sample, timestep.double() + 1)
        return (torch.cat([noise, torch.zeros_like(noise)], 1),)

    field = adapters.from_diffusers(model, scheduler, scale=exact.scale)
    x = exact.prior(3, generator=0)
    runs = [
        diffode.solve(f, y, solver="dpmpp:order=2", nfe=6, grid="log_snr").x
        for f, y in ((field, x.reshape(3, 1, 8, 8)), (exact, x))
    ]
    torch.testing.assert_close(runs[0].flatten(1), runs[1], rtol=1e-9, atol=1e-9)


def test_extra_arguments_reach_every_call():
    seen = []

    def model(sample, timestep, encoder_hidden_states, class_labels):
        seen.append((tuple(encoder_hidden_states.shape), class_labels.dtype, len(class_labels)))
        return Answer("sample", sample)

    table = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    extra = {"encoder_hidden_states": torch.zeros(1, 7, 3), "class_labels": torch.arange(4)}
    field = adapters.from_diffusers(model, Scheduler(table, prediction_type="epsilon"), extra=extra)
    diffode.solve(field, torch.ones(4, 2), solver="euler:chart=noise", nfe=2, grid="log_snr")
    assert seen[-1] == ((4, 7, 3), torch.int64, 4)
    with pytest.raises(ArgumentError, match="class_labels"):
        field.noise(torch.ones(5, 2), 3.0)


def test_diffusers_own_networks_and_schedulers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in (diffusers.DDIMScheduler(), diffusers.EulerDiscreteScheduler(), diffusers.UniPCMultistepScheduler()):
        field = adapters.from_diffusers(net, scheduler)
        with torch.no_grad():
            torch.testing.assert_close(field.noise(x, 501.0), net(x, torch.tensor([500, 500])).sample, rtol=1e-5, atol=1e-6)
    flow = adapters.from_diffusers(net, diffusers.FlowMatchEulerDiscreteScheduler())
    assert flow.path.spec == "rectified_flow"
    with torch.no_grad():
        torch.testing.assert_close(flow.velocity(x, 0.5), net(x, torch.tensor(500)).sample, rtol=1e-5, atol=1e-6)
    edm = diffusers.EDMEulerScheduler()
    field = adapters.from_diffusers(net, edm)
    sigma = torch.tensor(3.0)
    with torch.no_grad():
        answer = net(edm.precondition_inputs(x, sigma), edm.precondition_noise(sigma)).sample
    torch.testing.assert_close(field.denoised(x, 3.0), edm.precondition_outputs(x, answer, sigma), rtol=1e-4, atol=1e-4)
    with pytest.raises(ArgumentError, match="neither alphas_cumprod"):
        adapters.from_diffusers(net, diffusers.ScoreSdeVeScheduler())


def test_flow_matchings_schedulers_are_paths():
    flow_matching = pytest.importorskip("flow_matching.path.scheduler")
    for scheduler, spec in (
        (flow_matching.CondOTScheduler(), "rectified_flow"), (flow_matching.CosineScheduler(), "trigonometric"),
    ):  # fmt: skip
        exact = diffode.exact_field("ring8", spec)
        field = adapters.from_flow_matching(adapters.as_flow_matching(exact), scheduler=scheduler, scale=exact.scale)
        x = exact.marginal(4, 0.4, generator=0)
        torch.testing.assert_close(field.denoised(x, 0.4), exact.denoised(x, 0.4), rtol=1e-6, atol=1e-6)


def test_azulas_own_denoisers_and_schedules():
    denoise = pytest.importorskip("azula.denoise")
    noise = pytest.importorskip("azula.noise")
    linalg = pytest.importorskip("azula.linalg.covariance")
    mean, variance = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    for schedule in (noise.VPSchedule(), noise.VESchedule(), noise.RectifiedSchedule(), noise.CosineSchedule()):
        denoiser = denoise.GaussianDenoiser(mean, linalg.DiagonalCovariance(variance), schedule)
        field = adapters.from_azula(denoiser, scale=1.3)
        exact = diffode.exact_field(diffode.GaussianMixture([1.0], mean[None], variance[None]), field.path)
        for t in (0.2, 0.7):
            x = exact.marginal(5, t, generator=0)
            torch.testing.assert_close(field.score(x, t), exact.score(x, t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("noise_type", ["diagonal", "additive", "general"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_torchsde_objects_of_every_noise_type(noise_type, eta):
    exact = diffode.exact_field("moons", "vp_cosine")
    ours = adapters.as_torchsde(exact, eta)

    class Theirs:
        sde_type = "stratonovich"

        def f(self, s, y):
            return ours.f(s, y)

        def g(self, s, y):
            g = ours.g(s, y)
            return g if noise_type == "diagonal" else torch.diag_embed(g)

    Theirs.noise_type = noise_type
    field = adapters.from_torchsde(Theirs(), exact.path, dim=2, scale=exact.scale)
    x = exact.marginal(4, 0.3, generator=0)
    torch.testing.assert_close(field.score(x, 0.3), exact.score(x, 0.3), rtol=1e-9, atol=1e-9)


def test_an_sde_of_another_path_or_with_noise_of_its_own_is_refused():
    exact = diffode.exact_field("moons", "vp")
    sde = adapters.as_torchsde(exact)
    with pytest.raises(ArgumentError, match="no multiple"):
        adapters.from_torchsde(sde, "vp_cosine", dim=2)
    sde.g = lambda s, y: y
    with pytest.raises(ArgumentError, match="same in every direction"):
        adapters.from_torchsde(sde, "vp", dim=2)
    sde.noise_type = "odd"
    with pytest.raises(ArgumentError, match="noise_type"):
        adapters.from_torchsde(sde, "vp", dim=2)
    with pytest.raises(ArgumentError, match="f is missing"):
        adapters.from_torchsde(object(), "vp", dim=2)


def test_guidance_is_the_extrapolation_and_costs_two_calls():
    one, two = (diffode.exact_field(name, "vp") for name in ("ring8", "moons"))
    field = adapters.guided(one, two, 3.0)
    x = one.marginal(5, 0.5, generator=0)
    expected = two.denoised(x, 0.5) + 3 * (one.denoised(x, 0.5) - two.denoised(x, 0.5))
    torch.testing.assert_close(field.denoised(x, 0.5), expected, rtol=1e-9, atol=1e-9)
    run = diffode.solve(field, one.prior(4, generator=0), solver="dpmpp:order=2", nfe=11)
    assert run.nfe == 10
    assert len(run.times) == 6
    with pytest.raises(BudgetError, match="2 network calls"):
        diffode.solve(field, x, solver="ddim", nfe=1)
    with pytest.raises(ArgumentError, match="same path"):
        adapters.guided(one, diffode.exact_field("moons", "edm"), 2.0)
    with pytest.raises(ArgumentError, match="weight"):
        adapters.guided(one, two, float("nan"))
    # A guided field can be guided again.
    assert adapters.guided(field, one, 1.5).calls == 3


@pytest.mark.parametrize("calls", [0, 1.5, True])
def test_calls_must_be_a_number_of_calls(calls):
    with pytest.raises(ArgumentError, match="calls"):
        diffode.Field(lambda x, t: x, "velocity", calls=calls)


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="order"):
        adapters.from_flow_matching(lambda x, t: x, order="xt")
    with pytest.raises(ArgumentError, match=r"\[0, 1\]"):
        adapters.from_flow_matching(lambda x, t: x, "edm")
    with pytest.raises(ArgumentError, match="network or a function"):
        adapters.from_k_diffusion(3)
    with pytest.raises(ArgumentError, match="sde must be"):
        adapters.from_score_sde(lambda x, t: x, "vpp")
    with pytest.raises(ArgumentError, match="diffusers scheduler"):
        adapters.from_diffusers(lambda x, t: x, object())
    with pytest.raises(ArgumentError, match="prediction_type"):
        adapters.from_diffusers(lambda x, t: x, Scheduler(torch.tensor([0.9, 0.5])), prediction_type="noise")
    with pytest.raises(ArgumentError, match="schedule"):
        adapters.from_azula(lambda x, t: x)
    with pytest.raises(ArgumentError, match="at least 16"):
        adapters.from_k_diffusion(lambda x, s: x, data=torch.zeros(3, 2))
    with pytest.raises(FieldError, match="returned dict"):
        adapters.from_k_diffusion(lambda x, s: {"a": x}).denoised(torch.zeros(2, 2), 1.0)
    assert "from_edm" in dir(adapters)
    with pytest.raises(AttributeError, match="from_kdiffusion"):
        _ = adapters.from_kdiffusion
