"""The latent diffusion model as the loop trains it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import ConcatDataset

from mdaug import augment, distributed
from mdaug import config as configuration
from mdaug.artifacts import load_geometry
from mdaug.models import norms
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.models.vqvae import load_vqvae
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import build_scheduler
from mdaug.training import auxiliary, conditions
from mdaug.training import ema_snapshots as snapshots
from mdaug.training.background_writer import Bundle
from mdaug.training.batches import BatchPlan
from mdaug.training.checkpoint import TrainingState
from mdaug.training.cost import Workload
from mdaug.training.ema import EMA
from mdaug.training.encode import load_statistics
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.initial import start_unet
from mdaug.training.latents import CopyOrder, LatentSet
from mdaug.training.loaders import VALIDATION_SAMPLES, validation_batches
from mdaug.training.objective import VALIDATION_SEED, Diffuse, Noised, Objective
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.run_folder import LAST_FOLDERS
from mdaug.training.sampled_distance import SampledDistance
from mdaug.training.sharded_tensors import Reader
from mdaug.training.task import Task
from mdaug.training.task_pictures import PICTURES_PER_CLASS, SamplePictures
from mdaug.training.workload import unet_workload
from shards import provenance
from shards.colormap import colormap
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import read_index
from shards.order import PositionDataset


def build_unet(
    config: LDMConfig, latent_shape: list[int], num_classes: int, augmented: bool = False
) -> HybridUNet2DModel:
    """Return the untrained U-Net of a configuration; raises UserError where its sizes do not fit."""
    try:
        unet = HybridUNet2DModel(
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
    norms.use_working_precision(unet)
    return unet


def check_before_latents(
    config: LDMConfig,
    packed: Path,
    latent_shape: list[int],
    others: Sequence[Path] = (),
    known: list[str] | None = None,
) -> None:
    """Raise UserError for what `LDMTask` would refuse, as far as that shows without latents.

    Args:
        config: options of the network.
        packed: the packed target images.
        latent_shape: [c, h, w].
        others: the auxiliary folders.
        known: the classes that the model must have; None for any.
    """
    if read_index(packed / "val")["nsamples"] == 0:
        raise UserError(NO_VALIDATION.format(packed))
    if config.condition_on:
        conditions.read(packed, list(config.condition_on))
    classes: list[str] = read_index(packed / "train")["classes"]
    further, _ = auxiliary.name_classes(config, classes, others)
    if known is not None and known != [*classes, *further]:
        raise UserError(
            f"the model knows the classes {', '.join(known)}, and the images have {', '.join([*classes, *further])}; "
            "give data_dir and aux_dir that it was trained on"
        )
    with torch.device("meta"):
        build_unet(config, latent_shape, len(classes) + len(further))


NO_VALIDATION = "{} has no validation images; pack it again with a larger --val_fraction"
VALIDATION_DRAWS = 5  # (noise, timestep) pairs per validation image
BINS = 5  # equal parts of [0, T), little noise to much, whose validation loss is reported apart


class LDMTask(Task):
    """Denoising loss on normalised latents; EMA weights validate, sample and are exported.

    The score is the geometric mean of the validation losses of the bins of t: between two validations it changes by
    the mean factor by which they change, so that no bin decides by the size of its loss. With `best_by` fd the score is
    the Fréchet distance of samples. Training goes on while the loss of any bin falls.
    """

    watched = tuple(f"loss_t{i}" for i in range(BINS))
    last_folder = LAST_FOLDERS["train-ldm"]
    ema_warmup = 0.05  # of the samples seen: the longest half-life, so that the first weights are forgotten

    def __init__(
        self,
        config: LDMConfig,
        packed: Path,
        vqvae: Path,
        latents: Path,
        made_from: Mapping[str, str | None],
        others: Sequence[tuple[Path, Path]] = (),
    ):
        """Build what is trained; `others` are (folder, latents) of the auxiliary sets, see `auxiliary.open_sets`."""
        self.config = config
        given = {role: content for role, content in made_from.items() if content is not None}
        self.made_from = {**given, "latents": provenance.read(latents, "latents")["hash"]}

        # The latents, and the conditions that are shown with them.
        columns = conditions.read(packed, list(config.condition_on)) if config.condition_on else None
        self.train_set = LatentSet(latents / "train", columns.train if columns else None)
        self.val_set = LatentSet(latents / "val", columns.val if columns else None)
        if len(self.val_set) == 0:
            raise UserError(NO_VALIDATION.format(packed))
        self.statistics, self.geometry = load_statistics(latents), load_geometry(vqvae)
        self.latent_shape: list[int] = self.geometry["latent_shape"]

        # The auxiliary ones, whose classes come behind those of the target.
        self.auxiliary, places = auxiliary.name_classes(config, self.train_set.classes, [made for _, made in others])
        self.classes = [*self.train_set.classes, *self.auxiliary]
        sets = [self.train_set, *self._auxiliary_sets(others, places, columns)]
        self.conditions = columns.for_pipeline() if columns else None
        has_copies = any(each.copies > 0 for each in sets)
        for each in sets:
            if each.index["latent_shape"] != self.latent_shape:
                raise UserError(f"{each.folder} holds latents {each.index['latent_shape']}, not {self.latent_shape}")
            each.augmented = has_copies  # samples of one batch hold the same fields

        # Position -> training sample: which latent, at which timestep, with which noise.
        own, *further = [each.labels[:: 1 + each.copies] for each in sets]
        order = CopyOrder(
            auxiliary.order_of(
                config,
                own,
                np.concatenate([np.empty(0, np.int64), *further]),
                self.train_set.counts,
                [count for each in sets[1:] for count in each.counts],
            ),
            [(each.num_images, each.copies) for each in sets],
            config.seed,
            config.augment_probability,
        )
        self.epoch = order.num_samples
        self.diffuse = self._diffuse()
        self.dataset = PositionDataset(ConcatDataset(sets), order, self.diffuse)

        # The network, its averages, and what it learns.
        torch.manual_seed(config.seed)
        self.module = build_unet(
            config, self.latent_shape, len(self.classes), has_copies and config.augment_probability > 0
        )
        if config.init_from is not None:
            start_unet(config.init_from, self.module, config, self.classes, self.latent_shape, made_from.get("vqvae"))
        self.ema = EMA(self.module, config.ema_half_life, config.ema_profiles, self.ema_warmup)
        self.objective = Objective(config, distributed.device())
        self.flops_per_sample = self.workload(1).flops_per_sample
        self._print_size_of_averages()

        # What validates and shows it: samples need the VQ-VAE.
        self.vqvae = load_vqvae(vqvae)
        self.score, self.sampled = "score", None
        if config.best_by == "fd":
            images = ShardDataset(packed / "val")
            self.score, self.sampled = "fd", SampledDistance(images, config.fd_samples, VALIDATION_SEED)
        self.pictures = SamplePictures(packed, self.train_set.classes, self.conditions, self.geometry.get("colormap"))
        self.figures: dict[str, float] = {}  # of the last validation, for the model card
        # What the provenance of a pipeline has beside the options.
        self.about: dict[str, Any] = {"auxiliary_classes": self.auxiliary} if self.auxiliary else {}

    def _diffuse(self) -> Diffuse:
        """Return what turns the latent of a position into a training sample."""
        return Diffuse(self.statistics["mean"], self.statistics["std"], self.config, len(self.classes))

    def _auxiliary_sets(
        self, others: Sequence[tuple[Path, Path]], places: Sequence[np.ndarray], columns: conditions.Conditions | None
    ) -> list[LatentSet]:
        """Return the auxiliary latents under their labels in the model, and add joint conditions of their classes."""
        sets: list[LatentSet] = []
        told: dict[str, list[np.ndarray]] = {name: [] for name in self.auxiliary}
        for (folder, latents), place in zip(others, places, strict=True):
            labels = np.where(place == auxiliary.NO_CLASS, len(self.classes), place)
            for split in auxiliary.splits(latents):
                images = LatentSet(split, labels=labels)
                if columns is not None:
                    packed = None if folder == latents else folder
                    images.conditions = columns.of_auxiliary(packed, split.name, images.num_images)
                    for label, name in enumerate(self.auxiliary, len(self.train_set.classes)):
                        told[name].append(images.conditions.raw[images.labels[:: 1 + images.copies] == label])
                sets.append(images)
        if columns is not None:
            columns.values.update({name: conditions.joint(np.concatenate(rows)) for name, rows in told.items()})
        return sets

    def _print_size_of_averages(self) -> None:
        config, parameters = self.config, sum(parameter.numel() for parameter in self.module.parameters())
        if config.ema_profiles and distributed.is_main():
            size = len(config.ema_profiles) * parameters / 1e9
            print(
                f"averages sigma_rel {', '.join(self.ema.profiles)} for mdaug ema: "
                f"{4 * size / distributed.world_size():.2f} GB per device, and up to "
                f"{2 * size * (config.ema_snapshots + 1):.2f} GB on disk in {snapshots.FOLDER}/"
            )

    def workload(self, batch: int) -> Workload:
        """Count what micro batches of `batch` latents take."""
        precision = resolve_precision(self.config.mixed_precision, distributed.device())
        averages = 1 + len(self.config.ema_profiles)
        return unet_workload(self.module, self.latent_shape, batch, precision, averages)

    def rehearse(self, batch: int) -> None:
        """Run a forward and a backward pass of `batch` latents without data, which leave no trace."""
        device = distributed.device()
        module = self.module.to(device)
        latents = torch.zeros(batch, *self.latent_shape, device=device)
        number = torch.zeros(batch, dtype=torch.long, device=device)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                with distributed.autocast(resolve_precision(self.config.mixed_precision, device), device):
                    prediction = module(latents, number, number).sample
                prediction.float().square().mean().backward()
        finally:
            module.zero_grad(set_to_none=True)

    def compile(self) -> None:
        """Compile the U-Net as one graph; names and values of the weights stay, and so does the averaged copy."""
        # Its forward alone: `module.compile()` would trace the hooks that DeepSpeed hangs on the module as well.
        self.module.forward = torch.compile(self.module.forward, dynamic=False)

    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted mean squared error of the prediction."""
        return (self._errors(engine, batch) * self.objective.weight[batch["timestep"]]).mean(), {}

    def _errors(self, network: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return the squared error per sample, (B,), in fp32."""
        noised = self.objective.noised(batch["latent"], batch["noise"], batch["timestep"])
        target = self._target(network, batch, noised)
        prediction = self._predict(network, batch, noised)
        return functional.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)

    def _target(self, network: Any, batch: dict[str, Any], noised: Noised) -> torch.Tensor:
        """Return what the network should predict, (B, C, h, w)."""
        return noised.target

    def _predict(self, network: Any, batch: dict[str, Any], noised: Noised) -> torch.Tensor:
        """Return what the network predicts, in fp32."""
        extra = {name: batch[name] for name in ("conditions", "augment") if name in batch}
        sample = noised.sample.contiguous(memory_format=distributed.memory_format())
        return network(sample, noised.time, batch["label"], **extra).sample.float()

    def after_step(self, engine: Engine, state: TrainingState) -> None:
        """Let the averaged weights follow, every few steps."""
        if self.ema.due(state.samples, state.averaged, state.global_batch):
            self.follow(engine, state)

    def follow(self, engine: Engine, state: TrainingState) -> None:
        """Bring the averaged weights up to this step."""
        if state.averaged < state.samples:
            self.ema.update(engine, state.samples, state.samples - state.averaged)
            state.averaged = state.samples

    @torch.no_grad()
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return the unweighted loss of the averaged weights over fixed noise and timesteps: mean, by bin, score."""
        draws = self._draws()
        batches = validation_batches(
            partial(_validation_sample, self.val_set, self.diffuse, draws), draws, self.config, self.stopped
        )
        sums = torch.zeros(2, BINS, device=engine.device, dtype=torch.float64)
        with self.ema.network() as network, self._precision():
            for batch, weight in batches:
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
            self.figures["fd"] = self._distance(engine, self.sampled)
        return self.figures

    def _distance(self, engine: Engine, sampled: SampledDistance) -> float:
        """Return the Fréchet distance of samples of the averaged weights."""
        steps, batch_size = self.config.num_inference_steps, int(self.config.batch_size)
        with self.ema.network() as network, self._precision():
            pipeline = self.pipeline(network).to(engine.device)
            pipeline.set_progress_bar_config(disable=True)
            distance = sampled.measure(pipeline, steps, batch_size)
        self.vqvae.to("cpu")
        return distance

    def _precision(self) -> torch.autocast:
        """Return the context in which the averaged network works as the trained one does."""
        device = distributed.device()
        return distributed.autocast(resolve_precision(self.config.mixed_precision, device), device)

    def validation_passes(self) -> int:
        """Return the latents that a validation denoises: those of the loss, of the pictures and of best_by fd."""
        config, passes = self.config, self._draws()
        if config.save_images:  # on the first rank alone, for which the others wait
            passes += distributed.world_size() * PICTURES_PER_CLASS * len(self.classes) * config.num_inference_steps
        return passes + (config.fd_samples * config.num_inference_steps if self.sampled is not None else 0)

    def _draws(self) -> int:
        """Return the (image, noise, timestep) draws whose loss a validation takes."""
        return min(VALIDATION_DRAWS * len(self.val_set), VALIDATION_SAMPLES)

    def image_step(self, step: int, plan: BatchPlan) -> bool:
        """Return whether `eval_steps` are over."""
        return step % self.config.eval_steps == 0

    def pipeline(self, network: torch.nn.Module) -> MicroDopplerPipeline:
        """Return the pipeline of a network with the averaged weights."""
        name, config = self.geometry.get("colormap"), self.config
        return MicroDopplerPipeline(
            vqvae=self.vqvae,
            unet=network,
            scheduler=build_scheduler(
                config.sampler,
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
            auxiliary=self.auxiliary or None,
            floor=self.geometry.get("floor"),
            colormap=name and {"name": name, "palette": colormap(name).palette.tobytes().hex()},
        )

    def save_images(self, engine: Engine, state: TrainingState) -> dict[str, float]:
        """Write samples of the averaged weights to generated_images/, a row per class and beneath it the nearest
        training images with their distances; return the medians on rank 0, which samples alone.
        """
        with self.ema.network() as network, self._precision():
            if not distributed.is_main():
                return {}
            path = self.config.output_dir / "generated_images" / f"samples-{state.samples:012d}.png"
            pipeline = self.pipeline(network).to(engine.device)
            figures = self.pictures.save(path, pipeline, self.config.num_inference_steps, int(self.config.batch_size))
            self.vqvae.to("cpu")
            return figures

    def exporter(self, engine: Engine) -> Callable[[Path], object]:
        """Copy the pipeline of the averaged weights, and return what writes it on rank 0."""
        with self.ema.network() as network:
            copied = copy.deepcopy(self.pipeline(network)).to("cpu") if distributed.is_main() else None
        if copied is not None:  # files want the plain layout
            copied.unet.to(memory_format=torch.contiguous_format)
        return partial(
            save_pipeline,
            copied,
            made_from=self.made_from,
            config=configuration.as_dict(self.config) | self.about,
            metrics=dict(self.figures),
        )

    def sharded_state(self) -> dict[str, torch.Tensor]:
        """Return this rank's shards of the averages."""
        return self.ema.state()

    def load_sharded_state(self, reader: Reader) -> None:
        """Restore them."""
        self.ema.load(reader)

    def snapshots(
        self, engine: Engine, state: TrainingState, plan: BatchPlan, last: bool
    ) -> list[Callable[[], Bundle]]:
        """Return functions that copy the power-function averages, where a snapshot is due."""
        keep = self.config.ema_snapshots
        if not self.ema.profiles or not (last or snapshots.due(state.samples, plan, keep)):
            return []
        self.follow(engine, state)
        parent = self.config.output_dir / snapshots.FOLDER
        return [partial(snapshots.collect, parent, self.ema, state, plan, keep)]


def _validation_sample(images: LatentSet, diffuse: Diffuse, draws: int, position: int) -> dict[str, Any]:
    """Return one of the draws of a validation: all images in turn or, of more images than draws, some evenly."""
    image = position * len(images) // draws if len(images) > draws else position % len(images)
    return diffuse.validation(images[image], position)
