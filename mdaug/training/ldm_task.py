"""The latent diffusion model as the loop trains it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mdaug import augment, distributed
from mdaug import config as configuration
from mdaug.artifacts import load_geometry
from mdaug.images import grid, to_uint8
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.models.vqvae import load_vqvae
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import build_scheduler
from mdaug.training import conditions
from mdaug.training import ema_snapshots as snapshots
from mdaug.training.background_writer import Bundle
from mdaug.training.checkpoint import TrainingState
from mdaug.training.ema import EMA
from mdaug.training.encode import load_statistics
from mdaug.training.engine import Engine
from mdaug.training.latents import CopyOrder, LatentSet
from mdaug.training.loop import Task, validation_batches
from mdaug.training.objective import VALIDATION_SEED, Diffuse, Objective
from mdaug.training.options import LDMConfig
from mdaug.training.run_folder import BatchPlan
from mdaug.training.sampled_distance import SampledDistance
from mdaug.training.sharded_tensors import Reader
from mdaug.training.task_pictures import Neighbours
from shards import provenance
from shards.colormap import colormap, paint
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.order import PositionDataset


def build_unet(
    config: LDMConfig, latent_shape: list[int], num_classes: int, augmented: bool = False
) -> HybridUNet2DModel:
    """Return the untrained U-Net of a configuration; raises UserError where its sizes do not fit."""
    try:
        return HybridUNet2DModel(
            sample_size=latent_shape[1] if latent_shape[1] == latent_shape[2] else tuple(latent_shape[1:]),
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            num_heads=config.num_heads,
            window_size=config.window_size,
            num_classes=num_classes,
            attention=config.attention,
            dropout=config.dropout,
            norm_num_groups=config.norm_num_groups,
            num_conditions=len(config.condition_on),
            augment_size=augment.SIZE if augmented else 0,
        )
    except ValueError as error:
        raise UserError(f"the U-Net cannot be built: {error}") from None


def forward_flops(network: HybridUNet2DModel, shape: list[int]) -> int:
    """Count the FLOPs of one forward pass of one sample, without computing it."""
    meta = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(
            torch.empty(1, *shape, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
        )
    return counter.get_total_flops()


VALIDATION_DRAWS = 5  # (noise, timestep) pairs per validation image
BINS = 5  # equal parts of [0, T), little noise to much, whose validation loss is reported apart
PICTURES_PER_CLASS = 4


class LDMTask(Task):
    """Denoising loss on normalised latents; EMA weights validate, sample and are exported.

    The score is the geometric mean of the validation losses of the bins of t: between two validations it changes by
    the mean factor by which they change, so that no bin decides by the size of its loss. With `best_by` fd the score is
    the Fréchet distance of samples. Training goes on while the loss of any bin falls.
    """

    watched = tuple(f"loss_t{i}" for i in range(BINS))
    last_folder = "pipeline"

    def __init__(self, config: LDMConfig, packed: Path, vqvae: Path, latents: Path, made_from: dict[str, str]):
        self.config, self.packed = config, packed
        self.neighbours: Neighbours | None = None  # of the pictures; read when the first ones are made
        self.made_from = {**made_from, "latents": provenance.read(latents, "latents")["hash"]}
        told = conditions.read(packed, list(config.condition_on)) if config.condition_on else None
        self.conditions = told.for_pipeline() if told else None
        self.train_set = LatentSet(latents / "train", told.train if told else None)
        self.val_set = LatentSet(latents / "val", told.val if told else None)
        if len(self.val_set) == 0:
            raise UserError(f"{packed} has no validation images; pack it again with a larger --val_fraction")
        self.statistics, self.geometry = load_statistics(latents), load_geometry(vqvae)
        self.classes = self.train_set.classes
        self.diffuse = Diffuse(self.statistics["mean"], self.statistics["std"], config, len(self.classes))
        copies = self.train_set.copies if config.augment_probability > 0 else 0
        order = CopyOrder(self.train_set.num_images, config.seed, self.train_set.copies, config.augment_probability)
        self.dataset = PositionDataset(self.train_set, order, self.diffuse)
        torch.manual_seed(config.seed)
        shape = self.geometry["latent_shape"]
        network = build_unet(config, shape, len(self.classes), augmented=copies > 0)
        self.module = network
        self.ema = EMA(network, config.ema_half_life, config.ema_profiles)
        if config.ema_profiles and distributed.is_main():
            size = len(config.ema_profiles) * sum(parameter.numel() for parameter in network.parameters()) / 1e9
            print(
                f"averages sigma_rel {', '.join(self.ema.profiles)} for mdaug ema: "
                f"{4 * size / distributed.world_size():.2f} GB per device, and up to "
                f"{2 * size * (config.ema_snapshots + 1):.2f} GB on disk in {snapshots.FOLDER}/"
            )
        self.objective = Objective(config, distributed.device())
        self.vqvae = load_vqvae(vqvae)
        self.score, self.sampled = "score", None
        if config.best_by == "fd":
            images = ShardDataset(packed / "val")
            self.score, self.sampled = "fd", SampledDistance(images, config.fd_samples, VALIDATION_SEED)
        self.figures: dict[str, float] = {}  # of the last validation, for the model card
        self.flops_per_sample = 3 * forward_flops(network, shape)

    def compile(self) -> None:
        """Compile the U-Net as one graph; names and values of the weights stay, and so does the averaged copy."""
        # Its forward alone: `module.compile()` would trace the hooks that DeepSpeed hangs on the module as well.
        self.module.forward = torch.compile(self.module.forward, dynamic=False)

    def learning_rate(self, step: int, plan: BatchPlan) -> float:
        """Return the rate of linear warm-up and cosine decay to 0."""
        warmup = min(self.config.warmup_steps, plan.steps // 10)
        if step < warmup:
            return self.config.lr * (step + 1) / warmup
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, plan.steps - warmup)))

    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted mean squared error of the prediction."""
        return (self._errors(engine, batch) * self.objective.weight[batch["timestep"]]).mean(), {}

    def _errors(self, network: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return the squared error per sample, (B,), in fp32."""
        noised = self.objective.noised(batch["latent"], batch["noise"], batch["timestep"])
        told = {name: batch[name] for name in ("conditions", "augment") if name in batch}
        sample = noised.sample.contiguous(memory_format=torch.channels_last) if noised.sample.is_cuda else noised.sample
        prediction = network(sample, noised.time, batch["label"], **told).sample
        return functional.mse_loss(prediction.float(), noised.target, reduction="none").flatten(1).mean(1)

    def after_step(self, engine: Engine, state: TrainingState) -> None:
        """Let the averaged weights follow."""
        self.ema.update(engine, state.samples, state.global_batch)

    @torch.no_grad()
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return the unweighted loss of the averaged weights over fixed noise and timesteps: mean, by bin, score."""
        count = len(self.val_set)

        def sample(position: int) -> dict[str, Any]:
            return self.diffuse.validation(self.val_set[position % count], position)

        sums = torch.zeros(2, BINS, device=engine.device, dtype=torch.float64)
        with self.ema.network() as network:
            for batch, weight in validation_batches(sample, VALIDATION_DRAWS * count, self.config.batch_size):
                errors = self._errors(network, batch)
                bins = batch["timestep"] * BINS // self.config.num_train_timesteps
                sums.index_add_(1, bins, torch.stack([errors * weight, weight]).double())
        losses, counts = distributed.sum_over_ranks(sums)
        by_bin = losses / counts
        self.figures = {
            "loss": float(losses.sum() / counts.sum()),
            **dict(zip(self.watched, by_bin.tolist(), strict=True)),
            "score": float(by_bin.log().mean().exp()),
        }
        if self.sampled is not None:
            steps, batch_size = self.config.num_inference_steps, self.config.batch_size
            with self.ema.network() as network:
                pipeline = self.pipeline(network).to(engine.device)
                pipeline.set_progress_bar_config(disable=True)
                self.figures["fd"] = self.sampled.measure(pipeline, steps, batch_size)
            self.vqvae.to("cpu")
        return self.figures

    def image_step(self, step: int, plan: BatchPlan) -> bool:
        """Return whether `eval_steps` are over."""
        return step % self.config.eval_steps == 0

    def pipeline(self, network: torch.nn.Module) -> MicroDopplerPipeline:
        """Return the pipeline of a network with the averaged weights."""
        name, config = self.geometry.get("colormap"), self.config
        assert config.scheduler_type is not None  # chosen by LDMConfig
        return MicroDopplerPipeline(
            vqvae=self.vqvae,
            unet=network,
            scheduler=build_scheduler(
                config.scheduler_type,
                config.beta_schedule,
                config.prediction_type,
                config.num_train_timesteps,
                config.rescale_betas_zero_snr,
            ),
            classes=self.classes,
            latent_mean=self.statistics["mean"],
            latent_std=self.statistics["std"],
            latent_shape=self.geometry["latent_shape"],
            image_shape=self.geometry["image_shape"],
            conditions=self.conditions,
            floor=self.geometry.get("floor"),
            colormap=name and {"name": name, "palette": colormap(name).palette.tobytes().hex()},
        )

    def save_images(self, engine: Engine, state: TrainingState) -> dict[str, float]:
        """Write samples of the averaged weights to generated_images/, a row per class and beneath it the nearest
        training images with their distances; return the medians on rank 0, which samples alone.
        """
        with self.ema.network() as network:
            return self._save_grid(self.pipeline(network).to(engine.device), state) if distributed.is_main() else {}

    def _save_grid(self, pipeline: Any, state: TrainingState) -> dict[str, float]:
        pipeline.set_progress_bar_config(disable=True)
        labels = [label for label in range(len(self.classes)) for _ in range(PICTURES_PER_CLASS)]
        generators = [torch.Generator().manual_seed(VALIDATION_SEED + i) for i in range(len(labels))]
        images: list[np.ndarray] = []
        for start in range(0, len(labels), self.config.batch_size):
            part = slice(start, start + self.config.batch_size)
            result = pipeline(
                class_labels=labels[part],
                generator=generators[part],
                num_inference_steps=self.config.num_inference_steps,
                output_type="pt",
                conditions=self._conditions_of_pictures(part),
            )
            images += list(to_uint8(2 * result.images - 1))
        self.vqvae.to("cpu")

        self.neighbours = self.neighbours or Neighbours(self.packed)
        nearest, distances = self.neighbours.of(images)
        painted = [paint(image, self.geometry.get("colormap")) for image in images]
        rows, names, captions = [], [], []
        for label, name in enumerate(self.classes):
            part = slice(label * PICTURES_PER_CLASS, (label + 1) * PICTURES_PER_CLASS)
            rows += [painted[part], nearest[part]]
            names += [name, "nearest"]
            captions += [[], [f"{distance:.1f}" for distance in distances[part]]]
        folder = self.config.output_dir / "generated_images"
        folder.mkdir(exist_ok=True)
        Image.fromarray(grid(rows, names, captions=captions)).save(folder / f"samples-{state.samples:012d}.png")
        median, of_val = float(np.median(distances)), self.neighbours.val_distance
        return {"nearest_train": median, "nearest_train_of_val": of_val, "nearest_ratio": median / max(of_val, 1e-9)}

    def _conditions_of_pictures(self, part: slice) -> dict[str, list[float | None]]:
        """Return the conditions of some of the pictures: those of real training images of their class."""
        if self.conditions is None:
            return {}
        names, values = self.conditions["names"], self.conditions["values"]
        rows = [
            values[name][i * len(values[name]) // PICTURES_PER_CLASS]
            for name in self.classes
            for i in range(PICTURES_PER_CLASS)
        ]
        return {name: [row[column] for row in rows[part]] for column, name in enumerate(names)}

    def export(self, engine: Engine, folder: Path) -> None:
        """Write the pipeline of the averaged weights."""
        with self.ema.network() as network:
            if distributed.is_main():
                save_pipeline(
                    self.pipeline(network),
                    folder,
                    made_from=self.made_from,
                    config=configuration.as_dict(self.config),
                    metrics=self.figures,
                )
        distributed.barrier()

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Return nothing: the averages are cut over the ranks."""
        return {}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Do nothing."""

    def own_state(self) -> dict[str, torch.Tensor]:
        """Return this rank's pieces of the averages."""
        return self.ema.state()

    def load_own_state(self, reader: Reader) -> None:
        """Restore them."""
        self.ema.load(reader)

    def snapshots(self, state: TrainingState, plan: BatchPlan, last: bool) -> list[Callable[[], Bundle]]:
        """Return what copies the power-function averages, where a snapshot is due."""
        keep = self.config.ema_snapshots
        if not self.ema.profiles or not (last or snapshots.due(state.samples, plan, keep)):
            return []
        parent = self.config.output_dir / snapshots.FOLDER
        return [partial(snapshots.collect, parent, self.ema, state, plan, keep)]
