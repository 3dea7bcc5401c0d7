r"""What training choices are worth on one set or several: transforms, auxiliary images used directly, generated ones.

Every arm is trained on the same nested subsets of n images per class and judged once on the held-out images. Gains are
paired. With several sets (a person or a site each) the figures are means over them.

    python benchmarks/usefulness.py --data packed --aux packed-others --name gait --out runs/usefulness/gait
    python benchmarks/usefulness.py --data p04 p05 --aux not-p04 not-p05 --same --policy "today, event" --name people \
        --out runs/usefulness/people
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mdaug.augment import COPIES, TODAY, Policy
from mdaug.measures import image_set
from mdaug.measures.worth import in_words, worth
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.policy_search import CANDIDATES, search
from mdaug.recipe.trials import GIVEN, Images, Material, Trial, make_folds, members, run_all
from shards.provenance import code_version

TODAY_ARM, FREE = "today's transforms", "free baseline"
RANDOM = "aux, random labels (control)"


@dataclass
class Target:
    """One set: its images, and what its trials found."""

    name: str
    material: Material
    held_out: Images
    random: Images | None  # the auxiliary images, each under a target class at random
    results: dict[Trial, dict[str, Any]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="packed sets")
    parser.add_argument("--aux", type=Path, nargs="*", default=[], help="packed auxiliary set of each")
    parser.add_argument("--same", action="store_true", help="auxiliary images show the target classes")
    parser.add_argument("--synthetic", type=Path, nargs="*", default=[], help="generated shards for each set")
    parser.add_argument("--name", required=True, help="what the table is of")
    parser.add_argument("--out", type=Path, required=True, help="folder of one JSON for each classifier")
    parser.add_argument("--n", type=int, nargs="+", default=[5, 10], help="training images of each class")
    parser.add_argument("--curve", type=int, nargs="*", default=[20], help="further numbers for the free baseline")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--policy", choices=CANDIDATES, metavar="NAME", help="of the free baseline; default: searched")
    parser.add_argument("--copies", type=int, default=COPIES, help="of --policy at test time; 0: images as they are")
    parser.add_argument("--search_at", type=int, default=10, help="images of each class that the search sees")
    parser.add_argument("--steps", type=_steps, default=800, help="of each classifier, or settled")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25], help="of each batch, of auxiliary images")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    begun = time.process_time()

    # The sets, and the transforms of the free baseline.
    table: list[dict[str, Any]] = []
    targets = [_target(options, number) for number in range(len(options.data))]
    if options.policy:
        policy = replace(CANDIDATES[options.policy], copies=options.copies)
    else:
        policy, table = _searched(targets[0], options)
    # The arms.
    arms = [Trial(TODAY_ARM, TODAY), Trial(FREE, policy)]
    if options.aux:
        arms.append(Trial("aux, pretraining", policy, "labels" if options.same else "classes", pretrain=True))
    for share in options.shares if options.aux else []:
        amount = f"{share:g} of the batch"
        if options.same:
            arms.append(Trial(f"aux, own labels, {amount}", policy, "labels", share))
        else:
            arms.append(Trial(f"aux, uniform labels, {amount}", policy, "uniform", share))
            arms.append(Trial(f"aux, further classes, {amount}", policy, "classes", share))
            arms.append(Trial(f"{RANDOM}, {amount}", policy, "labels", share))
    for share in options.shares if options.synthetic else []:
        arms.append(Trial(f"generated, {share:g} of the batch", policy, synthetic=share))
    numbers = sorted([*options.n, *options.curve])
    trials = {
        (arm.arm, n): [  # every subset has a pretraining of its own
            replace(arm, per_class=n, subset=number, seed=number if arm.pretrain else 0)
            for number in range(options.subsets)
        ]
        for n in numbers
        for arm in arms
        if n in options.n or arm.arm == FREE
    }
    for target in targets:
        _train(target, [trial for own in trials.values() for trial in own], options)

    # The table.
    labels, groups = _held_out(targets)

    def hits(arm: str, n: int, key: str) -> np.ndarray:
        return np.concatenate(
            [hits_of([t.results[trial] for trial in trials[arm, n]], t.held_out.labels, key) for t in targets], axis=1
        )

    averaged = "averaged" if policy.copies else "plain"
    curve = [(n, mean_recall(hits(FREE, n, averaged), labels)) for n in numbers]
    rows = []
    print(
        f"{'n':>3s} {'arm':44s}{'mean recall':>12s}  {'gain over the free baseline':30s}{'worth in images':18s}subsets"
    )
    for n in options.n:
        columns = [(TODAY_ARM, "plain", TODAY_ARM), (f"{TODAY_ARM}, averaged", "averaged", TODAY_ARM)]
        columns += [(f"{FREE}, not averaged", "plain", FREE)] if policy.copies else []
        columns += [(arm.arm, averaged, arm.arm) for arm in arms if arm.arm != TODAY_ARM]
        baseline = hits(FREE, n, averaged)
        for title, key, arm in columns:
            own = hits(arm, n, key)
            each = [mean_recall(row, labels) for row in own]
            gain = interval(own, labels, groups, baseline)
            value = float(np.mean(each))
            in_images = worth(value, curve)
            rows.append({"n": n, "arm": title, "recall": value, "each": each, "gain": gain, "worth": in_images})
            points = "" if title == FREE else f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})"
            print(
                f"{n:3d} {title:44s}{100 * value:12.1f}  {points:30s}{in_words(in_images):18s}"
                + ", ".join(f"{100 * e:.1f}" for e in each)
            )
    print("free baseline by n: " + ", ".join(f"{n}: {100 * recall:.1f}" for n, recall in curve))
    record = {"benchmark": "usefulness", "set": options.name, "held_out": len(labels), "rows": rows, "curve": curve}
    record |= {"policy": policy.to_json(), "search": table, "subsets": options.subsets}
    print(json.dumps({**record, "cpu_s": round(time.process_time() - begun), "version": code_version()}))


def _steps(text: str) -> int | Literal["settled"]:
    return "settled" if text == "settled" else int(text)


def _target(options: argparse.Namespace, number: int) -> Target:
    def load(folder: Path) -> tuple[Images, list[str]]:
        loaded = image_set.load(folder, image_size=options.image_size, max_per_class=2000)
        return Images(loaded.images, loaded.labels, loaded.groups), loaded.dataset.classes

    folder = options.data[number]
    train, classes = load(folder / "train")
    held_out, _ = load(folder / ("test" if (folder / "test").is_dir() else "val"))
    auxiliary = random = None
    synthetic: dict[tuple[str, int | None], Images] = {}
    if options.aux:
        auxiliary, own = load(options.aux[number] / "train")
        if options.same:
            place = np.array([classes.index(name) if name in classes else -1 for name in own])
            auxiliary = auxiliary.take(np.flatnonzero(place[auxiliary.labels] >= 0))
            auxiliary = replace(auxiliary, labels=place[auxiliary.labels])
        else:
            at_random = np.random.default_rng(0).integers(0, len(classes), len(auxiliary))
            random = replace(auxiliary, labels=at_random)
    if options.synthetic:
        synthetic[GIVEN, None], _ = load(options.synthetic[number])
    settings = {"steps": options.steps, "batch_size": 32, "learning_rate": 1e-3}
    material = Material(classes, train, np.array([]), held_out, auxiliary, synthetic, **settings)
    return Target(folder.name, material, held_out, random)


def _searched(target: Target, options: argparse.Namespace) -> tuple[Policy, list[dict[str, Any]]]:
    """Return the policy that cross-validation within one subset of the training images finds, and its table."""
    material = target.material
    subset = material.train.take(members(Trial("", TODAY, per_class=options.search_at), material))
    folds = make_folds(subset.labels, subset.groups, 2, material.classes)
    within = replace(material, train=subset, folds=folds, held_out=None)
    chosen = search(
        subset, folds, lambda trials: run_all(trials, within, options.out / "search", options.workers), CANDIDATES, 1
    )
    print(f"{options.name}: policy '{chosen.name}', {chosen.policy.copies} copies, cross-validated {chosen.recall:.3f}")
    for row in chosen.table:
        print(f"  {row['name']:24s} {row['copies']} copies  {100 * row['recall']:5.1f}")
    return chosen.policy, chosen.table


def _train(target: Target, trials: Sequence[Trial], options: argparse.Namespace) -> None:
    """Train what is missing; the control has its own auxiliary images, and its own folder."""
    for material, folder, control in (
        (target.material, options.out / target.name, False),
        (replace(target.material, auxiliary=target.random), options.out / f"{target.name}-random", True),
    ):
        own = [trial for trial in trials if trial.arm.startswith(RANDOM) == control]
        if own:
            results = run_all(own, material, folder, options.workers)
            target.results |= dict(zip(own, results, strict=True))


def _held_out(targets: Sequence[Target]) -> tuple[np.ndarray, list[str]]:
    """Return labels and groups of the held-out images of all targets, those of different targets kept apart."""
    labels, groups, first = [], [], 0
    for target in targets:
        labels.append(first + target.held_out.labels)
        groups += [f"{target.name}/{group}" for group in target.held_out.groups]
        first += len(target.material.classes)
    return np.concatenate(labels), groups


if __name__ == "__main__":
    main()
