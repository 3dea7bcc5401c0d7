"""`mdaug augment`: compares ways to train a classifier by cross-validation over groups, and writes the one to use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mdaug.augment import COPIES, TODAY, Policy
from mdaug.config import as_dict
from mdaug.measures.worth import worth
from mdaug.recipe import deliver, page, training_set
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.inputs import Inputs, load
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.policy_search import CANDIDATES, FINALISTS, search
from mdaug.recipe.trials import Material, Trial, Use, make_folds, members, run_all
from shards import atomic, provenance
from shards.output_folder import OutputFolder, claim, refuse_other
from shards.progress import say
from shards.validation import Preflight, identity_of

TRIALS, RECIPE = "trials", "recipe.json"
TODAY_ARM, AVERAGED, SEARCHED = "today's transforms", "today's transforms, averaged", "searched policy"
UNIFORM, CLASSES, LABELS = "+ auxiliary, uniform labels", "+ auxiliary, further classes", "+ auxiliary, own labels"
GENERATED = "+ generated"
FRESH = 100  # the first seed of the comparison: not those by which the policy was chosen


def check(options: AugmentConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else."""
    refuse_other(options.output_dir, "augment", identity_of(options))


def run(options: AugmentConfig) -> dict[str, Any]:
    """Find the recipe, write it into `options.output_dir` and return what recipe.json holds.

    Raises:
        UserError: images that do not fit together (see `inputs.load`), a class with one group only, or an output folder
            that holds something else.
    """
    check(options, Preflight())
    inputs = load(options)
    train = inputs.train
    folds = make_folds(train.labels, train.groups, options.folds, inputs.classes)
    folder = claim(options.output_dir, "augment", identity_of(options), inputs.made_from, wait=True)
    if folder.finished:
        say(f"{folder.path} holds this recipe already, finished; delete the folder to look for it again.")
        recipe = json.loads((folder.path / RECIPE).read_text(encoding="utf-8"))
    else:
        folder.begin_again()
        recipe = _find(options, inputs, folds, folder)
    say(page.summary(recipe, folder.path))
    return recipe


def _find(options: AugmentConfig, inputs: Inputs, folds: np.ndarray, folder: OutputFolder) -> dict[str, Any]:
    train = inputs.train
    settings = {name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate")}
    material = Material(inputs.classes, train, folds, inputs.held_out, inputs.auxiliary, inputs.synthetic, **settings)
    numbers = _curve_numbers(options, material)
    expected = _expected(options, inputs, len(np.unique(folds)), len(numbers))

    def train_all(trials: Sequence[Trial]) -> list[dict[str, Any]]:
        def progress(done: int) -> None:
            folder.progress(min(done, expected), expected, "classifier")

        return run_all(trials, material, folder.path / TRIALS, options.workers, progress)

    # The transforms.
    say(f"{len(train)} training images of {len(inputs.classes)} classes; about {expected} classifiers to train")
    chosen = search(train, folds, train_all, seeds=options.seeds)
    # Ways to train, all with fresh seeds and the same folds, and which additions are worth it.
    compared = Comparison(options, inputs, folds, chosen.policy, train_all)
    free, best = compared.choose()
    # Is n enough?
    enough = _learning_curve(options, inputs, folds, compared.trials[free], train_all, numbers, compared.rows)
    # The one look at the held-out images.
    arms = list(dict.fromkeys([TODAY_ARM, free, best]))
    held_out = _look(options, inputs, {arm: compared.trials[arm] for arm in arms}, train_all)
    final = replace(compared.trials[best], fold=None, seed=FRESH)
    recipe = {
        "classes": inputs.classes,
        "chosen": best,
        "free_baseline": free,
        "policy": final.policy.to_json(),
        "searched": chosen.name,
        "auxiliary": {"use": final.use, "share": final.share} if final.use else None,
        "generated_share": final.synthetic,
        "cross_validation": {"arms": compared.rows, "policies": chosen.table, "folds": int(folds.max()) + 1},
        "enough": enough,
        "held_out": held_out,
        "images": {"train": len(train), "held_out": len(inputs.held_out), "held_out_split": inputs.held_out_split},
        "groups": {"train": len(set(train.groups)), "held_out": len(set(inputs.held_out.groups))},
        "config": as_dict(options),
        "made_from": {role: content for role, content in inputs.made_from.items() if content is not None},
    }
    deliver.write(folder.path, final, material, inputs.colormap)
    training_set.write(folder.path, final, material, inputs.stored)
    atomic.write_text(folder.path / RECIPE, json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")
    page.write(folder.path, recipe)
    files = [folder.path / RECIPE, folder.path / deliver.WEIGHTS]
    folder.finish("recipe", provenance.hash_files(files), as_dict(options))
    return recipe


class Comparison:
    """The arms, cross-validated with the same seeds and folds, and the choice among them.

    Attributes:
        trials: arm -> one of its trials.
        rows: figures of the arms: {"arm", "recall", "low", "high", "against", "gain": (difference, low, high), "kept"}.
    """

    def __init__(self, options: AugmentConfig, inputs: Inputs, folds: np.ndarray, searched: Policy, run: Any):
        self.options, self.train, self.folds, self.run = options, inputs.train, folds, run
        self.inputs, self.searched = inputs, searched
        self.trials: dict[str, Trial] = {}
        self.hits: dict[str, np.ndarray] = {}
        self.rows: list[dict[str, Any]] = []

    def choose(self) -> tuple[str, str]:
        """Train and compare all arms; return the names of the free baseline and of the chosen arm.

        An addition is kept only if the interval of its gain lies above zero; of several the one with the larger gain.
        First over today's transforms: averaging over their copies, the searched policy. The winner is the free
        baseline, on which auxiliary images have to gain, and generated ones on top of that.
        """
        share = self.options.share
        self._add(Trial(TODAY_ARM, TODAY))
        policies = {AVERAGED: replace(TODAY, copies=COPIES)}
        if self.searched not in (TODAY, policies[AVERAGED]):
            policies[SEARCHED] = self.searched
        rows = [self._add(Trial(arm, policy), against=TODAY_ARM) for arm, policy in policies.items()]
        free = best = self._keep(rows, TODAY_ARM)
        policy = self.trials[free].policy
        if self.inputs.auxiliary is not None:
            uses: dict[str, tuple[Use, float]] = {UNIFORM: ("uniform", share), CLASSES: ("classes", share)}
            if self.inputs.same:  # of a quarter and a half of each batch, either was better on some person's gestures
                uses = {LABELS: ("labels", share), f"{LABELS}, twice the share": ("labels", 2 * share)}
            rows = [self._add(Trial(arm, policy, use, share=part), against=free) for arm, (use, part) in uses.items()]
            best = self._keep(rows, free)
        if self.inputs.synthetic is not None:
            name = GENERATED if best == free else f"{best} {GENERATED}"
            best = self._keep([self._add(replace(self.trials[best], arm=name, synthetic=share), against=best)], best)
        return free, best

    def _add(self, trial: Trial, against: str | None = None) -> dict[str, Any]:
        seeds = range(FRESH, FRESH + self.options.seeds)
        trials = [replace(trial, fold=int(fold), seed=seed) for seed in seeds for fold in np.unique(self.folds)]
        key = "averaged" if trial.policy.copies else "plain"
        hits = hits_of(self.run(trials), self.train.labels, key)
        recall, low, high = interval(hits, self.train.labels, self.train.groups)
        row: dict[str, Any] = {"arm": trial.arm, "recall": recall, "low": low, "high": high, "against": against}
        if against is not None:
            row["gain"] = interval(hits, self.train.labels, self.train.groups, self.hits[against])
            row["kept"] = False
        self.trials[trial.arm], self.hits[trial.arm] = trial, hits
        self.rows.append(row)
        return row

    @staticmethod
    def _keep(rows: list[dict[str, Any]], best: str) -> str:
        proven = [row for row in rows if row["gain"][1] > 0]
        if not proven:
            return best
        winner = max(proven, key=lambda row: row["gain"][0])
        winner["kept"] = True
        return str(winner["arm"])


def _curve_numbers(options: AugmentConfig, material: Material) -> list[int]:
    """Return the numbers of images per class that every fold leaves to train on, below the smallest class."""
    counts = [
        np.bincount(material.train.labels[members(Trial("", TODAY, fold=int(fold)), material)]).min()
        for fold in np.unique(material.folds)
    ]
    return [number for number in options.n_per_class if number < min(counts)]


def _learning_curve(
    options: AugmentConfig,
    inputs: Inputs,
    folds: np.ndarray,
    free: Trial,
    run: Any,
    numbers: list[int],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what more images and what more groups bring, and what the arms are worth in real images.

    Returns:
        {"images": [(per class, mean recall)], "groups": [(groups of each class, mean recall)] at "per_class" images
        each, "worth": arm -> see `worth.worth`}.
    """
    train = inputs.train
    key = "averaged" if free.policy.copies else "plain"

    def recall(**subset: int) -> float:
        trials = [
            replace(free, fold=int(fold), seed=FRESH, subset=number, **subset)  # type: ignore[arg-type]
            for number in range(options.seeds)
            for fold in np.unique(folds)
        ]
        return mean_recall(hits_of(run(trials), train.labels, key), train.labels)

    every = next(row["recall"] for row in rows if row["arm"] == free.arm)
    per_class = int(np.median(np.bincount(train.labels)) * (1 - 1 / (folds.max() + 1)))
    images = [(number, recall(per_class=number)) for number in numbers] + [(per_class, every)]
    # Equally many images from more groups: the smallest number of the curve.
    in_fold = [len({g for g, f, y in zip(train.groups, folds, train.labels, strict=True) if f != 0 and y == label})
               for label in range(len(inputs.classes))]  # fmt: skip
    fixed = numbers[0] if numbers else per_class
    groups = [(number, recall(num_groups=number, per_class=fixed)) for number in (1, 2, 4) if number <= min(in_fold)]
    return {
        "images": images,
        "groups": groups,
        "per_class": fixed,
        "worth": {row["arm"]: worth(row["recall"], images) for row in rows},
    }


def _look(options: AugmentConfig, inputs: Inputs, trials: dict[str, Trial], run: Any) -> list[dict[str, Any]]:
    """Return the figures of some arms, trained on all training images, on the held-out ones."""
    held_out, hits, rows = inputs.held_out, {}, []
    for arm, trial in trials.items():
        seeds = [replace(trial, fold=None, seed=FRESH + seed) for seed in range(options.seeds)]
        hits[arm] = hits_of(run(seeds), held_out.labels, "averaged" if trial.policy.copies else "plain")
        recall, low, high = interval(hits[arm], held_out.labels, held_out.groups)
        row: dict[str, Any] = {"arm": arm, "recall": recall, "low": low, "high": high}
        if arm != TODAY_ARM:
            row["gain"] = interval(hits[arm], held_out.labels, held_out.groups, hits[TODAY_ARM])
        rows.append(row)
    return rows


def _expected(options: AugmentConfig, inputs: Inputs, folds: int, numbers: int) -> int:
    """Return about how many classifiers a recipe trains."""
    arms = 3 + 2 * (inputs.auxiliary is not None) + (inputs.synthetic is not None)
    of_search = folds * (len(CANDIDATES) + FINALISTS * (options.seeds - 1))
    return of_search + options.seeds * (folds * (arms + numbers + 3) + 3)
