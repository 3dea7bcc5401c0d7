"""`python -m launch.demo`: every stage after the other at small scale, each as its own command, then a summary.

A process per stage costs the imports again (5 s of torch, diffusers and DeepSpeed on a 2-core machine) and buys that
a stage is exactly the command a user would type, leaves no memory to the next, and can run on several ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from mdaug import config
from shards.errors import UserError

POLL_S = 1.0  # asking for the shared memory of a process stops it for milliseconds


@dataclass
class DemoConfig:
    """Run simulate, pack, train-vqvae, encode, train-ldm, generate and evaluate, one after the other."""

    out: Path = Path("runs/demo")
    """Folder for the result of every stage; finished stages are skipped when the command is given again."""
    data: Path | None = None
    """Image folder `<class>/*.png` to use instead of the built-in simulator."""
    group_by: str | None = None
    """Passed to `mdaug pack`: what must not be torn between training and validation."""
    preset: str = "demo"
    """Folder below configs/ with one YAML file for each command."""
    gpus_per_node: int | Literal["auto"] = 1
    """Ranks of the stages that can use several."""

    def __post_init__(self) -> None:
        """Refuse what is not there; raises ValueError naming field, value and what is accepted."""
        if not Path("configs", self.preset).is_dir():
            raise ValueError(f"preset={self.preset}: there is no folder configs/{self.preset}; run from the repository")
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"data={self.data} is no folder; give an image folder <class>/*.png")


def stage_flags(out: Path, images: Path) -> dict[str, list[str]]:
    """Return command -> the flags that name its folders, in the order of the stages."""
    return {
        "simulate": ["--output_dir", f"{images}"],
        "pack": ["--data_dir", f"{images}", "--output_dir", f"{out}/packed"],
        "train-vqvae": ["--data_dir", f"{out}/packed", "--output_dir", f"{out}/vqvae"],
        "encode": ["--data_dir", f"{out}/packed", "--vqvae_path", f"{out}/vqvae", "--output_dir", f"{out}/latents"],
        "train-ldm": ["--data_dir", f"{out}/packed", "--vqvae_path", f"{out}/vqvae", "--latents_dir", f"{out}/latents",
                      "--output_dir", f"{out}/ldm"],
        "generate": ["--ldm_path", f"{out}/ldm", "--output_dir", f"{out}/synthetic"],
        "evaluate": ["--data_dir", f"{out}/packed", "--synthetic_dir", f"{out}/synthetic",
                     "--vqvae_path", f"{out}/vqvae", "--output_dir", f"{out}/evaluation"],
    }  # fmt: skip


def stage_commands(demo: DemoConfig) -> dict[str, list[str]]:
    """Return command -> the full command line of each stage to run."""
    flags = stage_flags(demo.out, demo.data or demo.out / "images")
    if demo.data is not None:
        del flags["simulate"]
    if demo.group_by is not None:
        flags["pack"] += ["--group_by", demo.group_by]
    commands, alone = {}, demo.gpus_per_node == 1
    for command, folders in flags.items():
        preset = Path("configs", demo.preset, f"{command}.yaml")
        chosen = ["--config", str(preset)] if preset.is_file() else []
        # Here, also where sbatch is: the demo is small, and its stages follow each other.
        ranks = ["--gpus_per_node", str(demo.gpus_per_node), "--cluster", "inline" if alone else "local"]
        commands[command] = [sys.executable, "-m", "launch", command, *ranks, "--", *chosen, *folders]
    return commands


def main(argv: list[str]) -> int:
    """Run the stages and return the exit status: that of the first stage that fails, else 0."""
    try:
        demo = config.parse(DemoConfig, argv, prog="python -m launch.demo")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    commands = stage_commands(demo)
    print(f"demo: {' -> '.join(commands)}\ndemo: everything goes to {demo.out}; the same command again continues there")
    runner = _Runner()
    table = []
    for command, line in commands.items():
        print(f"\n=== {command} ===", flush=True)
        begun = time.monotonic()
        status, memory = runner.run(line)
        seconds = time.monotonic() - begun
        table.append(f"  {command:12s} {seconds:7.1f} s   {memory / 1e9:5.2f} GB")
        if status != 0:
            print(f"\ndemo: {command} ended with status {status} after {seconds:.0f} s; its message is above.")
            print("demo: the same command again continues with this stage.", flush=True)
            return status
    print(_summary(demo, table, time.monotonic() - runner.begun, runner.peak))
    return 0


class _Runner:
    """Runs stages as child processes, passes signals to them and measures their memory."""

    def __init__(self) -> None:
        self.begun, self.peak, self.signal = time.monotonic(), 0, 0
        self.child: subprocess.Popen | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def run(self, line: list[str]) -> tuple[int, int]:
        """Return (exit status, peak bytes of memory of the process and its children) of one stage."""
        # A session of its own, so that a Ctrl-C arrives once: through us.
        self.child = subprocess.Popen(line, start_new_session=True)
        peak = 0
        while self.child.poll() is None:
            peak = max(peak, _memory(self.child.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(POLL_S)
        self.peak = max(self.peak, peak)
        status = self.child.returncode
        if self.signal:  # a stage that saved and ended well when told to is no reason to start the next
            return 128 + self.signal, peak
        return (status if status >= 0 else 128 - status), peak

    def _pass_on(self, number: int, frame: object) -> None:
        self.signal = number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)


def _memory(pid: int) -> int:
    """Return the bytes of memory of a process and its descendants; shared pages count once where Linux tells."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            usage = process.memory_full_info()
            total += getattr(usage, "pss", usage.uss)
        except psutil.Error:
            continue
    return total


def _summary(demo: DemoConfig, table: list[str], seconds: float, peak: int) -> str:
    out = demo.out
    places = {
        "real images": demo.data or out / "images",
        "packed shards": out / "packed",
        "VQ-VAE": out / "vqvae/best",
        "pipeline": out / "ldm/pipeline",
        "synthetic": out / "synthetic",
        "samples": out / "synthetic/grid.png",
        "report": out / "evaluation/report.html",
    }
    metrics = json.loads((out / "evaluation/metrics.json").read_text(encoding="utf-8"))
    lines = ["", "=== summary ===", *table, f"  {'all':12s} {seconds:7.1f} s   {peak / 1e9:5.2f} GB at most", ""]
    lines += [f"  {name:14s} {path}" for name, path in places.items() if path.exists()]
    lines += ["", *metrics["verdict"]["sentences"]]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # stages print in step with us when the output is a file
    sys.exit(main(sys.argv[1:]))
