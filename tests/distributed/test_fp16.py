"""fp16: the loss scale follows overflows, whose steps are left out and counted, and it is kept when a run resumes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.devices import DEVICES, allow_fp16, choose
from tests.ranks import run_ranks

OVERFLOWS = (2, 3)  # steps with an infinite loss; DeepSpeed's scaler of stages 1 to 3 forgives the first
STEPS, BATCH = 6, 8


def overflowing(device: str, stage: int, offload: bool, root: str) -> dict:
    """Train a tiny diffusion model in fp16, with two overflows; then resume its checkpoint and compare a step."""
    choose(device)
    import torch
    from torch.utils.data import default_collate

    from mdaug import distributed

    where = distributed.init()
    assert where.type == device
    allow_fp16()
    from mdaug.training import checkpoint
    from mdaug.training.batches import BatchPlan
    from mdaug.training.deepspeed_json import CONFIGS, deepspeed_config
    from mdaug.training.engine import Engine
    from tests.toy_latents import toy_task

    json = CONFIGS / "zero3_offload.json" if offload else None
    how = {"zero_stage": 0 if offload else stage, "deepspeed_config": json, "mixed_precision": "fp16"}
    plan = BatchPlan(BATCH, BATCH, 1, 1, steps=STEPS, num_samples=8, val_every=8, save_every=8)

    def begin():
        task = toy_task(Path(root), max_grad_norm=0.5, ema_profiles=(), **how)
        return task, Engine(task.module, task.config, deepspeed_config(task.config, plan, "fp16"))

    def scale(engine) -> float:
        return engine.scaler.get_scale() if stage == 0 else engine.deepspeed.optimizer.loss_scale

    def step(task, engine, state, overflow: bool) -> dict:
        before = [value.clone() for _, value in engine.full_parameters()]
        item = default_collate([task.dataset[position] for position in range(BATCH)])
        loss, _ = task.loss(engine, {name: value.to(where) for name, value in item.items()})
        engine.backward(loss * float("inf") if overflow else loss)
        engine.step(1e-3)
        state.step, state.samples = state.step + 1, state.samples + BATCH
        task.after_step(engine, state)
        moved = any(not torch.equal(old, new) for old, (_, new) in zip(before, engine.full_parameters(), strict=True))
        figures = {"loss": float(loss.detach()), "norm": float(engine.grad_norm), "scale": scale(engine)}
        return {**figures, "skipped": float(engine.skipped), "moved": moved}

    (task, engine), state = begin(), checkpoint.TrainingState(global_batch=BATCH)
    steps = [step(task, engine, state, number in OVERFLOWS) for number in range(STEPS)]
    bundle = checkpoint.collect(Path(root) / "checkpoints", engine, state, {}, task.sharded_state(), keep=1)
    for path, write in bundle.files.items():
        write(path)
    on = step(task, engine, state, False)

    (task, engine), state = begin(), checkpoint.TrainingState(global_batch=BATCH)
    fresh = scale(engine)
    checkpoint.load(bundle.folder, engine, state)
    return {"steps": steps, "on": on, "resumed": step(task, engine, state, False), "fresh": fresh}


STAGES = [(0, False), (2, False), (3, True), (1, False), (3, False)]
CASES = [("cpu", *stage) for stage in STAGES[:3]]
CASES += [pytest.param("cuda", *stage, marks=pytest.mark.gpu) for stage in STAGES]  # type: ignore[misc]


@pytest.mark.parametrize(("device", "stage", "offload"), CASES)
def test_overflows_halve_the_scale_and_are_left_out(device, stage, offload, tmp_path):
    (found,) = run_ranks(1, overflowing, device, stage, offload, str(tmp_path))
    steps, scales = found["steps"], [step["scale"] for step in found["steps"]]
    assert [step["moved"] for step in steps] == [number not in OVERFLOWS for number in range(STEPS)]
    assert [step["skipped"] for step in steps] == [0, 0, 1, 2, 2, 2]
    assert [math.isfinite(step["norm"]) for step in steps] == [number not in OVERFLOWS for number in range(STEPS)]
    forgiven = scales[1] if stage else scales[1] / 2
    assert scales == [scales[0], scales[0], forgiven, forgiven / 2, forgiven / 2, forgiven / 2]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["norm"] == pytest.approx(0.907, rel=0.02)  # the gradient's, not that of the scaled loss
    assert found["resumed"]["scale"] == found["on"]["scale"] < found["fresh"]
    exact = {"rel": 0, "abs": 0} if device == "cpu" else {"rel": 1e-3}
    assert found["resumed"]["loss"] == pytest.approx(found["on"]["loss"], **exact)


def without_end(device: str, root: str) -> str:
    """Train with nothing but overflows; return what the run ends with."""
    choose(device)
    from mdaug import distributed

    distributed.init()
    allow_fp16()
    from mdaug.training.batches import plan_batches
    from mdaug.training.loop import train
    from shards.errors import UserError
    from shards.output_folder import claim
    from tests.toy_latents import toy_task

    options = {"zero_stage": 1, "mixed_precision": "fp16", "batch_size": 4, "num_workers": 0, "logging_steps": 24}
    task = toy_task(Path(root), train_samples=96, val_samples=10_000, ema_profiles=(), **options)
    loss = task.loss
    task.loss = lambda engine, batch: (loss(engine, batch)[0] * float("inf"), {})
    output = claim(Path(root) / "run", "train-ldm", {})
    try:
        train(task, task.config, plan_batches(task.config, 8), output)
    except UserError as error:
        return str(error)
    return ""


@DEVICES
def test_a_run_of_overflows_ends_with_advice(device, tmp_path):
    """DeepSpeed's scaler would raise an error of its own where the scale has come down to 1, after 18 of these."""
    (said,) = run_ranks(1, without_end, device, str(tmp_path))
    assert "not finite in the last 20 steps" in said
    assert "--mixed_precision no" in said


def scaler_after(device: str, precision: str, stage: int, root: str) -> tuple[bool, float, float]:
    """Save a run, go on in fp16 at stage 2; return whether its loss scale is dynamic, the scale and the step's norm."""
    choose(device)
    import torch

    from mdaug import distributed

    where = distributed.init()
    allow_fp16()
    from mdaug.training import checkpoint
    from mdaug.training.batches import BatchPlan
    from mdaug.training.deepspeed_json import deepspeed_config
    from mdaug.training.engine import Engine
    from tests.toy_latents import toy_task

    plan, state = BatchPlan(4, 4, 1, 1, 9, 8, 8, 8), checkpoint.TrainingState(global_batch=4)
    folder = None
    for how, at in ((precision, stage), ("fp16", 2)):
        task = toy_task(Path(root), zero_stage=at, mixed_precision=how, ema_profiles=())
        settings = deepspeed_config(task.config, plan, how)
        engine = Engine(task.module, task.config, settings, universal=folder is not None and stage != at)
        if folder is not None:
            checkpoint.load(folder, engine, state)
        latents, number = torch.ones(4, 2, 4, 4, device=where), torch.zeros(4, dtype=torch.long, device=where)
        batch = {"latent": latents, "noise": latents, "timestep": number, "label": number}
        engine.backward(task.loss(engine, batch)[0])
        engine.step(1e-3)
        state.step, state.samples = state.step + 1, state.samples + 4
        if folder is None:
            bundle = checkpoint.collect(Path(root) / "checkpoints", engine, state, {}, task.sharded_state(), keep=1)
            for path, write in bundle.files.items():
                write(path)
            folder = bundle.folder
    optimizer = engine.deepspeed.optimizer
    return optimizer.loss_scaler.dynamic, float(optimizer.loss_scale), float(engine.grad_norm)


@DEVICES
@pytest.mark.parametrize(("precision", "stage"), [("no", 2), ("fp16", 0)])
def test_a_run_that_goes_on_in_fp16_has_a_loss_scale_of_its_own(device, precision, stage, tmp_path):
    """The checkpoint of a run in fp32, and any converted from stage 0, holds a scale of 1 that never changes."""
    ((dynamic, scale, norm),) = run_ranks(1, scaler_after, device, precision, stage, str(tmp_path))
    assert dynamic
    assert scale == 2**16
    assert 0 < norm < 10


def masters(device: str, stage: int, root: str) -> tuple[int, int, bool]:
    """Return parameters, collectives of `master_shards`, and whether it gives what DeepSpeed's function gives."""
    choose(device)
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    from mdaug import distributed
    from mdaug.training.batches import BatchPlan
    from mdaug.training.deepspeed_json import deepspeed_config
    from mdaug.training.engine import Engine
    from mdaug.training.sharded_tensors import own_part
    from tests.toy_latents import toy_task

    distributed.init()
    allow_fp16()
    task = toy_task(Path(root) / str(distributed.rank()), zero_stage=stage, mixed_precision="fp16", ema_profiles=())
    plan = BatchPlan(8, 4, 2, 1, steps=1, num_samples=8, val_every=8, save_every=8)
    engine = Engine(task.module, task.config, deepspeed_config(task.config, plan, "fp16"))
    parameters, reduce, calls = list(task.module.parameters()), torch.distributed.all_reduce, []
    expected = [own_part(safe_get_full_fp32_param(parameter)).clone() for parameter in parameters]
    torch.distributed.all_reduce = lambda *args, **options: calls.append(args) or reduce(*args, **options)
    found = list(engine.master_shards())
    torch.distributed.all_reduce = reduce
    same = all(torch.equal(part, wanted) for part, wanted in zip(found, expected, strict=True))
    return len(parameters), len(calls), same


@pytest.mark.parametrize("stage", [1, 2])
def test_the_averages_sum_up_cut_masters_in_one_piece(stage, tmp_path):
    """Not in one collective for each parameter."""
    for parameters, collectives, same in run_ranks(2, masters, "cpu", stage, str(tmp_path)):
        assert parameters > 20
        assert collectives == 1
        assert same
