"""How long each stage of the demo is, so that all of them together end within a budget: a pure function of speeds.

What each stage takes is written as seconds = overhead + units / speed. The shares are those of `SHARES`; what a stage
cannot use goes to the two trainings.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

MARGIN = 0.98  # share of the budget that is planned: machines are not equally fast from minute to minute
SHARES = {"simulate": 0.08, "generate": 0.05, "evaluate": 0.14}  # of the time beside overheads; the rest is training
VQVAE_SHARE = 0.38  # of the time of both trainings
MOST_SIMULATED, LEAST_SIMULATED = 240, 40  # images per class
SUBJECTS = 20  # groups per class
MOST_GENERATED, LEAST_GENERATED = 100, 8  # images per class
SAMPLING_STEPS = 20  # of generate in the preset
PICTURES, PICTURE_STEPS = 4, 25  # per class at a validation of train-ldm, and sampling steps of each
FORWARD = 3.0  # how many times faster a pass forward is than one forward and backward
HELD_OUT = 0.25  # share of the images
MOST_VALIDATION = 0.3  # share of a training that its validations take, unless the one at the end takes more
DRAWS = 5  # noised copies of a held-out latent at a validation of train-ldm
PACKED_PER_S = 150.0  # images; reading and scaling them is a small part of the whole
# Classifiers: seeds, steps of each, and numbers of real images, from the longest down. What `evaluate` takes, in images
# trained by the VQ-VAE: for itself, for each image, and for a step of a classifier (fitted to two runs of the demo).
CLASSIFIERS = (
    (5, 300, "[10,all]"), (3, 300, "[10,all]"), (3, 150, "[10,all]"), (2, 150, "[10,all]"), (2, 100, "[10,all]"),
    (1, 100, "[10,all]"), (1, 60, "[10,all]"), (1, 60, "[all]"),
)  # fmt: skip
ARMS = {"[10,all]": 16, "[all]": 9}  # classifiers per seed
EVALUATION, PER_IMAGE, PER_STEP = 670.0, 1.0, 1.6
REPORTS, SAMPLES_PER_STEP = 30, 16  # points of a loss curve, and samples of a step of either training, or fewer

LEAST = {"train-vqvae": 2000, "train-ldm": 6000}
"""Samples below which a training shows that it runs, and nothing of what it can do."""


@dataclass(frozen=True)
class Speeds:
    """What a short run of the same stages measured on this machine."""

    simulate: float
    """Images per second."""
    vqvae: float
    """Images trained per second."""
    unet: float
    """Latents trained per second."""
    stage_s: float
    """Seconds that a stage takes beside its work."""
    simulate_s: float
    """The same of simulate, which starts processes."""
    training_s: float
    """The same of a training, which builds, validates and writes its model."""


@dataclass(frozen=True)
class Lengths:
    """What is chosen, and the seconds that each stage is expected to take."""

    simulated_per_class: int
    vqvae_samples: int
    unet_samples: int
    vqvae_every: int
    unet_every: int
    generated: int
    seeds: int
    classifier_steps: int
    real_per_class: str
    seconds: dict[str, float]

    def flags(self) -> dict[str, list[str]]:
        """Return command -> the flags that give it its length."""
        numbers: dict[str, dict[str, int | str]] = {
            "simulate": {
                "images_per_class": self.simulated_per_class,
                "images_per_group": max(1, self.simulated_per_class // SUBJECTS),
            },
            "train-vqvae": {
                "train_samples": self.vqvae_samples,
                "val_samples": self.vqvae_every,
                "save_samples": self.vqvae_every,
                "logging_steps": max(1, self.vqvae_samples // SAMPLES_PER_STEP // REPORTS),
            },
            "train-ldm": {
                "train_samples": self.unet_samples,
                "val_samples": self.unet_every,
                "save_samples": self.unet_every,
                "logging_steps": max(1, self.unet_samples // SAMPLES_PER_STEP // REPORTS),
            },
            "generate": {"num_samples": self.generated, "samples_per_shard": max(1, self.generated // 4)},
            "evaluate": {
                "seeds": self.seeds,
                "steps": self.classifier_steps,
                "n_real_per_class": self.real_per_class,
            },
        }
        return {
            command: [word for name, number in chosen.items() for word in (f"--{name}", str(number))]
            for command, chosen in numbers.items()
        }

    def too_short(self) -> dict[str, tuple[int, int]]:
        """Return command -> (samples, least that mean anything) of the trainings that are too short."""
        chosen = {"train-vqvae": self.vqvae_samples, "train-ldm": self.unet_samples}
        return {command: (chosen[command], least) for command, least in LEAST.items() if chosen[command] < least}


def choose(seconds: float, speeds: Speeds, classes: int, images: int | None = None) -> Lengths:
    """Return the lengths of all stages.

    Args:
        seconds: what is left of the budget.
        speeds: measured on this machine.
        classes: number of classes.
        images: number of images that are there; None where they are simulated.
    """
    overhead = dict.fromkeys(("pack", "encode", "generate", "evaluate"), speeds.stage_s)
    overhead |= {"simulate": speeds.simulate_s} if images is None else {}
    overhead |= dict.fromkeys(LEAST, speeds.training_s)
    work = max(MARGIN * seconds - sum(overhead.values()), 0.1 * seconds)

    # Images, and what reading, encoding and validating them takes.
    per_class = 0
    if images is None:
        wanted = int(SHARES["simulate"] * work * speeds.simulate / classes)
        per_class = min(max(wanted, LEAST_SIMULATED), MOST_SIMULATED) // SUBJECTS * SUBJECTS
    count = per_class * classes if images is None else images
    expected = {"simulate": per_class * classes / speeds.simulate} if images is None else {}
    expected |= {"pack": count / PACKED_PER_S, "encode": count / (FORWARD * speeds.vqvae)}

    # Synthetic images: steps of the U-Net, and the decoder, which is half of the VQ-VAE.
    one = SAMPLING_STEPS / (FORWARD * speeds.unet) + 0.5 / (FORWARD * speeds.vqvae)
    each = min(max(int(SHARES["generate"] * work / one / classes), LEAST_GENERATED), MOST_GENERATED)
    expected["generate"] = each * classes * one

    # Classifiers.
    takes = {
        each: (EVALUATION + PER_IMAGE * count + PER_STEP * each[0] * each[1] * ARMS[each[2]]) / speeds.vqvae
        for each in CLASSIFIERS
    }
    fitting = [each for each in CLASSIFIERS if takes[each] <= SHARES["evaluate"] * work]
    chosen = fitting[0] if fitting else CLASSIFIERS[-1]
    expected["evaluate"] = takes[chosen]

    # The trainings share what is left; short ones are validated less often.
    training = max(work - sum(expected.values()), 0.1 * work)
    passes = {"train-vqvae": HELD_OUT * count, "train-ldm": DRAWS * HELD_OUT * count}
    passes["train-ldm"] += PICTURES * PICTURE_STEPS * classes
    samples, every = {}, {}
    for command, rate, share in (
        ("train-vqvae", speeds.vqvae, VQVAE_SHARE),
        ("train-ldm", speeds.unet, 1 - VQVAE_SHARE),
    ):
        whole, pause = share * training * rate, passes[command] / FORWARD  # in trained samples
        validations = min(2 if seconds < 600 else 4, max(1, int(MOST_VALIDATION * whole / pause)))
        samples[command] = max(64, int(whole - validations * pause) // 16 * 16)
        every[command] = math.ceil(samples[command] / validations)
        expected[command] = max(share * training, (samples[command] + validations * pause) / rate)
    return Lengths(
        simulated_per_class=per_class,
        vqvae_samples=samples["train-vqvae"],
        unet_samples=samples["train-ldm"],
        vqvae_every=every["train-vqvae"],
        unet_every=every["train-ldm"],
        generated=each * classes,
        seeds=chosen[0],
        classifier_steps=chosen[1],
        real_per_class=chosen[2],
        seconds={command: second + overhead[command] for command, second in expected.items()},
    )


def as_dict(lengths: Lengths) -> dict:
    """Return the lengths as JSON holds them."""
    return dataclasses.asdict(lengths)
