"""The look at the samples, shared over the workers: finalize copies what they found, as long as it still holds."""

from __future__ import annotations

import os

import pytest

from mdaug.generation import inspected
from mdaug.generation.plan import read_plan
from shards.errors import UserError
from shards.pool import cores
from tests.generation import files, make, step


def refuse(*_):
    pytest.fail("a shard was looked at again")


@pytest.mark.parametrize("mixed", [False, True])
def test_finalize_copies_what_the_workers_found_and_makes_the_same_files(ldm, packed, tmp_path, monkeypatch, mixed):
    options = {"num_samples": 44, **({"include_real": packed} if mixed else {})}
    alone = make(ldm, tmp_path / "alone", **options)
    folder = make(ldm, tmp_path / "shared", step="plan", **options)
    for worker in range(3):
        step(ldm, folder, "work", worker=worker, num_workers=3)
    monkeypatch.setattr(inspected, "inspect", refuse)
    step(ldm, folder, "finalize")
    assert files(folder) == files(alone)
    assert not (folder / inspected.FOLDER).exists()


def test_a_shard_that_changed_after_the_look_is_looked_at_again(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=20, step="plan")
    for worker in range(2):
        step(ldm, folder, "work", worker=worker, num_workers=2)
    shard = folder / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"000001\.tar \(1 shard is\) damaged"):
        step(ldm, folder, "finalize")
    step(ldm, folder, "work", worker=1, num_workers=2, repair=True)
    step(ldm, folder, "finalize")


def test_shards_of_a_worker_that_was_lost_before_its_look_are_shared_by_the_others(ldm, tmp_path, monkeypatch):
    folder = make(ldm, tmp_path / "out", num_samples=96, step="work")  # one worker, which leaves the look to the end
    plan = read_plan(folder)
    assert not (folder / inspected.FOLDER).exists()
    os.rename(folder / "000005.tar", folder / "away")
    inspected.keep_share(plan, folder, 0, 4)
    kept = sorted(path.stem for path in (folder / inspected.FOLDER).iterdir())
    assert kept == ["000000", "000004", "000008"]  # shards are missing: its own alone
    os.rename(folder / "away", folder / "000005.tar")
    inspected.keep_share(plan, folder, 1, 4)
    assert len(list((folder / inspected.FOLDER).iterdir())) == plan.num_shards
    monkeypatch.setattr(inspected, "inspect", refuse)
    inspected.keep_share(plan, folder, 2, 4)
    assert len(list(inspected.looks(plan, folder))) == plan.num_shards


def test_a_worker_that_still_looks_when_another_finishes_the_set_ends_quietly_and_leaves_nothing(
    ldm, tmp_path, monkeypatch
):
    folder = make(ldm, tmp_path / "out", num_samples=44, step="work")
    looked, look = [], inspected._look

    def finish_meanwhile(plan, path, name):
        found = look(plan, path, name)
        if not looked:
            looked.append(name)
            step(ldm, folder, "finalize")
        return found

    monkeypatch.setattr(inspected, "cores", lambda: 1)
    monkeypatch.setattr(inspected, "_look", finish_meanwhile)
    inspected.keep_share(read_plan(folder), folder, 0, 2)
    assert looked
    assert (folder / "provenance.json").is_file()
    step(ldm, folder, "finalize")  # where that worker comes to next
    assert not (folder / inspected.FOLDER).exists()


def test_looks_are_taken_one_by_one_however_many_shards_there_are(ldm, tmp_path, monkeypatch):
    folder = make(ldm, tmp_path / "out", num_samples=4, samples_per_shard=1, step="plan")
    plan = read_plan(folder)
    asked = []
    monkeypatch.setattr(inspected, "_names", lambda plan: [f"{number:06d}.tar" for number in range(10_000)])
    monkeypatch.setattr(inspected, "_kept_or_new", lambda plan, folder, name: asked.append(name) or name)
    found = inspected.looks(plan, folder)
    for number in range(5):
        assert next(found) == f"{number:06d}.tar"
    assert len(asked) <= 5 + (inspected.AHEAD + 1) * cores() + 1
    found.close()
