"""Whether auxiliary images help, found out on auxiliary images: few-shot episodes (Vinyals et al., NeurIPS 2016).

Some of them play the training images, few of each class and judged by whole groups, and others the auxiliary ones. Of
the same classes, one domain (person, site, sensor) after the other is the target and all others are auxiliary. Of other
classes, one half of the classes is the target and the other auxiliary, then the other way round; halves differ by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdaug.recipe.figures import gains, hits_of, interval, provable
from mdaug.recipe.trials import Images, Material, Trial, make_folds
from shards.errors import UserError

MOST_DOMAINS = 4  # that are the target in turn
HALVES = 3  # names the stream of halves of the classes among those of a seed
FREE = "free baseline"
Gain = tuple[float, float, float]  # difference, low, high


@dataclass(frozen=True)
class Target:
    """Images that can play the training images.

    Attributes:
        name: of their domain; "" for classes of all domains.
        positions: int64 (n,), among the auxiliary images.
        folds: int64 (n,), 0 or 1, by whole groups.
    """

    name: str
    positions: np.ndarray
    folds: np.ndarray


@dataclass(frozen=True)
class Episode:
    """A target, and the material of its trials: its images in their folds, and those that stay auxiliary."""

    target: Target
    material: Material


@dataclass(frozen=True)
class Evidence:
    """What a use of auxiliary images has shown on them.

    Attributes:
        hits: whether each image was seen right with it, bool (seeds, n).
        free: the same without it.
        cells: int64 (n,), class and domain of each image; each cell counts alike.
        groups: n names.
    """

    hits: np.ndarray
    free: np.ndarray
    cells: np.ndarray
    groups: list[str]

    @property
    def gain(self) -> Gain:
        """The gain on auxiliary images, and its 95 % interval."""
        return interval(self.hits, self.cells, self.groups, self.free)

    def gain_with(self, hits: np.ndarray, free: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> Gain:
        """Return the gain if the training images, with the same seeds, are one domain more; arguments are theirs."""
        seeds = min(len(self.hits), len(hits))
        both = ((self.hits, hits), (self.free, free))
        first, second = (np.concatenate([there[:seeds], here[:seeds]], axis=1) for there, here in both)
        cells = np.concatenate([self.cells, self.cells.max() + 1 + labels])
        names = [*(f"auxiliary/{group}" for group in self.groups), *(f"own/{group}" for group in groups)]
        return interval(first, cells, names, second)


class Episodes:
    """Uses of auxiliary images, tried where there are enough images to tell.

    A class is part of a target if each of two halves of its groups has as many images as a classifier is trained on. A
    group is never trained on, as target or as auxiliary, where it is judged.

    Args:
        auxiliary: the images.
        same: whether their labels are those of the target classes.
        domains: n names, of which person, site or sensor each image is; needed, and used, where `same`.
        few: images of each class that a fold of the training images leaves.
        settings: of classifiers, fields of `Material`.

    Attributes:
        targets: what is the target: the largest domains; of other classes, one that is halved by each seed.
        why: in words, why there is none, and what to do; "" where there are some.
    """

    def __init__(
        self, auxiliary: Images, same: bool, domains: Sequence[str] | None, few: int, settings: dict[str, Any]
    ):
        self.auxiliary, self.same, self.few, self.settings = auxiliary, same, few, settings
        found, self.domain_of = np.unique(np.asarray(domains or [""] * len(auxiliary)), return_inverse=True)
        names = found.tolist()
        self.targets: list[Target] = []
        self.why = ""
        enough = (
            f"{few} images in each of two halves of its groups, which have to be recordings (--group_by of mdaug pack)"
        )
        if same and domains is None:
            self.why = (
                "say of which person, site or sensor each of them is, by --aux_domains, which takes column:<name> of "
                "their metadata or a regular expression for their paths"
            )
        elif same and len(names) == 1:
            self.why = f"--aux_domains finds one domain alone, '{names[0]}', where two are needed"
        elif same:
            own = [self._target(name, np.flatnonzero(self.domain_of == k), 2) for k, name in enumerate(names)]
            largest = sorted((each for each in own if each is not None), key=lambda each: -len(each.positions))
            self.targets = [each for each in largest if self._episode(each) is not None][:MOST_DOMAINS]
            if not self.targets:
                self.why = f"no domain has two classes with {enough}"
        else:
            whole = self._target("", np.arange(len(auxiliary)), 4)
            self.targets = [] if whole is None else [whole]
            if not self.targets:
                self.why = f"fewer than four auxiliary classes have {enough}"

    def __len__(self) -> int:
        """Return the number of episodes of each seed."""
        return len(self.targets) * (1 if self.same else 2)

    def of(self, seed: int) -> list[Episode]:
        """Return the episodes of a seed; every image of the targets is in one of them."""
        targets = self.targets
        if not self.same:
            targets = [half for target in targets for half in self._halves(target, seed)]
        return [episode for target in targets if (episode := self._episode(target)) is not None]

    def prove(
        self, uses: Sequence[Trial], run: Callable[[Sequence[Trial], Material, str], list[dict[str, Any]]], seeds: range
    ) -> dict[str, Evidence]:
        """Return what each use shows over the same training without auxiliary images.

        Classes count alike, those of each domain for themselves. Seed after seed, with another subset for each, as long
        as the interval can still lie above zero.

        Args:
            uses: arms that use auxiliary images and nothing else beside the training images.
            run: returns the results of trials with a material; the name tells the episodes of a seed apart.
            seeds: of the classifiers.
        """
        if not self.targets:
            return {}
        judged = np.sort(np.concatenate([target.positions for target in self.targets]))
        cells = (self.domain_of * (self.auxiliary.labels.max() + 1) + self.auxiliary.labels)[judged]
        groups = [self.auxiliary.groups[i] for i in judged.tolist()]
        arms = {FREE: Trial(FREE, uses[0].policy), **{use.arm: use for use in uses}}
        hits: dict[str, np.ndarray] = {arm: np.zeros((0, len(judged)), dtype=bool) for arm in arms}
        going = list(arms)
        for seed in seeds:
            right = {arm: np.zeros(len(self.auxiliary), dtype=bool) for arm in going}
            for number, episode in enumerate(self.of(seed)):
                planned = [
                    replace(arms[arm], fold=fold, seed=seed, subset=seed, per_class=self.few)
                    for arm in going
                    for fold in (0, 1)
                ]
                results = run(planned, episode.material, str(number))
                for arm in going:
                    seen = [result for trial, result in zip(planned, results, strict=True) if trial.arm == arm]
                    key = "averaged" if arms[arm].policy.copies else "plain"
                    right[arm][episode.target.positions] = hits_of(seen, episode.material.train.labels, key)[0]
            hits |= {arm: np.concatenate([hits[arm], right[arm][None, judged]]) for arm in going}
            free = hits[FREE]
            going = [arm for arm in going if arm == FREE or provable(gains(hits[arm], cells, free), len(seeds))]
            if going == [FREE]:
                break
        return {use.arm: Evidence(own := hits[use.arm], free[: len(own)], cells, groups) for use in uses}

    def _target(self, name: str, among: np.ndarray, classes: int) -> Target | None:
        """Return the images of those classes that have enough in both folds; None where these are too few classes."""
        labels, groups = self.auxiliary.labels[among], np.asarray(self.auxiliary.groups)[among]
        several = [label for label in np.unique(labels) if len(set(groups[labels == label])) > 1]
        among = among[np.isin(labels, several)]
        if len(several) < classes:
            return None
        present, labels = np.unique(self.auxiliary.labels[among], return_inverse=True)
        try:
            folds = make_folds(labels, [self.auxiliary.groups[i] for i in among.tolist()], 2, [str(k) for k in present])
        except UserError:  # groups that cannot be dealt out
            return None
        counts = np.zeros((len(present), 2), dtype=np.int64)
        np.add.at(counts, (labels, folds), 1)
        enough = counts.min(axis=1) >= self.few
        kept = enough[labels]
        return Target(name, among[kept], folds[kept]) if enough.sum() >= classes else None

    def _halves(self, target: Target, seed: int) -> list[Target]:
        """Return a target as two, each with half of the classes."""
        labels = self.auxiliary.labels[target.positions]
        classes = np.random.default_rng([seed, HALVES]).permutation(np.unique(labels))
        first = np.isin(labels, classes[: len(classes) // 2])
        return [Target(target.name, target.positions[own], target.folds[own]) for own in (first, ~first)]

    def _episode(self, target: Target) -> Episode | None:
        """Return the episode of a target; None where fewer than two auxiliary classes are left beside some fold."""
        all_labels = self.auxiliary.labels
        present, labels = np.unique(all_labels[target.positions], return_inverse=True)
        train = replace(self.auxiliary.take(target.positions), labels=labels)
        # Of the same classes the others are those of other domains, else those of other classes.
        rest = np.isin(all_labels, present) == self.same
        if self.same:
            rest &= self.domain_of != self.domain_of[target.positions[0]]
        others = self.auxiliary.take(np.flatnonzero(rest))
        fold_of = dict(zip(train.groups, target.folds.tolist(), strict=True))
        shared = np.array([fold_of.get(group, -1) for group in others.groups], dtype=np.int64)
        if min(len(np.unique(others.labels[shared != fold])) for fold in (0, 1)) < 2:
            return None
        known = present if self.same else np.unique(others.labels)
        others = replace(others, labels=np.searchsorted(known, others.labels))
        names = [str(label) for label in present]
        material = Material(names, train, target.folds, auxiliary=others, auxiliary_folds=shared, **self.settings)
        return Episode(target, material)
