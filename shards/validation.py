"""Options of a command: checks of their values, which of them identify a run, and the sizes of images."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

WORKER, WORKERS = "MDAUG_WORKER", "MDAUG_WORKERS"  # number of a rank among all, and their number, by the launcher
LARGEST_SIDE = 16384  # pixels; a mistyped number would fill the memory with the first image


@dataclass(frozen=True)
class Preflight:
    """Where a command is about to run, as far as it is known at submission; `check(options, where)` relies on it."""

    ranks: int = 1
    """Processes that share the work."""
    device: Literal["cpu", "cuda"] | None = None
    """Kind of device of each rank; None where that is not known before it starts."""
    inputs_there: bool = True
    """False where an earlier job of the chain still has to make the inputs."""


def operational(default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field that decides where or how fast a command runs, not what it makes.

    Such a field may change when a run is continued: `identity_of` leaves it out. A list or dict is copied per instance.
    """
    metadata = {"operational": True}
    if default is dataclasses.MISSING or not isinstance(default, list | dict | set):
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)


def is_operational(field: dataclasses.Field) -> bool:
    """Return whether a field was declared with `operational`."""
    return bool(field.metadata.get("operational"))


def identity_of(options: Any) -> dict[str, Any]:
    """Return field -> plain value (paths as text, tuples as lists) of the options that decide what a command makes."""
    fields = dataclasses.fields(options)
    return {field.name: plain(getattr(options, field.name)) for field in fields if not is_operational(field)}


def plain(value: Any) -> Any:
    """Return an option's value as JSON and YAML hold it: paths as text, tuples as lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def worker_of(options: Any, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (number of this worker, number of workers) of a command whose workers need not know of each other.

    By `--worker` and `--num_workers`, by what the launcher tells its ranks, or by both: ranks count within a worker.
    Nothing else divides the work, such as a SLURM array around the command or the variables of torchrun.
    """
    ranks = int(environment.get(WORKERS, "1"))
    return (options.worker or 0) * ranks + int(environment.get(WORKER, "0")), (options.num_workers or 1) * ranks


def one_of_workers(options: Any) -> None:
    """Refuse `worker` and `num_workers` that do not belong together."""
    at_least(options, 0, "worker")
    at_least(options, 1, "num_workers")
    worker, workers = options.worker, options.num_workers
    if (worker is None) != (workers is None):
        raise ValueError("worker and num_workers belong together; give both, such as worker 0 of num_workers 4")
    if worker is not None and worker >= workers:
        raise ValueError(f"worker={worker} must be less than num_workers={workers}")


def at_least(options: Any, least: float, *names: str) -> None:
    """Refuse fields below `least`, or not finite; None and text such as "auto" pass.

    Raises ValueError naming field, value and what is accepted, like all checks here.
    """
    for name, value in _numbers(options, names):
        if not least <= value < math.inf:
            raise ValueError(f"{name}={value} must be at least {least}")


def multiple_of(options: Any, factor: int, *names: str) -> None:
    """Refuse fields that `factor` does not divide; None and text pass."""
    for name, value in _numbers(options, names):
        if value % factor:
            raise ValueError(f"{name}={value} must be a multiple of {factor}")


def ascending(options: Any, *names: str) -> None:
    """Refuse lists whose numbers do not rise from each to the next; None passes, "all" counts as infinite."""
    for name in names:
        values = getattr(options, name)
        numbers = [math.inf if value == "all" else value for value in values or ()]
        if any(first >= second for first, second in pairwise(numbers)):
            raise ValueError(f"{name}={values} must be in ascending order")


def within(options: Any, interval: str, *names: str) -> None:
    """Refuse fields outside of an interval in mathematical notation, such as "(0, 0.5]" or "(0, inf)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in _numbers(options, names):
        above = low < value if interval[0] == "(" else low <= value
        below = value < high if interval[-1] == ")" else value <= high
        if not (above and below):
            raise ValueError(f"{name}={value} must be {_in_words(interval)}")


def one_of(options: Any, accepted: Collection[str], *names: str) -> None:
    """Refuse fields that are neither None nor one of the accepted words."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value not in accepted:
            raise ValueError(f"{name}={value} must be one of {', '.join(accepted)}")


def one_of_each(options: Any, accepted: Collection[str], *names: str) -> None:
    """Refuse lists that are empty, repeat a word, or hold one that is not accepted; None passes."""
    for name in names:
        values = getattr(options, name)
        if values is not None and (not values or len(set(values)) < len(values) or not set(values) <= set(accepted)):
            raise ValueError(f"{name}={values} must hold at least one of {', '.join(accepted)}, each only once")


def one_capture_group(options: Any, name: str) -> None:
    """Refuse a field that is neither None nor a regular expression with exactly one capture group."""
    pattern = getattr(options, name)
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{name}={pattern} is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"{name}={pattern} must have exactly one capture group, it has {groups}")


def height_width(size: int | str) -> tuple[int, int]:
    """Return (height, width) in pixels of `256` or `"128x256"`; raises ValueError for anything else."""
    sides = str(size).split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= LARGEST_SIDE for side in sides):
        raise ValueError(
            f"image_size={size} must be a number of pixels such as 256, or height x width such as 128x256, "
            f"each at most {LARGEST_SIDE}"
        )
    return int(sides[0]), int(sides[-1])


def written(height: int, width: int) -> int | str:
    """Return the size as the flag `--image_size` takes it: one number where the image is square."""
    return height if height == width else f"{height}x{width}"


def _numbers(options: Any, names: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return (name, number) of the fields, one for each item of those that hold several."""
    numbers = []
    for name in names:
        value = getattr(options, name)
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None and not isinstance(item, str):
                numbers.append((name, item))
    return numbers


def _in_words(interval: str) -> str:
    low, high = (end.strip() for end in interval[1:-1].split(","))
    parts = []
    if low != "-inf":
        parts.append(f"greater than {low}" if interval[0] == "(" else f"at least {low}")
    if high != "inf":
        parts.append(f"less than {high}" if interval[-1] == ")" else f"at most {high}")
    return " and ".join(parts)
