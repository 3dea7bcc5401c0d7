"""Which remedy the warning about unused codes names first."""

from __future__ import annotations

import pytest
import torch

from mdaug.models.quantizer import Codebook
from mdaug.training.vqvae_task import remedies

RESTARTED = 400  # steps: 0.99^400 < 0.03, so a code that nothing chooses has been restarted
SHRINK, DATA, RESTART = "a smaller --vq_num_embed (512)", "more varied data", "a --codebook_decay below 0.99"


def uses(most: int, others: int) -> torch.Tensor:
    """256 of 1024 codes are used: one of them so many times, each other one so many times."""
    counts = torch.zeros(1024, dtype=torch.float64)
    counts[0], counts[1:256] = most, others
    return counts


@pytest.mark.parametrize(
    ("counts", "steps", "first"),
    [
        (uses(50, 50), RESTARTED, SHRINK),  # used alike: so many are wanted
        (uses(100_000, 50), RESTARTED, DATA),  # one of them stands for nearly all pixels
        (uses(50, 50), 300, RESTART),  # 0.99^300 > 0.03: none can have been restarted yet
        (uses(100_000, 50), 300, RESTART),
        (uses(2, 2), 300, SHRINK),  # 512 pixels cannot use 1024 codes
    ],
)
def test_the_likeliest_remedy_comes_first(counts, steps, first):
    found = remedies(Codebook(1024, 4, decay=0.99), counts, steps)
    assert found[0].startswith(first)
    assert len(set(found)) == 3


def test_codes_that_never_move_want_restarting():
    assert "--codebook_decay" in remedies(Codebook(1024, 4, decay=1.0), uses(50, 50), 1_000_000)[0]
