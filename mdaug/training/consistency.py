"""Consistency tuning: a trained denoiser becomes a network that maps noise of any level to a sample in one call.

After Geng et al., "Consistency Models Made Easy" (ECT, arXiv 2406.14548). Time is the share of the noise schedule,
t = (k + 1) / T for timestep k. A latent x_0 and one noise n give two noisy latents, x_t and the less noisy x_r, and the
network's estimate f of the latent is to be the same at both:

    f(x_t, t)  ~  stop_gradient(f(x_r, r)),    r / t = 1 - 2^-s in stage s,    f(x_0, 0) = x_0

f is the estimate that the pretrained network makes of x_0, whatever it predicts (`Objective.denoised`), so the first
output is the teacher's. For v_prediction and flow matching it is a x - s v and x - t v, which is x_0 itself where no
noise is left: no further scaling is needed. In stage 0 r would be 0 and the loss that of the pretraining; the stages
begin at 1, and their last one has the smallest gap. No second network runs: the target is the student's own.

The loss compares what the network predicts at x_t with what it should predict there for f to be that estimate. So an
error of x_0 is weighed as in the pretraining, by |p - q a / s| (`objective.py`), 1 / s for v_prediction, and by the
min-SNR weight of the pretraining. With d^2 the mean squared difference of a sample the loss is pseudo-Huber,
sqrt(d^2 + c^2) - c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mdaug import distributed
from mdaug.artifacts import find_pipeline
from mdaug.pipeline import schedulers
from mdaug.training.engine import Engine
from mdaug.training.ldm_task import LDMTask
from mdaug.training.objective import Diffuse, Noised
from mdaug.training.options_ldm import DistilConfig, LDMConfig
from mdaug.training.run_folder import LAST_FOLDERS
from shards.errors import UserError

CLEAN = -1  # in the place of a timestep: no noise at all
PASSES = 4 / 3  # a training pass counts three forward passes; the target is a fourth


def earlier(timestep: int, stage: int) -> int:
    """Return the timestep at 1 - 2^-stage of the share of the schedule, rounded down, or CLEAN below the first one."""
    return timestep - -(-(timestep + 1) // 2**stage)


class Pairs(Diffuse):
    """Adds to a training position the less noisy timestep ("earlier") that it is compared with.

    Args:
        mean, std, config, num_classes: as for `Diffuse`.
        stages: number of stages.
        total: positions of the run.
    """

    def __init__(
        self, mean: list[float], std: list[float], config: LDMConfig, num_classes: int, stages: int, total: int
    ):
        super().__init__(mean, std, config, num_classes)
        self.stages, self.total = stages, total

    def stage(self, position: int) -> int:
        """Return the stage of a position, from 1 on."""
        return min(1 + position * self.stages // self.total, self.stages)

    def __call__(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return what `Diffuse` does, and "earlier"."""
        item = super().__call__(sample, position)
        return {**item, "earlier": earlier(item["timestep"], self.stage(position))}


def denoiser_options(options: DistilConfig) -> LDMConfig:
    """Return the options of the network that is distilled: its own, as its pipeline names them, and those of the run.

    Raises UserError for a pipeline that cannot be distilled.
    """
    made = find_pipeline(options.ldm_path)[1]["config"]
    of_run = {field.name for field in dataclasses.fields(DistilConfig)}
    values: dict[str, Any] = {
        field.name: getattr(options, field.name) if field.name in of_run else made[field.name]
        for field in dataclasses.fields(LDMConfig)
        if field.name in of_run or field.name in made
    }
    values |= {"init_from": options.ldm_path, "best_by": "fd", "ema_profiles": (), "scheduler_type": schedulers.LCM}
    try:
        return LDMConfig(**values)
    except ValueError as error:
        raise UserError(f"{options.ldm_path} cannot be distilled: {error}") from None


class ConsistencyTask(LDMTask):
    """A pipeline that learns to sample in few calls; the Fréchet distance of such samples decides best/.

    Losses of two stages do not compare, and a small one does not mean good samples, so none is taken at a validation.
    """

    watched = ()
    last_folder = LAST_FOLDERS["distil"]

    def __init__(
        self,
        options: DistilConfig,
        packed: Path,
        vqvae: Path,
        latents: Path,
        made_from: Mapping[str, str | None],
        others: Sequence[tuple[Path, Path]] = (),
    ):
        """Build what is trained; arguments but the options are those of `LDMTask`."""
        self.options = options
        super().__init__(denoiser_options(options), packed, vqvae, latents, made_from, others)
        assert self.flops_per_sample is not None
        self.flops_per_sample *= PASSES
        self.about |= {"gap_stages": options.gap_stages, "huber": options.huber}

    def _diffuse(self) -> Diffuse:
        total = self.options.train_samples or self.options.epochs * self.epoch
        mean, std = self.statistics["mean"], self.statistics["std"]
        return Pairs(mean, std, self.config, len(self.classes), self.options.gap_stages, total)

    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean pseudo-Huber distance."""
        squared = self._errors(engine, batch) * self.objective.weight[batch["timestep"]]
        return ((squared + self.options.huber**2).sqrt() - self.options.huber).mean(), {}

    @torch.no_grad()
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return the Fréchet distance of samples in few calls to the validation images."""
        assert self.sampled is not None
        self.figures = {"fd": self._distance(engine, self.sampled)}
        return self.figures

    def _draws(self) -> int:
        return 0

    def _target(self, network: Any, batch: dict[str, Any], noised: Noised) -> torch.Tensor:
        """Return what the network should predict for its estimate to be the one it makes at the earlier timestep."""
        timestep = batch["earlier"].clamp(min=0)
        before = self.objective.noised(batch["latent"], batch["noise"], timestep)
        device = distributed.device()
        # The same dropout as in the pass that is trained.
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            prediction = self._predict(network, batch, before)
        estimate = self.objective.denoised(prediction, before.sample, timestep)
        clean = (batch["earlier"] == CLEAN).view(-1, 1, 1, 1)
        return self.objective.target_of(torch.where(clean, batch["latent"], estimate), noised.sample, batch["timestep"])
