"""What training choices are worth on one set: today's transforms, the searched policy, auxiliary images used directly.

The policy is searched by cross-validation over groups within one subset of the training images. Then every arm is
trained on the same nested subsets of n images per class and judged once on the held-out images. Gains are paired.

    python benchmarks/usefulness.py --data packed --aux packed-others --name gait --out runs/usefulness/gait
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mdaug.augment import TODAY
from mdaug.measures import image_set
from mdaug.measures.worth import in_words, worth
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.policy_search import CANDIDATES, search
from mdaug.recipe.trials import Images, Material, Trial, make_folds, members, run_all
from shards.provenance import code_version

TODAY_ARM, FREE, UNIFORM, CLASSES = "today's transforms", "free baseline", "aux, uniform labels", "aux, further classes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="packed set")
    parser.add_argument("--aux", type=Path, help="packed set of other classes")
    parser.add_argument("--name", required=True, help="what the table is of")
    parser.add_argument("--out", type=Path, required=True, help="folder of one JSON for each classifier")
    parser.add_argument("--n", type=int, nargs="+", default=[5, 10], help="training images of each class")
    parser.add_argument("--curve", type=int, nargs="*", default=[20], help="further numbers for the free baseline")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--search_at", type=int, default=10, help="images of each class that the search sees")
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=CANDIDATES, metavar="NAME")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.25, help="of each batch that auxiliary images take")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    begun = time.process_time()

    def load(folder: Path, first: int = 0) -> tuple[Images, list[str]]:
        loaded = image_set.load(folder, image_size=options.image_size, max_per_class=2000)
        return Images(loaded.images, loaded.labels + first, loaded.groups), loaded.dataset.classes

    train, classes = load(options.data / "train")
    held_out, _ = load(options.data / ("test" if (options.data / "test").is_dir() else "val"))
    auxiliary = load(options.aux / "train")[0] if options.aux else None
    settings = {"steps": options.steps, "batch_size": 32, "learning_rate": 1e-3}

    # The policy, from one subset of the training images.
    subset = train.take(members(Trial("", TODAY, per_class=options.search_at), Material(classes, train, np.array([]))))
    folds = make_folds(subset.labels, subset.groups, 2, classes)
    within = Material(classes, subset, folds, **settings)
    candidates = {name: CANDIDATES[name] for name in options.candidates}
    chosen = search(
        subset, folds, lambda trials: run_all(trials, within, options.out / "search", options.workers), candidates, 1
    )
    print(f"{options.name}: policy '{chosen.name}', {chosen.policy.copies} copies, cross-validated {chosen.recall:.3f}")
    for row in chosen.table:
        print(f"  {row['name']:24s} {row['copies']} copies  {100 * row['recall']:5.1f}")

    # The arms, each on the same subsets.
    material = Material(classes, train, np.array([]), held_out, auxiliary, **settings)
    arms = {TODAY_ARM: (TODAY, ""), FREE: (chosen.policy, "")}
    if auxiliary is not None:
        arms |= {UNIFORM: (chosen.policy, "uniform"), CLASSES: (chosen.policy, "classes")}
    trials = [
        Trial(arm, policy, use, share=options.share, per_class=n, subset=number)  # type: ignore[arg-type]
        for number in range(options.subsets)
        for n in (*options.n, *options.curve)
        for arm, (policy, use) in arms.items()
        if n in options.n or arm == FREE
    ]
    results = run_all(trials, material, options.out / "arms", options.workers)

    # The table.
    averaged = "averaged" if chosen.policy.copies else "plain"

    def hits(arm: str, n: int, key: str) -> np.ndarray:
        own = [r for t, r in zip(trials, results, strict=True) if (t.arm, t.per_class) == (arm, n)]
        return hits_of(own, held_out.labels, key)

    numbers = sorted([*options.n, *options.curve])
    curve = [(n, mean_recall(hits(FREE, n, averaged), held_out.labels)) for n in numbers]
    rows = []
    head = f"{'n':>3s} {'arm':34s}{'mean recall':>12s}  {'each subset':24s}{'gain over the free baseline':30s}"
    print(f"{head}worth in images")
    for n in options.n:
        columns = [(TODAY_ARM, "plain", TODAY_ARM), (f"{TODAY_ARM}, averaged", "averaged", TODAY_ARM)]
        columns += [(f"{FREE}, not averaged", "plain", FREE)] if chosen.policy.copies else []
        columns += [(arm, averaged, arm) for arm in arms if arm != TODAY_ARM]
        baseline = hits(FREE, n, averaged)
        for title, key, arm in columns:
            own = hits(arm, n, key)
            each = [mean_recall(row, held_out.labels) for row in own]
            gain = interval(own, held_out.labels, held_out.groups, baseline)
            value = float(np.mean(each))
            in_images = worth(value, curve)
            rows.append({"n": n, "arm": title, "recall": value, "each": each, "gain": gain, "worth": in_images})
            points = "" if title == FREE else f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})"
            print(
                f"{n:3d} {title:34s}{100 * value:12.1f}  {', '.join(f'{100 * e:.1f}' for e in each):24s}"
                f"{points:30s}{in_words(in_images)}"
            )
    print("free baseline by n: " + ", ".join(f"{n}: {100 * recall:.1f}" for n, recall in curve))
    record = {"benchmark": "usefulness", "set": options.name, "held_out": len(held_out), "rows": rows, "curve": curve}
    record |= {"policy": replace(chosen.policy).to_json(), "candidate": chosen.name, "search": chosen.table}
    print(json.dumps({**record, "cpu_s": round(time.process_time() - begun), "version": code_version()}))


if __name__ == "__main__":
    main()
