"""A training step on a GPU, on paper: tensors of the device "cuda" without data, which no GPU needs to be there for.

Tensors of two devices in one operation are an error there, and so is whatever waits for the device to learn a value.
Autograd's engine wants a real device, so the backward pass is skipped and gradients are put in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mdaug import distributed
from mdaug.training import losses
from mdaug.training.checkpoint import TrainingState
from mdaug.training.engine import Engine
from mdaug.training.objective import Objective
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.task import Task
from mdaug.training.vqvae_task import VQVAETask
from mdaug.training.workload import autocast_of_gpu
from tests.toy import toy_packed
from tests.toy_latents import toy_task

CUDA = torch.device("cuda", 0)


class Copies(TorchDispatchMode):
    """Remembers the operations that copy between host and device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(function))
        return result


class OneRank:
    """What DeepSpeed does at stage 0 on one rank."""

    torch_autocast_z0_gradscaler = None

    def __init__(self, module: nn.Module):
        self.module, self.optimizer = module, torch.optim.AdamW(module.parameters(), fused=True)

    def is_gradient_accumulation_boundary(self) -> bool:
        return True

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        with autocast_of_gpu(True):
            return self.module(*inputs, **keywords)

    def backward(self, loss: torch.Tensor) -> None:
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def engine_of(module: nn.Module) -> Engine:
    engine = object.__new__(Engine)
    engine.deepspeed, engine.module, engine.device = OneRank(module), module, CUDA
    engine.stage, engine.scaler, engine.fused, engine.max_grad_norm, engine.buckets = 0, None, True, 1.0, None
    engine.skipped = engine.skipped_in_a_row = torch.zeros((), device=CUDA)
    return engine


def on_paper(module: nn.Module) -> None:
    """Replace weights and buffers by tensors without data."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(torch.empty(value.shape, device=CUDA))
        for name, value in part._buffers.items():
            part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CUDA)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(distributed, "device", lambda: CUDA)
    with FakeTensorMode():
        yield


def ldm(root: Path) -> tuple[Task, dict[str, torch.Tensor]]:
    task = toy_task(root, ema_profiles=(0.05,))

    def put() -> dict[str, torch.Tensor]:
        on_paper(task.module)
        task.objective = Objective(task.config, CUDA)
        task.ema.averages = {
            name: [torch.empty(piece.shape, device=CUDA) for piece in own] for name, own in task.ema.averages.items()
        }
        latents, number = torch.zeros(4, 2, 4, 4, device=CUDA), torch.zeros(4, dtype=torch.long, device=CUDA)
        return {"latent": latents, "noise": latents, "timestep": number, "label": number}

    return task, put


def vqvae(root: Path) -> tuple[Task, dict[str, torch.Tensor]]:
    packed = toy_packed(root / "packed", train=8, val=4)
    options = {"image_size": 16, "n_layers": 1, "base_channels": 8, "vq_num_embed": 16, "disc_channels": 8}
    options |= {"use_discriminator": True, "disc_start": 0, "gradient_penalty": 1.0}
    options |= {"lambda_edge": 0.5, "lambda_spectrogram": 0.5, "lambda_doppler": 0.5}
    task = VQVAETask(VQVAEConfig(data_dir=packed, output_dir=root / "run", **options), packed, {})

    def put() -> dict[str, torch.Tensor]:
        adversary = task.adversary
        for network in (task.module, adversary.network):
            on_paper(network)
        adversary.device, adversary.optimizer = CUDA, torch.optim.AdamW(adversary.network.parameters())
        task.floor_in_range = losses.floor_in_range(task.floor, CUDA)
        for parameter in adversary.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return {"image": torch.zeros(4, 1, 16, 16, device=CUDA)}

    return task, put


@pytest.mark.parametrize("make", [ldm, vqvae])
def test_a_step_mixes_no_devices_and_waits_for_none(make, tmp_path, monkeypatch, request):
    task, put = make(tmp_path)
    request.getfixturevalue("paper")
    batch = put()
    engine, state = engine_of(task.module), TrainingState(step=1, samples=4, global_batch=4)
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, **_: (torch.zeros_like(inputs),))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: None)
    with Copies() as copies:
        loss, figures = task.loss(engine, batch)
        engine.backward(loss)
        engine.step(1e-3)
        task.after_step(engine, state)
    assert {loss.device, engine.grad_norm.device, *(value.device for value in figures.values())} == {CUDA}
    assert copies.found == []
    assert loss.dtype == torch.float32


def test_what_waits_is_noticed(paper):
    value = torch.zeros(3, device=CUDA)
    with Copies() as copies:
        value.cpu()
        torch.zeros(3).to(CUDA)
    assert len(copies.found) == 2
    with pytest.raises(DataDependentOutputException):
        float(value.sum())
    with pytest.raises(RuntimeError, match="device"):
        value + torch.zeros(3)
