"""`mdaug estimate`: an estimate that follows from a configuration alone."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mdaug import cli, config
from mdaug.cli import main
from mdaug.training.cost import (
    Sharding,
    StepTime,
    average_bytes,
    network_bytes,
    ring_bandwidth,
    traffic,
)
from mdaug.training.data_cost import DataCost
from mdaug.training.ema import EMA
from mdaug.training.estimate import _denoiser, ldm_workload, training_options
from mdaug.training.ldm_task import build_unet
from mdaug.training.options import EstimateConfig
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.workload import saved_bytes
from shards.order import EpochOrder
from tests.unit.shards_helpers import shard_folder

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
    assert (step.longest, step.efficiency) == (4, 0.75)


def test_what_is_counted_without_data_is_what_autograd_keeps():
    options = LDMConfig(
        Path("d"), Path("o"), vqvae_path=Path("v"), block_out_channels=(32, 64), num_heads=4, norm_num_groups=8,
        batch_size=3, attention="none",
    )  # fmt: skip
    unet = build_unet(options, [4, 16, 16], 5)
    label = torch.zeros(3, dtype=torch.long)
    saved, largest = saved_bytes(lambda: unet(torch.zeros(3, 4, 16, 16), label, label).sample)
    load = ldm_workload(options, "no", [4, 16, 16], 5)
    assert load.parameters == sum(parameter.numel() for parameter in unet.parameters())
    assert (load.beside, load.averages) == (0, 3)  # of a half-life, and of two profiles
    assert load.activations == pytest.approx(saved + 2 * largest, rel=0.02)


PRESET = """
common:
  image_size: 64
train-vqvae:
  n_layers: 2
train-ldm:
  block_out_channels: [32, 64, 128]
  num_heads: 4
  norm_num_groups: 16
  train_samples: 15300
distil:
  batch_size: 8
  train_samples: 6400
"""


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "preset.yaml").write_text(PRESET)
    return tmp_path / "preset.yaml"


def test_what_reading_costs_is_what_the_files_and_the_order_take(tmp_path):
    folder = shard_folder(tmp_path, (4, 4, 4, 1))
    cost = DataCost(samples=13, samples_per_shard=4, sample_bytes=0, fields=3)
    (table,) = folder.glob("samples-*.npy")
    assert cost.mapped == np.load(table).nbytes
    assert (cost.shards, cost.open_files(0), cost.open_files(8)) == (4, 4, 32)
    large = DataCost(samples=10**7, samples_per_shard=1000, sample_bytes=0, fields=1)
    tracemalloc.start()
    EpochOrder(np.full(large.shards, 1000), 0).index(5_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.9 < peak / large.order < 1.1


@pytest.mark.slow
def test_estimate_of_a_preset_prints_memory_hours_and_assumptions(preset, capsys):
    argv = ["estimate", "train-ldm", "--config", str(preset), "--gpu", "T4", "--gpus_per_node", "2"]

    def shown(*flags: str) -> str:
        assert main([*argv, *flags]) == 0
        return capsys.readouterr().out

    one, four = shown("--flags=--num_workers=0"), shown("--nodes", "4", "--mfu", "0.15")
    assert "479 steps of 32 samples" in one  # the preset is 15,300 samples long
    assert "120 steps of 128 samples" in four
    computing = [float(re.search(r"ms: ([\d.]+) ms computing", text)[1]) for text in (one, four)]
    assert computing[1] == pytest.approx(2 * computing[0], rel=0.1)
    assert "10 shards of 1,000" in one
    assert "up to 10 open files per rank (0 workers)" in one
    for word in (
        "MB a step",
        "of reading at 2 GB/s",
        "GB per GPU",
        "GPU-hours",
        "65 TFLOP/s peak",
        "0.3 MFU",
        "400 Gbit/s",
        "nothing was measured",
    ):
        assert word in one
    own = shown("--nodes", "4", "--flags", f"--zero_stage 0 --deepspeed_config {DEEPSPEED / 'zero2.json'}")
    assert own == shown("--nodes", "4", "--flags", "--zero_stage 2 --seed 1")
    assert "ZeRO 2, fp16" in own
    hour, two = (shown("--flags", f"--train_minutes {minutes}") for minutes in (60, 120))
    steps = [int(re.search(r"([\d,]+) steps of 32 samples", text)[1].replace(",", "")) for text in (hour, two)]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1)


def test_a_preset_and_the_configuration_of_a_run_give_the_same_estimate(preset, tmp_path, capsys):
    flags = ["--config", str(preset), "--data_dir=d", "--output_dir=o", "--vqvae_path", str(tmp_path)]
    config.save(cli.parse("train-ldm", flags), tmp_path / "run" / "config.yaml")
    (tmp_path / "geometry.json").write_text('{"latent_shape": [4, 16, 16]}')
    found = []
    for path in (preset, tmp_path / "run" / "config.yaml"):
        assert main(["estimate", "train-ldm", "--config", str(path)]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_distilling_takes_a_forward_pass_more_and_no_profiles(preset, capsys):
    def figures(command: str) -> tuple[float, int]:
        flags = "--mixed_precision no --batch_size 256"
        assert main(["estimate", command, "--config", str(preset), "--gpus_per_node=1", "--flags", flags]) == 0
        shown = capsys.readouterr().out
        computing, steps = re.search(r"ms: ([\d.]+) ms computing", shown), re.search(r"([\d,]+) steps of 256", shown)
        return float(computing[1]), int(steps[1])

    trained, distilled = figures("train-ldm"), figures("distil")
    assert distilled[0] == pytest.approx(4 / 3 * trained[0], rel=0.01)
    assert (trained[1], distilled[1]) == (60, 25)
    options = EstimateConfig("distil", preset)
    network = _denoiser(options, training_options(options, "distil", "--batch_size 7"))
    assert (network.batch_size, network.ema_profiles, network.block_out_channels) == (7, (), (32, 64, 128))


@pytest.mark.slow
def test_the_network_that_is_distilled_is_that_of_its_pipeline(preset, tmp_path, monkeypatch, capsys):
    made = cli.parse("train-ldm", ["--config", str(preset), "--data_dir=d", "--output_dir=o", "--vqvae_path=v"])
    values = {**config.as_dict(made), "block_out_channels": [16, 32]}
    monkeypatch.setattr("mdaug.training.consistency.find_pipeline", lambda path: (path, {"config": values}))
    (tmp_path / "ldm").mkdir()

    def parameters(command: str, *flags: str) -> float:
        assert main(["estimate", command, "--config", str(preset), *flags]) == 0
        return float(re.search(r"run +([\d.]+) M parameters", capsys.readouterr().out)[1])

    of_preset, of_pipeline = parameters("distil"), parameters("distil", "--flags", f"--ldm_path {tmp_path / 'ldm'}")
    assert of_preset == parameters("train-ldm")
    assert of_pipeline == parameters("train-ldm", "--flags", "--block_out_channels [16,32]") < of_preset / 4
    (tmp_path / "of_run.yaml").write_text("gap_stages: 3\n")
    assert main(["estimate", "distil", "--config", str(tmp_path / "of_run.yaml")]) == 2
    assert "name a pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--gpu", "GT710"], "must be one of H200, H100, A100"),
        (["--flags", "--global_batch_size 20 --batch_size 16"], "does not divide"),
        (["--flags", "--batch_size auto"], "give a number"),
        (["--flags=--no_such_flag=1"], "no_such_flag"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(capsys, flags, message):
    assert main(["estimate", "train-ldm", *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
