"""Sections of the report, each a list of HTML pieces from the metrics; a part that was not measured gives none."""

from __future__ import annotations

from html import escape
from pathlib import Path

from mdaug.evaluation.comparisons import FEWEST_GROUPS
from mdaug.evaluation.report import pictures, plots
from mdaug.evaluation.report.markup import chosen, confusion, inline, legend, number, share, table
from mdaug.evaluation.report.pictures import PAIRS, RECONSTRUCTION
from mdaug.evaluation.report.plots import MOST_CLASSES, NAMES, PlotGroup
from mdaug.evaluation.report.verdict import held_out_notes, mean_and_spread, outcome, percent, targets
from mdaug.measures.fidelity import MEASURES, NEIGHBOURS
from mdaug.measures.realism import STATISTICS, WINDOWS
from mdaug.measures.worth import described

BETTER = {"frechet": "lower", "kid": "lower", "precision": "higher", "recall": "higher", "density": "near 1"}
TITLES = {"frechet": "Fréchet distance", "kid": "KID"}
KEPT = {"psnr": ("PSNR dB", 2), "level_psnr": ("PSNR of levels dB", 2), "ssim": ("SSIM", 3)}  # title and digits
TARGET_HEAD = ("target", "synthetic", "real", "ratio", "limit")
SAW = {"": "–", "same": "the same images", "more": "all training images"}
MARKS = {"loss": "<b>loss</b> ", "none": "", "gain": "<b>gain</b> "}


def target_table(metrics: dict) -> list[str]:
    """Whether the synthetic images pass for real ones: the targets, and which of them are reached."""
    rows = [[f"{escape(name)}: <b>{reached}</b>", *cells] for name, *cells, reached in target_rows(metrics)]
    return ["<h2>Do they pass for real ones?</h2>", table([*TARGET_HEAD], rows)] if rows else []


def target_rows(metrics: dict) -> list[list[str]]:
    """Return the targets as text: what, synthetic, real, ratio, limit, "reached" or "not reached"."""
    return [
        [
            row["name"],
            *(number(row[key]) for key in ("synthetic", "real", "ratio")),
            f"≥ {row['at_least']:g}" if "at_least" in row else f"≤ {row['at_most']:g}",
            "reached" if row["reached"] else "not reached",
        ]
        for row in targets(metrics)
    ]


def usefulness(metrics: dict) -> list[str]:
    """Accuracy curves, arms, differences with intervals, recall and confusion."""
    figures, data = metrics["usefulness"], metrics["data"]
    if figures is None:
        return []
    # Tables: arms, their differences, recall per class, confusion. With several classifiers all are named.
    kinds = [("", figures)]
    if figures["further_classifiers"]:
        first = metrics["config"]["classifier"].partition(",")[0]
        kinds = [(f" [{first}]", figures), *((f" [{t['classifier']}]", t) for t in figures["further_classifiers"])]
    arms = [
        [
            escape(arm["name"] + kind),
            arm["n_used"],
            mean_and_spread(arm),
            f"{100 * arm['low']:.1f} to {100 * arm['high']:.1f}",
            f"{100 * arm['plain_accuracy']:.1f}",
            arm["real"],
            arm["further"],
            share(arm["learnt"]),
            SAW[arm["generator"]],
            described(arm["worth"]) if arm["worth"] else "–",
        ]
        for kind, of_kind in kinds
        for arm in of_kind["arms"]
    ]
    differences = [
        [
            f"{escape(item['name'])} against {escape(item['baseline'] + kind)}",
            item["n_used"],
            f"{MARKS[outcome(item)]}{100 * item['difference']:+.1f}",
            f"{100 * item['low']:+.1f} to {100 * item['high']:+.1f}",
        ]
        for kind, of_kind in kinds
        for item in of_kind["comparisons"]
    ]
    recall = [
        [escape(arm["name"]), arm["n_used"], *(share(value) for value in arm["recall"])] for arm in figures["arms"]
    ]
    judged = figures["real_to_synthetic"]
    recall.append(["real, judging synthetic images", "–", *(share(value) for value in judged["recall"])])
    names = [escape(name) for name in data["classes"]]
    confusions = [confusion(f"{arm['name']}, n = {arm['n_used']}", names, arm["confusion"]) for arm in figures["arms"]]
    # What the intervals resample, and what guessing reaches.
    majority = figures["majority"]
    units = (
        f"{data['held_out_groups']} groups (recordings) of held-out images"
        if data["held_out_groups"] >= FEWEST_GROUPS
        else f"held-out images (too few groups, {data['held_out_groups']}: the interval says nothing of other groups)"
    )
    return [
        "<h2>Does a classifier get better?</h2>",
        f"<p>Accuracy in % on {sum(data['held_out'])} held-out real images, mean of {metrics['config']['seeds']} "
        "seeds. It is the mean of the recalls of the classes, which weigh the same however many images they have: "
        f"chance is {percent(figures['chance'])}. Plain accuracy, of all images alike, is beside it; always saying "
        f"{escape(majority['class'])}, the largest class, has {percent(majority['share'])} of that. Every "
        f"classifier takes {metrics['config']['steps']} steps of {metrics['config']['batch_size']} images. Bars are "
        "95 % intervals of the accuracy itself; arms share their "
        "seeds and held-out images, so the differences below are known better than the bars suggest.</p>",
        *(f"<p class=note>{escape(note)}</p>" for note in held_out_notes(data)),
        _html(plots.accuracy(metrics)),
        f"<p class=note>The generator was trained on all {sum(data['train'])} training images. Where a classifier sees "
        "fewer, the synthetic images also carry what the generator saw in the others: such a line shows how much of "
        "the training set they pass on, not what a generator trained on so few images would do.</p>",
        "<p>Differences in points with 95 % intervals, from a paired bootstrap over "
        f"{units} and the spread over seeds. {_chance_note(figures['comparisons'])}</p>",
        table(["", "n", "points", "95 % interval"], differences),
        "<details open><summary>All arms: accuracy, mean ± standard deviation over seeds</summary>",
        table(
            [
                *("trained on", "n", "accuracy", "95 % interval", "plain", "real", "further", "accuracy on them"),
                *("generator saw", "worth in real images"),
            ],
            arms,
        ),
        f"<p class=note>{_transforms(metrics)} Worth in real images: how many of them per class the free baseline, "
        "real + transforms, needs for the same accuracy, read off its own curve; the interval is that of the paired "
        "gain over it. Where the curve rises by less than 2 points numbers of images mean nothing, and points are "
        "given.</p>",
        *_sifting(figures["sifting"], names),
        "</details><details><summary>Recall per class in %</summary>",
        table(["trained on", "n", *names], recall),
        "</details><details><summary>Confusion matrices (rows: true class, columns: predicted, all seeds)</summary>",
        *confusions,
        confusion("real, judging synthetic images (rows: intended class)", names, judged["confusion"]),
        "</details>",
    ]


def fidelity(metrics: dict) -> list[str]:
    """Distances and shares beside their floor, diversity, colour and level checks."""
    figures = metrics["fidelity"]
    if figures is None:
        return []
    # Distances and shares in the features of each network.
    lines = ["<h2>How near to the real images?</h2>"]
    for network in figures["networks"]:
        if network["synthetic"] is None:
            continue
        spread = network["spread"] or {"synthetic": {}, "floor": {}}
        rows = [
            [
                TITLES.get(name, name),
                *(_with_spread(network[kind][name], spread[kind].get(name)) for kind in ("synthetic", "floor")),
                BETTER.get(name, "higher"),
            ]
            for name in MEASURES
        ]
        lines += [
            f"<p>In features of the {escape(network['name'])}, {network['size']} images of each kind:</p>",
            table(["", "synthetic", "floor: held-out real", "better"], rows),
        ]
    if all(network["synthetic"] is None for network in figures["networks"]):
        lines.append("<p>Too few synthetic and held-out images of the same classes for distances between sets.</p>")
    lines.append(
        "<p class=note>Both columns are measured against the training images, with equal numbers of each class in both "
        "columns, and all classes weigh the same. "
        "Sets this small bias the Fréchet distance upward and the shares as well (KID has none for independent draws; "
        "drawing the classes in equal numbers moves it below zero), for both columns alike: read them against each "
        "other, never against other papers. Better than the floor is no merit: such images are nearer to the training "
        "images than new recordings are. Shares use "
        f"{NEIGHBOURS} neighbours.</p>"
    )
    # Diversity, levels and colours.
    names = [escape(name) for name in metrics["data"]["classes"]]
    rows = [[NAMES[kind], *map(number, values)] for kind, values in figures["diversity"].items()]
    lines += [
        "<p>Diversity: mean MS-SSIM of pairs within a class. Higher than that of real images means less variety.</p>",
        table(["", *names], rows),
    ]
    spectra = figures["levels"]
    checks: list[list] = [
        [title, *(number(spectra[kind][key]) for kind in NAMES)]
        for key, title in (
            ("floor_share", "share of pixels at the floor"),
            ("dynamic_range", "99th percentile over median, of the range"),
            ("distance", "histogram: Wasserstein distance from training, of the range"),
        )
    ]
    if figures["off_palette"] is not None:
        title = f"colours: distance from {figures['palette']}, RGB units"
        checks.append([title, *map(number, figures["off_palette"].values())])
    return [
        *lines,
        "<p>Levels and colours:</p>",
        table(["", *NAMES.values()], checks),
        _html(plots.levels(metrics)),
        *(_realism(figures["realism"]) if "realism" in figures else []),  # not measured by earlier versions
    ]


def _realism(figures: dict) -> list[str]:
    """The texture of the three sets, and how easily two of them are told apart."""
    synthetic, floor = figures["synthetic"], figures["floor"]
    train, made = synthetic["statistics"]
    held_out = floor["statistics"][1]
    rows: list[list] = [
        [title, *(number(values[name]) for values in (train, held_out, made))] for name, title in STATISTICS.items()
    ]
    distance = "Fréchet distance from training, random network"
    rows.append([distance, "", *(number(kind["frechet"]) for kind in (floor, synthetic))])
    apart = "accuracy of a classifier that tells it from training"
    rows.append([apart, "", *(number(kind["accuracy"]) for kind in (floor, synthetic))])
    return [
        "<p>Realism, at 64 × 64 levels:</p>",
        table(["", *NAMES.values()], rows),
        f"<p class=note>Levels above 12 of 255 count as above the floor. The classifier sees at most {WINDOWS} images "
        "of both sets together with as many again to be judged, of other groups; 0.5 is chance, and what held-out "
        "images have is the floor.</p>",
    ]


def kinematics(metrics: dict) -> list[str]:
    """Distributions of what moved, real beside synthetic, and the error of the estimators where truth is known."""
    figures = metrics["kinematics"]
    if figures is None:
        return []
    classes, rows = metrics["data"]["classes"], []
    for label, name in enumerate(classes):
        for measure, unit in figures["units"].items():
            pair = [figures[kind][label][measure] for kind in ("synthetic", "floor")]
            if pair[0] is None:
                continue
            cells = [f"{value['medians'][1]:.2f}" if value else "–" for value in pair]
            distances = [number(value and value["wasserstein"]) for value in pair]
            ks = [f"{value['ks']:.2f}" if value else "–" for value in pair]
            median = f"{pair[0]['medians'][0]:.2f}"
            rows.append([escape(name), f"{measure} {unit}", median, cells[0], *distances, *ks])
    axes = (
        "axes in m/s and s from the metadata, levels span"
        if figures["physical"]
        else "the metadata do not name the axes, so velocities are parts of the axis (1 is the upper edge), levels are "
        "taken to span"
    )
    lines = [
        "<h2>Does it move like the real ones?</h2>",
        "<p>Torso ridge, reach of the 97 % and 3 % envelopes of cumulative power, bandwidth between them, cadence "
        f"of the envelope, balance of power above and below zero Doppler; {axes} "
        f"{figures['clip_db']:g} dB. Bars: 25 to 75 %, lines: 5 to 95 %, ticks: median.</p>",
        legend(classes),
        chosen([classes[label] for label in plots.kinematics_classes(metrics)], classes),
        _html(plots.kinematics(metrics)),
        "<details><summary>Distances of the distributions from those of the training images</summary>",
        table(
            ["class", "measure", "median real", "synthetic", "Wasserstein", "floor", "KS", "floor"],
            rows,
        ),
        "</details>",
    ]
    if figures["error"]:
        errors = [
            [
                escape(classes[row["class"]]),
                f"{row['measure']} {figures['units'][row['measure']]}",
                row["count"],
                percent(row["found"]),
                number(row["truth"]),
                number(row["bias"]),
                number(row["error"]),
            ]
            for row in figures["error"]
        ]
        lines += [
            "<p>The real images are simulated, so the truth is known: this is how well the measures find it. A class "
            "with a large error here says little in the plots above.</p>",
            table(["class", "measure", "images", "found in", "true median", "median error", "absolute"], errors),
        ]
    return lines


def memorization(folder: Path, metrics: dict) -> list[str]:
    """Distances to the nearest training image and the nearest pairs."""
    figures = metrics["memorization"]
    if figures is None:
        return []
    kinds = ("synthetic", "held_out")
    rows = [
        ["median distance in levels (of 255)", *(f"{figures[f'{kind}_median']:.1f}" for kind in kinds)],
        ["copies: the same picture within rounding", *(figures[f"{kind}_copies"] for kind in kinds)],
        ["near copies: nearer than 99 % of held-out images", percent(figures["share_closer"]), "1.0 %"],
    ]
    return [
        "<h2>Does the generator repeat its training images?</h2>",
        table(["nearest training image", "synthetic", "held-out real"], rows),
        "<p>The ten synthetic images that are nearest to a training image at any shift in time, with their distances; "
        "the training images are shown shifted so:</p>",
        inline((folder / PAIRS).read_bytes(), "synthetic images beside their nearest training images"),
    ]


def reconstruction(folder: Path, metrics: dict) -> list[str]:
    """PSNR and SSIM of the VQ-VAE, see `reconstruct.measure`, and the worst images."""
    figures = metrics["reconstruction"]
    if figures is None:
        return []
    whole = {"count": figures["count"], **figures["rows"]["VQ-VAE"]}
    names = list(figures["classes"])
    worst = sorted(range(len(names)), key=lambda row: figures["classes"][names[row]]["ssim"]["worst"])[:MOST_CLASSES]
    measures = [name for name in KEPT if name in whole]
    rows = []
    for name, row in [*figures["classes"].items(), ("mean over classes", whole)]:
        cells = (f"{row[measure][kind]:.{KEPT[measure][1]}f}" for measure in measures for kind in ("mean", "worst"))
        rows.append([escape(name), row["count"], *cells])
    in_colours = " SSIM and PSNR are those of the images in their colours." if "level_psnr" in whole else ""
    return [
        "<h2>What the VQ-VAE keeps</h2>",
        f"<p>Reconstructions of held-out images; no synthetic image can be sharper than these.{in_colours}</p>",
        table(["class", "images", *(head for measure in measures for head in (KEPT[measure][0], "worst"))], rows),
        "<p>The worst image of each class by SSIM:</p>",
        legend(names),
        chosen([names[row] for row in worst], names),
        inline(
            pictures.strip(folder / RECONSTRUCTION, sorted(worst)),
            "original, reconstruction and difference of each class's worst",
        ),
    ]


def _transforms(metrics: dict) -> str:
    """Return what the transforms are, and the auxiliary images, in HTML."""
    policy, auxiliary = metrics["data"]["policy"], metrics["data"]["auxiliary"]
    strengths = {name: value for name, value in policy.items() if value and name not in ("circular", "copies", "seed")}
    text = f"Transforms (policy {escape(metrics['config']['policy'])}): "
    text += ", ".join(f"{name} {value:g}" for name, value in strengths.items())
    text += ", time goes round" * policy["circular"]
    if policy["copies"]:
        text += f"; predictions averaged over {policy['copies']} transformed copies"
    if auxiliary:
        text += (
            f". Auxiliary: {sum(auxiliary.values())} images of {len(auxiliary)} classes take "
            f"{percent(metrics['config']['share'])} of each batch, on top of the transforms, or are trained on first, "
            "alone; with random labels they are the control, which shows what they bring whatever is said of them"
        )
    return f"{text}."


def _chance_note(comparisons: list[dict]) -> str:
    """Return how many differences to expect where there is none: every twentieth interval misses the truth."""
    found = sum(outcome(item) != "none" for item in comparisons)
    return (
        f"Of {len(comparisons)} intervals {found} exclude zero; {len(comparisons) / 20:.1f} would by chance alone if "
        "nothing made a difference."
    )


def _sifting(sifting: dict, names: list[str]) -> list[str]:
    """What the sifter rejects, of synthetic images and of real ones that it has not seen."""
    already_sifted = (
        " The synthetic images had been sifted once already, when they were made: there is no arm without sifting here."
        if sifting["already_sifted"]
        else ""
    )
    rows = [
        [NAMES[kind], percent(sifting["share"][kind]), *(share(value) for value in sifting["rejected"][kind])]
        for kind in ("synthetic", "held_out")
    ]
    return [
        f"<p>Sifted are the synthetic images within four limits, each of which rejects {percent(sifting['quantile'])} "
        "of training images set aside for that; the held-out images do not influence them. The second line is what the "
        f"same limits do to real images of new recordings: read the first against it.{already_sifted}</p>",
        table(["rejected by the sifter, %", "all", *names], rows),
    ]


def _html(group: PlotGroup | None) -> str:
    return group.html() if group else ""


def _with_spread(value: float, spread: float | None) -> str:
    return number(value) if spread is None else f"{number(value)} ± {spread:.2g}"
