"""Speeds of a machine -> lengths of the demo's stages: within the budget, accepted by the commands, kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import demo, stages
from launch.lengths import LEAST, Lengths, Speeds, as_dict, choose
from mdaug import cli

QUIET = Speeds(simulate=40, vqvae=35, unet=70, stage_s=0.6, simulate_s=3, training_s=6)


def slower(factor: float) -> Speeds:
    overheads = [seconds * factor**0.5 for seconds in (QUIET.stage_s, QUIET.simulate_s, QUIET.training_s)]
    return Speeds(QUIET.simulate / factor, QUIET.vqvae / factor, QUIET.unet / factor, *overheads)


@pytest.mark.parametrize("minutes", [5, 10, 30])
@pytest.mark.parametrize("factor", [0.02, 0.5, 1, 2, 3])
def test_what_is_expected_adds_up_to_the_budget(minutes, factor):
    found = choose(60 * minutes, slower(factor), classes=5)
    assert 0.85 * 60 * minutes <= sum(found.seconds.values()) <= 1.0 * 60 * minutes
    assert sorted(found.seconds) == sorted(stages.CHAIN)


@pytest.mark.parametrize(("classes", "images"), [(1, 30), (2, 8), (5, 60), (31, 372), (31, 3000), (2, 5000)])
def test_a_set_of_ones_own_is_no_longer_than_its_budget(classes, images):
    found = choose(600, QUIET, classes, images)
    assert found.simulated_per_class == 0
    assert "simulate" not in found.seconds
    assert sum(found.seconds.values()) <= 1.15 * 600
    assert found.generated % classes == 0


def test_more_time_and_a_faster_machine_give_longer_trainings():
    for lengths in (
        [choose(60 * minutes, QUIET, 5) for minutes in (3, 5, 10, 30, 120)],
        [choose(300, slower(factor), 5) for factor in (3, 2, 1, 0.5, 0.1)],
    ):
        for name in ("vqvae_samples", "unet_samples"):
            numbers = [getattr(each, name) for each in lengths]
            assert numbers == sorted(set(numbers)), name


def test_it_is_a_function_of_its_arguments_that_json_keeps():
    first, again = choose(300, QUIET, 5), choose(300, QUIET, 5)
    assert first == again == Lengths(**json.loads(json.dumps(as_dict(first))))


@pytest.mark.parametrize("factor", [0.01, 1, 30])
def test_the_commands_accept_what_is_chosen(factor):
    for command, flags in choose(300, slower(factor), 5).flags().items():
        assert cli.parse(command, [*stages.flags(command, Path("out"), preset="demo"), *flags])


def test_a_machine_that_is_too_slow_is_found_out():
    assert choose(1800, QUIET, 5).too_short() == {}
    found = choose(120, slower(3), 5)
    assert set(found.too_short()) == set(LEAST)
    assert all(samples < least for samples, least in found.too_short().values())


def test_the_summary_says_once_what_was_too_short_and_what_to_do(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps({"verdict": {"sentences": []}}))
    for seconds, factor, count in ((1800, 1, 0), (120, 3, 1)):
        lengths = choose(seconds, slower(factor), 5)
        said = demo._summary(options(tmp_path), [], 1.0, 0, lengths)
        assert said.count("too slow") == said.count("make demo MINUTES=30 OUT=runs/longer") == count
        for command, (samples, least) in lengths.too_short().items():
            assert f"{command} saw {samples} samples, not {least}" in said


def record(minutes: float = 5) -> dict:
    return {"minutes": minutes, "speeds": {}, "lengths": as_dict(choose(60 * minutes, QUIET, 5))}


def options(out: Path, **changes) -> demo.DemoConfig:
    return demo.DemoConfig(out=out, **changes)


def test_the_lengths_of_a_run_stay_and_can_be_given_to_another(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_measured", lambda *_: record())
    runner = None
    first = demo._lengths(options(tmp_path / "a", minutes=5), runner)
    monkeypatch.setattr(demo, "_measured", lambda *_: pytest.fail("measured again"))
    assert demo._lengths(options(tmp_path / "a", minutes=5), runner) == first
    kept = tmp_path / "a" / "lengths.json"
    assert demo._lengths(options(tmp_path / "b", minutes=30, lengths=kept), runner) == first
    assert (tmp_path / "b" / "lengths.json").read_bytes() == kept.read_bytes()
    with pytest.raises(demo.UserError, match=r"lengths.json was chosen for minutes=5, not 30; choose another --out"):
        demo._lengths(options(tmp_path / "a", minutes=30), runner)


def test_the_size_of_a_set_counts_images_and_classes(tmp_path):
    for name in ("fall/a.png", "fall/day 2/b.JPG", "walk/c.jpeg", "walk/notes.txt"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert demo._size_of(options(tmp_path, data=tmp_path / "set")) == (2, 3)
    assert demo._size_of(options(tmp_path)) == (5, None)


def test_minutes_of_no_use_are_refused():
    with pytest.raises(ValueError, match=r"minutes=0\.5 must be at least 1"):
        demo.DemoConfig(minutes=0.5)
