"""Radar physics: target motion, radar return, STFT, colour maps. numpy and scipy only."""
