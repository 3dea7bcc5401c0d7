"""What `python -m launch status` and `--wait` say of a job: how far it is, when it will be done, why it ended."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from launch import attempt, slurm_query
from launch import local_job as here
from launch import status as launch_status
from launch.attempt import Job
from launch.rank import Report, report_path
from shards.errors import UserError
from shards.progress import Progress

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


def finish(run: Path, *names: str, seconds_ago: float = 0) -> None:
    """Leave finished shards."""
    for name in names:
        path = run / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        then = time.time() - seconds_ago
        os.utime(path, (then, then))


def began(folder: Path, seconds_ago: float) -> None:
    """Let the last attempt have begun so long ago."""
    lines = [{"attempt": 1 - n, "time": time.time() - (1 + n) * seconds_ago, "progress": ""} for n in (1, 0)]
    (folder / attempt.ATTEMPTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_training_tells_its_samples_and_its_time_left(folder, status, slurm_says):
    slurm_says("squeue", "RUNNING")
    assert status() == {
        "job": ": mdaug encode on 2 rank(s)",
        "state": "running",
        "attempts": "1, the last from the start",
    }
    record = {"samples": 51200, "epoch": 2.5, "loss": 0.125, "img_s": 80.0, "eta_s": 90061.0}
    metrics = folder.parents[1] / "metrics.jsonl"
    metrics.write_text(json.dumps(record) + '\n{"val_loss": 1}\n{"samp')  # a line is being written
    assert status()["progress"] == "51,200 samples, epoch 2.50, loss 0.125, 80.0 img/s, 1 d 01:01:01 left"
    slurm_says("squeue", "CANCELLED")
    assert status()["progress"] == "51,200 samples, epoch 2.50, loss 0.125, 80.0 img/s"


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        ({"images": "a", "vqvae": "b", "shards": 10}, ("train/000000", "train/000001", "val/000000", "val/000001")),
        ({"counts": {"walk": 51, "fall": 40}, "samples_per_shard": 10}, ("000000", "000001", "000002", "000003")),
    ],
    ids=["encode", "generate"],
)
def test_shards_of_a_plan_tell_the_time_left_at_the_rate_of_this_attempt(plan, names, folder, status, slurm_says):
    slurm_says("squeue", "RUNNING")
    run = folder.parents[1]
    (run / "plan.json").write_text(json.dumps(plan))
    assert status()["progress"] == "0 of 10 shards (0%)"
    finish(run, *names[:2], seconds_ago=1000)
    began(folder, 600)
    assert status()["progress"] == "2 of 10 shards (20%)"  # both are of the attempt before: no rate yet
    finish(run, *names[2:], seconds_ago=30)
    finish(run, "real-000000")  # of the real images that are mixed in
    assert re.fullmatch(r"4 of 10 shards \(40%\), 00:30:0\d left", status()["progress"])  # 6 at 2 in 600 s
    slurm_says("squeue", "PENDING")
    assert status()["progress"] == "4 of 10 shards (40%)"


def test_the_rate_of_a_job_array_counts_from_the_task_that_runs_longest(folder, status, slurm_says):
    slurm_says("squeue", "COMPLETED\nRUNNING\nPENDING")
    run = folder.parents[1]
    (run / "plan.json").write_text(json.dumps({"counts": {"walk": 40}, "samples_per_shard": 10}))
    for worker, seconds_ago in ((0, 300), (1, 20)):
        part = attempt.of_worker(folder, worker)
        part.mkdir(parents=True)
        began(part, seconds_ago)
    attempt.of_worker(folder, 2).mkdir()
    finish(run, "000000", "000001", "000002")
    assert re.fullmatch(r"3 of 4 shards \(75%\), 00:01:4\d left", status()["progress"])


def test_what_has_no_plan_tells_what_rank_0_last_said(folder, status, slurm_says, monkeypatch, capsys):
    slurm_says("squeue", "RUNNING")
    clock = iter([0.0, 1.0, 20.0])
    with monkeypatch.context() as patched:
        patched.setattr("shards.progress.time.monotonic", lambda: next(clock))
        with Progress("classifiers", 30, "classifier") as shown:
            shown.update()
            shown.update(3)
    log = folder.parent / "rank-00000.log"
    log.write_text("loading\n" + capsys.readouterr().err + "warning: 3/4\n")
    assert status()["progress"] == "rank 0: classifiers 4 of 30 classifiers, 00:02:10 left"  # 26 at 0.20 a second
    slurm_says("squeue", "FAILED")
    assert status()["progress"] == "rank 0: classifiers 4 of 30 classifiers"


def test_what_every_command_leaves_counts_as_progress(tmp_path):
    assert attempt.progress(tmp_path) == attempt.NOTHING
    (tmp_path / "plan.json").touch()
    for path, words in (
        ("drone/000000.png", "1 pictures"),
        ("results/real-5-0.json", "1 results"),
        ("latents/train/000000.json", "1 shards"),
        ("train/000000.json", "2 shards"),
        ("000000.json", "3 shards"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        assert attempt.progress(tmp_path) == words
    (tmp_path / "latest").write_text("samples-000000000128\n")
    assert attempt.progress(tmp_path) == "samples-000000000128"


def test_the_last_error_is_told_beside_the_state(folder, slurm_says, capsys):
    path = report_path(attempt.reports_folder(folder, 0), 0)
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
        (folder / "77_0_log.out").write_text(f"{attempt.BEGINS}: 0\n")
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


def test_what_ended_an_earlier_attempt_is_not_told_of_the_last(folder, status, slurm_says):
    slurm_says(*FORGOTTEN)
    slurm_says("sacct", "no accounts", 1)
    (folder / "77_0_log.out").write_text(
        f"{attempt.BEGINS}: 0\n{SLURMD['PREEMPTED']}\n{attempt.BEGINS}: 1\nlaunch: rank 1 failed first\n"
    )
    (folder / "77_1_log.out").write_text(f"{attempt.BEGINS}: 0\n{SLURMD['OUT_OF_MEMORY']}\n{attempt.BEGINS}: 1\n")
    shown = status()
    assert shown["state"] == "gone"
    assert "left no outcome" in shown["reason"]
    assert f"see {folder}/*_0_log.out" in shown["reason"]
    assert slurm_query.judged(folder, "FAILED") == "FAILED"
    assert slurm_query.explained(folder, "FAILED") is None


def test_a_run_of_this_machine_is_told_by_its_process_and_of_another_only_by_its_outcome(tmp_path, capsys):
    here.begin("encode", tmp_path, 2)
    folder = here.folder(tmp_path)
    job = attempt.read_job(folder)
    assert here.state(folder, job) == "RUNNING"
    number_given_again = dataclasses.replace(job, submitted=psutil.Process().create_time() - 1)
    assert here.state(folder, number_given_again) == "KILLED"
    elsewhere = dataclasses.replace(job, host="another")
    elsewhere.write(folder)
    assert launch_status.status(tmp_path) == 0
    assert "state     elsewhere\nreason    it was started on another machine" in capsys.readouterr().out
    with pytest.raises(UserError, match="can be stopped on that machine only"):
        launch_status.cancel(tmp_path)
    for status, state in ((0, "COMPLETED"), (1, "FAILED"), (143, "STOPPED"), (130, "STOPPED")):
        attempt.write_outcome(folder, status, "text")
        assert here.state(folder, elsewhere) == state


def test_the_last_of_a_job_and_a_run_of_this_machine_is_told(folder, slurm_says, capsys):
    slurm_says("squeue", "COMPLETED")
    here.begin("encode", folder.parents[1], 2)
    assert launch_status.find(folder.parents[1]) == here.folder(folder.parents[1])
    dataclasses.replace(attempt.read_job(folder), submitted=time.time() + 1).write(folder)
    assert launch_status.find(folder.parents[1]) == folder


def test_without_a_record_status_tells_what_is_on_disk(tmp_path, capsys):
    finish(tmp_path, "000000", seconds_ago=90)
    os.utime(tmp_path, (time.time() - 70,) * 2)
    assert launch_status.status(tmp_path) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("state     not finished; no launcher has a record")
    assert re.search(r"last change 00:01:1\d ago\nprogress  1 shards$", shown.strip())
    (tmp_path / "provenance.json").touch()
    assert launch_status.status(tmp_path) == 0
    assert capsys.readouterr().out.startswith("state     finished; ")
    for action in (launch_status.logs, launch_status.cancel):
        with pytest.raises(UserError, match=r"no SLURM job was submitted .* and no ranks were started"):
            action(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        launch_status.status(tmp_path / "absent")


def test_a_job_that_runs_or_is_done_needs_no_reason(folder, status, slurm_says):
    for state in ("RUNNING", "PENDING"):
        slurm_says("squeue", state)
        assert "reason" not in status()
    assert slurm_query.explained(folder, "COMPLETED") is None
    assert set(slurm_query.SIGNS.values()) <= slurm_query.WORDS.keys()
    assert slurm_query.WORDS.keys() <= slurm_query.ENDED | {slurm_query.GONE}
    assert launch_status.progress_of(attempt.read_job(folder), None) is None
