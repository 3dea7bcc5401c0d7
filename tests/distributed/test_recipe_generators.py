"""Generators of the recipe: none has seen the images that it is judged on, and workers that share them change nothing.

Each run is in a process of its own, as a command is: a training joins a process group.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdaug.recipe import comparison
from mdaug.recipe import recipe as recipes
from mdaug.recipe.generators import (
    CALL_SECONDS,
    LABELS_SEEN,
    PER_CLASS,
    REDRAWN,
    TRAINING_MINUTES,
    VARIED,
    Generators,
    Kind,
)
from mdaug.recipe.inputs import load
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.trials import make_folds
from shards import provenance
from shards.dataset import ShardDataset
from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_packed, unequal_packed

PRESET = """
common: {image_size: 16, lr: 2.0e-3, early_stop_patience: 0}
train-vqvae: {n_layers: 1, base_channels: 8, vq_num_embed: 16, batch_size: 8, train_samples: 16, num_workers: 0}
train-ldm: {block_out_channels: [16, 32], layers_per_block: 1, num_heads: 2, norm_num_groups: 8, window_size: 4,
            batch_size: 8, train_samples: 24, ema_profiles: [], num_workers: 0}
generate: {num_inference_steps: 5, batch_size: 50, scheduler_type: ddim}
"""
SMALL = {
    "image_size": 16, "steps": 2, "seeds": 1, "folds": 2, "n_per_class": [2], "batch_size": 8, "workers": 1,
    "generate": True,
}  # fmt: skip


def augment(options: AugmentConfig, keep_last: bool = False) -> dict | None:
    from mdaug.augment import RICHER, TODAY
    from mdaug.recipe import generators, policy_search

    policy_search.search.__defaults__ = ({"only": TODAY, "richer": RICHER}, *policy_search.search.__defaults__[1:])
    generators.PER_CLASS = 3
    if keep_last:  # whatever the interval

        def last(rows: list[dict], best: str) -> str:
            for row in [row for row in rows if not row["arm"].endswith(comparison.TWICE)][-1:]:
                row["kept"], best = True, row["arm"]
            return best

        comparison.Comparison._keep = staticmethod(last)
    return recipes.run(options)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    (root / "tiny.yaml").write_text(PRESET)
    return {
        "data_dir": toy_packed(root / "packed", size=16, train=32, val=8),
        "aux_dir": unequal_packed(root / "others", {"zig": (6, 2), "zag": (4, 2)}, size=16, seed=5),
        "unlabelled_dir": unequal_packed(root / "unlabelled", {"what": (8, 2)}, size=16, seed=9),
        "generator": str(root / "tiny.yaml"),
    }


@pytest.fixture(scope="module")
def done(sets, tmp_path_factory) -> tuple[AugmentConfig, dict]:
    options = AugmentConfig(output_dir=tmp_path_factory.mktemp("recipe") / "recipe", **sets, **SMALL)
    return options, run_ranks(1, augment, options)[0]


def keys(folder: Path) -> set[str]:
    dataset = ShardDataset(folder, fields=("meta",))
    return {dataset[i]["meta"]["key"] for i in range(len(dataset))}


def test_no_generator_has_seen_the_fold_that_it_is_judged_on(done):
    options, found = done
    train = load(options).train
    folds = make_folds(train.labels, train.groups, options.folds, CLASSES)
    stored = ShardDataset(options.data_dir / "train")
    order = load(options).stored["real"].indices
    for fold in (0, 1):
        place = options.output_dir / "generators" / f"fold-{fold}"
        seen = keys(place / "packed" / "train") | keys(place / "packed" / "val")
        judged = {stored.keys[order[i]] for i in np.flatnonzero(folds == fold)}
        assert seen == {stored.keys[order[i]] for i in np.flatnonzero(folds != fold)}
        assert judged
        assert not seen & judged
        assert not seen & set(ShardDataset(options.data_dir / "val").keys)
        # What is redrawn is of these, or auxiliary.
        made_from = provenance.read(place / "ldm" / "best", "pipeline")["made_from"]
        assert made_from["images"] == provenance.read(place / "packed", "images")["hash"]
        kinds = [("noise-guidance-3", None)]
        kinds += [(kind.folder, place / "packed") for kind in VARIED]
        kinds += [(kind.folder, place.parent / "auxiliary") for kind in REDRAWN]
        for folder, sources in kinds:
            record = provenance.read(place / folder, "synthetic")
            if sources:
                assert record["made_from"]["sources"] == provenance.read(sources, "images")["hash"]
            made = ShardDataset(place / folder)
            assert np.bincount(made.labels).tolist() == [3] * 4
    kept = found["generated_kind"] is not None  # two steps teach nothing, so that is chance
    assert (options.output_dir / "generators" / "all").exists() == kept


def test_direct_uses_and_generated_images_are_compared(done):
    options, found = done
    arms = [row["arm"] for row in found["cross_validation"]["arms"]]
    made = [arm for arm in arms if comparison.GENERATED in arm and not arm.endswith(comparison.TWICE)]
    uses = [comparison.PRETRAINED, comparison.UNIFORM, comparison.CLASSES]
    assert set(uses) <= set(arms)
    (unlabelled,) = (arm for arm in arms if arm.endswith(comparison.PSEUDO))
    assert sum("noise" in arm for arm in made) == sum("varied" in arm for arm in made) == 1
    assert sum("redrawn" in arm for arm in made) == 1
    assert len(made) == 3
    # Twice the share where the share itself loses nothing.
    shares = {row["arm"]: row["gain"][0] for row in found["cross_validation"]["arms"] if row["arm"] in made}
    assert sum(arm.endswith(comparison.TWICE) and comparison.GENERATED in arm for arm in arms) == sum(
        gain >= 0 for gain in shares.values()
    )
    # Against the best direct use of the same images, or what does without.
    rows = {row["arm"]: row for row in found["cross_validation"]["arms"]}
    direct = [rows[arm] for arm in (found["free_baseline"], *uses, unlabelled)]
    assert {rows[arm]["against"] for arm in made} == {max(direct, key=lambda row: row["recall"])["arm"]}
    text = (options.output_dir / "report.html").read_text(encoding="utf-8")
    assert "intended class" in text
    assert "upper bound" not in text


def test_it_resumes_and_workers_that_share_it_find_the_same(done, sets, tmp_path):
    options, found = done
    place = tmp_path / "copy"
    shutil.copytree(options.output_dir, place)
    resumed = AugmentConfig(output_dir=place, **sets, **SMALL)
    (place / provenance.FILE_NAME).unlink()
    seen = place / "generators" / "fold-1" / LABELS_SEEN
    seen.write_text(json.dumps({"real": 0.5, "noise": 0.5, "own-0.4": 0.5}))  # of the kinds of an earlier version
    shutil.rmtree(place / "generators" / "fold-1" / "noise-guidance-3")
    network = place / "generators" / "fold-0" / "ldm" / "best" / "unet" / "diffusion_pytorch_model.safetensors"
    before = network.stat().st_mtime_ns
    again = run_ranks(1, augment, resumed)[0]
    assert network.stat().st_mtime_ns == before
    same = ("cross_validation", "held_out", "label_kept", "enough")
    assert json.dumps([again[name] for name in same]) == json.dumps([found[name] for name in same])

    shared = {"output_dir": tmp_path / "shared", "num_workers": 2, **sets, **SMALL}
    assert run_ranks(1, augment, AugmentConfig(worker=1, **shared))[0] is None
    assert not (tmp_path / "shared" / "recipe.json").exists()
    last = run_ranks(1, augment, AugmentConfig(worker=0, **shared))[0]
    assert json.dumps([last[name] for name in same]) == json.dumps([found[name] for name in same])


def test_what_is_kept_is_delivered_from_a_generator_of_all_training_images(done, sets, tmp_path):
    options, _ = done
    place = tmp_path / "kept"
    shutil.copytree(options.output_dir / "generators", place / "generators")
    shutil.copytree(options.output_dir / "trials", place / "trials")
    shutil.copyfile(options.output_dir / "run.json", place / "run.json")
    found = run_ranks(1, augment, AugmentConfig(output_dir=place, **sets, **SMALL), True)[0]
    assert found["generated_share"] == 0.25
    assert "redrawn" in found["generated_kind"]
    assert found["unlabelled_share"] == 0.25
    packed = place / "generators" / "all" / "packed"
    assert keys(packed / "train") | keys(packed / "val") == set(ShardDataset(options.data_dir / "train").keys)
    delivered = ShardDataset(place / "training_set" / "generated", fields=("image", "meta"))
    assert np.bincount(delivered.labels).tolist() == [3] * 4
    assert delivered[0]["meta"]["from_set"] == provenance.read(place / "generators" / "auxiliary", "images")["hash"]
    assert sum(delivered[i]["meta"]["weight"] for i in range(len(delivered))) == pytest.approx(0.25)


def test_images_of_the_same_classes_are_redrawn_as_these_and_a_base_model_is_adapted(done, sets, tmp_path):
    """What is a class of the target and of the others is two classes of the generator: the target's is asked for."""
    options, _ = done
    base = tmp_path / "base"
    shutil.copytree(options.output_dir / "generators" / "fold-0", base, ignore=shutil.ignore_patterns("auxiliary*"))
    names = {**sets, "aux_dir": unequal_packed(tmp_path / "same", {"flat": (6, 2), "wavy": (4, 2)}, size=16, seed=6)}
    names.pop("unlabelled_dir")
    changed = AugmentConfig(output_dir=tmp_path / "out", same_names="same", init_from=base, **names, **SMALL)
    run_ranks(1, augment, changed)
    place = tmp_path / "out" / "generators" / "fold-0"
    index = json.loads((place / "ldm" / "best" / "model_index.json").read_text())
    assert index["classes"] == [*CLASSES, "flat (auxiliary)", "wavy (auxiliary)"]
    assert not (place / "vqvae").exists()
    record = provenance.read(place / "ldm" / "best", "pipeline")
    assert record["config"]["train_samples"] == 8  # a third
    made = ShardDataset(place / REDRAWN[0].folder, fields=("meta",))
    classes = [made[i]["meta"] for i in range(len(made))]
    assert {meta["class"] for meta in classes} == {"flat", "wavy"}
    assert all(meta["class"] == meta["from_class"] for meta in classes)


def test_every_image_is_of_the_strength_and_the_guidance_that_its_kind_names(done):
    options, found = done
    place = options.output_dir / "generators" / "fold-0"
    kinds = Generators(options, load(options), np.zeros(32, int)).kinds
    assert {kind.name for kind in kinds} == set(found["label_kept"])
    assert len({kind.folder for kind in kinds}) == len(kinds)
    text = (options.output_dir / "report.html").read_text(encoding="utf-8")
    for kind in kinds:
        plan = json.loads((place / kind.folder / "run.json").read_text())["identity"]
        assert plan["guidance_scale"] == kind.guidance
        assert (plan["redraw"] or {"strengths": [1.0]})["strengths"] == [kind.strength]
        assert f"guidance {kind.guidance:g}" in kind.name
        assert f"<td>{kind.name}</td>" in text
        if kind.source:
            assert f"strength {kind.strength:g}" in kind.name


def test_noise_is_guided_as_the_preset_has_it_and_what_is_redrawn_as_its_kind(done, sets, tmp_path):
    options, _ = done
    preset = tmp_path / "guided.yaml"
    preset.write_text(PRESET.replace("generate: {", "generate: {guidance_scale: 2, "))
    guided = Generators(replace(options, generator=str(preset)), load(options), np.zeros(32, int))
    assert guided.kinds == [Kind(guidance=2.0), *VARIED, *REDRAWN]
    assert Generators(options, load(options), np.zeros(32, int)).kinds[0] == Kind(guidance=3.0)
    for kind in REDRAWN:
        given = {"ldm_path": "-", "output_dir": "-", "guidance_scale": kind.guidance}
        assert guided._flags("generate", given).guidance_scale == kind.guidance


def test_the_time_that_is_said_counts_the_calls_of_the_network(done):
    """Five steps: noise 10 calls, own images 3 and 2, auxiliary ones 3, 8 and 8; of two folds, and one kind more."""
    options, _ = done
    inputs, folds = load(options), np.arange(32) % 2
    made = Generators(options, inputs, folds)
    assert [kind.calls(made.steps) for kind in made.kinds] == [10, 3, 2, 3, 8, 8]
    without = Generators(replace(options, aux_dir=None), replace(inputs, auxiliary=None), folds)
    images = PER_CLASS * len(CLASSES) * 2 * 19
    assert made.minutes - without.minutes == pytest.approx(images * CALL_SECONDS / 60)
    assert without.minutes == pytest.approx(
        3 * TRAINING_MINUTES + PER_CLASS * len(CLASSES) * (2 * 15 + 10) * CALL_SECONDS / 60
    )


def test_the_kind_that_is_tried_keeps_the_label_and_brings_most_variety(monkeypatch):
    generators = object.__new__(Generators)
    generators.noise = Kind(guidance=3.0)
    generators.kinds = [generators.noise, *VARIED, *REDRAWN]

    def chosen(own: tuple[float, ...], auxiliary: tuple[float, ...]) -> list[Kind]:
        ratios = zip([kind.name for kind in (*VARIED, *REDRAWN)], (*own, *auxiliary), strict=True)
        kept = {name: {"ratio": ratio} for name, ratio in ratios}
        monkeypatch.setattr(Generators, "label_kept", lambda _: kept)
        return generators.chosen()[1:]

    # In the order of the variety that they keep: own ones from strong to weak, auxiliary ones from weak to strong.
    assert [kind.strength for kind in VARIED] == [0.6, 0.4]
    assert [(kind.strength, kind.guidance) for kind in REDRAWN] == [(0.6, 1.0), (0.8, 3.0), (0.9, 3.0)]
    assert chosen((0.95, 1.0), (0.95, 1.0, 1.1)) == [VARIED[0], REDRAWN[0]]
    assert chosen((0.5, 1.0), (0.5, 0.9, 1.0)) == [VARIED[1], REDRAWN[1]]
    assert chosen((0.5, 0.6), (0.5, 0.6, 1.0)) == [VARIED[1], REDRAWN[2]]
    assert chosen((0.6, 0.5), (0.5, 0.7, 0.6)) == [VARIED[0], REDRAWN[1]]  # none keeps it: the nearest
    generators.kinds = [generators.noise, *VARIED]
    assert chosen((0.95, 1.0), (1.0, 1.0, 1.0)) == [VARIED[0]]
