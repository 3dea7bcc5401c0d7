"""The parts of an evaluation, each measured into one dictionary of plain JSON values."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from mdaug import distributed
from mdaug.evaluation import comparisons, jobs, reconstruct, usefulness
from mdaug.evaluation.inputs import policy_of
from mdaug.evaluation.options import EvaluateConfig, Part
from mdaug.evaluation.report import pictures
from mdaug.measures import features, fidelity, image_quality, kinematics, levels, memorization, realism, sifter
from mdaug.measures.auxiliary import Auxiliary
from mdaug.measures.classifier import SETTLED, one_thread
from mdaug.measures.image_set import ImageSet, class_weights, weighted_quantile
from mdaug.models.vqvae import load_vqvae
from shards import provenance
from shards.atomic import write_text
from shards.colormap import COLORMAPS
from shards.output_folder import OutputFolder
from shards.validation import worker_of

RESULTS, FEATURES, SIFTING = "results", "features", "sifting.json"
CLASSIFIER = "classifier trained on the real images"
SIFT_QUANTILE = 0.05  # share of real images that each measure of the sifter may reject, the default of `mdaug generate`
CHUNK = 512  # images that the sifter judges at once


@dataclass
class EvaluationInputs:
    """What the parts are measured on, and where they keep what is made only once.

    Attributes:
        options: the settings.
        folder: the output folder.
        train, held_out, synthetic, simulated, auxiliary: the images.
        like: (real images per class, seed) -> images of a generator that saw these only.
    """

    options: EvaluateConfig
    folder: OutputFolder
    train: ImageSet
    held_out: ImageSet
    synthetic: ImageSet
    simulated: ImageSet | None
    auxiliary: Auxiliary | None = None
    like: dict[tuple[int | str, int], ImageSet] = field(default_factory=dict)

    @cached_property
    def palette(self) -> str:
        """How the images show power, see `levels.palette`."""
        return levels.palette(self.train)

    @property
    def compared(self) -> dict[str, ImageSet]:
        """The image sets of every comparison, by name."""
        return {"train": self.train, "held_out": self.held_out, "synthetic": self.synthetic}

    @cached_property
    def sifting(self) -> dict:
        """What the sifter rejects, see `sift`."""
        file = self.folder.path / SIFTING
        return sift(self.train, self.held_out, self.synthetic, steps=self.options.steps, file=file)

    def classifier_results(self, references_only: bool = False) -> list[dict] | None:
        """Return the results of the experiment, training missing classifiers; None while other ranks are at work."""
        options = self.options
        sifted = None if references_only else sifted_images(self.sifting, self.synthetic)
        sources = (self.train, self.synthetic, sifted, self.simulated, self.auxiliary, self.like)
        plan = usefulness.plan_jobs(options.n_real_per_class, options.synthetic_per_real, options.seeds, *sources)
        first, *further = options.classifiers
        plan += [replace(job, network=network, reference=False) for network in further for job in plan]
        results = self.folder.path / RESULTS
        results.mkdir(exist_ok=True)
        return jobs.run_all(
            [job for job in plan if job.reference or not references_only],
            results,
            options.workers,
            share=worker_of(options, os.environ),
            **self.compared,
            sifted=sifted,
            simulated=self.simulated,
            auxiliary=self.auxiliary,
            like=self.like,
            progress=lambda done, total: self.folder.progress(done, total, "classifier"),
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            network=first,
            policy=policy_of(options.policy),
            aux_share=options.share,
        )

    def network_features(self) -> dict[str, dict[str, np.ndarray]] | None:
        """Return network -> set -> features, extracting what is missing; None while other ranks are at work."""
        return features.extract_all(
            self.compared, self.folder.path / FEATURES, share=worker_of(self.options, os.environ)
        )


def share(inputs: EvaluationInputs, parts: Collection[Part]) -> bool:
    """Do this rank's share of classifiers and features for the parts; return whether those of all ranks are done."""
    work: list[Callable[[], object]] = []
    if {"usefulness", "fidelity"} & set(parts):
        work.append(partial(inputs.classifier_results, references_only="usefulness" not in parts))
    if "fidelity" in parts:
        work.append(inputs.network_features)
    done = [do() is not None for do in work]
    # What was missing at the first look other ranks may have made since. The last rank to end its share finds all.
    return all(is_done or do() is not None for is_done, do in zip(done, work, strict=True))


def measure_usefulness(inputs: EvaluationInputs) -> dict:
    """Return the tables of the experiment, see `comparisons.summarize`, and "sifting": what the sifter rejects.

    "sifting" is that of `sift` with the "share" rejected of both sets, mean over classes, instead of the reasons;
    "already_sifted" tells whether `mdaug generate --sift` had sifted the synthetic images before.
    """
    results = inputs.classifier_results()
    assert results is not None  # `share` was done
    sifting = {key: value for key, value in inputs.sifting.items() if key != "reasons"}
    sifting["share"] = {
        name: float(np.mean([share for share in of_set if share is not None]))
        for name, of_set in sifting["rejected"].items()
    }
    sifting["already_sifted"] = (inputs.options.synthetic_dir / "sift.json").is_file()
    return {**comparisons.summarize(results, inputs.held_out, inputs.synthetic), "sifting": sifting}


def measure_fidelity(inputs: EvaluationInputs) -> dict:
    """Return distances and shares in the features of each network, diversity, colour and level checks.

    Returns:
        "networks": [{"name", "size", "synthetic": {measure: figure}, "floor": {...}, "spread": standard deviations of
        both over the classifiers, or None}]; "diversity": MS-SSIM per class of the three sets; "palette": see
        `levels.palette`; "off_palette": median RGB distance of the three sets from that colour map, classes weighing
        the same, None where there is no map; "levels": of the three sets, see `levels.summarize`, with the "distance"
        of their histograms from that of the training images; "realism": of "synthetic" and "floor" (held-out images)
        against the training images, see `realism.compare`.
    """
    results, network_features = inputs.classifier_results(references_only=True), inputs.network_features()
    assert results is not None  # `share` was done
    assert network_features is not None
    # Distances between sets, in the features of every network.
    networks = [_over_seeds(CLASSIFIER, [result["fidelity"] for result in results])]
    for name, of_set in network_features.items():
        pairs = ((of_set[kind], images.labels) for kind, images in inputs.compared.items())
        figures = fidelity.with_floor(*(array for pair in pairs for array in pair))
        networks.append({"name": name, **figures, "spread": None})
    # Levels and colours of every set.
    sets, palette = inputs.compared, inputs.palette
    level_figures = {
        name: levels.summarize(levels.stack(images, palette), images.labels) for name, images in sets.items()
    }
    for figures in level_figures.values():
        figures["distance"] = levels.histogram_distance(level_figures["train"], figures)
    off_palette = None
    if palette in COLORMAPS:
        off_palette = {
            name: weighted_quantile(levels.off_palette(images, palette), class_weights(images.labels), 0.5)
            for name, images in sets.items()
        }
    return {
        "networks": networks,
        "diversity": {name: image_quality.within_class(images) for name, images in sets.items()},
        "palette": palette,
        "off_palette": off_palette,
        "levels": level_figures,
        "realism": _realism(inputs),
    }


def _realism(inputs: EvaluationInputs) -> dict:
    size = (realism.SIZE, realism.SIZE)
    of_set = {name: levels.stack(images, inputs.palette, size) for name, images in inputs.compared.items()}
    groups = {name: images.groups for name, images in inputs.compared.items()}
    asked = inputs.options.steps  # fewer than usual where the other classifiers have fewer
    steps = realism.STEPS if asked == SETTLED else min(realism.STEPS, asked)
    return {
        kind: realism.compare(of_set["train"], of_set[name], groups["train"], groups[name], steps)
        for kind, name in (("synthetic", "synthetic"), ("floor", "held_out"))
    }


def measure_kinematics(inputs: EvaluationInputs) -> dict:
    """Return the kinematics of synthetic beside held-out images, both against the training images.

    Returns:
        "units", "palette", "clip_db", "physical"; "synthetic" and "floor", see `kinematics.compare`; "quantiles": per
        set, measure and class the 5, 25, 50, 75 and 95 % quantiles, None where too few pictures show the measure;
        "found": share of images that show it; "error": see `kinematics.estimator_error`, of held-out images that
        `mdaug simulate` made: columns of other metadata may have the same names.
    """
    sets, train = inputs.compared, inputs.train
    count = len(train.dataset.classes)

    def meta_of(images: ImageSet) -> list[dict]:
        return [images.dataset[i]["meta"] for i in images.indices.tolist()]

    axes = kinematics.Axes.of(meta_of(train))
    values = {name: kinematics.measure(levels.stack(images, inputs.palette), axes) for name, images in sets.items()}
    simulated = "simulate" in provenance.read(inputs.options.data_dir, "images")["made_from"]
    known = meta_of(inputs.held_out) if simulated else []
    comparisons = {
        key: kinematics.compare(values["train"], train.labels, values[name], sets[name].labels, count)
        for key, name in (("synthetic", "synthetic"), ("floor", "held_out"))
    }
    return {
        "units": axes.units,
        "palette": inputs.palette,
        "clip_db": axes.clip_db,
        "physical": axes.physical,
        **comparisons,
        "quantiles": {name: kinematics.quantiles(values[name], sets[name].labels, count) for name in sets},
        "found": {
            name: {measure: float((~np.isnan(column)).mean()) for measure, column in of_set.items()}
            for name, of_set in values.items()
        },
        "error": kinematics.estimator_error(values["held_out"], known, inputs.held_out.labels) if known else [],
    }


def measure_memorization(inputs: EvaluationInputs) -> dict:
    """Return nearest-neighbour distances, see `memorization.compare`, and draw the nearest pairs."""
    size = (inputs.options.image_size, inputs.options.image_size)
    train, held_out, synthetic = (levels.stack(images, inputs.palette, size) for images in inputs.compared.values())
    figures = memorization.compare(train, held_out, inputs.held_out.labels, synthetic, inputs.synthetic.labels)
    pictures.save(inputs.folder.path / pictures.PAIRS, pictures.pairs(inputs.synthetic, inputs.train, figures))
    return figures


def measure_reconstruction(inputs: EvaluationInputs) -> dict:
    """Return what the VQ-VAE keeps of held-out images, see `reconstruct.measure`, and draw the worst of each class."""
    assert inputs.options.vqvae_path is not None  # this part needs it
    vqvae = load_vqvae(inputs.options.vqvae_path).to(distributed.device())
    dataset, indices = inputs.held_out.dataset, inputs.held_out.indices
    figures, worst = reconstruct.measure(vqvae, dataset, indices, inputs.options.batch_size, familiar={}, lpips=None)
    pictures.save(inputs.folder.path / pictures.RECONSTRUCTION, pictures.strips(worst, figures["classes"]))
    return figures


MEASURE: dict[Part, Callable[[EvaluationInputs], dict]] = {
    "usefulness": measure_usefulness,
    "fidelity": measure_fidelity,
    "kinematics": measure_kinematics,
    "memorization": measure_memorization,
    "reconstruction": measure_reconstruction,
}

# Files and folders that the parts make beside their figures.
FILES: dict[Part, tuple[str, ...]] = {
    "usefulness": (RESULTS, SIFTING),
    "fidelity": (RESULTS, FEATURES),
    "kinematics": (),
    "memorization": (pictures.PAIRS,),
    "reconstruction": (pictures.RECONSTRUCTION,),
}


def _over_seeds(name: str, tables: list[dict]) -> dict:
    """Return mean and spread of the same figures from several classifiers."""
    if tables[0]["synthetic"] is None:
        return {"name": name, **tables[0], "spread": None}
    mean, spread = (
        {
            kind: {key: function([table[kind][key] for table in tables]) for key in fidelity.MEASURES}
            for kind in ("synthetic", "floor")
        }
        for function in (lambda values: float(np.mean(values)), comparisons.spread)
    )
    return {"name": name, "size": tables[0]["size"], **mean, "spread": spread}


def sift(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, *, steps: int | str, file: Path) -> dict:
    """Return what the sifter rejects of synthetic and of held-out images; read from `file` where that exists.

    Returns:
        {"quantile"; "accuracy": mean recall of the sifter's classifier on the images that set the limits; "reasons": of
        "synthetic" and "held_out", per image, the measure that rejects it, or "" for one that is kept; "rejected": of
        both the share per class, None for a class without images}.
    """
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    limits = limit_setters(train)
    settings = {"quantile": SIFT_QUANTILE, "steps": steps, "max_candidates": 1}
    fitted, accuracy = sifter.fit(train.subset(np.flatnonzero(~limits)), train.subset(np.flatnonzero(limits)), settings)
    sets = {"synthetic": synthetic, "held_out": held_out}
    reasons = {name: _reasons(fitted, images) for name, images in sets.items()}
    rejected = {name: _rejected(reasons[name], images) for name, images in sets.items()}
    if not file.is_file():  # otherwise another rank was faster, and all take its result
        result = {"quantile": SIFT_QUANTILE, "accuracy": accuracy, "reasons": reasons, "rejected": rejected}
        write_text(file, json.dumps(result) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def sifted_images(sifting: dict, synthetic: ImageSet) -> ImageSet | None:
    """Return the synthetic images within all limits of `sift`; None where there are none."""
    kept = np.flatnonzero([reason == "" for reason in sifting["reasons"]["synthetic"]])
    return synthetic.subset(kept) if len(kept) else None


def limit_setters(train: ImageSet) -> np.ndarray:
    """Return which training images set the limits, bool (n,): about a quarter of every class.

    Whole groups are taken, in an order that is always the same; of a class whose groups all fall on one side, every
    fourth image is taken.
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
def _reasons(fitted: sifter.Sifter, images: ImageSet) -> list[str]:
    reasons: list[str] = []
    for start in range(0, len(images), CHUNK):
        chunk = range(start, min(start + CHUNK, len(images)))
        pixels = np.stack([images.original(i) for i in chunk])
        reasons += [reason for reason, _, _ in fitted.judge(pixels, images.labels[start : start + CHUNK])]
    return reasons


def _rejected(reasons: list[str], images: ImageSet) -> list[float | None]:
    is_rejected = np.array([reason != "" for reason in reasons])
    of_class = [is_rejected[images.labels == label] for label in range(len(images.dataset.classes))]
    return [float(part.mean()) if len(part) else None for part in of_class]
