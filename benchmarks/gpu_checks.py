"""What the first minutes on a GPU should tell: one line for each question that only a card can answer.

Questions were raised by reading the CUDA paths; each answer says what was expected. A question that fails is an answer,
too. `make prove-gpu` begins with these; without a GPU they run at toy size and prove nothing.

    python benchmarks/gpu_checks.py
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mdaug import distributed
from mdaug.generation.shard import to_png
from mdaug.generation.worker import encoders
from mdaug.training.batches import BatchPlan
from mdaug.training.cost import Sharding, memory
from mdaug.training.deepspeed_json import deepspeed_config
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.ldm_task import build_unet
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.workload import unet_workload

ON_GPU = torch.cuda.is_available()
BATCH = 64 if ON_GPU else 2
CHANNELS = (256, 512, 768, 1024) if ON_GPU else (32, 64)


def _config(**changes: Any) -> LDMConfig:
    settings = {"block_out_channels": CHANNELS, "batch_size": BATCH, "norm_num_groups": 32 if ON_GPU else 8}
    return LDMConfig(
        data_dir=Path("d"), output_dir=Path("o"), vqvae_path=Path("v"), num_heads=16 if ON_GPU else 4,
        **{**settings, **changes},
    )  # fmt: skip


def _engine() -> tuple[Engine, Callable[[], None]]:
    """Return an engine around the U-Net and what trains it by a step."""
    device, config = distributed.init(), _config()
    plan = BatchPlan(BATCH, BATCH, 1, 1, steps=100, num_samples=BATCH, val_every=10**9, save_every=10**9)
    precision = resolve_precision("auto", device)
    engine = Engine(build_unet(config, [4, 32, 32], 10), config, deepspeed_config(config, plan, precision))
    images = torch.randn(BATCH, 4, 32, 32, device=device).to(memory_format=distributed.memory_format())
    label = torch.zeros(BATCH, dtype=torch.long, device=device)

    def step() -> None:
        engine.backward(engine(images, label, label).sample.float().square().mean())
        engine.step(1e-5)

    return engine, step


def _timed(function: Callable[[], Any], count: int = 20) -> float:
    """Return the milliseconds of a call."""
    for _ in range(3):
        function()
    if ON_GPU:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(count if ON_GPU else 1):
        function()
    if ON_GPU:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun) / (count if ON_GPU else 1)


def _there_and_back(function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> None:
    function(images).sum().backward()


def waits() -> str:
    """Waits for the device in ten steps (expected: none), and the shares of kernels in three of them."""
    _, step = _engine()
    for _ in range(3):
        step()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * ON_GPU
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(10):
            step()
    events = profile.key_averages()
    calls = {event.key: event.count for event in events}
    found = {name: calls.get(name, 0) for name in ("cudaDeviceSynchronize", "cudaStreamSynchronize", "aten::item")}
    shares: Counter[str] = Counter()
    for event in events:
        used = event.self_device_time_total if ON_GPU else event.self_cpu_time_total
        for part in ("convolution", "group_norm", "silu", "copy_", "mm", "attention"):
            if part in event.key:
                shares[part] += used
                break
        else:
            shares["rest"] += used
    whole = sum(shares.values()) or 1
    return f"{found}; " + ", ".join(f"{name} {100 * share / whole:.0f} %" for name, share in shares.most_common())


def norms() -> str:
    """GroupNorm in channels_last against the plain layout: equal, and faster (expected from torch 2.15 on)."""
    device, answers = distributed.device(), []
    for shape in ((128, 256, 32, 32), (128, 1024, 4, 4)) if ON_GPU else ((2, 32, 8, 8),):
        for dtype in (torch.float32, torch.bfloat16):
            norm = nn.GroupNorm(32, shape[1], device=device, dtype=dtype)
            plain = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
            last = plain.detach().to(memory_format=torch.channels_last).requires_grad_()
            times, results = [], []
            for images in (plain, last):
                times.append(_timed(partial(_there_and_back, norm, images)))
                results.append(norm(images))
            equal = torch.allclose(results[0], results[1], atol=1e-5 if dtype == torch.float32 else 0.05)
            answers.append(f"{shape} {dtype}: {'equal' if equal else 'DIFFERENT'}, {times[0]:.2f} -> {times[1]:.2f} ms")
    return "; ".join(answers)


def attention() -> str:
    """The kernel of each kind of attention (expected: flash 1 without a bias, efficient 2 with one; never math 0)."""
    device, dtype = distributed.device(), torch.bfloat16 if ON_GPU else torch.float32
    answers = []
    for name, (batch, heads, tokens, width), biased in (
        ("windows", (BATCH * 16, 16, 64, 16), True),
        ("shifted windows", (BATCH, 256, 64, 16), True),
        ("axis", (BATCH * 8, 8, 8, 48), False),
        ("middle", (BATCH, 16, 16, 64), False),
    ):
        query = torch.randn(batch, heads, tokens, width, device=device, dtype=dtype, requires_grad=True)
        bias = torch.zeros(1, heads, tokens, tokens, device=device, dtype=dtype, requires_grad=True) if biased else None
        mask = None if bias is None else bias.expand(batch, -1, -1, -1)
        answers.append(f"{name} {torch._fused_sdp_choice(query, query, query, mask)}")
    return ", ".join(answers)


def precision() -> str:
    """Types of what norms return under autocast (expected: the training's precision alone)."""
    device = distributed.device()
    found: Counter[str] = Counter()
    network = build_unet(_config(), [4, 32, 32], 10).to(device)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda _, __, result: found.update([str(result.dtype)]))
    label = torch.zeros(1, dtype=torch.long, device=device)
    with torch.no_grad(), distributed.autocast(resolve_precision("auto", device), device):
        network(torch.randn(1, 4, 32, 32, device=device), label, label)
    return str(dict(found))


def peak() -> str:
    """Peak memory of a step against the estimate (expected: within 20 %)."""
    engine, step = _engine()
    for _ in range(3):
        step()
    how = Sharding(0, 1, 1, resolve_precision("auto", engine.device))
    unet = build_unet(_config(), [4, 32, 32], 10)
    counted = memory(unet_workload(unet, [4, 32, 32], BATCH, how.precision, 0), how).total / 1e9
    measured = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else float("nan")
    return f"{measured:.2f} GB, estimated {counted:.2f}"


def checkpoint() -> str:
    """Seconds that a checkpoint stalls the training, and a resume on this device (expected: the same next step)."""
    engine, step = _engine()
    step()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        files = engine.snapshot(Path(folder))
        stalled = time.perf_counter() - begun
        for path, write in files.items():
            write(path)
        step()
        expected = [parameter.detach().clone() for parameter in engine.module.parameters()]
        engine.load(Path(folder))
        step()
    off = max(float((a - b).abs().max()) for a, b in zip(expected, engine.module.parameters(), strict=True))
    return f"stalled {stalled:.2f} s, weights of the step after a resume off by {off:.1e}"


def encoding() -> str:
    """PNGs a second of one thread, colour and grey, and the threads of this process."""
    rng = np.random.default_rng(0)
    rows = np.linspace(0, 255, 256)[:, None] + rng.normal(0, 12, (256, 256))
    grey = np.clip(rows, 0, 255).astype(np.uint8)[..., None]
    colour = np.concatenate([grey, 255 - grey, grey // 2], axis=2)
    rates = []
    for image in (colour, grey):
        begun = time.perf_counter()
        for _ in range(40):
            to_png(image)
        rates.append(40 / (time.perf_counter() - begun))
    return f"colour {rates[0]:.0f}, grey {rates[1]:.0f}, threads {encoders()}"


def convolution() -> str:
    """A 3 x 3 convolution in channels_last against the plain layout, forward and backward, ms."""
    device, dtype = distributed.device(), torch.bfloat16 if ON_GPU else torch.float32
    shape = (BATCH, 256, 32, 32) if ON_GPU else (2, 8, 8, 8)
    times = []
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
        weight = torch.randn(shape[1], shape[1], 3, 3, device=device, dtype=dtype).to(memory_format=layout)
        weight.requires_grad_()
        times.append(_timed(partial(_there_and_back, partial(functional.conv2d, weight=weight, padding=1), images)))
    return f"{times[0]:.2f} -> {times[1]:.2f}"


CHECKS = (precision, waits, attention, norms, convolution, peak, checkpoint, encoding)
BY_HAND = (
    "two machines: NCCL_DEBUG=INFO, the time to the first barrier, LOCAL_RANK in each log, scancel --signal=USR2",
    "two cards: img/s of GPUS=1 --global_batch_size 64 against GPUS=2, and whether NCCL takes P2P or SHM",
)


def main() -> None:
    answers = {}
    for check in CHECKS:
        try:
            answers[check.__name__] = check()
        except Exception as error:  # the other questions have answers all the same
            answers[check.__name__] = (
                f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
        print(f"{check.__name__:12s}{(check.__doc__ or '').strip()}\n{'':12s}{answers[check.__name__]}", flush=True)
    for question in BY_HAND:
        print(f"by hand     {question}")
    print(json.dumps({"benchmark": "gpu_checks", "torch": torch.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
