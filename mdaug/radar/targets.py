"""The classes of simulated targets: what is drawn for a group and for an image, and the echo that follows from it.

A group is one person, device or animal: it keeps its body and habits over all its images, and a split by group
keeps it on one side. Every number that is drawn is a column of the metadata, rounded before it is used, so a row of
the metadata is all that the clean echo depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mdaug.radar import flyers, people
from mdaug.radar.parameters import GROUP, IMAGE, Draw, Parameters
from mdaug.radar.sensor import Sensor


@dataclass(frozen=True)
class Target:
    """One class: parameters of a group, parameters of an image of that group, and the echo (N,) of both together."""

    group: Callable[[Draw], Parameters]
    image: Callable[[Draw, Parameters], Parameters]
    echo: Callable[[dict, Sensor, np.ndarray], np.ndarray]
    snr_db: tuple[float, float] = (20, 36)
    """Per pulse, over the whole picture: a short motion reaches the same contrast with less."""


def draw(name: str, seed: int, group: int, index: int) -> Parameters:
    """Return all physical parameters of image `index` of class `name`: a pure function of its arguments."""
    target = TARGETS[name]
    of_group = target.group(Draw.of(name, seed, GROUP, group))
    image = Draw.of(name, seed, IMAGE, index)
    of_image = target.image(image, of_group)
    received: Parameters = {
        "snr_db": image.uniform(*target.snr_db),
        "clutter_to_signal_db": image.uniform(20, 40),
        "iq_image_db": image.uniform(-50, -32),
    }
    return of_group | of_image | received


TARGETS = {
    "walking": Target(people.walking_group, people.walking_image, people.walking_echo),
    "drone": Target(flyers.drone_group, flyers.drone_image, flyers.drone_echo),
    "bird": Target(flyers.bird_group, flyers.bird_image, flyers.bird_echo),
    "arm_swing": Target(people.arm_swing_group, people.arm_swing_image, people.arm_swing_echo, snr_db=(24, 38)),
    "fall": Target(people.fall_group, people.fall_image, people.fall_echo, snr_db=(14, 30)),
    "sit_down": Target(people.sitting_group, people.sitting_image, people.sitting_echo, snr_db=(14, 30)),
    "stand_up": Target(people.sitting_group, people.sitting_image, people.standing_up_echo, snr_db=(14, 30)),
}
