"""Costs are counted without computing: they agree with the formulas of the layers and with what a real pass keeps."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attention_cost import cost
from mdaug.models.hybrid_unet import AxialAttention, SpatialAttention, WindowAttention

SIDE, CHANNELS, HEADS, WINDOW = 16, 32, 4, 8
PIXELS = SIDE * SIDE


@pytest.mark.parametrize(
    ("kind", "options", "seen"),
    [
        (SpatialAttention, {}, PIXELS),
        (WindowAttention, {"window_size": WINDOW, "shifted": False}, WINDOW**2),
        (WindowAttention, {"window_size": WINDOW, "shifted": True}, WINDOW**2),
        (AxialAttention, {}, SIDE),
    ],
)
def test_flops_of_attention_are_those_of_its_formula(kind, options, seen):
    """Projections to q, k, v and back, and two products (scores, values) with every pixel that a pixel sees."""
    with torch.device("meta"):
        layer = kind(CHANNELS, HEADS, 8, **options)
        maps = torch.empty(3, CHANNELS, SIDE, SIDE)
    projections, products = 2 * 4 * CHANNELS**2, 2 * 2 * seen * CHANNELS
    assert cost(layer, maps)[0] == 3 * PIXELS * (projections + products)


def test_memory_holds_no_scores_and_each_tensor_once():
    with torch.device("meta"):
        layer = SpatialAttention(CHANNELS, HEADS, 8)
        maps = torch.empty(1, CHANNELS, SIDE, SIDE)
    kept = cost(layer, maps)[1]
    channels = CHANNELS * PIXELS * 4  # bytes of a map in fp32
    # input of the norm; tokens; q, k, v (three maps in one tensor); attended; and a number per head and pixel
    assert 6 * channels <= kept <= 6.5 * channels
