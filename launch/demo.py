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
from typing import Literal

import psutil

from launch import stages
from mdaug import config
from shards.errors import entry_point

POLL_S = 1.0  # asking for the shared memory of a process stops it for milliseconds


@dataclass
class DemoConfig(stages.ChainConfig):
    """Run simulate, pack, train-vqvae, encode, train-ldm, generate and evaluate, one after the other."""

    gpus_per_node: int | Literal["auto"] = 1
    """Ranks of the stages that can use several."""


def stage_commands(demo: DemoConfig) -> dict[str, list[str]]:
    """Return command -> the full command line of each stage to run."""
    # Here, also where sbatch is: the demo is small, and its stages follow each other.
    cluster = "inline" if demo.gpus_per_node == 1 else "local"
    size = ["--gpus_per_node", str(demo.gpus_per_node), "--cluster", cluster]
    return {
        command: [sys.executable, "-m", "launch", command, *launcher_flags, *size, "--", *flags]
        for command, (launcher_flags, flags) in demo.stages().items()
    }


@entry_point
def main(argv: list[str]) -> int:
    """Run the stages and return the exit status: that of the first stage that fails, else 0."""
    demo = config.parse(DemoConfig, argv, prog="python -m launch.demo")
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
        if self.signal:  # a stage that saved and ended well when asked to stop is no reason to start the next
            return 128 + self.signal, peak
        return (status if status >= 0 else 128 - status), peak

    def _pass_on(self, number: int, frame: object) -> None:
        self.signal = number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)


def _memory(pid: int) -> int:
    """Return the bytes of memory of a process and its descendants; shared pages count once where Linux reports that."""
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
    """Return times and memory of the stages, the folders that they have written, and the verdict of the evaluation."""
    outputs = {command: stages.folders(command, demo.out, demo.data)["output_dir"] for command in demo.stages()}
    outputs |= {"samples": outputs["generate"] / "grid.png", "report": outputs["evaluate"] / "report.html"}
    lines = ["", "=== summary ===", *table, f"  {'all':12s} {seconds:7.1f} s   {peak / 1e9:5.2f} GB at most", ""]
    lines += [f"  {name:14s} {path}" for name, path in outputs.items() if path.exists()]
    metrics = json.loads((outputs["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    return "\n".join([*lines, "", *metrics["verdict"]["sentences"]])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # stages print in step with us when the output is a file
    sys.exit(main(sys.argv[1:]))
