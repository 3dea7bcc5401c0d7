"""mdaug: labelled synthetic micro-Doppler spectrograms."""

import os
from typing import Any

__version__ = "0.1.0"

# Threads that wait for others sleep instead of spinning; torch reads this when it is loaded. Spinning threads keep the
# core from those that they wait for: on two cores that others use too, two threads trained at 3 to 27 images/s, and
# sleeping ones at 53 to 102.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """Import the pipeline on first use: `from mdaug import MicroDopplerPipeline` without slowing `mdaug --help`."""
    if name == "MicroDopplerPipeline":
        from mdaug.pipeline.pipeline import MicroDopplerPipeline

        return MicroDopplerPipeline
    raise AttributeError(f"module 'mdaug' has no attribute '{name}'")
