"""`python -m launch.demo`: every stage after the other, each as its own command, within a budget of minutes.

First a run of seconds of the same stages measures the machine; from its speeds follow all lengths (`lengths.py`),
which are kept in `lengths.json`. A stage is exactly the command that a user would type, in a process of its own.
Without a GPU that process is forked from a server which has imported torch, diffusers and DeepSpeed once: 5 to 25 s
each time otherwise. With GPUs it begins anew, since CUDA works in no process that is forked after these libraries.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import psutil

from launch import __main__ as launcher
from launch import demo_page, stages
from launch.lengths import Lengths, Speeds, as_dict, choose
from mdaug import cli, config
from shards import atomic
from shards.errors import UserError, entry_point
from shards.source import IMAGE_SUFFIXES
from shards.validation import within

POLL_S = 1.0  # asking for the shared memory of a process stops it for milliseconds
TOLD_EVERY_S = 10.0
LENGTHS_FILE, MEASURING = "lengths.json", ".measuring"
LAUNCH = [sys.executable, "-m", "launch"]
LIBRARIES = (
    "torch", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "diffusers", "jsonargparse",
    "mdaug.training.train_vqvae", "mdaug.training.train_ldm", "mdaug.generation.generate", "mdaug.evaluation.evaluate",
)  # fmt: skip
SHORT_VQVAE, SHORT_UNET = 160, 320  # samples
# The run that measures: large enough for a speed, small enough for seconds.
SHORT = {
    "simulate": "--images_per_class 8 --images_per_group 1",
    "pack": "",
    "train-vqvae": f"--train_samples {SHORT_VQVAE} --val_samples 1000000 --save_samples 1000000 --logging_steps 5 "
    "--save_images false",
    "encode": "",
    "train-ldm": f"--train_samples {SHORT_UNET} --val_samples 1000000 --save_samples 1000000 --logging_steps 5 "
    "--save_images false",
}


@dataclass
class DemoConfig(stages.ChainConfig):
    """Run simulate, pack, train-vqvae, encode, train-ldm, generate and evaluate, one after the other."""

    gpus_per_node: int | Literal["auto"] = 1
    """Ranks of the stages that can use several."""
    minutes: float | None = None
    """All stages together take about so long; their lengths follow from the speed of this machine, measured in the
    first seconds. Default: the lengths of the preset."""
    lengths: Path | None = None
    """lengths.json of another run whose lengths are taken, whatever the speed of this machine."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        super().__post_init__()
        within(self, "[1, 10000]", "minutes")
        if self.lengths is not None and not self.lengths.is_file():
            raise ValueError(f"lengths={self.lengths} is not a file; give {LENGTHS_FILE} of another run")


def stage_commands(demo: DemoConfig, lengths: Lengths | None = None) -> dict[str, list[str]]:
    """Return command -> the full command line of each stage to run."""
    # Here, also where sbatch is: the demo is small, and its stages follow each other.
    cluster = "inline" if demo.gpus_per_node == 1 else "local"
    size = ["--gpus_per_node", str(demo.gpus_per_node), "--cluster", cluster]
    chosen = lengths.flags() if lengths is not None else {}
    return {
        command: [*LAUNCH, command, *launcher_flags, *size, "--", *flags, *chosen.get(command, [])]
        for command, (launcher_flags, flags) in demo.stages().items()
    }


@entry_point
def main(argv: list[str]) -> int:
    """Run the stages and return the exit status: that of the first stage that fails, else 0."""
    demo = config.parse(DemoConfig, argv, prog="python -m launch.demo")
    cli.share_cores()  # before the server of the stages imports torch
    runner = _Runner()
    lengths = _lengths(demo, runner)
    if runner.signal:
        return 128 + runner.signal
    commands = stage_commands(demo, lengths) if lengths is not None else stage_commands(demo)
    planned = lengths.seconds if lengths is not None else None
    page = demo_page.Page(demo.out, _folders(demo), list(commands), planned)
    print(f"demo: {' -> '.join(commands)}\ndemo: everything goes to {demo.out}; the same command again continues there")
    print(f"demo: watch it at {page.path.resolve().as_uri()}", flush=True)
    table = []
    for command, line in commands.items():
        print(f"\n=== {command} ===", flush=True)
        begun = time.monotonic()
        page.begin(command)
        status, memory = runner.run(line, page.tell)
        seconds = time.monotonic() - begun
        table.append(f"  {command:12s} {seconds:7.1f} s   {memory / 1e9:5.2f} GB")
        if status != 0:
            page.end(command, failed=True)
            print(f"\ndemo: {command} ended with status {status} after {seconds:.0f} s; its message is above.")
            print("demo: the same command again continues with this stage.", flush=True)
            return status
        page.end(command)
    summary = _summary(demo, table, time.monotonic() - runner.begun, runner.peak, lengths)
    page.finish(summary)
    print(summary)
    return 0


def _lengths(demo: DemoConfig, runner: _Runner) -> Lengths | None:
    """Return the lengths of a run: those that it has already, those given, or those that this machine can do in time.

    Raises UserError for a folder that was begun with other minutes, and where the measuring run fails.
    """
    if demo.minutes is None and demo.lengths is None:
        return None
    kept = demo.out / LENGTHS_FILE
    for path in (kept, demo.lengths):
        if path is not None and path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if path == kept and demo.lengths is None and record["minutes"] != demo.minutes:
                raise UserError(
                    f"{kept} was chosen for minutes={record['minutes']:g}, not {demo.minutes:g}; choose another --out "
                    "(OUT with make), or delete that folder"
                )
            break
    else:
        assert demo.minutes is not None
        record = _measured(demo, runner)
        if record is None:
            return None
    if not kept.is_file():
        demo.out.mkdir(parents=True, exist_ok=True)
        atomic.write_text(kept, json.dumps(record, indent=1) + "\n")
    lengths = Lengths(**record["lengths"])
    print(
        f"demo: {lengths.vqvae_samples} samples for the VQ-VAE, {lengths.unet_samples} for the diffusion model, "
        f"{lengths.generated} synthetic images, {lengths.seeds} x {lengths.classifier_steps} steps of classifiers; "
        f"kept in {kept}",
        flush=True,
    )
    return lengths


def _measured(demo: DemoConfig, runner: _Runner) -> dict[str, Any] | None:
    """Run the stages for seconds and return what is kept; None where a signal ended it. Raises UserError."""
    assert demo.minutes is not None
    print("demo: measuring how fast this machine is", flush=True)
    out = demo.out / MEASURING
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    trial = DemoConfig(out=out, preset=demo.preset, gpus_per_node=demo.gpus_per_node, minutes=None)
    took, log = {}, out / "log.txt"
    runner.run([*LAUNCH, "--help"], log=log)  # the first process waits for the libraries
    for command, line in stage_commands(trial).items():
        if command not in SHORT:
            continue
        begun = time.monotonic()
        status, _ = runner.run([*line, *SHORT[command].split()], log=log)
        took[command] = time.monotonic() - begun
        if runner.signal:
            shutil.rmtree(out, ignore_errors=True)
            return None
        if status != 0:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            raise UserError(f"{command} failed while the machine was measured; its output is in {log}: {said[-500:]}")
    made = [path.stat().st_mtime for path in (out / "images").glob("*/*.png")]
    simulate, vqvae, unet = len(made) / max(max(made) - min(made), 0.1), _speed(out / "vqvae"), _speed(out / "ldm")
    speeds = Speeds(
        simulate=simulate,
        vqvae=vqvae,
        unet=unet,
        stage_s=took["encode"],
        simulate_s=max(took["simulate"] - len(made) / simulate, 0.0),
        training_s=max(took["train-vqvae"] - SHORT_VQVAE / vqvae, took["train-ldm"] - SHORT_UNET / unet, 0.0),
    )
    classes, images = _size_of(demo)
    left = 60 * demo.minutes - (time.monotonic() - runner.begun)
    lengths = choose(left, speeds, classes, images)
    shutil.rmtree(out, ignore_errors=True)
    return {
        "minutes": demo.minutes,
        "speeds": vars(speeds),
        "lengths": as_dict(lengths),
    }


def _speed(run: Path) -> float:
    """Return the samples per second of a training, once it is warm: the median of its last three reports."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return statistics.median([record["img_s"] for record in map(json.loads, lines) if "img_s" in record][-3:])


def _size_of(demo: DemoConfig) -> tuple[int, int | None]:
    """Return the number of classes, and of images that are there (None: they are simulated)."""
    if demo.data is None:
        options = cli.parse("simulate", stages.flags("simulate", demo.out, preset=demo.preset))
        return len(options.classes or ()) or options.num_persons, None
    files = [path for path in demo.data.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES]
    return max(1, len({path.relative_to(demo.data).parts[0] for path in files})), len(files)


class _Runner:
    """Runs stages as child processes, passes signals to them and measures their memory."""

    def __init__(self) -> None:
        self.begun, self.peak, self.signal = time.monotonic(), 0, 0
        self.child: _Child | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def run(
        self, line: list[str], tell: Callable[[], object] = lambda: None, log: Path | None = None
    ) -> tuple[int, int]:
        """Return (exit status, peak bytes of memory of the process and its children) of one stage.

        Args:
            line: the command line.
            tell: called every few seconds.
            log: file for its output; default: that of this process.
        """
        self.child = _Child(line, log)
        peak, told = 0, time.monotonic()
        while self.child.status(wait_s=POLL_S) is None:
            peak = max(peak, _memory(self.child.pid))
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                tell()
        self.peak = max(self.peak, peak)
        status, self.child = self.child.status() or 0, None
        if self.signal:  # a stage that saved and ended well when asked to stop is no reason to start the next
            return 128 + self.signal, peak
        return (status if status >= 0 else 128 - status), peak

    def _pass_on(self, number: int, frame: object) -> None:
        self.signal = number
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child.pid, number)


class _Child:
    """A command line in a process of its own: `python -m launch` forked where that is safe, all else started anew."""

    def __init__(self, line: list[str], log: Path | None):
        # A session of its own in both cases, so that a Ctrl-C arrives once: through us.
        self._forked: BaseProcess | None = None
        self._started: subprocess.Popen | None = None
        if line[:3] == LAUNCH and not Path("/dev/nvidiactl").exists():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it finds no GPU
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(LIBRARIES))
            self._forked = context.Process(target=_forked, args=(line[3:], None if log is None else str(log)))
            self._forked.start()
        elif log is not None:
            with open(log, "ab") as file:
                self._started = subprocess.Popen(line, start_new_session=True, stdout=file, stderr=file)
        else:
            self._started = subprocess.Popen(line, start_new_session=True)

    @property
    def pid(self) -> int:
        """Its process."""
        process = self._forked or self._started
        assert process is not None
        assert process.pid is not None
        return process.pid

    def status(self, wait_s: float = 0.0) -> int | None:
        """Return the exit status, minus the number of the signal that killed it; None while it runs."""
        if self._forked is not None:
            self._forked.join(wait_s)
            return self._forked.exitcode
        assert self._started is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.wait(wait_s)
        return self._started.returncode


def _forked(argv: list[str], log: str | None) -> None:
    """Run `python -m launch` in a forked process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if log is not None:
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.exit(launcher.main(argv))


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


def _folders(demo: DemoConfig) -> dict[str, Path]:
    """Return stage -> its output folder."""
    return {command: stages.folders(command, demo.out, demo.data)["output_dir"] for command in demo.stages()}


def _summary(demo: DemoConfig, table: list[str], seconds: float, peak: int, lengths: Lengths | None) -> str:
    """Return times and memory of the stages, the folders that they have written, and the verdict of the evaluation."""
    outputs = _folders(demo)
    outputs |= {"samples": outputs["generate"] / "grid.png", "report": outputs["evaluate"] / "report.html"}
    outputs["page"] = demo.out / demo_page.FILE
    lines = ["", "=== summary ===", *table, f"  {'all':12s} {seconds:7.1f} s   {peak / 1e9:5.2f} GB at most", ""]
    lines += [f"  {name:14s} {path}" for name, path in outputs.items() if path.exists()]
    lines.append("")
    if lengths is not None and (short := lengths.too_short()):
        saw = " and ".join(
            f"{command} saw {samples} samples, not {least}" for command, (samples, least) in short.items()
        )
        lines.append(
            f"This machine is too slow for this budget: {saw}, the least that say anything about the method. Give it "
            "more time, for example make demo MINUTES=30 OUT=runs/longer."
        )
    metrics = json.loads((outputs["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    return "\n".join([*lines, *metrics["verdict"]["sentences"]])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # stages print in step with us when the output is a file
    sys.exit(main(sys.argv[1:]))
