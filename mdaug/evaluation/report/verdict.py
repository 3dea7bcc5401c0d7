"""The targets of synthetic images, and the verdict: three or more sentences from the figures, the bad news first.

Accuracy is the mean recall per class throughout: classes weigh the same, however many held-out images they have.
"""

from __future__ import annotations

import math

from mdaug.evaluation.usefulness import (
    AUXILIARY,
    BOTH,
    BOTH_TRANSFORMS,
    LIKE,
    REAL,
    SYNTHETIC,
    TRANSFORMS,
    WITH_SIFTED,
)
from mdaug.measures.worth import described

# Limits of the targets, as ratios to what real images reach.
RIGHT_CLASS, DISTANCE, NEAREST = 0.9, 2.0, 1.0
# What the verdict goes by.
SATURATED = 0.97  # accuracy of real images alone above which little is left to gain
REPEATED = 0.10  # share of synthetic images nearer to a training image than 99 % of held-out ones
RECOGNISED = 0.6  # of the accuracy on real images: the least to expect on synthetic ones
LEARNT = 0.97  # accuracy on its own training images below which a classifier was stopped too early
WIDE = 0.05  # half of an interval: a difference of that many points may hide in it
FEW = 10  # held-out images of a class below which its recall says little
SEVERITY = ("loss", "none", "gain")
ON_TOP = {
    LIKE: "Synthetic images of generators that saw the same real images as the classifier",
    **{arm: f"Auxiliary images ({arm.partition(', ')[2]})" for arm in AUXILIARY},
}
ONE_CLASS = (
    "The images are of one class ('{}'), so whether synthetic images help a classifier cannot be measured: it has "
    "nothing to tell apart. For the same reason the features of the classifier trained on the real images are those of "
    "a network that had nothing to learn; go by the other networks, the motion and the copies."
)


def targets(metrics: dict) -> list[dict]:
    """Return, for each target whose part was measured, what it is, the ratio, its limit and whether it is reached.

    Returns:
        [{"name", "synthetic", "real", "ratio", "at_least" or "at_most", "reached"}]. Intended class: mean recall, on
        synthetic images, of the classifiers of the most real images, against that on held-out real ones; not reached
        by guessing, nor where too few images are held out to say. Fréchet distance from the training images, in
        features of these classifiers, against that of equally many held-out images. Distance to the nearest training
        image, median in levels of 255, against that of held-out images: below 1 the generator repeats what it saw.
    """
    rows = []
    if metrics["usefulness"]:
        real = max((arm for arm in metrics["usefulness"]["arms"] if arm["arm"] == "real"), key=lambda arm: arm["real"])
        judged = metrics["usefulness"]["real_to_synthetic"]["accuracy"]
        rows.append(_row("intended class seen by classifiers of real images", judged, real["accuracy"], RIGHT_CLASS))
        rows[-1]["reached"] &= judged > metrics["usefulness"]["chance"] + 1e-9 and not _worthless(metrics)
    if metrics["fidelity"] and metrics["fidelity"]["networks"][0]["synthetic"] is not None:
        network = metrics["fidelity"]["networks"][0]
        synthetic, floor = network["synthetic"]["frechet"], network["floor"]["frechet"]
        rows.append(_row("Fréchet distance in features of a classifier", synthetic, floor, DISTANCE, most=True))
    if metrics["memorization"]:
        memory = metrics["memorization"]
        synthetic, floor = memory["synthetic_median"], memory["held_out_median"]
        rows.append(_row("distance to the nearest training image", synthetic, floor, NEAREST))
    return rows


def _row(name: str, synthetic: float, real: float, limit: float, most: bool = False) -> dict:
    ratio = synthetic / max(real, 1e-12)
    bound = {"at_most": limit} if most else {"at_least": limit}
    reached = ratio <= limit if most else ratio >= limit
    return {"name": name, "synthetic": synthetic, "real": real, "ratio": ratio, **bound, "reached": reached}


def outcome(comparison: dict) -> str:
    """Return "loss", "none" or "gain": a difference counts if its 95 % interval excludes zero."""
    if comparison["high"] < 0:
        return "loss"
    return "gain" if comparison["low"] > 0 else "none"


def verdict(metrics: dict) -> dict | None:
    """Return {"outcome": the worst over the numbers of real images, "sentences": three strings or more}.

    Of several ratios of synthetic to real images the largest counts: the best of many would be luck. With one class
    there is one sentence, that there is nothing to tell apart. Further sentences are on generators that saw the same
    images as the classifier, on auxiliary images, and on other kinds of classifier, where there are such. None where
    usefulness has not been measured.
    """
    if len(metrics["data"]["train"]) == 1:
        return {"outcome": "none", "sentences": [ONE_CLASS.format(*metrics["data"]["classes"])]}
    if metrics["usefulness"] is None:
        return None
    first, worst = _against_real(metrics)
    if worst == "gain" and _worthless(metrics):
        worst = "none"
    sentences = [first, _against_transforms(metrics), _advice(metrics, worst)]
    return {"outcome": worst, "sentences": [*sentences, *_on_top(metrics), *_disagreements(metrics)]}


def _against_real(metrics: dict) -> tuple[str, str]:
    comparisons = _worst_first(metrics, BOTH, REAL)
    words = {"loss": "made the classifier worse", "none": "brought no measurable gain", "gain": "helped"}
    doubts = [f"Worthless, since {_worthless(metrics)}: "] if _worthless(metrics) else []
    if _early(metrics):
        doubts.append("Not to be relied on, since classifiers were stopped too early (see below): ")
    sentence = "Compared with real images only, adding the synthetic images " + _clauses(metrics, comparisons, words)
    for doubt in doubts[:1]:
        sentence = doubt + sentence[0].lower() + sentence[1:]
    if any(outcome(item) == "gain" and _is_subset(metrics, item["n_real"]) for item in comparisons):
        sentence += (
            f"; the generator had learnt from all {sum(metrics['data']['train'])} training images, so a gain with few "
            "real images is partly what it saw in the others"
        )
    return sentence + ".", outcome(comparisons[0])


def _against_transforms(metrics: dict) -> str:
    words = {"loss": "did worse than that", "none": "were no better than that", "gain": "beat that"}
    sentence = "Transforms of the real images cost nothing, and the synthetic images "
    sentence += _clauses(metrics, _worst_first(metrics, BOTH, TRANSFORMS), words)
    most = largest_ratios(metrics, BOTH_TRANSFORMS, TRANSFORMS)[-1]
    added = {"loss": "lost accuracy", "none": "added nothing measurable", "gain": "added to it"}[outcome(most)]
    return (
        f"{sentence}; used on top of it with {_amount([most])}, they {added} ({_interval(most)}{_worth(metrics, most)})"
        f"{_sifted(metrics)}."
    )


def _worth(metrics: dict, comparison: dict) -> str:
    """Return what the arm of a comparison is worth in real images of the free baseline, as the rest of a clause."""
    keys = ("arm", "n_real", "ratio")
    arm = next(arm for arm in metrics["usefulness"]["arms"] if all(arm[key] == comparison[key] for key in keys))
    if not arm.get("worth"):
        return ""
    if arm["worth"]["flat"]:
        return "; more real images do not help on these images either, so it is worth no number of them"
    return f"; with {_amount([comparison])} worth {described(arm['worth'])}"


def _on_top(metrics: dict) -> list[str]:
    """Return sentences on what is added to the free baseline: like with like, auxiliary images and their control."""
    words = {"loss": "lost accuracy", "none": "added nothing measurable", "gain": "added to it"}
    sentences = []
    for arm in (LIKE, *AUXILIARY):
        if comparisons := _worst_first(metrics, arm, TRANSFORMS):
            few = largest_ratios(metrics, arm, TRANSFORMS)[0]
            clauses = _clauses(metrics, comparisons, words) + _worth(metrics, few)
            sentences.append(f"{ON_TOP[arm]}, on top of transforms, {clauses}.")
    return sentences


def _disagreements(metrics: dict) -> list[str]:
    """Return a sentence for each further kind of classifier: how often it says something else, and where."""
    sentences = []
    for table in metrics["usefulness"].get("further_classifiers", []):
        pairs = list(zip(metrics["usefulness"]["comparisons"], table["comparisons"], strict=True))
        others = [(first, second) for first, second in pairs if outcome(first) != outcome(second)]
        name = table["classifier"]
        text = f"Of {len(pairs)} differences {len(others)} have another outcome with {name}"
        if others:
            first, second = max(others, key=lambda pair: abs(pair[0]["difference"] - pair[1]["difference"]))
            text += (
                f", such as {first['name']} against {first['baseline']} with {_amount([first])}: {_interval(first)} by "
                f"{metrics['config']['classifier'].partition(',')[0]}, {_interval(second)} by {name}"
            )
        sentences.append(f"{text}.")
    return sentences


def _sifted(metrics: dict) -> str:
    """Return what sifting changed, with the most real images; nothing where the sifter left no image."""
    comparisons = largest_ratios(metrics, WITH_SIFTED, BOTH)
    if not comparisons:
        return ""
    effect = {"loss": "lost accuracy", "none": "changed nothing measurable", "gain": "helped"}[outcome(comparisons[-1])]
    rejected = metrics["usefulness"]["sifting"]["share"]
    return (
        f"; sifting (it rejects {percent(rejected['synthetic'])} of them, and {percent(rejected['held_out'])} of the "
        f"held-out real images) {effect}"
    )


def _advice(metrics: dict, worst: str) -> str:
    usefulness, memory = metrics["usefulness"], metrics["memorization"]
    real = [arm for arm in usefulness["arms"] if arm["arm"] == REAL][-1]["accuracy"]
    judged = usefulness["real_to_synthetic"]["accuracy"]
    synthetic_only = next(arm for arm in usefulness["arms"] if arm["arm"] == SYNTHETIC)["accuracy"]
    facts = (
        f"Classifiers trained on synthetic images alone reach a mean recall of {percent(synthetic_only)} on real ones "
        f"(chance {percent(usefulness['chance'])}), and those trained on real images see the intended class in "
        f"{percent(judged)} of the synthetic ones: "
    )
    if _worthless(metrics):
        return facts + (
            f"hold out at least {FEW} images of each class (more images, or a larger --val_fraction of mdaug pack), "
            "then train, generate and evaluate again."
        )
    if memory is not None and memory["share_closer"] > REPEATED:
        return facts + (
            f"beware that {percent(memory['share_closer'])} of the synthetic images lie nearer to a training image "
            "than 99 % of the held-out ones do, so the generator repeats what it saw; train it for fewer epochs or "
            "on more data."
        )
    if judged < RECOGNISED * real:
        return facts + (
            "the labels of the synthetic images are not reliable; train the diffusion model longer, look at its "
            "pictures, raise --guidance_scale, then generate and evaluate again."
        )
    if arm := _early(metrics):
        return facts + (
            f"classifiers trained on {arm['name']} ({_amount([arm])}) see only {percent(arm['learnt'])} of their own "
            "training images of a class right, so they were stopped too early to tell; repeat it with more --steps."
        )
    undecided = [item for item in largest_ratios(metrics, BOTH, REAL) if outcome(item) == "none"]
    halves = [(item["high"] - item["low"]) / 2 for item in undecided]
    if max(halves, default=0.0) > WIDE:
        return facts + (
            f"the intervals are too wide to rule a gain or a loss out (up to ± {100 * max(halves):.0f} points); repeat "
            "it with more seeds (--seeds) and, if there are any, more held-out recordings."
        )
    if worst != "gain" and real >= SATURATED:
        return facts + (
            "real images alone leave almost no room for a gain here; judge with fewer of them "
            "(--n_real_per_class) or with a harder split, such as other persons or another day."
        )
    if worst != "gain":
        return facts + (
            "what may help is a longer trained generator, more synthetic images per class, another guidance scale, "
            "or transforms instead."
        )
    return facts + "before relying on the gain, repeat it with more seeds and with other recordings held out."


def _early(metrics: dict) -> dict | None:
    """Return the arm of the verdict that has learnt its own images least, if that is too little to judge by.

    Wrong labels cannot be learnt: where the labels of the synthetic images are not reliable, more steps do not help.
    """
    usefulness = metrics["usefulness"]
    arms = [arm for arm in usefulness["arms"] if arm["arm"] in (REAL, TRANSFORMS, BOTH, BOTH_TRANSFORMS)]
    real = [arm for arm in arms if arm["arm"] == REAL][-1]["accuracy"]
    worst = min(arms, key=lambda arm: arm["learnt"])
    unreliable = usefulness["real_to_synthetic"]["accuracy"] < RECOGNISED * real
    return worst if worst["learnt"] < LEARNT and not unreliable else None


def largest_ratios(metrics: dict, arm: str, baseline: str) -> list[dict]:
    """Return one comparison per number of real images, in their order: the one with the most synthetic images."""
    items = [
        item for item in metrics["usefulness"]["comparisons"] if (item["arm"], item["baseline"]) == (arm, baseline)
    ]
    return list({item["n_real"]: item for item in items}.values())


def _worst_first(metrics: dict, arm: str, baseline: str) -> list[dict]:
    return sorted(largest_ratios(metrics, arm, baseline), key=lambda item: SEVERITY.index(outcome(item)))


def _clauses(metrics: dict, comparisons: list[dict], words: dict[str, str]) -> str:
    """Return one clause per outcome: the numbers of real images it holds for, and the figures of the clearest case."""
    parts = []
    for name in SEVERITY:
        cases = [item for item in comparisons if outcome(item) == name]
        if not cases:
            continue
        item = max(cases, key=lambda case: abs(case["difference"]))
        accuracy = {
            arm["arm"]: arm["accuracy"]
            for arm in metrics["usefulness"]["arms"]
            if arm["n_real"] == item["n_real"] and arm["ratio"] in (0, item["ratio"])
        }
        at = "" if len(cases) == 1 else f"the largest difference, with {_amount([item])}: "
        at += f"{item['name']}: " if "there" in item["name"] else ""  # fewer images than were asked for
        parts.append(
            f"{words[name]} with {_amount(cases)} ({at}mean recall {percent(accuracy[item['baseline']])} to "
            f"{percent(accuracy[item['arm']])}, {_interval(item)})"
        )
    return ", and ".join(parts)


def _is_subset(metrics: dict, n_real: int | str) -> bool:
    return n_real != "all" and int(n_real) < max(metrics["data"]["train"])


def _amount(items: list[dict]) -> str:
    """Return such as '5, 10 or 150 (all there are) real images per class'."""
    numbers = [item["n_used"] for item in items]
    text = " or ".join([", ".join(numbers[:-1]), numbers[-1]] if len(numbers) > 1 else numbers)
    return f"{text} real images per class"


def held_out_notes(data: dict) -> list[str]:
    """Return sentences on classes that cannot be judged, or hardly; none where every class has enough images."""
    absent = [name for name, count in zip(data["classes"], data["held_out"], strict=True) if count == 0]
    notes = []
    if absent:
        notes.append(f"No held-out image shows {some(absent)}: not judged, and not counted in mean recall and chance.")
    if few := _few(data):
        notes.append(f"Fewer than {FEW} held-out images show {some(few)}: their recall says little.")
    return notes


def _few(data: dict) -> list[str]:
    pairs = zip(data["classes"], data["held_out"], strict=True)
    return [f"{name} ({count})" for name, count in pairs if 0 < count < FEW]


def _worthless(metrics: dict) -> str:
    """Return why held-out images are too few of some classes for any verdict, "" where they are not.

    That is where chance in the classes of fewer than 10 images alone moves mean recall by 5 points: 1.96 standard
    errors of a recall of one half in each of them.
    """
    counts = [count for count in metrics["data"]["held_out"] if count]
    if len(counts) < 2:
        return "held-out images show one class only"
    margin = 1.96 * 0.5 * math.sqrt(sum(1 / count for count in counts if count < FEW)) / len(counts)
    if margin <= WIDE:
        return ""
    return (
        f"there are fewer than {FEW} held-out images of {some(_few(metrics['data']))}, and chance in them alone moves "
        f"mean recall by up to ± {100 * margin:.0f} points"
    )


def some(names: list[str]) -> str:
    """Return the first names of a list."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _interval(item: dict) -> str:
    return (
        f"{100 * item['difference']:+.1f} points, 95 % interval {100 * item['low']:+.1f} to {100 * item['high']:+.1f}"
    )


def percent(value: float) -> str:
    """Return a share as text, such as '83.2 %'."""
    return f"{100 * value:.1f} %"


def mean_and_spread(judged: dict) -> str:
    """Return figures of `comparisons.judge` as text, such as '83.2 ± 0.4', in %; one classifier has no spread."""
    spread = f" ± {100 * judged['std']:.1f}" if len(judged["accuracies"]) > 1 else ""
    return f"{100 * judged['accuracy']:.1f}{spread}"
