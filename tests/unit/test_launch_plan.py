"""`python -m launch plan`: an estimate that follows from a configuration alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from launch.__main__ import main
from mdaug.training.cost import (
    Sharding,
    StepTime,
    average_bytes,
    count,
    network_bytes,
    ring_bandwidth,
    saved_bytes,
    traffic,
)
from mdaug.training.ema import EMA
from mdaug.training.ldm_task import build_unet
from mdaug.training.options import LDMConfig

DEMO = Path(__file__).parents[2] / "configs/demo"
DEEPSPEED = Path(__file__).parents[2] / "deepspeed_configs"


def test_rings_of_any_length_send_what_zero_says():
    million = 1_000_000
    for ranks in (2, 8, 512):
        ring = (ranks - 1) / ranks * 4 * million  # one pass of fp32 around the ring
        sent = [traffic(million, Sharding(stage, ranks)).sent(ranks) for stage in range(4)]
        assert sent == pytest.approx([2 * ring, 3 * ring, 3 * ring, 2 * ring])
    assert traffic(million, Sharding(3, 1)).sent(1) == 0
    twice = [traffic(million, Sharding(stage, 8, passes=2)).sent(8) for stage in range(4)]
    assert twice == pytest.approx([2 * ring0 for ring0 in (3.5e6, 5.25e6, 8.75e6, 7e6)])


def test_memory_falls_with_every_stage_and_with_the_ranks():
    for precision in ("no", "bf16", "fp16"):
        for ranks in (4, 64):
            held = [network_bytes(10**9, Sharding(stage, ranks, precision=precision)) for stage in range(4)]
            assert held == sorted(held, reverse=True)
    assert network_bytes(1000, Sharding(3, 10**6), persistent=300) == pytest.approx(1200, abs=1)


def test_averages_are_cut_over_the_ranks_and_move_only_under_fp16():
    network = EMA(nn.Linear(31, 33), half_life=10, profiles=(0.05, 0.1))
    held = sum(piece.nbytes for piece in network.state().values())
    assert average_bytes(31 * 33 + 33, 3, 1) == held
    assert average_bytes(31 * 33 + 33, 3, 8) == held // 8
    for precision in ("no", "bf16", "fp16"):
        for stage in range(4):
            how = Sharding(stage, 8, precision=precision)
            more = traffic(10**6, how, averaged=True).sent(8) - traffic(10**6, how).sent(8)
            assert more == pytest.approx(7e6 if precision == "fp16" and stage in (1, 2) else 0)


def test_the_narrowest_link_is_the_rings():
    assert ring_bandwidth(8, 1, link=450, network=50) == 450
    assert ring_bandwidth(8, 2, link=450, network=50) == 50
    assert ring_bandwidth(8, 2, link=32, network=400) == 32
    assert ring_bandwidth(1, 8, link=32, network=400) == 400
    step = StepTime(computing=3, moving=1)
    assert (step.longest, step.shortest, step.efficiency) == (4, 3, 0.75)


def test_what_is_counted_without_data_is_what_autograd_keeps():
    config = LDMConfig(
        Path("d"), Path("o"), vqvae_path=Path("v"), block_out_channels=(32, 64), num_heads=4, norm_num_groups=8,
        batch_size=3, attention="none",
    )  # fmt: skip
    unet = build_unet(config, [4, 16, 16], 5)
    label = torch.zeros(3, dtype=torch.long)
    saved, largest = saved_bytes(lambda: unet(torch.zeros(3, 4, 16, 16), label, label).sample)
    load = count(config, "no", 3, [4, 16, 16], 5)
    assert load.parameters == sum(parameter.numel() for parameter in unet.parameters())
    assert (load.beside, load.averages) == (0, 3)  # of a half-life, and of two profiles
    assert load.activations == pytest.approx(saved + 2 * largest, rel=0.02)


def test_plan_of_a_preset_prints_memory_hours_and_assumptions(capsys):
    argv = ["plan", "--config", str(DEMO / "train-ldm.yaml"), "--gpu", "T4", "--gpus_per_node", "2"]
    assert main([*argv, "--nodes", "1", "--", "--num_workers", "0"]) == 0
    one = capsys.readouterr().out
    assert main([*argv, "--nodes", "4", "--mfu", "0.15"]) == 0
    four = capsys.readouterr().out
    assert main([*argv, "--nodes", "4", "--", "--deepspeed_config", str(DEEPSPEED / "zero2_fp16.json")]) == 0
    own = capsys.readouterr().out
    assert main([*argv, "--nodes", "4", "--", "--zero_stage", "2"]) == 0
    assert own == capsys.readouterr().out
    assert "ZeRO 2, fp16" in own
    assert "479 steps of 32 samples" in one  # the preset is 15,300 samples long
    assert "120 steps of 128 samples" in four
    computing = [float(re.search(r"ms: ([\d.]+) ms computing", shown)[1]) for shown in (one, four)]
    assert computing[1] == pytest.approx(2 * computing[0], rel=0.1)
    for word in ("GB per GPU", "GPU-hours", "65 TFLOP/s peak", "0.3 MFU", "400 Gbit/s", "nothing was measured"):
        assert word in one


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--config", str(DEMO / "pack.yaml")], "train-vqvae.yaml or train-ldm.yaml"),
        (["--config", str(DEMO / "train-ldm.yaml"), "--gpu", "GT710"], "choose one of H200, H100, A100"),
        (["--config", str(DEMO / "train-ldm.yaml"), "--", "--global_batch_size", "20"], "does not divide"),
        (["--config", str(DEMO / "train-vqvae.yaml"), "--", "--batch_size", "auto"], "give a number"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, flags, said):
    assert main(["plan", *flags]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
