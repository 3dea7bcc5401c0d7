"""Workers that begin or end together, and folders that others damaged meanwhile."""

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from mdaug.generation import generate
from mdaug.generation.plan import claim_folder, read_plan
from shards import provenance
from shards.errors import UserError
from tests.generation import debris, make, step


def test_of_workers_that_come_to_the_end_together_one_finalizes(ldm, tmp_path, monkeypatch, capsys):
    folder = make(ldm, tmp_path / "out", num_samples=20, output_format="folder", grid=True)
    (folder / provenance.FILE_NAME).unlink()  # a second pass over whole shards
    original, complete = generate.write_data_set, generate.is_complete
    both, calls = threading.Barrier(2), Counter()

    def is_complete(*arguments):
        both.wait(30)  # both have seen it before either goes on
        return complete(*arguments)

    def counted(*arguments):
        calls["finalize"] += 1
        return original(*arguments)

    monkeypatch.setattr(generate, "is_complete", is_complete)
    monkeypatch.setattr(generate, "write_data_set", counted)
    monkeypatch.setattr(generate, "work", lambda job: None)
    options = {"num_samples": 20, "output_format": "folder", "num_workers": 2}
    threads = [
        threading.Thread(target=make, args=(ldm, folder), kwargs=options | {"worker": number}) for number in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls["finalize"] == 1
    assert capsys.readouterr().out.count(f"found 20 = asked 20: {folder} is finished") == 3
    assert (folder / provenance.FILE_NAME).is_file()
    assert not debris(folder)
    make(ldm, folder, step="finalize", num_samples=20, output_format="folder")
    make(ldm, folder, repair=True, num_samples=20, output_format="folder")
    assert calls["finalize"] == 3  # who asks for it gets it


def test_a_plan_that_another_worker_writes_meanwhile_is_no_other_file(ldm, tmp_path, monkeypatch):
    plan = read_plan(make(ldm, tmp_path / "other", num_samples=20, step="plan"))
    folder, listed = tmp_path / "out", Path.iterdir
    folder.mkdir()

    def meanwhile(path):
        monkeypatch.setattr(Path, "iterdir", listed)
        claim_folder(folder, plan)
        (folder / "000000.tar").touch()
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", meanwhile)
    claim_folder(folder, plan)
    assert Path.iterdir is listed
    assert read_plan(folder) == plan


def test_a_sidecar_that_cannot_be_read_is_none_and_its_shard_is_made_again(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=20)
    sidecar = folder / "000001.json"
    whole = sidecar.read_bytes()
    for content in (b"", whole[:40], b"\xff\xfe"):
        sidecar.write_bytes(content)
        with pytest.raises(UserError, match=r"000001.tar \(1 shard is\) missing"):
            step(ldm, folder, "finalize")
        make(ldm, folder, num_samples=20, repair=content != b"")
        assert sidecar.read_bytes() == whole


@pytest.mark.parametrize("member", ["png", "json"])
def test_a_shard_that_finalize_finds_damaged_is_repaired(ldm, tmp_path, member):
    """Here the tar is right, and its sidecar says wrongly where the members are."""
    folder = make(ldm, tmp_path / "out", num_samples=20)
    sidecar = folder / "000001.json"
    whole = sidecar.read_bytes()
    record = json.loads(whole)
    record["members"][member][3][0] += 1
    sidecar.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"000001.tar \(1 shard is\) damaged .* --repair$"):
        step(ldm, folder, "finalize")
    make(ldm, folder, num_samples=20, repair=True)
    assert sidecar.read_bytes() == whole
