"""Options of `mdaug augment`. Values and their checks, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shards.validation import ascending, at_least, multiple_of, one_capture_group, one_of_workers, operational, within


@dataclass
class AugmentConfig:
    """Find out how to train a classifier on few images: transforms, auxiliary and generated images, as the data decide.

    Everything is chosen by cross-validation over groups of the training images; the held-out images are looked at once,
    at the end.
    """

    data_dir: Path = operational()
    """Packed images (`mdaug pack`), or an image folder, which is packed first."""
    output_dir: Path = operational()
    """Folder for recipe.json, report.html, classifier and predict.py; the same command again resumes or shows it."""
    aux_dir: Path | None = operational(None)
    """Images of other persons, sites or sensors, of the same classes or of others (see same_names), packed or an image
    folder; optional."""
    synthetic_dir: Path | None = operational(None)
    """Synthetic shards (`mdaug generate`) of a generator trained on data_dir; optional."""
    unlabelled_dir: Path | None = operational(None)
    """Images whose class is not known, packed or an image folder, to be labelled by a classifier; optional."""
    generate: bool = False
    """Also train a generator for each fold, which never sees it, and try its images; off by default, since it takes
    minutes for each."""
    generator: str = "few"
    """With generate: preset of these generators and of their sampling, a name or a YAML file."""
    init_from: Path | None = operational(None)
    """With generate: folder of a base model (`make base`), with vqvae/ and ldm/ in it, which the generators start from:
    its VQ-VAE as it is, its U-Net trained a third as long."""
    same_names: Literal["ask", "same", "other"] = "ask"
    """Classes of one name in data_dir and aux_dir: same: the same class, so that the images keep their labels; other:
    another class."""
    aux_domains: str | None = None
    """With same_names same: of which person, site or sensor each auxiliary image is, column:<name> of its metadata or a
    regular expression with one capture group, searched in its path, as group_by in `mdaug pack`. Each of them in turn
    then plays the training images, and what the others bring it is known from more images than the training images."""
    group_by: str | None = None
    """For image folders, data_dir and aux_dir: what must stay together, as in `mdaug pack`."""
    image_size: int = 64
    """Side in pixels of the images that the classifier sees; a multiple of 16."""
    folds: int = 3
    """Parts of the training groups, each judged by classifiers trained on the others."""
    seeds: int = 3
    """Most classifiers per arm and fold; an arm that cannot be proven any more has fewer. With two hardly anything can
    be proven."""
    share: float = 0.25
    """Share of each batch that auxiliary, and generated, images take; for generated ones twice that is tried, too."""
    n_per_class: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    """Training images per class of the learning curve, ascending, as far as there are so many."""
    steps: int | Literal["settled"] = "settled"
    """Optimizer steps of every classifier; settled: until its training loss has settled, 800 to 3,200 steps."""
    batch_size: int = 32
    """Images per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of the classifier (AdamW)."""
    max_per_class: int = 500
    """Most images per class taken from each set."""
    workers: int = operational(0)
    """Processes that train classifiers, one thread each; 0: one per core."""
    worker: int | None = operational(None)
    """With generate: number of this worker, from 0; workers share the generators of the folds, and the last one to
    finish does the rest."""
    num_workers: int | None = operational(None)
    """Number of workers; by default this one trains all generators."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        at_least(self, 1, "seeds", "steps", "n_per_class")
        at_least(self, 2, "folds", "max_per_class")
        at_least(self, 0, "workers")
        within(self, "[1, 4096]", "batch_size")
        within(self, "(0, 1]", "learning_rate")
        within(self, "(0, 0.3]", "share")  # real images keep a tenth beside twice the share and generated ones
        within(self, "[16, 1024]", "image_size")
        multiple_of(self, 16, "image_size")
        ascending(self, "n_per_class")
        one_of_workers(self)
        if self.aux_domains is not None and (self.aux_dir is None or self.same_names != "same"):
            raise ValueError("aux_domains is of auxiliary images; say --aux_dir and --same_names same with it")
        if self.aux_domains is not None and not self.aux_domains.startswith("column:"):
            one_capture_group(self, "aux_domains")
        if not self.generate and not (self.init_from is self.worker is self.num_workers is None):
            raise ValueError("init_from, worker and num_workers are of the generators; say --generate true with them")
