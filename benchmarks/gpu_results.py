"""What benchmarks/gpu.py has found: each target beside its figure, and the results file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
NOT_JUDGED, NOT_MEASURED = "not judged", "not measured"
HOPPER = ("H100", "H200", "GH200", "H800", "B200")  # cards of the class for which speeds in img/s were set


@dataclass(frozen=True)
class Row:
    """A target beside what was measured."""

    issue: str
    what: str
    wanted: str
    measured: str
    said: str
    """reached, missed, not judged, not measured."""


def judged(results: dict[str, Any], rehearse: bool) -> list[Row]:
    """Return every target with its figure; of a rehearsal none is judged."""

    def said(reached: bool | None, counts: bool = True) -> str:
        if reached is None:
            return NOT_MEASURED
        return ("reached" if reached else "missed") if counts and not rehearse else NOT_JUDGED

    tests = results.get("tests", "").strip("= ")
    passed = bool(re.search(r"\d+ passed", tests)) and not re.search("failed|error", tests) if tests else None
    rows = [Row("", "tests marked gpu", "all pass", tests, said(passed))]
    for issue, what, sign, limit, value, counts in _targets(results):
        reached = None if value is None else value >= limit if sign == ">=" else value <= limit
        shown = "" if value is None else f"{value:.4g}"
        rows.append(Row(str(issue), what, f"{sign} {limit:.4g}", shown, said(reached, counts)))
    return rows


Target = tuple[int, str, str, float, float | None, bool]


def _targets(results: dict[str, Any]) -> Iterator[Target]:
    """Yield (issue, what, ">=" or "<=", limit, measured or None, whether it can be judged on this card)."""
    card = results["card"]
    large = results["preset"] == "gpu-80gb"
    hopper = large and any(name in card["name"] for name in HOPPER)

    def of(step: str, *path: str) -> float | None:
        found: Any = results.get(step)
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    ratio, at_50 = (_fastest(results, "generate-50", figure) for figure in ("ratio", "img_per_s"))
    yield 4, "bulk generation against a diffusers loop, 50 steps", ">=", 4, ratio, large
    yield 4, "img/s at 50 DDIM steps", ">=", 110, at_50, hopper
    rate = _fastest(results, "generate-few", "img_per_s")
    yield 4, "GPU-hours for a million samples, 20 steps or fewer", "<=", 1, 1e6 / rate / 3600 if rate else None, hopper
    rate = _fastest(results, "generate-2-calls", "img_per_s")
    yield 16, "img/s of a distilled model, 2 calls", ">=", 1390, rate, hopper
    yield 5, "VQ-VAE step against a plain torch loop", ">=", 1.5, of("train_vqvae", "ours_against", "plain"), True
    yield 5, "data wait of the VQ-VAE", "<=", 0.03, of("train_vqvae", "data_wait", "ours"), True
    for issue, command in ((5, "train-vqvae"), (6, "train-ldm")):
        shown, expected = of(command, "memory_gb"), of(command, "estimate_gb")
        off = abs(expected / shown - 1) if shown and expected else None
        yield issue, f"memory estimate of {command}, off by", "<=", 0.2, off, True
    yield from _autoencoder(results.get("reconstruct"))
    yield 6, "diffusion step against a loop that encodes", ">=", 2.5, of("train_ldm", "ours_against", "images"), True
    for step, kind in (("train_ldm", "the preset's"), ("train_ldm-full-attention", "full")):
        achieved = of(step, "tflop_s")
        share = achieved / card["tflop_s"] if achieved is not None else None
        yield 6, f"model FLOP utilisation of the measured peak, {kind} attention", ">=", 0.4, share, hopper
    full = of("train_ldm-full-attention", "img_s", "ours")
    yield 6, "img/s with full attention, 215 GFLOP a trained sample", ">=", 1470, full, hopper
    yield 6, "data wait of the diffusion model", "<=", 0.01, of("train_ldm", "data_wait", "ours"), True
    yield 6, "ZeRO 1, one rank, against plain torch", ">=", 0.95, of("train_ldm-zero1", "ours_against", "latents"), True
    yield 6, "peak GB of gpu-16gb", "<=", 15, of("memory-gpu-16gb", "peak_memory_gb"), True
    yield 6, "peak GB of gpu-6gb", "<=", 5.5, of("memory-gpu-6gb", "peak_memory_gb"), True
    if (metrics := results.get("evaluate")) is None:
        yield 6, "walking persons: intended class, fidelity, copies", ">=", 0.9, None, True
        return
    for row in metrics["targets"]:
        sign, limit = (">=", row["at_least"]) if "at_least" in row else ("<=", row["at_most"])
        yield 6, f"walking persons: {row['name']}, ratio to real", sign, limit, row["ratio"], True


def _fastest(results: dict[str, Any], step: str, figure: str) -> float | None:
    """Return a figure of the fastest setting of a benchmark of sampling."""
    found = results.get(step)
    return max(found["rows"], key=lambda row: row["img_per_s"])[figure] if found else None


def _autoencoder(figures: dict[str, Any] | None) -> Iterator[Target]:
    if figures is None:
        yield 5, "PSNR of held-out recordings, dB", ">=", 28, None, True
        return
    image, codes = figures["rows"]["VQ-VAE"], figures["codes"]
    std = max(abs(value - 1) for value in figures["latents"]["scaled_std"])
    yield 5, "PSNR of held-out recordings, dB", ">=", 28, image["psnr"]["mean"], True
    yield 5, "share of the codes used", ">=", 0.9, codes["used"], True
    yield 5, f"perplexity, K = {codes['number']}", ">=", codes["number"] / 3, codes["perplexity"], True
    yield 5, "sharpness, distance from 1", "<=", 0.1, abs(image["sharpness"]["mean"] - 1), True
    yield 5, "std of the scaled latents, distance from 1", "<=", 0.02, std, True


def machine(card: dict[str, Any]) -> list[str]:
    """Return what the results say of commit, hardware and versions."""

    def said(*command: str) -> str:
        with contextlib.suppress(OSError):
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        return ""

    gpus = said("nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader")
    others = said("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader")
    models = [line.split(":")[1].strip() for line in said("lscpu").splitlines() if line.startswith("Model name")]
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "triton", "deepspeed", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return [
        f"Commit {said('git', 'describe', '--always', '--dirty') or 'unknown'}, {time.strftime('%Y-%m-%d')}. "
        f"{', '.join(versions)}.",
        f"GPU: {gpus or 'none'}; {card['tflop_s']:.1f} TFLOP/s measured with dense {card['low']} matrices. "
        f"Other processes on it: {others or 'none'}.",
        f"{models[0] if models else 'CPU'}, {len(os.sched_getaffinity(0))} cores, "
        f"{psutil.virtual_memory().total / 1e9:.0f} GB, load {os.getloadavg()[0]:.1f} at the end.",
    ]


def write(path: Path, results: dict[str, Any], steps: list[dict[str, Any]], rehearse: bool) -> list[str]:
    """Write the results file and return its table of targets."""
    rows, card = judged(results, rehearse), results["card"]
    title = "A rehearsal: no figure here means anything" if rehearse else f"GPU: {card['name']}"
    table = ["| issue | what | to reach | measured | |", "|---|---|---|---:|---|"]
    table += [f"| {row.issue} | {row.what} | {row.wanted} | {row.measured} | {row.said} |" for row in rows]
    text = [f"# {title}", "", f"    {shlex.join(['python', *sys.argv])}", "", *machine(card)]
    text += [f"Networks of the preset {results['preset']}; untrained in the benchmarks.", "", *table, ""]
    count = {said: sum(row.said == said for row in rows) for said in ("reached", "missed")}
    text += [
        f"What it shows: {count['reached']} targets reached and {count['missed']} missed by this commit on this card."
    ]
    text += ["What it does not show: other cards and presets, several machines, trainings of full length.", ""]
    text += ["| step | | seconds |", "|---|---|---:|"]
    text += [f"| {step['name']} | {step['said']} | {step['seconds']:.0f} |" for step in steps]
    for step in steps:
        command = shlex.join(["python", *step["command"]])
        text += ["", f"## {step['name']}", "", f"    {command}", "", "```", *step["tail"], "```"]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return table


def path_of(card: dict[str, Any], parts: str) -> Path:
    """Return the results file of some parts, or "" for all of them, on a card."""
    name = re.sub("[^a-z0-9]+", "-", f"gpu {card['name']} {parts}".lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{name}.md"
