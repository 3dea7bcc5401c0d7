"""How many samples of each class: the rules of the command line, resolved to one number per class."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shards.errors import UserError

DEFAULT_SAMPLES = 16


def parse(field: str, text: str) -> dict[str, int]:
    """Return the counts of "fall=30,walk=20"; raises ValueError for any other text."""
    counts = {}
    for part in text.split(","):
        name, _, count = part.rpartition("=")
        if not name or not count.strip().lstrip("-").isdigit():
            raise ValueError(f"{field} is '{text}'; write it as fall=30,walk=20")
        counts[name.strip()] = int(count)
    return counts


def require_known(names: Iterable[str], known: list[str]) -> None:
    """Raise UserError if the model does not know one of the class names."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"the model knows no class {', '.join(unknown)}; it knows {', '.join(known)}")


def of_real(source: Path) -> dict[str, int]:
    """Return the number of real images per class: of the train split of a packed set, or of a JSON file.

    Args:
        source: a packed set, the classes.json in it, or a file {"fall": 120, "walk": 300}.

    Raises:
        UserError: it is none of these.
    """
    if source.is_file():
        try:
            content = json.loads(source.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{source} is not JSON ({error}); give a packed set or a file of counts") from None
        if isinstance(content, dict) and all(isinstance(n, int) and n >= 0 for n in content.values()):
            return content
        source = source.parent
    if not (source / "train" / "index.json").is_file():
        raise UserError(
            f"{source} says not how many images a class has; give a packed set (mdaug pack), or a JSON file "
            'such as {"fall": 120, "walk": 300}'
        )
    from shards.dataset import ShardDataset

    dataset = ShardDataset(source / "train", fields=())
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, counts, strict=True))


def even(num_samples: int, classes: list[str], known: list[str], have: dict[str, int] | None = None) -> dict[str, int]:
    """Return counts over the `known` classes: num_samples given to `classes` so that all end as level as can be.

    Args:
        num_samples: how many to give.
        classes: those that get any; where they cannot all get the same, the first ones (in the order of known) get one
            more.
        known: all classes of the model.
        have: what is there already and counts towards the level.
    """
    chosen = [name for name in known if name in classes]
    there = np.array([(have or {}).get(name, 0) for name in chosen])
    # The level that num_samples fills the classes up to, from the emptiest: the last of these that is not above.
    order = np.sort(there)
    filled = (num_samples + np.cumsum(order)) // np.arange(1, len(order) + 1)
    reached = int(np.flatnonzero(filled >= order)[-1])
    given = np.maximum(filled[reached] - there, 0)
    for place in np.flatnonzero(there <= filled[reached])[: num_samples - int(given.sum())]:
        given[place] += 1
    return dict.fromkeys(known, 0) | dict(zip(chosen, given.tolist(), strict=True))


def filled(known: list[str], have: dict[str, int], *, balance: bool, fill: dict[str, int]) -> dict[str, int]:
    """Return what each class lacks: to its number in `fill`, or, with `balance`, to the largest class there is.

    Args:
        known: all classes of the model.
        have: real images per class.
        balance: fill the classes that `fill` does not name up to the largest one.
        fill: totals wanted, real images included.
    """
    largest = max(have.values(), default=0) if balance else 0
    return {name: max(0, fill.get(name, largest) - have.get(name, 0)) for name in known}


def parse_conditions(text: str) -> dict[str, float]:
    """Return `speed=1.2,aspect=30` as a dict.

    Raises:
        ValueError: a part that is not name=number.
    """
    fixed: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            fixed[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"conditions holds '{part}'; write name=number, such as speed=1.2,aspect=30") from None
    return fixed
