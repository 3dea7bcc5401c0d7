"""The objectives of the diffusion model against their closed forms, and what of them a pipeline keeps."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from mdaug import config as configuration
from mdaug.pipeline.schedulers import FLOW
from mdaug.training.objective import Objective, TimestepLaw
from mdaug.training.options_ldm import LDMConfig

CPU = torch.device("cpu")
T = 1000


def config(**changes) -> LDMConfig:
    return LDMConfig(data_dir=Path("d"), output_dir=Path("o"), vqvae_path=Path("v"), **changes)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    return latent, noise, torch.tensor([0, 1, 400, 998, 999])


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noising_and_target_are_those_of_diffusers(prediction_type, beta_schedule, zero_snr):
    if zero_snr and prediction_type == "epsilon":
        return
    options = config(prediction_type=prediction_type, beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    latent, noise, timestep = batch()
    found = Objective(options, CPU).noised(latent, noise, timestep)
    reference = DDPMScheduler(beta_schedule=options.beta_schedule, rescale_betas_zero_snr=zero_snr)
    target = {"epsilon": noise, "sample": latent, "v_prediction": reference.get_velocity(latent, noise, timestep)}
    torch.testing.assert_close(found.sample, reference.add_noise(latent, noise, timestep), rtol=0, atol=2e-6)
    torch.testing.assert_close(found.target, target[prediction_type], rtol=0, atol=2e-6)
    assert torch.equal(found.time, timestep)
    if zero_snr:
        assert torch.equal(found.sample[-1], noise[-1])


def test_flow_matching_is_the_straight_path_and_its_velocity():
    latent, noise, timestep = batch()
    found = Objective(config(prediction_type=FLOW), CPU).noised(latent, noise, timestep)
    share = ((timestep + 1) / T).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.sample, (1 - share) * latent + share * noise)
    torch.testing.assert_close(found.target, noise - latent)
    assert found.time.tolist() == [1, 2, 401, 999, 1000]  # t T, as the samplers of flow matching tell the network
    # One Euler step with the true velocity, from any t to 0, ends at the latent.
    torch.testing.assert_close(found.sample - share * found.target, latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
def test_min_snr_weights_in_the_form_of_each_prediction_type(beta_schedule):
    """Hang et al. 2023: min(SNR, g) / SNR for epsilon, min(SNR, g) / (SNR + 1) for v, min(SNR, g) for the latent."""
    options = {"beta_schedule": beta_schedule, "min_snr_gamma": 5.0}
    alpha_bar = DDPMScheduler(beta_schedule=config(**options).beta_schedule).alphas_cumprod.double()
    snr = alpha_bar / (1 - alpha_bar)
    least = snr.clamp(max=5)
    for prediction_type, expected in (("epsilon", least / snr), ("v_prediction", least / (snr + 1)), ("sample", least)):
        found = Objective(config(prediction_type=prediction_type, **options), CPU).weight
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)
        assert torch.equal(Objective(config(prediction_type=prediction_type), CPU).weight, torch.ones(T))


def test_min_snr_weighs_the_same_error_of_the_latent_alike_whatever_is_predicted():
    """A wrong latent, turned into the prediction of each type from the same noisy one, costs the same."""
    latent, noise, timestep = batch()
    timestep = torch.tensor([20, 100, 400, 600, 900])
    wrong = latent + 0.1
    costs = []
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        objective = Objective(config(prediction_type=prediction_type, min_snr_gamma=5), CPU)
        noisy, _, target = objective.noised(latent, noise, timestep)
        a, s = (values[timestep].view(-1, 1, 1, 1) for values in (objective.signal, objective.sigma))
        _, _, prediction = objective.noised(wrong, (noisy - a * wrong) / s, timestep)
        costs.append(objective.weight[timestep] * (prediction - target).square().mean((1, 2, 3)))
    for cost in costs[:2]:
        torch.testing.assert_close(cost, costs[2], rtol=1e-3, atol=1e-7)


def test_timesteps_are_uniform_or_logit_normal():
    uniform = TimestepLaw.of(config(seed=3))
    draws = np.array([uniform.draw(position) for position in range(20_000)])
    assert np.bincount(draws * 10 // T, minlength=10) == pytest.approx(2000, rel=0.1)
    law = TimestepLaw.of(config(seed=3, timestep_sampling="logit_normal", logit_mean=-0.5, logit_std=0.8))
    draws = np.array([law.draw(position) for position in range(20_000)])
    assert draws.min() >= 0
    assert draws.max() < T
    # Quantiles of a logit-normal are those of the normal, through the logistic function.
    for quantile, normal in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
        expected = 1 / (1 + math.exp(0.5 - 0.8 * normal))
        assert np.quantile(draws, quantile) / T == pytest.approx(expected, abs=0.012)
    assert [law.draw(position) for position in (5, 17)] == [draws[5], draws[17]]  # of the position alone


def test_timesteps_stay_in_range_at_the_ends():
    for mean in (-60.0, 60.0):
        law = TimestepLaw.of(config(timestep_sampling="logit_normal", logit_mean=mean))
        assert law.draw(0) == (0 if mean < 0 else T - 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prediction_type": FLOW, "beta_schedule": "linear"}, ("beta_schedule 'linear'", "prediction_type 'flow_")),
        ({"prediction_type": FLOW, "scheduler_type": "ddpm"}, ("scheduler_type 'ddpm'", "prediction_type 'flow_")),
        ({"prediction_type": FLOW, "scheduler_type": "pndm"}, ("scheduler_type 'pndm'", "prediction_type 'flow_")),
        ({"prediction_type": FLOW, "rescale_betas_zero_snr": True}, ("rescale_betas_zero_snr", "prediction_type 'f")),
        ({"prediction_type": FLOW, "min_snr_gamma": 5}, ("min_snr_gamma=5", "prediction_type=flow_matching")),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, ("rescale_betas_zero_snr", "'epsilon'")),
        ({"rescale_betas_zero_snr": True, "scheduler_type": "pndm"}, ("'pndm'", "rescale_betas_zero_snr")),
        ({"rescale_betas_zero_snr": True, "scheduler_type": "heun"}, ("'heun'", "rescale_betas_zero_snr")),
        ({"rescale_betas_zero_snr": True, "min_snr_gamma": 5}, ("min_snr_gamma=5", "rescale_betas_zero_snr")),
        ({"prediction_type": "sample", "scheduler_type": "pndm"}, ("scheduler_type 'pndm'", "prediction_type")),
        ({"logit_mean": 0.5}, ("logit_mean=0.5", "timestep_sampling=uniform")),
        ({"min_snr_gamma": 0}, ("min_snr_gamma=0", "greater than 0")),
        ({"logit_std": 0, "timestep_sampling": "logit_normal"}, ("logit_std=0", "greater than 0")),
        ({"num_inference_steps": 50, "num_train_timesteps": 50}, ("num_inference_steps=50", "50 training")),
    ],
)
def test_choices_that_contradict_are_errors_that_name_both(changes, named):
    with pytest.raises(ValueError, match="".join(f"(?=.*{re.escape(name)})" for name in named)):
        config(**changes)


def test_defaults_follow_the_objective_and_read_back(tmp_path):
    for options, expected in (
        (config(), ("squaredcos_cap_v2", "ddim")),
        (config(prediction_type=FLOW), (None, "dpmsolver++")),
        (config(prediction_type="epsilon", beta_schedule="linear", scheduler_type="euler"), ("linear", "euler")),
    ):
        assert (options.beta_schedule, options.scheduler_type) == expected
        configuration.save(options, tmp_path / "c.yaml")
        assert configuration.parse(LDMConfig, ["--config", str(tmp_path / "c.yaml")], "x") == options
