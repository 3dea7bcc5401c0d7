"""Resume on other ranks: each rank reads only its own elements, from few files, whichever ranks wrote them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mdaug.training import elastic
from mdaug.training.elastic import MOMENTS, Source, open_source
from mdaug.training.sharded_tensors import shard_bounds

SHAPES = {"conv.weight": (64, 32, 3, 3), "conv.bias": (64,), "norm.weight": (7,), "out.weight": (33, 64), "scale": (1,)}
KINDS = ("fp32", *MOMENTS)


def values() -> dict[str, dict[str, torch.Tensor]]:
    """Kind -> name -> a tensor that no other is like."""
    generator = torch.Generator().manual_seed(0)
    return {kind: {n: torch.rand(shape, generator=generator) for n, shape in SHAPES.items()} for kind in KINDS}


def made_up(checkpoint: Path, stage: int, ranks: int) -> dict[str, dict[str, torch.Tensor]]:
    """Write the files that DeepSpeed writes at a stage, and return what they hold."""
    folder, held, step = checkpoint / "engine", values(), torch.tensor(9.0)
    folder.mkdir(parents=True)
    about = {"ds_config": {"gradient_clipping": 1.0}, "param_shapes": [{n: torch.Size(s) for n, s in SHAPES.items()}]}
    plain = folder / "mp_rank_00_model_states.pt"
    if stage == 0:
        weights = {name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
                   for name, value in held["fp32"].items()}  # fmt: skip
        states = {i: {"step": step, **{kind: held[kind][name] for kind in MOMENTS}} for i, name in enumerate(SHAPES)}
        record = {"module": {**weights, "buffer": torch.ones(2)}, "buffer_names": ["buffer"], **about}
        torch.save({**record, "optimizer": {"state": states, "param_groups": [{}]}}, plain)
        return held
    # Stages 1 and 2 cut what lies one behind the other, stage 3 each parameter.
    flat = {kind: torch.cat([value.flatten() for value in held[kind].values()]) for kind in KINDS}
    size = -(-len(flat["fp32"]) // ranks)
    for rank in range(ranks):
        if stage == 3:
            parts = {}
            for kind in KINDS:
                shards = [
                    value.flatten()[slice(*shard_bounds(value.numel(), rank, ranks))] for value in held[kind].values()
                ]
                sizes = [-(-math.prod(shape) // ranks) for shape in SHAPES.values()]
                padded = [
                    torch.cat([shard, torch.zeros(n - len(shard))]) for shard, n in zip(shards, sizes, strict=True)
                ]
                parts[kind] = torch.cat(padded)
            state = {"step": step, **{kind: parts[kind].clone() for kind in MOMENTS}}
            inner = {
                "optimizer_state_dict": {"state": {0: state}, "param_groups": [{}]},
                "fp32_flat_groups": [parts["fp32"]],
            }
            torch.save(about, folder / f"zero_pp_rank_{rank}_{plain.name}")
        else:
            begin, end, first, places = rank * size, (rank + 1) * size, 0, {}
            for name, shape in SHAPES.items():
                low, high = max(begin, first), min(end, first + math.prod(shape))
                if low < high:
                    places[name] = SimpleNamespace(start=low - begin, numel=high - low)
                first += math.prod(shape)
            state = {"step": step, **{kind: flat[kind][begin:end].clone() for kind in MOMENTS}}
            inner = {"base_optimizer_state": {"state": {0: state}, "param_groups": [{}]},
                     "single_partition_of_fp32_groups": [flat["fp32"][begin:end].clone()],
                     "param_slice_mappings": [places]}  # fmt: skip
        torch.save({"optimizer_state_dict": inner}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    if stage < 3:
        torch.save(about, plain)
    return held


@pytest.mark.parametrize(("stage", "writers"), [(0, 1), (2, 1), (2, 3), (2, 24), (3, 1), (3, 3), (3, 24)])
@pytest.mark.parametrize("readers", [1, 5, 24])
def test_the_shards_of_any_readers_make_up_what_any_writers_held(stage, writers, readers, tmp_path):
    held = made_up(tmp_path, stage, writers)
    source = open_source(tmp_path)
    assert float(source.layout.step) == 9
    for kind in KINDS:
        for name, value in held[kind].items():
            bounds = [shard_bounds(value.numel(), rank, readers) for rank in range(readers)]
            parts = [source.read(name, kind, *own) for own in bounds]
            assert [len(part) for part in parts] == [stop - start for start, stop in bounds]
            assert torch.equal(torch.cat(parts), value.flatten())


@pytest.mark.parametrize("readers", [256, 511, 1024])
def test_a_rank_opens_the_few_files_that_hold_its_shards(readers, tmp_path, monkeypatch):
    """Of 512 files of stage 3. DeepSpeed opens 512 x 5 x 3 on one rank to write 5 x 3, which all ranks open then."""
    made_up(tmp_path, 3, 512)
    opened: list[Path] = []
    mapped = elastic._mapped
    monkeypatch.setattr(elastic, "_mapped", lambda path: opened.append(path) or mapped(path))
    layout = open_source(tmp_path).layout
    assert len(opened) <= 4
    assert sum(path.stat().st_size for path in (tmp_path / "universal").rglob("*.pt")) < 50_000  # nothing is written
    for rank in (0, 1, readers // 2, readers - 1):
        source, elements = Source(tmp_path / "engine", layout), 0
        opened.clear()
        for name, shape in SHAPES.items():
            own = shard_bounds(math.prod(shape), rank, readers)
            elements += sum(len(source.read(name, kind, *own)) for kind in KINDS)
        assert elements <= 3 * sum(-(-math.prod(shape) // readers) for shape in SHAPES.values())
        # A parameter is cut at its own places, so that each may lie in two files more than its share.
        assert len(set(opened)) == len(opened) <= len(SHAPES) * (512 // readers + 2)


def test_what_is_not_asked_for_is_not_read(tmp_path):
    """Of one file of 96 MB a rank of 512 touches its pages alone."""
    folder = tmp_path / "engine"
    folder.mkdir()
    large = torch.ones(8_000_000)
    state = {"step": torch.tensor(1.0), **{kind: large.clone() for kind in MOMENTS}}
    record = {"module": {"w": large.clone()}, "buffer_names": [], "ds_config": {"gradient_clipping": 1.0}}
    torch.save({**record, "optimizer": {"state": {0: state}, "param_groups": [{}]}}, folder / elastic.PLAIN)
    source = open_source(tmp_path)

    def pages() -> int:
        return 1024 * int(Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0])

    before = pages()
    for kind in KINDS:
        assert float(source.read("w", kind, *shard_bounds(8_000_000, 100, 512)).sum()) == 15625
    assert pages() - before < 24e6  # the kernel maps what lies around them as well
