"""Networks: the VQ-VAE and the hybrid window + axial attention U-Net."""
