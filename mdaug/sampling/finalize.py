"""The end of a plan: every shard is checked, then the files that make the folder a data set are written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mdaug.images import grid
from mdaug.sampling.plan import Plan
from shards import index, provenance
from shards.colormap import paint
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.provenance import write_text
from shards.writer import finished

GRID_COLUMNS = 8


def finalize(
    plan: Plan,
    folder: Path,
    *,
    made_from: dict[str, str],
    config: dict,
    image_shape: list[int],
    colormap: str | None = None,
) -> None:
    """Check that every sample asked for is there and intact, and write index, manifest, card and provenance.

    Args:
        plan: the plan of the folder.
        folder: where the shards are.
        made_from: {"pipeline": hash, "images": hash of the images it was trained on}.
        config: the resolved configuration, as plain JSON values.
        image_shape: [H, W, C].
        colormap: name of the colour map of images of one channel, or None.

    Raises:
        UserError: shards are missing or damaged, with what mends it.
    """
    _check(plan, folder)
    classes = list(plan.counts)
    content = index.write_index(folder, classes, image_shape=image_shape, colormap=colormap)
    write_text(folder / "classes.json", json.dumps(classes, ensure_ascii=False) + "\n")
    write_text(folder / "manifest.csv", _manifest(plan))
    write_text(folder / "README.md", _card(plan, image_shape))
    provenance.write(folder, kind="synthetic", content_hash=content["hash"], made_from=made_from, config=config)


def write_grid(plan: Plan, folder: Path) -> None:
    """Write grid.png of a finished folder: the first samples of each class, one row per class with its name."""
    dataset = ShardDataset(folder)
    rows, names = [], []
    for label, name in enumerate(plan.counts):
        first = np.flatnonzero(dataset.labels == label)[:GRID_COLUMNS]
        if len(first):
            rows.append([paint(dataset[i]["image"], dataset.index.get("colormap")) for i in first.tolist()])
            names.append(name)
    Image.fromarray(grid(rows, names)).save(folder / "grid.png")


def _check(plan: Plan, folder: Path) -> None:
    missing, damaged = [], []
    for shard in range(plan.num_shards):
        path = folder / plan.shard_name(shard)
        record = finished(path)
        if record is None:
            missing.append(path.name)
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != record["sha256"] or record["count"] != sum(len(batch) for batch in plan.batches(shard)):
            damaged.append(path.name)
    if missing:
        raise UserError(f"{folder} is not complete: {_some(missing)} missing; run the same command again")
    if damaged:
        raise UserError(
            f"{folder}: {_some(damaged)} damaged since written (sha256 or count differ); "
            "delete them and run the same command again"
        )


def _some(names: list[str]) -> str:
    """Return a few of many names, and how many there are."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{shown} ({len(names)} {'shard is' if len(names) == 1 else 'shards are'})"


def _manifest(plan: Plan) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "file", "label", "class", "seed", "shard"])
    classes = list(plan.counts)
    for shard in range(plan.num_shards):
        for batch in plan.batches(shard):
            rows = zip(batch.tolist(), plan.labels(batch).tolist(), plan.seeds(batch).tolist(), strict=True)
            for i, label, seed in rows:
                writer.writerow(
                    [plan.key(i), f"{plan.key(i)}.png", label, classes[label], seed, plan.shard_name(shard)]
                )
    return text.getvalue()


def _card(plan: Plan, image_shape: list[int]) -> str:
    height, width, channels = image_shape
    rows = "\n".join(f"| {label} | {name} | {count} |" for label, (name, count) in enumerate(plan.counts.items()))
    return f"""# {plan.total} synthetic micro-Doppler spectrograms

{height} x {width} {"RGB" if channels == 3 else "grey"} PNG in {plan.num_shards} WebDataset tar(s).
`manifest.csv` lists every sample.
Made by mdaug from the pipeline {plan.pipeline[:12]} with {plan.scheduler_type}, {plan.num_inference_steps} steps,
guidance {plan.guidance_scale:g}, seed {plan.seed}. `plan.json` holds every setting.

```python
import webdataset

for image, label in webdataset.WebDataset("{_urls(plan)}", shardshuffle=False).decode("rgb").to_tuple("png", "cls"):
    ...
```

| label | class | samples |
|---|---|---|
{rows}
"""


def _urls(plan: Plan) -> str:
    return "000000.tar" if plan.num_shards == 1 else f"{{000000..{plan.num_shards - 1:06d}}}.tar"
