"""Proportions of the human body, as fractions of its height, and the ellipsoids that stand for its parts."""

from __future__ import annotations

import numpy as np

# Lengths over body height: Boulic, Thalmann and Thalmann, "A global human walking model with real-time kinematic
# personification", The Visual Computer 6, 1990, in Chen's rescaled form.
HEAD, HALF_SHOULDER, TORSO, HALF_HIP = 0.130, 0.1295, 0.288, 0.0955
THIGH, SHANK, FOOT, UPPER_ARM, FOREARM = 0.245, 0.246, 0.143, 0.188, 0.152
HIP_HEIGHT = THIGH + SHANK
STANDING = HIP_HEIGHT + TORSO + HEAD
"""From the ankles to the top of the head."""

# Radii of the ellipsoids in m.
HEAD_RADIUS, TORSO_RADIUS, SHOULDER_RADIUS, UPPER_ARM_RADIUS, FOREARM_RADIUS = 0.1, 0.15, 0.06, 0.06, 0.05
HIP_RADIUS, THIGH_RADIUS, SHANK_RADIUS, FOOT_RADIUS = 0.07, 0.07, 0.06, 0.05

SIDES = np.array([-1.0, 1.0])
"""Right and left: the y axis points to the left of the person, x forward, z up."""


def hanging(length_m: float, angle: np.ndarray) -> np.ndarray:
    """Return the vector (..., 3, N) of a limb that hangs down and swings forward by `angle` (..., N) in radians."""
    return length_m * np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], axis=-2)


def rising(length_m: float, lean: np.ndarray) -> np.ndarray:
    """Return the vector (..., 3, N) of a part that stands upright and leans forward by `lean` (..., N) in radians."""
    return length_m * np.stack([np.sin(lean), np.zeros_like(lean), np.cos(lean)], axis=-2)


def sideways(half_width_m: float) -> np.ndarray:
    """Return the vectors (2, 3, 1) from the middle of the body to its right and left joint."""
    return half_width_m * SIDES[:, None, None] * np.array([0, 1, 0])[:, None]
