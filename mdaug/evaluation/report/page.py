"""The report: one self-contained HTML file, metrics.json with the same figures, and a summary for the terminal."""

from __future__ import annotations

import json
import math
import shlex
from html import escape
from pathlib import Path
from typing import Any

from mdaug.evaluation.report import pictures, plots, sections
from mdaug.evaluation.report.markup import chosen, inline, table
from mdaug.evaluation.report.verdict import held_out_notes, mean_and_spread, percent
from mdaug.measures.worth import described
from shards.atomic import write_text

METRICS, REPORT = "metrics.json", "report.html"

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#1b1f24;background:#fff;
overflow-wrap:break-word}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}
.verdict{border-left:.4rem solid;padding:.1rem 1rem;background:#f4f6f8}
.verdict p:first-child{font-weight:600}
.loss{border-color:#b42318}.none{border-color:#b7791f}.gain{border-color:#1a7f37}
/* A shadow at the edge behind which there is more. */
.scroll{overflow-x:auto;margin:.5rem 0;background:linear-gradient(to right,#fff 50%,#fff0) 0/3rem 100% no-repeat local,
linear-gradient(to left,#fff 50%,#fff0) 100%/3rem 100% no-repeat local,
linear-gradient(to right,#1b1f2440,#1b1f2400) 0/.8rem 100% no-repeat scroll,
linear-gradient(to left,#1b1f2440,#1b1f2400) 100%/.8rem 100% no-repeat scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid #d9dee3;text-align:right}
td{white-space:nowrap}th:first-child,td:first-child{text-align:left;white-space:normal;min-width:8.5rem}
th{font-weight:600;vertical-align:bottom}.confusion th:first-child{min-width:0}
svg{max-width:100%;height:auto}svg text{font-family:system-ui,sans-serif}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.legend span{margin-right:1rem;white-space:nowrap}
.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
img{max-width:100%;height:auto;border:1px solid #d9dee3}small,.note{color:#57606a}
.confusion td,.confusion th{padding:.15rem .4rem;text-align:center;font-size:.85rem;border:0}
.sides{display:flex;flex-wrap:wrap;gap:.5rem 1rem}figure{flex:1 1 20rem;min-width:0;margin:0}
figcaption{font-size:.85rem}figure img{width:100%}details{margin:.4rem 0}summary{cursor:pointer}
@media(max-width:40rem){th,td{padding:.2rem .25rem;font-size:.8rem}th:first-child,td:first-child{min-width:6rem}}
"""


def write(folder: Path, metrics: dict) -> None:
    """Write report.html, metrics.json and the plots into `folder`, where the pictures are."""
    text = json.dumps(_without_nan(metrics), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / METRICS, text + "\n")
    for name, plot in plots.FILES.items():
        if group := plot(metrics):
            group.save(folder / name)
    write_text(folder / REPORT, html(folder, metrics))


def _without_nan(value: Any) -> Any:
    """Return the figures with null for those that could not be measured (JSON has no NaN)."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(metrics: dict, folder: Path) -> str:
    """Return the table of arms, the other figures, the targets and the verdict as plain text."""
    lines = [""]
    if metrics["usefulness"]:
        width = max(31, *(len(arm["name"]) for arm in metrics["usefulness"]["arms"]))
        lines.append(
            f"{'classifier trained on':{width}s} {'further':>8s}  mean recall on held-out real images (plain), n real "
            "images per class"
        )
        for arm in metrics["usefulness"]["arms"]:
            accuracy = f"{mean_and_spread(arm)} % ({percent(arm['plain_accuracy'])})"
            value = f", worth {described(arm['worth'])}" if arm["worth"] else ""
            lines.append(
                f"{arm['name']:{width}s} {arm['further'] or '-'!s:>8s}  {accuracy}, n = {arm['n_used']}{value}"
            )
        judged, majority = metrics["usefulness"]["real_to_synthetic"], metrics["usefulness"]["majority"]
        lines.append(f"real, judging synthetic images: {mean_and_spread(judged)} %")
        lines.append(
            f"chance: {percent(metrics['usefulness']['chance'])} (always {majority['class']}: "
            f"{percent(majority['share'])} of plain accuracy)"
        )
        lines += held_out_notes(metrics["data"])
    for network in (metrics["fidelity"] or {"networks": []})["networks"]:
        if network["synthetic"] is not None:
            synthetic, floor = network["synthetic"], network["floor"]
            lines.append(
                f"in features of the {network['name']}, synthetic (floor): Fréchet {synthetic['frechet']:.3g} "
                f"({floor['frechet']:.3g}), precision {synthetic['precision']:.2f} ({floor['precision']:.2f}), "
                f"recall {synthetic['recall']:.2f} ({floor['recall']:.2f})"
            )
    if metrics["memorization"]:
        memory = metrics["memorization"]
        lines.append(
            f"copies of training images: {memory['synthetic_copies']}; nearer to one than 99 % of held-out images: "
            f"{percent(memory['share_closer'])}"
        )
    if metrics["reconstruction"]:
        kept = metrics["reconstruction"]["rows"]["VQ-VAE"]
        of_levels = f" ({kept['level_psnr']['mean']:.2f} dB of levels)" if "level_psnr" in kept else ""
        lines.append(
            f"reconstruction of held-out images: PSNR {kept['psnr']['mean']:.2f} dB{of_levels}, "
            f"SSIM {kept['ssim']['mean']:.3f}"
        )
    if rows := sections.target_rows(metrics):
        lines.append("")
        for name, synthetic, real, ratio, limit, reached in [[*sections.TARGET_HEAD, ""], *rows]:
            lines.append(f"{name:51s} {synthetic:>9s} {real:>7s} {ratio:>6s}  {limit:5s}  {reached}".rstrip())
    lines += [""] * bool(metrics["failed"]) + failures(metrics)
    sentences = metrics["verdict"]["sentences"] if metrics["verdict"] else []
    return "\n".join([*lines, "", *sentences, "", f"report: {folder / REPORT}"])


def failures(metrics: dict) -> list[str]:
    """Return a line for each part that could not be measured."""
    return [f"{part} could not be measured ({reason})" for part, reason in metrics["failed"].items()]


def html(folder: Path, metrics: dict) -> str:
    """Return the report; pictures are read from `folder` and put inline, nothing is loaded from elsewhere."""
    verdict = metrics["verdict"] or {
        "outcome": "none",
        "sentences": [
            "Whether the synthetic images help a classifier has not been measured yet; run mdaug evaluate usefulness "
            "with the same settings and folders."
        ],
    }
    pieces = [
        "<h1>What the synthetic images are worth</h1>",
        f'<div class="verdict {verdict["outcome"]}">',
        *(f"<p>{escape(sentence)}</p>" for sentence in verdict["sentences"]),
        "</div>",
        *sections.target_table(metrics),
        *sections.usefulness(metrics),
        *(f"<p>{escape(line)}</p>" for line in failures(metrics)),
        "<h2>Real and synthetic, side by side</h2>",
        *_sides(folder, metrics),
        *sections.fidelity(metrics),
        *sections.kinematics(metrics),
        *sections.memorization(folder, metrics),
        *sections.reconstruction(folder, metrics),
        *_protocol(metrics),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>mdaug evaluation</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(pieces) + "\n</body></html>\n"
    )


def command(config: dict) -> str:
    """Return the command that made an evaluation or a part of it, every setting spelled out."""
    values = {
        name: f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
        for name, value in config.items()
        if value is not None and name not in ("part", "workers", "worker", "num_workers")
    }
    flags = [f"--{name} {shlex.quote(value)}" for name, value in values.items()]
    return " ".join([f"mdaug evaluate {config['part']}", *flags])


def _sides(folder: Path, metrics: dict) -> list[str]:
    """Return real and synthetic images of each class: beside each other, or one above the other on a phone.

    Of many classes those are shown whose synthetic images classifiers recognise worst.
    """
    classes, figures, lines = metrics["data"]["classes"], metrics["usefulness"], ['<div class="sides">']
    recall = [1 if share is None else share for share in figures["real_to_synthetic"]["recall"]] if figures else []
    worst = sorted(range(len(classes)), key=lambda label: recall[label] if recall else label)
    shown = sorted(worst[: plots.MOST_CLASSES])
    for label, halves in zip(shown, pictures.halves(folder / pictures.GRID, shown), strict=True):
        for kind, half in zip(("real, held out", "synthetic"), halves, strict=True):
            title = f"{classes[label]}: {kind}"
            lines.append(f"<figure><figcaption>{escape(title)}</figcaption>{inline(half, title)}</figure>")
    return [chosen([classes[label] for label in shown], classes), *lines, "</div>"]


def _protocol(metrics: dict) -> list[str]:
    data = metrics["data"]
    names = [escape(name) for name in data["classes"]]
    split = data["held_out_split"]
    parts = {"train": "train", "held_out": f"held out ({split})", "synthetic": "synthetic", "simulated": "simulated"}
    rows = [[title, sum(data[part]), *data[part]] for part, title in parts.items() if data[part]]
    used = [sum(data[part]) for part in ("train", "held_out", "synthetic")]
    limited = (
        f"<p class=note>Of {', '.join(map(str, data['in_folders']))} images in the folders, at most "
        f"{metrics['config']['max_per_class']} per class were used, a fixed random choice.</p>"
        if used != data["in_folders"]
        else ""
    )
    origins = [[name, f"<code>{value[:16]}</code>"] for name, value in data["made_from"].items()]
    settings = [[name, escape(str(value))] for name, value in metrics["config"].items()]
    return [
        "<h2>What was measured on what</h2>",
        "<p>The held-out images share no group (recording or person, as chosen when packing) with the training images, "
        "and neither generator nor classifiers were trained on them. No classifier was stopped or chosen by them"
        + ("; the weights of the generator that did best on val may have been.</p>" if split == "val" else ".</p>"),
        table(["images", "all", *names], rows),
        limited,
        "<details><summary>Commands, hashes and settings</summary>",
        *(f"<pre>{escape(line)}</pre>" for line in dict.fromkeys(metrics["commands"].values())),
        table(["made from", ""], origins),
        table(["setting", ""], settings),
        "</details>",
    ]
