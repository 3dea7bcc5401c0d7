"""Classes weigh the same in every figure, and what is printed is what was used."""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mdaug.artifacts import GEOMETRY_FILE
from mdaug.evaluation import comparisons, measure
from mdaug.evaluation.evaluate import check
from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig, ReconstructConfig
from mdaug.evaluation.reconstruct import format_goals
from mdaug.evaluation.reconstruct import run as reconstruct
from mdaug.evaluation.report import markup, page, plots
from mdaug.evaluation.report.verdict import held_out_notes, verdict
from mdaug.images import drawable, grid
from mdaug.measures import classifier, fidelity, image_quality, levels, memorization
from mdaug.measures.image_set import class_weights, weighted_quantile
from mdaug.models.vqvae import build_vqvae
from mdaug.radar.options import SimulateConfig
from mdaug.radar.simulate import run as simulate
from shards import provenance
from shards.errors import UserError
from shards.options import PackConfig
from shards.pack import run as pack
from shards.validation import Preflight
from tests.toy import unequal_packed, unequal_synthetic

SIZE = 32


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def settings(folder, packed, synthetic, **options) -> EvaluateConfig:
    chosen = {"n_real_per_class": ["all"], "synthetic_per_real": [1], "seeds": 2, "steps": 3, "batch_size": 8}
    return EvaluateConfig(packed, synthetic, folder / "out", image_size=SIZE, workers=1, **(chosen | options))


# Classes that weigh the same.


@pytest.mark.parametrize("counts", [(300, 3), (1, 50, 7), (10, 10, 10, 10)], ids=str)
def test_naming_the_largest_class_always_is_guessing(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    table = comparisons.judge([np.full(len(labels), np.argmax(counts)).tolist()] * 2, labels, len(counts))
    assert table["accuracy"] == pytest.approx(1 / len(counts))
    assert table["plain_accuracy"] == pytest.approx(max(counts) / sum(counts))
    hits = np.array([labels == np.argmax(counts)] * 2)
    difference, *_ = comparisons.paired_interval(
        hits, np.zeros_like(hits), labels, [str(i) for i in range(len(labels))]
    )
    assert difference == pytest.approx(1 / len(counts))


def test_where_classes_are_balanced_figures_are_those_of_all_images(rng):
    labels, predicted = np.arange(120) % 3, rng.integers(0, 3, 120)
    table = comparisons.judge([predicted.tolist()], labels, 3)
    assert table["accuracy"] == pytest.approx(table["plain_accuracy"])
    hits = rng.random((2, 3, 120)) < 0.5
    groups = [str(i // 6) for i in range(120)]
    assert comparisons.paired_interval(*hits, labels, groups)[0] == pytest.approx(hits[0].mean() - hits[1].mean())
    values = rng.random(120)
    for q in (0.01, 0.5, 0.9):
        assert weighted_quantile(values, class_weights(labels), q) == pytest.approx(np.quantile(values, q))
    train, other = rng.standard_normal((120, 6)), rng.standard_normal((60, 6)) + 0.5
    figures = fidelity.with_floor(train, labels, other, labels[:60], other, labels[:60])["synthetic"]
    plain = {
        "frechet": fidelity.frechet_distance(train, other),
        "kid": fidelity.kernel_distance(train, other),
        **fidelity.manifold_shares(train, other),
    }
    assert figures == pytest.approx(plain)
    pictures = rng.integers(0, 256, (120, 32, 32), dtype=np.uint8)
    figures = levels.summarize(pictures, labels)
    assert figures["floor_share"] == pytest.approx((pictures <= levels.FLOOR).mean())
    assert np.array(figures["histogram"]) * pictures.size == pytest.approx(
        np.histogram(pictures, levels.BINS, (0, 256))[0]
    )
    assert figures["doppler"] == pytest.approx((pictures.mean(axis=(0, 2)) / 255).tolist())


def test_more_images_of_one_class_change_no_figure(rng):
    labels, more = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2] + [3, 4] * 9 + [5])
    predicted = np.array([0, 1, 0, 1, 2, 2])
    tables = [comparisons.judge([predicted[i].tolist()], labels[i], 3) for i in (np.arange(6), more)]
    assert tables[0]["accuracy"] == pytest.approx(tables[1]["accuracy"])
    assert tables[0]["plain_accuracy"] != pytest.approx(tables[1]["plain_accuracy"])
    pictures = rng.integers(0, 256, (6, 32, 32), dtype=np.uint8)
    first, second = (levels.summarize(pictures[i], labels[i]) for i in (np.arange(6), more))
    assert all(first[name] == pytest.approx(second[name]) for name in first)
    near, far = rng.standard_normal((40, 4)), rng.standard_normal((40, 4)) + 3
    points, of = np.concatenate([near, far]), np.repeat([0, 1], 40)
    shares = fidelity.manifold_shares(points, np.concatenate([near[:6], far[:6]]) + 9 * np.repeat([0, 1], 6)[:, None])
    weighted = fidelity.manifold_shares(
        points,
        np.concatenate([near, far[:6]]) + 9 * np.repeat([0, 1], [40, 6])[:, None],
        fidelity.NEIGHBOURS,
        class_weights(of),
        class_weights(np.repeat([0, 1], [40, 6])),
    )
    assert [shares["precision"], weighted["precision"]] == pytest.approx([0.5, 0.5])


def test_copies_of_one_class_count_as_one_class_of_many(rng):
    """Synthetic images of the large class are copies, of the small one new: half repeats, whatever the numbers are."""
    train = rng.integers(0, 256, (40, 32, 32), dtype=np.uint8)
    new = rng.integers(0, 256, (44, 32, 32), dtype=np.uint8)
    for copies in (4, 30):
        synthetic, labels = np.concatenate([train[:copies], new[:4]]), np.repeat([0, 1], [copies, 4])
        table = memorization.compare(train, new[4:], np.repeat([0, 1], 20), synthetic, labels)
        assert table["copies_share"] == pytest.approx(0.5)
        assert table["share_closer"] >= 0.5


def test_reconstructions_are_averaged_over_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    packed = unequal_packed(tmp_path / "packed", {"flat": (8, 20), "wavy": (8, 2)})
    vqvae = tmp_path / "vqvae" / "best"
    build_vqvae(image_channels=1, latent_channels=4, num_codes=8, n_layers=2, max_channels=32).save_pretrained(vqvae)
    (vqvae / GEOMETRY_FILE).write_text(json.dumps({"image_shape": [SIZE, SIZE, 1], "latent_shape": [4, 8, 8]}))
    made_from = {"images": provenance.read(packed, "images")["hash"]}
    provenance.write(vqvae, kind="vqvae", content_hash="v", made_from=made_from, config={})
    reconstruct(ReconstructConfig(vqvae.parent, packed, tmp_path / "figures"))
    figures = json.loads((tmp_path / "figures" / "reconstruction.json").read_text())
    for name in ("psnr", "ssim", "sharpness"):
        of_class = [row[name]["mean"] for row in figures["classes"].values()]
        assert figures["rows"]["VQ-VAE"][name]["mean"] == pytest.approx(np.mean(of_class))


@pytest.mark.slow
def test_three_hundred_images_against_three_do_not_read_as_success(tmp_path, capsys, monkeypatch):
    packed = unequal_packed(tmp_path / "packed", {"walk": (300, 60), "fall": (3, 1)})
    walk, outputs = json.loads((packed / "classes.json").read_text()).index("walk"), classifier.outputs
    monkeypatch.setattr(  # a classifier that has learnt to say walk
        classifier, "outputs", lambda model, images: (np.full(len(images), walk), outputs(model, images)[1])
    )
    monkeypatch.setattr(classifier, "predict", lambda model, images, *_, **__: np.eye(2)[np.full(len(images), walk)])
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, {"walk": 60, "fall": 60})
    metrics = evaluate(settings(tmp_path, packed, synthetic))
    figures = metrics["usefulness"]
    real = figures["arms"][0]
    assert (real["arm"], real["plain_accuracy"]) == ("real", pytest.approx(60 / 61))
    assert [real["accuracy"], figures["chance"]] == pytest.approx([1 / 2, 1 / 2])
    assert not metrics["targets"][0]["reached"]  # as often the intended class as on real images, but by guessing
    assert real["learnt"] == pytest.approx(1 / 2)  # nor has it learnt its images
    assert figures["majority"] == {"class": "walk", "share": pytest.approx(60 / 61)}
    first = metrics["verdict"]["sentences"][0]
    assert first.startswith("Worthless, since there are fewer than 10 held-out images of fall (1), and chance in them")
    assert metrics["verdict"]["outcome"] != "gain"
    assert "hold out at least 10 images of each class" in metrics["verdict"]["sentences"][2]
    for text in (capsys.readouterr().out, (tmp_path / "out" / page.REPORT).read_text(encoding="utf-8")):
        assert "fall (1)" in text
        assert "98.4 %" in text  # what always saying walk has, called so


@pytest.mark.slow
def test_a_class_without_held_out_images_is_named_and_not_counted_in_chance(tmp_path):
    packed = unequal_packed(tmp_path / "packed", {"walk": (12, 12), "fall": (12, 0), "sit": (12, 12)})
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, dict.fromkeys(("walk", "fall", "sit"), 12))
    metrics = evaluate(settings(tmp_path, packed, synthetic))
    assert metrics["usefulness"]["chance"] == pytest.approx(1 / 2)
    assert metrics["usefulness"]["arms"][0]["recall"][1] is None
    judged = metrics["usefulness"]["real_to_synthetic"]
    assert judged["accuracy"] == pytest.approx((judged["recall"][0] + judged["recall"][2]) / 2)
    note = "No held-out image shows fall: not judged, and not counted in mean recall and chance."
    assert note in (tmp_path / "out" / page.REPORT).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("counts", "worthless"),
    [([10] * 4, False), ([200, 9], True), ([9] * 4, True), ([50] * 9 + [9], False), ([8] * 150, False)],
    ids=str,
)
def test_few_images_are_named_and_make_a_verdict_worthless_where_chance_in_them_moves_it(counts, worthless):
    names = [f"c{i}" for i in range(len(counts))]
    used = {"n_real": "all", "n_used": "9", "ratio": 1, "name": "a", "accuracy": 0.9, "learnt": 1.0}
    arms = [{"arm": arm, **used} for arm in ("real", "real + transforms", "real + synthetic", "synthetic")]
    arms += [{"arm": "real + synthetic + transforms", **used}]
    gain = {**used, "difference": 0.1, "low": 0.05, "high": 0.15}
    pairs = [("real + synthetic", "real"), ("real + synthetic", "real + transforms")]
    pairs += [("real + synthetic + transforms", "real + transforms")]
    table = {
        "arms": arms,
        "comparisons": [{**gain, "arm": arm, "baseline": baseline} for arm, baseline in pairs],
        "chance": 0.25,
        "real_to_synthetic": {"accuracy": 0.9},
    }
    data = {"classes": names, "held_out": counts, "train": [50] * len(counts)}
    result = verdict({"usefulness": table, "memorization": None, "data": data})
    assert result["sentences"][0].startswith("Worthless") == worthless
    assert result["outcome"] == ("none" if worthless else "gain")
    assert bool(held_out_notes(data)) == (min(counts) < 10)


# What was used.


def test_numbers_that_are_not_there_are_not_printed(tmp_path, capsys):
    packed = unequal_packed(tmp_path / "packed", {"walk": (15, 12), "fall": (15, 12)})
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, {"walk": 6, "fall": 6})
    options = {"n_real_per_class": [1000], "synthetic_per_real": [100]}
    metrics = evaluate(settings(tmp_path, packed, synthetic, **options))
    arms = {arm["arm"]: arm for arm in metrics["usefulness"]["arms"]}
    assert arms["real"]["n_used"] == "15 (all there are)"
    assert arms["real + synthetic"]["name"] == "real + synthetic ×0.4 (only 12 of 3000 there)"
    assert arms["real, duplicated"]["name"] == "real, duplicated ×1"
    sentences = " ".join(metrics["verdict"]["sentences"])
    assert "with 15 (all there are) real images per class" in sentences
    assert "real + synthetic ×0.4 (only 12 of 3000 there)" in sentences
    report = (tmp_path / "out" / page.REPORT).read_text(encoding="utf-8").partition("What was measured on what")[0]
    for text in (capsys.readouterr().out.partition("classifier trained on")[2], report, sentences):
        assert "1000" not in text
        assert "×100" not in text


def test_a_number_that_one_class_does_not_reach_says_so():
    result = {"arm": "real", "n_real": 50, "ratio": 0, "real": 53, "further": 0, "wanted": 0, "real_per_class": [50, 3]}
    assert comparisons.as_used(result, ["walk", "fall"])["n_used"] == "50 (only 3 of fall)"
    others = {"n_real": "all", "real_per_class": [300, 3]}
    assert comparisons.as_used(result | others, ["walk", "fall"])["n_used"] == "3 to 300 (all there are)"


def test_figures_have_digits_that_can_be_read():
    flat, noise = np.full((1, 16, 16, 1), 7, np.uint8), np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert image_quality.sharpness(flat, noise)[0] < 10_000
    row = {"figure": "sharpness", "measured": 3977357000000001.0, "goal": "0.9 to 1.1", "reached": False}
    assert "3.98e+15" in format_goals([row], "demo")


# Metadata of the user and of the simulator.


def test_a_column_named_like_one_of_the_simulator_is_not_its_truth(tmp_path):
    columns = {"rotation_hz": 3, "flap_hz": 2.0, "cycle_scale": "long"}
    packed = unequal_packed(tmp_path / "packed", {"walk": (12, 12), "fall": (12, 12)}, meta=columns)
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, {"walk": 12, "fall": 12})
    metrics = evaluate(settings(tmp_path, packed, synthetic, part="kinematics"))
    assert metrics["kinematics"]["error"] == []


def test_truth_is_known_of_what_simulate_made(tmp_path):
    options = {"classes": ["drone", "bird"], "images_per_class": 20, "images_per_group": 2, "image_mode": "gray"}
    simulate(SimulateConfig(tmp_path / "images", image_size=SIZE, workers=1, **options))
    pack(PackConfig(tmp_path / "images", tmp_path / "packed", val_fraction=0.4, workers=1))
    with open(tmp_path / "images" / "metadata.csv", encoding="utf-8") as file:
        classes = Counter(row["class"] for row in csv.DictReader(file))
    synthetic = unequal_synthetic(tmp_path / "synthetic", tmp_path / "packed", dict(sorted(classes.items())))
    metrics = evaluate(settings(tmp_path, tmp_path / "packed", synthetic, part="kinematics"))
    assert {(row["class"], row["measure"]) for row in metrics["kinematics"]["error"]} == {(0, "cadence"), (1, "torso")}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["fidelity", "kinematics", "memorization"])
def test_a_side_measure_that_fails_costs_one_line_and_is_tried_again(tmp_path, monkeypatch, capsys, part):
    packed = unequal_packed(tmp_path / "packed", {"walk": (12, 12), "fall": (12, 12)})
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, {"walk": 12, "fall": 12})
    config = settings(tmp_path, packed, synthetic)

    def fails(inputs):
        raise ValueError("could not convert string to float: '2 s'")

    with monkeypatch.context() as patch:
        patch.setitem(measure.MEASURE, part, fails)
        metrics = evaluate(config)
        line = f"{part} could not be measured (ValueError: could not convert string to float: '2 s')"
        assert line in capsys.readouterr().out.splitlines()
        assert page.escape(line) in (tmp_path / "out" / page.REPORT).read_text(encoding="utf-8")
        assert metrics["usefulness"]
        assert metrics[part] is None
        with pytest.raises(ValueError, match="could not convert"):  # where nothing else was asked for
            evaluate(replace(config, output_dir=tmp_path / "alone", part=part))
    again = evaluate(config)
    assert again[part]
    assert again["failed"] == {}


def test_without_val_images_it_says_what_to_do(tmp_path):
    packed = unequal_packed(tmp_path / "packed", {"walk": (12, 0), "fall": (12, 0)})
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, {"walk": 12, "fall": 12})
    for refusing in (evaluate, lambda config: check(config, Preflight())):
        with pytest.raises(UserError, match=r"val is empty, nothing can judge: pack more images, or .* --val_fraction"):
            refusing(settings(tmp_path, packed, synthetic))


# Many classes, and names in any script.


@pytest.mark.slow
def test_the_report_of_150_classes_is_small(tmp_path, monkeypatch):
    """Pictures, boxes and confusions are those of a few classes; what is left grows by the class."""
    monkeypatch.setattr(image_quality, "within_class", partial(image_quality.within_class, pairs=2))
    names = [f"class_{i:03d}" for i in range(150)]
    packed = unequal_packed(tmp_path / "packed", dict.fromkeys(names, (5, 5)))
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, dict.fromkeys(names, 5))
    vqvae = tmp_path / "vqvae" / "best"
    model = build_vqvae(image_channels=1, latent_channels=4, num_codes=8, n_layers=2, max_channels=32)
    model.save_pretrained(vqvae)
    (vqvae / GEOMETRY_FILE).write_text(json.dumps({"image_shape": [SIZE, SIZE, 1], "latent_shape": [4, 8, 8]}))
    made_from = {"images": provenance.read(packed, "images")["hash"]}
    provenance.write(vqvae, kind="vqvae", content_hash="v", made_from=made_from, config={})
    evaluate(settings(tmp_path, packed, synthetic, vqvae_path=vqvae.parent, seeds=1))
    text = (tmp_path / "out" / page.REPORT).read_text(encoding="utf-8")
    assert len(text.encode()) < 3e6
    assert text.count(f"Of 150 classes {plots.MOST_CLASSES} are shown") == 3  # side by side, motion, reconstructions
    assert text.count("<img") == 2 * plots.MOST_CLASSES + 2
    assert text.count("<td") < 100 * len(names)
    assert "taken for" in text


def test_confusions_of_many_classes_are_the_worst_pairs():
    names = [f"c{i}" for i in range(20)]
    matrix = (10 * np.eye(20, dtype=int)).tolist()
    matrix[3][7] = 5
    text = markup.confusion("real", names, matrix)
    assert "<td>c3</td><td>c7</td><td>33</td><td>5</td>" in text
    assert text.count("<td>c") == 2
    assert markup.confusion("real", names[:4], [row[:4] for row in matrix[:4]]).count("<td") == 16


NAMES = ["gehen_rückwärts", "走路", "идти", "βάδισμα", "مشي", "chůze"]


def test_names_that_the_font_does_not_show_are_numbers_with_a_legend():
    assert drawable(NAMES) == ["gehen_rückwärts", "2", "идти", "βάδισμα", "5", "chůze"]
    assert markup.legend(NAMES) == "<p class=note>Numbers stand for classes: 2: 走路, 5: مشي</p>"
    assert markup.legend(["walk"]) == ""
    rows = [[np.zeros((64, 64, 1), np.uint8)]] * len(NAMES)
    assert np.array_equal(grid(rows, NAMES), grid(rows, drawable(NAMES)))
    blank = grid(rows, [" " * 40] * 6)
    written = grid([rows[0]], ["ü"]), grid([rows[0]], ["u"])
    assert (blank[:, :50] == 255).all()
    assert not np.array_equal(*(np.pad(sheet, ((0, 0), (0, 99), (0, 0)))[:, :80] for sheet in written))


def test_figures_and_report_show_names_in_any_script(tmp_path):
    packed = unequal_packed(tmp_path / "packed", dict.fromkeys(NAMES, (8, 8)))
    synthetic = unequal_synthetic(tmp_path / "synthetic", packed, dict.fromkeys(NAMES, 8))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # a box in place of a letter
        evaluate(settings(tmp_path, packed, synthetic, part="kinematics"))
    text = (tmp_path / "out" / page.REPORT).read_text(encoding="utf-8")
    assert "Numbers stand for classes: 2: 走路, 5: مشي" in text
    assert "gehen_rückwärts" in text.partition("<svg")[2]
