"""The parts of an evaluation, each measured into one JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdaug.evaluation import jobs
from mdaug.evaluation import usefulness as experiment
from mdaug.evaluation.report import page as report
from mdaug.evaluation.report import pictures
from mdaug.measures import features, image_quality, levels
from mdaug.measures import fidelity as measures
from mdaug.measures import kinematics as motion
from mdaug.measures import memorization as memory
from mdaug.measures import sifter as sift
from mdaug.measures.classifier import one_thread
from mdaug.measures.image_quality import reconstruction as reconstruct
from mdaug.measures.image_set import ImageSet
from shards.atomic import write_text
from shards.colormap import COLORMAPS

if TYPE_CHECKING:
    from mdaug.evaluation.options import EvaluateConfig


FEATURES = "features"
CLASSIFIER = "classifier trained on the real images"


@dataclass
class Inputs:
    """What the parts work on.

    Attributes:
        config: the settings.
        results: folder of one file per trained classifier.
        train, held_out, synthetic, simulated: the images.
    """

    config: EvaluateConfig
    results: Path
    train: ImageSet
    held_out: ImageSet
    synthetic: ImageSet
    simulated: ImageSet | None

    @cached_property
    def palette(self) -> str:
        """How the images show power."""
        return levels.palette(self.train)

    @property
    def three(self) -> dict[str, ImageSet]:
        """The image sets of every comparison, by name."""
        return {"train": self.train, "held_out": self.held_out, "synthetic": self.synthetic}

    @cached_property
    def sifting(self) -> dict:
        """What the sifter says, see `sifting.judge`."""
        file = self.config.output_dir / "sifting.json"
        return judge(self.train, self.held_out, self.synthetic, steps=self.config.steps, file=file)

    def classifiers(self, references_only: bool = False) -> list[dict] | None:
        """Return the results of the experiment's classifiers, training those that are missing; None: other ranks do."""
        config = self.config
        sifted = None if references_only else kept(self.sifting, self.synthetic)
        sources = (self.train, self.synthetic, sifted, self.simulated)
        plan = experiment.plan(config.n_real_per_class, config.synthetic_per_real, config.seeds, *sources)
        return jobs.run_all(
            [job for job in plan if job.reference or not references_only],
            self.results,
            config.workers,
            **self.three,
            sifted=sifted,
            simulated=self.simulated,
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            network=config.classifier,
        )

    def features(self) -> dict[str, dict[str, np.ndarray]] | None:
        """Return the features of all images in all networks, extracting what is missing; None: other ranks do."""
        return features.extract_all(self.three, self.config.output_dir / FEATURES)


def share(inputs: Inputs, wanted: Collection[str]) -> bool:
    """Do this rank's share of the work of the parts: classifiers and features. Return whether all ranks' is done."""
    work: list[Callable[[], object]] = []
    if {"usefulness", "fidelity"} & set(wanted):
        work.append(partial(inputs.classifiers, references_only="usefulness" not in wanted))
    if "fidelity" in wanted:
        work.append(inputs.features)
    there = [do() is not None for do in work]
    # What others lacked at the first look they may have finished since. Whoever ends its share last finds all of it.
    return all(found or do() is not None for found, do in zip(there, work, strict=True))


def usefulness(inputs: Inputs) -> dict:
    """Return the tables of the experiment, see `usefulness.summarize`, and what the sifter rejected: `sifting.judge`.

    "already_sifted" says whether `mdaug generate --sift` had sifted the synthetic images before.
    """
    results = inputs.classifiers()
    assert results is not None
    sifted = {key: value for key, value in inputs.sifting.items() if key != "reasons"}
    reasons = inputs.sifting["reasons"]
    sifted["share"] = {kind: sum(map(bool, said)) / len(said) for kind, said in reasons.items()}
    before = (inputs.config.synthetic_dir / "sift.json").is_file()
    return {
        **experiment.summarize(results, inputs.held_out, inputs.synthetic),
        "sifting": {**sifted, "already_sifted": before},
    }


def fidelity(inputs: Inputs) -> dict:
    """Return distances and shares in the features of each network, diversity, colour and level checks.

    Returns:
        "networks": [{"name", "size", "synthetic": {measure: figure}, "floor": {...}, "spread": standard deviations of
        both over the classifiers, or None}]; "diversity": MS-SSIM per class of the three sets; "palette": see
        `levels.palette`; "off_palette": median RGB distance of the three sets from that colour map, None where it is
        none; "levels": of the three sets, see `spectral.levels_of`, with the "distance" of their histograms from that
        of the training images.
    """
    results, found = inputs.classifiers(references_only=True), inputs.features()
    assert results is not None
    assert found is not None
    table = [_over_seeds(CLASSIFIER, [result["fidelity"] for result in results])]
    for name, of_set in found.items():
        figures = measures.with_floor(
            of_set["train"], of_set["held_out"], inputs.held_out.labels, of_set["synthetic"], inputs.synthetic.labels
        )
        table.append({"name": name, **figures, "spread": None})
    spectra = {name: levels.levels_of(levels.stack(images, inputs.palette)) for name, images in inputs.three.items()}
    for spectrum in spectra.values():
        spectrum["distance"] = levels.histogram_distance(spectra["train"], spectrum)
    return {
        "networks": table,
        "diversity": {name: image_quality.within_class(images) for name, images in inputs.three.items()},
        "palette": inputs.palette,
        "off_palette": {
            name: float(np.median(levels.off_palette(images, inputs.palette))) for name, images in inputs.three.items()
        }
        if inputs.palette in COLORMAPS
        else None,
        "levels": spectra,
    }


def kinematics(inputs: Inputs) -> dict:
    """Return the measures of motion of synthetic beside held-out images, both against the training images.

    Returns:
        "units", "palette", "clip_db", "physical"; "synthetic" and "floor", see `kinematics.compare`; "quantiles": per
        set, measure and class the 5, 25, 50, 75 and 95 % quantiles, None where too few pictures show the measure;
        "found": share of images that show it; "error": see `kinematics.estimator_error`, of the held-out images.
    """
    classes = inputs.train.dataset.classes
    meta = {
        name: [images.dataset[int(i)]["meta"] for i in images.indices]
        for name, images in inputs.three.items()
        if name != "synthetic"
    }
    axes = motion.Axes.of(meta["train"])
    values = {name: motion.measure(levels.stack(images, inputs.palette), axes) for name, images in inputs.three.items()}
    comparisons = {
        key: motion.compare(values["train"], inputs.train.labels, values[name], inputs.three[name].labels, len(classes))
        for key, name in (("synthetic", "synthetic"), ("floor", "held_out"))
    }
    return {
        "units": axes.units,
        "palette": inputs.palette,
        "clip_db": axes.clip_db,
        "physical": axes.physical,
        **comparisons,
        "quantiles": {
            name: motion.quantiles(values[name], images.labels, len(classes)) for name, images in inputs.three.items()
        },
        "found": {
            name: {measure: float((~np.isnan(column)).mean()) for measure, column in values[name].items()}
            for name in values
        },
        "error": motion.estimator_error(values["held_out"], meta["held_out"], inputs.held_out.labels),
    }


def memorization(inputs: Inputs) -> dict:
    """Return nearest-neighbour distances, see `memorization.memorization`, and draw the nearest pairs."""
    size = (inputs.config.image_size, inputs.config.image_size)
    train, held_out, synthetic = (levels.stack(images, inputs.palette, size) for images in inputs.three.values())
    figures = memory.memorization(train, held_out, synthetic)
    drawn = pictures.pairs(inputs.synthetic, inputs.train, figures)
    pictures.save(inputs.config.output_dir / report.PAIRS, drawn)
    return figures


def reconstruction(inputs: Inputs) -> dict:
    """Return how well the VQ-VAE keeps held-out images, and draw the worst of each class."""
    assert inputs.config.vqvae_path is not None
    figures, strips = reconstruct(inputs.config.vqvae_path, inputs.held_out, batch_size=inputs.config.batch_size)
    drawn = pictures.strips(strips, figures["classes"])
    pictures.save(inputs.config.output_dir / report.RECONSTRUCTION, drawn)
    return figures


def _over_seeds(name: str, tables: list[dict]) -> dict:
    """Return mean and spread of the same figures from several classifiers."""
    if tables[0]["synthetic"] is None:
        return {"name": name, **tables[0], "spread": None}
    mean, spread = (
        {
            kind: {key: function([table[kind][key] for table in tables]) for key in measures.MEASURES}
            for kind in ("synthetic", "floor")
        }
        for function in (lambda values: float(np.mean(values)), experiment.spread)
    )
    return {"name": name, "size": tables[0]["size"], **mean, "spread": spread}


QUANTILE = 0.05  # share of real images that each of the four measures may reject, as `mdaug generate` has it
CHUNK = 512  # images


def judge(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, *, steps: int, file: Path) -> dict:
    """Return what the sifter says of synthetic and of held-out images; read from `file` where it is there already.

    Returns:
        {"quantile"; "accuracy" of the sifter's classifier on the images that set the limits; "reasons": of "synthetic"
        and "held_out", per image, the measure that rejects it, or "" for one that is kept; "rejected": of both the
        share per class, None for a class without images}.
    """
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    limits = limit_setters(train)
    settings = {"quantile": QUANTILE, "steps": steps, "max_candidates": 1}
    sifter, accuracy = sift.fit(train.subset(np.flatnonzero(~limits)), train.subset(np.flatnonzero(limits)), settings)
    sets = {"synthetic": synthetic, "held_out": held_out}
    reasons = {name: _reasons(sifter, images) for name, images in sets.items()}
    rejected = {name: _rejected(reasons[name], images) for name, images in sets.items()}
    said = {"quantile": QUANTILE, "accuracy": accuracy, "reasons": reasons, "rejected": rejected}
    if not file.is_file():  # otherwise another rank was faster, and all take what it says
        write_text(file, json.dumps(said) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def kept(said: dict, synthetic: ImageSet) -> ImageSet | None:
    """Return the synthetic images within all limits; None where there are none."""
    chosen = np.flatnonzero([reason == "" for reason in said["reasons"]["synthetic"]])
    return synthetic.subset(chosen) if len(chosen) else None


def limit_setters(train: ImageSet) -> np.ndarray:
    """Return which training images set the limits, bool (n,): about a quarter of every class.

    Whole groups are taken, in an order that is always the same; a class all of whose groups fall on one side gives
    every fourth of its images.
    """
    names, group_of = np.unique(np.asarray(train.groups), return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    chosen = np.isin(group_of, order[: max(1, len(names) // 4)])
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        if chosen[members].all() or not chosen[members].any():
            chosen[members] = np.arange(len(members)) % 4 == max(1, min(3, len(members) - 1))
    return chosen


@one_thread()
def _reasons(sifter: sift.Sifter, images: ImageSet) -> list[str]:
    found: list[str] = []
    for start in range(0, len(images), CHUNK):
        places = range(start, min(start + CHUNK, len(images)))
        pixels = np.stack([images.original(i) for i in places])
        found += [reason for reason, _, _ in sifter.judge(pixels, images.labels[start : start + CHUNK])]
    return found


def _rejected(reasons: list[str], images: ImageSet) -> list[float | None]:
    out = np.array([reason != "" for reason in reasons])
    of_class = [out[images.labels == label] for label in range(len(images.dataset.classes))]
    return [float(part.mean()) if len(part) else None for part in of_class]
