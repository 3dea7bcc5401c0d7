"""Tiny trainings in the process of a rank, and what they have left in their folders.

The trainings are imported by the rank, which may have to hide the GPUs before (see tests/devices.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file


def train_vqvae(packed: Path, output: Path, stop_after: int | None = None, **changes) -> None:
    """Train a tiny VQ-VAE; with `stop_after`, SIGTERM arrives during that optimizer step."""
    from mdaug.training.options_vqvae import VQVAEConfig
    from mdaug.training.train_vqvae import run
    from mdaug.training.vqvae_task import VQVAETask

    if stop_after is not None:
        after_step = VQVAETask.after_step

        def stopping(task, engine, state):
            after_step(task, engine, state)
            if state.samples == stop_after * state.global_batch:  # not in steps that --train_minutes measures
                os.kill(os.getpid(), signal.SIGTERM)

        VQVAETask.after_step = stopping  # this process ends with the test's rank
    settings = {
        "image_size": 16, "n_layers": 1, "base_channels": 8, "vq_num_embed": 16, "global_batch_size": 8,
        "batch_size": 2, "epochs": 3, "lr": 2e-3, "logging_steps": 1, "num_workers": 0, "early_stop_patience": 0,
    }  # fmt: skip
    with pytest.raises(SystemExit, match="143") if stop_after is not None else contextlib.nullcontext():
        run(VQVAEConfig(data_dir=packed, output_dir=output, **{**settings, **changes}))


def losses(output: Path) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def weights(output: Path) -> dict:
    return load_arrays(output / "last" / "diffusion_pytorch_model.safetensors")


def train_ldm(folders: tuple[Path, Path], output: Path, stop_after: int | None = None, **changes) -> None:
    """Train a tiny diffusion model; with `stop_after`, SIGTERM arrives during that optimizer step."""
    from mdaug.training.ldm_task import LDMTask
    from mdaug.training.options_ldm import LDMConfig
    from mdaug.training.train_ldm import run

    if stop_after is not None:
        after_step = LDMTask.after_step

        def stopping(task, engine, state):
            after_step(task, engine, state)
            if state.samples == stop_after * state.global_batch:  # not in steps that --train_minutes measures
                os.kill(os.getpid(), signal.SIGTERM)

        LDMTask.after_step = stopping
    settings = {
        "image_size": 16, "block_out_channels": (16, 32), "num_heads": 2, "norm_num_groups": 8, "layers_per_block": 1,
        "window_size": 4, "global_batch_size": 16, "batch_size": 4, "epochs": 4, "lr": 2e-3, "logging_steps": 1,
        "num_workers": 0, "early_stop_patience": 0, "num_inference_steps": 4,
    }  # fmt: skip
    packed, vqvae = folders
    with pytest.raises(SystemExit, match="143") if stop_after is not None else contextlib.nullcontext():
        run(LDMConfig(data_dir=packed, vqvae_path=vqvae, output_dir=output, **{**settings, **changes}))


def distil(folders: tuple[Path, Path, Path], output: Path, changes: dict, stop_after: int | None = None) -> None:
    """Distil the pipeline of a tiny diffusion model, folders (packed, VQ-VAE, run); `stop_after` as for `train_ldm`."""
    from mdaug.training.distil import run
    from mdaug.training.ldm_task import LDMTask
    from mdaug.training.options_ldm import DistilConfig

    if stop_after is not None:
        after_step = LDMTask.after_step

        def stopping(task, engine, state):
            after_step(task, engine, state)
            if state.samples == stop_after * state.global_batch:
                os.kill(os.getpid(), signal.SIGTERM)

        LDMTask.after_step = stopping
    settings = {
        "image_size": 16, "global_batch_size": 16, "batch_size": 4, "epochs": 4, "lr": 5e-4, "logging_steps": 1,
        "num_workers": 0, "early_stop_patience": 0, "fd_samples": 16,
    }  # fmt: skip
    packed, vqvae, ldm = folders
    with pytest.raises(SystemExit, match="143") if stop_after is not None else contextlib.nullcontext():
        run(DistilConfig(data_dir=packed, vqvae_path=vqvae, ldm_path=ldm, output_dir=output, **{**settings, **changes}))


def train_ldm_with(folders, output, changes: dict) -> None:
    train_ldm(folders, output, **changes)


def averaged(output: Path) -> dict:
    return load_arrays(output / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def flat(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) of the tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from flat(item, f"{name}/{key}")


def tensors_in(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) of everything below a folder: models, snapshots, checkpoints with optimizer states."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".pt"):
            read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=False)
            for name, tensor in flat(read):
                yield f"{path.relative_to(folder)}{name}", tensor


def untimed_records(output: Path) -> list[dict]:
    """The records of metrics.jsonl without what depends on the clock."""
    timed = {"img_s", "img_s_device", "data_wait", "paused_s", "paused", "memory_gb", "eta_s"}
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in timed} for record in records]
