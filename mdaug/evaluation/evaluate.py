"""`mdaug evaluate`: what the synthetic images are worth, in numbers, pictures and three sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mdaug.config import as_dict
from mdaug.evaluation import inputs as folders
from mdaug.evaluation.inputs import PARTS, RESULTS
from shards import atomic, provenance
from shards.errors import UserError
from shards.index import read_index

if TYPE_CHECKING:
    from mdaug.evaluation import measure as parts

COMMANDS = "commands.json"
LOCK = ".lock"  # of the rank that writes the report
Part = Literal["usefulness", "fidelity", "kinematics", "memorization", "reconstruction"]
ALL: tuple[Part, ...] = ("usefulness", "fidelity", "kinematics", "memorization", "reconstruction")


@dataclass
class EvaluateConfig:
    """Judge synthetic images by what they do for a classifier of held-out real ones; writes report.html.

    `mdaug evaluate` measures everything, `mdaug evaluate fidelity` only that; parts add up in one report.
    """

    POSITIONAL: ClassVar[str] = "part"

    data_dir: Path
    """Packed real images (`mdaug pack`) that the generator was trained on; the split test, else val, is the judge."""
    synthetic_dir: Path
    """Synthetic shards (`mdaug generate`) of a generator trained on data_dir."""
    output_dir: Path
    """Folder for report.html, metrics.json and the pictures; the same command again resumes or shows it."""
    vqvae_path: Path | None = None
    """VQ-VAE (run folder or diffusers folder) whose reconstructions of held-out images are measured; optional."""
    simulated_dir: Path | None = None
    """Packed images of a simulator with the same classes: the arm "real + simulated"; optional."""
    part: Literal["all", Part] = "all"
    """What to measure; 'mdaug evaluate fidelity' is short for --part=fidelity."""
    n_real_per_class: list[int | Literal["all"]] = field(default_factory=lambda: [5, 10, 20, 50, "all"])
    """Real training images per class that a classifier sees, ascending, such as [10, 50, all]."""
    synthetic_per_real: list[int | Literal["all"]] = field(default_factory=lambda: [1, 2, 5, 10])
    """Synthetic images per real one, ascending, as far as there are so many; all: every one, whatever the number."""
    classifier: str = "small"
    """small: a ResNet of 0.1 million weights from scratch; or the name of a timm model, also from scratch."""
    seeds: int = 3
    """Classifiers per arm; each seed has its own real subset, initial weights and order."""
    steps: int = 300
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
        for name, least in (("seeds", 1), ("steps", 1), ("batch_size", 1), ("max_per_class", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.batch_size > 4096:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at most 4096")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be at least 0")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and at most 1")
        if not 16 <= self.image_size <= 1024 or self.image_size % 16:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of 16 up to 1024, such as 64")
        for name, least in (("n_real_per_class", 1), ("synthetic_per_real", 0)):
            numbers = [float("inf") if n == "all" else n for n in getattr(self, name)]
            if not numbers or numbers[0] < least or any(a >= b for a, b in pairwise(numbers)):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be ascending numbers from {least}, 'all' last, "
                    "such as [10, all]"
                )
        if self.synthetic_per_real == [0]:
            raise ValueError("synthetic_per_real is [0]; at least one number above 0 is needed")
        if self.part == "reconstruction" and self.vqvae_path is None:
            raise ValueError("part is 'reconstruction', which measures a VQ-VAE; name it by --vqvae_path")

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds something else, or inputs that are there do not belong together."""
        made_from = folders.check_origin(self) if inputs_there else {}
        if inputs_there:
            folders.check_alike(self)
            _measurable(self)
            folders.held_out(self.data_dir)
            if self.classifier != "small":
                from mdaug.measures.classifier import build

                train = read_index(self.data_dir / "train")
                build(self.classifier, train["image_shape"][2], len(train["classes"]), self.image_size)
        folders.refuse_others(self, made_from)

    @property
    def wanted(self) -> tuple[Part, ...]:
        """The parts to measure, in order."""
        if self.part != "all":
            return (self.part,)
        return ALL if self.vqvae_path is not None else ALL[:-1]


def evaluate(config: EvaluateConfig) -> dict | None:
    """Run what is not done yet of an evaluation, write its report, print the summary and return the metrics.

    Of several ranks all but the last to finish return None.

    Raises:
        UserError: the synthetic images or the VQ-VAE do not come from data_dir, classes or shapes differ, a split is
            missing, or the output folder holds something else.
    """
    from mdaug.evaluation.report import page as report

    made_from = folders.check_origin(config)
    folders.check_alike(config)
    wanted = _measurable(config)
    folders.claim(config, made_from)
    files = {part: config.output_dir / PARTS / f"{part}.json" for part in ALL}
    if _finished(config, files, wanted):
        print(f"{config.output_dir} holds this evaluation already, finished; delete the folder to run it again.")
        metrics = json.loads((config.output_dir / report.METRICS).read_text(encoding="utf-8"))
    else:
        done = _measure(config, made_from, files, wanted)
        if done is None:
            print("this rank is done; the last rank to finish writes the report", flush=True)
            return None
        metrics = done
    print(report.summary(metrics, config.output_dir))
    return metrics


def _finished(config: EvaluateConfig, files: dict[Part, Path], wanted: tuple[Part, ...]) -> bool:
    record = config.output_dir / provenance.FILE_NAME
    return record.is_file() and all(files[part].is_file() for part in wanted)


def _measure(
    config: EvaluateConfig, made_from: dict[str, str], files: dict[Part, Path], wanted: tuple[Part, ...]
) -> dict | None:
    """Do this rank's share, and if it ends last the rest too; return the metrics, or None where another rank does.

    Ranks that end in the same moment both find all shares done. One of them writes; the other waits, goes on in its
    place should it die, and otherwise finds the report.
    """
    from mdaug import distributed
    from mdaug.evaluation import measure as parts
    from mdaug.measures import image_set

    distributed.device()  # "cuda" is the GPU of this rank from here on
    places: dict[str, Path | None] = {
        "train": config.data_dir / "train",
        "held_out": folders.held_out(config.data_dir),
        "synthetic": config.synthetic_dir,
        "simulated": config.simulated_dir and config.simulated_dir / "train",
    }
    sets = {
        name: folder and image_set.load(folder, image_size=config.image_size, max_per_class=config.max_per_class)
        for name, folder in places.items()
    }
    inputs = parts.Inputs(config=config, results=config.output_dir / RESULTS, **sets)  # type: ignore[arg-type]
    missing = [part for part in wanted if not files[part].is_file()]
    if not parts.share(inputs, missing):
        return None
    with atomic.locked(config.output_dir / LOCK):
        return None if _finished(config, files, wanted) else _write(inputs, made_from, files, wanted)


def _write(inputs: parts.Inputs, made_from: dict[str, str], files: dict[Part, Path], wanted: tuple[Part, ...]) -> dict:
    """Measure the parts that are wanted and not there yet, and write the report of all that are there."""
    from mdaug.evaluation import measure as parts
    from mdaug.evaluation.report import page as report
    from mdaug.evaluation.report import pictures
    from mdaug.evaluation.report.verdict import targets, verdict

    config = inputs.config
    (config.output_dir / provenance.FILE_NAME).unlink(missing_ok=True)
    missing = [part for part in wanted if not files[part].is_file()]
    # Before the parts, so that none is without its command.
    recorded = config.output_dir / PARTS / COMMANDS
    commands = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
    commands |= dict.fromkeys(missing, report.command(as_dict(config)))
    atomic.write_text(recorded, json.dumps(commands) + "\n")
    for part in missing:
        atomic.write_text(files[part], json.dumps(getattr(parts, part)(inputs)) + "\n")
    train, held_out, synthetic = inputs.train, inputs.held_out, inputs.synthetic
    metrics: dict[str, Any] = {
        "data": {
            "classes": train.dataset.classes,
            "image_shape": list(train.original(0).shape),
            "train": train.counts(),
            "held_out": held_out.counts(),
            "held_out_split": folders.held_out(config.data_dir).name,
            "held_out_groups": len(set(held_out.groups)),
            "synthetic": synthetic.counts(),
            "simulated": inputs.simulated and inputs.simulated.counts(),
            "in_folders": [len(images.dataset) for images in (train, held_out, synthetic)],
            "made_from": made_from,
        },
        "config": as_dict(config),
        "commands": commands,
        **{
            part: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            for part, file in files.items()
        },
    }
    metrics = {"verdict": verdict(metrics), "targets": targets(metrics), **metrics}
    pictures.save(config.output_dir / report.GRID, pictures.real_and_synthetic(held_out, synthetic))
    report.write(config.output_dir, metrics)
    provenance.write(
        config.output_dir,
        kind="evaluation",
        content_hash=provenance.hash_files([config.output_dir / report.METRICS]),
        made_from=made_from,
        config=as_dict(config),
    )
    return metrics


def _measurable(config: EvaluateConfig) -> tuple[Part, ...]:
    """Return the wanted parts that the images allow; UserError where none is left."""
    classes = read_index(config.data_dir / "train")["classes"]
    if len(classes) > 1:
        return config.wanted
    if config.part == "usefulness":
        raise UserError(
            f"{config.data_dir} has one class only ('{classes[0]}'), and a classifier has nothing to tell apart; "
            "measure something else: mdaug evaluate, or evaluate fidelity, kinematics or memorization"
        )
    return tuple(part for part in config.wanted if part != "usefulness")
