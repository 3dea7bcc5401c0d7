"""What is known of memory before the first step, and the micro batch that is chosen by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdaug import cli
from mdaug import config as configuration
from mdaug.images import to_tensor
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.training.batch_size import candidates, choose_batch_size, first_that_fits
from mdaug.training.batches import BatchPlan
from mdaug.training.cost import Memory, memory, sharding
from mdaug.training.loaders import loader, to_device
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.task import Task
from mdaug.training.vqvae_task import VQVAETask
from mdaug.training.workload import saved_bytes
from tests.toy import toy_packed
from tests.toy_latents import toy_task


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_packed(tmp_path_factory.mktemp("toy") / "packed")


def config(packed: Path, **changes) -> VQVAEConfig:
    options = {"image_size": 16, "n_layers": 1, "base_channels": 8, "vq_num_embed": 16, "disc_channels": 8, **changes}
    return VQVAEConfig(data_dir=packed, output_dir=packed / "run", **options)


def task(packed: Path, **changes) -> VQVAETask:
    return VQVAETask(config(packed, **changes), packed, {})


def expected(trained: Task, batch: int) -> Memory:
    """What is printed before the first step."""
    return memory(trained.workload(batch), sharding(trained.config))


def test_saved_bytes_of_a_known_graph():
    weight = torch.nn.Parameter(torch.ones(50, 30))
    x = torch.ones(10, 50)
    total, largest = saved_bytes(lambda: (x @ weight).relu())  # keeps x for the weight, and the output of the relu
    assert (total, largest) == (10 * 50 * 4 + 10 * 30 * 4, 10 * 50 * 4)
    assert saved_bytes(lambda: x + 1) == (0, 0)


def test_images_travel_as_a_byte_a_level_and_arrive_as_before(packed):
    trained = task(packed, batch_size=4, num_workers=0)
    plan = BatchPlan(4, 4, 1, 1, steps=1, num_samples=8, val_every=8, save_every=8)
    (batch,) = loader(trained.dataset, trained.config, plan, 0)
    assert batch["image"].nbytes == 4 * 16 * 16
    images = [trained.dataset.dataset[trained.dataset.order.index(position)]["image"] for position in range(4)]
    there = to_device(batch, torch.device("cpu"))["image"]
    assert torch.equal(there, torch.stack([to_tensor(image) for image in images]))


def test_memory_is_what_autograd_keeps_and_grows_with_the_batch(packed):
    vqvae = task(packed)
    one, four, eight = (expected(vqvae, batch) for batch in (1, 4, 8))
    # The largest tensor in flight is one that does not grow, as long as a micro batch is as small as this.
    assert four.activations - one.activations == pytest.approx((eight.activations - four.activations) * 3 / 4, rel=0.03)
    parameters = sum(p.numel() for p in vqvae.module.parameters())
    assert one.networks == 16 * parameters
    images = torch.zeros(8, 1, 16, 16)
    kept, _ = saved_bytes(lambda: vqvae.module.eval()(images))
    assert kept < eight.activations < 2 * kept
    with_critic = expected(task(packed, use_discriminator=True), 1)
    critic = sum(p.numel() for p in task(packed, use_discriminator=True).adversary.network.parameters())
    assert with_critic.networks == 16 * (parameters + critic)
    assert not vqvae.codebook._seen  # the forward passes leave no trace


def test_zero_stages_divide_the_model_over_the_ranks(packed, monkeypatch):
    whole = expected(task(packed), 1).networks
    monkeypatch.setenv("WORLD_SIZE", "4")
    shares = [expected(task(packed, zero_stage=stage), 1).networks / whole for stage in range(4)]
    # From stage 1 on DeepSpeed holds fp32 master weights beside the weights, and stage 3 leaves parameters as small as
    # these whole: tests/distributed/test_scaling.py.
    assert shares == pytest.approx([1, (8 + 12 / 4) / 16, (4 + 16 / 4) / 16, (4 + 20 / 4) / 16], rel=1e-3)


def test_candidates_divide_the_global_batch(packed, monkeypatch):
    assert candidates(config(packed), 64, 16) == [16, 8, 4, 2, 1]
    assert candidates(config(packed), 10, 16) == [8, 4, 2, 1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert candidates(config(packed, global_batch_size=24), 1000, 10) == [6, 4, 3, 2, 1]


def test_the_first_size_that_fits_is_taken():
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert first_that_fits([12, 6, 3, 1], attempt) == 3
    assert tried == [12, 6, 3]
    with pytest.raises(RuntimeError, match="No executable batch size"):
        first_that_fits([12, 6], attempt)


def test_auto_is_a_batch_size_of_the_command_line(packed):
    argv = ["--data_dir", str(packed), "--output_dir", "o", "--batch_size", "auto"]
    assert configuration.parse(VQVAEConfig, argv, "x").batch_size == "auto"
    auto = task(packed, batch_size="auto")
    assert choose_batch_size(auto.config, 64, auto.workload(1), auto.rehearse) == 16
    with pytest.raises(ValueError, match="batch_size=0"):
        config(packed, batch_size=0)


@pytest.mark.parametrize("kind", ["vqvae", "ldm"])
def test_a_rehearsal_leaves_no_trace(kind, packed, tmp_path):
    trained = task(packed, use_discriminator=True) if kind == "vqvae" else toy_task(tmp_path, dropout=0.1)
    state, numbers = torch.get_rng_state(), [value.clone() for value in trained.module.state_dict().values()]
    trained.rehearse(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(numbers, trained.module.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in trained.module.parameters())
    assert trained.module.training
    assert kind == "ldm" or not trained.codebook._seen


def test_memory_of_the_diffusion_model_counts_the_averages_and_leaves_no_trace(tmp_path):
    task = toy_task(tmp_path, dropout=0.1, ema_profiles=[0.05, 0.10])
    before = torch.get_rng_state()
    one, two, four, eight = (expected(task, batch) for batch in (1, 2, 4, 8))
    assert torch.equal(torch.get_rng_state(), before)  # the rank that estimates draws the same dropout as the others
    # Weight, gradient, two moments, and three averages, 4 bytes each.
    assert one.networks == 4 * (4 + 3) * sum(p.numel() for p in task.module.parameters())
    # The largest tensor in flight is one that does not grow, as long as a micro batch is as small as this.
    # Of a single image, what attention copies of several is a view.
    assert four.activations - two.activations == pytest.approx((eight.activations - four.activations) / 2, rel=0.03)
    assert one.activations < two.activations
    number = torch.zeros(8, dtype=torch.long)
    network = task.module.eval()  # the masks of dropout take four times as much on a CPU
    kept, _ = saved_bytes(lambda: network(torch.zeros(8, 2, 4, 4), number, number))
    assert kept < eight.activations < 2 * kept


def test_the_preset_for_small_sets_has_45_million_parameters():
    wanted = cli.parse("train-ldm", ["--config", "small", "--data_dir=d", "--output_dir=o", "--vqvae_path=v"])
    names = ("block_out_channels", "layers_per_block", "num_heads", "window_size", "attention", "norm_num_groups")
    with torch.device("meta"):
        network = HybridUNet2DModel(num_classes=10, **{name: getattr(wanted, name) for name in names})
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(45e6, rel=0.02)


@pytest.mark.gpu
def test_memory_is_within_a_fifth_of_what_the_gpu_shows(tmp_path):
    packed = toy_packed(tmp_path / "packed", size=128)
    vqvae = task(packed, image_size=128, n_layers=2, base_channels=32, mixed_precision="no")
    counted = expected(vqvae, 16)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    optimizer = torch.optim.AdamW(vqvae.module.parameters())
    images = torch.rand(16, 1, 128, 128, device="cuda")
    for _ in range(3):
        reconstruction, _, _, commitment = vqvae.module(images)
        (vqvae.distance(reconstruction, images)[0].mean() + commitment).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = sum(p.nbytes for p in vqvae.module.parameters())
    shown = torch.cuda.max_memory_allocated() - held + weights
    assert counted.total == pytest.approx(shown, rel=0.2)


@pytest.mark.gpu
def test_memory_of_the_diffusion_model_is_within_a_fifth_of_what_the_gpu_shows(tmp_path):
    task = toy_task(tmp_path, block_out_channels=(256, 512), num_heads=16, norm_num_groups=32, mixed_precision="no")
    counted = expected(task, 256)
    task.module.cuda()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(task.module.parameters())
    latents, number = torch.rand(256, 2, 4, 4, device="cuda"), torch.zeros(256, dtype=torch.long, device="cuda")
    for _ in range(3):
        task.module(latents, number, number).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    shown = torch.cuda.max_memory_allocated()  # the average is on the GPU too
    assert counted.total == pytest.approx(shown, rel=0.2)
