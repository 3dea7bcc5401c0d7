"""What the engine sends and holds under ZeRO 0 to 3 is what the formulas of `mdaug.training.cost` say."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mdaug.training import cost
from mdaug.training.cost import PERSISTENT, Sharding, buffer_bytes, network_bytes, traffic
from tests.ranks import run_ranks

STAGES = (0, 1, 2, 3)


def measure(cases: list[tuple[int, int, str]], deepspeed_config: Path | None = None) -> list[dict[str, Any]]:
    """Train a small U-Net for three steps in each case (stage, micro batches, precision); return what this rank saw."""
    from mdaug import distributed

    distributed.init()
    return [_measure(*case, deepspeed_config) for case in cases]


def _measure(stage: int, passes: int, precision: str, deepspeed_config: Path | None) -> dict[str, Any]:
    from mdaug import distributed
    from mdaug.models.hybrid_unet import HybridUNet2DModel
    from mdaug.training import deepspeed_json, engine, sharded_tensors
    from mdaug.training.batches import BatchPlan
    from mdaug.training.options import TrainingConfig

    ranks = distributed.world_size()
    config = TrainingConfig(
        Path("d"), Path("o"), zero_stage=stage, mixed_precision=precision, deepspeed_config=deepspeed_config
    )
    plan = BatchPlan(passes * ranks, 1, ranks, passes, steps=2, num_samples=64, val_every=64, save_every=64)
    before = _held_bytes()
    network = HybridUNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1, num_heads=4,
        window_size=4, num_classes=4, norm_num_groups=8,
    )  # fmt: skip
    sizes = [parameter.numel() for parameter in network.parameters()]
    trained = engine.Engine(network, config, deepspeed_json.deepspeed_config(config, plan, precision))
    label = torch.zeros(1, dtype=torch.long)
    counted = Counting()
    with_gradients = 0
    for step in range(3):
        for micro_batch in range(passes):
            with counted:
                prediction = trained(torch.randn(1, 4, 8, 8), label, label).sample
                trained.backward(prediction.float().square().mean())
            if step == 2 and micro_batch == 0:
                with_gradients = _held_bytes() - before
            with counted:
                trained.step(1e-4)
        if step < 2:
            counted.bytes.clear()  # in the first steps ZeRO-3 learns in which order the network is used
    averaging = Counting()
    with averaging:
        own = [piece.numel() for piece in trained.master_shards()]
    assert own == [
        stop - start
        for start, stop in (sharded_tensors.shard_bounds(size, distributed.rank(), ranks) for size in sizes)
    ]
    return {
        "parameters": sum(sizes),
        "persistent": sum(size for size in sizes if size < PERSISTENT),
        "sent": dict(counted.bytes),
        "averaging": dict(averaging.bytes),
        "held": with_gradients,
    }


class Counting(TorchDispatchMode):
    """Counts the bytes of each kind of collective of the process group: of the whole tensor, not this rank's share."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.bytes[function.__name__.split(".")[0]] += max(map(_size, args))
        return function(*args, **(kwargs or {}))


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _held_bytes() -> int:
    """Return the bytes of all tensors of this process, gradients included, each memory once."""
    gc.collect()
    held: dict[int, int] = {}
    for tensor in [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]:
        for each in (tensor, tensor.grad if tensor.is_leaf else None):
            if each is not None:
                held[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(held.values())


def assert_traffic(seen: dict[str, Any], how: Sharding, averaged: bool = False) -> None:
    expected = traffic(seen["parameters"], how, seen["persistent"], averaged)
    sent = Counter(seen["sent"]) + (Counter(seen["averaging"]) if averaged else Counter())
    names = {
        "allreduce_": expected.all_reduced,
        "_reduce_scatter_base_": expected.reduce_scattered,
        "_allgather_base_": expected.all_gathered,
    }
    assert set(sent) <= set(names)
    for name, amount in names.items():
        # Norms and other single numbers are all-reduced as well; under autocast a few layers keep fp32 gradients.
        assert sent[name] == pytest.approx(amount, rel=0.01, abs=1000), (name, how)


def assert_held(seen: dict[str, Any], how: Sharding) -> None:
    """After the first micro batch of a step: weights, gradients, masters, moments, and the buckets that are there."""
    expected = network_bytes(seen["parameters"], how, seen["persistent"])
    if how.stage == 3 or (how.stage == 1 and how.passes > 1):  # buckets stay; gathered weights go with the pass
        expected += buffer_bytes(0, how)
    elif how.stage == 1:  # reduced already: only this rank's part of the gradients is left
        expected -= 4 * seen["parameters"] * (how.ranks - 1) // how.ranks
    assert seen["held"] == pytest.approx(expected, rel=0.05), how


@pytest.fixture(scope="module")
def two_ranks() -> dict[tuple[int, int, str], dict[str, Any]]:
    cases = [(stage, 2, "no") for stage in STAGES] + [(stage, 1, "bf16") for stage in STAGES]
    return dict(zip(cases, run_ranks(2, measure, cases)[0], strict=True))


def test_bytes_sent_are_those_of_the_formula(two_ranks):
    for (stage, passes, precision), seen in two_ranks.items():
        assert_traffic(seen, Sharding(stage, 2, passes, precision))
        assert_traffic(seen, Sharding(stage, 2, passes, precision), averaged=True)


def test_bytes_held_are_those_of_the_formula(two_ranks):
    for (stage, passes, precision), seen in two_ranks.items():
        assert_held(seen, Sharding(stage, 2, passes, precision))


def test_four_ranks_send_and_hold_what_the_formula_says(tmp_path):
    cases = [(stage, 1, "no") for stage in STAGES]
    for (stage, passes, precision), seen in zip(cases, run_ranks(4, measure, cases)[0], strict=True):
        assert_traffic(seen, Sharding(stage, 4, passes, precision))
        assert_held(seen, Sharding(stage, 4, passes, precision))


def test_weights_that_may_not_stay_are_gathered_twice(tmp_path, monkeypatch):
    settings = json.loads((Path(__file__).parents[2] / "deepspeed_configs/zero3.json").read_text())
    settings["zero_optimization"].update(stage3_max_live_parameters=0, stage3_max_reuse_distance=0)
    settings["zero_optimization"]["stage3_prefetch_bucket_size"] = 0
    (tmp_path / "short.json").write_text(json.dumps(settings))
    (seen, *_) = run_ranks(2, measure, [(3, 1, "no")], tmp_path / "short.json")[0]
    monkeypatch.setattr(cost, "REUSED", 0)
    assert_traffic(seen, Sharding(3, 2))
