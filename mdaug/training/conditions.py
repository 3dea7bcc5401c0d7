"""Continuous conditions: numeric columns of the metadata, normalised over the training split."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdaug import distributed
from shards import mapped
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.pool import Pool
from shards.samples import HASH

MOST_ROWS = 200  # joint values of a class that a pipeline keeps, spread evenly over its training images
SHARDS_PER_PROCESS = 100  # whose metadata are read in the time in which a process starts


@dataclass(frozen=True)
class Scaled:
    """Rows of a table in the scale of the training images, made when they are asked for: the table stays mapped.

    Attributes:
        raw: float64 (n, k) in the columns' own units, NaN where an image has none.
        mean: of each of the k columns over the training images that have it.
        std: its standard deviation there.
    """

    raw: np.ndarray
    mean: list[float]
    std: list[float]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return float32 (..., k) of a row, or of several."""
        return ((self.raw[rows] - self.mean) / self.std).astype(np.float32)


@dataclass(frozen=True)
class Conditions:
    """The conditions of every image, beside its class.

    Attributes:
        names: the k columns.
        mean: of each over the training images that have it.
        std: its standard deviation there.
        train: the training images, (n, k).
        val: the validation images.
        values: class name -> joint values of its training images in their own units, None where there is none.
    """

    names: list[str]
    mean: list[float]
    std: list[float]
    train: Scaled
    val: Scaled
    values: dict[str, list[list[float | None]]]

    def of_auxiliary(self, images: Path | None, split: str, count: int) -> Scaled:
        """Return the conditions of auxiliary images in the scale of the training images, (n, k).

        Args:
            images: their packed folder; None where only their latents are there.
            split: "train" or "val".
            count: number n of images.
        """
        absent = np.broadcast_to(math.nan, (count, len(self.names)))
        return Scaled(absent if images is None else _table(images / split, self.names), self.mean, self.std)

    def for_pipeline(self) -> dict[str, Any]:
        """Return what a `MicroDopplerPipeline` keeps, as plain JSON values."""
        return {"names": self.names, "mean": self.mean, "std": self.std, "values": self.values}


def read(packed: Path, names: list[str]) -> Conditions:
    """Return the columns `names` of the metadata of a packed set; every rank calls it.

    The metadata are read once, by rank 0, into a table beside the shards, which all ranks map, this time and later.

    Raises:
        UserError: a column that does not exist, holds anything but numbers, or is the same for all training images;
            named together with the columns that exist.
    """
    found: tuple[list[float], list[float], dict] | str | None = None
    if distributed.is_main():
        try:
            found = _summary(packed, names)
            _table(packed / "val", names)
        except UserError as error:  # the other ranks wait for an answer
            found = str(error)
    found = distributed.from_main(found)
    if isinstance(found, str):
        raise UserError(found)
    assert found is not None
    mean, std, values = found
    train, val = (Scaled(_table(packed / split, names), mean, std) for split in ("train", "val"))
    return Conditions(names, mean, std, train, val, values)


def _summary(packed: Path, names: list[str]) -> tuple[list[float], list[float], dict[str, list]]:
    """Return mean and standard deviation of the columns of the training images, and the joint values of each class."""
    raw, train = _table(packed / "train", names), ShardDataset(packed / "train", fields=("meta",))
    for name, column in zip(names, raw.T, strict=True):
        if np.isnan(column).all():
            raise UserError(
                f"condition_on names '{name}', a column that the metadata of {packed} does not have; "
                f"its numeric columns are {', '.join(_numeric_columns(train)) or 'none'}"
            )
    for name, column in zip(names, raw.T, strict=True):
        if not np.nanstd(column) > 0:
            raise UserError(
                f"condition_on names '{name}', which is {np.nanmax(column):g} for all training images of {packed}; "
                "a condition has to vary"
            )
    values = {name: joint(raw[train.labels == label]) for label, name in enumerate(train.classes)}
    return np.nanmean(raw, axis=0).tolist(), np.nanstd(raw, axis=0).tolist(), values


def _table(folder: Path, names: list[str]) -> np.ndarray:
    """Return float64 (n, k) of a split, mapped, NaN where a sample has no value; the first process writes it."""
    dataset = ShardDataset(folder, fields=("meta",))
    if not len(dataset):
        return np.empty((0, len(names)))
    columns = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    path = folder / f"columns-{dataset.hash[:HASH]}-{columns}.npy"
    return mapped.read(path, (len(dataset), len(names)), lambda: np.dtype("<f8"), lambda: _rows(dataset, names))


def _rows(dataset: ShardDataset, names: list[str]) -> Iterator[bytes]:
    """Yield the rows of each shard; many shards are read by all cores."""
    parts = [range(first, first + count) for _, first, count in dataset.shards]
    with Pool(jobs=1 + len(parts) // SHARDS_PER_PROCESS, shared=(dataset, names)) as pool:
        yield from pool.map(_rows_of, parts)


def _rows_of(part: range, dataset: ShardDataset, names: list[str]) -> bytes:
    """Return the rows of some samples; raises UserError for a value that is not a number."""
    table = np.full((len(part), len(names)), math.nan)
    for row, i in enumerate(part):
        sample = dataset[i]
        for column, name in enumerate(names):
            value = sample["meta"].get(name)
            if value not in ("", None):
                number = _number(value)
                if number is None:
                    raise UserError(
                        f"condition_on names '{name}', which holds {value!r} at sample '{sample['key']}' of "
                        f"{dataset.folder}; a condition is a number"
                    )
                table[row, column] = number
    return table.tobytes()


def _numeric_columns(dataset: ShardDataset) -> list[str]:
    """Return the columns that hold numbers alone, in order."""
    numeric: dict[str, bool] = {}
    for i in range(len(dataset)):
        for name, value in dataset[i]["meta"].items():
            if value not in ("", None):
                numeric[name] = numeric.get(name, True) and _number(value) is not None
    return sorted(name for name, is_numeric in numeric.items() if is_numeric)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def joint(rows: np.ndarray) -> list[list[float | None]]:
    """Return at most MOST_ROWS rows, spread evenly over those with any value; one row of None if none have."""
    rows = rows[~np.isnan(rows).all(axis=1)]
    if not len(rows):
        return [[None] * rows.shape[1]]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).astype(int))]
    return [[None if math.isnan(value) else float(f"{value:.6g}") for value in row] for row in chosen.tolist()]
