"""A bird with flapping wings of two segments.

Source: V. C. Chen, The Micro-Doppler Effect in Radar, 2nd ed. 2019, ch. 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdaug.radar.body import SIDES


@dataclass(frozen=True)
class Wing:
    """Both wings, mirrored. Angles in degrees, lengths in m."""

    inner_m: float = 0.25
    outer_m: float = 0.25
    flap_hz: float = 4.0
    inner_amplitude_deg: float = 40.0
    inner_offset_deg: float = 15.0
    outer_amplitude_deg: float = 30.0
    outer_offset_deg: float = 40.0
    twist_deg: float = 20.0

    def joints(self, cycles: np.ndarray, gain: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return elbow and tip (2, 3, N) in m relative to the shoulder; x is forward, y left, z up.

        psi1 = A1 cos(2 pi f t) + psi10 lifts the inner segment, psi2 = A2 cos(2 pi f t) + psi20 bends the outer one
        down against it, and a twist C2 sin(2 pi f t) sweeps the tip fore and aft. The elbow moves at up to
        2 pi f A1 L1, the tip at up to 2 pi f (L1 A1 + L2 abs(A1 - A2)), both with the twist left out.

        Args:
            cycles: (N,) phase of the wing beat, f t for a steady beat.
            gain: (N,) factor on the amplitudes, 0 in a glide.
        """
        beat, side = gain * np.cos(2 * np.pi * cycles), SIDES[:, None]
        inner = np.radians(self.inner_amplitude_deg * beat + self.inner_offset_deg)
        outer = inner - np.radians(self.outer_amplitude_deg * beat + self.outer_offset_deg)
        twist = np.radians(self.twist_deg) * gain * np.sin(2 * np.pi * cycles)
        zero = np.zeros((2, len(cycles)))
        elbow = self.inner_m * np.stack([zero, side * np.cos(inner), zero + np.sin(inner)], axis=1)
        reach = np.cos(twist)  # keeps the length of the outer segment whatever the twist
        tip = self.outer_m * np.stack(
            [zero + np.sin(twist), side * reach * np.cos(outer), zero + reach * np.sin(outer)], axis=1
        )
        return elbow, elbow + tip
