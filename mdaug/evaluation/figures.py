"""The figures of the report, made from its metrics; None where they were not measured."""

from __future__ import annotations

from mdaug.evaluation import plots
from mdaug.evaluation.drawing import Figure
from mdaug.evaluation.usefulness import (
    BOTH,
    BOTH_TRANSFORMS,
    DUPLICATED,
    REAL,
    TRANSFORMS,
    WITH_SIFTED,
    WITH_SIFTED_TRANSFORMS,
    WITH_SIMULATED,
)

NAMES = {"train": "training", "held_out": "held-out real", "synthetic": "synthetic"}
CURVES = (
    REAL,
    DUPLICATED,
    TRANSFORMS,
    BOTH,
    BOTH_TRANSFORMS,
    WITH_SIFTED,
    WITH_SIFTED_TRANSFORMS,
    WITH_SIMULATED,
)


def accuracy(metrics: dict) -> Figure | None:
    """Accuracy against n real, of each arm at its largest ratio."""
    if metrics["usefulness"] is None:
        return None
    arms = metrics["usefulness"]["arms"]
    ticks = list(dict.fromkeys(arm["n_real"] for arm in arms if arm["n_real"] != 0))
    series: dict[str, list[tuple[int, float, float, float]]] = {}
    for name in CURVES:
        last = {arm["n_real"]: arm for arm in arms if arm["arm"] == name}
        points = [(ticks.index(n), *(100 * arm[key] for key in ("accuracy", "low", "high"))) for n, arm in last.items()]
        if points:
            series[name] = points
    return Figure(list(series), [plots.curves(series, [str(tick) for tick in ticks])])


def levels(metrics: dict) -> Figure | None:
    """Shares of levels, and mean levels by Doppler and over time."""
    if metrics["fidelity"] is None:
        return None
    spectra = metrics["fidelity"]["levels"]
    kinds = {
        "histogram": ("Share of pixels at each level", ("floor", "full level")),
        "doppler": ("Mean level by Doppler", ("highest velocity", "lowest")),
        "time": ("Mean level over time", ("start", "end")),
    }
    drawn = [plots.profiles([spectra[name][key] for name in NAMES], *texts) for key, texts in kinds.items()]
    return Figure(list(NAMES.values()), drawn, columns=2)


def kinematics(metrics: dict) -> Figure | None:
    """Distributions of every measure of motion, per class."""
    if metrics["kinematics"] is None:
        return None
    figures = metrics["kinematics"]
    drawn = (
        plots.boxes(metrics["data"]["classes"], [figures["quantiles"][name][measure] for name in NAMES], measure, unit)
        for measure, unit in figures["units"].items()
    )
    known = [plot for plot in drawn if plot is not None]
    return Figure(list(NAMES.values()), known, columns=2) if known else None


FILES = {"accuracy.png": accuracy, "levels.png": levels, "kinematics.png": kinematics}
