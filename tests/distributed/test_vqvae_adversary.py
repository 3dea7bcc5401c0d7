"""The discriminator beside the engine: the numbers of plain torch under every ZeRO stage, and exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.ranks import run_ranks
from tests.toy import toy_packed
from tests.trainings import losses, train_vqvae, weights

SETTINGS = {
    "epochs": 1, "use_discriminator": True, "disc_start": 16, "disc_channels": 8, "gradient_penalty": 0.1,
    "lambda_edge": 0.5, "lambda_spectrogram": 0.5, "lambda_doppler": 0.5, "codebook_gradient": "rotation",
}  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_packed(tmp_path_factory.mktemp("toy") / "packed")


def plain_torch(packed: Path, output: Path) -> list[float]:
    """The same training as one loop over whole batches without engine; returns the losses."""
    import torch

    from mdaug import distributed
    from mdaug.images import in_range
    from mdaug.training.losses import adaptive_weight
    from mdaug.training.options_vqvae import VQVAEConfig
    from mdaug.training.vqvae_task import VQVAETask

    config = VQVAEConfig(
        data_dir=packed, output_dir=output, image_size=16, n_layers=1, base_channels=8, vq_num_embed=16, batch_size=8,
        lr=2e-3, **SETTINGS,
    )  # fmt: skip
    distributed.init()
    task = VQVAETask(config, packed, {})
    task.prepare(_Alone(task.module))  # places the codes
    critic = task.adversary.network
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=config.lr, betas=(0.5, 0.9), weight_decay=0)
    curve = []
    for step in range(8):
        images = in_range(torch.stack([task.dataset[p]["image"] for p in range(8 * step, 8 * step + 8)]))
        reconstruction, _, _, commitment = task.module(images)
        distance, _ = task.distance(reconstruction, images)
        loss = distance.mean() + commitment
        if 8 * step >= config.disc_start:
            adversarial = -critic(reconstruction).flatten(1).mean(1)
            of_distance = torch.autograd.grad(distance.sum(), reconstruction, retain_graph=True)[0]
            of_critic = torch.autograd.grad(adversarial.sum(), reconstruction, retain_graph=True)[0]
            weight = adaptive_weight(of_distance, of_critic)
            loss = loss + (config.lambda_adversarial * weight * adversarial).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), config.max_grad_norm)
        optimizer.step()
        if 8 * step >= config.disc_start:
            real = images.clone().requires_grad_()
            slope = torch.autograd.grad(critic(real).flatten(1).mean(1).sum(), real, create_graph=True)[0]
            critic_optimizer.zero_grad()
            (
                0.5 * torch.relu(1 - critic(images)).mean()
                + 0.5 * torch.relu(1 + critic(reconstruction.detach())).mean()
                + 0.5 * config.gradient_penalty * slope.square().flatten(1).sum(1).mean()
            ).backward()
            critic_optimizer.step()
        task.codebook.update(config.seed, step + 1)
        curve.append(float(loss.detach()))
    return curve


class _Alone:
    """A module where an engine is expected."""

    def __init__(self, module):
        import torch

        self.module, self.device = module, torch.device("cpu")

    def __call__(self, *inputs, **keywords):
        return self.module(*inputs, **keywords)


def train_stages(packed: Path, output: Path, stages: tuple[int, ...]) -> None:
    for stage in stages:
        train_vqvae(packed, output / str(stage), zero_stage=stage, **SETTINGS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_zero_stage_follows_plain_torch(packed, tmp_path, ranks):
    reference = run_ranks(1, plain_torch, packed, tmp_path / "plain")[0]
    run_ranks(ranks, train_stages, packed, tmp_path, (0, 1, 2, 3))
    for stage in range(4):
        curve = losses(tmp_path / str(stage))
        assert len(curve) == 8
        assert curve[:5] == pytest.approx(reference[:5], rel=1e-5), stage
        assert curve == pytest.approx(reference, abs=1e-3), stage  # two Adams at odds amplify the order of sums
    records = [json.loads(line) for line in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "discriminator" in record]
    assert [record["discriminator"] > 0 for record in steps] == [False] * 2 + [True] * 6
    assert all(0 < record["codes_in_batch"] <= 1 for record in steps)


def train_adversary(packed: Path, output: Path, stop_after: int | None = None) -> None:
    train_vqvae(packed, output, stop_after=stop_after, **SETTINGS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_restores_the_discriminator_to_the_bit(packed, tmp_path, ranks):
    run_ranks(ranks, train_adversary, packed, tmp_path / "whole")
    run_ranks(ranks, train_adversary, packed, tmp_path / "parts", 5)
    run_ranks(ranks, train_adversary, packed, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    assert all((value == expected[name]).all() for name, value in weights(tmp_path / "parts").items())
    whole, parts = (
        load_file(tmp_path / run / "checkpoints" / "samples-000000000064" / "extra.safetensors")
        for run in ("whole", "parts")
    )
    assert any(name.startswith("adversary.optimizer") for name in whole)
    assert all((value == parts[name]).all() for name, value in whole.items())
