"""Every sampler with every objective that it accepts, and what they mean, from the definitions alone."""

import itertools

import diffusers
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from mdaug.pipeline.schedulers import BETA_SCHEDULES, FLOW, PREDICTION_TYPES, SCHEDULERS, validate


def accepted(*choice) -> bool:
    try:
        validate(*choice)
    except ValueError:
        return False
    return True


# (sampler, betas, prediction type, zero terminal SNR)
CASES = [
    choice
    for choice in itertools.product(SCHEDULERS, ("linear", "cosine", None), PREDICTION_TYPES, (False, True))
    if accepted(*choice)
]


def coefficients(timestep: float, beta_schedule: str | None, prediction_type: str, zero_snr: bool):
    """(a, s, p, q) of x = a x_0 + s n and target = p x_0 + q n, from the definitions alone."""
    if prediction_type == FLOW:
        return 1 - timestep / 1000, timestep / 1000, -1, 1
    betas = diffusers.DDPMScheduler(beta_schedule=BETA_SCHEDULES[beta_schedule]).betas
    if zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    alpha_bar = float((1 - betas).cumprod(0)[int(timestep)])
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return a, s, *{"epsilon": (0, 1), "sample": (1, 0), "v_prediction": (-s, a)}[prediction_type]
