"""What is promised of generation on a GPU (run with: pytest -m gpu), as far as possible on a CPU too."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan
from mdaug.generation.worker import Busy, prepare, sample_images
from shards.dataset import ShardDataset
from tests.devices import DEVICES
from tests.tiny_pipeline import CLASSES, save_tiny, tiny_pipeline


def make(ldm: Path, folder: Path, **options) -> list[np.ndarray]:
    settings = {"num_samples": 24, "samples_per_shard": 8, "batch_size": 8, "num_inference_steps": 10} | options
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, **settings))
    dataset = ShardDataset(folder)
    return [dataset[i]["image"].astype(int) for i in range(len(dataset))]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_same_plan_gives_the_same_bytes_and_other_batches_nearly_the_same(tmp_path, precision):
    ldm = save_tiny(tmp_path / "ldm")
    first = make(ldm, tmp_path / "a", mixed_precision=precision)
    for path in (tmp_path / "a").glob("*.tar"):
        make(ldm, tmp_path / "b", mixed_precision=precision)
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    other = make(ldm, tmp_path / "c", mixed_precision=precision, batch_size=3)
    differences = np.abs(np.stack(first) - np.stack(other))
    assert differences.mean() < (0.5 if precision == "no" else 8)  # levels of 255


@pytest.mark.gpu
def test_the_pipeline_runs_in_bfloat16_on_the_device():
    options = {"num_inference_steps": 5, "output_type": "pt", "guidance_scale": 2.0}
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    exact = pipeline("fall", generator=torch.Generator().manual_seed(0), **options).images
    low = pipeline.to("cuda", torch.bfloat16)("fall", generator=torch.Generator().manual_seed(0), **options).images
    assert (low.device.type, low.dtype) == ("cuda", torch.float32)
    assert (low.cpu() - exact).abs().mean() < 0.05


@DEVICES
def test_a_compiled_network_is_compiled_once_whatever_the_size_of_a_batch(device, monkeypatch):
    """Batches of 8, the last of 4 and, where rejected images are made again, of 1; images as without compilation."""
    plan = Plan(
        counts=dict.fromkeys(CLASSES, 20), seed=0, pipeline="", images="", image_shape=[16, 16, 3], cpu_threads=1,
        scheduler_type="ddim", num_inference_steps=2, guidance_scale=1.0, mixed_precision="no", batch_size=8,
        samples_per_shard=20, device=device, compile=True,
    )  # fmt: skip
    batches = [np.arange(8), np.arange(8, 16), np.arange(16, 20), np.arange(17, 18)]
    exact = tiny_pipeline().to(device)
    exact.set_progress_bar_config(disable=True)
    options = {"generator": [torch.Generator().manual_seed(seed) for seed in plan.seeds(batches[2]).tolist()]}
    options |= {"num_inference_steps": 2, "output_type": "pt"}
    expected = exact(plan.labels(batches[2]).tolist(), **options).images
    if device == "cpu":  # traced into one graph as always, without a C compiler
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipeline = tiny_pipeline().to(device)
    for _ in range(2):  # a second plan of the same kind, as the benchmark has, finds the network compiled
        prepare(plan, pipeline)
        images = [sample_images(plan, pipeline, Busy(device), None, samples) for samples in batches]
    assert [len(part) for part in images] == [8, 8, 4, 1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert (images[2] - expected).abs().mean() < (1e-5 if device == "cpu" else 2e-3)
