"""manifest.csv and manifest.parquet: a row for every sample, written as the shards are looked at."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        self.temporary = {kind: path.with_name(f".{path.name}.{os.getpid()}.tmp") for kind, path in self.paths.items()}

    def __enter__(self) -> Manifest:
        import pyarrow
        from pyarrow import parquet

        self.arrow = pyarrow
        kinds = {
            name: getattr(pyarrow, "bool_" if kind == "bool" else kind)() for name, (kind, _) in self.columns.items()
        }
        self.schema = pyarrow.schema(list(kinds.items()))
        self.csv_file = open(self.temporary["csv"], "w", encoding="utf-8", newline="")
        self.csv = csv.DictWriter(self.csv_file, self.columns, lineterminator="\n")
        self.csv.writeheader()
        self.parquet = parquet.ParquetWriter(self.temporary["parquet"], self.schema)
        return self

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; what they have beside the columns is left out."""
        full = [{name: row.get(name) for name in self.columns} for row in rows]
        self.csv.writerows(full)
        self.parquet.write_table(self.arrow.Table.from_pylist(full, schema=self.schema))

    def __exit__(self, error: object, *_: object) -> None:
        self.parquet.close()
        self.csv_file.close()
        for kind, path in self.paths.items():
            if error is None:
                os.replace(self.temporary[kind], path)
            else:
                self.temporary[kind].unlink()
