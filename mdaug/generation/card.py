"""What describes a data set: manifest.csv and .parquet, the report of the sifter, and the card README.md."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mdaug.generation.plan import REAL, Plan
from shards.atomic import replacing

# Column -> (type in Parquet, meaning); a column without a value is empty in the CSV and null in Parquet.
COLUMNS = {
    "key": ("string", "name of the sample in its shard"),
    "file": ("string", "name of the picture in its shard"),
    "label": ("int32", "index of the class"),
    "class": ("string", "its name"),
    "seed": ("int64", "of the torch.Generator of its noise"),
    "shard": ("string", "the tar that holds it"),
    "source": ("string", "synthetic or real"),
    "guidance_scale": ("float64", "classifier-free guidance"),
    "pipeline": ("string", "content hash of the pipeline"),
    "strength": ("float64", "with --from_dir: share of the noise schedule to which its source was noised"),
    "from_key": ("string", "with --from_dir: key of the image that it was redrawn from"),
    "from_class": ("string", "its class"),
    "from_set": ("string", "content hash of the packed set that holds it"),
    "score": ("float64", "with --sift: how likely a classifier trained on real images finds the class"),
    "candidate": ("int32", "with --sift: how many images before it were rejected"),
    "within_limits": ("bool", "with --sift: false where every candidate was rejected and the best was kept"),
    "group": ("string", "recording or person of a real image"),
    "original": ("string", "file of a real image"),
}


def columns(conditions: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return COLUMNS and one for each continuous condition of the model."""
    return COLUMNS | {f"condition_{name}": ("float64", f"the condition {name}") for name in conditions}


def _schema(conditions: Iterable[str]) -> pyarrow.Schema:
    """Return the columns of manifest.parquet."""
    kinds = [(name, "bool_" if kind == "bool" else kind) for name, (kind, _) in columns(conditions).items()]
    return pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in kinds])


def render(rows: Iterable[dict[str, Any]], conditions: Iterable[str]) -> tuple[pyarrow.Table, str]:
    """Return rows as a table and as lines of CSV; keys that are not columns are left out."""
    schema, text = _schema(conditions), io.StringIO()
    full = [{name: row.get(name) for name in schema.names} for row in rows]
    csv.DictWriter(text, schema.names, lineterminator="\n").writerows(full)
    return pyarrow.Table.from_pylist(full, schema=schema), text.getvalue()


class Manifest:
    """Writes both manifests shard by shard, and puts them in place at the end if nothing was raised; a context."""

    def __init__(self, folder: Path, conditions: Iterable[str] = ()):
        self.schema = _schema(conditions)
        self.paths = {kind: folder / f"manifest.{kind}" for kind in ("csv", "parquet")}
        self.files = contextlib.ExitStack()

    def __enter__(self) -> Manifest:
        self.text, binary = (
            self.files.enter_context(file)
            for file in (
                replacing(self.paths["csv"], "w", encoding="utf-8", newline=""),
                replacing(self.paths["parquet"]),
            )
        )
        csv.writer(self.text, lineterminator="\n").writerow(self.schema.names)
        self.parquet = parquet.ParquetWriter(binary, self.schema)
        return self

    def add(self, rows: pyarrow.Table, text: str) -> None:
        """Append the rows of a shard, in both forms."""
        self.text.write(text)
        self.parquet.write_table(rows)

    def __exit__(self, *error: Any) -> None:
        self.parquet.close()
        self.files.__exit__(*error)


def dataset_card(plan: Plan, found: Counter, sift: dict | None) -> str:
    """Return the README.md of a set, as a card that Hugging Face reads.

    Args:
        plan: its plan.
        found: (source, class) -> number of samples.
        sift: the report of the sifter, or None.
    """
    height, width, channels = plan.image_shape
    guidance = f"guidance {plan.guidance_scale:g}"
    if plan.guidance_scale != 1 and plan.guidance_interval != [0, 1]:
        guidance += " between {:g} and {:g} of the noise schedule".format(*plan.guidance_interval)
    sources = ["synthetic", "real"] if plan.include_real else ["synthetic"]
    rows = "\n".join(
        f"| {label} | {name} | " + " | ".join(str(found[source, name]) for source in sources) + " |"
        for label, name in enumerate(plan.counts)
    )
    title = f"{found.total()} synthetic micro-Doppler spectrograms"
    if plan.include_real:
        title = f"{found.total()} micro-Doppler spectrograms, real and synthetic"
    listed = "\n".join(f"- `{name}`: {text}" for name, (_, text) in columns(plan.condition_names).items())
    return f"""---
tags: [micro-doppler, radar, spectrogram, synthetic, webdataset]
configs:
- config_name: default
  data_files: "*.tar"
---
# {title}

{height} x {width} {"RGB" if channels == 3 else "grey"} PNG in WebDataset tars.
Made by mdaug from the pipeline {plan.pipeline[:12]} with {plan.scheduler_type}, {plan.num_inference_steps} steps,
{guidance}, seed {plan.seed}. `run.json` holds every setting.
{_redrawn(plan)}
```python
import webdataset

for image, label in webdataset.WebDataset("{_urls(plan)}", shardshuffle=False).decode("rgb").to_tuple("png", "cls"):
    ...
```

| label | class | {" | ".join(sources)} |
|{"---|" * (2 + len(sources))}
{rows}
{_sifting(sift)}
`manifest.csv` and `manifest.parquet` have a row for every sample:

{listed}
"""


class Sifted:
    """The verdicts of the sifter, added up shard by shard."""

    def __init__(self) -> None:
        self.sifters: set[str] = set()
        self.made: Counter = Counter()
        self.beyond: Counter = Counter()
        self.reasons: defaultdict[str, Counter] = defaultdict(Counter)

    def add(self, statistics: dict) -> None:
        """Add those of a shard; a shard of real images has none."""
        if statistics:
            self.sifters.add(statistics["sifter"])
            self.made.update(statistics["made"])
            self.beyond.update(statistics["beyond_limits"])
            for name, reasons in statistics["rejected"].items():
                self.reasons[name].update(reasons)

    def report(self, plan: Plan) -> dict:
        """Return the verdicts on all shards.

        Returns:
            {"sifters": their hashes, "max_candidates", "classes": {name: {"made", "rejected", "rate", "reasons":
            {reason: number}, "beyond_limits"}}}; rate is the share of the images made that was rejected, and
            beyond_limits the number of samples of which every candidate was.
        """
        assert plan.sift is not None
        classes = {}
        for name in plan.counts:
            if self.made[name]:
                reasons = self.reasons[name]
                classes[name] = {
                    "made": self.made[name],
                    "rejected": reasons.total(),
                    "rate": round(reasons.total() / self.made[name], 4),
                    "reasons": dict(sorted(reasons.items())),
                    "beyond_limits": self.beyond[name],
                }
        return {"sifters": sorted(self.sifters), "max_candidates": plan.sift["max_candidates"], "classes": classes}


def sift_lines(report: dict) -> list[str]:
    """Return the report of the sifter as lines for a terminal."""
    lines = []
    for name, figures in report["classes"].items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in figures["reasons"].items())
        lines.append(
            f"sift: {name}: {figures['rejected']} of {figures['made']} rejected ({100 * figures['rate']:.0f} %)"
            + (f": {reasons}" if reasons else "")
        )
        if figures["beyond_limits"]:
            lines.append(
                f"sift: {name}: {figures['beyond_limits']} samples had {report['max_candidates']} candidates and none "
                "within the limits; the best of each was kept, within_limits is false in the manifest"
            )
    return lines


def _redrawn(plan: Plan) -> str:
    if plan.redraw is None:
        return ""
    strengths = ", ".join(f"{strength:g}" for strength in plan.redraw["strengths"])
    classes, changed = plan.redraw["classes"], "The class was chosen whatever the class of the source is"
    if plan.redraw["redraw_as"] == "keep":
        changed = "The class is that of the source"
        classes = {name: count for name, count in classes.items() if plan.counts.get(name)}
    images = ", ".join(f"{name} {count}" for name, count in classes.items())
    return f"""
No sample began with noise alone: each is an image of the packed set {plan.redraw["hash"][:12]}, noised to a share of
the noise schedule (strength {strengths}) and denoised as its class. {changed}.
Sources, all of them training images: {images}.
"""


def _sifting(report: dict | None) -> str:
    if report is None:
        return ""
    rows = "\n".join(
        f"| {name} | {row['made']} | {row['rejected']} | {100 * row['rate']:.1f} % | {row['beyond_limits']} |"
        for name, row in report["classes"].items()
    )
    return f"""
Sifted by a classifier, distances to real images and limits of their envelopes (`sift.json`). "Kept beyond" counts
samples of which all {report["max_candidates"]} candidates were rejected; the best was kept.

| class | images made | rejected | rate | kept beyond |
|---|---|---|---|---|
{rows}
"""


def _urls(plan: Plan) -> str:
    """Return the names of all tars as one brace expression."""
    names = _range("", plan.num_shards)
    if plan.include_real:
        names = f"{{{names},{_range(f'{REAL}-', plan.num_real_shards)}}}"
    return f"{names}.tar"


def _range(prefix: str, count: int) -> str:
    return f"{prefix}000000" if count == 1 else f"{prefix}{{000000..{count - 1:06d}}}"
