"""`mdaug simulate --like`: what a set was simulated with is found again, flags win, and mistakes are one clear line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug.cli import main
from mdaug.measures import image_set, imitate, imitate_fit, imitate_look, realism
from mdaug.measures.imitate_look import Spread
from mdaug.radar.fit import Fit, Stretch
from mdaug.radar.options import SimulateConfig
from mdaug.radar.presets import STREAM
from mdaug.radar.simulate import finish, identity, write_pictures
from shards.options import PackConfig
from shards.output_folder import claim
from shards.pack import run as pack

from .radar_helpers import rows_of
from .shards_helpers import contents

KNOWN = {
    "speed_m_s": Stretch(0.5, 0.4, 1),
    "cycle_scale": Stretch(0, 0.88, 1),
    "snr_db": Stretch(-12),
}
"""A slow, short stepping and noisy version of the walkers of a preset."""


def known_set(root: Path, name: str, fit: Fit, **fields) -> tuple[Path, list[dict]]:
    """Simulate a set whose parameters are known, and pack it; return the packed folder and the rows."""
    options = SimulateConfig(root / "images", workers=1, seed=5, **fields)
    output = claim(options.output_dir, "simulate", identity(options), {"like": None})
    rows = write_pictures(options, fit, output)
    finish(options, rows, output)
    pack(PackConfig(options.output_dir, root / name, image_size=options.image_size, workers=1))
    return root / name, rows


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A few walkers, with an axis of their own."""
    fields = {"carrier_hz": 10e9, "v_max_m_s": 4.5, "duration_s": 2.5, "window_s": 0.08, "clip_db": 37}
    return known_set(
        tmp_path_factory.mktemp("small"), "packed", Fit(), classes=["walking", "fall"], images_per_class=12,
        images_per_group=2, image_size=32, **fields,
    )[0]  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(imitate_fit, "ROUNDS", 2)
    monkeypatch.setattr(imitate_fit, "BATCH", 6)
    monkeypatch.setattr(realism, "compare", partial(realism.compare, steps=2))


def flags(like: Path, output: Path, *more: str) -> list[str]:
    return [
        *("simulate", "--like", str(like), "--output_dir", str(output), "--workers", "1", "--images_per_class", "8"),
        *more,
    ]


def table(folder: Path) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in json.loads((folder / "like.json").read_text(encoding="utf-8"))["table"]}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["families", "gait-persons"])
def test_what_a_set_was_simulated_with_is_found_again(preset, tmp_path):
    """Another seed, other persons. Speed within 10 %, cycle 10 %, noise 3 dB, share of the floor 0.06."""
    name = "walking" if preset == "families" else STREAM
    of_preset = {"classes": ["walking"], "images_per_class": 90, "images_per_group": 3, "image_size": 64}
    of_persons = {"num_persons": 10, "images_per_class": 10, "image_size": 256, "carrier_hz": 24e9}
    stretches = KNOWN | ({} if preset == "families" else {"speed_m_s": Stretch(-0.3)})
    packed, rows = known_set(
        tmp_path, "packed", Fit(stretches={name: stretches}), preset=preset,
        **(of_preset if preset == "families" else of_persons),
    )  # fmt: skip
    count = ["--images_per_class", "60" if preset == "families" else "12", "--images_per_group", "3"]
    assert main(flags(packed, tmp_path / "out", "--preset", preset, "--seed", "1", *count)) == 0
    found = rows_of(tmp_path / "out")
    means = {key: (mean(rows, key), mean(found, key)) for key in ("speed_m_s", "cycle_scale", "snr_db")}
    assert means["speed_m_s"][1] == pytest.approx(means["speed_m_s"][0], rel=0.1)
    assert means["cycle_scale"][1] == pytest.approx(means["cycle_scale"][0], rel=0.1)
    assert means["snr_db"][1] == pytest.approx(means["snr_db"][0], abs=3)
    here, there, _ = table(tmp_path / "out")["share of pixels at the floor"]
    assert float(there) == pytest.approx(float(here), abs=0.06)
    if preset != "families":
        assert table(tmp_path / "out")["the same, before enlarging"][:2] == ["112 × 57"] * 2


def mean(rows: list[dict], name: str) -> float:
    return float(np.mean([float(row[name]) for row in rows]))


def test_axis_of_the_set_and_flags_that_win(small, tmp_path, quick):
    assert main(flags(small, tmp_path / "out", "--v_max_m_s", "5", "--image_mode", "gray")) == 0
    row = rows_of(tmp_path / "out")[0]
    assert [float(row[name]) for name in ("carrier_hz", "v_max_m_s", "duration_s", "window_s", "clip_db")] == [
        *(10e9, 5, 2.5, 0.08, 37)
    ]
    assert {row["class"] for row in rows_of(tmp_path / "out")} == {"walking", "fall"}  # of the same names
    found = table(tmp_path / "out")
    assert found["velocity at the upper edge"] == ["4.5 m/s", "5 m/s", "5 m/s (--v_max_m_s)"]
    assert found["time span"] == ["2.5 s", "2.5 s", "2.5 s (the set)"]
    assert found["rows × columns"][:2] == ["32 × 32"] * 2
    assert found["colours"] == ["jet-256", "gray", "gray (--image_mode)"]
    assert (tmp_path / "out/like.md").read_text(encoding="utf-8").startswith("| | measured | simulated | asked |")
    picture = Image.open(tmp_path / "out" / row["file"])
    assert (picture.mode, picture.size) == ("L", (32, 32))


def test_an_interrupted_run_ends_with_the_same_bytes(small, tmp_path, quick, monkeypatch, capsys):
    arguments = ["--like_classes", "[walking=walking]"]
    assert main(flags(small, tmp_path / "whole", *arguments)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(imitate, "compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(flags(small, tmp_path / "cut", *arguments)) == 130
    next((tmp_path / "cut/walking").iterdir()).unlink()
    monkeypatch.setattr(imitate, "calibrate", lambda *_: pytest.fail("what was found before stays"))
    assert main(flags(small, tmp_path / "cut", *arguments)) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    capsys.readouterr()
    assert main(flags(small, tmp_path / "cut", *arguments)) == 0
    assert "finished" in capsys.readouterr().out
    # Neither another set nor none goes on in that folder.
    rest = ["simulate", "--output_dir", str(tmp_path / "cut"), "--workers", "1"]
    assert main(rest) == 2
    assert "made from like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--like_classes", "[walking=sprint]"], "has no class sprint; it has fall, walking"),
        (["--like_classes", "[walking]"], "must hold pairs such as walking=walk"),
        (["--like_classes", "[running=walking]"], "must hold pairs such as walking=walk"),
        (["--like_classes", "[walking=walking,walking=fall]"], "each only once"),
        (["--like_classes", "[walking=walking]", "--preset", "gait-persons"], "needs --like and preset=families"),
    ],
)
def test_mistakes_are_one_clear_line(more, words, small, tmp_path, capsys):
    assert main(flags(small, tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def images(root: Path, *classes: str) -> Path:
    """An image folder without a table: nobody knows its axes."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 48)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_what_the_set_does_not_say_is_asked_for(tmp_path, capsys):
    folder = images(tmp_path / "set", "walk", "tap")
    assert main(flags(folder, tmp_path / "out")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "does not say which of its classes (tap, walk) shows what" in said
    assert said.endswith(
        "nor what its axes mean, the same for all images; give --v_max_m_s (velocity at the upper edge "
        "in m/s) and --duration_s (time span in s)"
    )  # all at once
    assert main(flags(folder, tmp_path / "out", "--like_classes", "[walking=walk]", "--v_max_m_s", "3")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("does not say what its axes mean, the same for all images; give --duration_s (time span in s)")
    assert main(flags(tmp_path / "nothing", tmp_path / "out")) == 2
    assert main(["simulate", "--output_dir", str(tmp_path / "out"), "--like_classes", "[walking=walk]"]) == 2
    assert "needs --like" in capsys.readouterr().err


def test_an_image_folder_is_packed_once_and_need_not_be_square(tmp_path, quick):
    axis = ["--v_max_m_s", "3", "--duration_s", "1", "--carrier_hz", "10e9", "--classes", "[walking]"]
    assert main(flags(images(tmp_path / "set", "walk"), tmp_path / "out", *axis)) == 0
    assert len(list((tmp_path / ".mdaug-cache").glob("*/provenance.json"))) == 1
    assert table(tmp_path / "out")["dynamic range"][::2] == ["not said", "40 dB (assumed)"]
    assert table(tmp_path / "out")["window"][2].endswith("(matched)")
    assert Image.open(next((tmp_path / "out/walking").glob("*.png"))).size == (48, 40)


def test_spreads_between_and_within_groups():
    rng = np.random.default_rng(0)
    usual = rng.normal(5, 0.5, 400)
    values = (usual[:, None] + rng.normal(0, 0.2, (400, 5))).ravel()
    found = Spread.of(np.append(values, np.nan), np.append(np.repeat(np.arange(400), 5), 0))
    assert (found.centre, found.between, found.within) == pytest.approx((5, 0.5, 0.2), rel=0.1)
    alone = Spread.of(values, np.arange(2000))
    assert alone.between is None
    assert alone.within == pytest.approx(np.hypot(0.5, 0.2), rel=0.05)
    assert Spread.of(np.full(9, np.nan), np.zeros(9)) is None


def test_a_fit_stretches_between_and_within_persons():
    fit = Fit(
        stretches={"walking": {"speed_m_s": Stretch(1, 0.5, 2), "cycle_scale": Stretch(0, 9)}},
        approaching={"walking": 0.25},
        peak_db={"walking": (6.0, 1.0)},
    )
    drawn = {"usual_speed_m_s": 1.0, "speed_m_s": 1.1, "cycle_scale": 1.0, "aspect_deg": 170.0}
    rows = [fit.apply("walking", drawn, 0, number) for number in range(400)]
    assert {row["speed_m_s"] for row in rows} == {1.7}
    assert {row["cycle_scale"] for row in rows} == {1.7}  # cut to what a body can do
    assert {row["aspect_deg"] for row in rows} == {-10.0, 170.0}
    assert np.mean([row["aspect_deg"] == -10 for row in rows]) == pytest.approx(0.25, abs=0.06)
    assert np.mean([row["peak_db"] for row in rows]) == pytest.approx(6, abs=0.2)
    assert rows[7] == fit.apply("walking", drawn, 0, 7)
    assert Fit.from_dict(json.loads(json.dumps(fit.as_dict()))) == fit
    assert Fit().apply("walking", drawn, 0, 0) == drawn


@pytest.mark.parametrize(("rows", "columns"), [(24, 57), (128, 40), (128, 128)])
def test_enlarging_is_seen(rows, columns, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set/a").mkdir(parents=True)
    for i in range(6):
        picture = Image.fromarray(rng.integers(0, 256, (rows, columns)).astype(np.uint8))
        picture.resize((128, 128), Image.Resampling.NEAREST).save(tmp_path / f"set/a/{i}.png")
    pack(PackConfig(tmp_path / "set", tmp_path / "packed", image_size=128, workers=1))
    found = imitate_look._native(image_set.load(tmp_path / "packed/train", image_size=32, max_per_class=9))
    assert found == (None if rows == 128 else rows, None if columns == 128 else columns)
