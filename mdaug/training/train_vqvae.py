"""`mdaug train-vqvae`: options and assembly of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdaug.training.run_folder import TrainingConfig
from shards.validation import height_width


@dataclass
class VQVAEConfig(TrainingConfig):
    """Train the VQ-VAE that turns spectrograms into latents and back."""

    batch_size: int | Literal["auto"] = 16  # type: ignore[assignment]
    """Micro batch: images that one device holds at once; auto: what fits into the GPU, 16 without one."""
    latent_channels: int = 4
    """Channels of a latent."""
    vq_embed_dim: int = 4
    """Dimension of a code; must equal latent_channels."""
    vq_num_embed: int = 128
    """Number of codes, K."""
    n_layers: int = 3
    """Halvings of height and width: 256 pixels -> 32 x 32 latents for 3, 64 x 64 for 2, 16 x 16 for 4."""
    base_channels: int = 32
    """Channels of the first level; they double per level up to 256."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run; cosine ends at 0 and pays in short runs."""
    reconstruction_loss: Literal["l1", "l2"] = "l2"
    """Distance of original and reconstruction in [-1, 1]."""
    commitment: float = 0.25
    """Weight of |z - code|^2 on the encoder's side."""
    codebook_decay: float = 0.99
    """Share of the old code statistics kept per optimizer step."""
    codebook_gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How gradients pass the quantizer: unchanged, or turned and scaled as the latent is onto its code."""
    use_perceptual: bool = False
    """Add the LPIPS distance to the loss; its weights must be on this machine ('make weights')."""
    lambda_perceptual: float = 0.1
    """Weight of the LPIPS distance."""
    perceptual_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Backbone of LPIPS; 'make weights NET=alex' fetches the weights of alex."""
    perceptual_weights: Path | None = None
    """File of its weights; default: where torch.hub keeps it."""
    lambda_edge: float = 0.0
    """Weight of the distance of the strength of edges, window by window: reconstructions as sharp as the originals."""
    lambda_spectrogram: float = 0.0
    """Weight of the reconstruction_loss over the pixels above the floor alone."""
    lambda_doppler: float = 0.0
    """Weight of the distance of the Doppler profiles of each time column."""
    use_discriminator: bool = False
    """Add a PatchGAN discriminator with hinge loss."""
    disc_start: int = 50_000
    """Samples after which the discriminator starts to train and to count."""
    lambda_adversarial: float = 0.8
    """Weight of the adversarial loss."""
    adaptive_weight: bool = True
    """Multiply that weight by |gradient of the distance| / |gradient of the adversarial loss| of each image."""
    gradient_penalty: float = 0.0
    """Weight gamma of the R1 penalty on the discriminator's gradient at the originals, in fp32."""
    disc_lr: float | None = None
    """Learning rate of the discriminator's AdamW (default: lr); constant."""
    disc_channels: int = 64
    """Channels of the discriminator's first layer."""
    compile: bool = False
    """Compile encoder and decoder (torch.compile; needs a C compiler): slow first steps, then faster ones."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        for name in ("latent_channels", "vq_num_embed", "n_layers", "base_channels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("lambda_perceptual", "lambda_edge", "lambda_spectrogram", "lambda_doppler", "disc_start",
                     "lambda_adversarial", "gradient_penalty"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or greater")
        if self.commitment < 0:
            raise ValueError(f"commitment={self.commitment} must be 0 or greater")
        if not 0 < self.codebook_decay < 1:
            raise ValueError(f"codebook_decay={self.codebook_decay} must be greater than 0 and less than 1")
        if self.disc_lr is not None and self.disc_lr <= 0:
            raise ValueError(f"disc_lr={self.disc_lr} must be greater than 0")
        if self.disc_channels <= 0 or self.disc_channels % 8:
            raise ValueError(f"disc_channels={self.disc_channels} must be a multiple of 8 (normalisation groups)")
        if self.use_discriminator and min(height_width(self.image_size)) < 16:
            raise ValueError(f"image_size={self.image_size} must be 16 or more for --use_discriminator")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile=True and zero_stage=3 exclude each other; use --zero_stage 2 or less")
        if self.latent_channels != self.vq_embed_dim:
            raise ValueError(
                f"latent_channels={self.latent_channels} and vq_embed_dim={self.vq_embed_dim} must be equal: a latent "
                "pixel is replaced by a code, and the diffusion model works on the same vectors before that"
            )
        if any(side % 2**self.n_layers for side in height_width(self.image_size)):
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {2**self.n_layers} for n_layers={self.n_layers}"
            )
        if self.base_channels % 8:
            raise ValueError(f"base_channels={self.base_channels} must be a multiple of 8 (normalisation groups)")

    def check_output(self, inputs_there: bool) -> None:
        """Refuse a run folder of another run, and a perceptual loss whose weights are not on this machine."""
        super().check_output(inputs_there)
        if self.use_perceptual:
            from mdaug.models.perceptual import find_weights

            find_weights(self.perceptual_net, self.perceptual_weights)


def train_vqvae(config: VQVAEConfig) -> None:
    """Train the VQ-VAE; the same command again resumes."""
    from mdaug import distributed

    distributed.init()

    from mdaug.training.cost import choose_batch_size, estimate
    from mdaug.training.engine import check_before_data
    from mdaug.training.loop import train
    from mdaug.training.run_folder import open_run, packing, plan_batches
    from mdaug.training.vqvae_task import VQVAETask
    from shards import provenance
    from shards.packed import open_packed

    check_before_data(config)
    packed = open_packed(config.data_dir, config.image_size, **packing(config))
    images_hash = provenance.read(packed, "images")["hash"]
    if not open_run(config, images=images_hash):
        return
    task = VQVAETask(config, packed, images_hash)
    if config.batch_size == "auto":
        config.batch_size = choose_batch_size(task, len(task.train_set))
    if distributed.is_main():
        print(estimate(task, config.batch_size), flush=True)
    if config.compile:
        task.compile()
    train(task, config, plan_batches(config, len(task.train_set)))
