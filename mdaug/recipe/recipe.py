"""`mdaug augment`: compares ways to train a classifier by cross-validation over groups, and writes the one to use."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mdaug import distributed
from mdaug.augment import TODAY
from mdaug.config import as_dict
from mdaug.measures.worth import worth
from mdaug.recipe import deliver, page, training_set
from mdaug.recipe.comparison import FRESH, TODAY_ARM, Comparison
from mdaug.recipe.episodes import Episodes
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.generators import Generators, Kind
from mdaug.recipe.inputs import Inputs, load
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.policy_search import CANDIDATES, Chosen, search, task_of
from mdaug.recipe.trials import GIVEN, MOST_WORKERS, Images, Material, Trial, make_folds, members, run_all
from shards import atomic, provenance
from shards.output_folder import OutputFolder, claim, exclusive, is_finished, refuse_other
from shards.pool import cores
from shards.progress import say
from shards.validation import Preflight, identity_of, worker_of

TRIALS, POLICY_TRIALS, EPISODES, RECIPE = "trials", "policy_trials", "episodes", "recipe.json"
# Minutes of a classifier at 64 x 64 pixels, for what is said before the start: 25 to 36 s of a core were measured on
# soundwave_gesture (7 classes x 20), 1,720 steps on average. A step takes 0.6 of that at 32 x 32 pixels, 3.1 times as
# long at 128 x 128 and 16 times at 256 x 256.
CLASSIFIER_MINUTES, SETTLED_STEPS, SMALLEST = 0.5, 1720, 0.6


def check(options: AugmentConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else."""
    refuse_other(options.output_dir, "augment", identity_of(options))


def pieces(options: AugmentConfig) -> int:
    """Return how many workers can have work: one for the generator of each fold."""
    return options.folds if options.generate else 1


def run(options: AugmentConfig) -> dict[str, Any] | None:
    """Find the recipe, write it into `options.output_dir` and return what recipe.json holds.

    Of several workers all but the last to finish train their share of the generators alone, and return None.

    Raises:
        UserError: images that do not fit together (see `inputs.load`), a class with one group only, or an output folder
            that holds something else.
    """
    check(options, Preflight())
    worker, workers = worker_of(options, os.environ)
    inputs = load(options)
    train = inputs.train
    folds = make_folds(train.labels, train.groups, options.folds, inputs.classes)
    episodes = _episodes(options, inputs, folds)
    generators = Generators(options, inputs, folds) if options.generate else None
    folder = claim(options.output_dir, "augment", identity_of(options), inputs.made_from, together=True)
    if folder.finished:
        say(f"{folder.path} holds this recipe already, finished; delete the folder to look for it again.")
        recipe = json.loads((folder.path / RECIPE).read_text(encoding="utf-8"))
    else:
        folder.begin_again()
        say(_budget(options, inputs, folds, generators, episodes))
        if episodes is not None and episodes.why:
            say(f"whether auxiliary images help is found out on the training images alone: {episodes.why}")
        if generators is not None:
            distributed.be_alone()
            generators.make_share(worker, workers)
            if not generators.complete:
                say("this worker is done; the last one to finish compares the images and writes the recipe")
                return None
        with exclusive(folder.path):  # of workers that end together one goes on, and the others find what it has made
            if is_finished(folder.path):
                recipe = json.loads((folder.path / RECIPE).read_text(encoding="utf-8"))
            else:
                recipe = _find(options, inputs, folds, folder, generators, episodes)
    say(page.summary(recipe, folder.path))
    return recipe


def _find(
    options: AugmentConfig,
    inputs: Inputs,
    folds: np.ndarray,
    folder: OutputFolder,
    generators: Generators | None,
    episodes: Episodes | None,
) -> dict[str, Any]:
    train, settings = inputs.train, _settings(options)
    names = [int(fold) for fold in np.unique(folds)]
    synthetic = {(GIVEN, fold): inputs.synthetic for fold in (*names, None) if inputs.synthetic is not None}
    kinds: list[Kind] = generators.chosen() if generators else []
    if generators:
        synthetic |= {(kind.name, fold): generators.images(kind, fold)[0] for kind in kinds for fold in names}
    material = Material(
        inputs.classes, train, folds, inputs.held_out, inputs.auxiliary, synthetic, inputs.unlabelled, **settings
    )
    numbers = _curve_numbers(options, material)
    expected = _expected(options, inputs, len(names), len(numbers), episodes)

    def train_all(trials: Sequence[Trial], task: Material | None = None, episode: str = "") -> list[dict[str, Any]]:
        """Return the results of trials; those of another task than the recipe's lie in a folder of their own."""

        def done() -> int:
            return sum(1 for place in (TRIALS, POLICY_TRIALS, EPISODES) for _ in (folder.path / place).rglob("*.json"))

        def progress(_: int) -> None:
            folder.progress(min(done(), expected), expected, "classifier")

        before = done()
        place = f"{EPISODES}/{episode}" if episode else POLICY_TRIALS if task else TRIALS
        results = run_all(trials, task or material, folder.path / place, options.workers, progress)
        if done() > before:
            say(f"{done()} of about {expected} classifiers are trained")
        return results

    # The transforms.
    chosen, on_auxiliary = _search(options, inputs, folds, train_all)
    # Ways to train, all with fresh seeds and the same folds, and which additions are worth it.
    made = [kind.name for kind in kinds]
    compared = Comparison(options, inputs, folds, chosen.policy, train_all, on_auxiliary, made, episodes)
    free, best = compared.choose()
    # Is n enough?
    enough = _learning_curve(options, inputs, folds, compared.trials[free], train_all, numbers, compared.rows)
    # Of generated images that were kept, those of a generator of all training images.
    stored = inputs.stored
    kind = next((kind for kind in kinds if kind.name == compared.trials[best].kind), None)
    if generators and kind:
        images, stored_images = generators.make_all(kind)
        material = replace(material, synthetic={**synthetic, (kind.name, None): images})
        stored = {**stored, "generated": stored_images}
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
        "searched_on": "auxiliary images" if on_auxiliary else "the training images",
        "episodes": {"on": [target.name for target in episodes.targets], "per_class": episodes.few, "why": episodes.why}
        if episodes is not None
        else None,
        "auxiliary": {"use": final.use, "share": None if final.pretrain else final.share, "pretraining": final.pretrain}
        if final.use
        else None,
        "unlabelled_share": final.pseudo,
        "generated_share": final.synthetic,
        "generated_kind": final.kind if final.synthetic else None,
        "label_kept": generators.label_kept() if generators else {},
        "cross_validation": {"arms": compared.rows, "policies": chosen.table, "folds": int(folds.max()) + 1},
        "enough": enough,
        "held_out": held_out,
        "images": {"train": len(train), "held_out": len(inputs.held_out), "held_out_split": inputs.held_out_split},
        "groups": {"train": len(set(train.groups)), "held_out": len(set(inputs.held_out.groups))},
        "config": as_dict(options),
        "made_from": {role: content for role, content in inputs.made_from.items() if content is not None},
    }
    deliver.write(folder.path, final, material, inputs.colormap)
    training_set.write(folder.path, final, material, stored)
    atomic.write_text(folder.path / RECIPE, json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")
    page.write(folder.path, recipe)
    files = [folder.path / RECIPE, folder.path / deliver.WEIGHTS]
    folder.finish("recipe", provenance.hash_files(files), as_dict(options))
    return recipe


def _settings(options: AugmentConfig) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate")}


def _few(train: Images, folds: np.ndarray) -> int:
    """Return how many images of a class a fold leaves to train on."""
    return max(1, round(np.median(np.bincount(train.labels)) * (1 - 1 / len(np.unique(folds)))))


def _episodes(options: AugmentConfig, inputs: Inputs, folds: np.ndarray) -> Episodes | None:
    """Return where uses of auxiliary images are tried beside the training images; None without such images."""
    if inputs.auxiliary is None:
        return None
    few = _few(inputs.train, folds)
    return Episodes(inputs.auxiliary, inputs.same, inputs.auxiliary_domains, few, _settings(options))


def _search(options: AugmentConfig, inputs: Inputs, folds: np.ndarray, run: Any) -> tuple[Chosen, bool]:
    """Return the best policy, and whether auxiliary images have chosen it.

    They choose where they are more than the training images and have groups, each classifier trained on as many of
    them as a fold has training images.
    """
    train = inputs.train
    names = inputs.classes if inputs.same else inputs.auxiliary_classes
    task = task_of(inputs.auxiliary, names, len(train))
    if task is None:
        return search(train, folds, run, seeds=options.seeds), False
    few = _few(train, folds)
    task = replace(task, **_settings(options))

    def run_task(trials: Sequence[Trial]) -> list[dict[str, Any]]:
        return run(trials, task)

    return search(task.train, task.folds, run_task, seeds=options.seeds, per_class=few), True


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
        each, of half the groups and of all, "worth": arm -> see `worth.worth`}.
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
    # Equally many images, the smallest number of the curve, from half the groups of each class that every fold leaves.
    held = [
        len({g for g, f, y in zip(train.groups, folds, train.labels, strict=True) if f != fold and y == label})
        for fold in np.unique(folds)
        for label in np.unique(train.labels)
    ]
    fixed, most = (numbers[0] if numbers else per_class), min(held)
    groups = []
    if most > 1:
        whole = 0 if max(held) == most else most  # 0: what the curve over images has trained already
        groups = [
            (most // 2, recall(num_groups=most // 2, per_class=fixed)),
            (most, recall(num_groups=whole, per_class=fixed)),
        ]
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


def _expected(options: AugmentConfig, inputs: Inputs, folds: int, numbers: int, episodes: Episodes | None) -> int:
    """Return about how many classifiers a recipe trains at most."""
    uses = 0 if inputs.auxiliary is None else 1 if inputs.same else 3
    arms = 3 + uses + 2 * (inputs.unlabelled is not None)
    arms += (inputs.synthetic is not None) + (3 if options.generate else 0)
    rounds = len(CANDIDATES) * 3 // 2
    of_search = folds * rounds if inputs.auxiliary is None else 2 * rounds
    of_episodes = 2 * (1 + uses) * len(episodes) if episodes is not None else 0  # folds, arms
    return of_search + options.seeds * (folds * (arms + numbers + 1) + 3 + of_episodes)


def _budget(
    options: AugmentConfig,
    inputs: Inputs,
    folds: np.ndarray,
    generators: Generators | None,
    episodes: Episodes | None,
) -> str:
    """Return what is going to be trained, and about how long that takes."""
    count = len(np.unique(folds))
    classifiers = _expected(options, inputs, count, len(options.n_per_class), episodes)
    pretrainings = 0 if episodes is None else options.seeds * (1 + len(episodes))
    minutes = (classifiers + pretrainings) * CLASSIFIER_MINUTES / min(options.workers or cores(), MOST_WORKERS)
    minutes *= max(SMALLEST, (options.image_size / 64) ** 2)
    minutes *= 1 if options.steps == "settled" else options.steps / SETTLED_STEPS
    text = f"{len(inputs.train)} training images of {len(inputs.classes)} classes; about {classifiers} classifiers"
    if generators is not None:
        text += f" and {count} generators, one more if their images are kept,"
        minutes += generators.minutes
    return f"{text} to train: about {max(1, round(minutes))} minutes on quiet cores"
