"""Noise schedulers, the diffusers pipeline and bulk generation."""
