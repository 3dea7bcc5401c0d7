"""Options of `mdaug pack`. Values and their checks, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shards.colormap import COLORMAPS
from shards.pool import MOST_WORKERS
from shards.validation import at_least, height_width, one_capture_group, one_of, operational, within, written


@dataclass
class PackConfig:
    """Pack an image folder into WebDataset tar shards with an index, split into train and val by group."""

    data_dir: Path = operational()
    """Image folder: <class>/*.png|jpg|jpeg or {train,val,test}/<class>/*; metadata.csv (column `file`) may join."""
    output_dir: Path = operational()
    """Folder to write. The same command again continues there, or says that it is finished."""
    image_size: int | str | None = None
    """Pixels that every image is resized to: one number for squares, or height x width such as 128x256; by default the
    most frequent size of the images."""
    image_mode: Literal["auto", "rgb", "gray", "level"] = "auto"
    """Three channels or one; auto: one if every image is single channel, else three. gray takes from coloured images
    the level behind their colour map, and keeps the map as the palette of the PNGs; level: gray where that map is known
    (or there are no coloured images), else rgb."""
    colormap: str = "auto"
    """Colour map that image_mode gray and level invert: jet-256 and jet-64 (MATLAB), matplotlib-jet, parula (MATLAB
    until R2016b), parula-2017 (since) or viridis; auto: that of each picture, found by its colours; none: the
    brightness of the colours."""
    group_by: str | None = None
    """What must stay together in train or val: a regular expression with one capture group, searched in the path
    of the image relative to data_dir, or column:<name> of metadata.csv. By default the metadata column `group`, else
    runs of consecutive numbers at the end of the file names."""
    class_depth: int | None = None
    """Folders from data_dir down to the class folders, those counted: 1 for <class>/*, 2 for <any>/<class>/*. By
    default 2 below folders that have the names of splits, else 1; asked for where both can be meant."""
    frame: Literal["ask", "crop", "keep"] = "ask"
    """With image_mode gray and level: what becomes of rows and columns at the edge in one colour that the colour map
    does not have, such as the white margin of a saved figure."""
    val_fraction: float = 0.2
    """Share of the images of each class that goes to val, in (0, 0.5]."""
    train_per_class: int | None = None
    """Training images of each class to pack, a random subset; by default all. The subset of a number lies in that of
    every larger one, and is the one that `mdaug evaluate` takes of the whole set with the seed `subset`."""
    subset: int | None = None
    """Which of the random subsets, from 0 (the default)."""
    gap: int = 4
    """With running numbers: images left out between train and val, so that overlapping windows do not leak."""
    shard_size: int = 256
    """Samples per shard."""
    seed: int = 0
    """Seed of the choice of groups and of the order of the samples in the shards."""
    workers: int = operational(0)
    """Processes that decode and resize; 0: one per CPU core."""
    dry_run: bool = operational(False)
    """Print what was understood of the folder, and write nothing."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used; raises ValueError naming field, value and what is accepted."""
        self.data_dir, self.output_dir = Path(self.data_dir), Path(self.output_dir)
        if self.image_size is not None:
            self.image_size = written(*height_width(self.image_size))
        one_of(self, ("auto", "rgb", "gray", "level"), "image_mode")
        one_of(self, ("auto", "none", *COLORMAPS), "colormap")
        one_of(self, ("ask", "crop", "keep"), "frame")
        at_least(self, 1, "class_depth")
        within(self, "(0, 0.5]", "val_fraction")
        at_least(self, 1, "shard_size", "train_per_class")
        at_least(self, 0, "gap", "seed", "subset")
        if self.subset is not None and self.train_per_class is None:
            raise ValueError(f"subset={self.subset} needs train_per_class, the number of images of each class")
        within(self, f"[0, {MOST_WORKERS}]", "workers")
        if self.group_by is not None and not self.group_by.startswith("column:"):
            one_capture_group(self, "group_by")


@dataclass
class VerifyConfig:
    """Compare a finished folder with what was written: every file by its hash, every sample of every shard."""

    POSITIONAL: ClassVar[str] = "folder"

    folder: Path
    """Output folder of a command; also as the first argument."""
