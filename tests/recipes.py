"""What the tests of the recipe share: a recipe of few steps and policies, and images of other people and classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug.augment import RICHER, TODAY, Policy
from mdaug.recipe import policy_search
from mdaug.recipe.options import AugmentConfig
from tests.toy import CLASSES, toy_image

FEW = {"only": TODAY, "richer": RICHER}


def small_recipe(packed: Path, output: Path) -> AugmentConfig:
    """Options of a recipe that takes a second."""
    small = {"image_size": 32, "steps": 2, "seeds": 2, "folds": 2, "n_per_class": [2], "batch_size": 8, "workers": 1}
    return AugmentConfig(packed, output, **small)


def search_only(monkeypatch: pytest.MonkeyPatch, policies: dict[str, Policy]) -> None:
    """Let the search try these policies and no others."""
    monkeypatch.setattr(policy_search.search, "__defaults__", (policies, *policy_search.search.__defaults__[1:]))


def recorded(folder: Path, persons: int = 3) -> Path:
    """An image folder of two classes of the toy set by some persons, in two sessions each, named in metadata.csv."""
    rng = np.random.default_rng(9)
    rows = []
    for label, name in enumerate(CLASSES[:2]):
        (folder / name).mkdir(parents=True)
        for person in range(persons):
            for i in range(60):
                file = f"{name}/x{person}_s{i // 30}_{i:02d}.png"
                Image.fromarray(toy_image(label, rng, 32).squeeze()).save(folder / file)
                rows.append((file, f"p{person}", f"x{person}_s{i // 30}"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "person", "group"), *rows])
    return folder
