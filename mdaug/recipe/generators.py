"""The generators of a recipe: one for each fold, which has not seen it, and one of all training images; their images.

    generators/auxiliary, unlabelled     what all of them are trained with, beside
    generators/<fold>/packed             the training images of the other folds; of each class one validates
    generators/<fold>/vqvae, ldm         trained on them
    generators/<fold>/<kind>             their images
    generators/<fold>/labels_seen.json   how often a classifier of other groups sees the intended class in them

Everything is a folder of its own command, which resumes, and is finished once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdaug import cli
from mdaug.augment import TODAY
from mdaug.generation.generate import run as generate
from mdaug.measures import classifier, image_set
from mdaug.pipeline import schedulers
from mdaug.recipe import sets
from mdaug.recipe.figures import mean_recall
from mdaug.recipe.inputs import Inputs
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.training_set import Stored
from mdaug.recipe.trials import Images
from mdaug.training import train_ldm, train_vqvae
from shards import atomic
from shards.errors import UserError
from shards.progress import say
from shards.subset import take_per_class

FOLDER, LABELS_SEEN, REAL = "generators", "labels_seen.json", "real"
ALL = "all"  # name of the generator of all training images
GUIDANCE = 3.0  # of the kinds that need it to show their class
PER_CLASS = 50  # images of each kind
ADAPTED = 1 / 3  # of the length of a training, for one that starts from a base model
KEPT = 0.9  # of the recall on real images, from which a label counts as kept
# For what is said before the start: minutes of a training, and seconds in which the U-Net is called for one image, of
# the preset `few` on one core.
TRAINING_MINUTES, ADAPTING_MINUTES, CALL_SECONDS = 4.5, 1.0, 0.0021


@dataclass(frozen=True)
class Kind:
    """A way to make images.

    Attributes:
        source: what is redrawn: "own" or "auxiliary" images; "": nothing, samples begin with noise.
        strength: share of the noise schedule.
        guidance: scale of classifier-free guidance; 1 is none.
    """

    source: str = ""
    strength: float = 1.0
    guidance: float = 1.0

    @property
    def name(self) -> str:
        """Name of the arm."""
        said = {"own": "own images varied at ", "auxiliary": "auxiliary images redrawn at ", "": "sampled from noise, "}
        at = f"strength {self.strength:g}, " if self.source else ""
        return f"{said[self.source]}{at}guidance {self.guidance:g}"

    @property
    def folder(self) -> str:
        """Name of its folder."""
        at = f"{self.source}-strength-{self.strength:g}" if self.source else "noise"
        return f"{at}-guidance-{self.guidance:g}"

    def calls(self, steps: int) -> int:
        """Return how often the U-Net is called for an image, with a sampler of so many steps."""
        return schedulers.steps_of(self.strength, steps) * (1 if self.guidance == 1 else 2)


# What is redrawn, of each source those first that bring more variety.
VARIED = (Kind("own", 0.6), Kind("own", 0.4))
REDRAWN = (Kind("auxiliary", 0.6), Kind("auxiliary", 0.8, GUIDANCE), Kind("auxiliary", 0.9, GUIDANCE))


def _steps_of(quality: str | None) -> int:
    return schedulers.QUALITY[quality][1] if quality else schedulers.DEFAULT_STEPS


class Generators:
    """Trains and samples the generators.

    Args:
        options: of the recipe.
        inputs: its images.
        folds: int64 (n,), the fold of each training image.

    Attributes:
        noise: the kind that is sampled from noise, with the guidance of the preset if that has one.
        kinds: the images that it makes.
        steps: of the sampler.
        samples_of_unet: length of the training of a U-Net; None where the preset gives another measure.
    """

    def __init__(self, options: AugmentConfig, inputs: Inputs, folds: np.ndarray):
        self.options, self.inputs, self.folds = options, inputs, folds
        self.place = options.output_dir / FOLDER
        sampling = self._flags("generate", {})
        self.noise = Kind(guidance=GUIDANCE if sampling.guidance_scale == 1 else sampling.guidance_scale)
        self.kinds = [self.noise, *VARIED, *(REDRAWN if inputs.auxiliary is not None else ())]
        self.steps = sampling.num_inference_steps or _steps_of(sampling.quality)
        whole = self._flags("train-ldm", {}).train_samples
        self.samples_of_unet = round(ADAPTED * whole) if whole and options.init_from else whole

    @property
    def minutes(self) -> float:
        """About how many minutes of one core all of it takes, for what is said before the start; at 64 x 64 pixels.

        A training for each fold with images of all kinds, and one of all training images with those of the dearest.
        """
        folds = len(np.unique(self.folds))
        training = TRAINING_MINUTES if self.options.init_from is None else ADAPTING_MINUTES
        calls = [kind.calls(self.steps) for kind in self.kinds]
        of_each_kind = PER_CLASS * len(self.inputs.classes)
        return training * (folds + 1) + of_each_kind * (folds * sum(calls) + max(calls)) * CALL_SECONDS / 60

    @property
    def complete(self) -> bool:
        """Whether the images of all folds are there, and have been looked at."""
        return all(self._seen(int(fold)) is not None for fold in np.unique(self.folds))

    def make_share(self, worker: int, workers: int) -> None:
        """Train the generators of every so many folds, and make their images."""
        for fold in np.unique(self.folds)[worker::workers]:
            self._make(int(fold), self.kinds)
            self._judge(int(fold))

    def make_all(self, kind: Kind) -> tuple[Images, Stored]:
        """Return images of a kind by a generator of all training images."""
        self._make(None, [kind])
        return self.images(kind, None)

    def images(self, kind: Kind, fold: int | None) -> tuple[Images, Stored]:
        """Return the images of a kind by the generator that has not seen a fold; None: by that of all images."""
        size = self.options.image_size
        loaded = image_set.load(self._of(fold) / kind.folder, image_size=size, max_per_class=PER_CLASS)
        known = [self.inputs.classes.index(name) for name in loaded.dataset.classes]
        images = Images(loaded.images, np.array(known)[loaded.labels], loaded.groups)
        return images, Stored([loaded.dataset] * len(loaded), loaded.indices.tolist())

    def label_kept(self) -> dict[str, dict[str, float]]:
        """Return of each kind what classifiers see of its classes, means over the folds.

        Returns:
            kind -> {"generated": mean recall of the intended class, "real": mean recall on real images that the
            classifiers were not trained on, "ratio": of the two}.
        """
        records = [self._seen(int(fold)) or {} for fold in np.unique(self.folds)]

        def mean(name: str) -> float:
            return float(np.mean([record[name] for record in records]))

        real = mean(REAL)
        seen = {kind.name: mean(kind.folder) for kind in self.kinds}
        return {name: {"generated": recall, "real": real, "ratio": recall / real} for name, recall in seen.items()}

    def chosen(self) -> list[Kind]:
        """Return the kinds to try: of each source the one that brings most variety of those that keep the label.

        Own images vary more the stronger they are noised; an auxiliary one keeps more of what it brings the less it is,
        but shows less of the class that it is to be. Where none keeps the label, the one that comes nearest.
        """
        kept, tried = self.label_kept(), [self.noise]
        for of_source in (VARIED, REDRAWN):
            there = [kind for kind in of_source if kind in self.kinds]
            if there:
                best_label = max(there, key=lambda kind: kept[kind.name]["ratio"])
                tried.append(next((kind for kind in there if kept[kind.name]["ratio"] >= KEPT), best_label))
        return tried

    def _of(self, fold: int | None) -> Path:
        return self.place / (ALL if fold is None else f"fold-{fold}")

    def _flags(self, command: str, given: dict[str, Any]) -> Any:
        """Return the options of a command: those of the preset, its folders, and what is given."""
        folders = {"output_dir": "-", "data_dir": "-", "vqvae_path": "-", "ldm_path": "-"}
        needed = {"train-vqvae": ("data_dir",), "train-ldm": ("data_dir", "vqvae_path"), "generate": ("ldm_path",)}
        given = {name: folders[name] for name in ("output_dir", *needed[command])} | given
        flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return cli.parse(command, ["--config", self.options.generator, *flags])

    def _make(self, fold: int | None, kinds: list[Kind]) -> None:
        """Train the generator that does not see a fold, and make its images; what is there is not made again."""
        place, base = self._of(fold), self.options.init_from
        packed = self._pack(place / "packed", fold)
        others = self._others()
        training: dict[str, Any] = {
            "data_dir": packed, "image_size": self.options.image_size, "balance_classes": True,
            "aux_dir": ",".join(map(str, others)) or None,
        }  # fmt: skip
        # The VQ-VAE: that of the base model, or a new one.
        if base is None:
            train_vqvae.run(self._flags("train-vqvae", {**training, "output_dir": place / "vqvae"}))
        of_ldm = {**training, "output_dir": place / "ldm", "vqvae_path": place / "vqvae", "same_names": "other"}
        if base is not None:
            of_ldm |= {"vqvae_path": base / "vqvae", "init_from": base / "ldm", "train_samples": self.samples_of_unet}
        train_ldm.run(self._flags("train-ldm", of_ldm))
        # Its images. Auxiliary ones with the labels of the target keep them; others become any class.
        for kind in kinds:
            sources: dict[str, Any] = {}
            classes = self.inputs.classes
            if kind.source:
                same = kind.source == "own" or self.inputs.same
                sources = {
                    "from_dir": packed if kind.source == "own" else self.place / "auxiliary",
                    "redraw_as": "keep" if same else "random",
                    "strength": kind.strength,
                    "data_dir": packed,
                }
                if kind.source == "auxiliary" and same and self.inputs.auxiliary is not None:
                    classes = [classes[label] for label in np.unique(self.inputs.auxiliary.labels)]
            given = {"ldm_path": place / "ldm", "output_dir": place / kind.folder, "guidance_scale": kind.guidance}
            generate(self._flags("generate", {**given, **sources, "num_samples": PER_CLASS * len(classes)}))

    def _pack(self, folder: Path, fold: int | None) -> Path:
        """Return the packed training images outside a fold; of each class that has two, one validates."""
        train, stored = self.inputs.train, self.inputs.stored["real"]
        chosen = np.flatnonzero(self.folds != fold) if fold is not None else np.arange(len(train))
        labels = train.labels[chosen]
        ones = take_per_class(labels, [int(count > 1) for count in np.bincount(labels)], seed=0)
        if not len(ones):
            raise UserError(
                "a generator needs two images of a class, one to train on and one to validate; give more images, or "
                "leave out --generate"
            )
        rest = np.setdiff1d(np.arange(len(chosen)), ones)
        parts = {
            split: (stored.take(chosen[those]), labels[those]) for split, those in (("train", rest), ("val", ones))
        }
        return sets.write(folder, parts, self.inputs.classes, self.options.image_size)

    def _others(self) -> list[Path]:
        """Return the packed auxiliary images, and the unlabelled ones as images without a class."""
        inputs, size, found = self.inputs, self.options.image_size, []
        if inputs.auxiliary is not None:
            names = inputs.classes if inputs.same else inputs.auxiliary_classes
            parts = {"train": (inputs.stored["auxiliary"], inputs.auxiliary.labels)}
            found.append(sets.write(self.place / "auxiliary", parts, names, size))
        if inputs.unlabelled is not None:
            parts = {"train": (inputs.stored["unlabelled"], np.zeros(len(inputs.unlabelled), np.int64))}
            found.append(sets.write(self.place / "unlabelled", parts, ["unlabelled"], size))
        return found

    def _judge(self, fold: int) -> None:
        """Write how often a classifier of the fold, whose groups the generator has not seen, sees the intended class.

        Beside its recall on the real images of the other folds; of the classes that the fold has.
        """
        if self._seen(fold) is not None:
            return
        say(f"fold {fold}: a classifier of its groups looks at the generated images")
        options, train = self.options, self.inputs.train
        own, others = (train.take(np.flatnonzero((self.folds == fold) == of_fold)) for of_fold in (True, False))
        with classifier.one_thread():
            floor = classifier.floor_of(own.pixels)
            judge = classifier.train(
                own.pixels, own.labels, len(self.inputs.classes), steps=options.steps, batch_size=options.batch_size,
                learning_rate=options.learning_rate, seed=0, policy=TODAY, floor=floor,
            )  # fmt: skip

            def recall(images: Images) -> float:
                known = images.take(np.flatnonzero(np.isin(images.labels, own.labels)))
                if not len(known):
                    return 0.0
                return mean_recall(classifier.predict(judge, known.pixels).argmax(1) == known.labels, known.labels)

            real = max(recall(others), 1 / len(others))
            seen = {kind.folder: recall(self.images(kind, fold)[0]) for kind in self.kinds}
        atomic.write_text(self._of(fold) / LABELS_SEEN, json.dumps({REAL: real, **seen}) + "\n")

    def _seen(self, fold: int) -> dict[str, float] | None:
        """Return what `_judge` wrote; None before, and where it was of other kinds, those of an earlier version."""
        path = self._of(fold) / LABELS_SEEN
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found if set(found) == {REAL, *(kind.folder for kind in self.kinds)} else None
