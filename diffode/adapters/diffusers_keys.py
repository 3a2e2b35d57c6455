"""The keys of a diffusers scheduler's configuration, sorted by their meaning for our runs: honoured, harmless or refused."""

from __future__ import annotations

#: Keys that place the levels. They are honoured because the replaced scheduler itself lays the levels.
LEVELS = frozenset({
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "snr_shift_scale", "timestep_spacing", "steps_offset", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal",
    "invert_sigmas", "sigma_min", "sigma_max", "sigma_schedule", "rho", "final_sigmas_type", "set_alpha_to_one",
    "interpolation_type", "timestep_type", "lambda_min_clipped", "original_inference_steps",
})  # fmt: skip

#: Keys that fix the input of the network and the meaning of its answer.
ANSWER = frozenset({
    "prediction_type", "sigma_data", "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio",
    "sample_max_value",
})  # fmt: skip

#: Keys that a run can ignore, each with the reason.
HARMLESS = {
    **dict.fromkeys(("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
                    "a pipeline reads it from our configuration to compute mu"),
    **dict.fromkeys(("solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "predict_x0",
                     "disable_corrector", "solver_p", "predictor_order", "corrector_order", "tau_func", "skip_prk_steps",
                     "stochastic_sampling", "eta", "s_noise", "noise_sampler_seed", "timestep_scaling"),
                    "it says how steps are made, which the solver asked for does"),
    "variance_type": "a learned variance is cut off; the noise of a step is the solver's",
    "upscale_mode": "it is used with scale_factors alone",
    "tensor_format": "of the oldest versions of diffusers, which knew NumPy's arrays too",
}  # fmt: skip

#: Keys that are refused if they have a value, each with its effect.
REFUSED = {"scale_factors": "it changes the size of the image between steps"}

#: All keys whose meaning for our runs is known.
KNOWN = LEVELS | ANSWER | HARMLESS.keys() | REFUSED.keys()

#: Classes whose steps clip the denoised prediction; other classes carry the keys of clipping without reading them.
CLIPPING = frozenset({
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "HeunDiscreteScheduler",
    "LCMScheduler", "UnCLIPScheduler",
})  # fmt: skip
#: Classes whose steps threshold the denoised prediction; other classes carry the keys of thresholding without reading them.
THRESHOLDING = frozenset({
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "LCMScheduler",
    "SASolverScheduler", "UniPCMultistepScheduler",
})  # fmt: skip

#: Classes whose levels are times of rectified flow in every configuration.
FLOWS = frozenset({
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
})  # fmt: skip

_TOKENS = "it unmasks or changes tokens, which no differential equation does: keep it"
_UPWARDS = "it runs from data to noise; diffode.solve does that with upwards=True"
_CONSISTENCY = "its network is a consistency function, which answers with the end of the flow: keep it"
_AS_MAP = "; solvers run it as a map, adapters.from_consistency(model, scheduler)"

#: Classes that follow a path's levels, but whose networks are made for their own few steps: consistency functions, which answer
#: with the end of the flow in the place of a denoised mean.
FEW_STEP = frozenset({"FlowMatchLCMScheduler", "LCMScheduler", "TCDScheduler"})

#: Classes that no solver of diffode can replace, each with the reason, and with a call that works if there is one.
CLASSES = {
    **dict.fromkeys(("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
                     "VQDiffusionScheduler"), _TOKENS),
    **dict.fromkeys(("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"), _UPWARDS),
    **dict.fromkeys(("CMStochasticIterativeScheduler", "SCMScheduler"), _CONSISTENCY + _AS_MAP),
    "ScoreSdeVeScheduler": "its network takes noise levels as they are: run diffode.solve on Field.from_score(lambda x, t: "
    "model(x, t).sample, diffode.paths.get('edm:sigma_min=0.01,sigma_max=1348'))",
    "DDPMWuerstchenScheduler": "its network takes times between 0 and 1: run diffode.solve on Field.from_noise(lambda x, t: "
    "model(x, t), diffode.paths.get('vp_cosine'))",
    "RePaintScheduler": "it goes up and down to fill in a picture: keep it",
    "ConsistencyDecoderScheduler": _CONSISTENCY,
    "KarrasVeScheduler": "diffusers itself no longer has it: run diffode.solve on adapters.from_edm(model)",
    "HeliosScheduler": "it changes the size of the sample between its stages: keep it",
    "HeliosDMDScheduler": "it changes the size of the sample between its stages: keep it",
    "PiflowScheduler": "its network answers with a policy, not with a velocity: keep it",
    "FlowMapEulerDiscreteScheduler": "its network is a flow map of two times, not a velocity: keep it; solvers run it "
    "as a map, adapters.from_flow_map_model(model, scheduler)",
    "MiniMaxH3Scheduler": "its timesteps are counted by its own pipeline: run diffode.solve on "
    "Field.from_velocity(lambda x, t: model(x, t), diffode.paths.get('rectified_flow'))",
    "RFD4ProteinaScheduler": "it is made for frames of proteins: keep it",
}  # fmt: skip
