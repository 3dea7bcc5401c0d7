"""All that only a GPU can show, in one command: the tests marked gpu, the benchmarks, a training at 256 pixels.

Each step is a command of its own with a time limit. One that fails or runs out of time is noted, and the next begins.
`results/gpu-<card>.md` tells the machine, every command, what it printed, and each target beside what was measured; it
is written after every part. Presets and lengths of the trainings follow from the card's memory and from --minutes.

    python benchmarks/gpu.py --minutes 60                      # make prove-gpu
    python benchmarks/gpu.py --minutes 25 --only tests,bench   # a short lease; the training another day
    python benchmarks/gpu.py --rehearse                        # toy sizes without a GPU: do all the commands run?
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from gpu_results import ROOT, path_of, write

from launch import stages
from mdaug import cli

SHARES = {"tests": 1.0, "bench": 2.0, "training": 3.0}  # of the minutes; what a part leaves over goes to the next
ALL = ",".join(SHARES)
PRESETS = {"gpu-80gb": 70, "gpu-16gb": 14, "gpu-6gb": 0}  # GB that a card must have
TAIL = 45  # lines of a step's output that the results show
TOY = {  # what a rehearsal adds to a step: the last of two equal flags counts
    "tests": "--collect-only",
    "train_ldm": "--steps=1 --turns=1 --batch_size=2 --mixed_precision=no",
    "train_ldm-zero1": "--steps=1 --turns=1 --batch_size=2 --mixed_precision=no",
    "train_ldm-full-attention": "--steps=1 --turns=1 --batch_size=2 --mixed_precision=no",
    "memory-gpu-16gb": "--steps=1 --turns=1 --batch_size=2 --mixed_precision=no --config=demo",
    "memory-gpu-6gb": "--steps=1 --turns=1 --batch_size=2 --mixed_precision=no --config=demo",
    "train_vqvae": "--steps=1 --turns=1 --batch_size=2 --mixed_precision=no --image_size=32",
    "generate-50": "--steps=2 --images=4 --workers=1 --batch_size=2 --mixed_precision=no",
    "generate-few": "--steps=2 --images=4 --workers=1 --batch_size=2 --mixed_precision=no",
    "generate-2-calls": "--images=4 --workers=1 --batch_size=2 --mixed_precision=no",
    "simulate": "--num_persons=2 --images_per_class=24",
    "train-vqvae-trial": "--batch_size=4 --train_samples=4 --vq_num_embed=16",
    "train-vqvae": "--batch_size=4 --train_samples=8 --vq_num_embed=16",
    "train-ldm-trial": "--batch_size=4 --train_samples=4 --num_inference_steps=2",
    "train-ldm": "--batch_size=4 --train_samples=8 --num_inference_steps=2",
    "generate": "--num_samples=8 --batch_size=4 --samples_per_shard=4 --num_inference_steps=4",
    "evaluate": "--seeds=1 --steps=2 --image_size=16",
}


def card() -> dict[str, Any]:
    """Return name, memory and measured speed of this machine's GPU, or of its CPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    device, size = ("cuda", 8192) if on_gpu else ("cpu", 256)
    low = on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False)
    a = torch.randn(size, size, device=device, dtype=torch.float16 if low else torch.bfloat16)
    rates = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(20):
            a @ a
        if on_gpu:
            torch.cuda.synchronize()
        rates.append(20 * 2 * size**3 / (time.perf_counter() - begun) / 1e12)
    name = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU"
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else psutil.virtual_memory().total
    about = {"name": name, "count": torch.cuda.device_count(), "memory_gb": memory / 1e9}
    return {**about, "low": "fp16" if low else "bf16", "tflop_s": max(rates)}


def execute(command: list[str], log: Path, limit: float) -> tuple[str, str]:
    """Run python with its output into a file; return ("ok" or what went wrong, the output)."""
    with open(log, "wb") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            said = "ok" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            said = f"stopped after its {limit:.0f} s"
        finally:
            for number, grace in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):  # whoever is left of its session
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(grace)
    return said, log.read_text(encoding="utf-8", errors="replace")


class Proof:
    """Runs the steps and keeps what they gave."""

    def __init__(self, options: argparse.Namespace):
        self.rehearse, self.out = options.rehearse, options.out
        self.parts = "" if options.only == ALL else options.only
        self.out.mkdir(parents=True, exist_ok=True)
        self.steps: list[dict[str, Any]] = []
        self.end = self.part_end = time.monotonic() + 60 * options.minutes
        self.card = last_json(self.run("card", ["benchmarks/gpu.py", "--card"]))
        if self.card is None or not (self.card["count"] or self.rehearse):
            raise SystemExit("error: torch sees no GPU here; --rehearse tries all the commands at toy size without one")
        memory = self.card["memory_gb"]
        found = next(preset for preset, least in PRESETS.items() if memory >= least)
        self.preset = options.preset or ("demo" if self.rehearse else found)
        self.results: dict[str, Any] = {"card": self.card, "preset": self.preset}

    def run(self, name: str, command: list[str], share: float = 1.0) -> str | None:
        """Run a step in at most a share of the time left for its part; return its output, None if it did not end well.

        Args:
            name: of the step and its log.
            command: what follows `python`.
            share: in (0, 1].
        """
        if self.rehearse:
            command = [word for word in command if word != "--compile"] + TOY.get(name, "").split()
        limit = max(0.0, share * (self.part_end - time.monotonic()))
        print(f"\n=== {name}, at most {limit:.0f} s: {shlex.join(['python', *command])}", flush=True)
        begun = time.monotonic()
        said, text = execute(command, self.out / f"{name}.log", limit) if limit >= 1 else ("no time left", "")
        seconds, tail = time.monotonic() - begun, text.rstrip().splitlines()[-TAIL:]
        print("\n".join([*tail[-8:], f"--- {name}: {said}, {seconds:.0f} s"]), flush=True)
        self.steps.append({"name": name, "command": command, "said": said, "seconds": seconds, "tail": tail})
        return text if said == "ok" else None

    def begin(self, part: str, left: list[str]) -> None:
        """Give a part its share of the time that is left."""
        now = time.monotonic()
        self.part_end = now + (self.end - now) * SHARES[part] / sum(SHARES[name] for name in left)

    def write(self) -> list[str]:
        """Write the results so far and return the table of targets."""
        path = self.out / "rehearsal.md" if self.rehearse else path_of(self.card, self.parts)
        return [*write(path, self.results, self.steps, self.rehearse), "", str(path)]

    def tests(self) -> None:
        """Ask what only a card can answer, then run the tests that need a GPU."""
        self.results["checks"] = last_json(self.run("checks", ["benchmarks/gpu_checks.py"], 0.4))
        self.run("tests", ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rfEs", "tests"])
        counts = [line for line in self.steps[-1]["tail"] if re.search("(passed|failed|errors?).* in ", line)]
        self.results["tests"] = "".join(counts[-1:])

    def bench(self) -> None:
        """Run the benchmarks with the networks of the card's preset."""
        low = f"--mixed_precision={self.card['low']}"
        config, often = f"--config={self.preset}", ["--steps=20", "--turns=3"]
        ldm = ["benchmarks/train_ldm.py", config, low, *often]
        vqvae = ["benchmarks/train_vqvae.py", config, low, *often]
        together = "--batch_size=64,256" if self.preset == "gpu-80gb" else "--batch_size=32"
        sampling = ["benchmarks/generate.py", config, low, together, "--images=512", "--turns=1", "--compile"]
        small = ["benchmarks/train_ldm.py", "--mixed_precision=fp16", *often, "--only"]
        steps = {
            "train_ldm": [*ldm, "--compile"],
            "generate-50": [*sampling, "--steps=50"],
            "train_ldm-zero1": [*ldm, "--zero_stage=1", "--only", "latents"],
            "generate-few": [*sampling, "--steps=8,20", "--scheduler_type=ddim,ddpm"],
            "generate-2-calls": [*sampling, "--steps=2", "--scheduler_type=lcm"],
            "train_vqvae": [*vqvae, "--compile"],
            "memory-gpu-16gb": [*small, "--config=gpu-16gb"],
            "memory-gpu-6gb": [*small, "--config=gpu-6gb"],
            "train_ldm-full-attention": [*ldm, "--compile", "--attention=full", "--only"],
        }
        for done, (name, command) in enumerate(steps.items()):
            share = min(1.0, 2 / (len(steps) - done))
            text = self.run(name, command, share)
            if text is None and "--compile" in command and not self.rehearse:  # such as where no C compiler is
                text = self.run(f"{name}-plain", [word for word in command if word != "--compile"], share)
            self.results[name] = last_json(text)

    def training(self) -> None:
        """Train, sample and judge on simulated walking persons, as long as the time allows; raises NotWell."""
        runs = self.out / "runs"
        data, vqvae = f"--data_dir={runs}/packed", f"--vqvae_path={runs}/vqvae"
        self.stage("simulate", "--preset=gait-persons", f"--output_dir={runs}/images")
        size = f"--image_size={self.setting('train-vqvae', 'image_size')}"
        self.stage("pack", size, "--image_mode=level", f"--data_dir={runs}/images", f"--output_dir={runs}/packed")
        self.train("train-vqvae", 0.4, [data, "--lr=4e-4", "--lr_schedule=cosine", *without_missing_weights()], "vqvae")
        self.stage("reconstruct", data, vqvae, f"--preset={self.preset}")
        self.results["reconstruct"] = read(runs / "vqvae" / "reconstruction" / "reconstruction.json")
        self.stage("encode", data, vqvae, f"--output_dir={runs}/latents")
        further = [f"--latents_dir={runs}/latents", "--lr=2e-4", "--warmup_steps=100", "--dropout=0.05"]
        self.train("train-ldm", 0.6, [data, vqvae, *further], "ldm")
        many = ["--num_samples=1000", "--batch_size=50", "--samples_per_shard=200", "--guidance_scale=1.5"]
        self.stage("generate", f"--ldm_path={runs}/ldm", f"--output_dir={runs}/synthetic", *many)
        judge = ["--n_real_per_class=[all]", "--synthetic_per_real=[all]", "--seeds=3", "--steps=400"]
        folders = [f"--synthetic_dir={runs}/synthetic", f"--output_dir={runs}/evaluation"]
        self.stage("evaluate", data, vqvae, *folders, *judge)
        self.results["evaluate"] = read(runs / "evaluation" / "metrics.json")

    def stage(self, command: str, *flags: str, share: float = 1.0, name: str | None = None) -> None:
        """Run a command of mdaug with the preset; raises NotWell."""
        preset = [] if command == "simulate" else [f"--config={self.preset}"]
        if self.run(name or command, ["-m", "mdaug", command, *preset, *flags], share) is None:
            raise NotWell

    def train(self, command: str, share: float, flags: list[str], folder: str) -> None:
        """Train for a share of the time left: a trial tells the speed, and so how many samples that makes."""
        batch = self.setting(command, "batch_size") * self.setting(command, "gradient_accumulation_steps")
        flags, runs = [*flags, "--early_stop_patience=0", "--logging_steps=10"], self.out / "runs"
        trial = [f"--train_samples={30 * batch}", "--save_images=false", f"--output_dir={runs}/{folder}-trial"]
        self.stage(command, *flags, *trial, share=0.5, name=f"{command}-trial")
        seconds = 0.75 * share * (self.part_end - time.monotonic())  # the rest: start, validations, pictures
        samples = batch * max(30, int(seconds * speeds(runs / f"{folder}-trial")[-1]["img_s"] / batch))
        length = [f"--train_samples={samples}", f"--val_samples={-(-samples // 4)}", f"--save_samples={samples}"]
        try:
            self.stage(command, *flags, *length, f"--output_dir={runs}/{folder}")
        finally:
            log = self.out / f"{command}.log"
            said = re.search(r"memory: about ([\d.]+) GB", log.read_text(encoding="utf-8") if log.is_file() else "")
            memory = [record["memory_gb"] for record in speeds(runs / folder)]
            self.results[command] = {
                "estimate_gb": float(said[1]) if said else None,
                "memory_gb": max(memory, default=None),
            }

    def setting(self, command: str, name: str) -> Any:
        """Return the value of an option under the preset."""
        return getattr(cli.parse(command, stages.flags(command, self.out, preset=self.preset)), name)


class NotWell(Exception):
    """A step did not end well, so those that need what it makes cannot begin."""


def last_json(text: str | None) -> Any:
    """Return the JSON line of a benchmark, None without one; libraries may have their say after it."""
    found = [line for line in (text or "").splitlines() if line.startswith("{")]
    return json.loads(found[-1]) if found else None


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def speeds(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a training that tell its speed, none where it did not come so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for record in map(json.loads, lines) if "img_s" in record]


def without_missing_weights() -> list[str]:
    """Return what switches LPIPS off where its weights are not on this machine; the results show the flag."""
    cache = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    return [] if (cache / "hub" / "checkpoints" / "vgg16-397923af.pth").is_file() else ["--use_perceptual=false"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="for all parts together")
    parser.add_argument("--only", default=ALL, help="parts to run, such as tests,bench")
    parser.add_argument("--preset", help="default: the largest of gpu-80gb, gpu-16gb and gpu-6gb that fits the card")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="new folder for logs and trainings")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes, also without a GPU; nothing is judged")
    parser.add_argument("--card", action="store_true", help="print what the card is and end")
    options = parser.parse_args()
    if options.card:
        print(json.dumps(card()))
        return 0
    parts = options.only.split(",")
    if unknown := set(parts) - set(SHARES):
        parser.error(f"--only {','.join(sorted(unknown))}: the parts are {', '.join(SHARES)}")
    options.out = options.out.resolve()
    if options.out.is_dir() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; name a new folder with --out")
    if options.rehearse:  # on one core: threads that wait for each other cost a busy machine most
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    proof = Proof(options)
    for number, part in enumerate(parts):
        proof.begin(part, parts[number:])
        try:
            getattr(proof, part)()
        except NotWell:
            print(f"--- {part} ends here")
        except Exception as error:  # what a file of results lacks must not cost the other parts
            proof.steps.append({"name": part, "command": [], "said": repr(error), "seconds": 0.0, "tail": []})
        said = proof.write()
    failed = [step["name"] for step in proof.steps if step["said"] != "ok"]
    print("\n".join(["", *said, f"not ended well: {', '.join(failed) or 'none'}"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
