"""`mdaug evaluate`: what the synthetic images are worth, in numbers, pictures and three sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shards import provenance
from shards.errors import UserError

IDENTITY = "evaluation.json"


@dataclass
class EvaluateConfig:
    """Judge synthetic images by what they do for a classifier of held-out real ones; writes report.html."""

    data_dir: Path
    """Packed real images (`mdaug pack`) that the generator was trained on; its val split is the judge."""
    synthetic_dir: Path
    """Synthetic shards (`mdaug generate`) of a generator trained on data_dir."""
    output_dir: Path
    """Folder for report.html, metrics.json and the pictures; the same command again resumes or shows it."""
    vqvae_path: Path | None = None
    """VQ-VAE (run folder or diffusers folder) whose reconstructions of held-out images are measured; none: not measured."""
    n_real_per_class: list[int | Literal["all"]] = field(default_factory=lambda: [10, "all"])
    """Real training images per class that a classifier sees, ascending, such as [10, 50, all]."""
    seeds: int = 3
    """Classifiers per arm; each seed has its own real subset, initial weights and order."""
    steps: int = 400
    """Optimizer steps of every classifier, the same in every arm."""
    batch_size: int = 32
    """Images per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of the classifier (AdamW, one cycle)."""
    image_size: int = 64
    """Side in pixels of the images that the classifier sees; a multiple of 16."""
    max_per_class: int = 2000
    """Most images per class taken from each of train, val and synthetic; they are held in memory."""

    def __post_init__(self):
        for name in ("seeds", "steps", "batch_size", "max_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of 16, such as 64")
        numbers = [float("inf") if n == "all" else n for n in self.n_real_per_class]
        if not numbers or numbers[0] < 1 or any(a >= b for a, b in zip(numbers, numbers[1:], strict=False)):
            raise ValueError(
                f"n_real_per_class is {self.n_real_per_class}; it must be ascending numbers from 1, 'all' last, "
                "such as [10, all]"
            )


def evaluate(config: EvaluateConfig) -> dict:
    """Run what is not done yet of an evaluation, write its report, print the summary and return the metrics.

    Raises:
        UserError: the synthetic images or the VQ-VAE do not come from data_dir, classes or shapes differ, a split is
            missing, or the output folder holds something else.
    """
    from mdaug.evaluation import report

    made_from = _check_origin(config)
    if _claim(config, made_from):
        metrics = json.loads((config.output_dir / report.METRICS).read_text(encoding="utf-8"))
        print(f"{config.output_dir} holds this evaluation already, finished; delete the folder to run it again.")
        print(report.summary(metrics, config.output_dir))
        return metrics
    metrics = _measure(config, made_from)
    provenance.write(
        config.output_dir,
        kind="evaluation",
        content_hash=provenance.hash_files([config.output_dir / report.METRICS]),
        made_from=made_from,
        config=_as_dict(config),
    )
    print(report.summary(metrics, config.output_dir))
    return metrics


def _measure(config: EvaluateConfig, made_from: dict[str, str]) -> dict:
    from tqdm import tqdm

    from mdaug.evaluation import data, pictures, reconstruction, report, usefulness
    from mdaug.evaluation.memorization import memorization
    from mdaug.evaluation.verdict import verdict

    def load(folder: Path) -> data.ImageSet:
        return data.load(folder, image_size=config.image_size, max_per_class=config.max_per_class)

    train, held_out, synthetic = load(config.data_dir / "train"), load(config.data_dir / "held_out"), load(config.synthetic_dir)
    classes = train.dataset.classes
    _check_alike(config, train, synthetic)

    jobs = usefulness.plan(config.n_real_per_class, config.seeds)
    print(f"{len(jobs)} classifiers of {config.steps} steps", file=sys.stderr)
    results = []
    for job in tqdm(jobs, desc="classifiers", unit="job", disable=None):
        result = _cached(
            config.output_dir / "results" / f"{job.name}.json",
            lambda job=job: usefulness.run(
                job,
                train,
                held_out,
                synthetic,
                steps=config.steps,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
            ),
        )
        results.append(result)
        if not sys.stderr.isatty():
            hits = sum(a == b for a, b in zip(result["predictions"], held_out.labels.tolist(), strict=True))
            print(f"  {job.name}: {100 * hits / len(held_out):.1f} %", file=sys.stderr, flush=True)

    reconstructed = None
    if config.vqvae_path is not None:
        vqvae_path = config.vqvae_path

        def reconstruct() -> dict:
            figures, strips = reconstruction.reconstruction(vqvae_path, held_out, batch_size=config.batch_size)
            pictures.save(config.output_dir / report.RECONSTRUCTION, pictures.strips(strips, figures["classes"]))
            return figures

        reconstructed = _cached(config.output_dir / "results" / "reconstruction.json", reconstruct)

    metrics = {
        "data": {
            "classes": classes,
            "image_shape": list(train.original(0).shape),
            "train": train.counts(),
            "held_out": held_out.counts(),
            "held_out_groups": len(set(held_out.groups)),
            "synthetic": synthetic.counts(),
            "in_folders": [len(part.dataset) for part in (train, held_out, synthetic)],
            "made_from": made_from,
        },
        "config": _as_dict(config),
        "usefulness": usefulness.summarize(results, held_out, synthetic),
        "memorization": memorization(train, held_out, synthetic),
        "reconstruction": reconstructed,
    }
    metrics = {"verdict": verdict(metrics), **metrics}
    pictures.save(config.output_dir / report.GRID, pictures.real_and_synthetic(held_out, synthetic))
    pictures.save(config.output_dir / report.PAIRS, pictures.pairs(synthetic, train, metrics["memorization"]["pairs"]))
    report.write(config.output_dir, metrics)
    return metrics


def _check_origin(config: EvaluateConfig) -> dict[str, str]:
    """Return role -> hash of all inputs after refusing a generator or VQ-VAE that was trained on other images."""
    images = provenance.read(config.data_dir, "images")
    synthetic = provenance.read(config.synthetic_dir, "synthetic")
    made_from = {"images": images["hash"], "synthetic": synthetic["hash"]}
    provenance.require_same(
        "images", config.data_dir, images["hash"], config.synthetic_dir, synthetic["made_from"]["images"]
    )
    if config.vqvae_path is not None:
        best = config.vqvae_path / "best"
        vqvae = provenance.read(best if best.is_dir() else config.vqvae_path, "vqvae")
        provenance.require_same(
            "images", config.data_dir, images["hash"], config.vqvae_path, vqvae["made_from"]["images"]
        )
        made_from["vqvae"] = vqvae["hash"]
    if not (config.data_dir / "held_out").is_dir():
        raise UserError(f"{config.data_dir} has no val split to judge on; pack it again with a share for val")
    return made_from


def _check_alike(config: EvaluateConfig, train: Any, synthetic: Any) -> None:
    if train.dataset.classes != synthetic.dataset.classes:
        raise UserError(
            f"{config.data_dir} has the classes {', '.join(train.dataset.classes)}, but {config.synthetic_dir} has "
            f"{', '.join(synthetic.dataset.classes)}; generate again with a pipeline trained on this data"
        )
    if train.original(0).shape != synthetic.original(0).shape:
        raise UserError(
            f"{config.data_dir} holds images of shape {train.original(0).shape}, but {config.synthetic_dir} of "
            f"{synthetic.original(0).shape}; generate again with a pipeline trained on this data"
        )


def _claim(config: EvaluateConfig, made_from: dict[str, str]) -> bool:
    """Return whether the output folder holds this very evaluation, finished; refuse one that holds anything else.

    Inputs count by their content and not by their path; the settings count all.
    """
    folder = config.output_dir
    settings = {name: value for name, value in _as_dict(config).items() if not name.endswith(("_dir", "_path"))}
    identity = {"made_from": made_from, "settings": settings}
    path = folder / IDENTITY
    if path.is_file():
        other = json.loads(path.read_text(encoding="utf-8"))
        mine, theirs = ({**record["made_from"], **record["settings"]} for record in (identity, other))
        differing = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
        if differing:
            raise UserError(
                f"{folder} holds another evaluation, of other {', '.join(differing)}; "
                "choose another --output_dir or delete that folder"
            )
        return (folder / provenance.FILE_NAME).is_file()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no evaluation; choose another --output_dir")
    (folder / "results").mkdir(parents=True)
    provenance.write_text(path, json.dumps(identity, indent=2) + "\n")
    return False


def _cached(path: Path, compute: Callable[[], dict]) -> dict:
    """Return the JSON at `path`, computing and writing it if there is none."""
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        provenance.write_text(path, json.dumps(compute()) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def _as_dict(config: EvaluateConfig) -> dict:
    from mdaug.config import as_dict

    return as_dict(config)
