"""Consistency tuning: pairs of noise levels, the boundary condition, and a loss that begins at the pretraining's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mdaug.pipeline.schedulers import FLOW, build_scheduler
from mdaug.training.consistency import CLEAN, ConsistencyTask, Pairs, earlier
from mdaug.training.ldm_task import LDMTask
from mdaug.training.objective import Objective
from mdaug.training.options_ldm import DistilConfig, LDMConfig

CPU = torch.device("cpu")
T = 1000
TYPES = ("v_prediction", "sample", FLOW)
FOLDERS = {name: Path(name) for name in ("data_dir", "output_dir", "vqvae_path")}


def config(**changes) -> LDMConfig:
    return LDMConfig(**FOLDERS, **changes)


def test_in_stage_s_the_earlier_timestep_has_all_but_a_share_of_two_to_the_minus_s_of_the_noise():
    for stage in range(1, 12):
        for timestep in range(T):
            found = earlier(timestep, stage)
            assert CLEAN <= found < timestep
            share = (found + 1) / (timestep + 1)
            assert 1 - 2.0**-stage - 1 / (timestep + 1) < share <= 1 - 2.0**-stage
        assert earlier(0, stage) == CLEAN
    assert {earlier(timestep, 0) for timestep in range(T)} == {CLEAN}  # the gap of a full step: the pretraining


def test_stages_are_equally_long_and_a_function_of_the_position_alone():
    pairs = Pairs([0.0] * 4, [1.0] * 4, config(seed=3), 2, stages=4, total=1000)
    stages = [pairs.stage(position) for position in range(1010)]  # the last step may go beyond the total
    assert stages == sorted(stages)
    assert [stages[:1000].count(stage) for stage in (1, 2, 3, 4)] == [250] * 4
    assert set(stages[1000:]) == {4}
    sample = {"array": np.ones((4, 2, 2), np.float32), "label": 1}
    for position in (0, 600):
        item = pairs(dict(sample), position)
        again = Pairs([0.0] * 4, [1.0] * 4, config(seed=3), 2, stages=4, total=1000)(dict(sample), position)
        assert item["earlier"] == earlier(item["timestep"], pairs.stage(position)) == again["earlier"]
        assert (item["noise"] == again["noise"]).all()


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_estimate_is_the_teachers_and_its_target_undoes_it(prediction_type):
    objective = Objective(config(prediction_type=prediction_type), CPU)
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    timestep = torch.tensor([0, 1, 400, 998, 999])
    found = objective.noised(latent, noise, timestep)
    torch.testing.assert_close(objective.target_of(latent, found.sample, timestep), found.target, rtol=0, atol=1e-4)
    # Any prediction stands for the latent that diffusers' own scheduler reads in it.
    prediction = torch.randn(latent.shape, generator=generator)
    estimate = objective.denoised(prediction, found.sample, timestep)
    if prediction_type != FLOW:
        scheduler = build_scheduler("ddpm", "cosine", prediction_type)
        for row, k in enumerate(timestep.tolist()):
            step = scheduler.step(prediction[row : row + 1], k, found.sample[row : row + 1])
            torch.testing.assert_close(estimate[row : row + 1], step.pred_original_sample, rtol=0, atol=1e-5)
    else:
        share = ((timestep + 1) / T).view(-1, 1, 1, 1)
        torch.testing.assert_close(estimate, found.sample - share * prediction)


@pytest.mark.parametrize("prediction_type", ["v_prediction", FLOW])
def test_where_no_noise_is_left_the_estimate_is_the_latent_whatever_is_predicted(prediction_type):
    objective = Objective(config(prediction_type=prediction_type), CPU)
    latent, noise, wrong = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    off = []
    for timestep in (300, 30, 3, 0):
        k = torch.tensor([timestep])
        estimate = objective.denoised(wrong, objective.noised(latent, noise, k).sample, k)
        off.append(float((estimate - latent).abs().mean()))
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.02


class Network(nn.Module):
    """Predicts with one number and dropout, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.5)
        self.calls: list[bool] = []

    def forward(self, sample, time, label):
        self.calls.append(torch.is_grad_enabled())
        return SimpleNamespace(sample=self.dropout(self.factor * sample))


def task(kind: type[LDMTask], huber: float = 0.1, **changes) -> LDMTask:
    made = object.__new__(kind)
    made.config = config(**changes)
    made.objective = Objective(made.config, CPU)
    made.options = DistilConfig(**FOLDERS, ldm_path=Path("l"), huber=huber)
    return made


def batch(stage: int) -> dict[str, torch.Tensor]:
    latent, noise = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([0, 3, 200, 500, 900, 999])
    before = torch.tensor([earlier(int(k), stage) for k in timestep])
    return {"latent": latent, "noise": noise, "timestep": timestep, "label": timestep * 0, "earlier": before}


@pytest.mark.parametrize("prediction_type", TYPES)
def test_at_a_gap_of_one_full_step_the_errors_are_those_of_the_pretraining(prediction_type):
    network = Network().eval()
    found = task(ConsistencyTask, prediction_type=prediction_type)._errors(network, batch(0))
    expected = task(LDMTask, prediction_type=prediction_type)._errors(network, batch(0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (task(ConsistencyTask, prediction_type=prediction_type)._errors(network, batch(2)) != expected).any()


def test_the_loss_is_the_squared_error_for_a_large_c_and_the_error_for_a_small_one():
    network = Network().eval()
    squared = task(LDMTask)._errors(network, batch(0))
    large, _ = task(ConsistencyTask, huber=100.0).loss(network, batch(0))
    small, _ = task(ConsistencyTask, huber=1e-5).loss(network, batch(0))
    assert large.item() * 200 == pytest.approx(squared.mean().item(), rel=1e-2)
    assert small.item() == pytest.approx(squared.sqrt().mean().item(), rel=1e-3)


def test_no_gradient_passes_through_the_target_and_both_passes_drop_the_same():
    network = Network().train()
    tuning = task(ConsistencyTask)
    seen = []
    network.dropout.register_forward_hook(lambda module, given, made: seen.append(made == 0))
    torch.manual_seed(5)
    loss, _ = tuning.loss(network, batch(3))
    loss.backward()
    assert network.calls == [False, True]  # the target first, then what is trained
    assert torch.equal(seen[0], seen[1])
    # The gradient is that of the distance to a target that does not move.
    network.eval()
    network.factor.grad = None
    tuning.loss(network, batch(3))[0].backward()
    shown = tuning.objective.noised(*(batch(3)[name] for name in ("latent", "noise", "timestep")))
    fixed = tuning._target(network, batch(3), shown)
    assert not fixed.requires_grad
    squared = (network.factor * shown.sample - fixed).square().flatten(1).mean(1)
    (expected,) = torch.autograd.grad((squared + 0.1**2).sqrt().mean(), network.factor)
    torch.testing.assert_close(network.factor.grad, expected)


def test_contradictions_are_refused_by_name():
    made = DistilConfig(**FOLDERS, ldm_path=Path("l"))
    for changes, message in (
        ({"gap_stages": 0}, "gap_stages=0"),
        ({"gap_stages": 17}, "gap_stages=17"),
        ({"huber": 0.0}, "huber=0"),
        ({"init_from": Path("x")}, "init_from=x must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(made, **changes)
