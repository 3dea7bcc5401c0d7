"""Options of `mdaug evaluate` and `mdaug reconstruct`. Values and their checks, nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

from shards.validation import at_least, one_of_workers, operational, within

Part = Literal["usefulness", "fidelity", "kinematics", "memorization", "reconstruction"]
ALL: tuple[Part, ...] = ("usefulness", "fidelity", "kinematics", "memorization", "reconstruction")


@dataclass
class ReconstructConfig:
    """Measure a VQ-VAE on held-out images: PSNR, SSIM, MS-SSIM, LPIPS, sharpness, Doppler envelopes, codes."""

    vqvae_path: Path
    """VQ-VAE: the run folder of train-vqvae (its best/) or a diffusers folder."""
    data_dir: Path
    """Packed shards, or an image folder (packed into a cache as train-vqvae did); its test split is measured, else its
    val split."""
    output_dir: Path | None = None
    """Folder of JSON, table and picture strip (default: the folder `reconstruction` in vqvae_path)."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Split to measure; auto: test where there is one, else val."""
    batch_size: int = 16
    """Images that are decoded at once."""
    perceptual_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Backbone of LPIPS, which is measured where its weights are on this machine."""
    perceptual_weights: Path | None = None
    """File of its weights; default: where torch.hub keeps it."""
    preset: str | None = None
    """Name over the table of goals, such as the preset that the VQ-VAE was trained with (default: vqvae_path)."""

    ALIASES: ClassVar[dict[str, str]] = {"data": "data_dir"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        at_least(self, 1, "batch_size")
        if self.output_dir is None:
            self.output_dir = self.vqvae_path / "reconstruction"


@dataclass
class EvaluateConfig:
    """Judge synthetic images by what they do for a classifier of held-out real ones; writes report.html.

    `mdaug evaluate` measures everything, `mdaug evaluate fidelity` only that; parts add up in one report.
    """

    POSITIONAL: ClassVar[str] = "part"

    data_dir: Path = operational()
    """Packed real images (`mdaug pack`) that the generator was trained on; the split test, else val, is the judge."""
    synthetic_dir: Path = operational()
    """Synthetic shards (`mdaug generate`) of a generator trained on data_dir; real ones among them do not count."""
    output_dir: Path = operational()
    """Folder for report.html, metrics.json and the pictures; the same command again resumes or shows it."""
    vqvae_path: Path | None = operational(None)
    """VQ-VAE (run folder or diffusers folder) whose reconstructions of held-out images are measured; optional."""
    simulated_dir: Path | None = operational(None)
    """Packed images of a simulator with the same classes: the arm "real + simulated"; optional."""
    aux_dir: Path | None = operational(None)
    """Packed images of other classes (other persons, sites, sensors): arms that add them to every batch; optional."""
    like_with_like: Path | None = operational(None)
    """Folder of generators that saw a subset only, each a folder with packed (`mdaug pack --train_per_class N --subset
    S`) and synthetic: arms in which generator and classifier saw the same real images; optional."""
    part: Literal["all", Part] = operational("all")
    """What to measure; 'mdaug evaluate fidelity' is short for --part=fidelity."""
    n_real_per_class: list[int | Literal["all"]] = field(default_factory=lambda: [5, 10, 20, 50, "all"])
    """Real training images per class that a classifier sees, ascending, such as [10, 50, all]."""
    synthetic_per_real: list[int | Literal["all"]] = field(default_factory=lambda: [1, 2, 5, 10])
    """Synthetic images per real one, ascending, as far as there are so many; all: every one, whatever the number."""
    policy: str = operational("today")
    """Transforms of all arms with transforms, the free baseline among them: today (predictions as they are), richer
    (averaged over 8 transformed copies), or the recipe.json that `mdaug augment` wrote."""
    share: float = 0.25
    """Share of each batch that auxiliary images take."""
    same_names: Literal["ask", "same", "other"] = "ask"
    """Classes of one name in data_dir and aux_dir: same: the same class, so that the images keep their labels; other:
    another class."""
    classifier: str = "small"
    """small: a ResNet of 0.1 million weights from scratch; or the name of a timm model, also from scratch. Several with
    commas, such as small,resnet18: all are shown, the verdict goes by the first."""
    seeds: int = 3
    """Classifiers per arm; each seed has its own real subset, initial weights and order. Subsets are nested: the images
    of a number lie in those of every larger one."""
    steps: int | Literal["settled"] = "settled"
    """Optimizer steps of every classifier; settled: until its training loss has settled, 800 to 3,200 steps."""
    batch_size: int = 32
    """Images per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of the classifier (AdamW, one cycle)."""
    image_size: int = 64
    """Side in pixels of the images that the classifier sees; a multiple of 16."""
    max_per_class: int = 2000
    """Most images per class taken from each of train, held-out and synthetic; they are held in memory."""
    workers: int = operational(0)
    """Processes that train classifiers on CPU, one thread each; 0: one per core. A GPU takes them one by one."""
    worker: int | None = operational(None)
    """Number of this worker, from 0, such as $SLURM_ARRAY_TASK_ID; the launcher's ranks count within it."""
    num_workers: int | None = operational(None)
    """Number of workers that share classifiers and features, such as $SLURM_ARRAY_TASK_COUNT."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        one_of_workers(self)
        at_least(self, 1, "seeds", "steps")
        at_least(self, 2, "max_per_class")
        at_least(self, 0, "workers")
        within(self, "[1, 4096]", "batch_size")
        within(self, "(0, 1]", "learning_rate")
        within(self, "(0, 0.5]", "share")
        within(self, "[16, 1024]", "image_size")
        if self.image_size % 16:
            raise ValueError(f"image_size={self.image_size} must be a multiple of 16")
        for name, least in (("n_real_per_class", 1), ("synthetic_per_real", 0)):
            values = getattr(self, name)
            numbers = [math.inf if value == "all" else value for value in values]
            if not numbers or numbers[0] < least or any(a >= b for a, b in pairwise(numbers)):
                raise ValueError(
                    f"{name}={values} must be ascending numbers of at least {least}, 'all' last, such as [10, all]"
                )
        if self.synthetic_per_real == [0]:
            raise ValueError("synthetic_per_real=[0] must hold at least one number greater than 0")
        if "" in self.classifiers or len(set(self.classifiers)) < len(self.classifiers):
            raise ValueError(f"classifier={self.classifier} must name each kind once, such as small,resnet18")
        if self.part == "reconstruction" and self.vqvae_path is None:
            raise ValueError("part=reconstruction measures a VQ-VAE; name it with --vqvae_path")

    @property
    def classifiers(self) -> list[str]:
        """The kinds of classifier, that of the verdict first."""
        return self.classifier.split(",")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts to measure, in order."""
        if self.part != "all":
            return (self.part,)
        return ALL if self.vqvae_path is not None else ALL[:-1]
