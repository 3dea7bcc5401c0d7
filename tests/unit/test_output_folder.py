"""One claim for the output folder of every command: the same run continues, anything else is refused untouched."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest

from shards import output_folder, provenance
from shards.errors import UserError
from shards.output_folder import Progress, claim, disown_all, is_finished, read_progress, read_run, refuse_other
from shards.writer import finished

from .shards_helpers import shard_folder

OPTIONS = {"size": 64, "names": ["a", "b"]}


@pytest.fixture(autouse=True)
def _owns_nothing():
    yield
    disown_all()


def test_the_same_run_continues_until_it_is_finished(tmp_path):
    output = claim(tmp_path / "out", "encode", OPTIONS, {"images": "i"})
    assert read_run(output.path)["identity"] == OPTIONS
    assert not output.finished
    again = claim(output.path, "encode", {**OPTIONS, "names": ("a", "b")}, {"images": "i"})
    again.finish("latents", "hash", {})
    assert output.finished
    assert is_finished(output.path)
    assert json.loads((output.path / "provenance.json").read_text())["made_from"] == {"images": "i"}
    again.begin_again()
    assert not output.finished


def test_another_run_is_refused_naming_every_difference(tmp_path):
    claim(tmp_path, "encode", OPTIONS, {"images": "i" * 64})
    (tmp_path / "shard.tar").write_bytes(b"data")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"size: 64 there, 32 now; made from images: i{12} there, j{12} now"):
        claim(tmp_path, "encode", OPTIONS | {"size": 32}, {"images": "j" * 64})
    with pytest.raises(UserError, match="holds the output of mdaug encode, not of mdaug pack"):
        claim(tmp_path, "pack", OPTIONS)
    assert (tmp_path / "run.json").read_bytes() == before
    (tmp_path / "run.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="damaged or of another version"):
        claim(tmp_path, "encode", OPTIONS)


def test_files_of_others_are_refused_but_logs_are_not(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / ".hidden").touch()
    refuse_other(tmp_path, "encode", OPTIONS)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \('thesis\.tex'\)"):
        claim(tmp_path, "encode", OPTIONS)
    assert not (tmp_path / "run.json").exists()
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "thesis.tex", "encode", OPTIONS)


def test_an_input_that_was_not_compared_may_join_later(tmp_path):
    claim(tmp_path, "evaluate", OPTIONS, {"images": "i"})
    assert claim(tmp_path, "evaluate", OPTIONS, {"vqvae": "v"}).made_from == {"images": "i", "vqvae": "v"}
    with pytest.raises(UserError, match="made from vqvae: v there, none now"):
        claim(tmp_path, "evaluate", OPTIONS, {"images": "i", "vqvae": None})


def attempt(out: Path, number: int) -> bool:
    try:
        claim(out, "encode", OPTIONS | {"size": number % 2}, together=True)
    except UserError:
        return False
    return True


def test_of_many_that_claim_at_once_only_one_run_gets_the_folder(tmp_path):
    with multiprocessing.get_context("fork").Pool(8) as processes:
        won = processes.starmap(attempt, [(tmp_path / "out", number) for number in range(32)], chunksize=1)
    assert won == [number % 2 == read_run(tmp_path / "out")["identity"]["size"] for number in range(32)]


def test_a_run_that_has_made_nothing_owns_nothing(tmp_path, capsys):
    claim(tmp_path, "encode", OPTIONS, {"images": "i"})
    (tmp_path / "config.yaml").write_text("size: 64")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="size: 64 there"):  # it may be at work still
        claim(tmp_path, "encode", OPTIONS | {"size": 32})
    disown_all()
    claim(tmp_path, "encode", OPTIONS | {"size": 32}, {"images": "j"})
    assert "has made nothing: taken over" in capsys.readouterr().out
    assert read_run(tmp_path)["identity"]["size"] == 32
    assert read_run(tmp_path)["made_from"] == {"images": "j"}
    disown_all()
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match="size: 32 there"):
        claim(tmp_path, "encode", OPTIONS)


def test_one_owner_at_a_time_and_a_killed_one_holds_nobody_up(tmp_path, capsys):
    """Not even by its children, which the kill leaves alive."""
    code = (
        "import subprocess, sys, time; from pathlib import Path; from shards.output_folder import claim\n"
        f"claim(Path({str(tmp_path)!r}), 'train', {{}}); child = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        text = rf"is being written by mdaug train, process {owner.pid} on \S+; wait until that ends"
        for other in ({}, {"size": 1}):  # a run that has made nothing is not taken over while it is alive
            with pytest.raises(UserError, match=text):
                claim(tmp_path, "train", other)
        with futures.ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(claim, tmp_path, "train", {}, wait=True)
            with pytest.raises(futures.TimeoutError):
                waiting.result(timeout=0.3)
            owner.kill()
            assert waiting.result(timeout=30).path == tmp_path
        os.kill(child, signal.SIGKILL)
    assert f"waiting for mdaug train, process {owner.pid}" in capsys.readouterr().out


def test_workers_of_one_plan_own_a_folder_together(tmp_path):
    code = (
        "import time; from pathlib import Path; from shards.output_folder import claim\n"
        f"claim(Path({str(tmp_path)!r}), 'generate', {{'n': 1}}, together=True); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        with pytest.raises(UserError, match="n: 1 there, 2 now"):
            claim(tmp_path, "generate", {"n": 2}, together=True)
        disown_all()
        claim(tmp_path, "generate", {"n": 1}, together=True)
        disown_all()
        worker.kill()
    claim(tmp_path, "generate", {"n": 2}, together=True)
    assert read_run(tmp_path)["identity"] == {"n": 2}


def test_a_finished_folder_is_neither_owned_nor_written_to(tmp_path):
    claim(tmp_path, "encode", OPTIONS).finish("latents", "hash", {})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert claim(tmp_path, "encode", OPTIONS).finished
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_is_lost_is_named_and_what_is_cut_is_removed(tmp_path, capsys):
    output = claim(tmp_path, "simulate", OPTIONS)
    for name in ("a.png", "b.png", "README.md"):
        (tmp_path / name).write_bytes(b"12345678")
    output.finish("image-folder", "hash", {})
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"1234")
    (tmp_path / "README.md").write_text("edited by a person")
    again = claim(tmp_path, "simulate", OPTIONS)
    assert not again.finished
    again.begin_again()
    assert "a.png is missing, b.png is cut (4 of 8 bytes); making that again" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["README.md", "run.json"]


@pytest.mark.parametrize("damage", ["", "no tar", "no sidecar", "cut", "longer", "another sidecar"])
def test_lost_shards_are_found_by_sizes_and_sidecars_are_read_only_where_these_differ(damage, tmp_path, monkeypatch):
    folder = shard_folder(tmp_path / "out" / "train")
    provenance.write(tmp_path / "out", kind="images", content_hash="h", made_from={}, config={})
    tar = folder / "000001.tar"
    content = tar.read_bytes()
    if damage == "no tar":
        tar.unlink()
    elif damage == "no sidecar":
        tar.with_suffix(".json").unlink()
    elif damage == "another sidecar":
        shutil.copy(folder / "000002.json", tar.with_suffix(".json"))
    elif damage:
        tar.write_bytes(content[:-512] if damage == "cut" else content + bytes(512))
    reads = []
    monkeypatch.setattr(provenance, "finished", lambda path: reads.append(path) or finished(path))
    found = [name for name, _ in provenance.lost(tmp_path / "out")]
    assert found == (["train/000001.tar"] if damage else [])
    assert bool(reads) == ("sidecar" in damage)
    monkeypatch.setattr(provenance, "_hashed", {(tmp_path / "out").resolve()})
    assert [name for name, _ in provenance.lost(tmp_path / "out")] == found


def test_progress_is_written_now_and_then_and_gone_at_the_end(tmp_path, monkeypatch):
    output = claim(tmp_path, "encode", OPTIONS)
    assert read_progress(tmp_path) is None
    output.progress(10, 100, "image")
    output.progress(20, 100, "image")  # too soon
    assert read_progress(tmp_path).done == 10
    monkeypatch.setattr(output_folder, "EVERY_S", 0.0)
    output.progress(30, 100, "image", saved=25, note="loss 0.1")
    progress = read_progress(tmp_path)
    assert (progress.done, progress.saved, progress.began_done, progress.note) == (30, 25, 10, "loss 0.1")
    output.finish("latents", "hash", {})
    assert read_progress(tmp_path) is None


def test_the_time_left_follows_from_the_rate_of_this_process():
    progress = Progress(60, 100, "image", saved=60, time=30.0, began_done=20, began_time=10.0)
    assert progress.seconds_left == 20.0
    assert Progress(20, 100, "image", saved=20, time=10.0, began_done=20, began_time=10.0).seconds_left is None
