"""Options of train-vqvae and encode: the VQ-VAE and the latents that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mdaug import augment
from mdaug.training.options import TrainingConfig
from shards.validation import at_least, height_width, identity_of, operational, within


@dataclass
class VQVAEConfig(TrainingConfig):
    """Train the VQ-VAE that turns spectrograms into latents and back."""

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
    perceptual_weights: Path | None = operational(None)
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
    compile: bool = operational(False)
    """Compile encoder and decoder (torch.compile; needs a C compiler, Python.h): slow first steps, then faster ones."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        at_least(self, 1, "latent_channels", "vq_num_embed", "n_layers", "base_channels", "disc_channels")
        at_least(
            self, 0, "lambda_perceptual", "lambda_edge", "lambda_spectrogram", "lambda_doppler", "disc_start",
            "lambda_adversarial", "gradient_penalty", "commitment",
        )  # fmt: skip
        within(self, "(0, 1)", "codebook_decay")
        within(self, "(0, inf)", "disc_lr")
        for name in ("base_channels", "disc_channels"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of 8 (normalisation groups)")
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


@dataclass
class EncodeConfig:
    """Encode packed images to latent shards: the latents before quantization, decoding quantizes."""

    data_dir: Path = operational()
    """Packed shards, or an image folder (packed into a cache, with the options that train-vqvae was given)."""
    vqvae_path: Path = operational()
    """VQ-VAE: the run folder of train-vqvae (its best/) or a diffusers folder."""
    output_dir: Path = operational()
    """Folder of the latent shards. The same command again continues or says that it is finished."""
    batch_size: int = operational(64)
    """Images that one device encodes at once."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = operational("no")
    """Precision of the encoder, no as in train-vqvae; the statistics are always fp64."""
    num_workers: int = operational(2)
    """Image decoding processes per rank."""
    augment_copies: int = 0
    """Augmented copies of each training image that are encoded beside it; validation images never have any."""
    augment_with: str | list[str] = field(default_factory=lambda: list(augment.SAFE))
    """Transforms, each on in half of the copies: roll (in time, circular), shift (in time, the floor comes in),
    doppler_scale, doppler_shift, gain, noise, time_mask, doppler_mask; and, if the classes allow it, flip_time and
    flip_doppler."""
    augment_seed: int = 0
    """What is done to copy c of an image depends on this seed, the image's key and c alone."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if isinstance(self.augment_with, str):
            self.augment_with = [name.strip() for name in self.augment_with.split(",")]
        augment.check_names(self.augment_with)
        at_least(self, 1, "batch_size")
        at_least(self, 0, "num_workers", "augment_copies", "augment_seed")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the latents beside their inputs; without copies, the transforms decide nothing."""
        return identity_of(self) if self.augment_copies else {"augment_copies": 0}
