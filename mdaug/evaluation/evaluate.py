"""`mdaug evaluate`: what the synthetic images are worth, in numbers, pictures and three sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mdaug.config import as_dict, dump, save
from shards import provenance
from shards.errors import UserError

if TYPE_CHECKING:
    from mdaug.evaluation.data import ImageSet

IDENTITY, RESULTS = "evaluation.json", "results"


@dataclass
class EvaluateConfig:
    """Judge synthetic images by what they do for a classifier of held-out real ones; writes report.html."""

    data_dir: Path
    """Packed real images (`mdaug pack`) that the generator was trained on; the split test, else val, is the judge."""
    synthetic_dir: Path
    """Synthetic shards (`mdaug generate`) of a generator trained on data_dir."""
    output_dir: Path
    """Folder for report.html, metrics.json and the pictures; the same command again resumes or shows it."""
    vqvae_path: Path | None = None
    """VQ-VAE (run folder or diffusers folder) whose reconstructions of held-out images are measured; optional."""
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
    """Most images per class taken from each of train, held-out and synthetic; they are held in memory."""
    workers: int = 0
    """Processes that train classifiers on CPU, one thread each; 0: one per core. A GPU takes them one by one."""

    def __post_init__(self):
        for name in ("seeds", "steps", "batch_size", "max_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be at least 0")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of 16, such as 64")
        numbers = [float("inf") if n == "all" else n for n in self.n_real_per_class]
        if not numbers or numbers[0] < 1 or any(a >= b for a, b in pairwise(numbers)):
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
    _check_alike(config)
    if _claim(config, made_from):
        print(f"{config.output_dir} holds this evaluation already, finished; delete the folder to run it again.")
        metrics = json.loads((config.output_dir / report.METRICS).read_text(encoding="utf-8"))
    else:
        metrics = _measure(config, made_from)
        provenance.write(
            config.output_dir,
            kind="evaluation",
            content_hash=provenance.hash_files([config.output_dir / report.METRICS]),
            made_from=made_from,
            config=as_dict(config),
        )
    print(report.summary(metrics, config.output_dir))
    return metrics


def _measure(config: EvaluateConfig, made_from: dict[str, str]) -> dict:
    from mdaug.evaluation import data, jobs, pictures, report, usefulness
    from mdaug.evaluation.memorization import memorization
    from mdaug.evaluation.verdict import verdict

    folders = (config.data_dir / "train", _held_out(config.data_dir), config.synthetic_dir)
    train, held_out, synthetic = (
        data.load(folder, image_size=config.image_size, max_per_class=config.max_per_class) for folder in folders
    )
    results = jobs.run_all(
        usefulness.plan(config.n_real_per_class, config.seeds),
        config.output_dir / RESULTS,
        config.workers,
        train=train,
        held_out=held_out,
        synthetic=synthetic,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
    )
    memory = memorization(train, held_out, synthetic)
    metrics: dict[str, Any] = {
        "data": {
            "classes": train.dataset.classes,
            "image_shape": list(train.original(0).shape),
            "train": train.counts(),
            "held_out": held_out.counts(),
            "held_out_split": folders[1].name,
            "held_out_groups": len(set(held_out.groups)),
            "synthetic": synthetic.counts(),
            "in_folders": [len(part.dataset) for part in (train, held_out, synthetic)],
            "made_from": made_from,
        },
        "config": as_dict(config),
        "usefulness": usefulness.summarize(results, held_out, synthetic),
        "memorization": memory,
        "reconstruction": _reconstruct(config, held_out),
    }
    metrics = {"verdict": verdict(metrics), **metrics}
    pictures.save(config.output_dir / report.GRID, pictures.real_and_synthetic(held_out, synthetic))
    pictures.save(config.output_dir / report.PAIRS, pictures.pairs(synthetic, train, memory["pairs"]))
    report.write(config.output_dir, metrics)
    return metrics


def _reconstruct(config: EvaluateConfig, held_out: ImageSet) -> dict | None:
    from mdaug.evaluation import pictures, report
    from mdaug.evaluation.reconstruction import reconstruction

    if config.vqvae_path is None:
        return None
    path = config.output_dir / RESULTS / "reconstruction.json"
    if not path.is_file():
        figures, strips = reconstruction(config.vqvae_path, held_out, batch_size=config.batch_size)
        pictures.save(config.output_dir / report.RECONSTRUCTION, pictures.strips(strips, figures["classes"]))
        provenance.write_text(path, json.dumps(figures) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def _held_out(data_dir: Path) -> Path:
    """Return the split that judges: `test` where there is one, since `val` had a say in which weights are the best."""
    for split in ("test", "val"):
        if (data_dir / split / "index.json").is_file():
            return data_dir / split
    raise UserError(f"{data_dir} has no val split to judge on; pack the images again, into more than one group a class")


def _check_origin(config: EvaluateConfig) -> dict[str, str]:
    """Return role -> hash of all inputs after refusing a generator or VQ-VAE that was trained on other images."""
    images = provenance.read(config.data_dir, "images")
    made_from = {"images": images["hash"]}
    inputs = {"synthetic": config.synthetic_dir}
    if config.vqvae_path is not None:
        best = config.vqvae_path / "best"
        inputs["vqvae"] = best if best.is_dir() else config.vqvae_path
    for kind, folder in inputs.items():
        record = provenance.read(folder, kind)
        provenance.require_same("images", config.data_dir, images["hash"], folder, record["made_from"]["images"])
        made_from[kind] = record["hash"]
    return made_from


def _check_alike(config: EvaluateConfig) -> None:
    """Refuse synthetic images of other classes or another shape than the real ones."""
    from shards.dataset import ShardDataset

    real, synthetic = ShardDataset(config.data_dir / "train"), ShardDataset(config.synthetic_dir)
    if not (len(real) and len(synthetic)):
        raise UserError(f"{config.data_dir / 'train'} or {config.synthetic_dir} holds no images; make it again")
    for what, mine, other in (
        ("classes", real.classes, synthetic.classes),
        ("images of (height, width, channels)", real[0]["image"].shape, synthetic[0]["image"].shape),
    ):
        if mine != other:
            raise UserError(
                f"{config.data_dir} and {config.synthetic_dir} do not belong together: they hold {what} {mine} and "
                f"{other}; generate again with a pipeline trained on {config.data_dir}"
            )


def _claim(config: EvaluateConfig, made_from: dict[str, str]) -> bool:
    """Return whether the output folder holds this very evaluation, finished; refuse one that holds anything else.

    Inputs count by their content and not by their path; the settings count all.
    """
    folder = config.output_dir
    settings = {k: v for k, v in as_dict(config).items() if not k.endswith(("_dir", "_path")) and k != "workers"}
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
    (folder / RESULTS).mkdir(parents=True)
    print(dump(config), end="")
    save(config, folder / "config.yaml")
    provenance.write_text(path, json.dumps(identity, indent=2) + "\n")
    return False
