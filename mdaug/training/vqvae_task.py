"""What is particular to training the VQ-VAE."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from mdaug import config as configuration
from mdaug.images import grid, to_tensor, to_uint8
from mdaug.models.perceptual import PerceptualLoss
from mdaug.models.quantizer import Codebook, code_usage
from mdaug.models.vqvae import TrainableVQVAE, build_vqvae, save_vqvae, stock_model
from mdaug.training import distributed
from mdaug.training.checkpoint import TrainingState
from mdaug.training.engine import Engine
from mdaug.training.loop import Task
from mdaug.training.run import BatchPlan
from mdaug.training.validation import validation_batches
from mdaug.training.vqvae import VQVAEConfig
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.order import EpochOrder, PositionDataset

START_IMAGES = 256  # images whose encoder outputs place the first codes
PICTURES = 8  # pairs in a picture of reconstructions


class VQVAETask(Task):
    """Reconstruction (L1 or L2, optionally LPIPS) and commitment; the codes follow by EMA."""

    score = "loss"

    def __init__(self, config: VQVAEConfig, packed: Path, images_hash: str):
        self.config, self.images_hash = config, images_hash
        self.train_set, self.val_set = ShardDataset(packed / "train"), ShardDataset(packed / "val")
        if len(self.val_set) == 0:
            raise UserError(f"{packed} has no validation images; pack it again with a larger --val_fraction")
        self.image_shape: list[int] = self.train_set.index["image_shape"]
        torch.manual_seed(config.seed)
        model = build_vqvae(
            image_channels=self.image_shape[2],
            latent_channels=config.latent_channels,
            num_codes=config.vq_num_embed,
            n_layers=config.n_layers,
            base_channels=config.base_channels,
        )
        self.codebook = Codebook(
            config.vq_num_embed, config.vq_embed_dim, commitment=config.commitment, decay=config.codebook_decay
        )
        self.module = TrainableVQVAE(model, self.codebook)
        self.model_config = dict(model.config)
        self.dataset = PositionDataset(self.train_set, EpochOrder(len(self.train_set), config.seed), _transform)
        self.perceptual = PerceptualLoss(config.perceptual_net) if config.use_perceptual else None
        if self.perceptual is not None:
            self.perceptual.to(distributed.device())

    def learning_rate(self, step: int, plan: BatchPlan) -> float:
        """Return the constant rate of the original scheme, or half a cosine from it to 0."""
        if self.config.lr_schedule == "constant":
            return self.config.lr
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * step / plan.steps))

    def prepare(self, engine: Engine) -> None:
        """Place the first codes by k-means over the untrained encoder's outputs, the same images on all ranks."""
        count = min(START_IMAGES, len(self.train_set))
        outputs = []
        with torch.no_grad():
            for start in range(0, count, self.config.batch_size):
                items = [self.dataset[p]["image"] for p in range(start, min(start + self.config.batch_size, count))]
                _, latents, _, _ = engine(torch.stack(items).to(engine.device), only_encode=True)
                outputs.append(latents.float().movedim(1, -1).flatten(0, -2))
        self.codebook.start_from(torch.cat(outputs), self.config.seed)

    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return reconstruction + lambda x perceptual + commitment."""
        images = batch["image"]
        reconstruction, _, _, commitment = engine(images)
        distance = self._distance(reconstruction, images)
        total = distance.mean() + commitment
        figures = {"reconstruction": distance.mean(), "commitment": commitment}
        if self.perceptual is not None:
            figures["perceptual"] = self.perceptual(reconstruction, images)
            total = total + self.config.lambda_perceptual * figures["perceptual"]
        return total, figures

    def _distance(self, reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return the fp32 distance per image, (B,)."""
        loss = functional.mse_loss if self.config.reconstruction_loss == "l2" else functional.l1_loss
        return loss(reconstruction.float(), images, reduction="none").flatten(1).mean(1)

    def after_step(self, engine: Engine, state: TrainingState) -> None:
        """Let the codes follow the encoder."""
        self.codebook.update(self.config.seed, state.step)

    @torch.no_grad()
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return loss (reconstruction + lambda x LPIPS), PSNR in dB, code perplexity and share of codes used."""
        self.module.eval()
        sums = torch.zeros(4, device=engine.device, dtype=torch.float64)
        counts = torch.zeros(len(self.codebook.codes), device=engine.device, dtype=torch.float64)
        batches = validation_batches(
            lambda i: _transform(self.val_set[i], i), len(self.val_set), self.config.batch_size
        )
        for batch, weight in batches:
            reconstruction, _, indices, _ = engine(batch["image"])
            mse = (reconstruction.float() - batch["image"]).square().flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / mse)  # the range [-1, 1] is 2 wide
            distance = self._distance(reconstruction, batch["image"])
            keep = weight > 0
            if self.perceptual is not None and keep.any():
                perceptual = self.perceptual(reconstruction[keep], batch["image"][keep])
                distance = distance + self.config.lambda_perceptual * perceptual
            sums += torch.stack([(x * weight).sum() for x in (distance, mse, psnr, torch.ones_like(mse))]).double()
            counts += torch.bincount(indices[keep].flatten(), minlength=len(counts))
        self.module.train()
        distributed.sum_over_ranks(sums)
        perplexity, used = code_usage(distributed.sum_over_ranks(counts))
        loss, mse, psnr = (sums[:3] / sums[3]).tolist()
        if used < 0.3 and distributed.is_main():
            print(
                f"warning: only {100 * used:.0f} % of the {len(counts)} codes are used on the validation set; try a "
                f"smaller --vq_num_embed ({max(8, 2 * round(used * len(counts)))}), a smaller --commitment, or more "
                "varied data"
            )
        return {"loss": loss, "mse": mse, "psnr": psnr, "perplexity": perplexity, "codes_used": used}

    @torch.no_grad()
    def save_images(self, engine: Engine, state: TrainingState) -> None:
        """Write originals above reconstructions of the first validation images to images/."""
        self.module.eval()
        count = min(PICTURES, len(self.val_set))
        chosen = [i * len(self.val_set) // count for i in range(count)]
        images = torch.stack([_transform(self.val_set[i], i)["image"] for i in chosen]).to(engine.device)
        reconstruction = engine(images)[0]
        self.module.train()
        if distributed.is_main():
            picture = grid([list(to_uint8(images)), list(to_uint8(reconstruction))], ["original", "decoded"])
            folder = self.config.output_dir / "images"
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / f"samples-{state.samples:012d}.png")

    def export(self, engine: Engine, folder: Path) -> None:
        """Write the stock VQModel with its geometry and provenance."""
        state = engine.full_state_dict()
        if distributed.is_main():
            save_vqvae(
                stock_model(self.model_config, state),
                folder,
                image_shape=self.image_shape,
                made_from={"images": self.images_hash},
                config=configuration.as_dict(self.config),
            )
        distributed.barrier()

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Return the codebook's buffers (DeepSpeed's universal format would lose them)."""
        return {name: buffer.cpu() for name, buffer in self.codebook.named_buffers()}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the codebook."""
        self.codebook.load_state_dict(tensors)


def _transform(sample: dict[str, Any], position: int) -> dict[str, Any]:
    return {"image": to_tensor(sample["image"])}
