"""What the diffusion trainer does on a GPU to the layout of the weights, tried on the CPU."""

from __future__ import annotations

import torch

from mdaug.training import sharded_tensors
from tests.toy_latents import toy_task


def test_channels_last_changes_neither_loss_nor_gradients_nor_the_order_of_the_averages(tmp_path):
    task = toy_task(tmp_path)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # a fresh network predicts zero
    samples = [task.dataset[position] for position in range(4)]
    batch = torch.utils.data.default_collate(samples)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        task.module.to(memory_format=layout)
        loss, _ = task.loss(task.module, {**batch, "latent": batch["latent"].contiguous(memory_format=layout)})
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in task.module.parameters()])
        weights = torch.cat([sharded_tensors.local_shard(parameter.detach()) for parameter in task.module.parameters()])
        found.append((loss.detach(), gradient, weights))
        task.module.zero_grad()
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-6)
    assert float(found[0][1].norm()) > 0
