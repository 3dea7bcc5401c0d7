"""The experiment on toy sets whose answer is known: a perfect generator helps, wrong labels harm, and it is said so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mdaug import config as configuration
from mdaug.artifacts import GEOMETRY_FILE
from mdaug.evaluation import comparisons, jobs, usefulness
from mdaug.evaluation.evaluate import check
from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig
from mdaug.evaluation.report import page
from mdaug.evaluation.report.verdict import outcome, verdict
from mdaug.evaluation.usefulness import (
    BOTH,
    BOTH_TRANSFORMS,
    DUPLICATED,
    REAL,
    SIMULATED,
    SYNTHETIC,
    TRANSFORMS,
    WITH_SIMULATED,
)
from mdaug.measures import features, image_set
from shards import output_folder, provenance
from shards.errors import UserError
from shards.output_folder import is_finished, read_progress
from shards.validation import WORKER, WORKERS, Preflight
from tests.toy import CLASSES, toy_packed, toy_synthetic

SIZE = 32
DATA = {"classes": CLASSES, "train": [24] * 4, "held_out": [20] * 4}
SETTINGS = {"steps": 60, "batch_size": 16, "learning_rate": 3e-3, "network": "small"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed"), size=SIZE, train=96, val=80)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory, packed):
    return toy_synthetic(tmp_path_factory.mktemp("synthetic"), packed)


def experiment(packed, synthetic, folder, *, n_real=(1,), seeds=3, workers=1, **settings):
    train, held_out, fake = (
        image_set.load(path, image_size=SIZE, max_per_class=1000)
        for path in (packed / "train", packed / "val", synthetic)
    )
    sets = {"train": train, "held_out": held_out, "synthetic": fake, "simulated": None}
    plan = usefulness.plan_jobs(n_real, ["all"], seeds, train, fake)
    results = jobs.run_all(plan, folder, workers, **sets, **(SETTINGS | settings))
    table = comparisons.summarize(results, held_out, fake)
    return table, {arm["arm"]: arm for arm in table["arms"]}


def against_real(table):
    return next(item for item in table["comparisons"] if (item["arm"], item["baseline"]) == (BOTH, REAL))


@pytest.mark.slow
def test_a_perfect_generator_helps_where_real_images_are_few(packed, synthetic, tmp_path):
    table, arms = experiment(packed, synthetic, tmp_path)
    assert outcome(against_real(table)) == "gain"
    assert arms[SYNTHETIC]["accuracy"] > 0.8
    assert arms[BOTH]["real"] == len(CLASSES)
    assert arms[BOTH]["further"] == 64
    assert arms[DUPLICATED]["further"] >= 64


@pytest.mark.slow
def test_wrong_labels_harm_and_the_verdict_says_so_first(packed, tmp_path):
    wrong = toy_synthetic(tmp_path / "wrong", packed, shift=1)
    (tmp_path / "results").mkdir()
    table, arms = experiment(packed, wrong, tmp_path / "results", n_real=("all",))
    assert outcome(against_real(table)) == "loss"
    assert arms[SYNTHETIC]["accuracy"] < table["chance"]
    assert table["real_to_synthetic"]["accuracy"] < table["chance"]
    result = verdict(
        {"usefulness": table, "memorization": {"share_closer": 0.0}, "data": DATA},
    )
    assert result["outcome"] == "loss"
    assert result["sentences"][0].startswith(
        "Compared with real images only, adding the synthetic images made the classifier worse"
    )
    assert "labels of the synthetic images are not reliable" in result["sentences"][2]


def made_up(difference, low, high, *, n_real=10, real=0.8, learnt=1.0):
    """Return metrics in which the synthetic images change the accuracy by `difference`, alike against transforms."""
    used = {"n_real": n_real, "n_used": "40 (all there are)" if n_real == "all" else str(n_real)}
    arms = [
        {"arm": name, "name": name, **used, "ratio": 5 * (BOTH in name), "accuracy": accuracy, "learnt": learnt}
        for name in (REAL, TRANSFORMS, BOTH, BOTH_TRANSFORMS)
        for accuracy in [real + difference * (BOTH in name)]
    ]
    figures = {**used, "ratio": 5, "difference": difference, "low": low, "high": high}
    pairs = ((BOTH, REAL), (BOTH, TRANSFORMS), (BOTH_TRANSFORMS, TRANSFORMS))
    comparisons = [{"arm": arm, "name": arm, "baseline": baseline, **figures} for arm, baseline in pairs]
    table = {
        "arms": [*arms, {"arm": SYNTHETIC, "n_real": 0, "ratio": "all", "accuracy": 0.7}],
        "comparisons": comparisons,
        "chance": 0.25,
        "real_to_synthetic": {"accuracy": 0.9},
    }
    return {"usefulness": table, "memorization": {"share_closer": 0.01}, "data": DATA | {"train": [40] * 4}}


def test_verdict_of_a_gain_names_what_the_generator_knew_in_advance():
    few = verdict(made_up(0.1, 0.05, 0.15))
    assert few["outcome"] == "gain"
    assert "all 160 training images" in few["sentences"][0]
    every = verdict(made_up(0.1, 0.05, 0.15, n_real="all"))
    assert "all 160 training images" not in every["sentences"][0]
    assert "more seeds" in every["sentences"][2]


def test_verdict_never_calls_noise_a_gain():
    result = verdict(made_up(0.1, -0.01, 0.2))
    assert result["outcome"] == "none"
    assert "no measurable gain" in result["sentences"][0]
    assert "no better" in result["sentences"][1]
    assert "too wide to rule a gain or a loss out" in result["sentences"][2]
    saturated = verdict(made_up(0.01, -0.01, 0.02, real=0.985))
    assert "almost no room" in saturated["sentences"][2]


@pytest.mark.slow
def test_a_verdict_from_too_few_steps_says_so_first(packed, synthetic, tmp_path):
    sentences = {}
    for steps in (10, 60):
        (tmp_path / str(steps)).mkdir()
        table, arms = experiment(packed, synthetic, tmp_path / str(steps), n_real=("all",), seeds=1, steps=steps)
        metrics = {"usefulness": table, "memorization": {"share_closer": 0.0}, "data": DATA}
        sentences[steps] = verdict(metrics)["sentences"]
        assert (arms[TRANSFORMS]["learnt"] > 0.97) == (steps == 60)
    early = "Not to be relied on, since classifiers were stopped too early (see below): compared with real images only"
    assert sentences[10][0].startswith(early)
    assert sentences[10][2].endswith("repeat it with more --steps.")
    assert "stopped too early" not in " ".join(sentences[60])


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes(packed, synthetic, tmp_path):
    tables = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        folder = tmp_path / str(workers)
        tables.append(experiment(packed, synthetic, folder, seeds=1, workers=workers, steps=5)[0])
    assert tables[0] == tables[1]


def sets_of(packed, synthetic):
    folders = (packed / "train", packed / "val", synthetic)
    return [image_set.load(folder, image_size=SIZE, max_per_class=1000) for folder in folders]


def test_arms_of_a_seed_see_the_same_real_images(packed, synthetic):
    train, _, fake = sets_of(packed, synthetic)
    plan = usefulness.plan_jobs([10, 24, "all"], [0, 1, 5], 2, train, fake)
    assert len(plan) == len({job.name for job in plan})
    assert {job.n_real for job in plan} == {10, 20, "all", 0}  # 24 is all of them
    assert {job.arm for job in plan if job.n_real == 20} == {TRANSFORMS}  # for the curve of the free baseline
    assert [job.n_real for job in plan if job.reference] == ["all"] * 2
    # There are 16 synthetic images per class: at "all" (24) the ratio 5 finds no more than the ratio 1.
    assert {job.ratio for job in plan if job.n_real == "all"} == {0, 1}
    of_seed = [usefulness.training_images(job, train, fake, None) for job in plan if (job.seed, job.n_real) == (1, 10)]
    assert all(np.array_equal(images[0], of_seed[0][0][0]) for images, _ in of_seed)
    further = {job.ratio: sum(map(len, usefulness.training_images(job, train, fake, None)[1][1:])) for job in plan}
    assert (further[0], further["all"]) == (0, 64)
    most = next(job for job in plan if (job.arm, job.n_real, job.ratio) == (BOTH, 10, 5))
    assert np.bincount(usefulness.training_images(most, train, fake, None)[1][1]).tolist() == [16] * 4


def test_ranks_share_the_jobs_and_only_the_last_to_finish_goes_on(packed, synthetic, tmp_path):
    train, held_out, fake = sets_of(packed, synthetic)
    plan = usefulness.plan_jobs([1], [1], 1, train, fake)
    sets = {"train": train, "held_out": held_out, "synthetic": fake, "simulated": None}
    settings = SETTINGS | {"steps": 2}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    expected = jobs.run_all(plan, alone, 1, **sets, **settings)
    for rank, done in ((2, False), (0, False), (1, True)):
        before = len(list(shared.iterdir()))
        results = jobs.run_all(plan, shared, 1, share=(rank, 3), **sets, **settings)
        assert len(list(shared.iterdir())) - before == len(plan[rank::3])
        assert results == (expected if done else None)


@pytest.fixture
def config(packed, synthetic, tmp_path):
    options = {"steps": 2, "batch_size": 8, "image_size": SIZE, "seeds": 2, "workers": 1}
    numbers = {"n_real_per_class": [2, "all"], "synthetic_per_real": [1]}
    return EvaluateConfig(packed, synthetic, tmp_path / "evaluation", **numbers, **options)


@pytest.mark.slow
def test_finished_evaluation_says_so_and_an_interrupted_one_goes_on(config, capsys, monkeypatch):
    metrics = evaluate(config)
    results = sorted((config.output_dir / "results").iterdir())
    parts = config.output_dir / "parts"
    written = {path: path.stat().st_mtime_ns for path in results}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(image_set, "load", None)  # it neither reads images nor trains
        assert evaluate(config) == metrics
    assert "finished" in capsys.readouterr().out

    (config.output_dir / provenance.FILE_NAME).unlink()  # killed while the last but one classifier was trained
    results[3].unlink()
    for name in ("usefulness", "kinematics"):
        (parts / f"{name}.json").unlink()
    assert evaluate(config) == metrics
    assert [path for path in results if path.stat().st_mtime_ns != written[path]] == [results[3]]


@pytest.mark.slow
def test_progress_counts_the_classifiers_of_all_ranks_and_is_gone_at_the_end(config, monkeypatch):
    monkeypatch.setattr(output_folder, "EVERY_S", 0.0)
    monkeypatch.setenv(WORKERS, "2")
    monkeypatch.setenv(WORKER, "1")
    assert evaluate(config) is None
    progress = read_progress(config.output_dir)
    results = len(list((config.output_dir / "results").iterdir()))
    assert (progress.done, progress.total, progress.unit) == (results, progress.total, "classifier")
    assert results == progress.total // 2
    monkeypatch.setenv(WORKER, "0")
    assert evaluate(config) is not None
    assert read_progress(config.output_dir) is None
    assert is_finished(config.output_dir)


@pytest.mark.slow
def test_parts_add_up_to_the_whole(config):
    whole = evaluate(replace(config, output_dir=config.output_dir.with_name("whole")))
    first = evaluate(replace(config, part="memorization"))
    assert (first["verdict"], first["usefulness"]) == (None, None)
    assert "not been measured yet" in (config.output_dir / page.REPORT).read_text(encoding="utf-8")
    for part in ("fidelity", "kinematics", "usefulness"):
        metrics = evaluate(replace(config, part=part))
    assert [command.split()[2] for command in metrics["commands"].values()] == list(metrics["commands"])
    text = (config.output_dir / page.REPORT).read_text(encoding="utf-8")
    assert all(f"<pre>mdaug evaluate {part} --" in text for part in metrics["commands"])
    assert len(set(whole["commands"].values())) == 1
    without = ("config", "commands", "verdict")
    assert {k: v for k, v in metrics.items() if k not in without} == {
        k: v for k, v in whole.items() if k not in without
    }
    assert metrics["verdict"] == whole["verdict"]


def test_simulated_images_are_an_arm_of_their_own(config, tmp_path):
    simulated = toy_packed(tmp_path / "simulated", size=SIZE, train=32, val=8)
    metrics = evaluate(replace(config, part="usefulness", simulated_dir=simulated, n_real_per_class=[2]))
    arms = {arm["arm"]: arm for arm in metrics["usefulness"]["arms"]}
    assert (arms[WITH_SIMULATED]["real"], arms[WITH_SIMULATED]["further"]) == (8, 8)
    assert (arms[SIMULATED]["real"], arms[SIMULATED]["further"]) == (0, 32)
    assert metrics["data"]["simulated"] == [8] * 4


def test_the_real_images_are_no_simulated_ones(config):
    with pytest.raises(UserError, match="the very images of data_dir"):
        evaluate(replace(config, simulated_dir=config.data_dir))
    assert not config.output_dir.exists()


@pytest.mark.slow
def test_the_second_rank_leaves_the_report_to_the_last(config, capsys, monkeypatch):
    monkeypatch.setenv(WORKERS, "2")
    monkeypatch.setenv(WORKER, "1")
    assert evaluate(config) is None
    assert not (config.output_dir / page.REPORT).exists()
    monkeypatch.setenv(WORKER, "0")
    assert evaluate(config)["verdict"] is not None
    assert (config.output_dir / page.REPORT).is_file()


def test_a_rank_that_ends_its_classifiers_first_and_its_features_last_writes_the_report(config, monkeypatch):
    monkeypatch.setenv(WORKERS, "2")
    config, extract_all = replace(config, part="fidelity"), features.extract_all
    others: list[dict | None] = []

    def after_the_other_rank(*arguments, **share):
        with monkeypatch.context() as patch:
            patch.setattr(features, "extract_all", extract_all)
            patch.setenv(WORKER, "1")
            others.append(evaluate(config))
        monkeypatch.setattr(features, "extract_all", extract_all)
        return extract_all(*arguments, **share)

    monkeypatch.setattr(features, "extract_all", after_the_other_rank)
    monkeypatch.setenv(WORKER, "0")
    assert evaluate(config) is not None
    assert others == [None]
    assert (config.output_dir / page.REPORT).is_file()


@pytest.mark.slow
def test_other_settings_or_inputs_are_another_evaluation(config, packed, tmp_path):
    """The command refuses, and the launcher does before it submits: the settings even where the inputs come later."""
    evaluate(config)
    for inputs_there in (False, True):
        where = Preflight(inputs_there=inputs_there)
        check(config, where)
        with pytest.raises(UserError, match=r"another run of mdaug evaluate \(steps: 2 there, 3 now\)"):
            check(replace(config, steps=3), where)
    with pytest.raises(UserError, match="steps: 2 there, 3 now"):
        evaluate(replace(config, steps=3))
    other = replace(config, synthetic_dir=toy_synthetic(tmp_path / "other", packed, per_class=4))
    for refusing in (evaluate, lambda other: check(other, Preflight())):
        with pytest.raises(UserError, match="made from synthetic"):
            refusing(other)
    check(other, Preflight(inputs_there=False))


def test_a_folder_with_something_else_is_left_alone(config):
    config.output_dir.mkdir()
    (config.output_dir / "thesis.tex").write_text("mine")
    for refusing in (evaluate, lambda config: check(config, Preflight(inputs_there=False))):
        with pytest.raises(UserError, match=r"holds other files \('thesis.tex'\)"):
            refusing(config)
    assert [path.name for path in config.output_dir.iterdir()] == ["thesis.tex"]


def test_a_generator_of_other_images_is_refused(config, tmp_path):
    others = toy_packed(tmp_path / "others", size=SIZE, train=8, val=8)
    with pytest.raises(UserError, match=r"others.*images differ"):
        evaluate(replace(config, data_dir=others))
    assert not config.output_dir.exists()


def test_a_vqvae_of_other_images_is_refused(config, tmp_path):
    best = tmp_path / "vqvae" / "best"
    best.mkdir(parents=True)
    (best / GEOMETRY_FILE).write_text("{}")
    provenance.write(best, kind="vqvae", content_hash="v", made_from={"images": "others"}, config={})
    with pytest.raises(UserError, match="images differ"):
        evaluate(replace(config, vqvae_path=tmp_path / "vqvae"))


def test_other_classes_are_refused(config, packed, tmp_path):
    renamed = toy_synthetic(tmp_path / "renamed", packed, classes=["a", "b", "c", "d"])
    with pytest.raises(UserError, match="classes"):
        evaluate(replace(config, synthetic_dir=renamed))
    assert not config.output_dir.exists()


def test_flags_fill_the_configuration(tmp_path):
    required = ["--data_dir=a", "--synthetic_dir=b", "--output_dir=c"]
    flags = [*required, "--n_real_per_class", "[5, 20, all]"]
    assert configuration.parse(EvaluateConfig, flags, "mdaug evaluate").n_real_per_class == [5, 20, "all"]
    assert configuration.parse(EvaluateConfig, required, "mdaug evaluate").part == "all"
    assert configuration.parse(EvaluateConfig, ["fidelity", *required], "mdaug evaluate").part == "fidelity"
    for first, field in (("beauty", "part"), ("reconstruction", "vqvae_path")):
        with pytest.raises(UserError, match=field):
            configuration.parse(EvaluateConfig, [first, *required], "mdaug evaluate")
    for wrong, field in (("[all, 10]", "n_real_per_class"), ("[0]", "n_real_per_class"), ("[some]", "n_real")):
        with pytest.raises(UserError, match=field):
            configuration.parse(EvaluateConfig, [*required, "--n_real_per_class", wrong], "mdaug evaluate")
    for wrong, accepted in (
        ("image_size=50", "multiple of 16"),
        ("image_size=1000000", "at most 1024"),
        ("learning_rate=1e30", "at most 1"),
        ("max_per_class=1", "at least 2"),
        ("batch_size=1000000", "at most 4096"),
    ):
        with pytest.raises(UserError, match=accepted):
            configuration.parse(EvaluateConfig, [*required, f"--{wrong}"], "mdaug evaluate")
