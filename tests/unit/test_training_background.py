"""Folders written behind the training, snapshots that thin out, and records that a killed run takes back."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from mdaug.training import ema_snapshots
from mdaug.training.background_writer import BackgroundWriter, Bundle, complete, prepare, samples_of
from mdaug.training.batches import BatchPlan
from mdaug.training.checkpoint import TrainingState
from mdaug.training.ema import EMA
from mdaug.training.metrics import Metrics, _drop_records_beyond
from mdaug.training.options_vqvae import VQVAEConfig
from shards.errors import UserError

CPU = torch.device("cpu")


def bundle(folder: Path, write) -> Bundle:
    prepare(folder)
    return Bundle(folder, {folder / "file": write}, lambda: None)


def test_training_goes_on_while_a_folder_is_written_and_the_marker_comes_last(tmp_path):
    gate, background = threading.Event(), BackgroundWriter()

    def slow(path: Path) -> None:
        gate.wait()
        path.write_text("content")

    begun = time.monotonic()
    background.write([lambda: bundle(tmp_path / "samples-1", slow)])
    assert background.poll(1, CPU) is None
    assert complete(tmp_path) == []
    gate.set()
    written = background.finish()
    assert written.folders == [tmp_path / "samples-1"]
    assert written.stalled > 0
    assert written.seconds > 0
    assert complete(tmp_path) == [tmp_path / "samples-1"]
    assert background.stalled <= time.monotonic() - begun
    assert background.poll(2, CPU) is background.finish() is None


def test_the_next_folder_waits_for_the_one_before(tmp_path):
    background, order = BackgroundWriter(), []

    def write(name: str):
        def slow(path: Path) -> None:
            time.sleep(0.1)
            order.append(name)
            path.write_text(name)

        return lambda: bundle(tmp_path / f"samples-{name}", slow)

    assert background.write([write("1")]) is None
    assert "samples-1" in str(background.write([write("2")]))
    background.finish()
    assert order == ["1", "2"]
    assert len(complete(tmp_path)) == background.written == 2


def test_a_folder_that_cannot_be_written_stops_the_run_and_gets_no_marker(tmp_path):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    background = BackgroundWriter()
    background.write([lambda: bundle(tmp_path / "samples-1", full)])
    with pytest.raises(UserError, match=r"samples-1 could not be written: .*No space left"):
        background.finish()
    assert complete(tmp_path) == []


def test_snapshots_lie_evenly_and_never_exceed_their_number(tmp_path):
    plan = BatchPlan(
        global_batch=10, micro_batch=10, ranks=1, accumulation=1, steps=1000, num_samples=100, val_every=1, save_every=1
    )
    ema, keep, background = EMA(torch.nn.Linear(2, 2), 100, profiles=[0.05]), 8, BackgroundWriter()
    for samples in range(10, 10_001, 10):
        if ema_snapshots.due(samples, plan, keep) or samples == 10_000:  # the end of the run
            state = TrainingState(samples=samples, global_batch=10)
            background.write([lambda state=state: ema_snapshots.collect(tmp_path, ema, state, plan, keep)])
            background.finish()
            assert len(complete(tmp_path)) <= keep + 1
    left = [samples_of(path) for path in complete(tmp_path)]
    assert len(left) > keep // 2
    assert left.pop() == 10_000
    gaps = {after - before for before, after in itertools.pairwise(left)}
    assert max(gaps) - min(gaps) <= 10  # a step of the training


def test_records_beyond_the_checkpoint_and_a_torn_line_are_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"samples": samples, "loss": 1.0}) for samples in (8, 16, 24)]
    path.write_text("\n".join(whole) + '\n{"samples": 16, "lo')
    _drop_records_beyond(path, 16)
    assert path.read_text().splitlines() == whole[:2]
    _drop_records_beyond(tmp_path / "not-there", 16)


class Wandb(types.ModuleType):
    """Stands for wandb, failing where it is told to."""

    def __init__(self, fails: str):
        super().__init__("wandb")
        self.fails, self.calls = fails, []
        self.errors = types.SimpleNamespace(CommError=ConnectionError)
        self.Settings = lambda **_: None

    def init(self, **options):
        self.calls.append(options)
        if self.fails == "init" or (self.fails == "network" and "mode" not in options):
            raise ConnectionError("no route") if self.fails == "network" else RuntimeError("bad key")
        return self

    def define_metric(self, *_, **__):
        pass

    def log(self, record):
        if self.fails == "log":
            raise RuntimeError("broken pipe")

    def finish(self):
        if self.fails == "finish":
            raise RuntimeError("broken pipe")


@pytest.mark.parametrize("fails", ["", "init", "network", "log", "finish"])
def test_wandb_is_never_a_reason_to_fail(tmp_path, monkeypatch, capsys, fails):
    wandb = Wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = VQVAEConfig(data_dir=tmp_path, output_dir=tmp_path, use_wandb=True)
    plan = BatchPlan(
        global_batch=1, micro_batch=1, ranks=1, accumulation=1, steps=1, num_samples=1, val_every=1, save_every=1
    )
    for _ in range(2):  # the second as after a requeue
        metrics = Metrics(config, plan, None)
        metrics.write({"samples": 0, "val/loss": 1.0})
        metrics.write({"samples": 0, "val/loss": 2.0})
        metrics.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    (used,) = {call["id"] for call in wandb.calls}
    # A new run in a folder of the same name, here or in another container, is another run.
    (tmp_path / "wandb_id").unlink()
    Metrics(config, plan, None).close()
    assert wandb.calls[-1]["id"] != used
    said = capsys.readouterr().out
    expected = {"init": "wandb is off: bad key", "network": "logging offline"}.get(fails, "wandb is off from here on")
    assert (expected in said) == bool(fails)


def test_wandb_runs_on_rank_0_alone(tmp_path, monkeypatch):
    wandb = Wandb("")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("RANK", "1")
    config = VQVAEConfig(data_dir=tmp_path, output_dir=tmp_path, use_wandb=True)
    Metrics(config, None, None).close()  # type: ignore[arg-type]
    assert wandb.calls == []
