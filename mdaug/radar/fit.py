"""How a preset is changed so that its pictures resemble those of a set: numbers of the radar, and stretched draws."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mdaug.radar.parameters import LIKE, Draw, Parameters

USUAL = {"speed_m_s": "usual_speed_m_s", "amplitude_deg": "usual_amplitude_deg", "flap_hz": "usual_flap_hz"}
"""Parameter of a picture -> what is usual for its person or animal."""
BOUNDS: dict[str, tuple[float, float]] = {
    "speed_m_s": (0.3, 2.4),
    "cycle_scale": (0.6, 1.7),
    "hip_scale": (0.4, 1.8),
    "knee_scale": (0.4, 1.8),
    "amplitude_deg": (5, 120),
    "sitting_s": (0.5, 4),
    "flap_hz": (0.5, 15),
    "velocity_m_s": (-30, 30),
    "snr_db": (-15, 60),
}
"""Parameter -> least and largest value that a body, or a receiver, has."""


@dataclass(frozen=True)
class Stretch:
    """A value p, usually u, becomes offset + between u + within (p - u); u is p where nothing is usual."""

    offset: float = 0.0
    between: float = 1.0
    within: float = 1.0


@dataclass(frozen=True)
class Fit:
    """What differs from a preset. An empty one changes nothing."""

    sensor: dict[str, Any] = field(default_factory=dict)
    """Fields of `Sensor`."""
    clip_db: float | None = None
    size: tuple[int, int] | None = None
    """Rows and columns of the image files; the native ones of the sensor are enlarged by nearest neighbour."""
    image_mode: Literal["rgb", "gray"] | None = None
    colormap: str | None = None
    """Of the image files, a name in COLORMAPS."""
    stretches: dict[str, dict[str, Stretch]] = field(default_factory=dict)
    """Class of a preset -> parameter -> what becomes of its draws."""
    approaching: dict[str, float] = field(default_factory=dict)
    """Class -> share of pictures in which the target faces the radar."""

    peak_db: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Class -> mean and standard deviation of what the brightest pixel lies below the top of the range, in dB."""

    def apply(self, name: str, drawn: Parameters, seed: int, number: int) -> Parameters:
        """Return the parameters of picture or walk `number` of a class, in place of those that were drawn."""
        fitted = dict(drawn)
        for parameter, stretch in self.stretches.get(name, {}).items():
            value = float(drawn[parameter])
            usual = float(drawn.get(USUAL.get(parameter, parameter), value))
            low, high = BOUNDS[parameter]
            stretched = stretch.offset + stretch.between * usual + stretch.within * (value - usual)
            fitted[parameter] = float(f"{min(max(stretched, low), high):.6g}")
        draw = Draw.of(name, seed, LIKE, number)
        faces = draw.uniform(0, 1)
        if name in self.peak_db:
            fitted["peak_db"] = max(0.0, draw.normal(*self.peak_db[name]))
        if name in self.approaching:
            away = 180 * (faces >= self.approaching[name])
            fitted["aspect_deg"] = float(f"{away + (float(drawn['aspect_deg']) + 90) % 180 - 90:.6g}")
        return fitted

    def as_dict(self) -> dict[str, Any]:
        """Return the fit as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Fit:
        """Return the fit that `as_dict` described."""
        stretches = {
            name: {parameter: Stretch(**each) for parameter, each in of_class.items()}
            for name, of_class in saved["stretches"].items()
        }
        size = saved["size"] and (int(saved["size"][0]), int(saved["size"][1]))
        peaks = {name: (mean, spread) for name, (mean, spread) in saved["peak_db"].items()}
        return cls(**saved | {"stretches": stretches, "size": size, "peak_db": peaks})
