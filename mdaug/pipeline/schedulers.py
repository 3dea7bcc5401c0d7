"""Noise schedulers: one table of the combinations that fit, and the one place that builds them.

All schedulers are diffusers' own. What they have in common:

- latents are never clipped: `clip_sample` (on by default in DDPM and DDIM) and thresholding are off;
- where the network predicts v or the sample, the timesteps are "trailing" (for 50 of 1000 steps: 999, 979, ..., 19).
  They begin where the data are gone, and few steps are worth three times as many of the "leading" ones, which for
  8 steps begin at 875 with noise where a fifth of the signal should be (docs/sampling.md has the distances). With
  zero terminal SNR sampling must start there (Lin et al., WACV 2024, section 3.3);
- with epsilon prediction they are "leading" (980, 960, ..., 0): with the cosine schedule alpha_bar ends at 2e-9, where
  an error of 2 % of the predictor gives latents of std 6 to 57 with every sampler. So are those of PNDM and Heun,
  which fail when they begin at the last timestep (std 1e8, and with a perfect predictor of any kind).

A model trained by flow matching has no betas: x_t = (1 - t) x_0 + t n, and timestep t T. It is recognised by the
class of its scheduler, or by prediction_type "flow_prediction" (as diffusers calls it).

A distilled model (mdaug/training/consistency.py) is no longer a denoiser but maps noise of any level to a sample. "lcm"
samples it, and nothing else: a call, fresh noise to the next lower level, a call; at which levels, pipeline.py says. It
is recognised by the class of its scheduler, too. LCMScheduler's own boundary scaling is none above the first timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from shards.errors import UserError

BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "squaredcos_cap_v2": "squaredcos_cap_v2"}
FLOW = "flow_matching"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", FLOW)

# Name -> class of diffusers, its settings beside the common ones, and the fewest steps that give a usable result.
_CLASSES: dict[str, tuple[str, dict[str, Any], int]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "thresholding": False}, 1),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "thresholding": False}, 1),
    # Without the Runge-Kutta start PNDM calls the network once a step, not four times in the first ones;
    # its four-point formula then needs four steps before it means anything.
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, 4),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "thresholding": False}, 2),
    "unipc": ("UniPCMultistepScheduler", {"thresholding": False}, 2),
    "euler": ("EulerDiscreteScheduler", {}, 1),
    "heun": ("HeunDiscreteScheduler", {"clip_sample": False}, 1),
    "lcm": ("LCMScheduler", {"clip_sample": False, "thresholding": False}, 1),
}
LCM, MOST_CALLS = "lcm", 8  # of distilled models
SCHEDULERS = tuple(name for name in _CLASSES if name != LCM)
# Those that can start at pure noise: their classes know `rescale_betas_zero_snr`.
_ZERO_SNR = ("ddpm", "ddim", "dpmsolver++", "unipc", "euler", LCM)

# The same for flow matching. The first two name the prediction type in their configuration, so that `from_config` of
# another class takes it over; the others are flow matching by their class.
_FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0, "thresholding": False}
_FLOW_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_FLOW_SIGMAS}),
    "unipc": ("UniPCMultistepScheduler", _FLOW_SIGMAS),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    LCM: ("FlowMatchLCMScheduler", {}),
}

# What --quality stands for: sampler and steps; docs/sampling.md has the measurement.
QUALITY = {"draft": ("unipc", 8), "standard": ("ddpm", 20), "best": ("ddpm", 50)}
QUALITY_DISTILLED = {"draft": (LCM, 2), "standard": (LCM, 4), "best": (LCM, 4)}
DEFAULT_STEPS, DEFAULT_STEPS_DISTILLED = 50, 4  # as in pipeline.py, which is shipped without this module


def default_scheduler(prediction_type: str) -> Literal["ddim", "dpmsolver++"]:
    """Return the sampler that a pipeline holds where none was chosen."""
    return "dpmsolver++" if prediction_type == FLOW else "ddim"


def validate(
    scheduler_type: str = "ddim",
    beta_schedule: str | None = "squaredcos_cap_v2",
    prediction_type: str = "epsilon",
    rescale_betas_zero_snr: bool = False,
) -> None:
    """Check a combination.

    Raises:
        ValueError: an unknown name, or two choices that contradict, with what would be accepted.
    """
    flow = prediction_type == FLOW
    for field, value, accepted in (
        ("scheduler_type", scheduler_type, (*SCHEDULERS, LCM)),
        ("beta_schedule", "linear" if flow and beta_schedule is None else beta_schedule, tuple(BETA_SCHEDULES)),
        ("prediction_type", prediction_type, PREDICTION_TYPES),
    ):
        if value not in accepted:
            raise ValueError(f"{field}={value} must be one of {', '.join(accepted)}")
    if flow and beta_schedule is not None:
        raise ValueError(
            f"beta_schedule '{beta_schedule}' contradicts prediction_type '{FLOW}', whose straight path from data to "
            "noise has no betas; leave beta_schedule out, or choose another prediction_type"
        )
    if flow and rescale_betas_zero_snr:
        raise ValueError(
            f"rescale_betas_zero_snr contradicts prediction_type '{FLOW}', which has no betas and ends in pure noise "
            "as it is; leave rescale_betas_zero_snr out"
        )
    if flow and scheduler_type not in _FLOW_CLASSES:
        raise ValueError(
            f"scheduler_type '{scheduler_type}' cannot sample prediction_type '{FLOW}'; "
            f"choose one of {', '.join(_FLOW_CLASSES)}"
        )
    if scheduler_type == "pndm" and prediction_type == "sample":
        raise ValueError(
            "scheduler_type 'pndm' cannot use a model that predicts 'sample': its multistep formula combines noise "
            "predictions; choose another scheduler_type, or prediction_type epsilon or v_prediction"
        )
    if scheduler_type == LCM and prediction_type == "epsilon":
        raise ValueError(
            "few calls begin at pure noise, where a prediction of epsilon carries no information about the latent; "
            "train a model with prediction_type v_prediction, sample or flow_matching"
        )
    if rescale_betas_zero_snr and prediction_type == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr contradicts prediction_type 'epsilon': the last timestep is pure noise, from which "
            "a prediction of the noise carries no information; choose prediction_type v_prediction or sample"
        )
    if rescale_betas_zero_snr and scheduler_type not in _ZERO_SNR:
        raise ValueError(
            f"scheduler_type '{scheduler_type}' cannot start at pure noise, as rescale_betas_zero_snr asks; "
            f"choose one of {', '.join(_ZERO_SNR)}"
        )


def validate_steps(scheduler_type: str, num_inference_steps: int, num_train_timesteps: int = 1000) -> None:
    """Check the number of sampling steps of a scheduler.

    Raises:
        ValueError: too few steps for its formula, or more than the training has.
    """
    fewest = _CLASSES[scheduler_type][2]
    most = MOST_CALLS if scheduler_type == LCM else num_train_timesteps - 1
    if not fewest <= num_inference_steps <= most:
        raise ValueError(
            f"num_inference_steps={num_inference_steps} must be {fewest} to {most} for scheduler_type "
            f"'{scheduler_type}' ({num_train_timesteps} training timesteps)"
        )


def steps_of(strength: float, num_inference_steps: int) -> int:
    """Return how many of the sampler's steps are done where an image is noised to a share of the schedule only."""
    return int(num_inference_steps * strength + 1e-9)  # as in pipeline.py, which is shipped without this module


def validate_strength(scheduler_type: str, num_inference_steps: int, strength: float) -> None:
    """Check that a strength leaves the steps that a scheduler needs.

    Raises:
        ValueError: it leaves none, or too few, with the number of steps that would do.
    """
    fewest, left = _CLASSES[scheduler_type][2], steps_of(strength, num_inference_steps)
    if left < fewest:
        raise ValueError(
            f"strength={strength:g} leaves {left} of {num_inference_steps} steps to do, and '{scheduler_type}' needs "
            f"{fewest}; take num_inference_steps={math.ceil(fewest / strength - 1e-9)} or more"
        )


def warnings(scheduler_type: str, num_inference_steps: int, guidance_scale: float = 1.0) -> list[str]:
    """Return sentences about choices that run but are known to give worse samples, or to cost more than they need."""
    found = []
    if scheduler_type == "ddpm" and num_inference_steps < 20:
        found.append(
            f"ddpm with {num_inference_steps} steps loses diversity; take 20 or more, or --scheduler_type unipc"
        )
    if scheduler_type in ("ddim", "euler") and num_inference_steps < 20:
        found.append(
            f"{scheduler_type} with {num_inference_steps} steps loses a tenth of the spread or more; "
            "take 20 or more, or --scheduler_type dpmsolver++"
        )
    if scheduler_type == "pndm" and num_inference_steps < 10:
        found.append(f"pndm with {num_inference_steps} steps extrapolates from few points; take 10 or more")
    if scheduler_type == "heun":
        calls = 2 * num_inference_steps - 1
        found.append(f"heun calls the network twice a step: {num_inference_steps} steps cost {calls} of the others")
    if guidance_scale > 5:
        found.append(f"guidance {guidance_scale:g} makes the samples of a class alike; 1 to 3 is usual")
    return found


def _spacing(scheduler_type: str, prediction_type: str) -> str:
    """Return how the timesteps are spread; the module's docstring says why."""
    return "leading" if prediction_type == "epsilon" or scheduler_type in ("pndm", "heun") else "trailing"


def build_scheduler(
    scheduler_type: str = "ddim",
    beta_schedule: str | None = "squaredcos_cap_v2",
    prediction_type: str = "epsilon",
    num_train_timesteps: int = 1000,
    rescale_betas_zero_snr: bool = False,
) -> Any:
    """Return a diffusers scheduler.

    Args:
        scheduler_type: one of SCHEDULERS.
        beta_schedule: "linear" (1e-4 to 0.02), or "cosine", which diffusers calls "squaredcos_cap_v2"; None for
            flow matching.
        prediction_type: what the network predicts: "epsilon", "v_prediction", "sample" or "flow_matching".
        num_train_timesteps: timesteps of the training.
        rescale_betas_zero_snr: end the schedule in pure noise (Lin et al., WACV 2024, algorithm 1).

    Raises:
        ValueError: see `validate`.
    """
    import diffusers  # here, because options import this module for its names

    validate(scheduler_type, beta_schedule, prediction_type, rescale_betas_zero_snr)
    if prediction_type == FLOW or beta_schedule is None:
        name, settings = _FLOW_CLASSES[scheduler_type]
        return getattr(diffusers, name)(num_train_timesteps=num_train_timesteps, **settings)
    name, settings, _ = _CLASSES[scheduler_type]
    if scheduler_type == LCM:  # it takes its timesteps from as many: from all
        settings = {**settings, "original_inference_steps": num_train_timesteps}
    if rescale_betas_zero_snr:
        settings = {**settings, "rescale_betas_zero_snr": True}
    return getattr(diffusers, name)(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=BETA_SCHEDULES[beta_schedule],
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=prediction_type,
        timestep_spacing=_spacing(scheduler_type, prediction_type),
        steps_offset=0,
        **settings,
    )


def _type_of_class(class_name: str) -> str:
    for scheduler_type, (name, *_) in (*_CLASSES.items(), *_FLOW_CLASSES.items()):
        if class_name == name:
            return scheduler_type
    raise UserError(f"{class_name} is not one of the schedulers {', '.join(SCHEDULERS)}")


def trained_objective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training objective in the configuration of a stored scheduler, as arguments of `build_scheduler`."""
    flow = config.get("prediction_type", "flow_prediction") == "flow_prediction"  # FlowMatch... have no such field
    return {
        "beta_schedule": None if flow else config["beta_schedule"],
        "prediction_type": FLOW if flow else config["prediction_type"],
        "num_train_timesteps": config["num_train_timesteps"],
        "rescale_betas_zero_snr": bool(config.get("rescale_betas_zero_snr")) and not flow,
    }


def is_distilled(class_name: str) -> bool:
    """Return whether a model whose scheduler is of this class was distilled to few calls."""
    return _type_of_class(class_name) == LCM


def sampling_of(quality: str | None, class_name: str, config: Mapping[str, Any]) -> tuple[str | None, int]:
    """Return sampler and steps of a --quality, or of none, for a model whose scheduler has this class and config.

    Without a quality the sampler is None, which means that of the model. ddpm cannot sample flow matching; dpmsolver++
    takes its place.
    """
    distilled = is_distilled(class_name)
    if quality is None:
        return None, DEFAULT_STEPS_DISTILLED if distilled else DEFAULT_STEPS
    name, steps = (QUALITY_DISTILLED if distilled else QUALITY)[quality]
    flow = trained_objective(config)["prediction_type"] == FLOW
    return "dpmsolver++" if flow and name not in _FLOW_CLASSES else name, steps


def fitting(
    class_name: str, config: Mapping[str, Any], scheduler_type: str | None = None, beta_schedule: str | None = None
) -> str:
    """Return the name of the scheduler to sample with, after checking that it fits the training.

    Args:
        class_name: class of the scheduler stored with the model.
        config: its configuration.
        scheduler_type: another sampler, or None for that of the model.
        beta_schedule: the schedule that the user expects; only checked.

    Raises:
        UserError: `beta_schedule` is not that of the training, the sampler cannot use the prediction type, or it is
            not that of a distilled model.
    """
    trained = trained_objective(config)
    if beta_schedule is not None and BETA_SCHEDULES.get(beta_schedule) != trained["beta_schedule"]:
        raise UserError(
            f"--beta_schedule {beta_schedule} contradicts the model, which was trained with "
            f"{trained['beta_schedule'] or FLOW}; leave it out, or train a model with it"
        )
    name = scheduler_type or _type_of_class(class_name)
    if is_distilled(class_name) and name != LCM:
        raise UserError(
            f"this model was distilled to few calls, which {name} cannot use; leave --scheduler_type out, or give {LCM}"
        )
    if name == LCM and not is_distilled(class_name):
        raise UserError(f"{LCM} samples distilled models, and this is none; mdaug distil makes one of it")
    try:
        validate(name, trained["beta_schedule"], trained["prediction_type"], trained["rescale_betas_zero_snr"])
    except ValueError as error:
        raise UserError(f"this model cannot be sampled so: {error}") from None
    return name


def scheduler_like(trained: Any, scheduler_type: str | None = None, beta_schedule: str | None = None) -> Any:
    """Return the scheduler that samples from a model trained with `trained`: same betas, same prediction type.

    Args:
        trained: the scheduler stored with the model.
        scheduler_type: another sampler, or None for that of the model.
        beta_schedule: the schedule that the user expects; only checked.

    Raises:
        UserError: `beta_schedule` is not that of the training, or the sampler cannot use the prediction type.
    """
    name = fitting(type(trained).__name__, trained.config, scheduler_type, beta_schedule)
    return build_scheduler(name, **trained_objective(trained.config))
