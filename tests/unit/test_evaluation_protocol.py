"""The protocol: nested subsets, paired arms, controls that know nothing of the target, and what an arm is worth."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from mdaug.augment import COPIES, RICHER, TODAY, Policy
from mdaug.evaluation import comparisons, usefulness
from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.inputs import load_like, policy_of
from mdaug.evaluation.options import EvaluateConfig
from mdaug.evaluation.report import page, plots
from mdaug.evaluation.report.verdict import verdict
from mdaug.evaluation.usefulness import (
    AUXILIARY,
    BOTH,
    LIKE,
    PRETRAINED,
    RANDOM,
    REAL,
    TRANSFORMS,
    Job,
    plan_jobs,
    training_images,
)
from mdaug.measures import auxiliary, classifier, image_set, worth
from mdaug.measures.auxiliary import Auxiliary
from shards import output_folder, provenance
from shards.errors import UserError
from shards.options import PackConfig
from shards.output_folder import RUN_FILE
from shards.pack import run as pack
from shards.subset import take_per_class
from tests.toy import CLASSES, toy_image, toy_packed, toy_synthetic

SIZE = 32
UNIFORM_ARM = "auxiliary, uniform labels"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder, packed; its classes in the order of the toy set."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    for label, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            picture = toy_image(label, rng, SIZE)[:, :, 0]
            Image.fromarray(picture).save(folder / "images" / name / f"r{i // 2}_{i}.png")
    pack(PackConfig(folder / "images", folder / "packed", group_by=r"(r\d+)_", workers=1))
    return folder


@pytest.fixture
def config(images, tmp_path):
    synthetic = toy_synthetic(tmp_path / "synthetic", images / "packed", classes=classes_of(images))
    options = {"steps": 2, "batch_size": 8, "image_size": SIZE, "seeds": 2, "workers": 1, "part": "usefulness"}
    numbers = {"n_real_per_class": [2, "all"], "synthetic_per_real": [1]}
    return EvaluateConfig(images / "packed", synthetic, tmp_path / "evaluation", **numbers, **options)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A packed set of other classes."""
    folder, rng = tmp_path_factory.mktemp("others"), np.random.default_rng(5)
    for label, name in enumerate(("zig", "zag")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(toy_image(label, rng, SIZE)[:, :, 0]).save(folder / "images" / name / f"r{i}_{i}.png")
    pack(PackConfig(folder / "images", folder / "packed", workers=1))
    return folder / "packed"


def classes_of(images):
    return json.loads((images / "packed" / "classes.json").read_text())


def load(folder):
    return image_set.load(folder, image_size=SIZE, max_per_class=1000)


def of_other_classes(count=40, same=False, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, SIZE, SIZE, 1), dtype=np.uint8)
    return Auxiliary(pixels, np.arange(count) % 3, ["a", "b", "c"], same, "hash")


# Subsets.


def test_subsets_of_a_seed_are_nested_and_those_of_another_seed_differ():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    for seed in range(5):
        subsets = [set(take_per_class(labels, n, seed)) for n in (1, 2, 4, 7, 14, 1000)]
        assert all(few < more for few, more in pairwise(subsets))
    assert set(take_per_class(labels, 4, 0)) != set(take_per_class(labels, 4, 1))


def test_arms_of_a_seed_are_paired_and_those_of_n_lie_in_those_of_2n(images, config):
    train, fake = load(images / "packed" / "train"), load(config.synthetic_dir)
    plan = plan_jobs([2, 4, "all"], [1], 2, train, fake, auxiliary=of_other_classes())
    used: dict[tuple, list[set[bytes]]] = {}
    for job in plan:
        real = training_images(job, train, fake)[0][0]
        used.setdefault((job.n_real, job.seed), []).append({image.tobytes() for image in real})
    assert all(same == first for first, *rest in used.values() for same in rest)
    for seed in range(2):
        assert used[2, seed][0] < used[4, seed][0] < used[8, seed][0] < used["all", seed][0]
    assert used[2, 0][0] != used[2, 1][0]


def test_the_free_baseline_is_trained_at_twice_each_number_where_there_are_so_many(images, config):
    train, fake = load(images / "packed" / "train"), load(config.synthetic_dir)
    most = max(train.counts())
    for asked, curve in (
        ([2], [2, 4]),
        ([2, 3], [2, 3, 4, 6]),
        ([most // 2 + 1], [most // 2 + 1]),
        ([most // 2], [most // 2, "all" if most % 2 == 0 else most - 1]),
        (["all"], ["all"]),
    ):
        plan = plan_jobs(asked, [1], 1, train, fake)
        assert [job.n_real for job in plan if job.arm == TRANSFORMS] == curve
        assert {job.n_real for job in plan if job.arm not in (TRANSFORMS, "synthetic")} == set(asked)
        assert len({job.name for job in plan}) == len(plan)


def test_a_packed_subset_holds_the_images_that_an_arm_of_its_number_and_seed_sees(images, tmp_path):
    whole = load(images / "packed" / "train")
    for number, subset in ((3, 0), (3, 2), (5, 2)):
        folder = tmp_path / f"{number}-{subset}"
        chosen = {"train_per_class": number, "subset": subset}
        pack(PackConfig(images / "images", folder, group_by=r"(r\d+)_", workers=1, **chosen))
        expected = whole.subset(take_per_class(whole.labels, number, subset))
        few = load(folder / "train")
        assert np.array_equal(few.images, expected.images)
        assert np.array_equal(few.labels, expected.labels)
        assert np.array_equal(load(folder / "val").images, load(images / "packed" / "val").images)
        report = json.loads((folder / "report.json").read_text())
        assert report["found"] == report["packed"] + len(report["rejected"])
    with pytest.raises(ValueError, match="subset=1 needs train_per_class"):
        PackConfig(images / "images", folder, subset=1)


# Images of other classes, and their control.


def test_arms_are_there_where_their_inputs_are(images, config):
    train, fake = load(images / "packed" / "train"), load(config.synthetic_dir)

    def arms(**inputs):
        return {job.arm for job in plan_jobs([2], [1], 1, train, fake, **inputs)}

    plain = arms()
    assert not plain & {LIKE, *AUXILIARY}
    assert arms(auxiliary=of_other_classes()) - plain == set(AUXILIARY) - {"auxiliary, own labels"}
    assert arms(auxiliary=of_other_classes(same=True)) - plain == {"auxiliary, own labels", PRETRAINED, RANDOM}
    assert arms(like={(2, 0): fake}) - plain == {LIKE}
    assert arms(like={(2, 1): fake, (5, 0): fake}) == plain


def test_random_labels_know_nothing_of_what_an_image_shows():
    """They are the same whatever images and labels are given, and about equally often each target class."""
    one, other = of_other_classes(600, seed=0), of_other_classes(600, seed=1)
    (first, outputs), (second, _) = (
        auxiliary.source(each.pixels, labels, "random", 4, 0.25, seed=3)
        for each, labels in ((one, one.labels), (other, np.zeros(600, np.int64)))
    )
    assert outputs == 4
    assert np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.labels, auxiliary.source(one.pixels, one.labels, "random", 4, 0.25, 4)[0].labels)
    table = np.zeros((3, 4))
    np.add.at(table, (one.labels, first.labels), 1)
    assert (abs(table / 200 - 0.25) < 0.1).all()  # of each auxiliary class a quarter each


def test_uniform_labels_prefer_no_class_and_further_classes_are_never_predicted(images, config):
    given = of_other_classes()
    uniform, outputs = auxiliary.source(given.pixels, given.labels, "uniform", 4, 0.25)
    assert (outputs, uniform.labels.shape) == (4, (40, 4))
    assert (uniform.labels == 0.25).all()
    further, outputs = auxiliary.source(given.pixels, given.labels, "classes", 4, 0.25)
    assert (outputs, set(further.labels)) == (7, {4, 5, 6})
    train, fake = load(images / "packed" / "train"), load(config.synthetic_dir)
    # Held-out images that look like the auxiliary ones.
    looks = replace(fake, images=np.resize(given.pixels, fake.images.shape))
    settings = {"steps": 30, "batch_size": 16, "learning_rate": 3e-3, "network": "small"}
    for arm in set(AUXILIARY) - {"auxiliary, own labels"}:
        result = usefulness.run_job(Job(arm, 2, 0, 0), train, looks, fake, auxiliary=given, **settings)
        assert set(result["predictions"]) <= {0, 1, 2, 3}
        assert (result["real"], result["further"], result["ratio"]) == (8, 40, 0)


def test_auxiliary_images_are_arms_of_their_own_and_the_report_has_them(config, others):
    metrics = evaluate(replace(config, aux_dir=others, policy="richer"))
    figures = metrics["usefulness"]
    arms = {(arm["arm"], arm["n_real"]): arm for arm in figures["arms"]}
    used = [arm for arm in AUXILIARY if arm != "auxiliary, own labels"]
    assert {(arm, n) for arm in used for n in (2, "all")} <= arms.keys()
    assert {arms[arm, 2]["further"] for arm in used} == {20}
    pairs = {(item["arm"], item["baseline"]) for item in figures["comparisons"]}
    assert {(arm, baseline) for arm in used for baseline in (REAL, TRANSFORMS, RANDOM) if arm != baseline} <= pairs
    assert metrics["data"]["auxiliary"] == {"zag": 10, "zig": 10}
    assert metrics["data"]["policy"] == replace(RICHER, copies=COPIES).to_json()
    text = (config.output_dir / page.REPORT).read_text(encoding="utf-8")
    assert "averaged over 8 transformed copies" in text
    assert "Auxiliary images (uniform labels), on top of transforms," in " ".join(metrics["verdict"]["sentences"])
    assert set(used) <= set(plots.accuracy(metrics).series)
    assert len(plots.COLOURS) >= len(plots.CURVES)
    # What decides the result belongs to the identity of the folder.
    for other in ({"aux_dir": None}, {"policy": "today"}, {"share": 0.5}):
        with pytest.raises(UserError, match="another run of mdaug evaluate"):
            evaluate(replace(config, **{"aux_dir": others, "policy": "richer"} | other))


def test_images_with_the_labels_of_the_target_are_used_with_these(config, others, images, tmp_path):
    """Two of the target classes, of other persons: their own labels, and the control."""
    folder, rng = tmp_path / "same", np.random.default_rng(8)
    for name in classes_of(images)[:2]:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            picture = toy_image(CLASSES.index(name), rng, SIZE)[:, :, 0]
            Image.fromarray(picture).save(folder / "images" / name / f"p{i}_{i}.png")
    pack(PackConfig(folder / "images", folder / "packed", workers=1))
    metrics = evaluate(replace(config, aux_dir=folder / "packed", same_names="same"))
    assert list(metrics["data"]["auxiliary"].values()) == [6, 6, 0, 0]
    assert {arm["arm"] for arm in metrics["usefulness"]["arms"]} & set(AUXILIARY) == {
        "auxiliary, own labels", PRETRAINED, RANDOM
    }  # fmt: skip


def test_a_folder_of_a_version_without_these_settings_is_refused(config):
    evaluate(config)
    run = json.loads((config.output_dir / RUN_FILE).read_text())
    del run["identity"]["share"], run["identity"]["same_names"]
    (config.output_dir / RUN_FILE).write_text(json.dumps(run))
    with pytest.raises(UserError, match="another run of mdaug evaluate"):
        evaluate(config)


def test_auxiliary_images_that_train_or_judge_are_refused(config, images):
    with pytest.raises(UserError, match=r"\d+ of \d+ images of aux_dir .* are training and held-out images"):
        evaluate(replace(config, aux_dir=images / "packed", same_names="other"))
    output_folder.disown_all()  # as the command does at its end: what was refused has claimed nothing
    other = toy_packed(config.output_dir.parent / "names", size=SIZE, train=8, val=8)
    with pytest.raises(UserError, match="say --same_names same"):
        evaluate(replace(config, aux_dir=other))


# The free baseline.


def test_the_policy_is_named_or_that_of_a_recipe(tmp_path):
    assert policy_of("today") == TODAY
    assert policy_of("richer").copies == COPIES
    chosen = Policy(shift=0.25, circular=False, copies=3)
    (tmp_path / "recipe.json").write_text(json.dumps({"policy": chosen.to_json()}))
    assert policy_of(str(tmp_path / "recipe.json")) == chosen
    (tmp_path / "other.json").write_text(json.dumps({"policy": {"shear": 1}}))
    for wrong in ("poorer", str(tmp_path / "other.json"), str(tmp_path)):
        with pytest.raises(UserError, match=r"neither today nor richer nor the recipe\.json"):
            policy_of(wrong)


def test_predictions_are_averaged_in_the_arms_with_transforms_alone(images, config, monkeypatch):
    train, fake = load(images / "packed" / "train"), load(config.synthetic_dir)
    asked, predict = [], classifier.predict
    monkeypatch.setattr(
        classifier, "predict", lambda model, shown, policy=None, **more: (
            asked.append((len(shown), policy)), predict(model, shown, policy, **more)
        )[1],
    )  # fmt: skip
    settings = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "network": "small", "policy": policy_of("richer")}
    for arm, expected in ((REAL, None), (TRANSFORMS, policy_of("richer")), (BOTH, None)):
        asked.clear()
        usefulness.run_job(Job(arm, 2, int(arm == BOTH), 0), train, fake, fake, **settings)
        assert asked[0] == (len(fake), expected)
        assert asked[1][1] is None  # its own training images


# Worth in real images.


def test_worth_rises_with_accuracy_and_lies_within_its_interval():
    rng = np.random.default_rng(0)
    for _ in range(100):
        numbers = np.cumsum(rng.integers(1, 10, 5))
        curve = list(zip(numbers.tolist(), np.cumsum(rng.random(5) / 5 - 0.02).tolist(), strict=True))
        values = np.linspace(curve[0][1] - 0.1, curve[-1][1] + 0.2, 30)
        found = [worth.worth(value, curve) for value in values]
        if found[0]["flat"]:
            assert all(each["number"] is None for each in found)
            continue
        sizes = [each["number"] for each in found]
        assert all(first <= second for first, second in pairwise(sizes))
        assert (found[0]["beyond"], found[-1]["beyond"]) == ("less", "more")
        whole = worth.with_interval(curve[2][1], (0.02, -0.05, 0.1), curve)
        assert whole["low"]["number"] <= whole["number"] <= whole["high"]["number"]


def test_worth_beyond_the_curve_is_said_once():
    curve = [(4, 0.5), (8, 0.75)]
    assert worth.described(worth.with_interval(0.5, (-0.2, -0.3, -0.1), curve)) == "less than 4"
    assert worth.described(worth.with_interval(0.5, (-0.2, -0.3, 0.125), curve)) == "less than 4 (less than 4 to 6)"


def test_an_arm_that_equals_the_baseline_at_2n_is_worth_2n_and_a_flat_curve_gives_points(images, config):
    """Made-up predictions: the free baseline is right as often as its number says, an arm at 4 as often as it at 8."""
    held_out = load(images / "packed" / "val")
    shares = {(TRANSFORMS, 4): 0.5, (TRANSFORMS, 8): 0.75, (TRANSFORMS, "all"): 1.0, (UNIFORM_ARM, 4): 0.75}

    def result(arm, n, share):
        right = np.arange(len(held_out)) // 4 % 4 < 4 * share
        predicted = np.where(right, held_out.labels, (held_out.labels + 1) % 4)
        count = 16 if n == "all" else n
        return {
            "arm": arm, "n_real": n, "ratio": 0, "network": "", "real": 4 * count, "further": 0, "wanted": 0,
            "real_per_class": [count] * 4, "learnt": 1.0, "predictions": predicted.tolist(),
        }  # fmt: skip

    def arms(shares):
        results = [{**result(arm, n, share), "seed": seed} for (arm, n), share in shares.items() for seed in range(3)]
        return {(arm["arm"], arm["n_real"]): arm for arm in comparisons.tables(results, held_out)["arms"]}

    labels = held_out.labels
    held_out = held_out.subset(np.concatenate([np.flatnonzero(labels == k)[:4] for k in range(4)]))
    held_out.labels = np.tile(np.arange(4), 4)
    table = arms(shares)
    assert table[UNIFORM_ARM, 4]["worth"]["number"] == pytest.approx(8)
    assert table[TRANSFORMS, 4]["worth"] is None
    flat = arms({key: 0.75 if key[0] == TRANSFORMS else 1.0 for key in shares})[UNIFORM_ARM, 4]["worth"]
    assert flat["flat"]
    assert worth.described(flat).startswith("flat curve, +25.0 points")


# Several kinds of classifier.


@pytest.mark.slow
def test_two_kinds_of_classifier_are_shown_and_the_verdict_goes_by_the_first(config, monkeypatch):
    one = evaluate(replace(config, output_dir=config.output_dir.with_name("one")))
    build = classifier.build
    monkeypatch.setattr(
        classifier,
        "build",
        lambda network, *shape: build("small", *shape),  # stands for a model of timm
    )
    two = evaluate(replace(config, classifier="small,other"))
    first, second = two["usefulness"], two["usefulness"]["further_classifiers"][0]
    for part in ("arms", "comparisons", "real_to_synthetic"):
        assert first[part] == one["usefulness"][part]
    assert second["classifier"] == "other"
    assert second["arms"] == first["arms"]  # the same network under another name
    assert two["verdict"]["outcome"] == one["verdict"]["outcome"]
    assert two["verdict"]["sentences"][:3] == one["verdict"]["sentences"]
    assert two["verdict"]["sentences"][-1].endswith("0 have another outcome with other.")
    text = (config.output_dir / page.REPORT).read_text(encoding="utf-8")
    assert all(f"{REAL} [{name}]" in text for name in ("small", "other"))


def test_a_disagreement_of_classifiers_is_named(config):
    metrics = evaluate(replace(config, classifier="small"))
    figures = metrics["usefulness"]
    gain = {"difference": 0.2, "low": 0.1, "high": 0.3}
    figures["comparisons"] = [{**item, "difference": 0.0, "low": -0.1, "high": 0.1} for item in figures["comparisons"]]
    other = [figures["comparisons"][0] | gain, *figures["comparisons"][1:]]
    figures["further_classifiers"] = [{"classifier": "resnet18", "arms": figures["arms"], "comparisons": other}]
    said = verdict(metrics)["sentences"][-1]
    assert f"Of {len(other)} differences 1 have another outcome with resnet18, such as" in said
    assert "+20.0 points" in said


def test_classifiers_are_named_once_each():
    for wrong in ("small,small", "small,", ""):
        with pytest.raises(ValueError, match="must name each kind once"):
            EvaluateConfig("a", "b", "c", classifier=wrong)


# Like with like.


@pytest.fixture
def few(images, tmp_path):
    """Generators that saw 2 images per class of two subsets."""
    for subset in (0, 1):
        chain = tmp_path / "few" / f"n2-s{subset}"
        chosen = {"train_per_class": 2, "subset": subset}
        pack(PackConfig(images / "images", chain / "packed", group_by=r"(r\d+)_", workers=1, **chosen))
        toy_synthetic(chain / "synthetic", chain / "packed", classes=classes_of(images), per_class=6 + subset)
    return tmp_path / "few"


def test_like_with_like_each_set_is_used_where_its_generator_saw_the_same_images(config, few):
    metrics = evaluate(replace(config, like_with_like=few))
    arms = {(arm["arm"], arm["n_real"]): arm for arm in metrics["usefulness"]["arms"]}
    assert {n for arm, n in arms if arm == LIKE} == {2}
    saw = {key: arm["generator"] for key, arm in arms.items()}
    assert (saw[LIKE, 2], saw[BOTH, 2], saw[BOTH, "all"], saw[REAL, 2]) == ("same", "more", "same", "")
    assert metrics["data"]["like_with_like"] == [[2, 0, 24], [2, 1, 28]]
    assert "generators that saw the same real images" in " ".join(metrics["verdict"]["sentences"])
    like = load_like(replace(config, like_with_like=few), load(config.data_dir / "train"))
    assert [len(like[2, seed]) for seed in (0, 1)] == [24, 28]


def test_a_generator_of_other_images_is_not_like_with_like(config, few, images, tmp_path):
    train = load(config.data_dir / "train")
    with pytest.raises(UserError, match="which no arm uses"):
        load_like(replace(config, like_with_like=few, seeds=1), train)
    with pytest.raises(UserError, match="which no arm uses"):
        load_like(replace(config, like_with_like=few, n_real_per_class=[4]), train)
    record = provenance.load(few / "n2-s0" / "packed")
    record["config"]["subset"] = 1
    (few / "n2-s0" / "packed" / provenance.FILE_NAME).write_text(json.dumps(record))
    with pytest.raises(UserError, match="other training images than subset 1 of 2 per class"):
        load_like(replace(config, like_with_like=few), train)
    with pytest.raises(UserError, match="no folder with packed and synthetic in it"):
        evaluate(replace(config, like_with_like=images))
