"""Noise schedulers: the one table of what fits together, and the one place that builds them.

All schedulers are diffusers' own. What is the same for all of them:

- latents are never clipped: `clip_sample` (on by default in DDPM and DDIM) and thresholding are off;
- where the network predicts v or the sample, the timesteps are "trailing" (for 50 of 1000 steps: 999, 979, ..., 19).
  They begin where the data are gone, and few steps are worth three times as many of the "leading" ones, which for
  8 steps begin at 875 with noise where a fifth of the signal should be (docs/sampling.md has the distances);
- with epsilon prediction they are "leading" (980, 960, ..., 0): with the cosine schedule alpha_bar ends at 2e-9, where
  an error of 2 % of the predictor gives latents of std 6 to 57 with every sampler. So are those of PNDM and Heun,
  which fail when they begin at the last timestep (std 1e8, and with a perfect predictor of any kind).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.errors import UserError

BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "squaredcos_cap_v2": "squaredcos_cap_v2"}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

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
}
SCHEDULERS = tuple(_CLASSES)

# What --quality stands for: sampler and steps; docs/sampling.md has the measurement.
QUALITY = {"draft": ("unipc", 8), "standard": ("dpmsolver++", 20), "best": ("dpmsolver++", 50)}


def validate(
    scheduler_type: str = "ddim", beta_schedule: str = "squaredcos_cap_v2", prediction_type: str = "epsilon"
) -> None:
    """Check a combination without importing anything heavy.

    Raises:
        ValueError: an unknown name, or two choices that contradict, with what would be accepted.
    """
    for field, value, accepted in (
        ("scheduler_type", scheduler_type, SCHEDULERS),
        ("beta_schedule", beta_schedule, tuple(BETA_SCHEDULES)),
        ("prediction_type", prediction_type, PREDICTION_TYPES),
    ):
        if value not in accepted:
            raise ValueError(f"{field} is '{value}'; it must be one of {', '.join(accepted)}")
    if scheduler_type == "pndm" and prediction_type == "sample":
        raise ValueError(
            "scheduler_type 'pndm' cannot use a model that predicts 'sample': its multistep formula combines noise "
            "predictions; choose another scheduler_type, or prediction_type epsilon or v_prediction"
        )


def validate_steps(scheduler_type: str, num_inference_steps: int, num_train_timesteps: int = 1000) -> None:
    """Check the number of sampling steps of a scheduler.

    Raises:
        ValueError: too few steps for its formula, or more than the training has.
    """
    fewest = _CLASSES[scheduler_type][2]
    most = num_train_timesteps - 1
    if not fewest <= num_inference_steps <= most:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; '{scheduler_type}' needs {fewest} to {most} "
            f"({num_train_timesteps} training timesteps)"
        )


def warnings(scheduler_type: str, num_inference_steps: int, guidance_scale: float = 1.0) -> list[str]:
    """Return sentences about a choice that runs but is known to give worse samples, or to cost more than it need."""
    found = []
    if scheduler_type == "ddpm" and num_inference_steps < 100:
        found.append(
            f"ddpm with {num_inference_steps} steps loses diversity; take 100 or more, or --scheduler_type dpmsolver++"
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
    beta_schedule: str = "squaredcos_cap_v2",
    prediction_type: str = "epsilon",
    num_train_timesteps: int = 1000,
) -> Any:
    """Return a diffusers scheduler.

    Args:
        scheduler_type: one of SCHEDULERS.
        beta_schedule: "linear" (1e-4 to 0.02), or "cosine", which diffusers calls "squaredcos_cap_v2".
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
        num_train_timesteps: timesteps of the training.

    Raises:
        ValueError: see `validate`.
    """
    validate(scheduler_type, beta_schedule, prediction_type)
    import diffusers

    name, settings, _ = _CLASSES[scheduler_type]
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


def scheduler_type_of(scheduler: Any) -> str:
    """Return the name in SCHEDULERS of a scheduler.

    Raises:
        UserError: a class that is not in the table.
    """
    return _type_of_class(type(scheduler).__name__)


def _type_of_class(class_name: str) -> str:
    for scheduler_type, (name, *_) in _CLASSES.items():
        if class_name == name:
            return scheduler_type
    raise UserError(f"{class_name} is none of the schedulers {', '.join(SCHEDULERS)}")


def fitting(
    class_name: str, trained: Mapping[str, Any], scheduler_type: str | None = None, beta_schedule: str | None = None
) -> str:
    """Return the name of the scheduler to sample with, after checking that it fits the training.

    Args:
        class_name: class of the scheduler stored with the model.
        trained: its configuration.
        scheduler_type: another sampler, or None for that of the model.
        beta_schedule: what the user believes the schedule to be; only checked.

    Raises:
        UserError: `beta_schedule` is not that of the training, or the sampler cannot use the prediction type.
    """
    if beta_schedule is not None and BETA_SCHEDULES.get(beta_schedule) != trained["beta_schedule"]:
        raise UserError(
            f"--beta_schedule {beta_schedule} contradicts the model, which was trained with "
            f"{trained['beta_schedule']}; leave it out, or train a model with it"
        )
    name = scheduler_type or _type_of_class(class_name)
    try:
        validate(name, trained["beta_schedule"], trained["prediction_type"])
    except ValueError as error:
        raise UserError(f"this model cannot be sampled so: {error}") from None
    return name


def scheduler_like(trained: Any, scheduler_type: str | None = None, beta_schedule: str | None = None) -> Any:
    """Return the scheduler that samples from a model trained with `trained`: same betas, same prediction type.

    Args:
        trained: the scheduler stored with the model.
        scheduler_type: another sampler, or None for that of the model.
        beta_schedule: what the user believes the schedule to be; only checked.

    Raises:
        UserError: `beta_schedule` is not that of the training, or the sampler cannot use the prediction type.
    """
    config = trained.config
    name = fitting(type(trained).__name__, config, scheduler_type, beta_schedule)
    return build_scheduler(name, config.beta_schedule, config.prediction_type, config.num_train_timesteps)
