"""Plan, work and finalize apart; workers; counts; what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdaug import cli, distributed
from mdaug.evaluation.options import EvaluateConfig
from mdaug.generation import counts, generate, make_plan, worker
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import read_plan
from shards import provenance
from shards.errors import UserError
from shards.output_folder import RUN_FILE, read_progress
from shards.validation import WORKER, WORKERS, worker_of
from tests.generation import files, make, step
from tests.tiny_pipeline import CLASSES


def test_plan_work_and_finalize_apart_make_what_they_make_together(ldm, tmp_path, capsys):
    whole = files(make(ldm, tmp_path / "whole", num_samples=45))
    apart = make(ldm, tmp_path / "apart", num_samples=45, step="plan")
    assert list(files(apart)) == ["run.json"]
    for number in (3, 0, 1):  # worker 2 of 4 is missing
        step(ldm, apart, "work", worker=number, num_workers=4)
    command = f"mdaug generate --step work --ldm_path {ldm} --output_dir {apart}"
    with pytest.raises(
        UserError, match=r"not complete: 000002.tar \(1 shard is\) missing; make the rest with: "
    ) as error:
        step(ldm, apart, "finalize")
    assert str(error.value).endswith(command)
    assert cli.main(["generate", "--step", "finalize", "--ldm_path", str(ldm), "--output_dir", str(apart)]) == 2
    assert not (apart / provenance.FILE_NAME).exists()
    capsys.readouterr()
    step(ldm, apart, "work")
    assert "5 samples" not in capsys.readouterr().out.split("worker 0 of 1: ")[1][:2]  # a shard of 8
    step(ldm, apart, "finalize")
    assert files(apart) == whole


def test_what_is_known_to_go_badly_is_said_before_the_work(ldm, tmp_path, capsys):
    make(ldm, tmp_path / "out", step="plan", scheduler_type="pndm", num_inference_steps=5, guidance_scale=8.0)
    output = capsys.readouterr().out
    assert "warning: pndm with 5 steps extrapolates from few points; take 10 or more" in output
    assert "warning: guidance 8 makes the samples of a class alike" in output


def test_steps_without_a_plan_say_how_to_start(ldm, tmp_path):
    with pytest.raises(UserError, match=r"has no plan; start with: mdaug generate --step plan"):
        step(ldm, tmp_path / "none", "finalize")
    assert not (tmp_path / "none").exists()


def test_workers_that_are_done_share_what_others_left_and_leave_nothing(ldm, tmp_path, monkeypatch):
    """A second pass after worker 1 of 3 and a half of worker 2 were lost."""
    folder = make(ldm, tmp_path / "out", num_samples=96, step="plan")  # 12 shards
    plan = read_plan(folder)
    for number in (0, 2):
        step(ldm, folder, "work", worker=number, num_workers=3)
    for shard in (8, 11):
        (folder / plan.shard_name(shard)).with_suffix(".json").unlink()
    missing = worker.missing_shards(plan, folder)
    assert missing == [1, 4, 7, 8, 10, 11]
    orders = [worker.assigned(plan, folder, number, 3) for number in range(3)]
    assert orders[1] == [1, 4, 7, 10]  # its own, by the rule
    assert orders[2] == [8, 11]
    assert orders[0] == missing[::-1]  # a helper meets the owners last
    # with all of their own there, helpers begin apart, none where an owner begins, and go round
    helpers = [worker.assigned(plan, folder, number, 13) for number in (0, 12)]
    assert [sorted(order) for order in helpers] == [missing, missing]
    assert helpers[0][0] != helpers[1][0]
    assert helpers[1] == [4, 1, 11, 10, 8, 7]
    for number in (0, 1, 2):
        step(ldm, folder, "work", worker=number, num_workers=3)
    assert worker.missing_shards(plan, folder) == []
    assert files(folder) == files(make(ldm, tmp_path / "again", num_samples=96, step="work"))


def test_whether_all_shards_are_there_is_asked_of_one_listing(ldm, packed, tmp_path, monkeypatch):
    folder = make(ldm, tmp_path / "out", num_samples=40, include_real=packed)
    plan = read_plan(folder)
    monkeypatch.setattr(worker, "finished", lambda path: pytest.fail(f"the sidecar of {path} was read"))
    assert worker.is_complete(plan, folder)
    for name in (plan.shard_name(2), plan.real_shard_name(0)):
        for suffix in (".json", ".tar"):
            path = (folder / name).with_suffix(suffix)
            path.rename(path.with_suffix(".away"))
            assert not worker.is_complete(plan, folder)
            assert worker.missing_shards(plan, folder) == ([2] if name == plan.shard_name(2) else [])
            path.with_suffix(".away").rename(path)


AMBIENT = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}


@pytest.mark.parametrize("given", [None, 1])
@pytest.mark.parametrize(("told", "ranks", "rank"), [({}, 1, 0), ({WORKER: "2", WORKERS: "6"}, 6, 2)])
def test_only_flags_and_the_launcher_divide_the_work_and_ranks_count_within_workers(given, told, ranks, rank):
    workers = {} if given is None else {"worker": given, "num_workers": 3}
    for options in (
        GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out"), **workers),
        EvaluateConfig(Path("packed"), Path("synthetic"), Path("out"), **workers),
    ):
        expected = (rank, ranks) if given is None else (given * ranks + rank, 3 * ranks)
        assert worker_of(options, AMBIENT | told) == expected


@pytest.mark.parametrize("around", [("WORLD_SIZE", "RANK"), ("SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_ID")])
def test_every_command_of_an_array_over_seeds_makes_all_of_its_samples(around, ldm, tmp_path, monkeypatch, capsys):
    count, number = around
    flags = ["--ldm_path", str(ldm), "--num_samples", "20", "--samples_per_shard", "8", "--num_inference_steps=1"]
    for task in ("1", "2"):
        monkeypatch.setenv(count, "3")
        monkeypatch.setenv(number, task)
        assert cli.main(["generate", *flags, "--seed", task, "--output_dir", str(tmp_path / task)]) == 0
        assert (tmp_path / task / "index.json").is_file()
        assert f"{count} is set, but does not divide the work of generate" in capsys.readouterr().out


def test_progress_counts_what_all_workers_have_finished_and_goes_at_the_end(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=45, step="plan")
    for number, done in ((2, 13), (0, 29), (1, 45)):  # shards of 8, the last one of 5
        step(ldm, folder, "work", worker=number, num_workers=3)
        progress = read_progress(folder)
        assert progress is not None
        assert (progress.done, progress.saved, progress.total, progress.unit) == (done, done, 45, "image")
    step(ldm, folder, "finalize")
    assert read_progress(folder) is None


def test_a_worker_with_another_gpu_says_so_and_leaves_the_set_alone(ldm, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gpu", lambda: "Tesla T4, torch 2")
    folder = make(ldm, tmp_path / "out", num_samples=3, step="plan")
    step(ldm, folder, "work", worker=0, num_workers=2)
    before = files(folder)
    monkeypatch.setattr(distributed, "gpu", lambda: "NVIDIA H100, torch 2")
    with pytest.raises(UserError, match="is for the GPU Tesla T4, torch 2, but this is NVIDIA H100, torch 2; go on"):
        step(ldm, folder, "work", worker=1, num_workers=2)
    with pytest.raises(UserError, match="gpu: Tesla T4, torch 2 there, NVIDIA H100, torch 2 now"):
        make(ldm, folder, num_samples=3)
    assert files(folder) == before
    step(ldm, folder, "finalize")  # computes nothing


@pytest.mark.parametrize("change", [{"format": 0}, {"identity": {"samples": 3}}])
def test_a_plan_of_another_version_is_one_line(ldm, tmp_path, change):
    folder = make(ldm, tmp_path / "out", num_samples=3, step="plan")
    record = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps(record | change))
    before = files(folder)
    for options in ({"step": "work"}, {"num_samples": 3}):
        with pytest.raises(UserError, match="version of mdaug") as error:
            generate.run(GenerateConfig(ldm_path=ldm, output_dir=folder, **options))
        assert "\n" not in str(error.value)
    assert files(folder) == before


@pytest.mark.slow
def test_a_plan_of_a_hundred_million_samples_takes_seconds_and_little_memory(ldm, tmp_path):
    script = f"""
import resource
from pathlib import Path
from mdaug import cli
status = cli.main("generate --step plan --ldm_path {ldm} --output_dir {tmp_path / "out"} "
                  "--num_samples 100000000 --sift_steps 1".split())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(status, peak.split()[1], resource.getrusage(resource.RUSAGE_SELF).ru_utime)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    status, kilobytes, seconds = run.stdout.split()[-3:]
    assert status == "0", run.stderr
    assert int(kilobytes) < 1e6
    assert float(seconds) < 10  # of a processor: the machine may be busy
    plan = read_plan(tmp_path / "out")
    assert (plan.total, plan.num_shards) == (100_000_000, 100_000)
    assert (tmp_path / "out" / "run.json").stat().st_size < 2000
    last = plan.samples(plan.num_shards - 1)
    assert len(last) == 1000
    assert np.bincount(plan.labels(last)).min() > 300
    assert plan.labels(np.arange(99_000_000, 99_000_100)).max() == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"balance_to": "packed"}, {"fall": 3, "bird": 5}),
        ({"balance_to": "counts.json"}, {"fall": 9, "bird": 10}),
        ({"balance_to": "packed", "fill": "walk=8"}, {"walk": 2, "fall": 3, "bird": 5}),
        ({"fill": "bird=5"}, {"bird": 5}),
        ({"fill": "bird=5", "include_real": "packed"}, {"bird": 4}),
        ({"num_samples": 11, "include_real": "packed"}, {"walk": 1, "fall": 4, "bird": 6}),
        ({"num_samples": 6, "include_real": "packed"}, {"fall": 2, "bird": 4}),
    ],
)
def test_classes_are_filled_up_to_what_is_asked(ldm, packed, tmp_path, options, expected):
    (tmp_path / "counts.json").write_text(json.dumps({"walk": 10, "fall": 1, "bird": 0}))
    places = {"packed": packed, "counts.json": tmp_path / "counts.json"}
    config = GenerateConfig(ldm_path=ldm, output_dir=tmp_path, **{k: places.get(v, v) for k, v in options.items()})
    made = make_plan.make_plan(config, "cpu").counts
    assert {name: count for name, count in made.items() if count} == expected


def test_level_counts_are_as_level_as_can_be():
    random = np.random.default_rng(0)
    for _ in range(300):
        known = [f"c{i}" for i in range(random.integers(1, 6))]
        have = {name: int(random.integers(0, 20)) for name in known}
        number = int(random.integers(1, 60))
        given = counts.even(number, known, known, have)
        assert sum(given.values()) == number
        assert max(have[name] + n for name, n in given.items() if n) - min(have[n] + given[n] for n in known) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance_to": "even.json"}, "nothing to make: .*even.json has walk 4, fall 4, bird 4"),
        ({"balance_to": "list.json"}, "does not say how many images"),
        ({"balance_to": "broken.json"}, "is not JSON"),
        ({"balance_to": "other.json"}, "the model knows no class swim"),
        ({"fill": "swim=4"}, "the model knows no class swim"),
        ({"include_real": "empty"}, "not a finished 'images' folder"),
        ({"num_samples": 600_000_000, "sift": "packed"}, "images differ"),
        ({"num_samples": 5_000_000_000}, "more than there are seeds"),
        ({"compile": True}, "--compile is for a GPU"),
        ({"ldm_path": Path("nowhere")}, "nowhere holds no pipeline"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(ldm, packed, tmp_path, options, message):
    contents = {"even": {"walk": 4, "fall": 4, "bird": 4}, "list": CLASSES, "other": {"swim": 3}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    places = {"packed": packed, "empty": tmp_path} | {path.name: path for path in tmp_path.glob("*.json")}
    options = {k: places.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(UserError, match=message):
        generate.run(GenerateConfig(**({"ldm_path": ldm, "output_dir": tmp_path / "out"} | options)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "fall=0"}, "fill: fall=0 must be at least 1"),
        ({"per_class": "fall=-3"}, "per_class: fall=-3"),
        ({"balance_to": Path("packed"), "num_samples": 5}, "leave out per_class, classes and num_samples"),
        ({"worker": 2}, "worker and num_workers belong together"),
        ({"worker": 2, "num_workers": 2}, "worker=2 must be less than num_workers=2"),
        ({"num_workers": 0, "worker": 0}, "num_workers=0"),
        ({"repair": True, "step": "finalize"}, "repair makes shards again"),
        ({"guidance_interval": [0.5, 0.5]}, "guidance_interval=.*two rising shares"),
        ({"sift_quantile": 0.7}, "sift_quantile=0.7"),
        ({"max_candidates": 0}, "max_candidates=0"),
        ({"dynamic_range_db": 0.0}, "dynamic_range_db=0"),
    ],
)
def test_contradicting_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out"), **options)
