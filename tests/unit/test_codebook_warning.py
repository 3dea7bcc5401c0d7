"""Which remedy the warning about unused codes names first."""

from __future__ import annotations

import pytest

from mdaug.models.quantizer import Codebook
from mdaug.training.vqvae_task import remedies

RESTARTED = 400  # steps: 0.99^400 < 0.03, so a code that nothing chooses has been restarted


@pytest.mark.parametrize(
    ("steps", "perplexity", "first"),
    [
        (RESTARTED, 200, "a smaller --vq_num_embed (512)"),  # 256 of 1024 codes, used alike: so many are wanted
        (RESTARTED, 5, "more varied data"),  # a few of them stand for nearly all pixels
        (300, 5, "a --codebook_decay below 0.99"),  # 0.99^300 > 0.03: none can have been restarted yet
        (300, 200, "a --codebook_decay below 0.99"),
    ],
)
def test_the_likeliest_remedy_comes_first(steps, perplexity, first):
    found = remedies(Codebook(1024, 4, decay=0.99), used=0.25, perplexity=perplexity, steps=steps)
    assert found[0].startswith(first)
    assert len(set(found)) == 3


def test_codes_that_never_move_want_restarting():
    assert "--codebook_decay" in remedies(Codebook(64, 4, decay=1.0), 0.1, 6, 1_000_000)[0]
