"""manifest.csv and manifest.parquet: a row for every sample, written as the shards are looked at."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shards.atomic import replacing

# Column -> (type in Parquet, what it says); a column without a value is empty in the CSV and null in Parquet.
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
    "score": ("float64", "with --sift: how likely a classifier trained on real images finds the class"),
    "candidate": ("int32", "with --sift: how many images before it were rejected"),
    "within_limits": ("bool", "with --sift: false where every candidate was rejected and the best was kept"),
    "group": ("string", "recording or person of a real image"),
    "original": ("string", "file of a real image"),
}


def columns(conditions: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return COLUMNS and one for each continuous condition of the model."""
    return COLUMNS | {f"condition_{name}": ("float64", f"the condition {name}") for name in conditions}


class Manifest:
    """Writes both files, row by row, and puts them in place at the end if nothing was raised; a context manager."""

    def __init__(self, folder: Path, conditions: Iterable[str] = ()):
        self.columns = columns(conditions)
        self.paths = {kind: folder / f"manifest.{kind}" for kind in ("csv", "parquet")}
        self.files = contextlib.ExitStack()

    def __enter__(self) -> Manifest:
        import pyarrow
        from pyarrow import parquet

        self.arrow = pyarrow
        kinds = {
            name: getattr(pyarrow, "bool_" if kind == "bool" else kind)() for name, (kind, _) in self.columns.items()
        }
        self.schema = pyarrow.schema(list(kinds.items()))
        text, binary = (
            self.files.enter_context(file)
            for file in (
                replacing(self.paths["csv"], "w", encoding="utf-8", newline=""),
                replacing(self.paths["parquet"]),
            )
        )
        self.csv = csv.DictWriter(text, self.columns, lineterminator="\n")
        self.csv.writeheader()
        self.parquet = parquet.ParquetWriter(binary, self.schema)
        return self

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; what they have beside the columns is left out."""
        full = [{name: row.get(name) for name in self.columns} for row in rows]
        self.csv.writerows(full)
        self.parquet.write_table(self.arrow.Table.from_pylist(full, schema=self.schema))

    def __exit__(self, *error: Any) -> None:
        self.parquet.close()
        self.files.__exit__(*error)
