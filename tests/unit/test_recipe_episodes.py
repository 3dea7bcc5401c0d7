"""Episodes: auxiliary images show whether auxiliary images help, judged on groups that no classifier has seen."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from mdaug.augment import RICHER, TODAY, Policy
from mdaug.measures import classifier
from mdaug.recipe import comparison, recipe
from mdaug.recipe.comparison import CLASSES, PRETRAINED, RICHER_ARM, TODAY_ARM, UNIFORM, Comparison
from mdaug.recipe.episodes import FREE, MOST_DOMAINS, Episodes, Evidence
from mdaug.recipe.inputs import load
from mdaug.recipe.trials import Images, Trial, fit, members, run_trial
from shards import provenance
from tests.recipes import recorded, search_only, small_recipe
from tests.toy import toy_packed

PLAIN = Policy()
OWN = [Trial("a share of each batch", PLAIN, "labels"), Trial(PRETRAINED, PLAIN, "labels", pretrain=True)]
OTHER = [Trial(UNIFORM, PLAIN, "uniform"), Trial(CLASSES, PLAIN, "classes")]


def some(rng: np.random.Generator, groups_hold: str = "one") -> tuple[Images, list[str]]:
    """Images of six classes and three domains; groups of one class and domain, or of several of either."""
    labels = rng.permutation(np.repeat(np.arange(6), 36))
    domains = rng.integers(3, size=len(labels))
    number = rng.integers(6, size=len(labels))
    parts = {"one": (labels, domains, number), "classes": (domains, number), "all": (number,)}[groups_hold]
    groups = ["-".join(map(str, each)) for each in zip(*parts, strict=True)]
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2)
    return Images(pixels, labels, groups), [f"p{domain}" for domain in domains]


@pytest.mark.parametrize("groups_hold", ["one", "classes", "all"])
@pytest.mark.parametrize("same", [True, False])
def test_no_group_trains_where_it_judges_and_every_image_is_judged_once(monkeypatch, same, groups_hold):
    rng = np.random.default_rng(0)
    for _ in range(5):
        images, domains = some(rng, groups_hold)
        episodes = Episodes(images, same, domains if same else None, 2, {"steps": 1})
        assert episodes.targets
        assert not episodes.why
        judged = np.zeros(len(images), int)
        assert len(episodes.of(7)) == len(episodes)
        for episode in episodes.of(7):
            material, target = episode.material, episode.target.positions
            assert (material.train.pixels == images.pixels[target]).all()
            for fold in (0, 1):
                trial = Trial("", PLAIN, "labels" if same else "classes", fold=fold, per_class=2, subset=7)
                given = {}

                def capture(pixels, labels, outputs, given=given, **rest):
                    given.update(own=pixels[:, 0, 0, 0], others=rest["others"][0].images[:, 0, 0, 0])

                monkeypatch.setattr(classifier, "train", capture)
                fit(trial, material)
                here = target[material.folds == fold]
                judged[here] += 1
                groups = {images.groups[i] for i in here}
                assert groups.isdisjoint(images.groups[i] for i in [*given["own"], *given["others"]])
                # As many of each class as a fold of the training images leaves, and the others are others.
                assert set(np.bincount(images.labels[given["own"]]).tolist()) <= {0, 2}
                assert set(given["own"]) == set(target[members(trial, material)])
                if same:
                    assert {domains[i] for i in given["own"]}.isdisjoint(domains[i] for i in given["others"])
                    assert set(images.labels[given["others"]]) <= set(images.labels[given["own"]])
                else:
                    assert set(images.labels[given["others"]]).isdisjoint(images.labels[given["own"]])
                    assert len(set(images.labels[given["others"]])) >= 2
        positions = np.concatenate([target.positions for target in episodes.targets])
        assert judged[positions].tolist() == [1] * len(positions)
        assert judged.sum() == len(positions)


def test_labels_of_other_domains_are_those_of_the_target():
    images, domains = some(np.random.default_rng(0))
    domains = ["p0" if label == 0 else domain for label, domain in zip(images.labels, domains, strict=True)]
    for episode in Episodes(images, True, domains, 2, {}).of(0):
        material, others = episode.material, episode.material.auxiliary
        names = np.array([int(name) for name in material.classes])
        assert (names[others.labels] == images.labels[others.pixels[:, 0, 0, 0]]).all()
        assert (names[material.train.labels] == images.labels[episode.target.positions]).all()


def test_halves_of_other_classes_differ_by_seed():
    episodes = Episodes(some(np.random.default_rng(0))[0], False, None, 2, {})
    halves = {tuple(sorted(tuple(e.material.classes) for e in episodes.of(seed))) for seed in range(20)}
    assert len(halves) > 5
    assert all(sorted(a + b) == [str(k) for k in range(6)] and len(a) == 3 for a, b in halves)


def test_what_is_too_small_is_only_auxiliary_and_where_nothing_is_left_a_line_says_so():
    images, domains = some(np.random.default_rng(0))
    few = [domain if domain != "p2" or i % 12 == 0 else "p1" for i, domain in enumerate(domains)]
    episodes = Episodes(images, True, few, 3, {})
    assert {target.name for target in episodes.targets} == {"p0", "p1"}
    assert all(
        {few[i] for i in episode.material.auxiliary.pixels[:, 0, 0, 0]} == {"p0", "p1", "p2"} - {episode.target.name}
        for episode in episodes.of(0)
    )
    many = [f"{domain}{i % 2}" for i, domain in enumerate(domains)]
    assert len(Episodes(images, True, many, 1, {}).targets) == MOST_DOMAINS < len(set(many))
    one_group = replace(images, groups=[f"{d}{k}" for d, k in zip(domains, images.labels, strict=True)])
    for episodes, why in (
        (Episodes(images, True, None, 2, {}), "--aux_domains, which takes column:<name>"),
        (Episodes(images, True, ["p1"] * len(images), 2, {}), "one domain alone, 'p1'"),
        (Episodes(images, True, domains, 50, {}), "no domain has two classes with 50 images in each of two halves"),
        (Episodes(one_group, True, domains, 2, {}), "no domain has two classes"),
        (Episodes(images.take(np.flatnonzero(images.labels < 3)), False, None, 2, {}), "fewer than four"),
    ):
        assert why in episodes.why
        assert "\n" not in episodes.why
        assert (len(episodes), episodes.of(0), episodes.prove(OWN, None, range(2))) == (0, [], {})


def predicted(right: dict[str, float], trials, material, rng):
    """Results of classifiers that are right so often."""
    for trial in trials:
        judged = np.flatnonzero(material.folds == trial.fold)
        own = material.train.labels[judged]
        seen = np.where(rng.random(len(own)) < right[trial.arm], own, (own + 1) % len(material.classes)).tolist()
        yield {"trial": asdict(trial), "judged": judged.tolist(), "plain": seen, "averaged": seen}


@pytest.mark.parametrize(("same", "uses"), [(True, OWN), (False, OTHER)])
def test_a_use_is_tried_seed_after_seed_only_while_it_can_be_proven(same, uses):
    """The first use always helps, the second always hurts."""
    images, domains = some(np.random.default_rng(0))
    episodes, rng, trained = Episodes(images, same, domains, 3, {}), np.random.default_rng(1), []

    def run(trials, material, name):
        trained.extend((trial, name) for trial in trials)
        return list(predicted({FREE: 0.5, uses[0].arm: 0.9, uses[1].arm: 0.2}, trials, material, rng))

    gains = {arm: evidence.gain for arm, evidence in episodes.prove(uses, run, range(100, 103)).items()}
    assert gains[uses[0].arm][1] > 0.2
    assert gains[uses[0].arm][0] == pytest.approx(0.4, abs=0.1)
    assert gains[uses[1].arm][2] < 0
    of_arm = [sum(trial.arm == arm for trial, _ in trained) for arm in (FREE, uses[0].arm, uses[1].arm)]
    assert of_arm == [3 * 2 * len(episodes), 3 * 2 * len(episodes), 2 * len(episodes)]
    # Another subset for each seed, and no two results in one file.
    assert {(t.seed, t.subset, t.per_class) for t, _ in trained} == {(seed, seed, 3) for seed in (100, 101, 102)}
    assert len({(trial.name, name) for trial, name in trained}) == len(trained)


def test_training_images_are_one_domain_more():
    """Gains of 0.1 on two classes of others and of 0.3 on two own classes, which have fewer images."""

    def twice(with_it: float, without: float, count: int) -> list[np.ndarray]:
        shares = np.arange(count // 2) % 10 / 10
        return [np.stack([np.tile(shares < share - 0.01, 2)] * 3) for share in (with_it, without)]

    there, free = twice(0.6, 0.5, 400)
    groups = [str(i // 10) for i in range(400)]
    evidence = Evidence(there[:2], free[:2], np.repeat([0, 1], 200), groups)
    own, own_free = twice(0.8, 0.5, 40)
    labels = np.repeat([0, 1], 20)
    assert evidence.gain[0] == pytest.approx(0.1)
    assert evidence.gain_with(own, own_free, labels, groups[:40])[0] == pytest.approx(0.2)  # each class counts alike
    assert evidence.gain_with(own, own, labels, groups[:40])[0] == pytest.approx(0.05)


def people(agree: bool) -> tuple[Images, list[str]]:
    """Two classes of noisy pictures by two people, whose background tells who they are.

    The classes differ in Doppler, since transforms move time. If the people do not agree, the second shows them by the
    level elsewhere, so that neither's pictures say anything of the other's.
    """
    rng = np.random.default_rng(3)
    pixels, labels, groups, domains = [], [], [], []
    for person in range(2):
        style = 60 * rng.random((16, 1)) + 60 * rng.random((1, 16))
        for i in range(96):
            shown = i % 2
            picture = style + 60 * rng.standard_normal((16, 16))
            if agree or person == 0:
                picture[6 * shown + 2 : 6 * shown + 6] += 14
            else:
                picture[13:16] += 20 * (2 * shown - 1)
            pixels.append(picture.clip(0, 255).astype(np.uint8)[..., None])
            labels.append(shown)
            groups.append(f"{person}-{i // 8}")
            domains.append(f"p{person}")
    return Images(np.stack(pixels), np.array(labels), groups), domains


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed") / "packed", size=32, train=48, val=16)


@pytest.fixture
def options(packed, tmp_path, monkeypatch):
    search_only(monkeypatch, {"only": TODAY})
    return small_recipe(packed, tmp_path / "recipe")


def choose(options, monkeypatch, own: dict[str, tuple], episodes, same: bool) -> tuple[str, dict, dict]:
    """The choice where the training images bring these gains, and everything else nothing; seeds asked for."""
    inputs = replace(load(options), auxiliary=Images(np.zeros((1, 32, 32, 1), np.uint8), np.zeros(1, int), ["a"]))
    compared = Comparison(
        options, replace(inputs, same=same), np.array([0]), TODAY, getattr(episodes, "run", None), episodes=episodes
    )
    asked = {}

    def compare(arms, against=None, all_seeds=False):
        rows = [
            {"arm": t.arm, "recall": 0.5, "against": against, "gain": own.get(t.arm, (0, -0.1, 0.1)), "kept": False}
            for t in arms
        ]
        compared.trials |= {trial.arm: trial for trial in arms}
        compared.hits |= dict.fromkeys(compared.trials, np.zeros((1, len(inputs.train)), dtype=bool))
        compared.rows += rows
        asked.update({trial.arm: all_seeds for trial in arms})
        return rows

    monkeypatch.setattr(compared, "_compare", compare)
    return compared.choose()[1], {row["arm"]: row for row in compared.rows}, asked


@pytest.mark.slow
@pytest.mark.parametrize("helps", [True, False])
def test_what_helps_among_auxiliary_images_is_kept_and_what_hurts_is_not(options, monkeypatch, helps):
    """The few training images cannot prove anything either way."""
    images, domains = people(agree=helps)
    settings = {"steps": 100, "batch_size": 16, "learning_rate": 3e-3}
    episodes = Episodes(images, True, domains, 2, settings)

    def run(trials, material, name):
        with classifier.one_thread():
            return [run_trial(trial, material) for trial in trials]

    episodes.run = run
    monkeypatch.setattr(comparison, "RICHER", TODAY)  # so few steps teach toy images with simple transforms alone
    best, rows, asked = choose(replace(options, seeds=1), monkeypatch, {}, episodes, same=True)
    assert (best == PRETRAINED) == helps
    assert rows[PRETRAINED]["kept"] == helps
    assert (rows[PRETRAINED]["elsewhere"][1] > 0) == helps
    assert asked[PRETRAINED] == (rows[PRETRAINED]["elsewhere"][0] > 0)


YES, NO = (0.05, 0.01, 0.09), (0.05, -0.01, 0.11)


class Shown:
    """What a use has shown, the same with the training images as without."""

    def __init__(self, gain: tuple):
        self.gain = gain

    def gain_with(self, *own) -> tuple:
        return self.gain


@pytest.mark.parametrize(
    ("own", "there", "best"),
    [
        ((NO, NO), (YES, NO), PRETRAINED),  # proven on auxiliary images, and not contradicted
        ((NO, NO), (NO, NO), RICHER_ARM),
        (((-0.01, -0.1, 0.1), NO), (YES, NO), RICHER_ARM),  # contradicted
        ((NO, NO), (YES, (0.08, 0.02, 0.1)), UNIFORM),  # the larger gain there
        ((NO, (-0.01, -0.1, 0.1)), (YES, (0.08, 0.02, 0.1)), PRETRAINED),  # of those that are not contradicted
        ((NO, YES), (YES, NO), UNIFORM),  # proven on the training images themselves
        ((NO, NO), None, RICHER_ARM),
        ((YES, NO), None, PRETRAINED),
    ],
)
def test_a_use_is_kept_if_proven_there_and_not_contradicted_or_proven_here(options, monkeypatch, own, there, best):
    arms = (PRETRAINED, UNIFORM, CLASSES)
    own, there = (*own, NO), there and (*there, NO)

    class Known:
        def prove(self, uses, run, seeds):
            assert [trial.arm for trial in uses] == list(arms)
            assert {trial.policy for trial in uses} == {RICHER}  # that of the free baseline
            return {arm: Shown(gain) for arm, gain in zip(arms, there, strict=True)}

    episodes = None if there is None else Known()
    chosen, rows, asked = choose(options, monkeypatch, dict(zip(arms, own, strict=True)), episodes, same=False)
    assert chosen == best
    assert [arm for arm in arms if rows[arm]["kept"]] == [best] * (best in arms)
    assert [rows[arm].get("elsewhere") for arm in arms] == list(there or (None,) * 3)
    assert [asked[arm] for arm in arms] == [gain[0] > 0 for gain in there or ((0, 0, 0),) * 3]


@pytest.mark.slow
def test_a_recipe_with_episodes_resumes_and_shows_both_figures(options, tmp_path):
    options = replace(
        options, aux_dir=recorded(tmp_path / "others"), same_names="same", aux_domains="column:person", steps=4
    )
    found = recipe.run(options)
    assert found["episodes"] == {"on": ["p0", "p1", "p2"], "per_class": found["episodes"]["per_class"], "why": ""}
    rows = {row["arm"]: row for row in found["cross_validation"]["arms"]}
    assert len(rows[PRETRAINED]["elsewhere"]) == len(rows[PRETRAINED]["together"]) == 3
    page = (options.output_dir / "report.html").read_text(encoding="utf-8")
    assert "those of p0, p1, p2 were the target in turn" in page
    assert "gain on auxiliary images" in page
    # Interrupted: one result and what follows are made again, and nothing else.
    results = sorted((options.output_dir / recipe.EPISODES).rglob("*.json"))
    assert {path.parent.name for path in results} == {"0", "1", "2"}
    times = {path: path.stat().st_mtime_ns for path in results}
    results[1].unlink()
    (options.output_dir / provenance.FILE_NAME).unlink()
    assert json.dumps(recipe.run(options)) == json.dumps(found)
    assert sorted((options.output_dir / recipe.EPISODES).rglob("*.json")) == results
    assert [path for path in results if path.stat().st_mtime_ns != times[path]] == [results[1]]
    del found["episodes"]  # as an earlier version left it
    assert TODAY_ARM in recipe.page.summary(found, options.output_dir)
    # Without an answer nothing is tried there, and the page says how to give one.
    other = recipe.run(replace(options, aux_domains=None, output_dir=tmp_path / "without"))
    assert "--aux_domains" in other["episodes"]["why"]
    assert not (tmp_path / "without" / recipe.EPISODES).exists()
    assert all("elsewhere" not in row for row in other["cross_validation"]["arms"])
    assert "--aux_domains" in (tmp_path / "without" / "report.html").read_text(encoding="utf-8")
