"""What large sets cost, on made-up sidecars: opening one, its order, the shards that training opens, whether all is
there, conditions, a checkpoint of many ranks that others resume, and the end of generation.

    python benchmarks/scale.py --samples 10000000 --samples_per_shard 1000
    python benchmarks/scale.py --only open --samples 1000000     # alone; runs on the code of before, too

Every figure is linear in the number of samples or of shards; it is given for one process, and for 1e8 samples where a
smaller set was measured. The tars are sparse files: nothing reads their content here.
"""  # fmt: skip

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.dataset import ShardDataset
from shards.index import write_index
from shards.order import EpochOrder, PositionSampler
from shards.writer import write_shard

LATENT = 128 + 4 * 32 * 32 * 4  # bytes of an npy file with a latent of the default model
KINDS = ("open", "order", "reads", "whole", "conditions", "resume", "finalize")


def make_set(folder: Path, shards: int, size: int) -> None:
    """Write sidecars and sparse tars of latents, as `write_shard` would, but for the content."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = 1 + -(-LATENT // 512)
    length = size * (blocks + 2) * 512 + 1024
    places = [[512 + i * (blocks + 2) * 512, LATENT] for i in range(size)]
    labels = [[1536 + blocks * 512 + i * (blocks + 2) * 512, 1] for i in range(size)]
    tail = json.dumps({"labels": [i % 7 for i in range(size)], "members": {"npy": places, "cls": labels}})[1:]
    for shard in range(shards):
        name = f"{shard:06d}.tar"
        with open(folder / name, "wb") as file:
            file.truncate(length)
        head = {"file": name, "count": size, "bytes": length, "sha256": hashlib.sha256(name.encode()).hexdigest()}
        head |= {"statistics": {}, "keys": [f"session_{shard * size + i:09d}" for i in range(size)]}
        (folder / name).with_suffix(".json").write_text(json.dumps(head)[:-1] + ", " + tail)


def memory() -> int:
    """Return the bytes of this process that are its own: not those of files that it has mapped."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


def opened(folder: Path) -> dict[str, Any]:
    """Return seconds and bytes of opening a set, in this process."""
    before, start = memory(), time.perf_counter()
    dataset = ShardDataset(folder, ("array",))
    return {"samples": len(dataset), "seconds": time.perf_counter() - start, "bytes": memory() - before}


def measure_open(folder: Path, shards: int, size: int) -> dict[str, Any]:
    """Return what the index of a set costs: written once, and opened by a process."""
    make_set(folder, shards, size)
    start = time.perf_counter()
    write_index(folder, [f"class {i}" for i in range(7)])
    written = time.perf_counter() - start
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(opened, (folder,))
    mapped = sum(path.stat().st_size for path in folder.glob("samples-*.npy"))
    return {**result, "shards": shards, "written_seconds": written, "mapped_bytes": mapped}


def measure_order(counts: np.ndarray) -> dict[str, Any]:
    """Return the time to begin an epoch, to walk on, and the bytes that the order holds."""
    before = memory()
    order = EpochOrder(counts if hasattr(EpochOrder, "reading_order") else int(counts.sum()), 0)
    start = time.perf_counter()
    order.index(order.num_samples // 2)
    begun, held = time.perf_counter() - start, memory() - before
    start, number = time.perf_counter(), 200_000
    for position in range(order.num_samples // 2, order.num_samples // 2 + number):
        order.index(position)
    each = (time.perf_counter() - start) / number
    return {"samples": order.num_samples, "epoch_begins_seconds": begun, "bytes": held, "microseconds": 1e6 * each}


def measure_reads(counts: np.ndarray, ranks: int, workers: int, micro_batch: int, steps: int) -> dict[str, Any]:
    """Return the shards that one rank's workers open for each sample: every worker keeps 256 of them open."""
    windows = hasattr(EpochOrder, "reading_order")
    order = EpochOrder(counts if windows else int(counts.sum()), 0)
    of = np.cumsum(counts)
    sampler = PositionSampler(
        global_batch=micro_batch * ranks, micro_batch=micro_batch, rank=ranks // 2, world_size=ranks, first_step=0,
        last_step=steps, **({"order": order} if windows else {}),
    )  # fmt: skip
    held: list[dict[int, None]] = [{} for _ in range(workers)]
    opens = samples = 0
    start = time.perf_counter()
    for number, batch in enumerate(sampler):
        own = held[number % workers]
        for position in batch:
            shard = int(np.searchsorted(of, order.index(position), side="right"))
            opens += shard not in own
            own.pop(shard, None)
            own[shard] = None
            if len(own) > 256:
                del own[next(iter(own))]
        samples += len(batch)
    seconds = (time.perf_counter() - start) / steps
    return {"ranks": ranks, "samples": samples, "opens_per_sample": opens / samples, "step_seconds": seconds}


def measure_whole(folder: Path, shards: int, size: int) -> dict[str, Any]:
    """Return the seconds to find that nothing of a finished set is missing, and the sidecars read for it."""
    from shards import provenance, writer

    make_set(folder / "train", shards, size)
    write_index(folder / "train", ["a"])
    provenance.write(folder, kind="images", content_hash="h", made_from={}, config={})
    read, reads = writer._read_sidecar, [0]

    def counted(path: Path) -> Any:
        reads[0] += 1
        return read(path)

    writer._read_sidecar = counted
    start = time.perf_counter()
    assert provenance.is_whole(folder)
    return {"shards": shards, "seconds": time.perf_counter() - start, "sidecars_read": reads[0]}


def measure_conditions(folder: Path, shards: int, size: int) -> dict[str, Any]:
    """Return seconds and bytes of reading a column of a set, at first and in a process after it.

    All shards are one file with as many names, so nothing here waits for a disk.
    """
    for split, count in (("train", shards), ("val", 1)):
        meta = [json.dumps({"class": "a", "speed": i % 97}).encode() for i in range(size)]
        rows = ((f"k{i}", {"cls": b"0", "json": about}) for i, about in enumerate(meta))
        write_shard(folder / split / "000000.tar", rows)
        for shard in range(1, count):
            for ending in ("tar", "json"):
                (folder / split / f"{shard:06d}.{ending}").hardlink_to(folder / split / f"000000.{ending}")
        write_index(folder / split, ["a"])
    found = {"samples": shards * size}
    for name in ("first", "later"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found |= {f"{name}_{key}": value for key, value in pool.apply(read_conditions, (folder,)).items()}
    return found


def read_conditions(folder: Path) -> dict[str, Any]:
    """Return seconds and bytes of the conditions of a set, in this process."""
    from mdaug.training import conditions

    before, start = memory(), time.perf_counter()
    read = conditions.read(folder, ["speed"])
    seconds, held = time.perf_counter() - start, memory() - before
    assert len(read.names) == 1
    return {"seconds": seconds, "bytes": held}


def make_checkpoint(engine: Path, writers: int, parameters: int, numel: int) -> None:
    """Write what DeepSpeed writes at stage 3: `parameters` of `numel` elements each, cut over the writers."""
    import torch

    shapes = {f"layer{i}.weight": torch.Size([numel]) for i in range(parameters)}
    about = {
        "param_shapes": [shapes], "ds_config": {"gradient_clipping": 1.0}, "ds_version": "0.19.8", "module": {},
        "buffer_names": [], "dp_world_size": writers, "mp_world_size": 1, "universal_checkpoint_info": {},
    }  # fmt: skip
    engine.mkdir(parents=True)
    for rank in range(writers):
        flat = torch.full((parameters * -(-numel // writers),), float(rank))
        state = {"step": torch.tensor(9.0), "exp_avg": flat.clone(), "exp_avg_sq": flat.clone()}
        inner = {"optimizer_state_dict": {"state": {0: state}, "param_groups": [{}]}, "fp32_flat_groups": [flat]}
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": {"zero_stage": 3, "partition_count": writers, **inner}},
                   engine / f"{name}_optim_states.pt")  # fmt: skip
        torch.save(about, engine / f"{name}_model_states.pt")


def measure_resume(folder: Path, writers: int, readers: int, parameters: int, numel: int) -> dict[str, Any]:
    """Return files opened, files written, MB read and seconds of the first rank, and of one in the middle."""
    import torch

    from mdaug.training import elastic
    from mdaug.training.sharded_tensors import shard_bounds

    make_checkpoint(folder / "engine", writers, parameters, numel)
    load, save, counts = torch.load, torch.save, {"opened": 0, "written": 0, "bytes": 0}

    def counted_load(path: Any, *arguments: Any, **options: Any) -> Any:
        counts["opened"] += 1
        counts["bytes"] += 0 if options.get("mmap") else Path(path).stat().st_size
        return load(path, *arguments, **options)

    def counted_save(value: Any, path: Any) -> None:
        counts["written"] += 1
        save(value, path)

    def done(begun: float) -> dict[str, float]:
        found = {**counts, "seconds": time.perf_counter() - begun}
        counts.update(opened=0, written=0, bytes=0)
        return found

    torch.load, torch.save = counted_load, counted_save  # type: ignore[assignment]
    begun, found = time.perf_counter(), {}
    names = [f"layer{i}.weight" for i in range(parameters)]
    if hasattr(elastic, "convert"):  # the code of before: DeepSpeed's loader reads whole tensors on every rank
        target = elastic.convert(folder)
        found["first"] = done(begun)
        begun = time.perf_counter()
        for name in names:
            for kind in ("fp32", "exp_avg", "exp_avg_sq"):
                torch.load(target / "zero" / name / f"{kind}.pt", weights_only=False)
        found["each"] = done(begun)
        return found
    layout = elastic.open_source(folder).layout
    found["first"] = done(begun)
    begun, source = time.perf_counter(), elastic.Source(folder / "engine", layout)
    own = shard_bounds(numel, readers // 2, readers)
    for name in names:
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            counts["bytes"] += source.read(name, kind, *own).nbytes
    found["each"] = done(begun)
    return found


def measure_finalize(folder: Path, shards: int, size: int) -> dict[str, Any]:
    """Return seconds for a shard that is looked at, and for one whose rows are copied; pictures of 256 x 256 pixels."""
    from mdaug.generation import inspected  # the code of before has none
    from mdaug.generation.card import Manifest
    from mdaug.generation.plan import Plan

    plan = Plan(
        {"walk": shards * size}, 0, "p" * 64, "i" * 64, [256, 256, 3], "ddim", 20, 1.0, "no", 32, size, "cpu", 1
    )
    ramp = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 40, (256, 256, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(ramp[..., None] // 2 + noise).save(picture, "PNG", compress_level=1)
    for shard in range(shards):
        keys = plan.keys_and_labels(shard)[0]
        meta = [json.dumps({"class": "walk", "seed": i, "source": "synthetic"}).encode() for i in range(size)]
        rows = zip(keys, meta, strict=True)
        members = ((key, {"png": picture.getvalue(), "cls": b"0", "json": about}) for key, about in rows)
        write_shard(folder / plan.shard_name(shard), members)
    seconds, before = {}, memory()
    for name in ("looked_at", "kept", "copied"):
        start = time.perf_counter()
        if name == "kept":
            inspected.keep_share(plan, folder, 0, 1)
        else:
            with Manifest(folder) as manifest:
                for look in inspected.looks(plan, folder):
                    manifest.add(look.rows, look.csv)
        seconds[name] = (time.perf_counter() - start) / shards
    return {"samples_per_shard": size, "seconds_per_shard": seconds, "bytes": memory() - before}


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--samples_per_shard", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    shards = options.samples // options.samples_per_shard
    counts, results = np.full(10**8 // options.samples_per_shard, options.samples_per_shard), {}
    if options.only in (None, "open"):
        with tempfile.TemporaryDirectory() as scratch:
            found = measure_open(Path(scratch) / "train", shards, options.samples_per_shard)
        factor = 10**8 / found["samples"]
        print(
            f"index of {found['samples']:,} samples in {shards:,} shards: written in {found['written_seconds']:.2f} s, "
            f"{found['mapped_bytes'] / 1e6:.1f} MB mapped; a process opens it in {found['seconds']:.3f} s and keeps "
            f"{found['bytes'] / 1e6:.1f} MB; times {factor:g} for 1e8 samples: {factor * found['written_seconds']:.0f} "
            f"s, {factor * found['mapped_bytes'] / 1e9:.2f} GB mapped, {factor * found['seconds']:.1f} s, "
            f"{factor * found['bytes'] / 1e9:.3f} GB",
            flush=True,
        )
        results["open"] = found
    if options.only in (None, "order"):
        found = results["order"] = measure_order(counts)
        print(
            f"order of {found['samples']:,} samples: {found['epoch_begins_seconds']:.3f} s at a jump into an epoch, "
            f"{found['bytes'] / 1e6:.1f} MB, {found['microseconds']:.2f} us a position",
            flush=True,
        )
    if options.only in (None, "reads"):
        for ranks in (1, options.ranks):
            found = results[f"reads_{ranks}"] = measure_reads(counts, ranks, 8, 128, 40)
            print(
                f"{ranks} rank(s) of 8 workers, batches of 128: {found['opens_per_sample']:.4f} shards opened for a "
                f"sample, {1e3 * found['step_seconds']:.1f} ms a step for this count"
            )
    if options.only in (None, "whole"):
        with tempfile.TemporaryDirectory() as scratch:
            found = results["whole"] = measure_whole(Path(scratch), shards, options.samples_per_shard)
        print(
            f"is all of {found['shards']:,} shards there: {found['seconds']:.3f} s, {found['sidecars_read']:,} "
            f"sidecars read; times {len(counts) / shards:g} for 1e8 samples: "
            f"{found['seconds'] * len(counts) / shards:.1f} s",
            flush=True,
        )
    if options.only in (None, "conditions"):
        with tempfile.TemporaryDirectory() as scratch:
            found = results["conditions"] = measure_conditions(Path(scratch), shards, options.samples_per_shard)
        factor = 10**8 / found["samples"]
        for name in ("first", "later"):
            seconds, held = found[f"{name}_seconds"], found[f"{name}_bytes"]
            print(
                f"conditions of {found['samples']:,} samples, the {name} process: {seconds:.2f} s, {held / 1e6:.1f} MB "
                f"kept; times {factor:g} for 1e8 samples: {factor * seconds:.0f} s, {factor * held / 1e9:.2f} GB",
                flush=True,
            )
    if options.only in (None, "resume"):
        size = 20, 100_000  # parameters, elements of each
        with tempfile.TemporaryDirectory() as scratch:
            found = results["resume"] = measure_resume(Path(scratch), options.ranks, options.ranks // 2, *size)
        for name, who in (("first", "the first rank, for all"), ("each", "then each rank")):
            part = found[name]
            print(
                f"{options.ranks // 2} ranks resume what {options.ranks} wrote at stage 3, {size[0]} parameters of "
                f"{12 * size[1] / 1e6:g} MB: {who} opens {part['opened']:,} files, writes {part['written']:,}, reads "
                f"{part['bytes'] / 1e6:.2f} MB, {part['seconds']:.2f} s",
                flush=True,
            )
    if options.only in (None, "finalize"):
        with tempfile.TemporaryDirectory() as scratch:
            found = results["finalize"] = measure_finalize(Path(scratch), 6, options.samples_per_shard)
        looked, copied = (found["seconds_per_shard"][name] for name in ("looked_at", "copied"))
        print(
            f"finalize, a shard of {options.samples_per_shard} pictures of 256 pixels: {looked:.2f} s to look at it, "
            f"{copied:.3f} s to copy what a worker found; for 1e8 samples {looked * len(counts) / 3600:.1f} and "
            f"{copied * len(counts) / 3600:.2f} hours"
        )
    print(json.dumps({"benchmark": "scale", "options": vars(options), "results": results}))


if __name__ == "__main__":
    main()
