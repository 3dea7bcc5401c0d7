import re
from collections import Counter

import diffusers
import pytest
import torch

from mdaug.pipeline.schedulers import (
    FLOW,
    LCM,
    PREDICTION_TYPES,
    QUALITY,
    QUALITY_DISTILLED,
    SCHEDULERS,
    build_scheduler,
    default_scheduler,
    sampling_of,
    scheduler_like,
    validate,
    validate_steps,
    warnings,
)
from shards.errors import UserError
from tests.schedulers import CASES, coefficients

STEPS = 50


def sampled(choice: tuple, mean: float, std: float, error: float) -> tuple[float, float]:
    """Mean and std of samples drawn with the best predictor for N(mean, std^2) plus an error."""
    scheduler = build_scheduler(choice[0], choice[1], choice[2], 1000, choice[3])
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 48, 48, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        noisy = x if choice[2] == FLOW else scheduler.scale_model_input(x, t)
        a, s, p, q = coefficients(float(t), *choice[1:])
        score = (noisy - a * mean) / ((a * std) ** 2 + s**2)
        best = p * (mean + a * std**2 * score) + q * s * score
        best = best + error * torch.randn(best.shape, generator=generator)
        x = scheduler.step(best, t, x).prev_sample
    return float(x.mean()), float(x.std())


def test_every_objective_has_samplers():
    found = Counter((prediction_type, zero_snr) for _, _, prediction_type, zero_snr in CASES)
    assert found == {
        ("epsilon", False): 14, ("v_prediction", False): 14, ("sample", False): 12, (FLOW, False): 4,
        ("v_prediction", True): 10, ("sample", True): 10,
    }  # fmt: skip


@pytest.mark.parametrize("choice", CASES, ids=str)
def test_a_perfect_predictor_gives_mean_and_spread_of_the_data(choice):
    """Also when the predictor errs by 2 %; data of std 3 are not clipped."""
    for mean, std, error in ((0.0, 1.0, 0.0), (0.0, 1.0, 0.02), (0.5, 3.0, 0.0)):
        found_mean, found_std = sampled(choice, mean, std, error)
        assert found_std / std == pytest.approx(1, abs=0.1), (mean, std, error)
        assert found_mean == pytest.approx(mean, abs=0.1 * std), (mean, std, error)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("scheduler_type", ["ddim", "dpmsolver++", "unipc", "euler"])
def test_eight_steps_find_where_the_data_lie(scheduler_type, prediction_type):
    """Data N(2, 0.5): a sampler that begins where their signal should still be there ends beside them."""
    scheduler = build_scheduler(scheduler_type, "cosine", prediction_type)
    trained = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(x, t)
        signal, noise = trained[int(t)].sqrt(), (1 - trained[int(t)]).sqrt()
        data = 2 + signal * 0.5**2 * (noisy - signal * 2) / ((signal * 0.5) ** 2 + noise**2)
        epsilon = (noisy - signal * data) / noise
        best = data if prediction_type == "sample" else signal * epsilon - noise * data
        x = scheduler.step(best, t, x).prev_sample
    assert float(x.mean()) == pytest.approx(2, abs=0.1)
    assert 0.8 < float(x.std()) / 0.5 < 1.1


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
def test_nothing_clips_latents(scheduler_type):
    config = build_scheduler(scheduler_type).config
    assert not config.get("clip_sample", False)
    assert not config.get("thresholding", False)


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
def test_the_fewest_and_the_most_steps_that_are_allowed_run(scheduler_type):
    with pytest.raises(ValueError, match="num_inference_steps=0"):
        validate_steps(scheduler_type, 0)
    with pytest.raises(ValueError, match=r"num_inference_steps=100 must .* \(100 training"):
        validate_steps(scheduler_type, 100, 100)
    fewest = next(steps for steps in range(1, 10) if _accepted(scheduler_type, steps))
    for steps in (fewest, 99):
        scheduler = build_scheduler(scheduler_type, num_train_timesteps=100)
        scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, 4, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
        assert x.isfinite().all()


def _accepted(scheduler_type: str, steps: int) -> bool:
    try:
        validate_steps(scheduler_type, steps)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lms",), "scheduler_type=lms must be one of ddpm, ddim, pndm"),
        (("ddim", "sigmoid"), "beta_schedule=sigmoid must be one of linear, cosine, squaredcos_cap_v2"),
        (("ddim", "linear", "noise"), "prediction_type=noise must be one of epsilon, v_prediction, sample"),
        (("pndm", "linear", "sample"), "'pndm' cannot use a model that predicts 'sample'"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        validate(*arguments)
    with pytest.raises(ValueError, match=message):
        build_scheduler(*arguments)


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
@pytest.mark.parametrize("trained_type", ["ddpm", "euler"])
def test_another_sampler_keeps_the_noise_and_the_objective_of_the_training(trained_type, scheduler_type):
    trained = build_scheduler(trained_type, "cosine", "v_prediction", 500)
    sampler = scheduler_like(trained, scheduler_type)
    assert type(sampler) is type(build_scheduler(scheduler_type))
    assert torch.equal(sampler.alphas_cumprod, trained.alphas_cumprod)
    assert sampler.config.prediction_type == "v_prediction"


def test_a_schedule_other_than_the_trained_one_is_refused_by_both_names():
    trained = build_scheduler("ddim", "cosine")
    for same in (None, "cosine", "squaredcos_cap_v2"):
        assert isinstance(scheduler_like(trained, None, same), diffusers.DDIMScheduler)
    with pytest.raises(UserError, match=r"--beta_schedule linear contradicts the model, .* squaredcos_cap_v2"):
        scheduler_like(trained, None, "linear")
    with pytest.raises(UserError, match="'pndm' cannot use"):
        scheduler_like(build_scheduler("ddim", "linear", "sample"), "pndm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddpm", 10), "ddpm with 10 steps loses diversity"),
        (("ddim", 10), "ddim with 10 steps loses a tenth of the spread"),
        (("pndm", 5), "pndm with 5 steps"),
        (("heun", 10), "10 steps cost 19"),
        (("ddim", 50, 8.0), "guidance 8 makes the samples of a class alike"),
    ],
)
def test_choices_that_are_known_to_go_badly_are_named(arguments, message):
    assert any(message in warning for warning in warnings(*arguments))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_presets_of_quality_fit_every_objective_and_run_without_a_warning(prediction_type):
    flow = prediction_type == FLOW
    trained = build_scheduler(
        default_scheduler(prediction_type),
        beta_schedule=None if flow else "squaredcos_cap_v2",
        prediction_type=prediction_type,
    )
    for quality, (name, steps) in QUALITY.items():
        sampler, found = sampling_of(quality, type(trained).__name__, trained.config)
        assert found == steps
        assert sampler == ("dpmsolver++" if flow and name == "ddpm" else name)
        scheduler_like(trained, sampler)
        validate_steps(sampler, steps)
        assert warnings(sampler, steps) == []


DISTILLABLE = ("v_prediction", "sample", FLOW)


@pytest.mark.parametrize("prediction_type", DISTILLABLE)
def test_a_distilled_model_is_sampled_by_its_own_scheduler_alone(prediction_type):
    betas = None if prediction_type == FLOW else "squaredcos_cap_v2"
    trained = build_scheduler(LCM, betas, prediction_type)
    name = type(trained).__name__
    assert type(scheduler_like(trained)) is type(scheduler_like(trained, LCM)) is type(trained)
    assert sampling_of(None, name, trained.config) == (None, 4)
    for quality, (sampler, steps) in QUALITY_DISTILLED.items():
        assert sampling_of(quality, name, trained.config) == (sampler, steps) == (LCM, steps)
        assert steps <= 4
        assert warnings(sampler, steps) == []
    for other in SCHEDULERS:
        with pytest.raises(UserError, match=re.escape(f"distilled to few calls, which {other} cannot use")):
            scheduler_like(trained, other)
    undistilled = build_scheduler(default_scheduler(prediction_type), betas, prediction_type)
    with pytest.raises(UserError, match="lcm samples distilled models"):
        scheduler_like(undistilled, LCM)
    with pytest.raises(ValueError, match="carries no information"):
        validate(LCM)


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
@pytest.mark.parametrize("prediction_type", DISTILLABLE)
def test_a_perfect_consistency_function_gives_the_data_at_any_number_of_calls(prediction_type, steps):
    """For data N(2, 0.5^2) the path from x_t ends at 2 + 0.5 (x_t - 2 a) / sqrt((0.5 a)^2 + s^2)."""
    betas = None if prediction_type == FLOW else "squaredcos_cap_v2"
    scheduler = build_scheduler(LCM, betas, prediction_type)
    if prediction_type == FLOW:
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])  # as the pipeline does
    else:
        scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    x = torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        a, s, p, q = coefficients(float(t), betas, prediction_type, False)
        end = 2 + 0.5 * (x - 2 * a) / ((0.5 * a) ** 2 + s**2) ** 0.5
        x = scheduler.step(p * end + q * (x - a * end) / s, t, x, torch.Generator().manual_seed(int(t))).prev_sample
    assert float(x.mean()) == pytest.approx(2, abs=0.03)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)
