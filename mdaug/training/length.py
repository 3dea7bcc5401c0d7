"""`--train_minutes`: the speed of a run, measured once before its first step, and the length that follows from it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from mdaug import config as configuration
from mdaug import distributed
from mdaug.training.batches import BatchPlan, plan_batches
from mdaug.training.checkpoint import TrainingState
from mdaug.training.deepspeed_json import deepspeed_config
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.loaders import loader, to_device
from mdaug.training.options import TrainingConfig
from mdaug.training.run_folder import CONFIG_FILE
from mdaug.training.task import Task
from shards import atomic
from shards.output_folder import OutputFolder

LENGTH_FILE = "length.json"
WARM_UP = 3  # steps that are not timed: first allocations, start of the data loading
LEAST_STEPS, MOST_STEPS = 5, 500  # that are timed
SHARE, MOST_S = 0.03, 30.0  # seconds spent on it: a share of the run, and the most
VALIDATIONS = 4  # in a run, at least
BACKWARD = 3  # passes forward that a pass forward and backward takes

Config = TypeVar("Config", bound=TrainingConfig)


def settle(config: Config, num_samples: int, output: OutputFolder, build: Callable[[Config], Task]) -> Config:
    """Return the options with `train_minutes` turned into numbers of samples; every rank calls it.

    The numbers are kept in `length.json`, so that a resumed run has the same length, and in `config.yaml`, with which
    the run can be repeated. The steps that are timed leave no trace: what was trained in them is thrown away.

    Args:
        config: options with `train_minutes`, `batch_size` a number.
        num_samples: samples of the training set.
        output: the run folder.
        build: returns a new task.
    """
    path = output.path / LENGTH_FILE
    assert config.train_minutes is not None
    record = distributed.from_main(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
    if record is None:
        begun = time.perf_counter()
        task, plan = build(config), plan_batches(config, num_samples)
        passes = task.validation_passes()
        rate = measure(task, config, plan)
        seconds = 60 * config.train_minutes - (time.perf_counter() - begun)
        # The clocks of the ranks differ; what the first one finds holds for all.
        record = distributed.from_main({"samples_per_s": rate, **lengths(seconds, rate, passes, plan)})
    fixed = dataclasses.replace(
        config, train_minutes=None, **{name: record[name] for name in ("train_samples", "val_samples", "save_samples")}
    )
    if distributed.is_main():
        atomic.write_text(path, json.dumps(record, indent=1) + "\n")
        configuration.save(fixed, output.path / CONFIG_FILE)
        print(
            f"{path}: {config.train_minutes:g} minutes at {record['samples_per_s']:.1f} samples/s are --train_samples "
            f"{fixed.train_samples} --val_samples {fixed.val_samples} --save_samples {fixed.save_samples}",
            flush=True,
        )
    return fixed


def lengths(seconds: float, rate: float, passes: int, plan: BatchPlan) -> dict[str, int]:
    """Return train_samples, val_samples and save_samples of a run that takes so long, its validations included.

    Intervals are those of the options, or shorter: a run is validated at least four times, or less often where that
    would take more than half of it. A run has at least one step.

    Args:
        seconds: length of the run.
        rate: samples trained per second.
        passes: samples that a validation and its pictures send forward.
        plan: global batch, and the intervals of the options.
    """
    pause = passes / (BACKWARD * rate)
    samples = seconds / (1 / rate + pause / plan.val_every)
    validations = VALIDATIONS if pause == 0 else min(VALIDATIONS, max(1, int(seconds / 2 / pause)))
    if samples < validations * plan.val_every:
        samples = (seconds - validations * pause) * rate
    train = max(1, int(samples) // plan.global_batch) * plan.global_batch
    return {
        "train_samples": train,
        "val_samples": min(plan.val_every, math.ceil(train / validations)),
        "save_samples": min(plan.save_every, math.ceil(train / VALIDATIONS)),
    }


def measure(task: Task, config: TrainingConfig, plan: BatchPlan) -> float:
    """Return the samples per second of all ranks over some optimizer steps of a task, which is of no use afterwards."""
    device = distributed.device()
    precision = resolve_precision(config.mixed_precision, device)
    engine = Engine(task.module, config, deepspeed_config(config, plan, precision))
    # Late in a run all that it has takes part, such as a discriminator.
    state = TrainingState(global_batch=plan.global_batch, samples=10**9)
    batches = iter(loader(task.dataset, config, dataclasses.replace(plan, steps=WARM_UP + MOST_STEPS), 0))

    def steps(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            for _ in range(plan.accumulation):
                loss, _ = task.loss(engine, to_device(next(batches), device))
                engine.backward(loss)
                engine.step(0.0)
            state.step += 1
            state.samples += plan.global_batch
            task.after_step(engine, state)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / count

    steps(WARM_UP - 1)
    one = distributed.from_main(steps(1))
    wanted = min(SHARE * 60 * (config.train_minutes or 1), MOST_S) / one
    count = int(min(max(wanted, LEAST_STEPS), MOST_STEPS))
    return distributed.from_main(plan.global_batch / steps(count))
