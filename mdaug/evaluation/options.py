"""Options of `mdaug evaluate` and `mdaug reconstruct`. Values and their checks, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

from shards.validation import operational

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
    """Name over the table of targets, such as the preset that the VQ-VAE was trained with (default: vqvae_path)."""

    ALIASES: ClassVar[dict[str, str]] = {"data": "data_dir"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.batch_size <= 0:
            raise ValueError(f"batch_size={self.batch_size} must be greater than 0")
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
    """Synthetic shards (`mdaug generate`) of a generator trained on data_dir."""
    output_dir: Path = operational()
    """Folder for report.html, metrics.json and the pictures; the same command again resumes or shows it."""
    vqvae_path: Path | None = operational(None)
    """VQ-VAE (run folder or diffusers folder) whose reconstructions of held-out images are measured; optional."""
    simulated_dir: Path | None = operational(None)
    """Packed images of a simulator with the same classes: the arm "real + simulated"; optional."""
    part: Literal["all", Part] = operational("all")
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
    workers: int = operational(0)
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

    @property
    def wanted(self) -> tuple[Part, ...]:
        """The parts to measure, in order."""
        if self.part != "all":
            return (self.part,)
        return ALL if self.vqvae_path is not None else ALL[:-1]
