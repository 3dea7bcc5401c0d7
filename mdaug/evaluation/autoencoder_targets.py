"""What a VQ-VAE is to reach on held-out images, and whether it does."""

from __future__ import annotations

import math
from typing import Any

PSNR_DB = 28.0
CODES_USED = 0.9
PERPLEXITY_PART = 3  # perplexity at least K over this
SHARPNESS = (0.9, 1.1)
STD = (0.98, 1.02)


def targets(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows {"figure", "measured", "target", "reached"} for the figures of `mdaug reconstruct`.

    "reached" is None where a figure is reported only. Kurtosis and standard deviation are those of the channel that
    is farthest from a normal distribution.
    """
    image, codes = figures["rows"]["VQ-VAE"], figures["codes"]
    psnr, sharpness = (image[name]["mean"] for name in ("psnr", "sharpness"))
    std = max(figures["latents"]["scaled_std"], key=lambda value: abs(math.log(max(value, 1e-12))))
    kurtosis = max(figures["latents"]["excess_kurtosis"], key=abs)
    least = codes["number"] / PERPLEXITY_PART
    rows = [
        ("PSNR [dB]", psnr, f">= {PSNR_DB:g}", psnr >= PSNR_DB),
        ("codes used", codes["used"], f">= {CODES_USED:g}", codes["used"] >= CODES_USED),
        ("perplexity", codes["perplexity"], f">= {least:.1f} (K/3)", codes["perplexity"] >= least),
        ("sharpness", sharpness, "{:g} to {:g}".format(*SHARPNESS), SHARPNESS[0] <= sharpness <= SHARPNESS[1]),
        ("latent std after scaling", std, "{:g} to {:g}".format(*STD), STD[0] <= std <= STD[1]),
        ("latent excess kurtosis", kurtosis, "reported", None),
    ]
    return [dict(zip(("figure", "measured", "target", "reached"), row, strict=True)) for row in rows]


def format_targets(rows: list[dict[str, Any]], preset: str) -> str:
    """Return the rows as text under the preset's name."""
    answers = {True: "yes", False: "no", None: ""}
    lines = [f"{f'to reach ({preset})':<32s}{'measured':>10s}  {'target':<16s}{'reached'}"]
    for row in rows:
        answer = answers[row["reached"]]
        lines.append(f"{row['figure']:<32s}{row['measured']:>10.3f}  {row['target']:<16s}{answer}".rstrip())
    return "\n".join(lines)
