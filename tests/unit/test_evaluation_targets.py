"""The targets of synthetic images: three ratios, each to what real images reach, and where they are shown."""

from __future__ import annotations

import pytest

from mdaug.evaluation.report import page, sections
from mdaug.evaluation.report.verdict import targets


def measured(judged: float = 0.9, frechet: float = 1.0, nearest: float = 12.0) -> dict:
    """Return what the targets need of an evaluation: real images reach 0.5 and, all of them, 0.8; 0.5; 10 levels."""
    arms = [
        {"arm": "real", "n_real": 5, "real": 20, "accuracy": 0.5},
        {"arm": "real", "n_real": "all", "real": 80, "accuracy": 0.8},
        {"arm": "real + synthetic", "n_real": "all", "real": 80, "accuracy": 1.0},
    ]
    networks = [
        {"name": "classifier", "synthetic": {"frechet": frechet}, "floor": {"frechet": 0.5}},
        {"name": "random network", "synthetic": {"frechet": 99.0}, "floor": {"frechet": 0.5}},
    ]
    return {
        "data": {"classes": ["a", "b", "c", "d"], "held_out": [20] * 4},
        "usefulness": {"arms": arms, "chance": 0.25, "real_to_synthetic": {"accuracy": judged}},
        "fidelity": {"networks": networks},
        "memorization": {"synthetic_median": nearest, "held_out_median": 10.0},
    }


def test_each_target_is_a_ratio_to_what_real_images_reach():
    rows = targets(measured(judged=0.76, frechet=0.9, nearest=12.0))
    assert [row["ratio"] for row in rows] == pytest.approx([0.95, 1.8, 1.2])
    assert [(row.get("at_least"), row.get("at_most")) for row in rows] == [(0.9, None), (None, 2.0), (1.0, None)]
    assert all(row["reached"] for row in rows)


@pytest.mark.parametrize(
    ("which", "worse"), [(0, {"judged": 0.71}), (1, {"frechet": 1.01}), (2, {"nearest": 9.9})], ids=str
)
def test_a_target_is_missed_just_beyond_its_limit_and_the_others_are_not(which, worse):
    reached = [row["reached"] for row in targets(measured(**worse))]
    assert reached == [number != which for number in range(3)]


@pytest.mark.parametrize(("which", "part"), enumerate(["usefulness", "fidelity", "memorization"]))
def test_a_part_that_was_not_measured_leaves_its_row_out(which, part):
    whole = targets(measured())
    assert targets({**measured(), part: None}) == [row for number, row in enumerate(whole) if number != which]


def test_too_few_images_for_a_distance_leave_its_row_out():
    metrics = measured()
    metrics["fidelity"]["networks"][0].update(synthetic=None, floor=None)
    assert len(targets(metrics)) == 2


def test_nothing_measured_shows_no_table():
    nothing = dict.fromkeys(("usefulness", "fidelity", "memorization"))
    assert sections.target_table(nothing) == []


def test_the_table_says_what_was_not_reached():
    text = "".join(sections.target_table(measured(frechet=5.0)))
    assert text.count("<b>reached</b>") == 2
    assert "<td>Fréchet distance in features of a classifier: <b>not reached</b></td><td>5</td><td>0.5</td>" in text
    assert "<td>10</td><td>≤ 2</td>" in text


def test_the_summary_shows_the_same_rows(tmp_path):
    others = {"failed": {}, "verdict": None, "usefulness": None, "fidelity": None, "reconstruction": None}
    memory = {"synthetic_median": 8.0, "held_out_median": 10.0, "synthetic_copies": 0, "share_closer": 0.0}
    lines = page.summary({**others, "memorization": memory}, tmp_path).splitlines()
    head = next(line for line in lines if line.startswith("target"))
    row = next(line for line in lines if line.startswith("distance to the nearest training image"))
    assert head.split() == ["target", "synthetic", "real", "ratio", "limit"]
    assert row.split()[-7:] == ["8", "10", "0.8", "≥", "1", "not", "reached"]
    assert [row.index(cell) + len(cell) for cell in (" 8", " 10", " 0.8")] == [
        head.index(cell) + len(cell) for cell in ("synthetic", "real", "ratio")
    ]
