"""The engine over DeepSpeed, one training loop, and the two tasks (VQ-VAE, latent diffusion)."""
