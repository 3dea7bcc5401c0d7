"""What a recipe delivers: predict.py, train.py and the training set work without mdaug."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mdaug.augment import RICHER, TODAY
from mdaug.measures import classifier, image_set
from mdaug.recipe import deliver, recipe, training_set
from mdaug.recipe.inputs import load
from mdaug.recipe.trials import GIVEN, Material, Trial, pseudo_labels
from shards.dataset import ShardDataset
from tests.recipes import FEW, search_only, small_recipe
from tests.toy import CLASSES, toy_folder, toy_packed, toy_synthetic


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed") / "packed", size=32, train=48, val=16)


@pytest.fixture
def options(packed, tmp_path, monkeypatch):
    search_only(monkeypatch, FEW)
    return small_recipe(packed, tmp_path / "recipe")


@pytest.mark.slow
def test_the_classifier_of_a_recipe_needs_torch_alone(options, tmp_path):
    recipe.run(replace(options, aux_dir=toy_folder(tmp_path / "others")))

    # The classifier by itself, elsewhere, as it predicts here.
    copy = shutil.copytree(options.output_dir / deliver.FOLDER, tmp_path / "elsewhere")
    pictures = sorted((tmp_path / "others").rglob("*.png"))[:4]
    code = f"""
import sys, json
sys.path.insert(0, {str(copy)!r})
import predict
print(json.dumps(predict.predict({[str(path) for path in pictures]!r}).tolist()))
print([name for name in sys.modules if name.split(".")[0] in ("mdaug", "shards", "safetensors", "diffusers")])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    rows, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    here = np.asarray(json.loads(rows))
    assert here.shape == (4, len(CLASSES))
    assert np.allclose(here.sum(1), 1)
    lines = subprocess.run(
        [sys.executable, copy / "predict.py", *pictures], capture_output=True, text=True, env=environment, check=True
    ).stdout.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == [CLASSES[k] for k in here.argmax(1)]

    # Of images in folders named after the classes it says how many are recognised: all of one class, few of another.
    guess = CLASSES[here.argmax(1)[0]]
    other = next(name for name in CLASSES if name != guess)
    new = [tmp_path / "new" / name / f"{i}.png" for name, i in ((guess, 0), (guess, 1), (other, 0))]
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[0], path)
    said = subprocess.run([sys.executable, copy / "predict.py", *new], capture_output=True, text=True, check=True)
    found_in = zip(new, said.stdout.splitlines(), strict=True)
    right = [line.split(": ")[1].startswith(f"{path.parent.name} ") for path, line in found_in]
    recalls = {guess: 50 * (right[0] + right[1]), other: 100 * right[2]}
    assert f"{np.mean(list(recalls.values())):.1f} %" in said.stderr
    assert all(f"{name} {recall:.0f}" in said.stderr for name, recall in recalls.items())
    none = subprocess.run([sys.executable, copy / "predict.py"], capture_output=True, text=True)
    assert (none.returncode, none.stderr.count("python predict.py IMAGE.png")) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "pretrain"),
    [("uniform", False), ("classes", False), ("labels", False), ("labels", True), ("classes", True)],
)
def test_the_training_set_trains_the_classifier_without_mdaug(options, packed, tmp_path, use, pretrain):
    names = CLASSES[:2] if use == "labels" else ("zig", "zag")
    same = "same" if use == "labels" else "ask"
    options = replace(options, aux_dir=toy_folder(tmp_path / "others", names), same_names=same)
    inputs = load(replace(options, synthetic_dir=toy_synthetic(tmp_path / "synthetic", packed, per_class=4)))
    settings = {"steps": 2, "batch_size": 8}
    given = {(GIVEN, None): inputs.synthetic}
    material = Material(inputs.classes, inputs.train, np.array([]), None, inputs.auxiliary, given, **settings)
    trial = Trial("", replace(RICHER, mix=0.3, copies=2), use, share=0.25, pretrain=pretrain, synthetic=0.25)
    deliver.write(tmp_path / "out", trial, material, inputs.colormap)
    training_set.write(tmp_path / "out", trial, material, inputs.stored)

    # Every image that the recipe uses is there, as it was stored, and drawn as often as in the recipe.
    place = tmp_path / "out" / training_set.FOLDER
    shares = {"real": 0.75, "auxiliary": 1.0} if pretrain else {"real": 0.5, "auxiliary": 0.25}
    stages = {
        source["folder"]: source["stage"] for source in json.loads((place / "sources.json").read_text())["sources"]
    }
    assert stages == {"real": 1 + pretrain, "auxiliary": 1, "generated": 1 + pretrain}
    total = np.zeros(2)
    for name, share, images in (
        ("real", shares["real"], inputs.train),
        ("auxiliary", shares["auxiliary"], inputs.auxiliary),
        ("generated", 0.25, inputs.synthetic),
    ):
        there = ShardDataset(place / name, fields=("image", "meta"))
        samples = [there[i] for i in range(len(there))]
        weights = np.array([sample["meta"]["weight"] for sample in samples])
        assert len(there) == len(images)
        assert weights.sum() == pytest.approx(share)
        if use != "uniform" or name != "auxiliary":
            of_class = np.bincount(there.labels, weights)
            assert np.allclose(of_class[of_class > 0], share / (of_class > 0).sum())
        sized = np.stack([image_set.preprocess(sample["image"], 32) for sample in samples])
        assert (sized == images.pixels).all()
        total[stages[name] - 1] += weights.sum()
    assert total == pytest.approx([1, int(pretrain)])

    # Elsewhere, with torch alone.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    code = f"import sys, runpy; sys.argv = ['', '2']; sys.path.insert(0, {str(elsewhere / deliver.FOLDER)!r}); " + (
        f"runpy.run_path({str(elsewhere / deliver.TRAIN)!r}, run_name='__main__'); import predict; "
        f"print(predict.predict([{str(next((tmp_path / 'others').rglob('*.png')))!r}]).shape, "
        "[name for name in sys.modules if name.split('.')[0] in ('mdaug', 'shards', 'safetensors')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == f"(1, {len(CLASSES)}) []"
    assert [line for line in done.stdout.splitlines() if line.startswith("stage")] == (
        ["stage 1 of 2: 16 images", f"stage 2 of 2: {48 + len(inputs.synthetic)} images"]
        if pretrain
        else [f"stage 1 of 1: {64 + len(inputs.synthetic)} images"]
    )


def test_the_training_set_holds_the_unlabelled_images_that_were_given_a_label(options, tmp_path, monkeypatch):
    inputs = load(replace(options, unlabelled_dir=toy_folder(tmp_path / "others")))
    settings = {"steps": 60, "batch_size": 16, "learning_rate": 3e-3}
    material = Material(inputs.classes, inputs.train, np.array([]), unlabelled=inputs.unlabelled, **settings)
    trial = Trial("", TODAY, pseudo=0.25)
    with classifier.one_thread():
        chosen, labels = pseudo_labels(trial, material)

    def with_threads(*given):
        threads.append(torch.get_num_threads())
        return pseudo_labels(*given)

    threads: list[int] = []
    monkeypatch.setattr(training_set, "pseudo_labels", with_threads)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        training_set.write(tmp_path / "out", trial, material, inputs.stored)
    finally:
        torch.set_num_threads(before)
    assert threads == [1]  # as in the training of the classifier: more change the sums, and so who is confident
    assert len(chosen)
    there = ShardDataset(tmp_path / "out" / training_set.FOLDER / "unlabelled", fields=("image", "meta"))
    assert there.labels.tolist() == labels.tolist()
    sized = np.stack([image_set.preprocess(there[i]["image"], 32) for i in range(len(there))])
    assert (sized == inputs.unlabelled[chosen]).all()
    assert sum(there[i]["meta"]["weight"] for i in range(len(there))) == pytest.approx(0.25)
