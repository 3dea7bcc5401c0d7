"""What is promised of generation on a GPU (run with: pytest -m gpu)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mdaug.sampling.generate import GenerateConfig, generate
from shards.dataset import ShardDataset
from tests.tiny_pipeline import save_tiny, tiny_pipeline

pytestmark = pytest.mark.gpu


def make(ldm: Path, folder: Path, **options) -> list[np.ndarray]:
    settings = {"num_samples": 24, "samples_per_shard": 8, "batch_size": 8, "num_inference_steps": 10} | options
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, **settings))
    dataset = ShardDataset(folder)
    return [dataset[i]["image"].astype(int) for i in range(len(dataset))]


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


def test_the_pipeline_runs_in_bfloat16_on_the_device():
    options = {"num_inference_steps": 5, "output_type": "pt", "guidance_scale": 2.0}
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    exact = pipeline("fall", generator=torch.Generator().manual_seed(0), **options).images
    low = pipeline.to("cuda", torch.bfloat16)("fall", generator=torch.Generator().manual_seed(0), **options).images
    assert (low.device.type, low.dtype) == ("cuda", torch.float32)
    assert (low.cpu() - exact).abs().mean() < 0.05
