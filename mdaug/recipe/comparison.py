"""The ways to train that a recipe compares, by cross-validation with the same seeds and folds, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mdaug.augment import COPIES, RICHER, TODAY, Policy
from mdaug.recipe.episodes import Episodes
from mdaug.recipe.figures import gains, hits_of, interval, provable
from mdaug.recipe.inputs import Inputs
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.trials import GIVEN, Trial

TODAY_ARM, SEARCHED = "today's transforms", "searched policy"
RICHER_ARM, AVERAGED = "richer transforms", "richer transforms, averaged"
PRETRAINED, UNIFORM, CLASSES = (f"+ auxiliary, {use}" for use in ("pretraining", "uniform labels", "further classes"))
PSEUDO, GENERATED = "+ unlabelled, pseudo-labels", "+ generated"
TWICE = ", twice the share"
FRESH = 100  # the first seed of the comparison: not those by which the policy was chosen


class Comparison:
    """The arms, cross-validated with the same seeds and folds, and the choice among them.

    Attributes:
        trials: arm -> one of its trials.
        rows: figures of the arms: {"arm", "recall", "low", "high", "seeds": number of them, "against", "gain":
            (difference, low, high), "kept"}, and, where they were measured, "elsewhere": the gain on auxiliary
            images, and "together": that on these and the training images.
    """

    def __init__(
        self,
        options: AugmentConfig,
        inputs: Inputs,
        folds: np.ndarray,
        searched: Policy,
        run: Callable[..., list[dict[str, Any]]],
        on_auxiliary: bool = False,
        kinds: Sequence[str] = (),
        episodes: Episodes | None = None,
    ):
        self.options, self.train, self.folds, self.run = options, inputs.train, folds, run
        self.inputs, self.searched, self.on_auxiliary, self.episodes = inputs, searched, on_auxiliary, episodes
        self.kinds = [*([GIVEN] if inputs.synthetic is not None else []), *kinds]
        self.trials: dict[str, Trial] = {}
        self.hits: dict[str, np.ndarray] = {}
        self.rows: list[dict[str, Any]] = []

    def choose(self) -> tuple[str, str]:
        """Train and compare all arms; return the names of the free baseline and of the chosen arm.

        The free baseline begins with the richer transforms, unless the training images prove them worse than today's.
        Whatever replaces or extends it is kept only if the interval of its gain lies above zero; of several the one
        with the larger gain. Averaging and the searched policy have to gain over it, then auxiliary images. Unlabelled
        images come on top of that, and then generated ones, which have to gain over the best direct use, kept or not;
        where they lose nothing there, they are also tried at twice the share, in the place of auxiliary and unlabelled
        ones.

        The training images are too few to prove a gain of a few points. So the policy that auxiliary images have chosen
        is kept if the training images do not speak against it, and so is a use of auxiliary images whose gain is proven
        on these and the training images together, as one domain more; of several uses the one with the largest.
        """
        share = self.options.share
        # The free baseline.
        self._compare([Trial(TODAY_ARM, TODAY)])
        richer = self._compare([Trial(RICHER_ARM, RICHER)], TODAY_ARM, all_seeds=True)[0]
        richer["kept"] = richer["gain"][2] >= 0
        free = RICHER_ARM if richer["kept"] else TODAY_ARM
        averaged = Trial(AVERAGED, replace(RICHER, copies=COPIES))  # the same classifiers
        searched = [Trial(SEARCHED, self.searched)] * (self.searched not in (RICHER, averaged.policy))
        rows = self._compare([averaged, *searched], free, all_seeds=self.on_auxiliary)
        better = self._keep(rows, free)
        if better == free and self.on_auxiliary:
            for row in rows:
                if self.trials[row["arm"]].policy == self.searched and row["gain"][0] >= 0:
                    row["kept"], better = True, row["arm"]
        free = better
        # Auxiliary images used directly: first on auxiliary images, then on the training images.
        policy = self.trials[free].policy
        direct: list[Trial] = []
        if self.inputs.same:
            direct = [Trial(PRETRAINED, policy, "labels", pretrain=True)]
        elif self.inputs.auxiliary is not None:
            direct = [
                Trial(PRETRAINED, policy, "classes", pretrain=True),
                Trial(UNIFORM, policy, "uniform", share=share),
                Trial(CLASSES, policy, "classes", share=share),
            ]
        there = self.episodes.prove(direct, self.run, self._seeds()) if self.episodes and direct else {}
        promising = {arm for arm, evidence in there.items() if evidence.gain[0] > 0}
        rows = []
        for whole in (True, False):
            some = [trial for trial in direct if (bool(self.kinds) or trial.arm in promising) == whole]
            rows += self._compare(some, free, all_seeds=whole)
        # Which of them is kept.
        train = self.train
        for row in rows:
            if evidence := there.get(row["arm"]):
                row["elsewhere"] = evidence.gain
                own = self.hits[row["arm"]], self.hits[free]
                row["together"] = evidence.gain_with(*own, train.labels, train.groups)
        best = self._keep(rows, free)
        accepted = [row for row in rows if "together" in row and row["together"][1] > 0 and row["gain"][0] >= 0]
        if best == free and accepted:
            row = max(accepted, key=lambda row: row["together"][0])
            row["kept"], best = True, row["arm"]
        # Unlabelled images, under what the classifier so far takes them for.
        if self.inputs.unlabelled is not None:
            trial = replace(self.trials[best], arm=PSEUDO if best == free else f"{best} {PSEUDO}", pseudo=share)
            of_unlabelled = self._compare([trial], best, all_seeds=bool(self.kinds))
            rows += of_unlabelled
            best = self._keep(of_unlabelled, best)
        # Generated images.
        against = max([row for row in self.rows if row["arm"] == free] + rows, key=lambda row: row["recall"])["arm"]
        whats = {kind: GENERATED if kind == GIVEN else f"{GENERATED}, {kind}" for kind in self.kinds}
        on_top = {
            what if best == free else f"{best} {what}": replace(self.trials[best], synthetic=share, kind=kind)
            for kind, what in whats.items()
        }
        rows = self._compare([replace(trial, arm=arm) for arm, trial in on_top.items()], against)
        alone = [
            replace(self.trials[free], arm=f"{whats[kind]}{TWICE}", synthetic=2 * share, kind=kind)
            for kind, row in zip(self.kinds, rows, strict=True)
            if row["gain"][0] >= 0
        ]
        return free, self._keep(rows + self._compare(alone, against), best)

    def _compare(
        self, arms: Sequence[Trial], against: str | None = None, all_seeds: bool = False
    ) -> list[dict[str, Any]]:
        """Train arms and return their rows.

        Seed after seed, an arm only as long as its gain over `against` can still be proven, unless `all_seeds`: of an
        arm with which others are compared.
        """
        labels, groups, seeds = self.train.labels, self.train.groups, self.options.seeds
        results: dict[str, list[dict[str, Any]]] = {arm.arm: [] for arm in arms}
        going = list(arms)
        for number, seed in enumerate(self._seeds()):
            planned = [replace(arm, fold=int(fold), seed=seed) for arm in going for fold in np.unique(self.folds)]
            for trial, result in zip(planned, self.run(planned), strict=True):
                results[trial.arm].append(result)
            for arm in going:
                key = "averaged" if arm.policy.copies else "plain"
                self.hits[arm.arm] = hits_of(results[arm.arm], labels, key)
            if against is not None and not all_seeds:
                other = self.hits[against][: number + 1]
                going = [arm for arm in going if provable(gains(self.hits[arm.arm], labels, other), seeds)]
        rows = []
        for arm in arms:
            hits = self.hits[arm.arm]
            recall, low, high = interval(hits, labels, groups)
            row: dict[str, Any] = {"arm": arm.arm, "recall": recall, "low": low, "high": high, "against": against}
            row["seeds"] = len(hits)
            if against is not None:
                row["gain"] = interval(hits, labels, groups, self.hits[against][: len(hits)])
                row["kept"] = False
            self.trials[arm.arm] = arm
            rows.append(row)
        self.rows += rows
        return rows

    def _seeds(self) -> range:
        return range(FRESH, FRESH + self.options.seeds)

    @staticmethod
    def _keep(rows: list[dict[str, Any]], best: str) -> str:
        proven = [row for row in rows if row["gain"][1] > 0]
        if not proven:
            return best
        winner = max(proven, key=lambda row: row["gain"][0])
        winner["kept"] = True
        return str(winner["arm"])
