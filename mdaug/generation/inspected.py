"""Every shard looked at once, by whichever worker: what was found is kept beside the shards until the set is finished.

    .inspected/000123.parquet   its rows of the manifest; as metadata the same rows as CSV, faults and statistics

Workers look at their shards when they have made them, so that `finalize` copies rows where it would decode pictures.
What was found counts as long as tar and sidecar are the same files.
"""  # fmt: skip

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

from mdaug.generation import card
from mdaug.generation.plan import REAL, Plan
from shards.atomic import replacing
from shards.pool import cores
from shards.verify import inspect

FOLDER = ".inspected"
AHEAD = 2  # shards that are looked at, for each thread, before the first of them is taken


@dataclass(frozen=True)
class Look:
    """What a look at one shard found.

    Attributes:
        faults: kind of fault -> names of what it is in, see `shards.verify`; rows of a damaged shard are left out.
        rows: those of the manifest.
        csv: the same as text.
        statistics: those of the sidecar.
    """

    faults: dict[str, list[str]]
    rows: pyarrow.Table
    csv: str
    statistics: dict

    @property
    def found(self) -> Counter:
        """(source, class) -> number of samples."""
        return Counter(zip(self.rows["source"].to_pylist(), self.rows["class"].to_pylist(), strict=True))


def looks(plan: Plan, folder: Path) -> Iterator[Look]:
    """Yield what was found in every shard of a plan, synthetic ones first; looks at those that nobody has looked at."""
    threads = cores()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for name in _names(plan):
            waiting.append(pool.submit(_kept_or_new, plan, folder, name))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def keep_share(plan: Plan, folder: Path, worker: int, workers: int) -> None:
    """Look at the shards of a worker; where all shards are there, also at those that others have not looked at yet.

    Helpers go backwards from a place of their own, as with the shards themselves: two that meet write the same.
    """
    names = _names(plan)
    own = names[worker::workers]
    _keep(plan, folder, [name for name in own if _stamp(folder / name)])
    left = [name for name in names if not _file(folder, name).is_file()]
    if all(_stamp(folder / name) for name in left):
        start = len(left) - worker * len(left) // workers
        _keep(plan, folder, left[:start][::-1] + left[start:][::-1])


def forget(folder: Path) -> None:
    """Remove what was kept: the set is finished."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _keep(plan: Plan, folder: Path, names: list[str]) -> None:
    (folder / FOLDER).mkdir(exist_ok=True)
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(lambda name: _keep_one(plan, folder, name), names):
            pass


def _keep_one(plan: Plan, folder: Path, name: str) -> None:
    """Look at a shard and keep what is found, unless that is there."""
    stamp = _stamp(folder / name)
    if _read(folder, name) is None and stamp is not None:
        look = _look(plan, folder, name)
        about = {"stamp": stamp, "faults": look.faults, "statistics": look.statistics}
        metadata = {"look": json.dumps(about), "csv": look.csv}
        # Another worker may have finished the set meanwhile, and removed the folder.
        with contextlib.suppress(FileNotFoundError), replacing(_file(folder, name)) as file:
            parquet.write_table(look.rows.replace_schema_metadata(metadata), file)


def _kept_or_new(plan: Plan, folder: Path, name: str) -> Look:
    return _read(folder, name) or _look(plan, folder, name)


def _read(folder: Path, name: str) -> Look | None:
    """Return what was kept of a shard that has not changed since; None without that."""
    with contextlib.suppress(OSError, pyarrow.ArrowInvalid):
        # read_table would import pyarrow.dataset and, with it, pandas.
        with parquet.ParquetFile(_file(folder, name)) as file:
            rows = file.read()
        about = json.loads(rows.schema.metadata[b"look"])
        if about["stamp"] == _stamp(folder / name):
            text = rows.schema.metadata[b"csv"].decode()
            return Look(about["faults"], rows.replace_schema_metadata(None), text, about["statistics"])
    return None


def _look(plan: Plan, folder: Path, name: str) -> Look:
    """Compare a shard with the plan and decode every picture."""
    number = int(name.removesuffix(".tar").rpartition("-")[2])
    if name.startswith(REAL):
        shard = inspect(folder / name, [plan.real_key(i) for i in plan.real_images(number)], None, plan.image_shape)
    else:
        shard = inspect(folder / name, *plan.keys_and_labels(number), plan.image_shape)
    rows = shard.rows if shard.is_whole else []
    for row in rows:
        if row["source"] == "synthetic":
            row.update(guidance_scale=plan.guidance_scale, pipeline=plan.pipeline)
    return Look(shard.faults, *card.render(rows, plan.condition_names), shard.statistics)


def _names(plan: Plan) -> list[str]:
    names = [plan.shard_name(shard) for shard in range(plan.num_shards)]
    return names + [plan.real_shard_name(shard) for shard in range(plan.num_real_shards)]


def _file(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name.removesuffix('.tar')}.parquet"


def _stamp(path: Path) -> list[int] | None:
    """Return sizes and times of a tar and its sidecar; None where one of them is missing."""
    try:
        status = path.stat(), path.with_suffix(".json").stat()
    except FileNotFoundError:
        return None
    return [number for each in status for number in (each.st_size, each.st_mtime_ns)]
