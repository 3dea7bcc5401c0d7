"""Under bf16 the networks work in bf16 on CUDA, norms and LPIPS included: counted on tensors without data."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from mdaug.generation.plan import Plan
from mdaug.generation.worker import Busy, prepare, sample_images
from mdaug.models.norms import WorkingGroupNorm
from mdaug.models.perceptual import PerceptualLoss
from mdaug.training.ldm_task import build_unet
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.vqvae_task import build_module
from mdaug.training.workload import autocast_of_gpu
from tests.tiny_pipeline import CLASSES, tiny_pipeline


class Norms(TorchDispatchMode):
    """Counts the types of what norms and the activations after them return."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if name in ("native_group_norm", "silu") and (result[0] if isinstance(result, tuple) else result).dim() == 4:
            self.dtypes[name, (result[0] if isinstance(result, tuple) else result).dtype] += 1
        return result


def test_without_mixed_precision_only_convolutions_round():
    """What --help says of mixed_precision=no on CUDA: torch's own setting, which nothing here changes."""
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def unet() -> nn.Module:
    config = LDMConfig(
        data_dir=Path("d"), output_dir=Path("o"), vqvae_path=Path("v"), block_out_channels=(32, 64), num_heads=4,
        norm_num_groups=8, window_size=4,
    )  # fmt: skip
    return build_unet(config, [4, 8, 8], 3)


def vqvae() -> nn.Module:
    config = VQVAEConfig(Path("d"), Path("o"), image_size=16, n_layers=1, base_channels=8, vq_num_embed=16)
    return build_module(config, 1)[0].eval()


def dtypes_on_cuda(build: Any, *shape: int) -> Counter[tuple[str, torch.dtype]]:
    with torch.device("meta"):
        network = build()
        held = [*network.named_parameters(), *network.named_buffers()]
    with FakeTensorMode(), torch.device("cuda"), autocast_of_gpu(True), Norms() as norms:
        state = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in held}
        label = torch.zeros(shape[0], dtype=torch.long)
        inputs = (label, label) if build is unet else ()
        functional_call(network, state, (torch.zeros(shape), *inputs))
    return norms.dtypes


@pytest.mark.parametrize(("build", "shape"), [(unet, (2, 4, 8, 8)), (vqvae, (2, 1, 16, 16))])
def test_norms_and_activations_are_bf16(build, shape, monkeypatch):
    seen = dtypes_on_cuda(build, *shape)
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert {name for name, _ in seen} == {"native_group_norm", "silu"}
    monkeypatch.setattr(WorkingGroupNorm, "forward", nn.GroupNorm.forward)
    assert {dtype for _, dtype in dtypes_on_cuda(build, *shape)} == {torch.float32}


def test_on_a_cpu_norms_and_names_are_as_before():
    network = unet()
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, WorkingGroupNorm):
            module.__class__ = nn.GroupNorm
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(network.state_dict())
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 5]), torch.tensor([0, 1])
    assert torch.equal(network(*inputs).sample, plain(*inputs).sample)


def test_only_the_decoder_samples_under_autocast():
    plan = Plan(
        counts=dict.fromkeys(CLASSES, 2), seed=0, pipeline="", images="", image_shape=[16, 16, 3], cpu_threads=1,
        scheduler_type="ddim", num_inference_steps=2, guidance_scale=1.5, mixed_precision="bf16", batch_size=4,
        samples_per_shard=4, device="cpu", compile=False,
    )  # fmt: skip
    pipeline = tiny_pipeline()
    prepare(plan, pipeline)
    autocast: dict[str, set[bool]] = {"unet": set(), "vqvae": set()}
    for name, module in (("unet", pipeline.unet), ("vqvae", pipeline.vqvae.decoder)):
        module.register_forward_pre_hook(lambda *_, name=name: autocast[name].add(torch.is_autocast_enabled("cpu")))
    images = sample_images(plan, pipeline, Busy("cpu"), None, np.arange(4))
    assert (autocast, images.dtype) == ({"unet": {False}, "vqvae": {True}}, torch.float32)


def test_the_backbone_of_lpips_works_in_the_precision_and_its_features_are_compared_in_fp32():
    distances = {}
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    other = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    for precision in ("no", "bf16"):
        torch.manual_seed(0)
        loss = PerceptualLoss("squeeze", precision=precision, random_backbone=True)
        dtypes: set[torch.dtype] = set()
        loss.lpips.net.register_forward_hook(lambda *call, seen=dtypes: seen.update(part.dtype for part in call[2]))
        distances[precision] = loss(images, other)
        assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert distances[precision].dtype == torch.float32
        torch.testing.assert_close(loss(images, images), torch.zeros(2))
    torch.testing.assert_close(distances["bf16"], distances["no"], rtol=0.05, atol=1e-3)
    reference = loss.lpips.float()(images.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)).flatten()
    torch.testing.assert_close(distances["no"], reference, rtol=0.05, atol=1e-3)
