"""One console line and one JSON line per report: progress, loss, speed, data wait, memory, ETA."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mdaug import distributed
from mdaug.training.batches import BatchPlan
from mdaug.training.cost import GPUS
from mdaug.training.options import TrainingConfig
from shards import atomic
from shards.writer import disk_full_as_user_error


class Metrics:
    """Collects what happens between two reports and writes it on rank 0.

    Losses stay on the device until a report, so that no step waits for the device. Records of `metrics.jsonl` that
    lie beyond `samples`, where a killed run resumes, are deleted: their steps come again. So are those of the
    validation there, if it is not `judged` yet.
    """

    def __init__(
        self,
        config: TrainingConfig,
        plan: BatchPlan,
        flops_per_sample: float | None,
        samples: int = 0,
        judged: bool = True,
    ):
        self.config, self.plan, self.flops_per_sample = config, plan, flops_per_sample
        self.device = distributed.device()
        self._sums: dict[str, torch.Tensor] = {}  # name -> (sum, count) of the finite values
        self._data_wait = 0.0
        self._steps = 0
        self._paused = 0.0
        self._start = time.perf_counter()
        self._rate = 0.0  # smoothed samples/s
        self._all_paused = self._all_samples = 0.0  # since the start of this process
        self._file = self._wandb = self._bar = None
        if distributed.is_main():
            _drop_records_beyond(config.output_dir / "metrics.jsonl", samples, judged)
            self._file = open(config.output_dir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - until close()
            self._wandb = _start_wandb(config) if config.use_wandb else None
            if sys.stderr.isatty():
                self._bar = tqdm(total=plan.steps, unit="step", dynamic_ncols=True, smoothing=0.05)

    def resume(self, step: int) -> None:
        """Start the clock at a step."""
        self._start = time.perf_counter()
        if self._bar is not None:
            self._bar.update(step)

    def add_data_wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._data_wait += seconds

    def add_pause(self, seconds: float) -> None:
        """Count time spent on validation, pictures and checkpoints, which is not training time."""
        self._paused += seconds

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Add one micro batch's mean values (detached scalars on the device); those not finite are left out."""
        for name, value in values.items():
            value = value.detach().float()
            finite = value.isfinite()
            pair = torch.stack([torch.where(finite, value, 0), finite.float()])
            self._sums[name] = pair if name not in self._sums else self._sums[name] + pair

    def step_done(self) -> None:
        """Count one optimizer step."""
        self._steps += 1
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, lr: float, grad_norm: torch.Tensor | None, skipped: float) -> dict[str, Any]:
        """Write and return the record of the steps since the last report; every rank calls it."""
        names = sorted(self._sums)
        sums = distributed.sum_over_ranks(torch.stack([self._sums[name] for name in names]))
        losses = dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        training = max(elapsed - self._paused, 1e-9)
        rate = self._steps * self.plan.global_batch / training
        self._rate = rate if self._rate == 0 else 0.7 * self._rate + 0.3 * rate
        # The time left has its share of validations, pictures and checkpoints.
        self._all_paused += self._paused
        self._all_samples += self._steps * self.plan.global_batch
        per_sample = 1 / self._rate + self._all_paused / self._all_samples
        remaining = (self.plan.steps - step) * self.plan.global_batch * per_sample
        record: dict[str, Any] = {
            "step": step,
            "samples": step * self.plan.global_batch,
            "epoch": round(step * self.plan.global_batch / self.plan.num_samples, 3),
            **losses,
            "lr": lr,
            "grad_norm": float(grad_norm) if grad_norm is not None else None,
            "skipped_steps": int(skipped),
            "img_s": rate,
            "img_s_device": rate / self.plan.ranks,
            "mfu": self._mfu(rate),
            "data_wait": self._data_wait / training,
            "paused_s": self._paused,
            "paused": self._paused / elapsed,
            "memory_gb": peak_memory_gb(self.device),
            "eta_s": remaining,
        }
        self.write(record)
        if distributed.is_main():
            self.log(_line(record, losses))
        self._sums, self._steps = {}, 0
        self._data_wait = self._paused = 0.0
        self._start = time.perf_counter()
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl (and wandb) on rank 0."""
        if self._file is not None:
            with disk_full_as_user_error(Path(self._file.name)):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        self._on_wandb("log", {name: value for name, value in record.items() if value is not None})

    def log(self, text: str) -> None:
        """Print a line on rank 0 without tearing the progress bar, and append it to log.txt; nothing for no text."""
        if not text or not distributed.is_main():
            return
        path = self.config.output_dir / "log.txt"
        with disk_full_as_user_error(path), open(path, "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Close the files."""
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()
        self._on_wandb("finish")

    def _on_wandb(self, method: str, *arguments: Any) -> None:
        """Call wandb where it is on; a failure switches it off and does not stop the training."""
        if self._wandb is None:
            return
        try:
            getattr(self._wandb, method)(*arguments)
        except Exception as error:
            self._wandb = None
            self.log(f"wandb is off from here on: {error}")

    def _mfu(self, rate: float) -> float | None:
        if self.flops_per_sample is None or self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        peak = next((gpu.flops for key, gpu in GPUS.items() if key in name), None)
        return None if peak is None else rate / self.plan.ranks * self.flops_per_sample / peak


def _drop_records_beyond(path: Path, samples: int, judged: bool = True) -> None:
    """Keep the records up to a number of samples; a line cut short by a kill is dropped, too.

    The validation at that number of samples is dropped where it is not `judged`: it comes again.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with contextlib.suppress(json.JSONDecodeError):
            if not line.endswith("\n") or (record := json.loads(line))["samples"] > samples:
                continue
            again = record["samples"] == samples and any(name.startswith(("val/", "images/")) for name in record)
            if judged or not again:
                kept.append(line)
    atomic.write_text(path, "".join(kept))


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process in 10^9 bytes: the device's on a GPU, resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _line(record: dict[str, Any], losses: dict[str, float]) -> str:
    eta = time.strftime("%H:%M:%S", time.gmtime(record["eta_s"]))
    parts = [f"samples {record['samples']:>9,}", f"epoch {record['epoch']:7.2f}"]
    parts += [f"{name} {value:.4f}" for name, value in losses.items()]
    parts.append(f"lr {record['lr']:.2e}")
    if record["grad_norm"] is not None:
        parts.append(f"grad norm {record['grad_norm']:.3f}")
    if record["skipped_steps"]:
        parts.append(f"skipped {record['skipped_steps']}")
    parts.append(f"{record['img_s']:.1f} img/s ({record['img_s_device']:.1f} per device)")
    if record["mfu"] is not None:
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    parts += [f"data wait {100 * record['data_wait']:.1f} %", f"paused {100 * record['paused']:.0f} %"]
    parts += [f"memory {record['memory_gb']:.2f} GB", f"ETA {eta}"]
    return " | ".join(parts)


def _start_wandb(config: TrainingConfig) -> Any:
    """Start wandb with one id per run, kept in its folder; a failure is reported and never stops the training."""
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        kept = config.output_dir / "wandb_id"
        if not kept.is_file():
            atomic.write_text(kept, secrets.token_hex(6) + "\n")
        settings = wandb.Settings(init_timeout=15)
        options: dict[str, Any] = {
            "project": config.wandb_project,
            "id": kept.read_text(encoding="utf-8").strip(),
            "resume": "allow",
            "dir": str(config.output_dir),
        }
        try:
            run = wandb.init(settings=settings, **options)
        except wandb.errors.CommError:
            print("wandb: no connection, logging offline")
            run = wandb.init(mode="offline", **options)
        run.define_metric("*", step_metric="samples")
        return run
    except Exception as error:
        print(f"wandb is off: {error}")
        return None
