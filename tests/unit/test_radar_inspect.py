"""`mdaug spectrogram --inspect FILE`, units that were confused, and what a run says of its recordings."""

import json

import numpy as np
import pytest
from PIL import Image

from mdaug.cli import main
from mdaug.radar.options import PLAUSIBLE, SimulateConfig, SpectrogramConfig

from .radar_helpers import rows_of
from .radar_layouts import CARRIER, CHIRPS, PRF, acconeer, chirps, dca1000, turning, wav


def inspected(capsys, *flags: object) -> dict[str, str]:
    """What is printed, by its first word; notes together."""
    assert main(["spectrogram", *map(str, flags)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, text = line[2:14].strip(), line[14:]
        found[name] = f"{found[name]}; {text}" if name in found else text
    return found


def test_what_a_file_says_is_printed_and_drawn(tmp_path, capsys):
    path, _ = acconeer(tmp_path, 0.6)
    found = inspected(capsys, "--inspect", path, "--output_dir", tmp_path / "new")
    assert found["read as"] == "Acconeer A121 (HDF5)"
    assert found["axes"] == "200 frames, 16 pulses, 6 ranges"
    assert found["rate"] == "1000 pulses a second"
    assert found["frames"] == "every 17.5 ms, a pause of 1.5 ms after each"
    assert found["carrier"] == "60.5 GHz"
    assert found["duration"] == "3.5 s"
    assert found["velocities"] == "up to 1.24 m/s, approaching ones up"
    assert found["ranges"] == "0.05 to 0.2 m, every 0.03 m"
    picture = np.asarray(Image.open(tmp_path / "new" / "a.h5.png"))
    velocity = 1.24 * (1 - 2 * picture.mean(axis=1).argmax() / len(picture))
    assert velocity == pytest.approx(0.6, abs=0.1)


def test_what_a_file_does_not_say_is_asked_for_and_drawn_all_the_same(tmp_path, capsys, monkeypatch):
    """The picture goes to the current folder. Guessed axes are named as guesses."""
    monkeypatch.chdir(tmp_path)
    samples = turning(0.6, np.arange(4000) / PRF) * np.ones((5, 1)) + 100
    np.save(tmp_path / "a.npy", samples)
    found = inspected(capsys, "--inspect", "a.npy")
    assert found["rate"] == "unknown; give --prf_hz"
    assert found["carrier"] == "unknown; give --carrier_hz"
    assert "guessed: ranges, pulses" in found["note"]
    assert "100 % of the power stands still" in found["levels"]
    assert Image.open(tmp_path / "a.npy.png").size == (256, 256)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((4000, 512), np.complex64))
    assert main(["spectrogram", "--inspect", str(tmp_path / "a.npy")]) == 2
    assert "--axes pulses,ranges if there are 4000 pulses" in capsys.readouterr().err
    assert main(["spectrogram", "--inspect", str(tmp_path / "b.npy")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
    np.save(tmp_path / "c.npy", np.full(4000, 3 + 4j))
    assert "is silent" in inspected(capsys, "--inspect", tmp_path / "c.npy")["picture"]


def test_recordings_of_all_kinds_become_one_folder_and_notes_are_reported(tmp_path, capsys):
    for number, write in enumerate((acconeer, wav(16), dca1000(2, False, q_first=True))):
        (tmp_path / "in" / f"class{number}").mkdir(parents=True)
        write(tmp_path / "in" / f"class{number}", 0.6)
    np.save(tmp_path / "in" / "class0" / "silent.npy", np.full(4000, 3 + 4j))
    flags = ["--v_max_m_s=1.2", "--carrier_hz=60e9", "--image_size=32", "--workers=1", "--settle_s=0.1"]
    main(["spectrogram", f"--data_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}", *flags])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"] == 4
    assert list(report["rejected"]) == ["class0/silent.npy"]
    assert "77 bytes after the last of 40 whole frames" in report["notes"]["class2/a.bin"][0]
    assert "77 bytes after the last" in capsys.readouterr().out
    for row in rows_of(tmp_path / "out"):
        levels = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        velocity = 1.2 * (1 - (2 * levels.mean(axis=1).argmax() + 1) / 32)
        assert velocity == pytest.approx(0.6, abs=0.15)
        assert row["window_s"] == {"class0": "0.016", "class1": "0.1", "class2": str(CHIRPS / PRF)}[row["class"]][:5]


def test_a_recording_that_fails_half_way_leaves_no_picture(tmp_path):
    samples = turning(0.6, np.arange(20_000) / PRF)
    samples[-1] = np.nan
    (tmp_path / "in" / "a").mkdir(parents=True)
    np.save(tmp_path / "in" / "a" / "bad.npy", samples)
    np.save(tmp_path / "in" / "a" / "good.npy", samples[:-1])
    flags = ["--v_max_m_s=1", "--carrier_hz=60e9", "--prf_hz=2000", "--duration_s=1", "--workers=1", "--image_size=16"]
    main(["spectrogram", f"--data_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}", *flags])
    assert "not finite" in json.loads((tmp_path / "out" / "report.json").read_text())["rejected"]["a/bad.npy"]
    assert {row["file"] for row in rows_of(tmp_path / "out")} == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*.png")
    }


def test_pictures_in_which_nothing_moves_are_dark(tmp_path):
    """A target that stops: what is left of it is rounding, not bright lines."""
    time = np.arange(8000) / PRF
    np.save(tmp_path / "a.npy", turning(0.6, np.minimum(time, 1.5)))
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "a.npy").rename(tmp_path / "in" / "a" / "a.npy")
    flags = ["--v_max_m_s=1", "--carrier_hz=60e9", "--prf_hz=2000", "--duration_s=0.5", "--overlap=0", "--workers=1"]
    main(["spectrogram", f"--data_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}", *flags])
    brightest = [np.asarray(Image.open(tmp_path / "out" / row["file"])).max() for row in rows_of(tmp_path / "out")]
    assert brightest[0] > 200
    assert brightest[-1] == 0


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_values_of_another_unit_are_refused_with_the_unit(name):
    low, high, unit = PLAUSIBLE[name]
    given = {"v_max_m_s": 1.0, "data_dir": "a", "output_dir": "b"}
    for value in [-low - 1, high * 10] if low == 0 else [low / 10, high * 10, -low, float("nan")]:
        both = (value, value * 2) if name == "range_m" else value
        with pytest.raises(ValueError, match=rf"{name}=\S+ must lie between .* {unit}"):
            SpectrogramConfig(**given | {name: both})


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("carrier_hz", 24.0, "carrier_hz=24 must lie between 1e+08 and 3e+11 Hz; did you mean 2.4e+10?"),
        ("carrier_hz", 18500.0, "sound is not supported"),
        ("window_s", 100.0, "did you mean 0.1?"),
        ("duration_s", 3e6, "did you mean 3000?"),
    ],
)
def test_the_value_that_was_meant_is_named(name, value, hint, tmp_path):
    with pytest.raises(ValueError, match="must lie between") as caught:
        SimulateConfig(tmp_path, **{name: value})
    assert hint in str(caught.value)


def test_folders_are_needed_unless_a_file_is_inspected(capsys):
    assert main(["spectrogram", "--v_max_m_s=1", "--data_dir=a"]) == 2
    assert "output_dir is missing: only --inspect FILE goes without" in capsys.readouterr().err


def test_the_beginning_of_a_cube_is_drawn(tmp_path, capsys):
    np.save(tmp_path / "a.npy", chirps(0.6))
    flags = ["--axes=frames,chirps,antennas,samples", "--frame_s=0.02", f"--prf_hz={PRF}", f"--carrier_hz={CARRIER}"]
    found = inspected(capsys, "--inspect", tmp_path / "a.npy", "--output_dir", tmp_path, *flags)
    assert found["axes"] == "40 frames, 32 pulses, 4 antennas, 16 samples"
