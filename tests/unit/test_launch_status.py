"""What `python -m launch status` and `--wait` say of a job: how far it is, when it will be done, why it ended."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from launch import attempt, job, slurm_query
from launch import status as launch_status
from launch.job import Job, Report
from shards import atomic, provenance
from shards.errors import UserError
from shards.output_folder import PROGRESS_FILE, Progress, claim

FORGOTTEN = ("squeue", "slurm_load_jobs error: Invalid job id specified", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys) -> Path:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    folder = tmp_path / "run/logs/slurm"
    folder.mkdir(parents=True)
    Job("encode", str(tmp_path / "run"), ranks=2, max_restarts=9, logs=str(folder.parent)).write(folder)
    attempt.begin(folder)
    capsys.readouterr()
    return folder


@pytest.fixture
def status(folder, capsys):
    """Return what `status` prints, label -> text."""

    def ask() -> dict[str, str]:
        assert launch_status.status(folder.parents[1]) == 0
        return {line[:10].strip(): line[10:] for line in capsys.readouterr().out.splitlines()}

    return ask


def progress(run: Path, done: int, total: int, unit: str, *, note: str = "", seconds: int = 0, ago: int = 0) -> None:
    """Leave the progress of a process that began with 10 units, so many seconds before it wrote this, some time ago."""
    now = math.ceil(time.time()) - ago
    atomic.write_text(
        run / PROGRESS_FILE, json.dumps(asdict(Progress(done, total, unit, done, now, 10, now - seconds, note)))
    )


def began(folder: Path, seconds_ago: float) -> None:
    """Let the last attempt have begun so long ago."""
    lines = [{"attempt": 1 - n, "time": time.time() - (1 + n) * seconds_ago, "progress": ""} for n in (1, 0)]
    (folder / job.ATTEMPTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_a_command_has_recorded_is_shown_with_the_time_left_while_it_runs(folder, status, slurm_says):
    slurm_says("squeue", "RUNNING")
    assert status() == {
        "job": ": mdaug encode on 2 rank(s)",
        "state": "running",
        "attempts": "1, the last from the start",
    }
    run = folder.parents[1]
    progress(run, 51210, 141310, "sample", note="epoch 2.50, loss 0.125", seconds=51200)  # one a second
    shown = "51,210 of 141,310 samples (36 %), epoch 2.50, loss 0.125"
    assert status()["progress"] == f"{shown}, 1 d 01:01:40 left"
    slurm_says("squeue", "CANCELLED")
    assert status()["progress"] == shown


def test_the_rate_of_an_earlier_attempt_tells_no_time_left(folder, status, slurm_says):
    slurm_says("squeue", "RUNNING")
    began(folder, 600)
    progress(folder.parents[1], 20, 100, "shard", seconds=100, ago=700)
    assert status()["progress"] == "20 of 100 shards (20 %)"
    progress(folder.parents[1], 20, 100, "shard", seconds=100)
    assert status()["progress"] == "20 of 100 shards (20 %), 00:13:20 left"
    progress(folder.parents[1], 10, 100, "shard", seconds=100)  # none made yet
    assert status()["progress"] == "10 of 100 shards (10 %)"


def test_an_array_runs_since_its_task_that_runs_longest(folder, status, slurm_says):
    slurm_says("squeue", "COMPLETED\nRUNNING\nPENDING")
    for worker, seconds_ago in ((0, 300), (1, 20)):
        task = job.worker_folder(folder, worker)
        task.mkdir(parents=True)
        began(task, seconds_ago)
    job.worker_folder(folder, 2).mkdir()
    progress(folder.parents[1], 30, 40, "shard", seconds=100, ago=200)
    assert status()["progress"] == "30 of 40 shards (75 %), 00:00:50 left"


def test_progress_of_an_attempt_is_what_a_killed_run_would_still_have(tmp_path):
    begun = attempt.saved_progress(tmp_path)
    run = claim(tmp_path, "train-ldm", {})
    run.progress(10, 100, "sample", saved=0)
    assert attempt.saved_progress(tmp_path) == begun
    texts = []
    for saved in (8, 8, 16):
        run.progress(50, 100, "sample", saved=saved)
        texts.append(attempt.saved_progress(tmp_path))
    assert texts[0] == texts[1] != texts[2]


def test_the_last_error_is_shown_beside_the_state(folder, slurm_says, capsys):
    path = job.report_path(job.reports_folder(folder, 0), 0)
    path.write_text(json.dumps(asdict(Report(0, 1, "RuntimeError: the true cause", False, time.time()))))
    attempt.end(folder, 1)
    slurm_says(*FORGOTTEN)
    slurm_says("sacct", "no accounts", 1)
    capsys.readouterr()
    assert launch_status.status(folder.parents[1]) == 0
    shown = capsys.readouterr().out
    assert "state     failed\n" in shown
    assert "error     rank 0 of 2 failed first" in shown
    assert "RuntimeError: the true cause" in shown


SLURMD = {
    "OUT_OF_MEMORY": "slurmstepd: error: Detected 1 oom_kill event in StepId=77.0. Some of the step tasks have been "
    "OOM Killed.",
    "TIMEOUT": "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-23T12:00:00 DUE TO TIME LIMIT ***",
    "NODE_FAIL": "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-23T12:00:00 DUE TO NODE FAILURE, SEE "
    "SLURMCTLD LOG FOR DETAILS ***",
    "PREEMPTED": "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-23T12:00:00 DUE TO PREEMPTION ***",
}
REMEDIES = {
    "OUT_OF_MEMORY": "raise memory_gb in the profile",
    "TIMEOUT": "raise signal_delay_seconds in the profile",
    "NODE_FAIL": "the profile can exclude a bad node",
    "PREEMPTED": "another partition or qos in the profile",
}


@pytest.mark.parametrize("known_by", ["squeue", "sacct", "the log alone", "the log of a rank"])
@pytest.mark.parametrize("state", SLURMD)
def test_a_job_that_was_killed_says_why_and_what_to_change(state, known_by, folder, status, slurm_says, capsys):
    if known_by == "squeue":
        slurm_says("squeue", state)
    else:
        slurm_says(*FORGOTTEN)
        slurm_says("sacct", *([state] if known_by == "sacct" else ["no accounts", 1]))
    if known_by.startswith("the log"):
        (folder / "77_0_log.out").write_text(f"{job.BEGINS}: 0\n")
        with open(folder / f"77_{0 if known_by == 'the log alone' else 9}_log.out", "a") as log:
            log.write(SLURMD[state] + "\n")
    shown = status()
    assert shown["state"] == state.lower()
    assert REMEDIES[state] in shown["reason"]
    assert "the same command continues" in shown["reason"]
    assert launch_status.wait(folder) == 1
    said = capsys.readouterr().err
    assert f"ended as {state.lower()}" in said
    assert REMEDIES[state] in said


def test_what_ended_an_earlier_attempt_does_not_explain_the_last(folder, status, slurm_says):
    slurm_says(*FORGOTTEN)
    slurm_says("sacct", "no accounts", 1)
    (folder / "77_0_log.out").write_text(
        f"{job.BEGINS}: 0\n{SLURMD['PREEMPTED']}\n{job.BEGINS}: 1\nlaunch: rank 1 failed first\n"
    )
    (folder / "77_1_log.out").write_text(f"{job.BEGINS}: 0\n{SLURMD['OUT_OF_MEMORY']}\n{job.BEGINS}: 1\n")
    shown = status()
    assert shown["state"] == "gone"
    assert "left no outcome" in shown["reason"]
    assert f"see {folder}/*_0_log.out" in shown["reason"]
    assert slurm_query.state_by_log(folder, "FAILED") == "FAILED"
    assert slurm_query.explain_end(folder, "FAILED") is None


def test_ranks_of_this_machine_are_known_by_their_process_and_others_only_by_their_outcome(tmp_path, capsys):
    job.begin_local("encode", tmp_path, 2)
    folder = job.local_folder(tmp_path)
    record = job.read_job(folder)
    assert job.local_state(folder, record) == "RUNNING"
    number_given_again = dataclasses.replace(record, submitted=psutil.Process().create_time() - 1)
    assert job.local_state(folder, number_given_again) == "KILLED"
    elsewhere = dataclasses.replace(record, host="another")
    elsewhere.write(folder)
    assert launch_status.status(tmp_path) == 0
    assert "state     elsewhere\nreason    it was started on another machine" in capsys.readouterr().out
    with pytest.raises(UserError, match="can be stopped on that machine only"):
        launch_status.cancel(tmp_path)
    for status, state in ((0, "COMPLETED"), (1, "FAILED"), (143, "STOPPED"), (130, "STOPPED")):
        job.write_outcome(folder, status, "text")
        assert job.local_state(folder, elsewhere) == state


def test_the_last_of_a_job_and_a_run_of_this_machine_is_shown(folder, slurm_says, capsys):
    slurm_says("squeue", "COMPLETED")
    job.begin_local("encode", folder.parents[1], 2)
    assert job.find(folder.parents[1]) == job.local_folder(folder.parents[1])
    dataclasses.replace(job.read_job(folder), submitted=time.time() + 1).write(folder)
    assert job.find(folder.parents[1]) == folder


def test_without_a_record_status_shows_what_is_on_disk(tmp_path, capsys):
    run = claim(tmp_path, "pack", {})
    run.progress(30, 120, "image")
    for path in (*tmp_path.iterdir(), tmp_path):
        os.utime(path, (time.time() - 70,) * 2)
    assert launch_status.status(tmp_path) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("state     mdaug pack, not finished; no launcher has a record")
    assert re.search(r"last change 00:01:1\d ago\nprogress  30 of 120 images \(25 %\)$", shown.strip())
    provenance.write(tmp_path, kind="images", content_hash="", made_from={}, config={})
    assert launch_status.status(tmp_path) == 0
    assert capsys.readouterr().out.startswith("state     mdaug pack, finished; ")
    for action in (launch_status.logs, launch_status.cancel):
        with pytest.raises(UserError, match=r"no SLURM job was submitted .* and no ranks were started"):
            action(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        launch_status.status(tmp_path / "absent")


def test_status_bears_files_that_vanish_and_links_that_lead_nowhere(tmp_path, capsys, monkeypatch):
    claim(tmp_path, "generate", {})
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    entries = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*entries(path), path / ".000000.tar.0a1b2c3d.tmp"])
    assert launch_status.status(tmp_path) == 0
    assert capsys.readouterr().out.startswith("state     mdaug generate, not finished")


def test_a_job_that_runs_or_is_done_needs_no_reason(folder, status, slurm_says):
    for state in ("RUNNING", "PENDING"):
        slurm_says("squeue", state)
        assert "reason" not in status()
    assert slurm_query.explain_end(folder, "COMPLETED") is None
    assert set(slurm_query.SIGNS.values()) <= slurm_query.EXPLANATIONS.keys()
    assert slurm_query.EXPLANATIONS.keys() <= slurm_query.ENDED | {slurm_query.GONE}
    assert launch_status.describe_progress(folder.parents[1], None) is None
