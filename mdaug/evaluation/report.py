"""The report: one self-contained HTML file, metrics.json with the same figures, and a summary for the terminal."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path

from mdaug.evaluation.usefulness import FEWEST_GROUPS
from mdaug.evaluation.verdict import outcome, percent
from shards.provenance import write_text

METRICS, REPORT = "metrics.json", "report.html"
GRID, RECONSTRUCTION, PAIRS = "grid_real_synthetic.png", "reconstruction.png", "nearest_pairs.png"

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}
.verdict{border-left:.4rem solid;padding:.1rem 1rem;background:#f4f6f8}
.loss{border-color:#b42318}.none{border-color:#b7791f}.gain{border-color:#1a7f37}
.scroll{overflow-x:auto;margin:.5rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid #d9dee3;text-align:right}
th:first-child,td:first-child{text-align:left}th{font-weight:600}
.bar{min-width:8rem;padding:.25rem 0}.bar i{display:block;height:.8rem;background:#3b6ea8}
img{max-width:100%;height:auto;border:1px solid #d9dee3}small,.note{color:#57606a}
.confusion td,.confusion th{padding:.15rem .4rem;text-align:center;font-size:.85rem;border:0}
details{margin:.4rem 0}summary{cursor:pointer}.wide{min-width:44rem}
@media(max-width:40rem){.bar,.bar-head{display:none}th,td{padding:.2rem .35rem;font-size:.85rem}}
"""


def write(folder: Path, metrics: dict) -> None:
    """Write report.html and metrics.json into `folder`, where the pictures are."""
    write_text(folder / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / REPORT, html(folder, metrics))


def summary(metrics: dict, folder: Path) -> str:
    """Return the table of arms, the other figures and the verdict as plain text."""
    lines = ["", f"{'classifier trained on':31s} {'n per class':>11s}  accuracy on held-out real images"]
    for arm in metrics["usefulness"]["arms"]:
        n_real = arm["n_real"] or "-"
        lines.append(f"{arm['arm']:31s} {n_real!s:>11s}  {percent(arm['accuracy'])} ± {100 * arm['std']:.1f}")
    judged = metrics["usefulness"]["real_to_synthetic"]
    lines.append(f"real, judging synthetic images: {percent(judged['accuracy'])} ± {100 * judged['std']:.1f}")
    frechet = metrics["usefulness"]["frechet"]
    if frechet["synthetic"] is not None:
        lines.append(f"Fréchet distance {frechet['synthetic']:.3f} (floor {frechet['floor']:.3f})")
    if metrics["reconstruction"]:
        figures = metrics["reconstruction"]
        lines.append(f"reconstruction of held-out images: PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.3f}")
    return "\n".join([*lines, "", *metrics["verdict"]["sentences"], "", f"report: {folder / REPORT}"])


def html(folder: Path, metrics: dict) -> str:
    """Return the report; pictures are read from `folder` and put inline, nothing is loaded from elsewhere."""
    sections = [
        "<h1>What the synthetic images are worth</h1>",
        f'<div class="verdict {metrics["verdict"]["outcome"]}">',
        *(f"<p>{escape(sentence)}</p>" for sentence in metrics["verdict"]["sentences"]),
        "</div>",
        *_usefulness(metrics),
        "<h2>Real and synthetic, side by side</h2>",
        '<div class="scroll">',
        _picture(folder / GRID, "held-out real and synthetic images of each class", "wide"),
        "</div>",
        *_fidelity(folder, metrics),
        *_reconstruction(folder, metrics),
        *_protocol(metrics),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>mdaug evaluation</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _usefulness(metrics: dict) -> list[str]:
    table, data = metrics["usefulness"], metrics["data"]
    arms = [
        [
            escape(arm["arm"]),
            arm["n_real"] or "–",
            f"{100 * arm['accuracy']:.1f} ± {100 * arm['std']:.1f}",
            f'<div class="bar"><i style="width:{100 * arm["accuracy"]:.1f}%"></i></div>',
            arm["real"],
            arm["synthetic"],
        ]
        for arm in table["arms"]
    ]
    differences = [
        [
            f"{escape(item['arm'])} against {escape(item['baseline'])}",
            item["n_real"],
            f"{100 * item['difference']:+.1f}",
            f"{100 * item['low']:+.1f} to {100 * item['high']:+.1f}",
            {"loss": "loss", "none": "not measurable", "gain": "gain"}[outcome(item)],
        ]
        for item in table["comparisons"]
    ]
    recall = [
        [escape(arm["arm"]), arm["n_real"] or "–", *(_share(value) for value in arm["recall"])] for arm in table["arms"]
    ]
    judged = table["real_to_synthetic"]
    recall.append(["real, judging synthetic images", "–", *(_share(value) for value in judged["recall"])])
    units = (
        f"{data['held_out_groups']} groups (recordings) of held-out images"
        if data["held_out_groups"] >= FEWEST_GROUPS
        else f"held-out images (too few groups, {data['held_out_groups']}: the interval says nothing of other groups)"
    )
    names = [escape(name) for name in data["classes"]]
    confusions = [
        _confusion(f"{arm['arm']}, n = {arm['n_real'] or '–'}", names, arm["confusion"]) for arm in table["arms"]
    ]
    return [
        "<h2>Does a classifier get better?</h2>",
        f"<p>Accuracy in % on {sum(data['held_out'])} held-out real images, mean ± standard deviation over "
        f"{metrics['config']['seeds']} seeds; chance is {percent(table['chance'])}. Every classifier takes "
        f"{metrics['config']['steps']} steps of {metrics['config']['batch_size']} images, so “real” is also “real, "
        "duplicated”.</p>",
        _table(["trained on", "n per class", "accuracy", "", "real images", "synthetic"], arms),
        f"<p class=note>The generator was trained on all {sum(data['train'])} training images. Where a classifier sees "
        "fewer, the synthetic images also carry what the generator saw in the others: such a line shows how much of "
        "the training set they pass on, not what a generator trained on so few images would do.</p>",
        f"<p>Differences in points with 95 % intervals, from a paired bootstrap over seeds and {units}:</p>",
        _table(["", "n per class", "points", "95 % interval", ""], differences),
        "<p>Recall per class in %:</p>",
        _table(["trained on", "n", *names], recall),
        "<details><summary>Confusion matrices (rows: true class, columns: predicted, all seeds)</summary>",
        *confusions,
        _confusion("real, judging synthetic images (rows: intended class)", names, judged["confusion"]),
        "</details>",
    ]


def _fidelity(folder: Path, metrics: dict) -> list[str]:
    frechet, memory = metrics["usefulness"]["frechet"], metrics["memorization"]
    lines = ["<h2>How near to the real images?</h2>"]
    if frechet["synthetic"] is not None:
        rows = [
            ["synthetic", f"{frechet['synthetic']:.3f} ± {frechet['synthetic_std']:.3f}"],
            ["held-out real (floor)", f"{frechet['floor']:.3f} ± {frechet['floor_std']:.3f}"],
        ]
        lines += [
            _table(["Fréchet distance to the training images", ""], rows),
            f"<p class=note>In the 64 features of the classifiers trained on all real images, {frechet['size']} images "
            "of each kind with equal class counts. Sets this small bias both figures upward alike: read them against "
            "each other, never against other papers. Below the floor is no merit: such images are nearer to the "
            "training images than new recordings are.</p>",
        ]
    rows = [
        [
            "median distance in grey levels",
            memory["synthetic_median"],
            memory["held_out_median"],
        ],
        ["the same thumbnail as a training image", memory["synthetic_copies"], memory["held_out_copies"]],
    ]
    cells = [[name, *(f"{value:.1f}" if isinstance(value, float) else value for value in row)] for name, *row in rows]
    cells.append(["nearer than 99 % of held-out images", percent(memory["share_closer"]), "1.0 %"])
    return [
        *lines,
        _table(["nearest training image", "synthetic", "held-out real"], cells),
        "<p>The synthetic images that are nearest to a training image, on thumbnails of 16 × 16:</p>",
        _picture(folder / PAIRS, "synthetic images above their nearest training images"),
    ]


def _reconstruction(folder: Path, metrics: dict) -> list[str]:
    figures = metrics["reconstruction"]
    if figures is None:
        return []
    rows = [
        [
            escape(row["name"]),
            row["count"],
            f"{row['psnr']:.2f}",
            f"{row['psnr_worst']:.2f}",
            f"{row['ssim']:.3f}",
            f"{row['ssim_worst']:.3f}",
        ]
        for row in figures["classes"]
    ]
    rows.append(["all", figures["count"], f"{figures['psnr']:.2f}", "", f"{figures['ssim']:.3f}", ""])
    return [
        "<h2>What the VQ-VAE keeps</h2>",
        "<p>Reconstructions of held-out images; no synthetic image can be sharper than these.</p>",
        _table(["class", "images", "PSNR dB", "worst", "SSIM", "worst"], rows),
        "<p>The worst image of each class by SSIM:</p>",
        _picture(folder / RECONSTRUCTION, "original, reconstruction and difference of the worst image of each class"),
    ]


def _protocol(metrics: dict) -> list[str]:
    data = metrics["data"]
    names = [escape(name) for name in data["classes"]]
    split = data["held_out_split"]
    parts = {"train": "train", "held_out": f"held out ({split})", "synthetic": "synthetic"}
    rows = [[title, sum(data[part]), *data[part]] for part, title in parts.items()]
    taken = [sum(data[part]) for part in parts]
    limited = (
        f"<p class=note>Of {', '.join(map(str, data['in_folders']))} images in the folders, at most "
        f"{metrics['config']['max_per_class']} per class were used, a fixed random choice.</p>"
        if taken != data["in_folders"]
        else ""
    )
    origins = [[name, f"<code>{value[:16]}</code>"] for name, value in data["made_from"].items()]
    settings = [[name, escape(str(value))] for name, value in metrics["config"].items()]
    return [
        "<h2>What was measured on what</h2>",
        "<p>The held-out images share no group (recording or person, as chosen when packing) with the training images, "
        "and neither generator nor classifiers were trained on them. No classifier was stopped or chosen by them"
        + ("; the weights of the generator that did best on val may have been.</p>" if split == "val" else ".</p>"),
        _table(["images", "all", *names], rows),
        limited,
        "<details><summary>Hashes and settings</summary>",
        _table(["made from", ""], origins),
        _table(["setting", ""], settings),
        "</details>",
    ]


def _table(head: list[str], rows: list[list]) -> str:
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>\n{body}</table></div>'


def _confusion(title: str, names: list[str], matrix: list[list[int]]) -> str:
    rows = []
    for name, row in zip(names, matrix, strict=True):
        total = max(sum(row), 1)
        cells = (f'<td style="background:rgba(59,110,168,{value / total:.2f})">{value}</td>' for value in row)
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    header = "".join(f"<th>{name}</th>" for name in names)
    table = f'<table class="confusion"><tr><th></th>{header}</tr>{"".join(rows)}</table>'
    return f'<p>{escape(title)}</p><div class="scroll">{table}</div>'


def _picture(path: Path, description: str, css: str = "") -> str:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="{css}" alt="{escape(description)}" src="data:image/png;base64,{encoded}">'


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"
