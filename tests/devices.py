"""Tests for a CPU and, with `pytest -m gpu`, for a GPU: the half that CI runs keeps the other alive."""

from __future__ import annotations

import os

import pytest

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def choose(device: str) -> None:
    """Make a process without any tensors yet compute on a kind of device."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def allow_fp16() -> None:
    """Let DeepSpeed and the trainings use fp16 on a CPU, where it is slow and right."""
    from deepspeed.accelerator import get_accelerator

    from mdaug import distributed

    get_accelerator().is_fp16_supported = lambda: True
    distributed.require_gpu_for_fp16 = lambda precision, kind: None
