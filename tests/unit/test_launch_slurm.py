"""What surrounds a SLURM job, without a Slurm: the batch script, the judgement of an attempt, what squeue says."""

from __future__ import annotations

import json
import shlex
import signal
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from submitit.core.utils import FailedJobError

from launch import attempt, job, slurm, slurm_profile, slurm_query, status
from launch.__main__ import LaunchConfig, main
from launch.job import REQUEUE, Job, Report
from launch.rank import local_device, master_port
from shards.errors import UserError
from shards.output_folder import claim
from tests.one_line import one_line

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    folder = tmp_path / "run/logs/slurm"
    folder.mkdir(parents=True)
    Job("encode", str(tmp_path / "run"), ranks=2, max_restarts=9, logs=str(folder.parent)).write(folder)
    assert attempt.begin(folder) == 0
    return folder


def report(folder: Path, rank: int, status: int, error: str = "", after: float = 0) -> None:
    path = job.report_path(job.reports_folder(folder, job.attempt_number()), rank)
    path.write_text(json.dumps(asdict(Report(rank, status, error, False, time.time() + after))))


def test_all_ranks_done_is_done(folder):
    report(folder, 0, 0)
    report(folder, 1, 0)
    assert attempt.end(folder, 0) == 0
    assert job.read_outcome(folder) == (0, "done")


def test_the_earliest_error_of_any_rank_is_told_first(folder, capsys):
    report(folder, 0, 1, "Traceback\nConnection closed by peer", after=2)
    report(folder, 1, 2, "error: no such folder", after=0)
    assert attempt.end(folder, 137) == 2
    shown = capsys.readouterr().out
    assert shown.startswith("launch: rank 1 of 2 failed first")
    assert shown.index("no such folder") < shown.index("then rank 0 (2.0 s later): Connection closed by peer")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_ranks_that_were_told_to_stop_are_requeued(folder, number):
    report(folder, 0, 128 + number)
    report(folder, 1, 128 + number)
    assert attempt.end(folder, 128 + number) == REQUEUE


def test_an_error_beside_a_stop_is_an_error(folder):
    report(folder, 0, 128 + signal.SIGTERM)  # srun ends the others with SIGTERM
    report(folder, 1, 1, "RuntimeError: the true cause")
    assert attempt.end(folder, 143) == 1


def test_a_rank_without_a_report_was_killed(folder, capsys):
    report(folder, 0, 0)
    assert attempt.end(folder, 137) == 137
    assert "rank 1 of 2 was killed" in capsys.readouterr().out


def test_a_rank_that_died_beside_one_that_srun_then_stopped_is_a_failure(folder, capsys):
    report(folder, 0, 143)
    job.started_path(job.reports_folder(folder, 0), 1).touch()
    assert attempt.end(folder, 143) == 143
    assert "rank 1 of 2 was killed" in capsys.readouterr().out


@pytest.mark.parametrize(("reported", "status", "ends"), [(1, 143, REQUEUE), (0, 143, REQUEUE), (0, 127, 127)])
def test_ranks_told_to_stop_before_they_could_listen_are_requeued(folder, reported, status, ends):
    for rank in range(reported):
        report(folder, rank, 143)
    assert attempt.end(folder, status) == ends


def test_reports_of_the_attempt_before_do_not_count(folder, monkeypatch):
    report(folder, 0, 1, "an old error")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert attempt.begin(folder) == 0
    report(folder, 0, 0)
    report(folder, 1, 0)
    assert attempt.end(folder, 0) == 0


@pytest.mark.parametrize("advancing", [True, False])
def test_three_restarts_without_progress_stop_the_job(folder, monkeypatch, advancing):
    """What is done, but would be lost with the process, is no progress."""
    run = claim(folder.parents[1], "encode", {})
    statuses = []
    for restart in (1, 2, 3, 4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        run.progress(10 * restart, 100, "image", saved=restart if advancing else 1)
        statuses.append(attempt.begin(folder))
    assert statuses == ([0, 0, 0, 0] if advancing else [0, 0, 0, 1])
    if not advancing:
        assert "3 restarts without progress" in job.read_outcome(folder)[1]


def test_a_job_gives_up_after_max_restarts(folder, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "10")
    assert attempt.begin(folder) == 1
    assert "max_restarts=9" in job.read_outcome(folder)[1]


def test_a_task_that_sees_one_gpu_uses_that_one(monkeypatch):
    for visible, device in (("2", 0), ("0,1,2,3", 3), ("", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_device(3) == device


def test_jobs_on_one_node_and_attempts_of_one_job_meet_at_ports_of_their_own():
    ports = [master_port(job, attempt) for job in range(100000, 100020) for attempt in range(5)]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 32000 for port in ports)


def test_an_array_has_failed_when_one_of_its_tasks_has_and_is_done_when_all_are(folder):
    def tell(worker: int, status: int, text: str) -> None:
        part = job.worker_folder(folder, worker)
        part.mkdir(parents=True, exist_ok=True)
        (part / "outcome.json").write_text(json.dumps({"status": status, "text": text}))

    for worker in (0, 2, 10):
        job.worker_folder(folder, worker).mkdir(parents=True)
    assert [part.name for part in job.tasks(folder)] == ["0", "2", "10"]
    tell(2, 0, "done")
    assert job.read_outcome(folder) is None
    tell(0, 0, "done")
    tell(10, 137, "rank 0 was killed")
    assert job.read_outcome(folder) == (137, "worker 10: rank 0 was killed")
    tell(10, REQUEUE, "told to stop")
    assert job.read_outcome(folder) == (REQUEUE, "worker 10: told to stop")
    tell(10, 0, "done")
    assert job.read_outcome(folder)[0] == 0


@pytest.mark.parametrize(
    ("accounts", "state"),
    [
        ("COMPLETED", "COMPLETED"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("COMPLETED\nOUT_OF_MEMORY\nCOMPLETED", "OUT_OF_MEMORY"),
        ("RUNNING", slurm_query.GONE),  # a database that has missed the end
        ("", slurm_query.GONE),
        (None, slurm_query.GONE),
    ],
)
@pytest.mark.parametrize("forgotten", ["no such id", "no line"])
def test_what_squeue_has_forgotten_sacct_may_know(slurm_says, accounts, state, forgotten):
    slurm_says("squeue", *([""] if forgotten == "no line" else ["Invalid job id specified", 1]))
    slurm_says("sacct", *(["accounting storage is disabled", 1] if accounts is None else [accounts]))
    assert slurm_query.state("7") == state


def test_a_controller_that_does_not_answer_has_not_ended_the_job(slurm_says):
    slurm_says("sacct", "no accounts", 1)
    slurm_says("squeue", "RUNNING")
    assert slurm_query.state("7") == "RUNNING"
    slurm_says("squeue", "slurm_load_jobs error: Invalid job id specified", 1)
    assert slurm_query.state("7") == slurm_query.GONE
    slurm_says("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    with pytest.raises(UserError, match="Unable to contact"):
        slurm_query.state("7")


@pytest.mark.parametrize(
    ("tasks", "whole"),
    [
        ("COMPLETED PENDING RUNNING FAILED", "RUNNING"),
        ("COMPLETED PENDING FAILED", "PENDING"),
        ("COMPLETED FAILED COMPLETED", "FAILED"),
        ("COMPLETED COMPLETED", "COMPLETED"),
        ("PREEMPTED RUNNING", "RUNNING"),
        ("PREEMPTED PENDING", "PENDING"),
    ],
)
def test_an_array_is_as_its_tasks_are(slurm_says, tasks, whole):
    slurm_says("squeue", tasks.replace(" ", "\n"))
    assert slurm_query.state("7") == whole


def test_an_array_of_which_a_task_was_forgotten_without_an_outcome_is_not_done(folder, slurm_says, capsys):
    slurm_says("squeue", "COMPLETED")
    for worker in (0, 1):
        job.worker_folder(folder, worker).mkdir(parents=True)
        assert status.wait(folder) == 1
        assert "without an outcome of some of its tasks" in capsys.readouterr().err
        (job.worker_folder(folder, worker) / "outcome.json").write_text('{"status": 0, "text": "done"}')
    assert status.wait(folder) == 0


def test_gpus_of_every_kind_are_counted(slurm_says):
    slurm_says("sinfo", "gpu*|gpu:a100:8(S:0-1)|4\ngpu*|gpu:4,nvme:1|2\nmix|gpu:a100:2,gpu:t4:2|1\ncpu|(null)|9")
    assert slurm_query.nodes_of(None) == {8: 4, 4: 2}
    assert slurm_query.nodes_of("mix") == {4: 1}
    assert slurm_query.nodes_of("cpu") == {0: 9}
    with pytest.raises(UserError, match="the partitions are cpu, gpu, mix"):
        slurm_query.nodes_of("moon")


def test_nodes_that_are_this_very_machine_are_known_by_their_host_names(slurm_says, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "head.cluster")
    slurm_says("sinfo", "cpu*|head\ncpu*|head.cluster\ngpu|head\ngpu|node1")
    assert slurm_query.single_machine(None)
    assert not slurm_query.single_machine("gpu")


def test_auto_is_slurm_where_sbatch_is_except_inside_a_job(slurm_says, monkeypatch):
    slurm_says("sbatch", "")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert LaunchConfig().cluster == "slurm"
    assert LaunchConfig(cluster="local").cluster == "local"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert LaunchConfig().cluster == "auto"


@pytest.mark.parametrize("path", sorted((ROOT / "configs/launch").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_profiles_can_be_read(path):
    assert slurm_profile.load(path).time_minutes > 0


def test_a_profile_is_all_in_the_batch_script_which_is_shown_without_a_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    fields = {
        "partition": "big", "account": "radar", "qos": "night", "constraint": "a100", "exclude": "node[3-4]",
        "time_minutes": 90, "memory_gb": 64, "cpus_per_task": 6, "signal_delay_seconds": 77,
        "setup": ["module load cuda"],
        "container": "apptainer exec img", "python": "/opt/python", "environment": {"NCCL_DEBUG": "it's on"},
        "additional_parameters": {"reservation": "mine"},
    }  # fmt: skip
    (tmp_path / "profile.yaml").write_text(json.dumps(fields))
    (tmp_path / "data").mkdir()
    flags = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run")]
    where = ["--cluster", "slurm", "--nodes", "3", "--gpus_per_node", "4", "--profile", str(tmp_path / "profile.yaml")]
    assert main(["train-vqvae", *where, "--after", "5", "--dry_run", "--", *flags]) == 0
    shown = capsys.readouterr().out
    for option in (
        "partition=big", "account=radar", "qos=night", "constraint=a100", "exclude='node[3-4]'", "time=90", "mem=64GB",
        "cpus-per-task=6", "signal=USR2@77", "reservation=mine", "nodes=3", "ntasks-per-node=4", "gpus-per-node=4",
        "requeue", "dependency=afterok:5", "kill-on-invalid-dep=yes",
    ):  # fmt: skip
        assert f"#SBATCH --{option}\n" in shown
    assert "wckey" not in shown
    assert "--kill-on-bad-exit=1 --cpus-per-task=6 apptainer exec img /opt/python -u -m submitit" in shown
    assert "module load cuda\n" in shown
    (tmp_path / "profile.yaml").write_text(json.dumps(fields | {"gres": "gpu:h100:4"}))
    assert main(["train-vqvae", *where, "--after", "5", "--dry_run", "--", *flags]) == 0
    by_name = capsys.readouterr().out
    assert "#SBATCH --gres=gpu:h100:4\n" in by_name
    assert "gpus-per-node" not in by_name
    assert """export NCCL_DEBUG='it'"'"'s on'\n""" in shown
    assert f"output_dir: {tmp_path}/run" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_batch_script_is_that_of_an_array_only_where_asked_for(ldm, tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    flags = ["--ldm_path", str(ldm), "--output_dir", str(tmp_path / "out"), "--num_samples", "9"]
    array = ["generate", "--cluster", "slurm", "--workers", str(workers), "--dry_run", "--"]
    assert main([*array, *flags, "--samples_per_shard", "3"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "#SBATCH --array=0-2\n",
        f"begin {tmp_path}/out/logs/slurm/workers/$SLURM_ARRAY_TASK_ID ",
        "scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID ",
    ):
        assert (line in shown) == (workers == 3)


def test_a_training_is_no_array_and_without_slurm_the_ranks_do_it_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    flags = ["--", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["train-vqvae", "--cluster", "slurm", "--workers", "2", *flags]) == 2
    assert "only generate, evaluate, augment run as a job array" in capsys.readouterr().err
    for cluster in ("auto", "local"):
        local = ["generate", "--cluster", cluster, "--workers", "64", "--gpus_per_node", "2", "--dry_run"]
        assert main([*local, "--", "--ldm_path", "x", "--output_dir", "y"]) == 0
        shown = capsys.readouterr().out
        assert "launch: workers=64 is for job arrays of SLURM; here 2 rank(s) do it all" in shown
        assert "# mdaug generate: 2 rank(s) on this machine" in shown


@pytest.mark.parametrize(("ranks", "shards", "jobs"), [(1, 2, 2), (1, 1, 1), (2, 5, 3), (4, 3, 1)])
def test_no_more_jobs_are_queued_than_have_shards_to_make(ranks, shards, jobs, ldm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    size = ["--cluster", "slurm", "--workers", "20", "--gpus_per_node", str(ranks), "--dry_run", "--"]
    count = ["--num_samples", str(4 * shards), "--samples_per_shard", "4"]
    assert main(["generate", *size, "--ldm_path", str(ldm), "--output_dir", str(tmp_path / "out"), *count]) == 0
    shown = capsys.readouterr().out
    assert f"workers=20, but {shards} piece(s) are work for {jobs} job(s) of {ranks} rank(s)" in shown
    assert (f"#SBATCH --array=0-{jobs - 1}\n" in shown) == (jobs > 1)


def test_an_array_larger_than_the_cluster_takes_is_refused_with_its_limit(
    slurm_says, ldm, tmp_path, monkeypatch, capsys
):
    slurm_says("sbatch", "")
    monkeypatch.setattr(slurm_query, "nodes_of", lambda partition: {0: 2})
    monkeypatch.setattr(slurm_query, "single_machine", lambda partition: True)
    slurm_says("scontrol", "MaxArraySize            = 3")
    flags = ["--ldm_path", str(ldm), "--output_dir", str(tmp_path / "out"), "--samples_per_shard=1", "--num_samples=9"]
    array = ["generate", "--cluster", "slurm", "--gpus_per_node", "1", "--dry_run", "--workers"]
    assert "workers=4, but a job array of this cluster has 3 tasks at most" in one_line(
        main, [*array, "4", "--", *flags], capsys
    )
    assert main([*array, "3", "--", *flags]) == 0
    refused = FailedJobError("sbatch: error: Batch job submission failed: Invalid job array specification")
    assert "use fewer --workers" in slurm._reason_of_sbatch(refused)


NOT_CONFIGURED = "sinfo: error: resolve_ctls_from_dns_srv: res_nsearch error\nsinfo: fatal: no configuration source"


@pytest.mark.parametrize("cluster", ["slurm", "auto"])
def test_a_dry_run_needs_no_cluster(cluster, slurm_says, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for program in ("sbatch", "sinfo", "scontrol", "squeue"):
        slurm_says(program, NOT_CONFIGURED, 1)
    (tmp_path / "data/walk").mkdir(parents=True)
    (tmp_path / "data/walk/0.png").touch()
    flags = ["--", "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run")]
    command = ["train-vqvae", "--cluster", cluster, "--nodes", "2", "--gpus_per_node", "4"]
    assert main([*command, "--dry_run", *flags]) == 0
    shown = capsys.readouterr().out
    assert "partition, nodes and GPUs are not checked" in shown
    assert "#SBATCH --nodes=2\n" in shown
    assert "sinfo does not answer: " in one_line(main, [*command, *flags], capsys)


@pytest.mark.parametrize("name", ["run%j3", "50%", "a\\b"])
def test_a_folder_whose_name_slurm_would_change_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    flags = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / name)]
    said = one_line(main, ["train-vqvae", "--cluster", "slurm", "--dry_run", "--", *flags], capsys)
    assert name in said
    assert "choose another --output_dir" in said
    assert main(["train-vqvae", "--cluster", "local", "--dry_run", "--", *flags]) == 0


def test_commands_in_messages_can_be_pasted(tmp_path):
    options = SimpleNamespace(output_dir=tmp_path / "my runs")
    submission = slurm.Submission("encode", options, slurm_profile.Profile())
    told = slurm.describe(submission, Job("encode", str(options.output_dir), 1, 0, str(tmp_path), job_id="7"))
    for line in told.splitlines()[-3:]:
        assert shlex.split(line)[-1] == str(options.output_dir)


def test_a_path_that_begins_elsewhere_is_the_same_in_the_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    monkeypatch.chdir(tmp_path)
    Path("data/walk").mkdir(parents=True)
    Path("data/walk/0.png").touch()
    flags = ["--data_dir", "data", "--output_dir", "run"]
    assert main(["train-vqvae", "--cluster", "slurm", "--dry_run", "--", *flags]) == 0
    assert f"data_dir: {tmp_path}/data" in capsys.readouterr().out
