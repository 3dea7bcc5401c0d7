"""`mdaug train-vqvae`: options and assembly of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mdaug.training.run import TrainingConfig


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
    use_perceptual: bool = False
    """Add the LPIPS distance to the loss; its weights must be on this machine ('make weights')."""
    lambda_perceptual: float = 0.1
    """Weight of the LPIPS distance."""
    perceptual_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Backbone of LPIPS."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        for name in ("latent_channels", "vq_num_embed", "n_layers", "base_channels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        if self.latent_channels != self.vq_embed_dim:
            raise ValueError(
                f"latent_channels={self.latent_channels} and vq_embed_dim={self.vq_embed_dim} must be equal: a latent "
                "pixel is replaced by a code, and the diffusion model works on the same vectors before that"
            )
        if self.image_size % 2**self.n_layers:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {2**self.n_layers} for n_layers={self.n_layers}"
            )
        if self.base_channels % 8:
            raise ValueError(f"base_channels={self.base_channels} must be a multiple of 8 (normalisation groups)")


def train_vqvae(config: VQVAEConfig) -> None:
    """Train the VQ-VAE; the same command again resumes."""
    from mdaug.training import distributed

    distributed.init()

    from mdaug.training.loop import train
    from mdaug.training.run import open_run, plan_batches
    from mdaug.training.vqvae_task import VQVAETask
    from shards import provenance
    from shards.pack import open_packed

    packed = open_packed(config.data_dir, config.image_size, group_by=config.group_by)
    images_hash = provenance.read(packed, "images")["hash"]
    if not open_run(config, images=images_hash):
        return
    task = VQVAETask(config, packed, images_hash)
    train(task, config, plan_batches(config, len(task.train_set)))
