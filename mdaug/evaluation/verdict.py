"""The verdict: three sentences from the figures, the bad news first."""

from __future__ import annotations

from mdaug.evaluation.usefulness import BOTH, BOTH_TRANSFORMS, REAL, SYNTHETIC, TRANSFORMS

SATURATED = 0.97  # accuracy of real images alone above which little is left to gain
REPEATED = 0.10  # share of synthetic images nearer to a training image than 99 % of held-out ones
RECOGNISED = 0.6  # of the accuracy on real images: the least to expect on synthetic ones
SEVERITY = ("loss", "none", "gain")


def outcome(comparison: dict) -> str:
    """Return "loss", "none" or "gain": a difference counts if its 95 % interval excludes zero."""
    if comparison["high"] < 0:
        return "loss"
    return "gain" if comparison["low"] > 0 else "none"


def verdict(metrics: dict) -> dict:
    """Return {"outcome": the worst over the numbers of real images, "sentences": three strings}."""
    first, worst = _against_real(metrics)
    return {"outcome": worst, "sentences": [first, _against_transforms(metrics), _advice(metrics, worst)]}


def _against_real(metrics: dict) -> tuple[str, str]:
    comparisons = sorted(_select(metrics, BOTH, REAL), key=lambda item: SEVERITY.index(outcome(item)))
    said = {"loss": "made the classifier worse", "none": "brought no measurable gain", "gain": "helped"}
    sentence = "Compared with real images only, adding the synthetic images " + _clauses(metrics, comparisons, said)
    if any(outcome(item) == "gain" and _is_subset(metrics, item["n_real"]) for item in comparisons):
        sentence += (
            f"; the generator had learnt from all {sum(metrics['data']['train'])} training images, so a gain with few "
            "real images is partly what it saw in the others"
        )
    return sentence + ".", outcome(comparisons[0])


def _against_transforms(metrics: dict) -> str:
    comparisons = sorted(_select(metrics, BOTH, TRANSFORMS), key=lambda item: SEVERITY.index(outcome(item)))
    said = {"loss": "did worse than that", "none": "were no better than that", "gain": "beat that"}
    sentence = "Shifting the real images in time, with a little gain and noise, costs nothing: the synthetic images "
    sentence += _clauses(metrics, comparisons, said)
    largest = _select(metrics, BOTH_TRANSFORMS, TRANSFORMS)[-1]
    added = {"loss": "lost accuracy", "none": "added nothing measurable", "gain": "added to it"}[outcome(largest)]
    return f"{sentence}; used on top of it with {_amount(largest['n_real'])}, they {added} ({_interval(largest)})."


def _advice(metrics: dict, worst: str) -> str:
    usefulness, memory = metrics["usefulness"], metrics["memorization"]
    references = [arm for arm in usefulness["arms"] if arm["arm"] == REAL]
    real = references[-1]["accuracy"]
    judged = usefulness["real_to_synthetic"]["accuracy"]
    synthetic_only = next(arm for arm in usefulness["arms"] if arm["arm"] == SYNTHETIC)["accuracy"]
    facts = (
        f"Classifiers trained on synthetic images alone reach {percent(synthetic_only)} on real ones (chance "
        f"{percent(usefulness['chance'])}), and those trained on real images see the intended class in "
        f"{percent(judged)} of the synthetic ones: "
    )
    if memory["share_closer"] > REPEATED:
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


def _clauses(metrics: dict, comparisons: list[dict], said: dict[str, str]) -> str:
    accuracy = {(arm["arm"], arm["n_real"]): arm["accuracy"] for arm in metrics["usefulness"]["arms"]}
    parts = []
    for name in SEVERITY:
        cases = [
            f"with {_amount(item['n_real'])} ({percent(accuracy[item['baseline'], item['n_real']])} to "
            f"{percent(accuracy[item['arm'], item['n_real']])}, {_interval(item)})"
            for item in comparisons
            if outcome(item) == name
        ]
        if cases:
            parts.append(f"{said[name]} {' and '.join(cases)}")
    return ", and ".join(parts)


def _select(metrics: dict, arm: str, baseline: str) -> list[dict]:
    return [item for item in metrics["usefulness"]["comparisons"] if (item["arm"], item["baseline"]) == (arm, baseline)]


def _is_subset(metrics: dict, n_real: int | str) -> bool:
    return n_real != "all" and int(n_real) < max(metrics["data"]["train"])


def _amount(n_real: int | str) -> str:
    return "all real images" if n_real == "all" else f"{n_real} real images per class"


def _interval(item: dict) -> str:
    return (
        f"{100 * item['difference']:+.1f} points, 95 % interval {100 * item['low']:+.1f} to {100 * item['high']:+.1f}"
    )


def percent(value: float) -> str:
    """Return a share as text, such as '83.2 %'."""
    return f"{100 * value:.1f} %"
