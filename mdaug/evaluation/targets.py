"""What synthetic images have to reach to pass for real ones: three ratios to what real images reach."""

from __future__ import annotations

RIGHT_CLASS, DISTANCE, NEAREST = 0.9, 2.0, 1.0


def targets(metrics: dict) -> list[dict]:
    """Return, for each target whose part was measured, what it is, the ratio, its limit and whether it is reached.

    Returns:
        [{"name", "synthetic", "real", "ratio", "at_least" or "at_most", "reached"}]. Intended class: accuracy, on
        synthetic images, of the classifiers of the most real images, against that on held-out real ones. Fréchet
        distance from the training images, in features of these classifiers, against that of equally many held-out
        images. Distance to the nearest training image, median in levels of 255, against that of held-out images: below
        1 the generator repeats what it saw.
    """
    rows = []
    if metrics["usefulness"]:
        real = max((arm for arm in metrics["usefulness"]["arms"] if arm["arm"] == "real"), key=lambda arm: arm["real"])
        judged = metrics["usefulness"]["real_to_synthetic"]["accuracy"]
        rows.append(_row("intended class seen by classifiers of real images", judged, real["accuracy"], RIGHT_CLASS))
    if metrics["fidelity"] and metrics["fidelity"]["networks"][0]["synthetic"] is not None:
        network = metrics["fidelity"]["networks"][0]
        mine, floor = network["synthetic"]["frechet"], network["floor"]["frechet"]
        rows.append(_row("Fréchet distance in features of a classifier", mine, floor, DISTANCE, most=True))
    if metrics["memorization"]:
        memory = metrics["memorization"]
        mine, floor = memory["synthetic_median"], memory["held_out_median"]
        rows.append(_row("distance to the nearest training image", mine, floor, NEAREST))
    return rows


def _row(name: str, synthetic: float, real: float, limit: float, most: bool = False) -> dict:
    ratio = synthetic / max(real, 1e-12)
    bound = {"at_most": limit} if most else {"at_least": limit}
    reached = ratio <= limit if most else ratio >= limit
    return {"name": name, "synthetic": synthetic, "real": real, "ratio": ratio, **bound, "reached": reached}
