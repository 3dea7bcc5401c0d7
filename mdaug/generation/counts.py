"""How many samples of each class: the rules of the options, resolved to one number per class."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shards.dataset import ShardDataset
from shards.errors import UserError

DEFAULT_SAMPLES = 16


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
            f"{source} does not say how many images each class has; give a packed set (mdaug pack), or a JSON file "
            'such as {"fall": 120, "walk": 300}'
        )
    dataset = ShardDataset(source / "train", fields=())
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, counts, strict=True))


def even(num_samples: int, classes: list[str], known: list[str], have: dict[str, int] | None = None) -> dict[str, int]:
    """Return counts over the `known` classes: num_samples given to `classes`, for totals as even as can be.

    Args:
        num_samples: how many to give.
        classes: those that get any; where they cannot all get the same, the first ones (in the order of known) get one
            more.
        known: all classes of the model.
        have: images that exist already and count towards the totals.
    """
    chosen = [name for name in known if name in classes]
    existing = np.array([(have or {}).get(name, 0) for name in chosen])
    # Filling from the emptiest class up, as water rises: the level with the n emptiest classes, for every n; the right
    # n is the last whose fullest class is not above that level.
    order = np.sort(existing)
    filled = (num_samples + np.cumsum(order)) // np.arange(1, len(order) + 1)
    reached = int(np.flatnonzero(filled >= order)[-1])
    given = np.maximum(filled[reached] - existing, 0)
    # What is left over: one more for the first classes at that level.
    for i in np.flatnonzero(existing <= filled[reached])[: num_samples - int(given.sum())]:
        given[i] += 1
    return dict.fromkeys(known, 0) | dict(zip(chosen, given.tolist(), strict=True))


def filled(known: list[str], have: dict[str, int], *, balance: bool, fill: dict[str, int]) -> dict[str, int]:
    """Return how many each class is missing: to its number in `fill`, or, with `balance`, to the largest class.

    Args:
        known: all classes of the model.
        have: real images per class.
        balance: fill the classes that `fill` does not name up to the largest one.
        fill: totals wanted, real images included.
    """
    largest = max(have.values(), default=0) if balance else 0
    return {name: max(0, fill.get(name, largest) - have.get(name, 0)) for name in known}
