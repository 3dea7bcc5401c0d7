"""`mdaug spectrogram`: every file accounted for, same bytes whatever the workers and interruptions, ready to pack."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug.cli import main
from mdaug.radar import image_folder
from mdaug.radar import spectrogram as command
from mdaug.radar.echo import receive
from mdaug.radar.options import SpectrogramConfig
from mdaug.radar.presets import record
from mdaug.radar.sensor import Sensor
from mdaug.radar.spectrogram import run as spectrogram
from mdaug.radar.stft import to_levels
from mdaug.radar.targets import TARGETS, draw
from shards import provenance
from shards.errors import UserError

from .radar_helpers import rows_of, sweeps, write_text
from .shards_helpers import contents

CARRIER, PRF, SIZE = 10e9, 1000.0, 32


def tone(path: Path, velocity_m_s: float, seconds: float = 2.0) -> None:
    """A continuous-wave recording of one target, and noise."""
    pulses = np.arange(round(seconds * PRF))
    doppler_hz = 2 * velocity_m_s * CARRIER / 299_792_458.0
    noise = np.random.default_rng(zlib.crc32(path.stem.encode())).normal(size=(2, len(pulses)))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.exp(2j * np.pi * doppler_hz * pulses / PRF) + 1e-2 * (noise[0] + 1j * noise[1]))


@pytest.fixture
def recordings(tmp_path):
    root = tmp_path / "recordings"
    for number in range(4):
        tone(root / "going" / f"day{number}.npy", -1.5)
        tone(root / "coming" / f"day{number}.npy", 2.0)
    tone(root / "coming" / "short.npy", 2.0, seconds=0.6)
    (root / "going" / "notes.txt").write_text("windy")
    (root / "going" / "broken.mat").write_bytes(b"broken")
    (root / "going" / ".hidden.npy").write_bytes(b"")
    return root


def config(recordings: Path, output: Path, **fields) -> SpectrogramConfig:
    own = {"carrier_hz": CARRIER, "prf_hz": PRF, "v_max_m_s": 3.0, "duration_s": 0.5, "image_size": SIZE, "workers": 1}
    return SpectrogramConfig(recordings, output, **own | fields)


def test_every_file_is_accounted_for_and_every_picture_has_its_row(recordings, tmp_path, capsys):
    output = tmp_path / "images"
    spectrogram(config(recordings, output))
    report = json.loads((output / "report.json").read_text())
    assert report["files"] == report["recordings"] + len(report["rejected"]) == 11
    assert report["rejected"] == {
        "coming/short.npy": "0.3 s are left after settle_s, less than duration_s 0.5",
        "going/broken.mat": report["rejected"]["going/broken.mat"],
        "going/notes.txt": "not a .dat, .mat, .npy, .npz, .h5, .hdf5, .bin, .wav, .sigmf-meta file",
    }
    assert "is not a MATLAB file" in report["rejected"]["going/broken.mat"]
    rows = rows_of(output)
    assert {row["file"] for row in rows} == {p.relative_to(output).as_posix() for p in output.glob("*/*.png")}
    assert len(rows) == report["pictures"] == sum(report["classes"].values())
    assert "rejected" in capsys.readouterr().out
    # 1.7 s after the filter has settled: windows of 0.5 s, a quarter (rounded to columns of 10 ms) apart.
    starts = [float(row["start_s"]) for row in rows if row["recording"] == "coming/day0.npy"]
    np.testing.assert_allclose(starts, 0.3 + 0.1 * np.arange(len(starts)))
    assert 1.4 < starts[-1] <= 1.5
    for row in rows:
        levels = np.asarray(Image.open(output / row["file"]))
        assert levels.shape == (SIZE, SIZE)
        velocity = 3.0 * (1 - (2 * levels.mean(axis=1).argmax() + 1) / SIZE)
        assert velocity == pytest.approx({"coming": 2.0, "going": -1.5}[row["class"]], abs=6 / SIZE)


def test_pack_keeps_the_pictures_of_a_recording_together(recordings, tmp_path):
    spectrogram(config(recordings, tmp_path / "images", image_mode="rgb"))
    main(["pack", f"--data_dir={tmp_path / 'images'}", f"--output_dir={tmp_path / 'packed'}", "--image_mode=gray"])
    report = json.loads((tmp_path / "packed" / "report.json").read_text())
    assert report["packed"] == len(rows_of(tmp_path / "images"))
    assert not report["rejected"]
    sides = [set(report["splits"][side]["groups"]) for side in ("train", "val")]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {row["group"] for row in rows_of(tmp_path / "images")}


def test_neither_workers_nor_an_interruption_change_a_byte(recordings, tmp_path, monkeypatch, capsys):
    spectrogram(config(recordings, tmp_path / "two", workers=2))
    written = []

    def killed(path, data):
        written.append(path)
        if len(written) == 20:
            raise KeyboardInterrupt
        image_folder.write_picture(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_picture", killed)
        with pytest.raises(KeyboardInterrupt):
            spectrogram(config(recordings, tmp_path / "one"))
    assert not (tmp_path / "one" / "metadata.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in written[:10]}
    # Of a recording that is gone since the interruption.
    record = {"stamp": [0, 0], "sha256": "", "rows": [{"file": "coming/gone_000.png"}]}
    (tmp_path / "one" / ".recordings" / "gone.json").write_text(json.dumps(record))
    (tmp_path / "one" / "coming" / "gone_000.png").touch()
    spectrogram(config(recordings, tmp_path / "one"))
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    hashes = {provenance.read(tmp_path / name, "image-folder")["hash"] for name in ("one", "two")}
    assert len(hashes) == 1
    capsys.readouterr()
    spectrogram(config(recordings, tmp_path / "one"))
    assert "is finished" in capsys.readouterr().out


def test_the_folder_belongs_to_its_recordings_and_its_numbers(recordings, tmp_path):
    output = tmp_path / "images"
    spectrogram(config(recordings, output))
    with pytest.raises(UserError, match=r"another run of mdaug spectrogram \(v_max_m_s: 3\.0 there, 2\.0 now\)"):
        spectrogram(config(recordings, output, v_max_m_s=2.0))
    tone(recordings / "going" / "day9.npy", -1.5)
    with pytest.raises(UserError, match="are not those that"):
        spectrogram(config(recordings, output))
    with pytest.raises(UserError, match="lies inside data_dir"):
        spectrogram(config(recordings, recordings / "images"))


def test_a_walker_looks_as_the_simulator_draws_him(tmp_path):
    """The same echo, once through the simulator's chain and once through a file and this command."""
    sensor = Sensor(rows=2 * SIZE, columns=2 * SIZE)
    row = draw("walking", seed=0, group=0, index=0)
    echo = TARGETS["walking"].echo(row, sensor, sensor.time_s)
    drawn = to_levels(record(echo, row, sensor, np.random.default_rng(0)), 40)
    noise = {name: row[name] for name in ("snr_db", "clutter_to_signal_db", "iq_image_db")}
    (tmp_path / "in" / "walking").mkdir(parents=True)
    np.save(tmp_path / "in" / "walking" / "a.npy", receive(echo, sensor.prf_hz, np.random.default_rng(0), **noise))
    own = {
        "carrier_hz": sensor.carrier_hz,
        "prf_hz": sensor.prf_hz,
        "v_max_m_s": 6.0,
        "window_s": 0.05,
        "hop_s": 0.0125,
    }
    spectrogram(config(tmp_path / "in", tmp_path / "out", duration_s=None, image_size=SIZE * 2, clip_db=40.0, **own))
    made = np.asarray(Image.open(next((tmp_path / "out" / "walking").glob("*.png"))))
    assert np.corrcoef(made.ravel(), drawn.ravel())[0, 1] > 0.95


def test_a_target_that_fades_stays_bright_in_pictures_of_their_own(tmp_path):
    tone(tmp_path / "in" / "going" / "a.npy", 2.0)
    fading = np.load(tmp_path / "in" / "going" / "a.npy")
    np.save(tmp_path / "in" / "going" / "a.npy", fading * 10 ** (-np.arange(len(fading)) / PRF))  # 20 dB a second
    brightest = {}
    for reference in ("picture", "recording"):
        spectrogram(config(tmp_path / "in", tmp_path / reference, reference=reference, overlap=0.0))
        files = [row["file"] for row in rows_of(tmp_path / reference)]
        brightest[reference] = [np.asarray(Image.open(tmp_path / reference / file)).max() / 255 for file in files]
    assert min(brightest["picture"]) > 0.9
    fall = np.diff(brightest["recording"]) * 40  # dB from one picture to the next
    np.testing.assert_allclose(fall, -20 * 0.41, atol=1.5)


def test_names_of_the_glasgow_set_tell_class_person_and_copies(tmp_path):
    root, scene = tmp_path / "set", sweeps((12 * 0.375, 2, 1), seconds=1.5)
    for name in ("1 Dec/1P36A01R01.dat", "1 Dec/6p36a06r1.dat", "2 Mar/ 1P36A01R02.dat", "1 Dec/1P36A01R01 - Copy.dat"):
        write_text(root / name, scene)
    write_text(root / "1 Dec" / "9P36A01R01.dat", scene)
    write_text(root / "1 Dec" / "walk.dat", scene)
    spectrogram(SpectrogramConfig(root, tmp_path / "images", preset="glasgow", image_size="64x96", workers=1))
    rows = rows_of(tmp_path / "images")
    told = [tuple(row[name] for name in ("class", "group", "person", "repetition")) for row in rows]
    assert told == [
        ("walking", "1 Dec/P36", "36", "1"),
        ("fall", "1 Dec/P36", "36", "1"),
        ("walking", "2 Mar/P36", "36", "2"),
    ]
    assert Image.open(tmp_path / "images" / rows[0]["file"]).size == (96, 64)
    rejected = json.loads((tmp_path / "images" / "report.json").read_text())["rejected"]
    assert rejected == {
        "1 Dec/1P36A01R01 - Copy.dat": "the same person, activity and repetition as 1 Dec/1P36A01R01.dat",
        "1 Dec/9P36A01R01.dat": "its name says activity 9; 1 to 6 are known",
        "1 Dec/walk.dat": "its name is not like 1P36A01R01.dat",
    }


def test_a_pattern_finds_the_class_in_the_path(tmp_path):
    for name in ("p1/tap_1.npy", "p1/wave_1.npy", "p2/tap_1.npy", "p2/x.npy"):
        tone(tmp_path / "in" / name, 1.0)
    spectrogram(config(tmp_path / "in", tmp_path / "out", class_pattern=r"([a-z]+)_\d+\.npy$"))
    assert {row["class"] for row in rows_of(tmp_path / "out")} == {"tap", "wave"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rejected"].keys() == {"p2/x.npy"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"v_max_m_s": None}, "v_max_m_s is missing"),
        ({"overlap": 1.0}, "overlap=1.0"),
        ({"range_m": (5.0, 2.0)}, "range_m=.* must be in ascending order"),
        ({"class_pattern": "("}, "class_pattern=. is not a regular expression"),
        ({"class_pattern": "a"}, "must have exactly one capture group"),
        ({"class_pattern": "(a)", "preset": "glasgow"}, "contradicts preset=glasgow"),
        ({"hop_s": 0.0}, "hop_s=0 must lie between .* s$"),
        ({"settle_s": -1.0}, "settle_s=-1 must lie between 0 and 300 s$"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path, fields, reason):
    with pytest.raises(ValueError, match=reason):
        config(tmp_path, tmp_path / "out", **fields)


def test_a_folder_without_a_usable_recording_says_why(tmp_path, recordings):
    with pytest.raises(UserError, match=r"none of the 11 files .* give --prf_hz"):
        spectrogram(config(recordings, tmp_path / "out", prf_hz=None))
    with pytest.raises(UserError, match="is not a folder"):
        spectrogram(config(tmp_path / "nowhere", tmp_path / "other"))
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "a" / "b.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no recording \(such as a/b\.txt: not a \.dat"):
        spectrogram(config(tmp_path / "empty", tmp_path / "third"))
