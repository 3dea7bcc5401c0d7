"""What is particular to training the diffusion model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mdaug import config as configuration
from mdaug.images import grid
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.models.vqvae import load_geometry, load_vqvae
from mdaug.sampling.pipeline import MicroDopplerPipeline
from mdaug.sampling.pipeline_folder import save_pipeline
from mdaug.sampling.schedulers import build_scheduler
from mdaug.training import distributed
from mdaug.training.checkpoint import TrainingState
from mdaug.training.ema import EMA
from mdaug.training.encode import load_statistics
from mdaug.training.engine import Engine
from mdaug.training.ldm import LDMConfig
from mdaug.training.loop import Task
from mdaug.training.run import BatchPlan
from mdaug.training.validation import validation_batches
from shards import provenance
from shards.colormap import colormap
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.order import (
    STREAM_LABEL_DROP,
    STREAM_NOISE,
    STREAM_TIMESTEP,
    EpochOrder,
    PositionDataset,
    random_at,
)

VALIDATION_SEED = 20_000_003  # validation noise is the same in every run, whatever its seed
VALIDATION_DRAWS = 4  # (noise, timestep) pairs per validation image
PICTURES_PER_CLASS = 4


class Diffuse:
    """Latent of a position -> network input and target ingredients; travels to the data loading workers.

    Noise, timestep and label drop come from (seed, position) alone.
    """

    def __init__(self, mean: list[float], std: list[float], config: LDMConfig, num_classes: int):
        self.mean = np.asarray(mean, dtype=np.float32)[:, None, None]
        self.std = np.asarray(std, dtype=np.float32)[:, None, None]
        self.seed, self.timesteps = config.seed, config.num_train_timesteps
        self.label_dropout, self.null_label = config.label_dropout, num_classes

    def __call__(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return {"latent": normalised, "noise", "timestep", "label"} of a training position."""
        dropped = random_at(self.seed, STREAM_LABEL_DROP, position).random() < self.label_dropout
        timestep = int(random_at(self.seed, STREAM_TIMESTEP, position).integers(self.timesteps))
        return self._item(sample, self.seed, position, timestep, self.null_label if dropped else sample["label"])

    def validation(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return the same with fixed noise and timesteps spread evenly over [0, T), and the label kept."""
        golden = (math.sqrt(5) - 1) / 2  # multiples of the golden ratio modulo 1 fill the interval evenly
        timestep = int((position * golden % 1) * self.timesteps)
        return self._item(sample, VALIDATION_SEED, position, timestep, sample["label"])

    def _item(self, sample: dict[str, Any], seed: int, position: int, timestep: int, label: int) -> dict[str, Any]:
        latent = (sample["array"] - self.mean) / self.std
        noise = random_at(seed, STREAM_NOISE, position).standard_normal(latent.shape, dtype=np.float32)
        return {"latent": latent, "noise": noise, "timestep": timestep, "label": label}


class LDMTask(Task):
    """Denoising loss on normalised latents; EMA weights validate, sample and are exported."""

    score = "loss"
    last_folder = "pipeline"

    def __init__(self, config: LDMConfig, packed: Path, vqvae: Path, latents: Path, made_from: dict[str, str]):
        self.config = config
        self.made_from = {**made_from, "latents": provenance.read(latents, "latents")["hash"]}
        self.train_set = ShardDataset(latents / "train", fields=("array",))
        self.val_set = ShardDataset(latents / "val", fields=("array",))
        if len(self.val_set) == 0:
            raise UserError(f"{packed} has no validation images; pack it again with a larger --val_fraction")
        self.statistics, self.geometry = load_statistics(latents), load_geometry(vqvae)
        self.classes = self.train_set.classes
        self.diffuse = Diffuse(self.statistics["mean"], self.statistics["std"], config, len(self.classes))
        self.dataset = PositionDataset(self.train_set, EpochOrder(len(self.train_set), config.seed), self.diffuse)
        torch.manual_seed(config.seed)
        shape = self.geometry["latent_shape"]
        try:
            network = HybridUNet2DModel(
                sample_size=shape[1] if shape[1] == shape[2] else tuple(shape[1:]),
                in_channels=shape[0],
                out_channels=shape[0],
                block_out_channels=tuple(config.block_out_channels),
                layers_per_block=config.layers_per_block,
                num_heads=config.num_heads,
                window_size=config.window_size,
                num_classes=len(self.classes),
                attention=config.attention,
                dropout=config.dropout,
                norm_num_groups=config.norm_num_groups,
            )
        except ValueError as error:
            raise UserError(f"the U-Net cannot be built: {error}") from None
        self.module = network
        self.ema = EMA(network, config.ema_half_life)
        self.ema.module.to(distributed.device())
        scheduler = self._scheduler("ddpm")
        self.alphas = scheduler.alphas_cumprod.to(distributed.device())
        self.vqvae = load_vqvae(vqvae)
        self.figures: dict[str, float] = {}  # of the last validation, for the model card
        self.flops_per_sample = 3 * _forward_flops(network, shape)

    def _scheduler(self, scheduler_type: str) -> Any:
        config = self.config
        return build_scheduler(
            scheduler_type, config.beta_schedule, config.prediction_type, num_train_timesteps=config.num_train_timesteps
        )

    def learning_rate(self, step: int, plan: BatchPlan) -> float:
        """Return the rate of linear warm-up and cosine decay to 0."""
        warmup = min(self.config.warmup_steps, plan.steps // 10)
        if step < warmup:
            return self.config.lr * (step + 1) / warmup
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, plan.steps - warmup)))

    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean squared error of the prediction."""
        return self._errors(engine, batch).mean(), {}

    def _errors(self, network: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return the squared error per sample, (B,), in fp32.

        x_t = a x_0 + s n with a^2 = alpha_bar_t and s^2 = 1 - a^2 (Ho et al. 2020, eq. 4);
        v = a n - s x_0 (Salimans and Ho 2022, appendix D).
        """
        alpha = self.alphas[batch["timestep"]].view(-1, 1, 1, 1)
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        latent, noise = batch["latent"], batch["noise"]
        prediction = network(signal * latent + sigma * noise, batch["timestep"], batch["label"]).sample
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * latent,
            "sample": latent,
        }[self.config.prediction_type]
        return functional.mse_loss(prediction.float(), target, reduction="none").flatten(1).mean(1)

    def after_step(self, engine: Engine, state: TrainingState) -> None:
        """Let the averaged weights follow."""
        self.ema.update(engine, state.samples, state.global_batch)

    @torch.no_grad()
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return the loss of the averaged weights over fixed noise and timesteps."""
        count = len(self.val_set)

        def sample(position: int) -> dict[str, Any]:
            return self.diffuse.validation(self.val_set[position % count], position)

        sums = torch.zeros(2, device=engine.device, dtype=torch.float64)
        for batch, weight in validation_batches(sample, VALIDATION_DRAWS * count, self.config.batch_size):
            errors = self._errors(self.ema.module, batch)
            sums += torch.stack([(errors * weight).sum(), weight.sum()]).double()
        distributed.sum_over_ranks(sums)
        self.figures = {"loss": float(sums[0] / sums[1])}
        return self.figures

    def image_step(self, step: int, plan: BatchPlan) -> bool:
        """Return whether `eval_steps` are over."""
        return step % self.config.eval_steps == 0

    def pipeline(self) -> MicroDopplerPipeline:
        """Return the pipeline of the averaged weights."""
        name = self.geometry.get("colormap")
        return MicroDopplerPipeline(
            vqvae=self.vqvae,
            unet=self.ema.module,
            scheduler=self._scheduler(self.config.scheduler_type),
            classes=self.classes,
            latent_mean=self.statistics["mean"],
            latent_std=self.statistics["std"],
            latent_shape=self.geometry["latent_shape"],
            image_shape=self.geometry["image_shape"],
            colormap=name and {"name": name, "palette": colormap(name).palette.tobytes().hex()},
        )

    def save_images(self, engine: Engine, state: TrainingState) -> None:
        """Write a grid of samples to generated_images/, one row per class; rank 0 alone, its EMA copy is whole."""
        if not distributed.is_main():
            return
        pipeline = self.pipeline().to(engine.device)
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
                output_type="pil",
            )
            images += [np.atleast_3d(np.asarray(image)) for image in result.images]
        rows = [images[i : i + PICTURES_PER_CLASS] for i in range(0, len(images), PICTURES_PER_CLASS)]
        folder = self.config.output_dir / "generated_images"
        folder.mkdir(exist_ok=True)
        Image.fromarray(grid(rows, self.classes)).save(folder / f"samples-{state.samples:012d}.png")
        self.vqvae.to("cpu")

    def export(self, engine: Engine, folder: Path) -> None:
        """Write the pipeline of the averaged weights."""
        if distributed.is_main():
            save_pipeline(
                self.pipeline(),
                folder,
                made_from=self.made_from,
                config=configuration.as_dict(self.config),
                metrics=self.figures,
            )
        distributed.barrier()

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights."""
        return {name: value.cpu() for name, value in self.ema.module.state_dict().items()}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore them."""
        self.ema.module.load_state_dict(tensors)


def _forward_flops(network: HybridUNet2DModel, shape: list[int]) -> int:
    """Count the FLOPs of one forward pass of one sample, without computing it."""
    import copy

    meta = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(
            torch.empty(1, *shape, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
        )
    return counter.get_total_flops()
