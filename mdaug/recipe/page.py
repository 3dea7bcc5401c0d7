"""What a recipe says: sentences, the worst first, a summary for the terminal and one page."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from typing import Any

from mdaug.augment import COPIES
from mdaug.evaluation.report.markup import table
from mdaug.evaluation.report.page import STYLE
from mdaug.evaluation.report.verdict import percent
from mdaug.measures.worth import in_words
from mdaug.recipe.comparison import AVERAGED, PRETRAINED, RICHER_ARM, SEARCHED, TODAY_ARM, UNIFORM
from mdaug.recipe.deliver import PREDICT
from mdaug.recipe.generators import KEPT
from shards.atomic import write_text

REPORT = "report.html"
WIDE = "body{max-width:75rem}p,pre,.verdict{max-width:60rem}\n"  # for the table of what was compared
CHOSEN = "the auxiliary images have chosen it"
NOTHING = (0.0, 0.0, 0.0)  # a gain
FEW_SEEDS = {
    1: "Only one seed was trained, so the intervals leave out how much seeds differ and are too narrow",
    2: "Only two seeds were trained, so the intervals are wide and hardly anything can be proven",
}


def write(folder: Path, recipe: dict[str, Any]) -> None:
    """Write report.html."""
    arms = recipe["cross_validation"]["arms"]
    _, low, high = recipe["held_out"][-1].get("gain", (0, 0, 0))
    kind = "loss" if high < 0 else "gain" if low > 0 else "none"
    worths = recipe["enough"]["worth"]
    tried, both = (any(name in row for row in arms) for name in ("elsewhere", "together"))
    policy = {name: value for name, value in recipe["policy"].items() if value not in (0, 0.0)}
    pieces = [
        "<h1>How to train on these images</h1>",
        f'<div class="verdict {kind}">',
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences(recipe)),
        "</div>",
        "<h2>On the held-out images, looked at once</h2>",
        table(
            ["trained with", "mean recall", "95 % interval", "over today's transforms"],
            [[escape(row["arm"]), *_figures(row), _gain(row)] for row in recipe["held_out"]],
        ),
        "<p class=note>Mean recall: the share of a class's images that is recognised, averaged over the classes; "
        f"chance is {percent(1 / len(recipe['classes']))}. The interval allows for other recordings and other "
        "seeds; it is wide where few groups (recordings, persons) are held out.</p>",
        *_use(recipe),
        "<h2>What was compared, by cross-validation inside the training images</h2>",
        table(
            [
                "trained with",
                "kept",
                "mean recall",
                "95 % interval",
                "gain, points",
                *["gain on auxiliary images"] * tried,
                *["on both"] * both,
                "worth in images",
                "seeds",
            ],
            [
                [
                    _compared(row),
                    {None: "–", True: "yes", False: "no"}[row.get("kept")],
                    *_figures(row),
                    _short(row.get("gain")),
                    *[_short(row.get("elsewhere"))] * tried,
                    *[_short(row.get("together"))] * both,
                    in_words(worths[row["arm"]]),
                    row["seeds"],
                ]
                for row in arms
            ],
        ),
        "<p class=note>Worth in real images: how many images per class the free baseline needs for the same mean "
        "recall. Groups of the training images are judged by classifiers of other groups. An arm with fewer than "
        f"{recipe['config']['seeds']} seeds could not be proven any more, whatever the others had brought. "
        f"{_optimistic(recipe)}{_on_auxiliary(recipe)}</p>",
        f"<p class=note>{_arms(recipe)}</p>",
        *_label_kept(recipe),
        "<h2>Is the number of images enough?</h2>",
        table(
            ["real images per class", *(str(number) for number, _ in recipe["enough"]["images"])],
            [["mean recall of the free baseline", *(percent(recall) for _, recall in recipe["enough"]["images"])]],
        ),
        *_groups(recipe["enough"]),
        f"<h2>The policy that is used, and the search on {escape(recipe['searched_on'])}</h2>",
        f"<p>{escape(', '.join(f'{name} {value:g}' for name, value in policy.items()))}</p>",
        table(
            ["policy", "copies at test time", "mean recall", "95 % interval", "seeds"],
            [
                [escape(row["name"]), row["copies"], *_figures(row), row["seeds"]]
                for row in recipe["cross_validation"]["policies"]
            ],
        ),
        "<details><summary>Command and hashes</summary>",
        f"<pre>{escape(command(recipe['config']))}</pre>",
        table(
            ["made from", ""], [[role, f"<code>{content[:16]}</code>"] for role, content in recipe["made_from"].items()]
        ),
        "</details>",
    ]
    write_text(
        folder / REPORT,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><title>mdaug augment</title>'
        f"<style>{STYLE}{WIDE}</style></head>\n"
        "<body>\n" + "\n".join(pieces) + "\n</body></html>\n",
    )


def _compared(row: dict[str, Any]) -> str:
    """Return an arm, and the one over which its gain is, as HTML."""
    over = f"<br><small>over {escape(row['against'])}</small>" if row["against"] else ""
    return escape(row["arm"]) + over


def _use(recipe: dict[str, Any]) -> list[str]:
    """Return how the folder is used: predict, train again, train something else."""
    return [
        "<h2>How to use it</h2>",
        f"<p>The classifier ({escape(recipe['chosen'])}) was trained on all {recipe['images']['train']} training "
        "images and not on the held-out ones. In this folder, with torch, numpy and Pillow:</p>",
        "<pre>python classifier/predict.py image.png ...   # their classes\n"
        "python classifier/predict.py new/*/*.png     # and how well, where new/ has a folder for each class\n"
        "python classifier/train.py                   # trains again on training_set/; begin here with another network"
        "</pre>",
        "<p class=note>training_set/ holds the images that it was trained on as WebDataset tars, a folder for each "
        "source. To train any other network, draw them with the weight in their JSON, those of stage 1 in sources.json "
        "first and by themselves if there is a stage 2, and take the policy below from "
        "classifier/augment.py, as train.py does.</p>",
    ]


def _arms(recipe: dict[str, Any]) -> str:
    """Return what the names of the arms mean."""
    said = (
        "Today's transforms: shifts in time that go round, gain and noise, those of mdaug evaluate. Richer transforms: "
        "shifts by at most a quarter, time stretched, Doppler scaled and shifted, contrast, gain and noise; they are "
        "what it begins with, unless they are proven worse. Averaged: the mean prediction over "
        f"{COPIES} transformed copies of an image. Searched policy: the best of those below. Free baseline: the one of "
        "these that was kept; it needs no further images."
    )
    arms = {row["arm"] for row in recipe["cross_validation"]["arms"]}
    if PRETRAINED in arms:
        said += (
            " Auxiliary, pretraining: a classifier of the auxiliary images alone, which then goes on with the "
            "training images at a lower learning rate."
        )
    if UNIFORM in arms:
        said += (
            f" Uniform labels, further classes: auxiliary images take {100 * recipe['config']['share']:g} % of each "
            "batch, as any of the classes equally, or as classes of their own beside them."
        )
    return said


def _optimistic(recipe: dict[str, Any]) -> str:
    """Return which figures are better than they will be."""
    if recipe["searched_on"] == "the training images":
        said = (
            "The searched policy was chosen with other seeds on the same folds, so that its figure is a little "
            "optimistic."
        )
    else:
        said = "The searched policy was chosen on the auxiliary images."
    if recipe["config"]["generate"]:
        said += " Each fold was judged with images of a generator that had not seen it."
    if recipe["made_from"].get("synthetic"):
        said += (
            " The generator of the images that were given had seen the images of all folds, so a gain of these is an "
            "upper bound."
        )
    return said


def _on_auxiliary(recipe: dict[str, Any]) -> str:
    """Return how auxiliary images were tried on auxiliary images."""
    episodes = recipe["episodes"]
    if episodes is None or episodes["why"]:
        return ""
    few = f"{episodes['per_class']} images of each class"
    if not any(episodes["on"]):
        return (
            " On auxiliary images: half of their classes, another half for each seed, were the target, "
            f"trained on {few}, and the other half the auxiliary ones, and the other way round."
        )
    return (
        f" On auxiliary images: those of {escape(', '.join(episodes['on']))} were the target in turn, classifiers "
        f"trained on {few} of them and the images of all others, and judged on the other half of their groups. On "
        "both: the training images are one domain more."
    )


def _groups(enough: dict[str, Any]) -> list[str]:
    """Return the table of equally many images from more groups, where there are two of each class."""
    if not enough["groups"]:
        return []
    numbers = [str(number) for number, _ in enough["groups"]]
    recalls = [percent(recall) for _, recall in enough["groups"]]
    heading = f"groups of each class, {enough['per_class']} images per class"
    return [table([heading, *numbers], [["mean recall of the free baseline", *recalls]])]


def _label_kept(recipe: dict[str, Any]) -> list[str]:
    """Return the table of what classifiers see in generated images."""
    if not recipe["label_kept"]:
        return []
    rows = [
        [
            escape(kind),
            percent(seen["generated"]),
            percent(seen["real"]),
            f"{seen['ratio']:.2f}",
            "yes" if seen["ratio"] >= KEPT else "no",
        ]
        for kind, seen in recipe["label_kept"].items()
    ]
    return [
        table(
            [
                "generated images",
                "intended class seen",
                "class seen in held-out real images",
                "ratio",
                f"at least {KEPT}",
            ],
            rows,
        ),
        "<p class=note>Mean recalls of classifiers trained on real images of the fold that the generator has not seen; "
        "the real images that they look at are those of the other folds. Of own images, and of auxiliary ones, "
        f"that was tried which brings most variety of those with a ratio of {KEPT} or more, else the one with the "
        "highest. Strength is the share of the noise schedule to which an image is noised; guidance is how much the "
        "class is stressed, 1 is none.</p>",
    ]


def summary(recipe: dict[str, Any], folder: Path) -> str:
    """Return the held-out figures and the sentences as plain text."""
    lines = [""]
    for row in recipe["held_out"]:
        recall, within = _figures(row)
        lines.append(f"{row['arm']:60s} {recall} ({within})")
    use = [f"report: {folder / REPORT}", f"predict: python {folder / PREDICT} image.png ..."]
    return "\n".join([*lines, "", *sentences(recipe), "", *use])


def sentences(recipe: dict[str, Any]) -> list[str]:
    """Return what was found, bad news first: the gain on held-out images, the additions, and what would help more."""
    by_arm = {row["arm"]: row for row in recipe["held_out"]}
    chosen, today, images = by_arm[recipe["chosen"]], by_arm[TODAY_ARM], recipe["images"]
    if chosen is today:
        said = [
            "Nothing was shown to beat today's transforms on these images, so they are the recipe: "
            f"{percent(today['recall'])} mean recall on {images['held_out']} held-out images "
            f"(95 % interval {_figures(today)[1]})."
        ]
    else:
        _, low, high = chosen["gain"]
        outcome = "is worse than" if high < 0 else "is better than" if low > 0 else "cannot be told from"
        said = [
            f"On {images['held_out']} held-out images the recipe ({recipe['chosen']}) {outcome} today's transforms: "
            f"{percent(today['recall'])} to {percent(chosen['recall'])} mean recall, {_points(chosen['gain'])}."
        ]
    if recipe["config"]["seeds"] in FEW_SEEDS:
        said.append(f"{FEW_SEEDS[recipe['config']['seeds']]}: --seeds 3 or more.")
    if recipe["groups"]["train"] == images["train"]:
        said.append(
            "Every image counts as a recording of its own. If several come from one recording, all figures here are "
            "too high: name the recordings (--group_by) and start again."
        )
    for row in recipe["cross_validation"]["arms"][1:]:
        verb = "kept" if row["kept"] else "not kept"
        said.append(
            f"{row['arm'].removeprefix('+ ')}: {_points(row['gain'])} over {row['against']}; {verb}{_why(row)}."
        )
    episodes = recipe.get("episodes")  # a finished recipe of an earlier version is shown, too
    if episodes and episodes["why"]:
        said.append(
            "Whether auxiliary images help was found out on the training images alone, which are few. "
            f"It was not tried on the auxiliary images: {episodes['why']}."
        )
    for kind, seen in recipe["label_kept"].items():
        if seen["ratio"] < KEPT and any(kind in row["arm"] for row in recipe["cross_validation"]["arms"]):
            said.append(
                f"{kind}: the intended class is seen in {percent(seen['generated'])}, that of held-out real images in "
                f"{percent(seen['real'])}; the ratio is {seen['ratio']:.2f}, less than {KEPT}."
            )
    if len(recipe["made_from"]) == 1 and not recipe["config"]["generate"]:
        said.append("No auxiliary, unlabelled or generated images were given: transforms are all there was to choose.")
    return [*said, _enough(recipe)]


def _why(row: dict[str, Any]) -> str:
    """Return why an addition was kept or not, as the rest of its sentence."""
    here, there, together = row["gain"], row.get("elsewhere"), row.get("together")
    transforms = {RICHER_ARM: "nothing speaks against them", SEARCHED: CHOSEN, AVERAGED: CHOSEN}
    if row["arm"] in transforms and row["kept"]:
        return "" if here[1] > 0 else f", since {transforms[row['arm']]}"
    if row["arm"] == RICHER_ARM:
        return ", they are worse here"
    on_auxiliary = (together or there or NOTHING)[1] > 0
    gained = f"{_points(there)} on the auxiliary images" if there is not None else ""
    gained += f", {_points(together)} on both" if together is not None else ""
    if row["kept"]:
        return "" if here[1] > 0 else f", since it gains {gained}"
    if here[1] > 0 or (on_auxiliary and here[0] >= 0):
        return ", another addition gains more"
    if on_auxiliary:
        return f", though it gains {gained}: the training images speak against it"
    return ", its interval does not lie above zero" + (f"; {gained}" if gained else "")


def command(config: dict[str, Any]) -> str:
    """Return the command that made a recipe, every setting spelled out."""
    flags = [
        f"--{name} {shlex.quote(str(value))}"
        for name, value in config.items()
        if value is not None and name not in ("workers", "worker", "num_workers")
    ]
    return " ".join(["mdaug augment", *flags])


def _enough(recipe: dict[str, Any]) -> str:
    images, groups = recipe["enough"]["images"], recipe["enough"]["groups"]
    if len(images) < 2:
        return "There are too few images for a learning curve: record more of every class."
    last, most = images[-2:]
    text = (
        f"From {last[0]} to {most[0]} images per class the free baseline goes from {percent(last[1])} to "
        f"{percent(most[1])}"
    )
    by_images = (most[1] - last[1]) / max(1e-9, _doublings(last[0], most[0]))
    if len(groups) < 2:
        return text + "; there are too few groups to tell whether more of them would help more."
    by_groups = (groups[-1][1] - groups[0][1]) / _doublings(groups[0][0], groups[-1][0])
    text += (
        f"; twice the images bring {100 * by_images:+.1f} points, the same number of images from twice the groups "
        f"(recordings, persons) {100 * by_groups:+.1f}"
    )
    if max(by_images, by_groups) < 0.01:
        return text + ": the curve is flat, and neither would help much."
    return text + f": record {'other groups' if by_groups > by_images else 'more images'} first."


def _doublings(few: float, many: float) -> float:
    count = 0.0
    while few * 2 <= many:
        few, count = few * 2, count + 1
    return count + (many / few - 1)


def _figures(row: dict[str, Any]) -> list[str]:
    return [percent(row["recall"]), f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"]


def _short(gain: list[float] | None) -> str:
    return "–" if gain is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in gain))


def _gain(row: dict[str, Any]) -> str:
    return _points(row["gain"]) if "gain" in row else "–"


def _points(gain: list[float]) -> str:
    difference, low, high = (100 * value for value in gain)
    return f"{difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
