"""`mdaug simulate`: same bytes whatever the workers and interruptions, and a metadata row for every picture."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug.cli import main
from mdaug.radar import flyers, targets
from mdaug.radar.options import CLASSES, SimulateConfig
from mdaug.radar.parameters import NOISE, Draw
from mdaug.radar.presets import record
from mdaug.radar.sensor import Sensor
from mdaug.radar.simulate import run as simulate
from mdaug.radar.stft import to_levels
from shards import provenance
from shards.colormap import jet
from shards.errors import UserError

from .radar_helpers import rows_of
from .shards_helpers import contents


def config(folder: Path, **fields) -> SimulateConfig:
    return SimulateConfig(
        folder, **{"images_per_class": 4, "images_per_group": 2, "image_size": 64, "workers": 1} | fields
    )


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families") / "set"
    simulate(config(folder))
    return folder


def test_workers_do_not_change_a_byte(families, tmp_path):
    simulate(config(tmp_path / "set", workers=2))
    assert contents(tmp_path / "set") == contents(families)
    hashes = {provenance.read(folder, "image-folder")["hash"] for folder in (families, tmp_path / "set")}
    assert len(hashes) == 1


def test_interrupted_run_ends_with_the_same_bytes(families, tmp_path, monkeypatch, capsys):
    """Killed in the middle, with half a file left behind, and started again; the third time nothing is done."""
    folder = tmp_path / "set"
    encode, made = targets.TARGETS["bird"].echo, []

    def killed(*arguments):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    with monkeypatch.context() as patch:
        bird = targets.Target(flyers.bird_group, flyers.bird_image, killed)
        patch.setitem(targets.TARGETS, "bird", bird)
        with pytest.raises(KeyboardInterrupt):
            simulate(config(folder))
    assert not (folder / "metadata.csv").exists()
    assert not (folder / "provenance.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    assert finished
    (folder / "bird" / ".bird_g0_2.png.123.tmp").write_bytes(b"half")
    simulate(config(folder))
    assert contents(folder) == contents(families)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    capsys.readouterr()
    simulate(config(folder, workers=2))
    assert "finished" in capsys.readouterr().out


def running(group: int) -> list[str]:
    """State letters of the processes of a process group, without those that have ended and wait to be collected."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            states += [state] if int(of_group) == group and state not in "ZX" else []
    return states


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_kill_leaves_no_workers_and_only_whole_pictures(tmp_path):
    folder = tmp_path / "set"
    flags = ["--classes", '["walking"]', "--images_per_class", "400", "--image_size", "64", "--workers", "2"]
    command = [sys.executable, "-m", "mdaug", "simulate", "--output_dir", str(folder), *flags]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("walking/*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    while running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(process.pid)
    pictures = list(folder.glob("walking/*.png"))
    assert 0 < len(pictures) < 400
    for path in pictures:
        assert np.asarray(Image.open(path)).shape == (64, 64, 3)


def test_a_deleted_picture_comes_back(families, tmp_path):
    folder = tmp_path / "set"
    simulate(config(folder, classes=["drone"]))
    before = contents(folder)
    (folder / "drone/drone_g1_3.png").unlink()
    simulate(config(folder, classes=["drone"]))
    assert contents(folder) == before
    # Which other classes there are does not matter either.
    drones = {name: data for name, data in contents(families).items() if name.startswith("drone/")}
    assert drones == {name: data for name, data in before.items() if name.startswith("drone/")}


def test_metadata_has_a_row_for_every_picture(families):
    rows = rows_of(families)
    assert sorted(row["file"] for row in rows) == sorted(name for name in contents(families) if name.endswith(".png"))
    for row in rows:
        assert row["file"] == f"{row['class']}/{row['group']}_{row['index']}.png"
        given = targets.draw(row["class"], int(row["seed"]), int(row["index"]) // 2, int(row["index"]))
        assert {name: float(row[name]) for name in given} == pytest.approx(given, rel=1e-12)
        others = set(row) - set(given) - {"file", "class", "group", "index", "seed"} - set(SENSOR_COLUMNS)
        assert all(row[name] == "" for name in others)


SENSOR_COLUMNS = (
    "carrier_hz", "v_max_m_s", "duration_s", "window_s", "mti_cutoff_m_s", "prf_hz", "clip_db",
)  # fmt: skip


def test_group_keeps_its_body_and_differs_from_other_groups(families):
    walkers = [row for row in rows_of(families) if row["class"] == "walking"]
    bodies = {row["group"]: (row["height_m"], row["cycle_scale"], row["build"]) for row in walkers}
    assert len(bodies) == len(set(bodies.values())) == 2
    for row in walkers:
        assert (row["height_m"], row["cycle_scale"], row["build"]) == bodies[row["group"]]
    assert len({row["speed_m_s"] for row in walkers}) == len(walkers)


def test_a_row_of_the_metadata_makes_the_picture(families):
    """Nothing that shows in the picture is missing from the row."""
    sensor = Sensor(rows=64, columns=64)
    for text in rows_of(families):
        row = {
            name: value if name in ("file", "class", "group") else float(value) for name, value in text.items() if value
        }
        row["rotor_seed"] = int(row.get("rotor_seed", 0))
        echo = targets.TARGETS[row["class"]].echo(row, sensor, sensor.time_s)
        noise = Draw.of(row["class"], int(row["seed"]), NOISE, int(row["index"])).rng
        levels = to_levels(record(echo, row, sensor, noise), row["clip_db"])
        np.testing.assert_array_equal(np.asarray(Image.open(families / row["file"])), jet()[levels])


def test_pictures_are_jet_or_gray_with_a_floor(families, tmp_path):
    simulate(config(tmp_path / "gray", image_mode="gray", classes=["walking", "sit_down", "stand_up"]))
    for path in sorted((tmp_path / "gray").glob("*/*.png")):
        gray = np.asarray(Image.open(path))
        assert gray.shape == (64, 64)
        assert (gray.min(), gray.max()) == (0, 255)
    same = np.asarray(Image.open(tmp_path / "gray/walking/walking_g0_1.png"))
    np.testing.assert_array_equal(jet()[same], np.asarray(Image.open(families / "walking/walking_g0_1.png")))


def test_seed_changes_the_pictures(families, tmp_path):
    simulate(config(tmp_path / "set", seed=1, classes=["bird"]))
    one = "bird/bird_g0_0.png"
    assert (tmp_path / "set" / one).read_bytes() != (families / one).read_bytes()


def test_folder_of_another_run_is_refused(families, tmp_path):
    with pytest.raises(UserError, match="seed: 0 there, 7 now"):
        simulate(config(families, seed=7))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \('notes\.txt'\)"):
        simulate(config(tmp_path))


def test_folder_of_earlier_physics_is_refused(tmp_path, monkeypatch):
    """The same options would go on with other pictures."""
    with monkeypatch.context() as patch:
        patch.setattr("mdaug.radar.simulate.PHYSICS", 1)
        simulate(config(tmp_path / "set", classes=["drone"], images_per_class=1))
    with pytest.raises(UserError, match="physics: 1 there, 3 now"):
        simulate(config(tmp_path / "set", classes=["drone"], images_per_class=1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", '["walking","cow"]'], "classes=['walking', 'cow'] must hold at least one of walking"),
        (["--image_size", "100"], "image_size=100 must be a multiple of 8"),
        (["--image_size", "1000000"], "image_size=1000000"),
        (["--duration_s", "8e4"], "at most 1,000,000"),
        (["--images_per_class", "0"], "images_per_class=0"),
        (["--window_s", "4"], "window_s=4"),
        (["--preset", "gait-persons", "--classes", '["walking"]'], "preset=gait-persons takes num_persons"),
    ],
)
def test_mistakes_are_one_clear_line(flags, message, tmp_path, capsys):
    assert main(["simulate", "--output_dir", str(tmp_path / "set"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_classes_of_the_help_are_those_that_exist():
    assert tuple(targets.TARGETS) == CLASSES


def test_full_disk_is_one_clear_line(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["simulate", f"--output_dir={tmp_path / 'set'}", "--images_per_class=2", "--workers=1"]) == 2
    assert "no space left while writing" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("persons") / "set"
    simulate(config(folder, preset="gait-persons", num_persons=2, images_per_class=20, image_size=256))
    return folder


def test_persons_have_the_names_and_shape_of_user_data(persons):
    rows = rows_of(persons)
    assert {row["class"] for row in rows} == {"ID_1", "ID_2"}
    assert (persons / "ID_2/ID2_case1_1_Doppler1.jpg").is_file()
    assert sorted(row["file"] for row in rows) == sorted(name for name in contents(persons) if name.endswith(".jpg"))
    picture = Image.open(persons / rows[0]["file"])
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (256, 256))
    floor = np.abs(np.asarray(picture).astype(int) - jet()[0]).max(axis=2) < 14
    assert 0.3 < floor.mean() < 0.85


def test_neighbouring_windows_overlap_by_three_quarters(persons):
    """A quarter of a picture later, the next one shows the same; other walks and other people do not."""
    rows = rows_of(persons)
    first, second = (np.asarray(Image.open(persons / row["file"]).convert("L")).astype(float) for row in rows[:2])
    shift = round(256 * 14 / 57)
    assert np.corrcoef(first[:, shift:].ravel(), second[:, :-shift].ravel())[0, 1] > 0.9
    assert [row["group"] for row in rows[:2]] == ["ID_1_walk00"] * 2
    assert float(rows[1]["start_s"]) == pytest.approx(3 / 4, rel=0.05)
    assert len({row["group"] for row in rows}) >= 4


def test_turns_leave_gaps_in_the_numbers(persons):
    rows = [row for row in rows_of(persons) if row["class"] == "ID_1"]
    numbers = [int(row["file"].rpartition("Doppler")[2].removesuffix(".jpg")) for row in rows]
    for before, after, gap in zip(rows, rows[1:], np.diff(numbers), strict=False):
        assert (gap == 1) == (before["group"] == after["group"])
