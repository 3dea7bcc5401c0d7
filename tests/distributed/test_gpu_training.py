"""Trainings on a GPU against the same on it without what is tested (run with: pytest -m gpu).

Sums on a GPU come in no fixed order (atomic additions of embeddings and codes), so nothing here is equal to the bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mdaug.training.deepspeed_json import CONFIGS
from tests.devices import DEVICES, choose
from tests.ranks import run_ranks
from tests.toy import toy_packed
from tests.trainings import losses, train_ldm_with, train_vqvae

STEPS_APART = 5e-3  # relative, of the losses of a toy run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("toy")
    packed = toy_packed(root / "packed")
    run_ranks(1, train_vqvae, packed, root / "vqvae")
    return packed, root / "vqvae"


@pytest.fixture(scope="module")
def one_rank(folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZeRO 0 in fp32 on one GPU."""
    output = tmp_path_factory.mktemp("one") / "run"
    run_ranks(1, train_ldm_with, folders, output, {"mixed_precision": "no"})
    return output


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3, "offload"])
def test_every_zero_stage_follows_stage_0_over_nccl(folders, one_rank, tmp_path, ranks, stage):
    if ranks > torch.cuda.device_count():
        pytest.skip(f"{torch.cuda.device_count()} GPU(s) here, {ranks} wanted")
    offload = {"deepspeed_config": CONFIGS / "zero3_offload.json"}
    changes = offload if stage == "offload" else {"zero_stage": stage}
    run_ranks(ranks, train_ldm_with, folders, tmp_path / "run", {**changes, "mixed_precision": "no"})
    assert losses(tmp_path / "run") == pytest.approx(losses(one_rank), rel=STEPS_APART)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 2])
def test_low_precision_stays_near_fp32_and_resumes(folders, one_rank, tmp_path, precision, stage):
    changes = {"zero_stage": stage, "mixed_precision": precision}
    run_ranks(1, train_ldm_with, folders, tmp_path / "whole", changes)
    assert losses(tmp_path / "whole") == pytest.approx(losses(one_rank), rel=2e-2)
    run_ranks(1, train_ldm_with, folders, tmp_path / "run", {**changes, "stop_after": 7})
    run_ranks(1, train_ldm_with, folders, tmp_path / "run", changes)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=STEPS_APART)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 17))


def losses_through_stages(device: str, stages: tuple[int, ...], root: str) -> list[float]:
    """Train a step at each stage, from one to the next by a checkpoint; weights of stage 0 are channels_last."""
    choose(device)
    from torch.utils.data import default_collate

    from mdaug import distributed

    where = distributed.init()
    from mdaug.training import checkpoint
    from mdaug.training.batches import BatchPlan
    from mdaug.training.deepspeed_json import deepspeed_config
    from mdaug.training.engine import Engine
    from tests.toy_latents import toy_task

    plan = BatchPlan(8, 8, 1, 1, steps=9, num_samples=8, val_every=8, save_every=8)
    state = checkpoint.TrainingState(global_batch=8)
    found, folder, before = [], None, None
    for number, stage in enumerate(stages):
        task = toy_task(Path(root), zero_stage=stage, mixed_precision="no", ema_profiles=())
        settings = deepspeed_config(task.config, plan, "no")
        engine = Engine(task.module, task.config, settings, universal=before not in (None, stage))
        weight = task.module.down_blocks[0].resnets[0].conv1.weight
        if stage == 0:
            if device == "cpu":  # as the engine does on a GPU
                task.module.to(memory_format=torch.channels_last)
            assert weight.is_contiguous(memory_format=torch.channels_last)
            assert not weight.is_contiguous()
        if folder is not None:
            checkpoint.load(folder, engine, state)
        batch = default_collate([task.dataset[position] for position in range(8 * number, 8 * number + 8)])
        loss, _ = task.loss(engine, {name: value.to(where) for name, value in batch.items()})
        engine.backward(loss)
        engine.step(1e-2)
        found.append(float(loss.detach()))
        state.step, state.samples, before = state.step + 1, state.samples + 8, stage
        bundle = checkpoint.collect(Path(root) / "checkpoints", engine, state, {}, task.sharded_state(), keep=1)
        for path, write in bundle.files.items():
            write(path)
        folder = bundle.folder
    return found


@DEVICES
def test_the_layout_of_the_weights_changes_no_loss_and_passes_through_checkpoints(device, tmp_path):
    """A path through stage 0, 2, 0, 0 and 3 is the path of stage 1 alone, whose weights lie as DeepSpeed lays them."""
    (straight,) = run_ranks(1, losses_through_stages, device, (1,) * 5, str(tmp_path / "straight"))
    (through,) = run_ranks(1, losses_through_stages, device, (0, 2, 0, 0, 3), str(tmp_path / "through"))
    assert through == pytest.approx(straight, rel=1e-5 if device == "cpu" else STEPS_APART)
    assert len(set(straight)) == 5


@pytest.mark.gpu
@pytest.mark.parametrize("command", ["train-vqvae", "train-ldm"])
@pytest.mark.parametrize("preset", ["gpu-6gb", "gpu-16gb"])
def test_presets_take_the_memory_that_is_foretold(preset, command, tmp_path):
    """What `mdaug estimate` and docs/scaling.md count against the peak of a few steps at ZeRO 0."""
    from mdaug import cli
    from mdaug.training.cost import Sharding, memory
    from mdaug.training.estimate import ldm_workload, vqvae_workload
    from mdaug.training.ldm_task import build_unet
    from mdaug.training.options_vqvae import VQVAEConfig
    from mdaug.training.vqvae_task import build_module

    flags = ["--config", preset, "--data_dir=d", f"--output_dir={tmp_path}"]
    flags += ["--vqvae_path=v"] if command == "train-ldm" else ["--use_perceptual=false"]
    config = cli.parse(command, flags)
    shape = [4, 16, 16] if preset == "gpu-16gb" else [4, 32, 32]
    if isinstance(config, VQVAEConfig):
        work = vqvae_workload(config, "fp16", 3)
    else:
        work = ldm_workload(config, "fp16", shape, 10)
    expected = memory(work, Sharding(0, 1, precision="fp16")).total

    batch, size = config.batch_size, int(config.image_size)
    latents = torch.zeros(batch, *shape, device="cuda")
    images, number = (
        torch.zeros(batch, 3, size, size, device="cuda"),
        torch.zeros(batch, dtype=torch.long, device="cuda"),
    )
    if isinstance(config, VQVAEConfig):
        network: Any = build_module(config, 3)[0].eval()  # else the codebook remembers its vectors
    else:
        network = build_unet(config, shape, 10)
    network.to("cuda").to(memory_format=torch.channels_last)
    held = [torch.empty_like(p) for _ in range(work.averages) for p in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        with torch.autocast("cuda", torch.float16):
            if isinstance(config, VQVAEConfig):
                out = network(images)[0]
            else:
                out = network(latents.contiguous(memory_format=torch.channels_last), number, number).sample
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(held) == work.averages * sum(1 for _ in network.parameters())
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=0.2)
