"""Preset "gait-persons": placeholder."""
