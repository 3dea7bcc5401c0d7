"""The VQ-VAE as the loop trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from mdaug import config as configuration
from mdaug import distributed
from mdaug.images import channels_first, in_range
from mdaug.models import norms
from mdaug.models.perceptual import PerceptualLoss
from mdaug.models.quantizer import Codebook, code_usage
from mdaug.models.vqvae import TrainableVQVAE, build_vqvae, save_vqvae, stock_model
from mdaug.training import losses
from mdaug.training.adversary import Adversary
from mdaug.training.auxiliary import label_apart, order_of, splits
from mdaug.training.checkpoint import TrainingState
from mdaug.training.cost import Workload
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.initial import start_vqvae
from mdaug.training.loaders import VALIDATION_SAMPLES, validation_batches
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.run_folder import LAST_FOLDERS
from mdaug.training.task import Task
from mdaug.training.task_pictures import save_reconstructions
from mdaug.training.workload import vqvae_workload
from shards.colormap import floor_of
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.order import PositionDataset

START_IMAGES, START_BATCH = 256, 16  # images whose encoder outputs place the first codes, and how many go at once
LOW_USE = 0.3  # share of the codes below which their use is warned about
PICTURES = 8  # pairs in a picture of reconstructions


def build_module(config: VQVAEConfig, image_channels: int) -> tuple[TrainableVQVAE, dict[str, Any]]:
    """Return the untrained network of a configuration and the configuration of its VQModel."""
    model = build_vqvae(
        image_channels=image_channels,
        latent_channels=config.latent_channels,
        num_codes=config.vq_num_embed,
        n_layers=config.n_layers,
        base_channels=config.base_channels,
    )
    norms.use_working_precision(model)
    codebook = Codebook(
        config.vq_num_embed,
        config.vq_embed_dim,
        commitment=config.commitment,
        decay=config.codebook_decay,
        gradient=config.codebook_gradient,
    )
    return TrainableVQVAE(model, codebook), dict(model.config)


def perceptual_precision(config: VQVAEConfig, precision: str) -> str:
    """Return the precision of LPIPS: fp16 wants the loss scale, which gradients for the adversarial weight lack."""
    return "no" if precision == "fp16" and config.use_discriminator else precision


def remedies(codebook: Codebook, counts: torch.Tensor, steps: int) -> list[str]:
    """Return what may help where few codes are used, the most promising first.

    Args:
        codebook: the K codes and how it restarts them.
        counts: how many latent pixels of the validation set chose each code, (K,).
        steps: optimizer steps done.
    """
    perplexity, used = code_usage(counts)
    count = round(used * len(counts))
    shrink = f"a smaller --vq_num_embed ({max(8, 2 * count)})"
    restart = f"a --codebook_decay below {codebook.decay:g}, which restarts unused codes sooner"
    data = "more varied data"
    if counts.sum() < len(counts):  # there is not a latent pixel for every code
        return [shrink, data, restart]
    if codebook.decay**steps >= codebook.dead_below:  # so far no code can have fallen low enough to be restarted
        return [restart, shrink, data]
    if perplexity < count / 2:  # a few of the used codes stand for nearly everything, such as the floor
        return [data, shrink, restart]
    return [shrink, data, restart]


class VQVAETask(Task):
    """Distance of the reconstruction, commitment, optionally a discriminator; the codes follow by EMA.

    The distance of an image is L1 or L2 plus, weighted, LPIPS, the strength of edges, the error above the floor and
    that of the Doppler profiles; its mean over the validation set is the score.
    """

    score = "loss"
    last_folder = LAST_FOLDERS["train-vqvae"]

    def __init__(
        self, config: VQVAEConfig, packed: Path, made_from: dict[str, str | None], auxiliary: Sequence[Path] = ()
    ):
        self.config, self.made_from = config, made_from
        self.steps = 0

        # The images, and what they look like where nothing echoes.
        self.train_set, self.val_set = ShardDataset(packed / "train"), ShardDataset(packed / "val")
        if len(self.val_set) == 0:
            raise UserError(f"{packed} has no validation images; pack it again with a larger --val_fraction")
        self.image_shape: list[int] = self.train_set.index["image_shape"]
        self.colormap: str | None = self.train_set.index.get("colormap")
        self.floor = floor_of(self.train_set)
        self.floor_in_range = losses.floor_in_range(self.floor, distributed.device())

        # Position -> training image: one of the target's, or an auxiliary one.
        sets = [ShardDataset(split) for folder in auxiliary for split in splits(folder)]
        others = label_apart([(images.labels, len(images.classes)) for images in sets])
        counts = [count for images in sets for count in images.counts]
        order = order_of(config, self.train_set.labels, others, self.train_set.counts, counts)
        self.dataset = PositionDataset(ConcatDataset([self.train_set, *sets]), order, _transform)
        self.epoch = order.num_samples
        self.num_images = len(self.train_set) + len(others)

        # The network, and the networks that judge its reconstructions.
        torch.manual_seed(config.seed)
        self.module, self.model_config = build_module(config, self.image_shape[2])
        self.codebook = self.module.codebook
        if config.init_from is not None:
            start_vqvae(config.init_from, self.module, self.model_config, self.image_shape)
        self.precision = resolve_precision(config.mixed_precision, distributed.device())
        self.perceptual = None
        if config.use_perceptual:
            of_lpips = perceptual_precision(config, self.precision)
            perceptual = PerceptualLoss(config.perceptual_net, config.perceptual_weights, of_lpips)
            self.perceptual = perceptual.to(distributed.device(), memory_format=distributed.memory_format())  # type: ignore[call-overload]
        self.adversary = Adversary(config, self.image_shape, self.precision) if config.use_discriminator else None

    def workload(self, batch: int) -> Workload:
        """Count what micro batches of `batch` images take."""
        critic = self.adversary.network if self.adversary is not None else None
        return vqvae_workload(self.module, self.image_shape, batch, self.precision, self.perceptual, critic)

    def rehearse(self, batch: int) -> None:
        """Run a forward and a backward pass of `batch` images without data, which leave no trace."""
        device = distributed.device()
        module = self.module.to(device).eval()  # else the codebook remembers its vectors
        height, width, channels = self.image_shape
        images = torch.zeros(batch, channels, height, width, device=device)
        try:
            with distributed.autocast(self.precision, device):
                reconstruction, _, _, commitment = module(images)
            (self.distance(reconstruction, images)[0].mean() + commitment).backward()
            if self.adversary is not None:
                network = self.adversary.network
                (network(images) + network(reconstruction.detach())).mean().backward()
        finally:
            module.train().zero_grad(set_to_none=True)
            if self.adversary is not None:
                self.adversary.network.zero_grad(set_to_none=True)

    def compile(self) -> None:
        """Compile encoder and decoder, once for each shape they meet; names and values of the weights stay."""
        for part in ("encoder", "decoder"):
            self.module.get_submodule(part).compile(dynamic=False)

    def prepare(self, engine: Engine) -> None:
        """Place the first codes by k-means over the untrained encoder's outputs, the same images on all ranks."""
        if self.config.init_from is not None:
            return
        count = min(START_IMAGES, self.num_images)
        outputs = []
        with torch.no_grad():
            for start in range(0, count, START_BATCH):
                items = [self.dataset[p]["image"] for p in range(start, min(start + START_BATCH, count))]
                images = in_range(torch.stack(items).to(engine.device))
                _, latents, _, _ = engine(images, only_encode=True)
                outputs.append(latents.float().movedim(1, -1).flatten(0, -2))
        self.codebook.start_from(torch.cat(outputs), self.config.seed)

    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return distance + adversarial + commitment, and the share of the codes that the micro batch uses."""
        images = batch["image"]
        reconstruction, _, indices, commitment = engine(images)
        if self.adversary is None:
            distance, figures = self.distance(reconstruction, images)
            total = distance.mean()
        else:
            total, figures = self.adversary.loss(reconstruction, images, self.distance)
        used = torch.zeros_like(self.codebook.counts).index_fill_(0, indices.flatten(), 1.0).mean()
        return total + commitment, {**figures, "commitment": commitment, "codes_in_batch": used}

    def distance(
        self, reconstruction: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the fp32 distance per image, (B,), and the means of its terms."""
        config, kind = self.config, self.config.reconstruction_loss
        terms = {"reconstruction": (1.0, losses.pixel_distance(reconstruction, images, kind))}
        if self.perceptual is not None:
            terms["perceptual"] = (config.lambda_perceptual, self.perceptual(reconstruction, images))
        if config.lambda_edge > 0:
            terms["edge"] = (config.lambda_edge, losses.edge_distance(reconstruction, images))
        if config.lambda_spectrogram > 0:
            error = losses.spectrogram_distance(reconstruction, images, self.floor_in_range, kind)
            terms["spectrogram"] = (config.lambda_spectrogram, error)
        if config.lambda_doppler > 0:
            error = losses.doppler_distance(reconstruction, images, self.floor_in_range)
            terms["doppler"] = (config.lambda_doppler, error)
        total = torch.stack([weight * value for weight, value in terms.values()]).sum(0)
        return total, {name: value.mean() for name, (_, value) in terms.items()}

    def after_step(self, engine: Engine, state: TrainingState) -> None:
        """Let the codes follow the encoder and the discriminator learn."""
        self.steps = state.step
        self.codebook.update(self.config.seed, state.step)
        if self.adversary is not None:
            self.adversary.step(state.samples)

    @torch.no_grad()
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return loss (the mean distance), MSE, PSNR in dB, code perplexity and share of codes used."""
        self.module.eval()
        sums = torch.zeros(4, device=engine.device, dtype=torch.float64)
        counts = torch.zeros(len(self.codebook.codes), device=engine.device, dtype=torch.float64)
        draws = min(len(self.val_set), VALIDATION_SAMPLES)
        batches = validation_batches(partial(_validation_sample, self.val_set, draws), draws, self.config, self.stopped)
        for batch, weight in batches:
            reconstruction, _, indices, _ = engine(batch["image"])
            mse = (reconstruction.float() - batch["image"]).square().flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / mse)  # the range [-1, 1] is 2 wide
            distance, _ = self.distance(reconstruction, batch["image"])
            sums += torch.stack([(x * weight).sum() for x in (distance, mse, psnr, torch.ones_like(mse))]).double()
            counts += torch.bincount(indices[weight > 0].flatten(), minlength=len(counts))
        self.module.train()
        distributed.sum_over_ranks(sums)
        perplexity, used = code_usage(distributed.sum_over_ranks(counts))
        loss, mse, psnr = (sums[:3] / sums[3]).tolist()
        if used < LOW_USE and distributed.is_main():
            first, *others = remedies(self.codebook, counts, self.steps)
            print(
                f"warning: only {100 * used:.0f} % (perplexity {perplexity:.0f}) of the {len(counts)} codes are used "
                f"on the validation set; try {first}; if that does not help, {' or '.join(others)}"
            )
        return {"loss": loss, "mse": mse, "psnr": psnr, "perplexity": perplexity, "codes_used": used}

    def validation_passes(self) -> int:
        """Return the number of validation images."""
        return min(len(self.val_set), VALIDATION_SAMPLES)

    @torch.no_grad()
    def save_images(self, engine: Engine, state: TrainingState) -> dict[str, float]:
        """Write original, reconstruction, and difference with the PSNR of each validation image to images/."""
        self.module.eval()
        count = min(PICTURES, len(self.val_set))
        chosen = [i * len(self.val_set) // count for i in range(count)]
        levels = torch.stack([_transform(self.val_set[i], i)["image"] for i in chosen])
        images = in_range(levels.to(engine.device))
        reconstruction = engine(images)[0]
        self.module.train()
        if distributed.is_main():
            path = self.config.output_dir / "images" / f"samples-{state.samples:012d}.png"
            save_reconstructions(path, images, reconstruction, self.colormap)
        return {}

    def exporter(self, engine: Engine) -> Callable[[Path], object]:
        """Copy the stock VQModel, and return what writes it with geometry and provenance on rank 0."""
        state = engine.full_state_dict()
        return partial(
            save_vqvae,
            stock_model(self.model_config, state) if distributed.is_main() else None,
            image_shape=self.image_shape,
            floor=self.floor,
            colormap=self.colormap,
            made_from={role: content for role, content in self.made_from.items() if content is not None},
            config=configuration.as_dict(self.config),
        )

    def replicated_state(self) -> dict[str, torch.Tensor]:
        """Return the codebook's buffers (DeepSpeed's universal format would lose them) and the discriminator."""
        tensors = {name: buffer.cpu() for name, buffer in self.codebook.named_buffers()}
        if self.adversary is not None:
            tensors |= {f"adversary.{name}": value for name, value in self.adversary.state().items()}
        return tensors

    def load_replicated_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore them."""
        self.codebook.load_state_dict({name: tensors[name] for name, _ in self.codebook.named_buffers()})
        if self.adversary is not None:
            prefix = "adversary."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.adversary.load_state(state)


def _transform(sample: dict[str, Any], position: int) -> dict[str, Any]:
    """Return an image as levels, a quarter of the bytes of what `to_device` makes of them."""
    return {"image": channels_first(sample["image"])}


def _validation_sample(images: ShardDataset, draws: int, position: int) -> dict[str, Any]:
    """Return an image of a validation: each or, of more images than draws, some evenly."""
    return _transform(images[position * len(images) // draws], position)
