"""Models of other libraries, made from exact fields: each answers as that library's own would."""

import math

import torch

import diffode
from diffode import adapters


class Config(dict):
    """A configuration read by key or by attribute."""

    __getattr__ = dict.__getitem__


class Scheduler:
    """What the adapters read of a scheduler of diffusers."""

    def __init__(self, alphas_cumprod=None, **config):
        self.config = Config(num_train_timesteps=1000, **config)
        if alphas_cumprod is not None:
            self.alphas_cumprod = alphas_cumprod

    @staticmethod
    def precondition_noise(sigma):
        return sigma.log() / 4


class FlowMatchScheduler(Scheduler):
    """Named as diffusers names those of flow matching."""


class EDMScheduler(Scheduler):
    """Named as diffusers names those of EDM."""


class Answer:
    """An object that holds its tensor in an attribute, as diffusers' and azula's do."""

    def __init__(self, name, value):
        setattr(self, name, value)


def betas():
    return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


class ForeignModel:
    """One library: the exact field on its path, the model as the library has it, and the adapter for it.

    ``call(x, time, sign, view, wanted)`` answers as the library's model does; ``model`` has its argument order.
    """

    def __init__(self, name, target="ring8"):
        self.name, self.target = name, target
        make = getattr(self, f"_{name}")
        self.path, self.answer, self.wrap, self.adapt = make()
        self.exact = diffode.exact_field(target, self.path)

    @property
    def data(self):
        return self.exact.target.sample(512, generator=3)

    def model(self, answer=None):
        """The library's callable around ``answer(x, time)``, the right one unless another is given."""
        return self.wrap(answer or self.answer)

    def field(self, answer=None, **options):
        return self.adapt(self.model(answer), **options)

    def _torchdiffeq(self):
        path = diffode.paths.get("rectified_flow")
        return (
            path,
            lambda x, t: self.exact.velocity(x, float(t)) if t.ndim == 0 else self.exact.velocity(x, t),
            lambda answer: lambda t, y: answer(y, t),
            lambda model, **o: adapters.from_torchdiffeq(model, path, **{"scale": self.exact.scale, **o}),
        )

    def _flow_matching(self):
        path = diffode.paths.get("rectified_flow")
        return (
            path,
            lambda x, t: -self.exact.velocity(x, 1 - t.double()),
            lambda answer: lambda x, t: answer(x, t),
            lambda model, **o: adapters.from_flow_matching(model, **{"scale": self.exact.scale, **o}),
        )

    def _torchcfm(self):
        path, answer, _, _ = self._flow_matching()
        return (
            path,
            answer,
            lambda answer: lambda t, x: answer(x, t),
            lambda model, **o: adapters.from_flow_matching(model, order="t, x", **{"scale": self.exact.scale, **o}),
        )

    def _k_diffusion(self):
        return (
            diffode.paths.get("edm"),
            lambda x, sigma: self.exact.denoised(x, sigma.double()),
            lambda answer: lambda x, sigma, **extra: answer(x, sigma),
            lambda model, **o: adapters.from_k_diffusion(model, **{"scale": self.exact.scale, **o}),
        )

    def _edm(self):
        path, answer, _, _ = self._k_diffusion()
        return (
            path,
            answer,
            lambda answer: lambda x, sigma, class_labels=None: answer(x, sigma),
            lambda model, **o: adapters.from_edm(model, **{"scale": self.exact.scale, **o}),
        )

    def _diffusers(self, prediction="epsilon"):
        table = (1 - betas()).cumprod(0)
        path = diffode.paths.Tabulated(table)
        scheduler = Scheduler(table, prediction_type=prediction)
        return (
            path,
            self._typed(prediction),
            lambda answer: lambda sample, timestep, **extra: Answer("sample", answer(sample, timestep)),
            lambda model, **o: adapters.from_diffusers(model, scheduler, **{"scale": self.exact.scale, **o}),
        )

    def _typed(self, prediction):
        def answer(x, timestep):
            t = timestep.double() + 1
            if prediction == "v_prediction":
                alpha, sigma = (getattr(self.path, name)(t)[:, None] for name in ("alpha", "sigma"))
                return alpha * self.exact.noise(x, t) - sigma * self.exact.denoised(x, t)
            return self.exact.noise(x, t) if prediction == "epsilon" else self.exact.denoised(x, t)

        return answer

    def _diffusers_sample(self):
        return self._diffusers("sample")

    def _diffusers_v(self):
        return self._diffusers("v_prediction")

    def _diffusers_flow(self):
        return (
            diffode.paths.get("rectified_flow"),
            lambda x, timestep: self.exact.velocity(x, timestep.double() / 1000),
            lambda answer: lambda sample, timestep, **extra: (answer(sample, timestep),),
            lambda model, **o: adapters.from_diffusers(model, FlowMatchScheduler(), **{"scale": self.exact.scale, **o}),
        )

    def _diffusers_edm(self):
        unit = 0.5
        scheduler = EDMScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=unit, prediction_type="epsilon")

        def answer(x, noise):
            sigma = (4 * noise.double()).exp()[:, None]
            size = (sigma**2 + unit**2).sqrt()
            denoised = self.exact.denoised(size * x, sigma[:, 0])
            return (denoised - unit**2 / size**2 * (size * x)) * size / (sigma * unit)

        return (
            diffode.paths.get("edm"),
            answer,
            lambda answer: lambda sample, timestep, **extra: Answer("sample", answer(sample, timestep)),
            lambda model, **o: adapters.from_diffusers(model, scheduler, **{"scale": self.exact.scale, **o}),
        )

    def _score_sde(self):
        path = diffode.paths.get("vp")
        return (
            path,
            lambda x, labels: self.exact.noise(x, labels.double() / 999),
            lambda answer: lambda x, labels: answer(x, labels),
            lambda model, **o: adapters.from_score_sde(model, "vp", **{"scale": self.exact.scale, **o}),
        )

    def _score_sde_sub_vp(self):
        path = diffode.paths.get("sub_vp")
        return (
            path,
            lambda x, labels: self.exact.noise(x, labels.double() / 999),
            lambda answer: lambda x, labels: answer(x, labels),
            lambda model, **o: adapters.from_score_sde(model, "sub_vp", **{"scale": self.exact.scale, **o}),
        )

    def _score_sde_ve(self):
        path = diffode.paths.EDM(0.01, 50.0)
        return (
            path,
            lambda x, sigma: self.exact.score(x, sigma.double()),
            lambda answer: lambda x, labels: answer(x, labels),
            lambda model, **o: adapters.from_score_sde(model, "ve", **{"scale": self.exact.scale, **o}),
        )

    def _azula(self):
        low, high = math.log(0.002), math.log(80.0)

        def schedule(t):
            return torch.ones_like(t), torch.exp((1 - t) * low + t * high)

        def wrap(answer):
            def denoiser(x, t, **extra):
                return Answer("mean", answer(x, t))

            denoiser.schedule = schedule
            return denoiser

        return (
            adapters.azula_path(schedule),
            lambda x, t: self.exact.denoised(x, t.double()),
            wrap,
            lambda model, **o: adapters.from_azula(model, **{"scale": self.exact.scale, **o}),
        )

    def _torchsde(self):
        path = diffode.paths.get("vp")

        def wrap(answer):
            class Reverse:
                noise_type, sde_type = "diagonal", "ito"

                def f(self, s, y):
                    return answer(y, s)

                def g(self, s, y):
                    return torch.full_like(y, path.diffusion(path.t_max - float(s)))

            return Reverse()

        def drift(y, s):
            t = path.t_max - float(s)
            return -path.drift(t) * y + path.diffusion(t) ** 2 * self.exact.score(y, t)

        return (
            path,
            drift,
            wrap,
            lambda model, **o: adapters.from_torchsde(model, path, dim=2, **{"scale": self.exact.scale, **o}),
        )


NAMES = (
    "torchdiffeq", "flow_matching", "torchcfm", "k_diffusion", "edm", "diffusers", "diffusers_sample", "diffusers_v",
    "diffusers_flow", "diffusers_edm", "score_sde", "score_sde_sub_vp", "score_sde_ve", "azula", "torchsde",
)  # fmt: skip
