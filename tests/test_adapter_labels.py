"""A network that wants other labels than its library's is told so, by what it wants; a right one is not warned of."""

import math
import re
import warnings

import pytest
import torch
from foreign_models import FlowMatchScheduler, ForeignModel, Scheduler

import diffode
from diffode import adapters
from diffode.errors import ConventionWarning

EXACT = {name: diffode.exact_field("ring8", name) for name in ("vp", "edm", "rectified_flow", "sub_vp", "ddpm")}
DATA = EXACT["vp"].target.sample(256, generator=0)
ALPHAS = EXACT["ddpm"].path.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
VIEWS = {"epsilon": "noise", "sample": "denoised", "flow_prediction": "velocity"}
SPAN = math.log(50.0 / 0.01)


def score_sde(kind, to_time):
    field = EXACT["edm" if kind == "ve" else kind]

    def network(x, labels):
        return field.score(x, to_time(labels)) if kind == "ve" else field.noise(x, to_time(labels))

    return adapters.from_score_sde(network, kind, data=DATA)


def diffusers(kind, to_time):
    flow = kind == "flow_prediction"
    field = EXACT["rectified_flow" if flow else "ddpm"]

    def network(x, labels):
        return field.predict(VIEWS[kind], x, to_time(labels))

    return adapters.from_diffusers(
        network, FlowMatchScheduler() if flow else Scheduler(ALPHAS, prediction_type=kind), data=DATA
    )


def flow_matching(_, to_time):
    return adapters.from_flow_matching(lambda x, t: -EXACT["rectified_flow"].velocity(x, 1 - to_time(t)), data=DATA)


def k_diffusion(_, to_time):
    return adapters.from_k_diffusion(lambda x, sigma: EXACT["edm"].denoised(x, to_time(sigma)), data=DATA)


RIGHT = [
    (score_sde, "vp", lambda s: s / 999),
    (score_sde, "ve", lambda s: s),
    (diffusers, "epsilon", lambda s: s + 1),
    (diffusers, "flow_prediction", lambda s: s / 1000),
    (flow_matching, "", lambda s: s),
    (k_diffusion, "", lambda s: s),
]


@pytest.mark.parametrize(("adapter", "kind", "to_time"), RIGHT)
def test_right_labels_are_not_warned_of(adapter, kind, to_time):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConventionWarning)
        adapter(kind, to_time)


@pytest.mark.parametrize(
    ("adapter", "kind", "to_time", "wanted"),
    [
        (score_sde, "vp", lambda s: s.clamp(max=1.0), "times from 0 to 1"),
        (score_sde, "sub_vp", lambda s: s.clamp(max=1.0), "times from 0 to 1"),
        (score_sde, "vp", lambda s: s / 1000, None),
        (score_sde, "ve", lambda s: 0.01 * (SPAN * s.clamp(max=1.0)).exp(), "times from 0 to 1"),
        (score_sde, "ve", lambda s: s.exp().clamp(max=80.0), r"log\(sigma/alpha\)"),
        (diffusers, "epsilon", lambda s: (1000 * s).clamp(1, 1000), "times from 0 to 1"),
        (diffusers, "sample", lambda s: (1000 * s).clamp(1, 1000), "times from 0 to 1"),
        (diffusers, "epsilon", lambda s: EXACT["ddpm"].path.time_from_rho(s.clamp(0.02, 150.0)), "noise levels sigma/alpha"),
        (diffusers, "flow_prediction", lambda s: s.clamp(max=0.999), "times from 0 to 1"),
        (flow_matching, "", lambda s: s / 999, "timesteps 0 to 999"),
        (k_diffusion, "", lambda s: (4 * s).clamp(max=4.3).exp(), r"log\(sigma/alpha\)/4"),
    ],
)
def test_other_labels_are_named(adapter, kind, to_time, wanted):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter(kind, to_time)
    said = " ".join(str(w.message) for w in caught if issubclass(w.category, ConventionWarning))
    if wanted is None:
        # A thousandth in the label is no convention that data could show.
        assert "timesteps 0 to 999" not in said
        return
    assert re.search(f"its network wants {wanted} as labels", said), said


def test_without_scale_or_data_a_right_denoiser_is_not_blamed():
    exact = EXACT["edm"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConventionWarning)
        field = adapters.from_k_diffusion(lambda x, sigma: exact.denoised(x, sigma.double()))
        diffode.solve(field, exact.prior(4, generator=0), solver="ddim", nfe=4)
    wrong = adapters.from_k_diffusion(lambda x, sigma: -exact.denoised(x, sigma.double()))
    with pytest.warns(ConventionWarning):
        diffode.solve(wrong, exact.prior(4, generator=0), solver="ddim", nfe=4)


def test_images_flattened_by_mistake_are_noticed():
    field = diffode.exact_field("digits-gmm10", "edm")

    def network(x, sigma):
        return field.denoised(x.reshape(len(x), -1), sigma).reshape(x.shape)

    data = field.target.sample(64, generator=0).reshape(-1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConventionWarning)
        found = adapters.from_k_diffusion(network, data=data)
    assert torch.isfinite(found.denoised(data, 1.0)).all()


@pytest.mark.parametrize(
    "name", ["diffusers", "diffusers_sample", "diffusers_v", "diffusers_flow", "flow_matching", "torchdiffeq"]
)
@pytest.mark.parametrize("wanted", ["x/alpha", "x/sqrt(sigma^2 + (alpha scale)^2)"])
def test_a_network_that_wants_its_input_scaled_is_told_how(name, wanted):
    foreign = ForeignModel(name)
    unit = foreign.exact.scale

    def answer(x, label):
        t = label.double().reshape(-1)
        if name.startswith("diffusers"):
            t = t / 1000 if name.endswith("flow") else t + 1
        t = 1 - t if name == "flow_matching" else t
        alpha, sigma = (getattr(foreign.path, part)(t)[:, None] for part in ("alpha", "sigma"))
        factor = alpha if wanted == "x/alpha" else (sigma**2 + (alpha * unit) ** 2).sqrt()
        return foreign.answer(x * factor, label)

    with pytest.warns(ConventionWarning, match=re.escape(wanted)) as caught:
        foreign.field(answer, data=foreign.data)
    assert "wants its input scaled" in str(caught[0].message)
